"""Attention maps and masks, ours and published ``.npy`` arrays, and what reads them."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file

from fuzz import safetensors_files as st
from fuzz.case import Bench, Check
from fuzz.checkpoints import DATA, TRAIN
from fuzz.facts import anything, holds, holds_array, holds_mask, known, pruned
from fuzz.files import FileReader, Made, Use
from fuzz.metadata import hostile
from fuzz.npy import array_changed, array_claims, array_layouts, read_map, read_mask, saved
from fuzz.safetensors_files import changed, claims, contents, sealed

# -- what reads maps ----------------------------------------------------------------------------


def _gen_mask(bench: Bench, array: np.ndarray) -> Check | None:
    attention = np.asarray(array, dtype=np.float32)
    return holds_mask("out.safetensors", pruned(attention, 0.9)) if attention.shape[-1] > 1 else anything


def _map_for_us(bench: Bench, array: np.ndarray) -> Check | None:
    """A conversion loses nothing: what float32 can't hold is refused."""
    attention = np.asarray(array, dtype=np.float32)
    if not np.array_equal(attention, array):
        return None
    return holds(
        "out.safetensors", {"attention": torch.from_numpy(attention.copy()), "num_images": torch.tensor([0])}
    )


def _pictures(bench: Bench, _: Any) -> Check:
    def check(done: Any) -> None:
        lines = done.out.decode().splitlines()
        assert len(lines) == 3, f"{len(lines)} pictures"
        assert all((done.folder / line).read_bytes().startswith(b"\x89PNG") for line in lines)

    return check


GEN_MASK = Use(
    ("gen-mask", "--attn-map={}", "--info-cut=0.9", "--num-prefix-tokens=1", "--output=out.safetensors"),
    _gen_mask,
    ("out.safetensors",),
)
PLOT = Use(("plot", "--output-dir=out", "--", "{}"), _pictures, ("out",), generous=True)
TO_OURS = ("convert", "--output=out.safetensors", "--", "{}")
TO_THEIRS = ("convert", "--to=reference", "--output=out.npy", "--", "{}")
FOREIGN = (
    "dense.safetensors",
    "timm.safetensors",
    "published.pth",
    "legacy.pth",
    "run/state.safetensors",
    "val.tar",
    "images/val/class0/00.png",
    "config.yaml",
)


def _own_map(bench: Bench, _: bytes) -> np.ndarray:
    array: np.ndarray = np.load(bench.assets / "map.npy")
    return array


def _own_mask(bench: Bench, _: bytes) -> np.ndarray:
    array: np.ndarray = ~np.load(bench.assets / "mask.npy")
    return array


def _hostile(asset: str) -> Any:
    def make(bench: Bench) -> Made:
        tensors, info = contents(bench.assets / asset)
        return Made(sealed(bench, tensors, hostile(bench, info)), tensors[next(iter(tensors))].numpy())

    return make


def _more_images(bench: Bench) -> Made:
    """A map whose count of images is no count, or that is of no images at all."""
    tensors, info = contents(bench.assets / "map.safetensors")
    if bench.number % 2:
        return Made(sealed(bench, tensors, hostile(bench, info)), tensors["attention"].numpy())
    wrong = bench.any(
        [torch.tensor([-1]), torch.tensor([1, 2]), torch.tensor([7.0]), torch.tensor(7), torch.zeros(0)]
    )
    return Made(sealed(bench, {**tensors, "num_images": wrong}, info))


MAP_NPY = FileReader(
    name="map npy",
    asset="map.npy",
    parse=read_map,
    uses=[GEN_MASK, GEN_MASK, Use(TO_OURS, _map_for_us, ("out.safetensors",), generous=True)],
    by_hand={
        **{change: array_changed("map.npy", change) for change in st.CHANGES},
        "claims": array_claims,
        "metadata": array_layouts,
    },
    foreign=("mask.npy", "mask.safetensors", *FOREIGN),
)

MAP = FileReader(
    name="map",
    asset="map.safetensors",
    parse=_own_map,
    uses=[
        GEN_MASK,
        GEN_MASK,
        Use(TO_THEIRS, lambda bench, content: holds_array("out.npy", content), ("out.npy",), generous=True),
        PLOT,
    ],
    by_hand={
        **{change: changed("map.safetensors", change, ("attention",)) for change in st.CHANGES},
        "claims": claims("map.safetensors"),
        "metadata": _more_images,
    },
    foreign=("mask.npy", "mask.safetensors", *FOREIGN),
)

# -- what reads masks ---------------------------------------------------------------------------


def _masked(bench: Bench, keep: np.ndarray) -> Check | None:
    if not keep.any(-1).all():
        return None  # a row without a key has no softmax
    if np.array_equal(keep, _own_mask(bench, b"")):
        return known(bench.assets, "masked")
    return anything  # another mask, which only the file knows; its conversion is compared


def _mask_layout(bench: Bench) -> Made:
    pruned_entries = np.load(bench.assets / "mask.npy")
    match bench.number % 3:
        case 0:
            return Made(saved(np.asfortranarray(pruned_entries)), ~pruned_entries, refusable=False)
        case 1:
            pruned_entries[0, 0, 3] = True
            return Made(saved(pruned_entries), ~pruned_entries)
        case _:
            loose = pruned_entries.view(np.uint8).copy()
            loose[0, 0, 2, 2] = bench.any([2, 255, 55])
            return Made(saved(loose.view(np.bool_)))


def _empty_rows(bench: Bench) -> Made:
    """The softmax of a row without a key is not finite."""
    tensors, info = contents(bench.assets / "mask.safetensors")
    keep = tensors["keep"].clone()
    keep[int(bench.random.integers(2)), int(bench.random.integers(3)), int(bench.random.integers(17))] = False
    keep = keep if bench.number % 3 else torch.zeros_like(keep)
    return Made(sealed(bench, {"keep": keep}, info), keep.numpy())


EVAL_MASK = Use(("eval", "--checkpoint={assets}/dense.safetensors", "--mask={}", *DATA), _masked)
TRAIN_MASK = Use(
    ("finetune-sparse", "--init-from={assets}/dense.safetensors", "--mask={}", *DATA, *TRAIN), _masked, ("run",)
)

MASK_NPY = FileReader(
    name="mask npy",
    asset="mask.npy",
    parse=read_mask,
    uses=[
        EVAL_MASK,
        Use(TO_OURS, lambda bench, keep: holds_mask("out.safetensors", keep), ("out.safetensors",), generous=True),
        TRAIN_MASK,
    ],
    by_hand={
        **{change: array_changed("mask.npy", change) for change in st.CHANGES},
        "claims": lambda bench: Made(array_claims(bench).content.replace(b"<f4", b"|b1")),
        "metadata": _mask_layout,
    },
    foreign=("map.npy", "map.safetensors", *FOREIGN),
)

MASK = FileReader(
    name="mask",
    asset="mask.safetensors",
    parse=_own_mask,
    uses=[
        EVAL_MASK,
        Use(TO_THEIRS, lambda bench, keep: holds_array("out.npy", ~keep), ("out.npy",), generous=True),
        TRAIN_MASK,
        PLOT,
    ],
    by_hand={
        **{change: changed("mask.safetensors", change, ("keep",)) for change in ("dtype", "rank", "shape")},
        "nonfinite": _empty_rows,
        "claims": claims("mask.safetensors"),
        "metadata": _hostile("mask.safetensors"),
    },
    foreign=("map.npy", "map.safetensors", *FOREIGN),
)

# -- what reads the order of a polarized mask ---------------------------------------------------


def _simulated(bench: Bench, _: Any) -> Check:
    expected = json.loads((bench.assets / "facts.json").read_text())["simulated"]

    def check(done: Any) -> None:
        assert json.loads(done.out)["totals"] == expected["totals"], "another estimate"

    return check


def _another_order(bench: Bench) -> Made:
    """Of another mask, or of none: tokens that come twice, more dense keys than tokens."""
    tensors, info = contents(bench.assets / "polarized.safetensors")
    order, dense = tensors["permutation"].clone(), tensors["global_tokens"].clone()
    match bench.number % 4:
        case 0:
            order = order[
                ..., torch.randperm(order.shape[-1], generator=torch.Generator().manual_seed(bench.number))
            ]
        case 1:
            order[..., int(bench.random.integers(1, order.shape[-1]))] = int(bench.any([0, -1, 17, 2**31 - 1]))
        case 2:
            dense[int(bench.random.integers(2)), int(bench.random.integers(3))] = bench.any([-1, 18, 2**31 - 1])
        case _:
            del tensors[bench.any(["permutation", "global_tokens"])]
            return Made(sealed(bench, tensors, info))
    return Made(sealed(bench, {**tensors, "permutation": order, "global_tokens": dense}, info))


POLARIZED = FileReader(
    name="mask polarized",
    asset="polarized.safetensors",
    parse=_own_mask,
    uses=[
        Use(("simulate", "--json", "--", "{}"), _simulated),
        Use(
            ("polarize", "--threshold=9", "--output=out.safetensors", "--", "{}"),
            lambda bench, _: holds("out.safetensors", load_file(bench.assets / "polarized.safetensors")),
            ("out.safetensors",),
        ),
        EVAL_MASK,
    ],
    by_hand={
        **{
            change: changed("polarized.safetensors", change, ("keep", "permutation", "global_tokens"))
            for change in ("dtype", "rank", "shape")
        },
        "claims": claims("polarized.safetensors"),
        "order": _another_order,
    },
    foreign=("map.npy", "map.safetensors", *FOREIGN),
)


READERS = [MAP, MAP_NPY, MASK, MASK_NPY, POLARIZED]
