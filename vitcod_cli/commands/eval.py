"""``vitcod eval``: accuracy and loss of a checkpoint."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from vitcod_cli.commands.common import JsonOption, MaskOption
from vitcod_cli.data.settings import DataSettings
from vitcod_cli.errors import VitcodError
from vitcod_cli.model.settings import ModelSettings
from vitcod_cli.runtime import RuntimeSettings

CheckpointOption = Annotated[
    str | None,
    typer.Option(
        "--checkpoint",
        metavar="FILE",
        help="Weights: a file (ours, timm's or the published code's), an https:// address, or timm for the "
        "pretrained weights of --model.",
        rich_help_panel="Model",
    ),
]


def evaluate(
    *,
    checkpoint: CheckpointOption = None,
    mask: MaskOption = None,
    model: ModelSettings,
    data: DataSettings,
    split: Annotated[
        Literal["train", "val"], typer.Option("--split", help="Split to evaluate on.", rich_help_panel="Data")
    ] = "val",
    batch_size: Annotated[
        int, typer.Option("--batch-size", help="Images in a batch of each process.", rich_help_panel="Runtime")
    ] = 96,
    runtime: RuntimeSettings,
    json: JsonOption = False,
) -> None:
    """Measure Acc@1, Acc@5 and loss of a model, at any point of the pipeline.

    The last line on stdout is like: * Acc@1 81.576 Acc@5 95.214 loss 0.854
    """
    if checkpoint is None:
        raise VitcodError("--checkpoint is needed: name the weights to evaluate.")
    if batch_size < 1:
        raise VitcodError(f"--batch-size must be at least 1, not {batch_size}.")
    from vitcod_cli.cli.console import console, print_json, print_result
    from vitcod_cli.commands.common import preprocess_of
    from vitcod_cli.data.datasets import open_dataset
    from vitcod_cli.data.loaders import eval_loader
    from vitcod_cli.data.waiting import Waiting
    from vitcod_cli.model.build import prepare_inference
    from vitcod_cli.model.load import load_model
    from vitcod_cli.runtime import start
    from vitcod_cli.training.evaluate import evaluate as measure

    reporter = console()
    with start(runtime) as place:
        network = load_model(model, checkpoint, flag="--checkpoint", reporter=reporter, mask=mask)
        prepare_inference(place.prepare(network), place.dtype)
        images = open_dataset(data, split, num_classes=network.num_classes, reporter=reporter)
        loader = Waiting(
            eval_loader(
                images,
                preprocess_of(network, data),
                batch_size=batch_size,
                workers=data.workers,
                device=place.device,
                reporter=reporter,
            )
        )
        place.advise(reporter)
        result = measure(place.compiled(network), loader, place, reporter)
    reporter.info(f"The model waited {loader.share:.0%} of the time for images.")
    if json:
        print_json(result.to_dict())
    else:
        print_result(result.line())
