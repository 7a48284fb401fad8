"""Pretrained weights from the hub: asked for once a machine, briefly, its failure told in one sentence."""

from __future__ import annotations

from typing import Any

import timm
from torch import nn

from vitcod_cli import distributed
from vitcod_cli.artifacts.files import first_line
from vitcod_cli.artifacts.hub import silent, unreachable
from vitcod_cli.errors import VitcodError


def pretrained_model(name: str, where: str, **kwargs: Any) -> nn.Module:
    """timm's model ``name`` with the hub's weights.

    In a run of several processes the first of each machine asks the hub, and the others take what it got from the
    cache; all processes call this together.

    Args:
        name: a model of timm's registry.
        where: the option, as the beginning of a sentence.
        kwargs: further arguments of the architecture.

    Raises:
        VitcodError: in every process, if one of them can't have the weights.
    """
    asks = distributed.local_rank() == 0 or not distributed.is_distributed()
    model, failure = None, None
    try:
        model = _create(name, where, kwargs, unreachable()) if asks else None
    except VitcodError as error:
        failure = str(error)
    failures = [text for text in distributed.gather_objects(failure) if text is not None]
    if failures:
        raise VitcodError(failure or failures[0])
    return _create(name, where, kwargs, "it is not in the cache") if model is None else model


def _create(name: str, where: str, kwargs: dict[str, Any], why: str | None) -> nn.Module:
    """The model, from the cache alone where the hub can't be reached, for the reason ``why``."""
    try:
        with silent(offline=why is not None):
            return timm.create_model(name, pretrained=True, **kwargs)
    # The hub's client and its HTTP library have error types of their own, and timm passes them all on.
    except Exception as error:
        raise VitcodError(
            f"{where} could not get the pretrained weights of {name} ({why or first_line(error)}); check "
            "the network and the name, or give a file."
        ) from error
