"""What a model is: all that is needed to build it. Imports neither torch nor timm."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal, get_args

SvdType = Literal["mix_head_fc_qk", "mix_head_fc_q", "mix_head_fc_k", "none"]
"""Which of Q and K pass through a head auto-encoder, by the name the published code uses."""

SVD_TYPES: tuple[SvdType, ...] = get_args(SvdType)


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Everything ``build_model`` needs, and what a checkpoint says of itself.

    ``model_kwargs`` go to ``timm.create_model`` unchanged, as with timm's ``--model-kwargs``.
    """

    model: str
    num_classes: int
    img_size: tuple[int, int]
    svd_type: SvdType = "none"
    model_kwargs: dict[str, Any] = field(default_factory=dict)

    def changed(self, **values: Any) -> ModelConfig:
        """A copy with some fields replaced."""
        return replace(self, **values)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {**asdict(self), "img_size": list(self.img_size)}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> ModelConfig:
        """The inverse of :meth:`to_dict`; raises KeyError, TypeError or ValueError on foreign content."""
        names = ("model", "num_classes", "img_size", "svd_type", "model_kwargs")
        values = {name: values[name] for name in names if name in values}
        height, width = values["img_size"]
        config = cls(**{**values, "img_size": (int(height), int(width))})
        if not (isinstance(config.model, str) and isinstance(config.model_kwargs, dict)):
            raise TypeError("model must be a name and model_kwargs a dictionary")
        if not isinstance(config.num_classes, int) or config.svd_type not in SVD_TYPES:
            raise ValueError("num_classes must be a number and svd_type a known one")
        return config
