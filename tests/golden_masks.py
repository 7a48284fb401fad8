"""Masks and figures of the published accelerator programs: the small cases of tests/golden, and the real ones."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vitcod_cli.artifacts.mask import read_mask

SMALL = Path(__file__).parent / "golden" / "accelerator" / "small_cases.json"

Keep = NDArray[np.bool_]


def small_cases() -> list[dict[str, Any]]:
    """20 seeded masks, with the published order of their tokens and the figures of six runs each."""
    cases: list[dict[str, Any]] = json.loads(SMALL.read_text(encoding="utf-8"))["cases"]
    return cases


def large_cases() -> list[dict[str, Any]]:
    """Masks of more than 200 tokens, which the published program corrupts: what they were meant to be."""
    cases: list[dict[str, Any]] = json.loads(SMALL.read_text(encoding="utf-8"))["more_than_200_tokens"]
    return cases


def unpacked(packed: NDArray[np.uint8], shape: tuple[int, ...]) -> Keep:
    """Bits of which 1 is pruned, as a mask of which True is kept."""
    return ~np.unpackbits(packed)[: np.prod(shape)].astype(np.bool_).reshape(shape)


def mask_of(case: dict[str, Any], name: str = "pruned_packbits_b64") -> Keep:
    """The mask of a small case."""
    shape = (case["L"], case["H"], case["N"], case["N"])
    return unpacked(np.frombuffer(base64.b64decode(case[name]), np.uint8), shape)


def real_masks(shared: Path) -> Iterator[tuple[str, Keep, dict[str, NDArray[Any]]]]:
    """Name, mask, and the published order of each real mask."""
    golden = shared / "accelerator" / "golden"
    with np.load(golden / "authors_tiny_0.95.npz") as file:
        keep = read_mask(shared / "golden" / "vitcod_deit_tiny_info_0.95.npy").keep
        yield "authors_info_0.95", keep, dict(file)
    with (
        np.load(golden / "published_gen_mask_masks.npz") as file,
        np.load(shared / "golden" / "reference_masks.npz") as masks,
    ):
        for name in sorted({name.partition("/")[0] for name in file.files}):
            fields = {field: file[f"{name}/{field}"] for field in FIELDS}
            yield f"ref_{name}", unpacked(masks[name], tuple(fields["shape"])), fields
    with np.load(golden / "ours_deit_tiny_al.npz") as file:
        for name in ("ours_al0.90", "ours_al0.95"):
            fields = {field: file[f"{name}/{field}"] for field in FIELDS}
            yield name, unpacked(file[f"{name}/pruned_packed"], tuple(fields["shape"])), fields


FIELDS = (
    *(
        "shape",
        "reordered_pruned_packed",
        "permutation_new_to_old",
        "global_tokens",
        "kept_in_dense_columns",
        "kept",
    ),
)
