"""What is right: evaluations, conversions, maps and masks, worked out without the code under test if possible."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file
from timm.data.transforms_factory import create_transform
from torch import Tensor

from fuzz.case import Check, Done

MODEL = "deit_tiny_patch16_224"
KWARGS: dict[str, Any] = {"patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 3}
CLASSES, SIZE = 5, 32
SHAPE = (2, 3, 17, 17)

NAMED = [f"--model={MODEL}", f"--img-size={SIZE}", *(f"--model-kwargs={k}={v}" for k, v in KWARGS.items())]
"""The options that say which model a plain file holds."""

Tensors = Mapping[str, Tensor]


def plain_model(tensors: Tensors) -> Any:
    """timm's own model with these weights, or None where they aren't, all of them, finite numbers of its shape."""
    model = timm.create_model(MODEL, num_classes=CLASSES, img_size=SIZE, **KWARGS)
    expected = model.state_dict()
    if set(tensors) != set(expected) or any(tensors[name].shape != expected[name].shape for name in expected):
        return None
    if not all(tensor.is_floating_point() for tensor in tensors.values()):
        return None
    if not all(bool(torch.isfinite(tensor.float()).all()) for tensor in tensors.values()):
        return None
    model.load_state_dict({name: tensor.float() for name, tensor in tensors.items()})
    return model.eval()


@cache
def _transform() -> Callable[[Image.Image], Tensor]:
    transform: Callable[[Image.Image], Tensor] = create_transform(
        (3, SIZE, SIZE), crop_pct=1.0, interpolation="bicubic"
    )
    return transform


def pixels(image: Image.Image) -> Tensor:
    """The image as timm's evaluation transform has it, [3, H, W]."""
    return _transform()(image.convert("RGB"))


def evaluation(logits: Tensor, labels: Sequence[int]) -> dict[str, float]:
    """What ``eval --json`` has to say of these logits [B, classes] and labels."""
    targets = torch.tensor(labels)
    return {
        "acc1": 100 * (logits.argmax(1) == targets).double().mean().item(),
        "acc5": 100.0,
        "loss": F.cross_entropy(logits, targets).item(),
        "images": len(labels),
    }


@cache
def images_of(folder: Path) -> tuple[Tensor, list[int]]:
    """The images of class folders, in order, with their labels."""
    files = sorted(folder.glob("*/*"))
    names = sorted({file.parent.name for file in files})
    return torch.stack([pixels(Image.open(file)) for file in files]), [names.index(f.parent.name) for f in files]


@torch.no_grad()
def logits_of(tensors: Tensors, assets: Path, dtype: torch.dtype = torch.float32) -> Tensor | None:
    """The logits of the plain model on the validation images, None where the weights are no such model."""
    model = plain_model(tensors)
    return None if model is None else model.to(dtype)(images_of(assets / "images/val")[0].to(dtype))


def evaluates_as(tensors: Tensors, assets: Path) -> Check | None:
    """``eval --json`` says what timm's own model does with these weights.

    A bit of an exponent makes weights of 1e37, with which rounding alone decides: there timm's logits in float32
    and float64 have nothing in common either, and no number but that of the images is to be expected.
    """
    logits = logits_of(tensors, assets)
    if logits is None:
        return None
    expected = evaluation(logits, images_of(assets / "images/val")[1])
    exact = logits_of(tensors, assets, torch.float64)
    # Not finite: what is infinite in float32 is a number in float64, and says NaN either way.
    if logits.isfinite().all() and not torch.allclose(logits.double(), exact, rtol=1e-3, atol=1e-4):
        return says({"images": expected["images"]})
    return says(expected)


def says(expected: Mapping[str, float]) -> Check:
    """stdout is a JSON object with these numbers."""

    def check(done: Done) -> None:
        result = json.loads(done.out)
        for name in ("acc1", "acc5", "loss", "images"):
            if name not in expected:
                continue
            value = expected[name]
            if math.isnan(value):  # of weights that are finite, but large
                assert result[name] is None or math.isnan(result[name]), f"{name} {result[name]}, not {value}"
                continue
            assert math.isclose(result[name], value, rel_tol=2e-4, abs_tol=1e-5), (
                f"{name} {result[name]}, not {value}"
            )

    return check


def known(assets: Path, name: str) -> Check:
    """stdout says what it said of the undamaged files (``facts.json``)."""
    return says(json.loads((assets / "facts.json").read_text())[name])


def holds(name: str, tensors: Tensors) -> Check:
    """The safetensors file ``name`` holds these tensors, bit for bit, and no others."""

    def check(done: Done) -> None:
        written = load_file(done.folder / name)
        assert set(written) == set(tensors), f"{name} has other tensors: {sorted(set(written) ^ set(tensors))[:5]}"
        for key, tensor in tensors.items():
            assert written[key].dtype == tensor.dtype, f"{key} is {written[key].dtype}, not {tensor.dtype}"
            assert same(written[key], tensor), f"{key} has other values"

    return check


def same(one: Tensor, other: Tensor) -> bool:
    """The same bits."""
    return (
        one.shape == other.shape
        and one.contiguous().numpy(force=True).tobytes() == other.contiguous().numpy(force=True).tobytes()
        if one.dtype != torch.bfloat16
        else torch.equal(one, other)
    )


def holds_array(name: str, array: np.ndarray) -> Check:
    """The ``.npy`` file ``name`` holds exactly this."""

    def check(done: Done) -> None:
        written = np.load(done.folder / name)
        assert written.dtype == array.dtype, f"{name} is {written.dtype}"
        assert np.array_equal(written, array), f"{name} has other values"

    return check


def holds_pickle(name: str, tensors: Tensors) -> Check:
    """The published checkpoint ``name`` holds these weights."""

    def check(done: Done) -> None:
        import argparse

        with torch.serialization.safe_globals([argparse.Namespace]):
            written = torch.load(done.folder / name, weights_only=True)["model"]
        assert set(written) == set(tensors), f"{name} has other tensors"
        assert all(same(written[key], tensor) for key, tensor in tensors.items()), f"{name} has other values"

    return check


def pruned(attention: np.ndarray, cut: float = 0.9, prefix: int = 1) -> np.ndarray:
    """The mask (True = kept) that the published code makes: one key more than it takes to reach ``cut``."""
    keep = np.zeros(attention.shape, dtype=bool)
    for index in np.ndindex(attention.shape[:3]):
        order = np.argsort(-attention[index], kind="stable")
        sums = np.cumsum(attention[index][order].astype(np.float64))
        count = int(cut > 0) + int(np.searchsorted(sums, cut, side="left")) + 1
        keep[index][order[:count]] = True
    keep[:, :, :prefix, :] = True
    keep[:, :, :, :prefix] = True
    return keep


def holds_mask(name: str, keep: np.ndarray) -> Check:
    """Our mask file ``name`` holds this mask."""
    return holds(name, {"keep": torch.from_numpy(keep)})


def all_of(*checks: Check) -> Check:
    """All of the checks."""

    def check(done: Done) -> None:
        for one in checks:
            one(done)

    return check


def anything(done: Done) -> None:
    """No more than what is true of every case."""
