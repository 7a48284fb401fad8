"""What ``compress`` and ``sweep`` begin with: the dense model, the images, the folder and its record."""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from vitcod_cli.artifacts.files import free_folder
from vitcod_cli.artifacts.output_folder import check_output, locked_folder
from vitcod_cli.artifacts.provenance import provenance
from vitcod_cli.attention.room import scratch_for_maps
from vitcod_cli.bench.environment import environment
from vitcod_cli.data.folder import find_split
from vitcod_cli.data.settings import DataSettings
from vitcod_cli.data.splits import Images
from vitcod_cli.distributed import on_main
from vitcod_cli.errors import VitcodError
from vitcod_cli.masks.block_settings import BlockSettings
from vitcod_cli.masks.blocks import cut_tokens
from vitcod_cli.masks.budget import check_reachable
from vitcod_cli.model.build import model_config
from vitcod_cli.model.families import Transformer
from vitcod_cli.model.layers import attention_shape, has_mask
from vitcod_cli.model.load import load_model, save_model
from vitcod_cli.pipeline.options import Method, PipelineOptions
from vitcod_cli.pipeline.plan import Costs, Plan, measure_costs
from vitcod_cli.pipeline.record import Record, Row, Stage, identity_of
from vitcod_cli.pipeline.scores import Scores
from vitcod_cli.pipeline.space import Outputs
from vitcod_cli.pipeline.stages import DENSE_FILE, Stages, point_name
from vitcod_cli.reporting import QUIET, Reporter, without_secrets
from vitcod_cli.restarts import restarted
from vitcod_cli.runtime import Runtime, start
from vitcod_cli.steps.setup import check_calibration, check_task, open_images


@dataclass(frozen=True)
class Prepared:
    """Everything that the stages need.

    Attributes:
        options: as asked for; images without labels are called that, where the folder is found to hold such.
        dense: the file of the dense model, a checkpoint of ours.
        is_low_rank: whether it has auto-encoders already.
        shape, num_prefix_tokens: of its masks, (L, H, N, N), and what they keep in any case.
        costs: measured on this machine.
    """

    options: PipelineOptions
    dense: Path
    is_low_rank: bool
    shape: tuple[int, int, int, int]
    num_prefix_tokens: int
    images: Images
    record: Record
    stages: Stages
    scores: Scores
    costs: Costs

    def plan(self, *, importance: bool) -> Plan:
        """How long each stage will take."""
        return Plan.of(
            self.costs,
            self.options,
            blocks=self.shape[0],
            train=len(self.images.train),
            calibrated=len(self.images.calibration),
            val=len(self.images.val),
            importance=importance,
        )

    def score(self, name: str, path: Path, method: Method | None = None, stages: tuple[str, ...] = ()) -> Row:
        """The row of a model, which ``stages`` made; as recorded if it was measured already."""
        known = self.record.result(name)
        if known is not None:
            return known
        row = self.scores.row(name, path, method=method, seconds=self.stages.seconds(*stages))
        self.record.add_result(row)
        return row

    def point(self, start: Path, attention_map: Path, method: Method, sparsity: float) -> Row:
        """Mask, calibration and score of one sparsity, with what is on the way to it.

        Raises:
            SparsityError: in all processes, if no mask has it, or the map can't give it.
        """
        check_reachable(self.shape, self.num_prefix_tokens, sparsity)
        name, sparsities = point_name(method, sparsity), self.options.way_to(method, sparsity)
        start, attention_map, before = self.stages.way(start, attention_map, self.dense, sparsities)
        mask = self.stages.mask(attention_map, method, sparsity)
        path = self.stages.sparse(start, mask, self.dense)
        return self.score(name, path, method, (*before, f"mask {name}", f"sparse {name}"))


def check_tiles(model: Transformer, settings: BlockSettings) -> None:
    """Raise a VitcodError if the model's tokens can't be cut into tiles of this size."""
    if settings.given:
        config = model_config(model).to_dict()
        cut_tokens(attention_shape(model)[-1], model.num_prefix_tokens, config, settings)


@contextmanager
def prepare(
    command: str,
    options: PipelineOptions,
    file: str,
    reporter: Reporter,
    outputs: Outputs,
    *,
    check: Callable[[], None] = lambda: None,
    check_model: Callable[[Transformer], None] = lambda model: None,
    sparsity: float | None = None,
) -> Iterator[Prepared]:
    """Check all that can be checked, take the folder, and leave the dense model in it.

    Args:
        command: for the record.
        file: name of the record.
        outputs: what will be written in any case.
        check: what else is checked before anything is read; all processes call it together.
        check_model: what else is checked of the dense model, before images are looked for.
        sparsity: that a mask will have in any case, if it is known.

    Raises:
        VitcodError: if options, weights, images and folder don't go together.
    """
    with start(options.runtime) as runtime:
        check_output(options.output)
        check()
        folder = on_main(lambda: free_folder(options.output.output_dir))
        options = options.changed(data=_with_or_without_labels(options.data, reporter))
        model = load_model(options.model, options.init_from, flag="--init-from", reporter=reporter)
        if has_mask(model):
            raise VitcodError(
                f"--init-from {options.init_from} has a mask already; give the model that it was made from."
            )
        check_task(model, options.epochs)
        check_model(model)
        check_tiles(model, options.tiles)
        scratch_for_maps(model, runtime.device, folder, QUIET, importance=outputs.importance)
        on_main(lambda: outputs.check_disk(folder, model, options))
        images = open_images(model, options.data, options.calibration, reporter)
        check_calibration(model, images, options.calibration, runtime, folder)
        if sparsity is not None:
            check_reachable(attention_shape(model), model.num_prefix_tokens, sparsity)
        with locked_folder(folder, reporter):
            yield _set_up(command, options, folder / file, model, images, runtime=runtime, reporter=reporter)


def _set_up(
    command: str,
    options: PipelineOptions,
    path: Path,
    model: Transformer,
    images: Images,
    *,
    runtime: Runtime,
    reporter: Reporter,
) -> Prepared:
    folder = path.parent
    resumes = options.output.resume or restarted()
    about = {
        "command": without_secrets(shlex.join(["vitcod", command, *options.arguments(lasting=True)])),
        "made_by": f"vitcod {command}",
        "environment": environment(runtime),
        "model_config": model_config(model).to_dict(),
        "data": {
            "path": options.data.data_path or options.data.dataset,
            "labelled": images.val.labelled and model.num_classes > 0,
            "train_images": len(images.train),
            "images": len(images.val),
        },
    }
    if options.output.resume and not path.exists():
        reporter.info(f"There is no {path.name} in {folder}: starting from the beginning.")
    record = Record.open(path, about, resumes=resumes)
    dense = _write_dense(model, options, record)
    scores = Scores(
        folder,
        dense,
        images.val,
        images.preprocess,
        classes=model.num_classes,
        batch_size=options.batch_size,
        workers=options.data.workers,
        runtime=runtime,
        reporter=reporter,
    )
    costs = measure_costs(runtime.prepare(model), images.train, images.preprocess, options, runtime)
    return Prepared(
        options=options,
        dense=dense,
        is_low_rank=model_config(model).svd_type != "none",
        shape=attention_shape(model),
        num_prefix_tokens=model.num_prefix_tokens,
        images=images,
        record=record,
        stages=Stages(options, record, reporter, resumes=resumes),
        scores=scores,
        costs=costs,
    )


def _write_dense(model: Transformer, options: PipelineOptions, record: Record) -> Path:
    """The model as it is before anything is done to it, as a checkpoint of ours, which names its architecture."""
    path = record.path.parent / DENSE_FILE
    source = options.init_from
    identity = identity_of(options.model, {"init_from": source})
    stage = Stage("dense", "", DENSE_FILE, identity)
    if not record.finished(stage):
        record.begin(stage)
        on_main(lambda: save_model(path, model, provenance(record.about["made_by"], source)))
        record.finish(stage, 0.0)
    return path


def _with_or_without_labels(data: DataSettings, reporter: Reporter) -> DataSettings:
    """``data``; as images without labels, where a folder is given that isn't laid out in two splits."""
    if data.dataset or data.data_path is None or not os.path.isdir(data.data_path):
        return data
    train, val = (find_split(Path(data.data_path), data, split) for split in ("train", "val"))
    if val is not None:
        return data
    where = f"{train}" if train is not None else data.data_path
    reporter.info(
        f"{data.data_path} has no validation split: the images of {where} are taken without labels, and every "
        "fifth is kept to judge by."
    )
    return data.changed(dataset="images")
