"""What the three fine-tuning commands share: images, teacher, run folder, training, the last words."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitcod_cli import __version__
from vitcod_cli.artifacts.run_directory import OutputSettings, RunDirectory
from vitcod_cli.cli.config import config_of
from vitcod_cli.cli.console import print_json, print_result
from vitcod_cli.commands.common import preprocess_of
from vitcod_cli.data.augmentation import AugmentationSettings
from vitcod_cli.data.settings import DataSettings
from vitcod_cli.distributed import is_main, world_size
from vitcod_cli.errors import VitcodError
from vitcod_cli.model.settings import ModelSettings
from vitcod_cli.reporting import Reporter
from vitcod_cli.training.recipe import Recipe

if TYPE_CHECKING:
    from timm.models.vision_transformer import VisionTransformer
    from torch import nn

    from vitcod_cli.data.splits import Images
    from vitcod_cli.runtime import Runtime


def open_images(model: VisionTransformer, data: DataSettings, reporter: Reporter) -> Images:
    """The data set of ``data`` for ``model``; its classes must fit the model's outputs."""
    from vitcod_cli.data.datasets import open_dataset
    from vitcod_cli.data.splits import Images

    train, val = (
        open_dataset(data, split, num_classes=model.num_classes, reporter=reporter) for split in ("train", "val")
    )
    return Images(train, val, preprocess_of(model, data))


def load_teacher(recipe: Recipe, model: VisionTransformer, reporter: Reporter) -> nn.Module | None:
    """The teacher that ``recipe`` names, or None.

    Raises:
        VitcodError: if it can't be loaded, or has other classes than ``model``.
    """
    from vitcod_cli.model.build import model_config
    from vitcod_cli.model.load import load_model

    source = recipe.teacher_source
    if source is None:
        return None
    flag = "--distill-from" if recipe.distill_from is not None else "--teacher"
    teacher = _load_pretrained(source, flag) or load_model(
        ModelSettings(), source, flag=flag, reporter=reporter, like=model_config(model)
    )
    if teacher.num_classes != model.num_classes:
        raise VitcodError(
            f"{flag} {source} has {teacher.num_classes} classes and the model {model.num_classes}; "
            "take a teacher of the same classes."
        )
    return teacher


def _load_pretrained(name: str, flag: str) -> Any:
    """Any model that timm has, by its name; None when ``name`` is a file or an address."""
    import timm

    if Path(name).exists() or not timm.is_model(name):
        return None
    try:
        return timm.create_model(name, pretrained=True)
    except Exception as error:  # the hub's client has error types of its own, and timm passes them on
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise VitcodError(f"{flag} {name}: its pretrained weights can't be had ({reason}).") from error


@dataclass(frozen=True, kw_only=True)
class FineTuning:
    """One fine-tuning command: what the user asked for, and how to go about it.

    Attributes:
        command: its name, for ``config.yaml`` and checkpoints.
        options: the command's own options, by name.
        sources: the files it starts from, by flag; their checksums go into the run.
    """

    command: str
    model: ModelSettings
    data: DataSettings
    augmentation: AugmentationSettings
    recipe: Recipe
    runtime: Runtime
    output: OutputSettings
    options: dict[str, Any]
    sources: dict[str, str | None]
    json: bool

    def about(self, network: VisionTransformer) -> dict[str, Any]:
        """How this run's checkpoints were made."""
        import timm
        import torch

        from vitcod_cli.artifacts.files import sha256_of
        from vitcod_cli.model.build import model_config

        files = {flag: path for flag, path in self.sources.items() if path is not None and Path(path).is_file()}
        return {
            "command": self.command,
            "model_config": model_config(network).to_dict(),
            "sha256": {flag: sha256_of(Path(path)) for flag, path in files.items()},
            "processes": world_size(),
            "versions": {"vitcod": __version__, "torch": str(torch.__version__), "timm": timm.__version__},
        }

    def run(
        self,
        network: VisionTransformer,
        images: Images,
        reporter: Reporter,
        before: Callable[[RunDirectory], None] | None = None,
        teacher: nn.Module | None = None,
    ) -> None:
        """Open the run folder, do what comes ``before`` training, train, and tell the outcome.

        ``before`` is left out when a saved state is resumed: its outcome is in the state.
        ``teacher`` is the recipe's, where the command has loaded it already.
        """
        from vitcod_cli.training.trainer import fit

        if teacher is None:
            teacher = load_teacher(self.recipe, network, reporter)
        run = RunDirectory.open(self.output, reporter)
        self.runtime.advise(reporter)
        about = self.about(network)
        if is_main():
            settings = (self.model, self.data, self.augmentation, self.recipe, self.runtime.settings, self.output)
            run.write_config(config_of(*settings, about=about, **self.options))
        if before is not None and not run.resumes:
            before(run)

        result = fit(
            network,
            images,
            self.recipe,
            augmentation=self.augmentation,
            workers=self.data.workers,
            runtime=self.runtime,
            run=run,
            reporter=reporter,
            provenance=about,
            teacher=teacher,
        )
        reporter.info(f"Best: epoch {result.best_epoch}, in {run.best}; the last is in {run.last}.")
        if self.json:
            best, last = result.best.to_dict(), result.last.to_dict()
            print_json({**best, "best_epoch": result.best_epoch, "last": last, "checkpoint": str(run.best)})
        else:
            print_result(result.best.line())
