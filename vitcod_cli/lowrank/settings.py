"""Options of the low-rank step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from vitcod_cli.artifacts.model_config import SvdType
from vitcod_cli.settings import Settings, setting

InitMethod = Literal["aligned", "pca", "trunc-normal"]


@dataclass(frozen=True, kw_only=True)
class LowRankSettings(Settings, panel="Calibration"):
    """What is compressed, and where the auto-encoders begin."""

    svd_type: SvdType = setting(
        "mix_head_fc_qk", "Which of Q and K pass through a head auto-encoder.", panel="Model"
    )
    init: InitMethod = setting(
        "aligned",
        "How the auto-encoders begin: aligned (heads rotated alike, then fitted to the attention logits), pca "
        "(PCA over heads), trunc-normal (the published random start).",
    )
    align_steps: int = setting(
        100,
        "Steps of the fit to the logits with --init aligned; 0 stops after the rotation.",
        minimum=0,
    )
