"""What the steps begin with: the images for a model, its teacher, the folder of its run."""

from __future__ import annotations

import copy
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import nn

from vitcod_cli.artifacts.files import sha256_of
from vitcod_cli.artifacts.hub import check_push
from vitcod_cli.artifacts.output_folder import check_output
from vitcod_cli.artifacts.provenance import versions
from vitcod_cli.artifacts.run_directory import RunDirectory
from vitcod_cli.calibration.checks import check_count, check_memory, check_shares
from vitcod_cli.calibration.settings import CalibrationSettings
from vitcod_cli.data.calibration import CalibrationImages, calibration_images
from vitcod_cli.data.datasets import open_dataset
from vitcod_cli.data.images import ImageData
from vitcod_cli.data.preprocess import Preprocess
from vitcod_cli.data.settings import DataSettings
from vitcod_cli.data.splits import Images
from vitcod_cli.data.unlabelled import open_all
from vitcod_cli.distributed import world_size
from vitcod_cli.errors import Interrupted, VitcodError
from vitcod_cli.model.build import is_known_model, model_config
from vitcod_cli.model.families import Transformer
from vitcod_cli.model.hub import pretrained_model
from vitcod_cli.model.layers import attentions, clear_keep_mask
from vitcod_cli.model.load import load_model
from vitcod_cli.model.preprocessing import preprocess_of
from vitcod_cli.model.settings import ModelSettings
from vitcod_cli.reporting import QUIET, Reporter
from vitcod_cli.runtime import Runtime
from vitcod_cli.settings import flag_of
from vitcod_cli.signals import StopRequest
from vitcod_cli.training.options import FineTuneOptions
from vitcod_cli.training.preflight import check_recipe
from vitcod_cli.training.recipe import Recipe


@contextmanager
def stoppable(reporter: Reporter) -> Iterator[StopRequest]:
    """A signal ends the step at once, or, in a calibration, behind the step that it is at; and that is said.

    Training has a request of its own inside.
    """
    with StopRequest(at_once=True) as stop:
        try:
            yield stop
        except Interrupted:
            if stop.raised:
                saved = (
                    f"what is finished is saved in {stop.saved}. To go on, start the same command with --resume "
                    "(and without --overwrite)."
                )
                nothing = "nothing was saved yet. Start the same command again."
                reporter.warn(f"Stopped by {stop.name}{stop.where}; {saved if stop.saved else nothing}")
            raise


def check_task(model: Transformer, epochs: int) -> None:
    """Raise a VitcodError if there are epochs, and nothing to train for: known before any image is looked for."""
    if epochs and not model.num_classes:
        raise VitcodError(
            f"--epochs {epochs} trains for a task, and the model has no head (--num-classes 0): end with its "
            "calibration, which needs none (--epochs 0), or take the model with its head."
        )


def open_images(
    model: Transformer, data: DataSettings, calibration: CalibrationSettings, reporter: Reporter
) -> Images:
    """Both splits of the data set, and what calibration looks at; classes must fit the model's head, if any.

    Raises:
        VitcodError: if they don't, or the data can't be opened.
    """
    train = open_dataset(data, "train", num_classes=model.num_classes, reporter=reporter)
    train.check_countable("--train-split")
    val = open_dataset(data, "val", num_classes=model.num_classes, train=train, reporter=reporter)
    others = calibration.calibrate_path
    calibrated = open_all(others, "--calibrate-path", reporter, data.max_bad_images) if others else train
    return Images(train, val, preprocess_of(model, data), calibrated)


def read_crops(
    images: ImageData,
    preprocess: Preprocess,
    count: int,
    crops: int,
    *,
    workers: int | None,
    runtime: Runtime,
    reporter: Reporter,
) -> CalibrationImages:
    """``count`` images drawn from the whole data set: the evaluation crop of each, then random ones."""

    def read(draw: int) -> CalibrationImages:
        return calibration_images(
            images,
            preprocess,
            count,
            workers=workers,
            device=runtime.device,
            seed=runtime.settings.seed,
            crops="random" if draw else "center",
            draw=draw,
            reporter=QUIET if draw else reporter,
        )

    return read(0).with_crops([read(draw) for draw in range(1, crops)])


def check_calibration(
    model: Transformer, images: Images, settings: CalibrationSettings, runtime: Runtime, folder: Path
) -> None:
    """Raise a VitcodError if there are too few images, or too little room, for what ``settings`` ask for.

    Args:
        folder: of the run, for tokens that don't fit into memory.
    """
    count = len(images.calibration)
    check_count(count, settings)
    check_memory(model, images.preprocess, count, settings, device=runtime.device, folder=folder)


def read_calibration_images(
    images: Images, settings: CalibrationSettings, data: DataSettings, runtime: Runtime, reporter: Reporter
) -> CalibrationImages:
    """The images that alignment and calibration look at, in as many crops as calibration takes.

    Raises:
        VitcodError: if too few of them can be read.
    """
    sample = read_crops(
        images.calibration,
        images.preprocess,
        settings.calibrate_images,
        settings.crops(min(settings.calibrate_images, len(images.calibration))),
        workers=data.workers,
        runtime=runtime,
        reporter=reporter,
    )
    check_shares(sample, settings)
    return sample


def dense_copy(model: Transformer) -> Transformer:
    """``model`` as it is now, without its mask: the teacher of a calibration."""
    masks: dict[int, Any] = {id(layer.keep): None for layer in attentions(model) if layer.keep is not None}
    teacher = copy.deepcopy(model, masks)  # which are not copied first, large as they may be
    clear_keep_mask(teacher)
    return teacher


def load_teacher(recipe: Recipe, model: Transformer, reporter: Reporter) -> nn.Module | None:
    """The teacher that ``recipe`` names, or None; without its head where ``model`` has none.

    Raises:
        VitcodError: if it can't be loaded, or has other classes than ``model``, or features of another width.
    """
    source = recipe.teacher_source
    if source is None:
        return None
    flag = "--distill-from" if recipe.distill_from is not None else "--teacher"
    headless: dict[str, Any] = {} if model.num_classes else {"num_classes": 0}
    teacher: nn.Module = _pretrained(source, flag, headless) or load_model(
        ModelSettings(**headless), source, flag=flag, reporter=reporter, like=model_config(model)
    )
    if teacher.num_classes != model.num_classes:
        raise VitcodError(
            f"{flag} {source} has {teacher.num_classes} classes and the model {model.num_classes}; "
            "take a teacher of the same classes."
        )
    if headless and _features_of(teacher) != _features_of(model):
        raise VitcodError(
            f"{flag} {source} gives {_features_of(teacher)} features and the model {_features_of(model)}; take a "
            "teacher with as many."
        )
    return teacher


def _features_of(model: Any) -> int:
    """How many numbers a model of timm's gives without its head."""
    return int(getattr(model, "head_hidden_size", None) or model.num_features)


def _pretrained(name: str, flag: str, kwargs: Mapping[str, Any]) -> nn.Module | None:
    """Any model that timm has, by its name; None when ``name`` is a file or an address."""
    if os.path.exists(name) or not is_known_model(name):
        return None
    return pretrained_model(name, f"{flag} {name}", **kwargs)


def check_options(options: FineTuneOptions) -> None:
    """What can be refused before anything is read.

    Raises:
        VitcodError: if the output folder can't be used, or names and combinations in the recipe mean nothing.
    """
    check_output(options.output)
    check_recipe(options.recipe, options.augmentation)
    check_push(options.hub)


def open_run(
    command: str,
    model: Transformer,
    options: FineTuneOptions,
    sources: Mapping[str, str | None],
    reporter: Reporter,
) -> RunDirectory:
    """Open the run's folder, with what ``config.yaml`` and the checkpoints are to say of the run.

    Args:
        sources: the files that the run starts from, by option; their checksums are recorded.

    Raises:
        VitcodError: if the folder can't be used.
    """
    files = {name: path for name, path in sources.items() if path is not None and Path(path).is_file()}
    provenance = {
        "command": command,
        "model_config": model_config(model).to_dict(),
        "sha256": {name: sha256_of(path) for name, path in files.items()},
        "processes": world_size(),
        "versions": versions(),
    }
    teachers = {"distill_from": options.recipe.distill_from, "teacher": options.recipe.teacher}
    read = {flag_of(name): path for name, path in {**sources, **teachers}.items()}
    run = RunDirectory.open(options.output, reporter, read)
    run.provenance = provenance
    # Under torchrun the command line doesn't say it; with --config alone it would be another run.
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", options.runtime.nproc_per_node))
    run.write_config({**options.record(provenance), "nproc_per_node": processes})
    return run
