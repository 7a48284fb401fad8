"""The page's style: readable on a phone, in the dark and on paper; system fonts, no network."""

STYLE = """
:root { color-scheme: light dark; --ink: #1b1f24; --soft: #57606a; --line: #d8dee4; --ground: #ffffff;
  --box: #f6f8fa; --accent: #1f6fb4; --second: #c2540a; --grid: #e4e4e4; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e8eb; --soft: #9aa4af; --line: #333a42; --ground: #15181c;
  --box: #1e2329; --accent: #6db3f2; --second: #f0944d; --grid: #2c333a; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 68rem; padding: 1.5rem 1rem 4rem; background: var(--ground); color: var(--ink);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Liberation Sans", "DejaVu Sans", sans-serif; }
h1 { font-size: 1.7rem; line-height: 1.2; margin: 0 0 .3rem; overflow-wrap: anywhere; }
h2 { font-size: 1.25rem; margin: 2.4rem 0 .6rem; padding-bottom: .25rem; border-bottom: 1px solid var(--line);
  overflow-wrap: anywhere; }
h3 { font-size: 1.02rem; margin: 1.4rem 0 .4rem; }
p { margin: .4rem 0; } .soft, footer { color: var(--soft); font-size: .9rem; }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(9.5rem, 1fr)); gap: .7rem;
  margin: 1.1rem 0; padding: 0; list-style: none; }
.cards li { background: var(--box); border: 1px solid var(--line); border-radius: .5rem; padding: .6rem .8rem; }
.cards .name { display: block; color: var(--soft); font-size: .82rem; }
.cards .value { display: block; font-size: 1.35rem; font-weight: 650; font-variant-numeric: tabular-nums; }
.cards .note { display: block; color: var(--soft); font-size: .82rem; font-variant-numeric: tabular-nums; }
.wide { overflow-x: auto; margin: .6rem 0; }
table { border-collapse: collapse; font-size: .92rem; min-width: 50%; }
caption { text-align: left; color: var(--soft); font-size: .85rem; padding-bottom: .3rem; }
th, td { padding: .3rem .8rem .3rem 0; border-bottom: 1px solid var(--line); text-align: left;
  vertical-align: top; white-space: nowrap; font-weight: normal; }
thead th { color: var(--soft); border-bottom-width: 2px; }
tbody th { font-weight: 600; }
.figure { text-align: right; font-variant-numeric: tabular-nums; }
pre { background: var(--box); border: 1px solid var(--line); border-radius: .4rem; padding: .6rem .8rem;
  font: .82rem/1.45 ui-monospace, "Liberation Mono", "DejaVu Sans Mono", monospace; white-space: pre-wrap;
  overflow-wrap: anywhere; user-select: all; margin: .3rem 0 .8rem; }
code { font-family: ui-monospace, "Liberation Mono", "DejaVu Sans Mono", monospace; font-size: .85em;
  overflow-wrap: anywhere; }
details { margin: .6rem 0; } summary { cursor: pointer; color: var(--accent); }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 21rem), 1fr)); gap: 1.2rem; }
figure { margin: .4rem 0; }
.charts figure { max-width: 36rem; } figcaption { color: var(--soft); font-size: .85rem; margin-bottom: .3rem; }
svg { display: block; width: 100%; height: auto; overflow: visible; }
svg text { fill: var(--soft); font-size: 12px; } svg .grid { stroke: var(--grid); }
svg .axis { stroke: var(--soft); } svg .dense { stroke: var(--ink); stroke-dasharray: 5 4; }
svg .band { fill: var(--ink); opacity: .07; }
svg .s0 { stroke: var(--accent); } svg .s1 { stroke: var(--second); } svg .s2 { stroke: #7a5195; }
svg .s3 { stroke: #2a8f5b; } svg .f0 { fill: var(--accent); } svg .f1 { fill: var(--second); }
svg .f2 { fill: #7a5195; } svg .f3 { fill: #2a8f5b; }
.pictures { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 15rem), 1fr)); gap: 1rem; }
.pictures img { width: 100%; image-rendering: pixelated; background: #fff; border: 1px solid var(--line); }
.heat td { text-align: center; color: #1b1f24; padding: .25rem .45rem; font-variant-numeric: tabular-nums; }
.warning { border-left: 4px solid var(--second); padding-left: .7rem; }
a { color: var(--accent); }
@media print { :root { color-scheme: light; --ink: #000; --soft: #444; --line: #bbb; --ground: #fff;
    --box: #f4f4f4; --accent: #1f6fb4; --second: #c2540a; --grid: #ddd; }
  @page { size: A4; margin: 16mm; }
  body { font-size: 10.5pt; max-width: none; padding: 0; }
  h2, h3 { break-after: avoid; } tr, figure, .cards li, pre { break-inside: avoid; }
  .wide { overflow: visible; } table { font-size: 8.5pt; } th, td { white-space: normal; padding-right: .5rem; }
  .charts { grid-template-columns: 1fr 1fr; } .pictures { grid-template-columns: repeat(3, 1fr); }
  details > * { display: block; } }
"""
