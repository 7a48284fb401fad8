"""Give every layer its head auto-encoder: from aligned heads, from PCA, or as published."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from vitcod_cli import distributed
from vitcod_cli.artifacts.files import first_line
from vitcod_cli.errors import VitcodError
from vitcod_cli.lowrank.align import align_heads, principal_heads, rotate_heads
from vitcod_cli.lowrank.logit_fit import LatentHeads, fit_latent_heads
from vitcod_cli.lowrank.moments import TokenMoments
from vitcod_cli.lowrank.rotation import Rotation
from vitcod_cli.lowrank.settings import LowRankSettings
from vitcod_cli.model.attention import SparseLowRankAttention
from vitcod_cli.model.auto_encoder import compressed_heads, projections
from vitcod_cli.model.build import check_auto_encoder, model_config
from vitcod_cli.model.families import Transformer
from vitcod_cli.model.layers import attentions
from vitcod_cli.reporting import Progress

RIDGE = 1e-4
"""Share of the mean variance added to every direction of the tokens: directions that a few images
never show must keep their weights, not lose them."""


@dataclass(frozen=True)
class LayerReport:
    """What the initialisation of one layer kept.

    Attributes:
        kept_energy: share of the energy of Q and K that the low-rank heads keep.
        logit_error: relative squared error of the attention logits, before and after the fit
            (None where the logits are not what is fitted).
    """

    layer: int
    method: str
    kept_energy: float
    logit_error: tuple[float, float] | None = None

    def metrics(self) -> dict[str, float | int | str]:
        """For ``metrics.jsonl``."""
        values: dict[str, float | int | str] = {
            "stage": "init", "block": self.layer, "init": self.method, "kept_energy": self.kept_energy
        }  # fmt: skip
        if self.logit_error is not None:
            values["logit_error_before"], values["logit_error"] = self.logit_error
        return values


def add_auto_encoders(model: Transformer, settings: LowRankSettings) -> None:
    """Give all layers auto-encoders with the published initialisation.

    Raises:
        VitcodError: if ``model`` can have none.
    """
    check_auto_encoder(model, model_config(model))
    for attention in attentions(model):
        attention.add_auto_encoder(settings.svd_type)
    model.vitcod_config = model_config(model).changed(svd_type=settings.svd_type)  # type: ignore[assignment]


def initialise(
    model: Transformer,
    moments: Sequence[TokenMoments],
    settings: LowRankSettings,
    progress: Progress | None = None,
) -> list[LayerReport]:
    """Set every layer's auto-encoder (and, aligned, its q and k rows) from the dense model's moments.

    Args:
        model: has auto-encoders (:func:`add_auto_encoders`) and otherwise the dense weights.
        moments: of the dense model, one per layer (:func:`collect_moments`).

    Returns:
        One report a layer. A layer with a norm on Q and K has no gauge and falls back to PCA.

    Raises:
        VitcodError: if the fit of a layer fails, numerically.
    """
    reports = []
    rotation = Rotation.of(model, attentions(model)[0])
    for index, (attention, moment) in enumerate(zip(attentions(model), moments, strict=True)):
        fit = _init_aligned if settings.init == "aligned" and attention.foldable else _init_pca
        try:
            report = fit(index, attention, moment, settings, rotation)
        except torch.linalg.LinAlgError as error:  # type: ignore[attr-defined]
            raise VitcodError(_cannot_fit(index, first_line(error))) from error
        # The processes may round differently; training needs them identical.
        for parameter in attention.parameters():
            distributed.broadcast(parameter.data)
        if not all(bool(torch.isfinite(parameter).all()) for parameter in attention.parameters()):
            raise VitcodError(_cannot_fit(index, "its weights became infinite"))
        reports.append(report)
        if progress is not None:
            progress.advance(1, kept=report.kept_energy)
    return reports


def _cannot_fit(index: int, reason: str) -> str:
    return (
        f"The auto-encoders of block {index + 1} can't be fitted ({reason}); look at the weights and the images, "
        "or use --init trunc-normal."
    )


# -- PCA over heads ---------------------------------------------------------------------------


def _init_pca(
    index: int,
    attention: SparseLowRankAttention,
    moments: TokenMoments,
    settings: LowRankSettings,
    rotation: Rotation | None,
) -> LayerReport:
    kept = total = 0.0
    for letter in projections(settings.svd_type):
        second = moments.heads[letter]
        # A rotary embedding turns what is measured behind it; the products of heads stay, their means do not.
        mean = second[-1, :-1] * (rotation is None)
        covariance = second[:-1, :-1] - mean[:, None] * mean
        values, vectors = torch.linalg.eigh(covariance)
        basis = vectors[:, -compressed_heads(attention.num_heads) :]
        _set_auto_encoder(attention, letter, basis, mean - basis @ (basis.T @ mean))
        kept += float(values[-basis.shape[1] :].sum())
        total += float(values.sum())
    return LayerReport(index, "pca", kept / total if total else 1.0)


@torch.no_grad()
def _set_auto_encoder(
    attention: SparseLowRankAttention, letter: str, basis: Tensor, shift: Tensor | None = None
) -> None:
    """Encode with the transpose of ``basis`` [H, h], decode with it, and add ``shift`` [H]."""
    pair = attention.auto_encoder(letter)
    assert pair is not None
    encoder, decoder = pair
    encoder.weight.copy_(basis.T)
    decoder.weight.copy_(basis)
    encoder.bias.zero_()
    if shift is None:
        decoder.bias.zero_()
    else:
        decoder.bias.copy_(shift)


# -- aligned heads ----------------------------------------------------------------------------


def _init_aligned(
    index: int,
    attention: SparseLowRankAttention,
    moments: TokenMoments,
    settings: LowRankSettings,
    rotation: Rotation | None,
) -> LayerReport:
    """Rotate the heads alike, then fit low-rank heads to the attention logits."""
    if rotation is None:
        centre_keys(attention)
    biases = {"q": attention.projection("q")[1], "k": None if rotation is None else attention.projection("k")[1]}
    whole = {"q": moments.query, "k": moments.key}
    width = attention.projection("q")[0].shape[1]
    roots = {
        letter: _square_root(moment if biases[letter] is not None else moment[:width, :width])
        for letter, moment in whole.items()
    }
    chosen = projections(settings.svd_type)
    rank = compressed_heads(attention.num_heads)
    seen = {letter: _rows(attention, letter, biases[letter]) @ roots[letter] for letter in "qk"}
    alignment = align_heads([seen[letter] for letter in chosen], [rank] * len(chosen), rotation=rotation)
    rotate_heads(attention, alignment.rotations)

    target = {letter: _rows(attention, letter, biases[letter]) @ roots[letter] for letter in "qk"}
    if settings.align_steps == 0:
        for letter in chosen:
            _set_auto_encoder(attention, letter, principal_heads(target[letter], rank))
        return LayerReport(index, "aligned", alignment.kept_after)
    start = {
        letter: LatentHeads.principal(target[letter], rank)
        if letter in chosen
        else LatentHeads.identity(target[letter])
        for letter in "qk"
    }
    with _fitting_threads(target["q"]):
        fit = fit_latent_heads(
            start["q"], start["k"], target["q"], target["k"], steps=settings.align_steps, rotation=rotation
        )
    for letter, fitted in (("q", fit.q), ("k", fit.k)):
        heads = fitted.orthonormal() if letter in chosen else fitted
        if letter in chosen:
            _set_auto_encoder(attention, letter, heads.mixing)
        weighted = heads.heads()
        _set_rows(attention, letter, biases[letter], torch.linalg.solve(roots[letter], weighted.mT).mT)
    return LayerReport(index, "aligned", alignment.kept_after, (fit.error_before, fit.error_after))


@contextmanager
def _fitting_threads(heads: Tensor) -> Iterator[None]:
    """One CPU thread for small heads: the fit is thousands of tiny products, and threads that wait for
    one another make it four times slower (DeiT-Tiny on 2 cores)."""
    threads = torch.get_num_threads()
    if heads.numel() < 200_000:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _square_root(moment: Tensor) -> Tensor:
    """Symmetric square root of a second moment [n, n], made safely invertible."""
    values, vectors = torch.linalg.eigh(moment)
    floor = RIDGE * float(values.clamp(min=0).mean()) or 1.0
    root: Tensor = (vectors * (values.clamp(min=0) + floor).sqrt()) @ vectors.T
    return root


@torch.no_grad()
def centre_keys(attention: SparseLowRankAttention) -> None:
    """Drop the bias of K: softmax does not see a constant added to all keys of an image."""
    bias = attention.projection("k")[1]
    if bias is not None:
        bias.zero_()


def _rows(attention: SparseLowRankAttention, letter: str, bias: Tensor | None) -> Tensor:
    """The heads of a projection, float64 [H, d, C]; with its ``bias`` [H, d, C+1], the bias last."""
    weight = attention.projection(letter)[0].detach().double()
    if bias is not None:
        weight = torch.cat([weight, bias.detach()[:, None].double()], dim=1)
    return weight.reshape(attention.num_heads, attention.head_dim, -1)


@torch.no_grad()
def _set_rows(attention: SparseLowRankAttention, letter: str, bias: Tensor | None, heads: Tensor) -> None:
    """The inverse of :func:`_rows`."""
    weight = attention.projection(letter)[0]
    flat = heads.reshape(attention.attn_dim, -1)
    weight.copy_(flat[:, : weight.shape[1]])
    if bias is not None:
        bias.copy_(flat[:, -1])
