"""``vitcod demo``: all four steps on handwritten digits, from the step functions themselves."""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from vitcod_cli.artifacts.files import free_folder
from vitcod_cli.artifacts.output_folder import OutputSettings, locked_folder
from vitcod_cli.calibration.settings import CalibrationSettings, LowRankCalibrationSettings
from vitcod_cli.data.augmentation import AugmentationSettings
from vitcod_cli.data.settings import DataSettings
from vitcod_cli.errors import VitcodError
from vitcod_cli.evaluation.accuracy import Evaluation
from vitcod_cli.masks.info import Info
from vitcod_cli.masks.report import mask_table
from vitcod_cli.masks.settings import MaskOptions, MaskSettings
from vitcod_cli.masks.statistics import attention_macs, sparsity_of
from vitcod_cli.model.layers import attention_shape, attentions, keep_mask
from vitcod_cli.model.load import load_model
from vitcod_cli.model.settings import ModelSettings
from vitcod_cli.plots.plot import plot
from vitcod_cli.plots.settings import PlotOptions
from vitcod_cli.report.report import report
from vitcod_cli.report.settings import ReportOptions
from vitcod_cli.reporting import Reporter, SilentReporter
from vitcod_cli.runtime import RuntimeSettings
from vitcod_cli.settings import Settings
from vitcod_cli.steps.attention_map import dump_attention
from vitcod_cli.steps.dense import finetune_dense
from vitcod_cli.steps.lowrank import finetune_lowrank
from vitcod_cli.steps.mask import make_mask
from vitcod_cli.steps.options import AttentionMapOptions, DemoOptions, DenseOptions, LowRankOptions, SparseOptions
from vitcod_cli.steps.sparse import finetune_sparse
from vitcod_cli.training.recipe import DenseRecipe, LowRankRecipe, SparseRecipe
from vitcod_cli.training.result import FitResult

MODEL = ModelSettings(
    model="vit_tiny_patch16_224",
    img_size=32,
    model_kwargs=["patch_size=4", "embed_dim=64", "depth=3", "num_heads=4", "weight_init=jax"],
)
DATA = DataSettings(dataset="digits")
RUNTIME = RuntimeSettings(threads=1)  # a model this small gains nothing from a second
# Digits have one way up and are few: the recipe for ImageNet is not for them.
AUGMENTATION = AugmentationSettings(no_aug=True, mixup=0, cutmix=0, smoothing=0, repeated_aug=False)
RECIPE: dict[str, Any] = {"batch_size": 32, "drop_path": 0, "model_ema": False, "unscale_lr": True}
DENSE = DenseRecipe(epochs=14, lr=3e-3, warmup_lr=5e-4, warmup_epochs=2, **RECIPE)
LOWRANK = LowRankRecipe(epochs=1, lr=1e-4, warmup_epochs=0, **RECIPE)
SPARSE = SparseRecipe(epochs=2, lr=3e-4, warmup_epochs=0, **RECIPE)
CALIBRATION: dict[str, Any] = {
    "calibrate_steps": 50,
    "calibrate_images": 256,
    "calibrate_crops": 1,
    "calibrate_batch_size": 32,
}
SPARSITIES = (50, 80, 90)


@dataclass(frozen=True)
class Row:
    """A line of the table.

    Attributes:
        sparsity: share of pruned attention entries.
        macs: multiply-accumulates of the two attention products for one image, kept entries only.
    """

    name: str
    acc1: float
    loss: float
    sparsity: float
    macs: int


class Demonstration:
    """The steps in turn; each is shown as the command line that does the same."""

    def __init__(self, options: DemoOptions, reporter: Reporter) -> None:
        """Raise a VitcodError unless the folder is free, or may be written over."""
        self.folder, self.reporter = free_folder(options.output_dir), reporter
        if not options.overwrite and os.path.isdir(self.folder) and os.listdir(self.folder):
            raise VitcodError(f"--output-dir {self.folder} is not empty; add --overwrite, or name another folder.")
        self.rows: list[Row] = []

    def run(self) -> list[Row]:
        """Run everything, with the folder for ourselves; returns the rows of the table."""
        with locked_folder(self.folder, self.reporter):
            return self._run()

    def _run(self) -> list[Row]:
        options = DenseOptions(model=MODEL, recipe=DENSE, **self._common("dense"))
        self._show("finetune-dense", options)
        self._add_row("dense", finetune_dense(options, self.reporter), "dense")
        self._make_lowrank()
        attention = AttentionMapOptions(
            checkpoint=self._path("lowrank/best.safetensors"),
            output=self._path("attn.safetensors"),
            overwrite=True,
            data=DATA,
            runtime=RUNTIME,
        )
        self._show("dump-attn", attention)
        dump_attention(attention, self.reporter)
        for sparsity in SPARSITIES:
            self._make_sparse(sparsity)
        pictures = PlotOptions(
            sources=[self._path("attn.safetensors"), self._path("mask-80.safetensors")],
            output_dir=self._path("plots"),
            overwrite=True,
        )
        self._show("plot", pictures)
        plot(pictures, self.reporter)
        page = ReportOptions(runs=[str(self.folder)], title="vitcod demo: handwritten digits")
        self._show("report", page)
        report(page)
        return self.rows

    def _make_lowrank(self) -> None:
        options = LowRankOptions(
            init_from=self._path("dense/best.safetensors"),
            recipe=LOWRANK,
            calibration=LowRankCalibrationSettings(**CALIBRATION),
            **self._common("lowrank"),
        )
        self._show("finetune-lowrank", options)
        self._add_row("low-rank, 4 heads -> 2", finetune_lowrank(options, self.reporter), "lowrank")

    def _make_sparse(self, percent: int) -> None:
        mask = MaskOptions(
            attn_map=self._path("attn.safetensors"),
            output=self._path(f"mask-{percent}.safetensors"),
            overwrite=True,
            mask=MaskSettings(info=Info(sparsity=percent / 100)),
        )
        self._show("gen-mask", mask)
        for line in mask_table(make_mask(mask, self.reporter)[1]):
            self.reporter.info(line)
        options = SparseOptions(
            init_from=self._path("lowrank/best.safetensors"),
            mask=str(mask.output),
            recipe=SPARSE,
            calibration=CalibrationSettings(**CALIBRATION),
            **self._common(f"sparse-{percent}"),
        )
        self._show("finetune-sparse", options)
        self._add_row(f"sparse, {percent} %", finetune_sparse(options, self.reporter), f"sparse-{percent}")

    def _path(self, name: str) -> str:
        return str(self.folder / name)

    def _common(self, folder: str) -> dict[str, Any]:
        output = OutputSettings(output_dir=self._path(folder), overwrite=True)
        return {"data": DATA, "augmentation": AUGMENTATION, "runtime": RUNTIME, "output": output}

    def _show(self, command: str, options: Settings) -> None:
        self.reporter.info("")
        self.reporter.info(f"$ {shlex.join(['vitcod', command, *options.arguments()])}")

    def _add_row(self, name: str, result: FitResult, folder: str) -> None:
        """The line of a finished run: its own metrics, and what its model's mask saves."""
        source = self._path(f"{folder}/best.safetensors")
        model = load_model(ModelSettings(), source, flag="--checkpoint", reporter=SilentReporter())
        mask = keep_mask(model)
        keep = None if mask is None else mask.numpy()
        macs = attention_macs(attention_shape(model), attentions(model)[0].head_dim, keep)
        sparsity = 0.0 if keep is None else sparsity_of(keep)
        assert isinstance(result.best, Evaluation)  # there are labels, and heads
        self.rows.append(Row(name, result.best.acc1, result.best.loss, sparsity, macs))


def table(rows: Sequence[Row]) -> list[str]:
    """The rows in aligned columns, 80 wide at most."""
    lines = ["", f"{'model':24} {'Acc@1':>7} {'loss':>7} {'sparsity':>10} {'attention MACs':>22}"]
    lines.append("-" * len(lines[-1]))
    for row in rows:
        share = f"{row.macs:,} ({row.macs / rows[0].macs:.0%})"
        lines.append(f"{row.name:24} {row.acc1:7.2f} {row.loss:7.3f} {row.sparsity:10.1%} {share:>22}")
    return lines
