"""``vitcod eval``: accuracy and loss of a checkpoint."""

from __future__ import annotations

from typing import Annotated

import typer

from vitcod_cli.data.settings import DataSettings
from vitcod_cli.model.settings import ModelSettings


def evaluate(
    *,
    model: ModelSettings,
    data: DataSettings,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of the line.")] = False,
) -> None:
    """Measure Acc@1, Acc@5 and loss of a model at any point of the pipeline."""
    print(model, data, json)
