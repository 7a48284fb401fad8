"""What is measured, and for how long. Imports neither torch nor timm."""

from __future__ import annotations

from dataclasses import dataclass

from vitcod_cli.errors import VitcodError
from vitcod_cli.settings import Settings, setting

PANEL = "Measurement"

TIMM = "timm"
"""The value of ``--against`` that stands for timm's own implementation."""


@dataclass(frozen=True, kw_only=True)
class BenchSettings(Settings):
    """Options of ``vitcod bench``. The defaults take half a minute for DeiT-Tiny on two CPU cores."""

    batch_size: list[int] = setting([1, 32], "Images in a batch; may be repeated.", panel=PANEL, metavar="N")
    training: bool = setting(
        True, "Time a training step too: forward, backward and AdamW, with the reconstruction loss.", panel=PANEL
    )
    against: str | None = setting(
        None,
        "Time a second model by turns with the first: another checkpoint, or timm for timm's own implementation "
        "of the same model, without auto-encoders and mask.",
        panel=PANEL,
        metavar="FILE|timm",
        show_default=False,
    )
    warmup: int = setting(2, "Passes before each measurement.", panel=PANEL, minimum=0, metavar="N")
    repeats: int = setting(6, "Measure at least N passes of each model.", panel=PANEL, minimum=1, metavar="N")
    seconds: float = setting(2.0, "Measure for at least this long for each model.", panel=PANEL, minimum=0)

    def __post_init__(self) -> None:
        super().__post_init__()
        for size in self.batch_size:
            if size < 1:
                raise VitcodError(f"--batch-size must be at least 1, not {size}.")
        if not self.batch_size:
            raise VitcodError("--batch-size is needed: give it once or several times.")

    @property
    def batch_sizes(self) -> list[int]:
        """Each batch size once, in the order given."""
        return list(dict.fromkeys(self.batch_size))
