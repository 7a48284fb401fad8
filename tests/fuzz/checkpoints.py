"""Checkpoints: ours and timm's safetensors files, and what reads them."""

from __future__ import annotations

from typing import Any

import torch

from fuzz import safetensors_files as st
from fuzz.case import Bench, Check
from fuzz.facts import NAMED, Tensors, evaluates_as, holds, holds_pickle, known, plain_model
from fuzz.files import FileReader, Made, Use
from fuzz.metadata import hostile
from fuzz.safetensors_files import changed, claims, contents, pack, sealed, strictly_parsed, unpack

DATA = ("--data-path={assets}/images", "--workers=0", "--json")
TRAIN = ("--epochs=0", "--calibrate-steps=0", "--output-dir=run", "--no-model-ema")


def _known(fact: str) -> Any:
    def check(bench: Bench, _: Any) -> Check:
        return known(bench.assets, fact)

    return check


def _written_map(bench: Bench, _: Any) -> Check:
    """The map that ``dump-attn`` makes of the undamaged model: its rows sum to 1, and there is one a head."""

    def check(done: Any) -> None:
        attention = contents(done.folder / "out.safetensors")[0]["attention"]
        assert attention.shape == (2, 3, 17, 17)
        assert torch.allclose(attention.sum(-1), torch.ones(2, 3, 17), atol=1e-4)

    return check


def _tensors(bench: Bench, asset: str) -> dict[str, torch.Tensor]:
    return contents(bench.assets / asset)[0]


def _published(bench: Bench, content: Tensors) -> Check:
    return holds_pickle("out.pth", content)


EVAL_DENSE = Use(("eval", "--checkpoint={}", *DATA), _known("dense"))

OWN_DENSE = FileReader(
    name="checkpoint",
    asset="dense.safetensors",
    parse=lambda bench, _: _tensors(bench, "dense.safetensors"),
    uses=[
        EVAL_DENSE,
        EVAL_DENSE,
        Use(
            ("convert", "--to=reference", "--output=out.pth", "--", "{}"), _published, ("out.pth",), generous=True
        ),
        Use(
            ("dump-attn", "--checkpoint={}", *DATA[:2], "--max-images=2", "--output=out.safetensors"),
            _written_map,
            ("out.safetensors",),
        ),
        Use(
            ("finetune-dense", "--init-from={}", *DATA, "--epochs=0", "--output-dir=run"),
            _known("dense"),
            ("run",),
        ),
        Use(
            ("export", "--checkpoint={}", "--output=out.safetensors"),
            lambda bench, content: holds("out.safetensors", content),
            ("out.safetensors",),
        ),
    ],
    by_hand={
        **{change: changed("dense.safetensors", change) for change in st.CHANGES},
        "claims": claims("dense.safetensors"),
        "metadata": lambda bench: _hostile(bench, "dense.safetensors"),
    },
    foreign=(
        "map.safetensors",
        "mask.safetensors",
        "map.npy",
        "mask.npy",
        "run/state.safetensors",
        "val.tar",
        "images/val/class0/00.png",
        "config.yaml",
        "classes.json",
        "facts.json",
    ),
)

OWN_SPARSE = FileReader(
    name="checkpoint sparse",
    asset="sparse.safetensors",
    parse=lambda bench, _: _tensors(bench, "sparse.safetensors"),
    uses=[
        Use(("eval", "--checkpoint={}", *DATA), _known("sparse")),
        Use(("finetune-sparse", "--init-from={}", *DATA, *TRAIN), _known("sparse"), ("run",)),
    ],
    by_hand={
        **{change: changed("sparse.safetensors", change) for change in st.CHANGES},
        "claims": claims("sparse.safetensors"),
        "metadata": lambda bench: _hostile(bench, "sparse.safetensors"),
    },
)


def _hostile(bench: Bench, asset: str) -> Made:
    tensors, info = contents(bench.assets / asset)
    torch.save({"pwned": torch.ones(1)}, bench.folder / "canary.pth")
    return Made(sealed(bench, tensors, hostile(bench, info)), tensors)


# -- timm's -----------------------------------------------------------------------------------


def _timm(bench: Bench, content: bytes) -> Tensors | None:
    tensors = strictly_parsed(content)
    return None if tensors is None or plain_model(tensors) is None else tensors


def _plain_changed(change: str) -> Any:
    def make(bench: Bench) -> Made:
        tensors = _timm(bench, bench.asset("timm.safetensors"))
        assert tensors is not None
        # Other image sizes and class counts are read off these two, and mean another model.
        names = [
            n for n in tensors if n not in ("pos_embed", "head.weight", "head.bias", "patch_embed.proj.weight")
        ]
        name = bench.any(names)
        tensors = {**tensors, name: st.CHANGES[change](tensors[name], bench)}
        return Made(_packed(bench, tensors))

    return make


def _packed(bench: Bench, tensors: Tensors) -> bytes:
    from safetensors.torch import save

    return save({name: tensor.contiguous() for name, tensor in tensors.items()})


_ODD_METADATA: list[Any] = [
    None,
    1,
    [],
    "x",
    {"a": 1},
    {"vitcod": "{"},
    {"vitcod": "[1]"},
    {"vitcod": "1"},
    {"vitcod": '{"version": 1}'},
    {"vitcod": '{"version": 1e999, "format": "checkpoint"}'},
    {"vitcod": '{"version": 99, "format": "checkpoint"}'},
    {"vitcod": "[" * 100_000},
    {"vitcod": '{"version": [], "format": {}}'},
    {"vitcod": '{"version":"1","format":"checkpoint"}'},
    {"vitcod": '{"version": 1, "format": "\\u001b[31m"}'},
]


def _half(bench: Bench) -> Made:
    """Other floating-point formats are fine, and so is what other tools say in their metadata."""
    header, data = unpack(bench.asset("timm.safetensors"))
    tensors = _timm(bench, bench.asset("timm.safetensors"))
    assert tensors is not None
    match bench.number % 4:
        case 0:
            dtype = bench.any([torch.float16, torch.bfloat16, torch.float64])
            tensors = {name: tensor.to(dtype) for name, tensor in tensors.items()}
            return Made(_packed(bench, tensors), tensors, refusable=False)
        case 1:
            said = {"format": "pt", "note": bench.any(["\x1b[31m", "x" * 1_000_000, "\u0000", "日本"])}
            return Made(pack({**header, "__metadata__": said}, data), tensors, refusable=False)
        case 2:
            junk = bench.any(_ODD_METADATA)
            return Made(pack({**header, "__metadata__": junk}, data))
        case _:
            name = bench.any(["more", "blocks.2.norm1.weight", "\x1b[31m\n", "\ud83d", "__class__", "x" * 100_000])
            return Made(_packed(bench, {**tensors, name.encode("utf-8", "ignore").decode(): torch.ones(24)}))


TIMM = FileReader(
    name="timm",
    asset="timm.safetensors",
    parse=_timm,
    uses=[
        Use(
            ("eval", "--checkpoint={}", *NAMED, *DATA), lambda bench, content: evaluates_as(content, bench.assets)
        ),
        Use(
            ("convert", "--output=out.safetensors", *NAMED, "--", "{}"),
            lambda bench, content: holds("out.safetensors", content),
            ("out.safetensors",),
            generous=True,
        ),
    ],
    by_hand={
        **{change: _plain_changed(change) for change in st.CHANGES},
        "claims": claims("timm.safetensors"),
        "metadata": _half,
    },
    foreign=("map.safetensors", "map.npy", "run/state.safetensors", "val-0.tar", "classes.txt"),
)

READERS = [OWN_DENSE, OWN_SPARSE, TIMM]
