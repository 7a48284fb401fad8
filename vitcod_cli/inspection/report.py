"""Facts for people: lines of at most 80 columns."""

from __future__ import annotations

import math
from typing import Any

from vitcod_cli.artifacts.describe import ATTENTION_MAP, CHECKPOINT, MASK


def inspection_lines(found: dict[str, Any]) -> list[str]:
    """A paragraph for each file, then what masks have in common."""
    lines: list[str] = []
    for facts in found["files"]:
        lines += [*([""] if lines else []), *_file(facts)]
    for overlap in found["overlaps"]:
        one, other = overlap["files"]
        lines += [
            "",
            one,
            f"and {other}:",
            f"  both keep {overlap['of_all']:.1%} of what either keeps: {overlap['of_first']:.1%} of the first, "
            f"{overlap['of_second']:.1%} of the second",
        ]
    return lines


def _file(facts: dict[str, Any]) -> list[str]:
    lines = [facts["file"], f"  {facts['is']}, {facts['bytes']:,} bytes", f"  sha256 {facts['sha256']}"]
    lines += [f"  {name.replace('_', ' ')}: {_short(value)}" for name, value in facts.get("made", {}).items()]
    tell = {MASK: _mask, ATTENTION_MAP: _map, CHECKPOINT: _checkpoint}.get(facts["kind"])
    return lines if tell is None else [*lines, *tell(facts)]


def _short(value: Any) -> str:
    text = f"{value:.10g}" if isinstance(value, float) else str(value)
    return text if len(text) <= 64 else f"{text[:61]}..."


def _shape(facts: dict[str, Any]) -> str:
    blocks, heads, tokens, _ = facts["shape"]
    return f"  {blocks} blocks, {heads} heads, {tokens} tokens"


def _mask(facts: dict[str, Any]) -> list[str]:
    keys, macs, dense = facts["keys_per_query"], facts["attention_macs"], facts["dense_attention_macs"]
    lines = [
        f"{_shape(facts)}{', polarized' if facts['polarized'] else ''}",
        f"  {facts['sparsity']:.2%} pruned; a query keeps {keys['least']} to {keys['most']} keys, "
        f"{keys['median']:g} in the median",
        f"  attention products: {macs / 1e6:,.1f} of {dense / 1e6:,.1f} million MACs, with heads of "
        f"{facts['head_dim']} channels",
        f"  global tokens: keys that more than {facts['global_token_threshold']} queries keep",
    ]
    if facts["empty_rows"]:
        lines.append(f"  {facts['empty_rows']:,} queries keep no key: no model can use it")
    lines.append("  block  pruned  least and most pruned head  global tokens of a head")
    rows = zip(facts["per_block"], facts["per_head"], facts["global_tokens"], strict=True)
    for block, (pruned, heads, tokens) in enumerate(rows):
        span = f"{min(heads):.1%} to {max(heads):.1%}"
        shown = " ".join(map(str, tokens)) if len(tokens) <= 6 else f"{min(tokens)} to {max(tokens)}"
        lines.append(f"  {block:>5}  {pruned:6.1%}  {span:>26}  {shown:>23}")
    return lines


def _map(facts: dict[str, Any]) -> list[str]:
    images = f"mean of {facts['images']:,} images" if facts["images"] else "of an unknown number of images"
    cuts = [f"{cut} {sparsity:.1%}" for cut, sparsity in facts["info_cuts"].items()]
    entropy = " ".join(f"{bits:.2f}" for bits in facts["entropy"])
    return [
        f"{_shape(facts)}, {images}{', with importance' if facts['importance'] else ''}",
        f"  entropy of a row by block, in bits of {facts['largest_entropy']:.2f}:",
        *_wrapped(entropy.split()),
        "  info cut and the sparsity that it gives, prefix tokens kept:",
        *_wrapped([f"{cut}," for cut in cuts[:-1]] + cuts[-1:]),
    ]


def _checkpoint(facts: dict[str, Any]) -> list[str]:
    config, lines = facts["model_config"], []
    if config is not None:
        size = "x".join(map(str, config["img_size"]))
        kwargs = [f"{name}={value}" for name, value in config["model_kwargs"].items()]
        classes = f"{config['num_classes']} classes" if config["num_classes"] else "no head"
        words = [config["model"], *kwargs, classes, f"images of {size}"]
        lines += _wrapped(", ".join(words).split())
    kinds = ", ".join(f"{count:,} {dtype}" for dtype, count in facts["by_dtype"].items())
    lines.append(f"  {facts['layout']} layout, {facts['tensors']} tensors, weights: {kinds}")
    for letter, energies in facts["kept_energy"].items():
        lines.append(f"  {letter.upper()}: energy that its auto-encoder keeps, by block:")
        lines += _wrapped(["unknown" if math.isnan(energy) else f"{energy:.1%}" for energy in energies])
    if facts["sparsity"] is not None:
        lines.append(f"  its mask prunes {facts['sparsity']:.2%} of the attention")
    return lines


def _wrapped(words: list[str]) -> list[str]:
    lines = ["   "]
    for word in words:
        if len(lines[-1]) + len(word) + 1 > 80:
            lines.append("   ")
        lines[-1] += f" {word}"
    return lines
