"""Models on the Hugging Face Hub: read as ``hf-hub:owner/name``, written with ``--push-to-hub``."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vitcod_cli.artifacts.files import first_line
from vitcod_cli.distributed import on_main
from vitcod_cli.errors import VitcodError
from vitcod_cli.settings import Settings, setting

PREFIX = "hf-hub:"
MODEL, CARD, CONFIG = "model.safetensors", "README.md", "config.json"

_FLAG = "--push-to-hub"
_TALKERS = ("huggingface_hub", "httpx", "urllib3")


@dataclass(frozen=True, kw_only=True)
class HubSettings(Settings, panel="Output"):
    """Whether, and where to, a finished model is uploaded."""

    push_to_hub: str | None = setting(
        None,
        "Upload the finished model and its card to this repository of the Hugging Face Hub; needs a token.",
        metavar="OWNER/NAME",
        show_default=False,
    )
    hub_private: bool = setting(False, "Make a repository that isn't there yet private.")


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
    try:
        with _silent():
            return Path(hf_hub_download(name, MODEL, revision=revision or None))
    except Exception as error:  # the client's own types, its HTTP library's, and the disk's
        raise VitcodError(
            f"{flag} {source}: its {MODEL} could not be had from the hub ({first_line(error)}); check the name, "
            "the network and, for a private one, HF_TOKEN."
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


def push(settings: HubSettings, model: Path, card: str, config: Mapping[str, Any]) -> str | None:
    """Upload a checkpoint of ours as one commit, from the main process.

    Returns:
        The address of the repository; None where none is asked for.

    Raises:
        VitcodError: in all processes, if it can't be uploaded; what is on the disk stays as it is.
    """
    repo = settings.push_to_hub
    return None if repo is None else on_main(lambda: _push(repo, settings.hub_private, model, card, config))


def _check_push(repo: str) -> None:
    from huggingface_hub import HfApi, constants, get_token

    _check_name(repo, f"{_FLAG} {repo}")
    if "/" not in repo:
        raise VitcodError(f"{_FLAG} {repo} doesn't say whose repository it is; write OWNER/{repo}.")
    if constants.HF_HUB_OFFLINE:
        raise VitcodError(f"{_FLAG} {repo} needs the network, and HF_HUB_OFFLINE is set; unset it, or push later.")
    if get_token() is None:
        raise VitcodError(f"{_FLAG} {repo} needs a token of the hub; set HF_TOKEN, or log in with hf auth login.")
    try:
        with _silent():
            HfApi().whoami()
    except Exception as error:
        raise VitcodError(
            f"{_FLAG} {repo}: the hub can't be reached, or refuses the token ({first_line(error)}); mend that, or "
            "leave it out and push later with vitcod push."
        ) from error


def _push(repo: str, private: bool, model: Path, card: str, config: Mapping[str, Any]) -> str:
    from huggingface_hub import CommitOperationAdd, HfApi

    api = HfApi()
    text = json.dumps(config, indent=2) + "\n"
    try:
        with _silent():
            url = api.create_repo(repo, private=private, exist_ok=True)
            operations = [
                CommitOperationAdd(MODEL, str(model)),
                CommitOperationAdd(CARD, card.encode()),
                CommitOperationAdd(CONFIG, text.encode()),
            ]
            api.create_commit(repo, operations, commit_message="Upload of vitcod")
    except Exception as error:
        raise VitcodError(
            f"{_FLAG} {repo}: the upload failed ({first_line(error)}). The model is in {model}; try again with "
            f"vitcod push {model} {repo}"
        ) from error
    return str(url)


def _check_name(name: str, where: str) -> None:
    from huggingface_hub import utils

    client: Any = utils
    try:
        client.validate_repo_id(name)
    except client.HFValidationError as error:
        raise VitcodError(
            f"{where} is no name of a repository ({first_line(error)}); write OWNER/NAME."
        ) from error


@contextmanager
def _silent() -> Iterator[None]:
    """Keep the hub's client from talking: bars and warnings would stand between our lines."""
    from huggingface_hub import utils

    bars: Any = utils  # exports these without saying so
    loggers = [logging.getLogger(name) for name in _TALKERS]
    levels, disabled = [logger.level for logger in loggers], bars.are_progress_bars_disabled()
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    bars.disable_progress_bars()
    try:
        yield
    finally:
        if not disabled:
            bars.enable_progress_bars()
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
