"""docs/models.md: which of timm's architectures can be treated, and why the others can't.

    python benchmarks/models_page.py docs/models.md

Every architecture that timm knows is built without memory for its weights. Without a file the page is printed.
"""

from __future__ import annotations

import sys
import textwrap
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import timm
import torch

from vitcod_cli.model.attention import SparseLowRankAttention
from vitcod_cli.model.families import Transformer, treat
from vitcod_cli.model.refusals import REASONS, auto_encoder_refusal, refusal

ATTENTION = {
    "PlainAttention": "plain",
    "EvaFusedAttention": "rotary or none, bias on Q and V",
    "EvaSplitAttention": "rotary or none, bias on Q and V, three projections",
    "RopeFusedAttention": "rotary",
    "RopeSplitAttention": "rotary, three projections",
    "BeitSparseAttention": "relative position bias, bias on Q and V",
    "RelPosSparseAttention": "relative position bias",
}
"""By class of ours, what an attention layer of timm's has."""


@dataclass(frozen=True)
class Known:
    """What is known of an architecture.

    Attributes:
        kind: timm's class of models. attention: our class of attention; "" where it can't be treated.
        refusal: why it can't be treated, or "". auto_encoder: why it can have no auto-encoder, or "".
        tags: how many sets of weights timm can download.
    """

    name: str
    kind: str
    attention: str
    refusal: str
    auto_encoder: str
    tags: int


def look_at(name: str) -> Known:
    """Build ``name`` on the meta device."""
    with torch.device("meta"):
        model = timm.create_model(name)
    kind, reason, tags = type(model).__name__, refusal(model), len(timm.list_pretrained(f"{name}.*"))
    if reason is not None:
        return Known(name, kind, "", reason, "", tags)
    assert isinstance(model, Transformer)
    treat(model)
    layer = next(module for module in model.modules() if isinstance(module, SparseLowRankAttention))
    return Known(name, kind, type(layer).__name__, "", auto_encoder_refusal(model) or "", tags)


def page(known: Sequence[Known]) -> Iterator[str]:
    """Its lines."""
    good = [one for one in known if not one.refusal]
    yield "# Models"
    yield ""
    tags = sum(one.tags for one in good)
    yield from textwrap.wrap(
        f"Of the {len(known):,} architectures of timm {timm.__version__}, {len(good)} can be treated, with {tags} "
        "sets of pretrained weights. Masks, maps, importance, calibration and export are for all of them, head "
        "auto-encoders where the last column says so. `vitcod models PATTERN` tells it of single names, with "
        "sizes (without those that are too large for the machine). This page is made by "
        "`python benchmarks/models_page.py docs/models.md`, which builds each of them without memory for its "
        "weights; a test compares.",
        115,
    )
    yield ""
    yield "| timm's class | attention | architectures | weights | auto-encoder |"
    yield "|---|---|---|---|---|"
    groups = defaultdict(list)
    for one in good:
        groups[one.kind, one.attention, one.auto_encoder].append(one)
    for (kind, attention, no_coder), ones in sorted(groups.items()):
        coder = f"no: {no_coder}" if no_coder else "yes"
        yield f"| {kind} | {ATTENTION[attention]} | {len(ones)} | {sum(one.tags for one in ones)} | {coder} |"
    for (kind, attention, no_coder), ones in sorted(groups.items()):
        yield ""
        yield f"## {kind}: {ATTENTION[attention]}{', no auto-encoder' if no_coder else ''}"
        yield ""
        yield from textwrap.wrap(", ".join(one.name for one in ones), 115, break_on_hyphens=False)
    yield ""
    yield "## Not treated"
    yield ""
    yield "| timm's class | architectures | why |"
    yield "|---|---|---|"
    refused = defaultdict(list)
    for one in known:
        if one.refusal and (one.kind in REASONS or one.kind in {own.kind for own in good}):
            refused[one.kind, one.refusal].append(one.name)
    for (kind, reason), names in sorted(refused.items()):
        shown = ", ".join(names) if len(names) <= 4 else str(len(names))
        yield f"| {kind} | {shown} | {reason} |"
    others = len(known) - len(good) - sum(map(len, refused.values()))
    yield ""
    yield f"The other {others} are convolutional, or mix tokens otherwise."


def main() -> None:
    """Look at all, and write."""
    text = "\n".join(page([look_at(name) for name in timm.list_models()])) + "\n"
    if len(sys.argv) > 1:
        Path(sys.argv[1]).write_text(text, encoding="utf-8")
    else:
        print(text, end="")


if __name__ == "__main__":
    main()
