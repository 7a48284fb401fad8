"""The training recipe as settings: DeiT's flags, the published defaults. Imports neither torch nor timm."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from vitcod_cli.errors import VitcodError, did_you_mean
from vitcod_cli.settings import Settings, setting

LOGGERS = ("tensorboard", "wandb")


@dataclass(frozen=True, kw_only=True)
class Recipe(Settings, panel="Recipe"):
    """How a model is trained: DeiT's ``main.py`` with the flags of the published experiments."""

    # -- length and batches
    epochs: int = setting(100, "Epochs to train; 0 only evaluates and saves.", minimum=0)
    batch_size: int = setting(64, "Images in a batch of each process.", minimum=1)
    accumulate_steps: int = setting(1, "Batches whose gradients are summed before each step.", minimum=1)
    max_steps: int | None = setting(
        None, "Stop after this many steps, for a try.", minimum=1, show_default="all of --epochs"
    )
    eval_batch_size: int | None = setting(
        None, "Images in an evaluation batch of each process.", minimum=1, show_default="1.5 x --batch-size"
    )
    eval_every: int = setting(1, "Evaluate every N epochs, and after the last.", minimum=1, metavar="N")

    # -- learning rate; the schedule is DeiT's, see training/schedule.py
    lr: float = setting(1e-4, "Learning rate for a global batch of 512; scaled to the real one.", above=0)
    unscale_lr: bool = setting(False, "Take --lr as it is.")
    min_lr: float = setting(1e-5, "Learning rate at the end of the cosine (not scaled).", minimum=0)
    warmup_lr: float = setting(1e-6, "Learning rate at the start of the warm-up (not scaled).", minimum=0)
    warmup_epochs: int = setting(5, "Epochs of linear warm-up, part of --epochs.", minimum=0)
    cooldown_epochs: int = setting(
        10,
        "Epochs at --min-lr behind the schedule; DeiT plans but never runs them: see --run-cooldown.",
        minimum=0,
    )
    run_cooldown: bool = setting(False, "Train the cool-down epochs too, after --epochs.")
    sched: Literal["cosine", "tanh", "poly", "step", "constant"] = setting("cosine", "Shape of the schedule.")
    decay_epochs: float = setting(30, "Epochs between two decays of --sched step.", above=0)
    decay_rate: float = setting(0.1, "Factor of --sched step, power of --sched poly.", above=0)

    # -- optimizer
    opt: str = setting("adamw", "Optimizer, by timm's name.", metavar="NAME")
    opt_eps: float = setting(1e-8, "Epsilon of the optimizer.", above=0)
    opt_betas: str | None = setting(
        None, "Betas of the optimizer, as 0.9,0.999.", metavar="B1,B2", show_default="the optimizer's"
    )
    momentum: float = setting(0.9, "Momentum, for optimizers that have one.", minimum=0, below=1)
    weight_decay: float = setting(1e-8, "Weight decay; none on biases, norms, tokens and positions.", minimum=0)
    clip_grad: float | None = setting(
        None, "Clip the norm of the gradient to this.", above=0, show_default="no clipping"
    )

    # -- regularisation
    drop_path: float = setting(0.1, "Stochastic depth rate.", minimum=0, below=1)
    model_ema: bool = setting(True, "Keep an exponential moving average of the weights, evaluated too.")
    model_ema_decay: float = setting(0.99996, "Decay of the moving average, a step.", minimum=0, below=1)
    recon_weight: float = setting(
        1e-4, "Weight of the reconstruction loss of the head auto-encoders; 0 turns it off.", minimum=0
    )

    # -- distillation
    distill: Literal["none", "soft", "hard"] = setting(
        "none",
        "Distil from --teacher beside the labels: its probabilities (soft) or its choice (hard).",
        aliases=("--distillation-type",),
    )
    teacher: str | None = setting(
        None,
        "Teacher: a checkpoint, or a timm name for its pretrained weights.",
        show_default=False,
        aliases=("--teacher-model",),
    )
    distill_alpha: float = setting(
        0.5, "Share of the teacher in the loss.", minimum=0, maximum=1, aliases=("--distillation-alpha",)
    )
    distill_tau: float = setting(
        1.0, "Temperature of soft distillation.", minimum=1e-3, aliases=("--distillation-tau",)
    )
    distill_from: str | None = setting(
        None,
        "Train by distillation from this checkpoint alone, without labels.",
        metavar="CHECKPOINT",
        show_default=False,
    )
    labels: bool = setting(True, "Use the labels; with --no-labels, --teacher alone.")

    # -- a run that looks after itself
    save_every: float = setting(
        15.0, "Save the state every N minutes, beside every epoch.", minimum=0, metavar="N", panel="Output"
    )
    skip_nonfinite: int = setting(
        0, "Steps with a loss that isn't finite that are skipped before the run stops.", minimum=0, metavar="N"
    )
    log_to: str | None = setting(
        None,
        "Also log to tensorboard, wandb, or both (comma-separated).",
        metavar="NAMES",
        show_default=False,
        panel="Output",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        _parse_betas(self.opt_betas)
        self._check_distillation()
        for name in self.loggers:
            if name not in LOGGERS:
                hint = did_you_mean(name, LOGGERS, f"it knows {' and '.join(LOGGERS)}.")
                raise VitcodError(f"--log-to {name} is no logger; {hint}")
        if self.log_to is not None and not self.loggers:
            raise VitcodError(f"--log-to {self.log_to} names no logger; it knows {' and '.join(LOGGERS)}.")

    def _check_distillation(self) -> None:
        if self.distill_from is not None and (self.teacher is not None or self.distill != "none"):
            raise VitcodError(
                "--distill-from trains by distillation alone; with labels, use --distill soft and --teacher."
            )
        if self.distill != "none" and self.teacher is None:
            raise VitcodError(f"--distill {self.distill} needs a --teacher (a checkpoint or a timm name).")
        if self.distill != "none" and not self.labels:
            raise VitcodError(
                f"--distill {self.distill} mixes teacher and labels; leave out one of it and --no-labels."
            )
        if not self.labels and self.teacher_source is None:
            raise VitcodError("--no-labels needs a --teacher, or --distill-from CHECKPOINT.")
        if self.teacher is not None and self.distill == "none" and self.labels:
            raise VitcodError("--teacher is not used; add --distill soft, --distill hard or --no-labels.")

    @property
    def betas(self) -> tuple[float, float] | None:
        """``opt_betas`` as numbers, None for the optimizer's own."""
        return _parse_betas(self.opt_betas)

    @property
    def teacher_source(self) -> str | None:
        """The teacher's checkpoint or timm name, or None."""
        return self.distill_from or self.teacher

    @property
    def uses_labels(self) -> bool:
        """Whether the labels take part in the loss."""
        return self.labels and self.distill_from is None

    @property
    def loggers(self) -> list[str]:
        """The names in ``log_to``."""
        return [name.strip() for name in (self.log_to or "").split(",") if name.strip()]

    @property
    def total_epochs(self) -> int:
        """Epochs that are really trained."""
        return self.epochs + (self.cooldown_epochs if self.run_cooldown and self.epochs else 0)

    @property
    def eval_batch(self) -> int:
        """Images in an evaluation batch of each process: DeiT's 1.5 times the training batch by default."""
        return self.eval_batch_size or max(1, int(1.5 * self.batch_size))

    def global_batch(self, processes: int) -> int:
        """Images that one step sees over ``processes`` processes."""
        return self.batch_size * self.accumulate_steps * processes

    def scaled_lr(self, processes: int) -> float:
        """The peak learning rate: ``lr * global batch / 512``, as DeiT scales it."""
        return self.lr if self.unscale_lr else self.lr * self.global_batch(processes) / 512.0


@dataclass(frozen=True, kw_only=True)
class DenseRecipe(Recipe):
    """Training or fine-tuning the plain model: DeiT's own learning rate and weight decay."""

    epochs: int = setting(300, "Epochs to train; 0 only evaluates and saves.", minimum=0)
    lr: float = setting(5e-4, "Learning rate for a global batch of 512; scaled to the real one.", above=0)
    weight_decay: float = setting(0.05, "Weight decay; none on biases, norms, tokens and positions.", minimum=0)


@dataclass(frozen=True, kw_only=True)
class LowRankRecipe(Recipe):
    """Step 1: the model with head auto-encoders (ViTCoD, section VI-A)."""

    min_lr: float = setting(5e-6, "Learning rate at the end of the cosine (not scaled).", minimum=0)


@dataclass(frozen=True, kw_only=True)
class SparseRecipe(Recipe):
    """Step 4: the masked model (ViTCoD, section VI-A)."""

    lr: float = setting(1e-5, "Learning rate for a global batch of 512; scaled to the real one.", above=0)


def _parse_betas(text: str | None) -> tuple[float, float] | None:
    if text is None:
        return None
    try:
        first, second = (float(part) for part in text.split(","))
    except ValueError:
        raise VitcodError(f"--opt-betas {text} must be two numbers, as in 0.9,0.999.") from None
    if not (0 <= first < 1 and 0 <= second < 1):
        raise VitcodError(f"--opt-betas {text} must be two numbers from 0 to below 1, as in 0.9,0.999.")
    return first, second
