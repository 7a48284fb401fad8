"""What becomes of a finished model: its card beside it, and both on the Hub where that is asked for."""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from pathlib import Path

from vitcod_cli.artifacts.hub import push
from vitcod_cli.artifacts.hub_settings import HubSettings
from vitcod_cli.artifacts.model_card import CardModel, model_card, write_model_card
from vitcod_cli.distributed import on_main
from vitcod_cli.reporting import Reporter, without_secrets


def publish(
    checkpoint: Path,
    settings: HubSettings,
    *,
    command: Sequence[str],
    dataset: str,
    labelled: bool,
    reporter: Reporter,
) -> None:
    """Leave the card of a checkpoint of ours in its folder, and upload both; all processes call it together.

    Args:
        command: words of the command line that made it.
        dataset, labelled: see :func:`model_card`.

    Raises:
        VitcodError: if something can't be written or uploaded; the checkpoint stays as it is.
    """

    def work() -> str | None:
        model = CardModel.read(checkpoint)
        card = model_card(model, command=_shown(command), dataset=dataset, labelled=labelled)
        write_model_card(checkpoint.parent, card)
        return push(settings, checkpoint, card, model.config)

    url = on_main(work)
    if url is not None:
        reporter.info(f"Uploaded to {url}.")


def _shown(command: Sequence[str]) -> str:
    """For others to read: of absolute paths, which say how a machine is laid out, the last part; no secrets."""
    words = [os.path.basename(os.path.normpath(word)) if os.path.isabs(word) else word for word in command]
    return without_secrets(shlex.join(words))
