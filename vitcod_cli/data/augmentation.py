"""How training images are varied: DeiT's flags and defaults. Imports neither torch nor timm."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from vitcod_cli.errors import VitcodError
from vitcod_cli.settings import Settings, setting


@dataclass(frozen=True, kw_only=True)
class AugmentationSettings(Settings, panel="Augmentation"):
    """DeiT's augmentation.

    Crops, flips, RandAugment, jitter, erasing and repeats are done by the training loader; mixup,
    cutmix and label smoothing by the trainer, on the device.
    """

    color_jitter: float = setting(
        0.4, "Strength of colour jitter; unused beside --aa, except 3a, as in timm.", minimum=0, maximum=10
    )
    aa: str = setting(
        "rand-m9-mstd0.5-inc1",
        "AutoAugment policy, as timm writes it; 3a is DeiT-III's three-augment; none turns it off.",
        metavar="POLICY",
        blank=True,
    )
    train_interpolation: Literal["bicubic", "bilinear", "nearest", "box", "hamming", "lanczos", "random"] = (
        setting("bicubic", "How training images are resized.")
    )
    scale: tuple[float, float] = setting((0.08, 1.0), "Range of the area of random crops.", metavar="LOW HIGH")
    ratio: tuple[float, float] = setting(
        (0.75, 4 / 3),
        "Range of the aspect ratio of random crops.",
        metavar="LOW HIGH",
        show_default="0.75 1.333",
    )
    hflip: float = setting(0.5, "Probability of a left-right flip.", minimum=0, maximum=1)
    repeated_aug: bool = setting(True, "Show each image several times in a row, differently augmented.")
    num_aug_repeats: int = setting(3, "How many times, with --repeated-aug.", minimum=1, maximum=100)
    reprob: float = setting(0.25, "Probability of random erasing.", minimum=0, maximum=1)
    remode: Literal["pixel", "rand", "const"] = setting("pixel", "What random erasing fills in.")
    recount: int = setting(1, "How many boxes random erasing erases at most.", minimum=1, maximum=100)
    smoothing: float = setting(0.1, "Label smoothing.", minimum=0, below=1)
    mixup: float = setting(0.8, "Alpha of mixup; 0 turns it off.", minimum=0)
    cutmix: float = setting(1.0, "Alpha of cutmix; 0 turns it off.", minimum=0)
    mixup_prob: float = setting(1.0, "Probability of mixup or cutmix.", minimum=0, maximum=1)
    mixup_switch_prob: float = setting(
        0.5, "Probability of cutmix rather than mixup, when both are on.", minimum=0, maximum=1
    )
    mixup_mode: Literal["batch", "pair", "elem"] = setting(
        "batch", "Whether mixup draws by batch, pair or element."
    )
    no_aug: bool = setting(False, "Turn all of the above off but label smoothing: resize and crop the centre.")

    def __post_init__(self) -> None:
        super().__post_init__()
        for flag, (low, high), limit in (("--scale", self.scale, 1.0), ("--ratio", self.ratio, float("inf"))):
            if not 0 < low <= high <= limit:
                below = "" if limit > 1 else f", both at most {limit:g}"
                raise VitcodError(
                    f"{flag} must be two numbers above 0, the lower first{below}, not {low:g} {high:g}."
                )

    @property
    def repeats(self) -> int:
        """How often each image is shown in a row: 1 without repeated augmentation."""
        return self.num_aug_repeats if self.repeated_aug and not self.no_aug else 1

    @property
    def mixes(self) -> bool:
        """Whether the trainer mixes images and labels."""
        return not self.no_aug and self.mixup_prob > 0 and (self.mixup > 0 or self.cutmix > 0)

    @property
    def policy(self) -> str | None:
        """The AutoAugment policy, or None."""
        return None if self.aa.lower() in ("", "none") else self.aa
