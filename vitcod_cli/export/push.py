"""``vitcod push``: a finished model and its card to the Hugging Face Hub."""

from __future__ import annotations

from pathlib import Path

from vitcod_cli.artifacts.describe import CHECKPOINT, describe
from vitcod_cli.artifacts.files import checked_path
from vitcod_cli.artifacts.hub import MODEL, check_push
from vitcod_cli.artifacts.hub import push as upload
from vitcod_cli.artifacts.model_card import CardModel, model_card
from vitcod_cli.artifacts.run_files import CARD, is_our_card
from vitcod_cli.errors import VitcodError
from vitcod_cli.export.push_settings import PushOptions

_FLAG = "CHECKPOINT"


def push(options: PushOptions) -> str:
    """Upload a checkpoint of ours; returns the address of the repository.

    The card is the one beside it, where vitcod wrote it, else a new one.

    Raises:
        VitcodError: if it is no checkpoint of ours, the repository's name is none, or it can't be uploaded.
    """
    path = _checkpoint(options.source)
    check_push(options.hub)
    model = CardModel.read(path)
    beside = path.parent / CARD
    card = beside.read_text(encoding="utf-8") if is_our_card(beside) else model_card(model)
    return str(upload(options.hub, path, card, model.config))


def _checkpoint(source: str) -> Path:
    folder = Path(source)
    if folder.is_dir():
        names = (MODEL, "best.safetensors")
        found = next((folder / name for name in names if (folder / name).is_file()), None)
        if found is None:
            raise VitcodError(f"{_FLAG} {source} holds neither {' nor '.join(names)}; name the checkpoint itself.")
        return found
    path = checked_path(source, _FLAG)
    description = describe(path)
    if description is None or description.kind != CHECKPOINT or not description.own:
        raise VitcodError(
            f"{_FLAG} {source} is no checkpoint of vitcod: it seems to be {description or 'something else'}; "
            "convert it first."
        )
    return path
