"""What is measured, and for how long. Imports neither torch nor timm."""

from __future__ import annotations

from dataclasses import dataclass, field

from vitcod_cli.distributed import world_size
from vitcod_cli.errors import VitcodError
from vitcod_cli.model.settings import (
    AttentionKernel,
    ModelSettings,
    attention_setting,
    check_attention,
    checkpoint_setting,
    mask_setting,
)
from vitcod_cli.runtime import RuntimeSettings
from vitcod_cli.settings import ResultSettings, Settings, setting

TIMM = "timm"
"""The value of ``--against`` that stands for timm's own implementation."""


@dataclass(frozen=True, kw_only=True)
class OneProcessSettings(RuntimeSettings, panel="Runtime"):
    """A measurement is of one process on one device."""

    nproc_per_node: int = setting(1, "Refused.", minimum=1, hidden=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.nproc_per_node > 1 or world_size() > 1:
            raise VitcodError(
                "vitcod bench measures one process on one device; start it once, without torchrun or "
                "--nproc-per-node."
            )


@dataclass(frozen=True, kw_only=True)
class BenchOptions(Settings, panel="Measurement"):
    """Options of ``vitcod bench``. The defaults take half a minute for DeiT-Tiny on two CPU cores."""

    checkpoint: str | None = checkpoint_setting()
    mask: str | None = mask_setting()
    masks: list[str] = setting(
        [],
        "Time each of these masks against no mask, and nothing else: a table of where a mask pays here. They may "
        "be of several image sizes; each is put on the model of its own.",
        panel="Model",
        metavar="FILE...",
        show_default=False,
    )
    batch_size: list[int] = setting(
        [1, 32], "Images in a batch; may be repeated.", minimum=1, maximum=10**12, metavar="N"
    )
    training: bool = setting(
        True, "Time a training step too: forward, backward and AdamW, with the reconstruction loss."
    )
    against: str | None = setting(
        None,
        "Time a second model, interleaved with the first: another checkpoint, or timm for timm's own "
        "implementation of the same model, without auto-encoders and mask.",
        metavar="FILE|timm",
        show_default=False,
    )
    trust_program: bool = setting(
        False, "Run a .pt2 program, which can hold any code: of files that you made.", panel="Model"
    )
    attention: AttentionKernel = attention_setting()
    warmup: int = setting(2, "Passes before each measurement.", minimum=0, metavar="N")
    repeats: int = setting(6, "Measure at least N passes of each model.", minimum=1, metavar="N")
    seconds: float = setting(2.0, "Measure for at least this long for each model.", minimum=0, maximum=86400)

    model: ModelSettings = field(default_factory=ModelSettings)
    runtime: OneProcessSettings = field(default_factory=OneProcessSettings)
    result: ResultSettings = field(default_factory=ResultSettings)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.checkpoint is None and self.model.model is None:
            raise VitcodError(
                "--checkpoint or --model is needed: name the weights to measure, or a model for random weights."
            )
        check_attention(self.attention, self.runtime)
        if self.masks:
            for flag, value in (("--mask", self.mask), ("--against", self.against)):
                if value is not None:
                    raise VitcodError(f"--masks times each mask against no mask; leave {flag} out, or --masks.")
        if not self.batch_size:
            raise VitcodError("--batch-size is needed: give it once or several times.")

    @property
    def batch_sizes(self) -> list[int]:
        """Each batch size once, in the order given."""
        return list(dict.fromkeys(self.batch_size))
