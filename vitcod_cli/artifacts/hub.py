"""Models on the Hugging Face Hub: read as ``hf-hub:owner/name``, written with ``--push-to-hub``."""

from __future__ import annotations

import json
import logging
import os
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.client import HTTPException
from pathlib import Path
from ssl import SSLError
from typing import Any
from urllib.error import HTTPError, URLError

from vitcod_cli.artifacts.files import first_line
from vitcod_cli.artifacts.hub_settings import HubSettings
from vitcod_cli.artifacts.run_files import CARD
from vitcod_cli.distributed import on_main
from vitcod_cli.errors import VitcodError

PREFIX = "hf-hub:"
REPOSITORY = "OWNER/NAME"
"""In a card, where nobody knows yet to which repository it will go."""
MODEL, CONFIG = "model.safetensors", "config.json"

_SECONDS = 5
"""To wait for the hub's first answer."""

_FLAG = "--push-to-hub"
_TALKERS = ("huggingface_hub", "httpx", "urllib3")


def is_hub(source: str) -> bool:
    """Whether a source is ``hf-hub:owner/name``."""
    return source.startswith(PREFIX)


def fetch(source: str, flag: str) -> Path:
    """The local copy of ``model.safetensors`` of ``hf-hub:owner/name``, or ``hf-hub:owner/name@revision``.

    Raises:
        VitcodError: if the name is none, or the file can't be had.
    """
    from huggingface_hub import hf_hub_download

    name, _, revision = source.removeprefix(PREFIX).partition("@")
    _check_name(name, f"{flag} {source}")
    why = unreachable()
    try:
        with silent(offline=why is not None, bars=False):
            return Path(hf_hub_download(name, MODEL, revision=revision or None))
    except Exception as error:  # the client's own types, its HTTP library's, and the disk's
        raise VitcodError(
            f"{flag} {source}: its {MODEL} could not be had from the hub ({why or first_line(error)}); check the "
            "name, the network and, for a private one, HF_TOKEN."
        ) from error


def check_push(settings: HubSettings) -> None:
    """See that an upload can work, before hours are spent on what is to be uploaded: name, token, hub.

    Raises:
        VitcodError: in all processes, if it can't.
    """
    repo = settings.push_to_hub
    if repo is None:
        if settings.hub_private:
            raise VitcodError(f"--hub-private says how to upload: say {_FLAG} OWNER/NAME too, or leave it out.")
        return
    on_main(lambda: _check_push(repo))


def push(settings: HubSettings, model: Path, card: str, model_config: Mapping[str, Any]) -> str | None:
    """Upload a checkpoint of ours as one commit; the main process does.

    Args:
        card: of the model, in which the repository's name is filled in.
        model_config: for ``config.json``, with which plain timm refuses the repository: the file may hold more
            than timm's model.

    Returns:
        The address of the repository; None where none is asked for.

    Raises:
        VitcodError: if it can't be uploaded; what is on the disk stays as it is.
    """
    repo = settings.push_to_hub
    if repo is None:
        return None
    from huggingface_hub import CommitOperationAdd, HfApi

    api, config = HfApi(), {"library_name": "vitcod", "model_config": dict(model_config)}
    try:
        with silent(bars=False):
            url = api.create_repo(repo, private=settings.hub_private, exist_ok=True)
            operations = [
                CommitOperationAdd(MODEL, str(model)),
                CommitOperationAdd(CARD, card.replace(REPOSITORY, repo).encode()),
                CommitOperationAdd(CONFIG, f"{json.dumps(config, indent=2)}\n".encode()),
            ]
            api.create_commit(repo, operations, commit_message="Upload of vitcod")
    except Exception as error:
        raise VitcodError(
            f"{_FLAG} {repo}: the upload failed ({first_line(error)}). The model is in {model}; try again with "
            f"vitcod push {model} {repo}"
        ) from error
    return str(url)


def _check_push(repo: str) -> None:
    from huggingface_hub import HfApi, constants, get_token

    _check_name(repo, f"{_FLAG} {repo}")
    if "/" not in repo:
        raise VitcodError(f"{_FLAG} {repo} doesn't say whose repository it is; write OWNER/{repo}.")
    if constants.HF_HUB_OFFLINE:
        raise VitcodError(f"{_FLAG} {repo} needs the network, and HF_HUB_OFFLINE is set; unset it, or push later.")
    if get_token() is None:
        raise VitcodError(f"{_FLAG} {repo} needs a token of the hub; set HF_TOKEN, or log in with hf auth login.")
    if why := unreachable():
        raise VitcodError(f"{_FLAG} {repo}: the hub can't be reached ({why}); mend that, or push later.")
    try:
        with silent():
            HfApi().whoami()
    except Exception as error:
        raise VitcodError(
            f"{_FLAG} {repo}: the hub refuses the token ({first_line(error)}); mend that, or leave the option out "
            "and push later with vitcod push."
        ) from error


def _check_name(name: str, where: str) -> None:
    from huggingface_hub import utils

    client: Any = utils
    try:
        client.validate_repo_id(name)
    except client.HFValidationError as error:
        raise VitcodError(
            f"{where} is no name of a repository ({first_line(error)}); write OWNER/NAME."
        ) from error


def unreachable() -> str | None:
    """Why the hub can't be reached, or None: its client would try for most of a minute."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set, and it is not in the cache"
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
def silent(*, offline: bool = False, bars: bool = True) -> Iterator[None]:
    """Keep the hub's client from talking, and with ``offline`` from the network, for the time of the block.

    Args:
        bars: whether it may show the progress of a download.
    """
    from huggingface_hub import constants, utils

    client: Any = utils  # exports these without saying so
    loggers = [logging.getLogger(name) for name in _TALKERS]
    levels, before = [logger.level for logger in loggers], constants.HF_HUB_OFFLINE
    hidden = client.are_progress_bars_disabled()
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    constants.HF_HUB_OFFLINE = before or offline
    if not bars:
        client.disable_progress_bars()
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before
        if not bars and not hidden:
            client.enable_progress_bars()
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
