"""What a model is: the words that rebuild it. Imports neither torch nor timm."""

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
        """The inverse of :meth:`to_dict`; raises KeyError or TypeError on foreign content."""
        names = ("model", "num_classes", "img_size", "svd_type", "model_kwargs")
        values = {name: values[name] for name in names if name in values}
        return cls(**{**values, "img_size": tuple(values["img_size"])})
