"""Pretrained weights from the hub: asked for once a machine, briefly, its failure told in one sentence."""

from __future__ import annotations

import logging
import os
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPException
from ssl import SSLError
from typing import Any
from urllib.error import HTTPError, URLError

import timm
from torch import nn

from vitcod_cli import distributed
from vitcod_cli.artifacts.files import first_line
from vitcod_cli.errors import VitcodError

_SECONDS = 5
"""To wait for the hub's first answer."""

_TALKERS = ("huggingface_hub", "httpx", "urllib3")


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
        model = _create(name, where, kwargs, _unreachable()) if asks else None
    except VitcodError as error:
        failure = str(error)
    failures = [text for text in distributed.gather_objects(failure) if text is not None]
    if failures:
        raise VitcodError(failure or failures[0])
    return _create(name, where, kwargs, "it is not in the cache") if model is None else model


def _create(name: str, where: str, kwargs: dict[str, Any], unreachable: str | None) -> nn.Module:
    """The model, from the cache alone where the hub is ``unreachable`` for the reason given."""
    try:
        with _silent(offline=unreachable is not None):
            return timm.create_model(name, pretrained=True, **kwargs)
    # The hub's client and its HTTP library have error types of their own, and timm passes them all on.
    except Exception as error:
        raise VitcodError(
            f"{where} could not get the pretrained weights of {name} ({unreachable or first_line(error)}); check "
            "the network and the name, or give a file."
        ) from error


def _unreachable() -> str | None:
    """Why the hub can't be reached, or None: its client would try for most of a minute."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set, and they are not in the cache"
    if any(os.environ.get(name) for name in ("ALL_PROXY", "all_proxy")):
        return None  # such a proxy the client knows, and urllib does not
    request = urllib.request.Request(constants.ENDPOINT, method="HEAD", headers={"User-Agent": "vitcod"})
    try:
        urllib.request.urlopen(request, timeout=_SECONDS).close()
    except HTTPError:
        return None  # an answer
    except (OSError, ValueError, HTTPException) as error:
        reason = error.reason if isinstance(error, URLError) else error
        # A certificate that only the client can check is an answer too.
        return first_line(reason) if isinstance(reason, OSError) and not isinstance(reason, SSLError) else None
    return None


@contextmanager
def _silent(offline: bool) -> Iterator[None]:
    """Keep the hub's client from talking, and with ``offline`` from the network, for the time of the block."""
    from huggingface_hub import constants

    loggers = [logging.getLogger(name) for name in _TALKERS]
    levels, before = [logger.level for logger in loggers], constants.HF_HUB_OFFLINE
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    constants.HF_HUB_OFFLINE = before or offline
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
