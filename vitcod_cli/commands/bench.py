"""``vitcod bench``: what a model costs, counted and measured."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from vitcod_cli.bench.settings import TIMM, BenchSettings
from vitcod_cli.commands.common import MaskOption
from vitcod_cli.commands.eval import CheckpointOption
from vitcod_cli.distributed import world_size
from vitcod_cli.errors import VitcodError
from vitcod_cli.model.settings import ModelSettings
from vitcod_cli.reporting import Reporter
from vitcod_cli.runtime import RuntimeSettings

if TYPE_CHECKING:
    from timm.models.vision_transformer import VisionTransformer


def bench(
    *,
    checkpoint: CheckpointOption = None,
    mask: MaskOption = None,
    model: ModelSettings,
    measurement: BenchSettings,
    runtime: RuntimeSettings,
    nproc_per_node: Annotated[int, typer.Option("--nproc-per-node", hidden=True)] = 1,
    json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object instead of the tables.", rich_help_panel="Output")
    ] = False,
) -> None:
    """Count a model's arithmetic, and measure its time and memory on this machine.

    Without --checkpoint, a model of random weights is measured: the time is the same. A model with a
    mask is timed by turns with itself without it, and a sentence says what the mask is worth here.
    Times are medians; "middle half" is the range from the lower to the upper quartile.
    """
    if nproc_per_node > 1 or world_size() > 1:
        raise VitcodError(
            "vitcod bench measures one process on one device; start it once, without torchrun or --nproc-per-node."
        )
    if checkpoint is None and model.model is None:
        raise VitcodError(
            "--checkpoint or --model is needed: name the weights to measure, or a model for random weights."
        )
    from vitcod_cli.bench.counting import count
    from vitcod_cli.bench.environment import environment
    from vitcod_cli.bench.measure import measure
    from vitcod_cli.bench.report import Report
    from vitcod_cli.bench.workload import DROP_PATH
    from vitcod_cli.cli.console import console, print_json, print_result
    from vitcod_cli.model.load import load_model
    from vitcod_cli.runtime import start

    reporter = console()
    with start(runtime) as place:
        network = load_model(
            model, checkpoint, flag="--checkpoint", drop_path=DROP_PATH, reporter=reporter, mask=mask
        )
        models = _models(place.prepare(network), measurement.against, reporter)
        if measurement.training and not all(one.num_classes for one in models.values()):
            raise VitcodError("A model of 0 classes has nothing to train; add --no-training.")
        place.advise(reporter)
        counts = {name: count(place.prepare(one)) for name, one in models.items()}
        report = Report(
            about=_about(models, checkpoint, mask, measurement.against),
            environment=environment(place),
            counts=counts,
            results=measure(models, measurement, place, reporter),
        )
    if json:
        print_json(report.to_dict())
    else:
        print_result(report.text())


def _models(network: VisionTransformer, against: str | None, reporter: Reporter) -> dict[str, VisionTransformer]:
    """All that is timed by turns, by name."""
    from vitcod_cli.bench.report import FIRST, OTHER, UNMASKED
    from vitcod_cli.bench.workload import DROP_PATH, timm_twin, without_mask
    from vitcod_cli.model.build import keep_mask, model_config
    from vitcod_cli.model.load import load_model

    models = {FIRST: network}
    if keep_mask(network) is not None:
        models[UNMASKED] = without_mask(network)
    if against == TIMM:
        models[TIMM] = timm_twin(network)
    elif against is not None:
        models[OTHER] = load_model(
            ModelSettings(),
            against,
            flag="--against",
            drop_path=DROP_PATH,
            reporter=reporter,
            like=model_config(network),
        )
    return models


def _about(
    models: dict[str, VisionTransformer], checkpoint: str | None, mask: str | None, against: str | None
) -> dict[str, dict[str, Any]]:
    """Of each model, what it is and where it came from."""
    from vitcod_cli.bench.report import FIRST, OTHER, UNMASKED
    from vitcod_cli.model.build import model_config

    weights = {FIRST: checkpoint, UNMASKED: checkpoint, OTHER: against, TIMM: "timm's own"}
    return {
        name: {
            "source": weights[name] or "random weights",
            "mask": _mask_of(network, mask if name == FIRST else None),
            "tokens": network.patch_embed.num_patches + network.num_prefix_tokens,
            **model_config(network).to_dict(),
        }
        for name, network in models.items()
    }


def _mask_of(network: VisionTransformer, file: str | None) -> str | None:
    from vitcod_cli.model.build import keep_mask

    return (file or "of the checkpoint") if keep_mask(network) is not None else None
