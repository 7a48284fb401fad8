"""What a model is: all that is needed to build it. Imports neither torch nor timm."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal, get_args

from vitcod_cli.artifacts.model_arguments import check_model_kwargs, is_count, is_size
from vitcod_cli.errors import VitcodError

SvdType = Literal["mix_head_fc_qk", "mix_head_fc_q", "mix_head_fc_k", "none"]
"""Which of Q and K pass through a head auto-encoder, by the name the published code uses."""

SVD_TYPES: tuple[SvdType, ...] = get_args(SvdType)

# An architecture of timm's, and perhaps the tag of its weights. No "hf-hub:...", "local-dir:..." or path, which
# timm would follow to the network or to other files.
_NAME = re.compile(r"\w{1,100}(\.[\w-]{1,100})?", re.ASCII)


def is_model_name(name: object) -> bool:
    """Whether ``name`` can be a model of timm's registry: ``deit_tiny_patch16_224``, with or without a tag."""
    return isinstance(name, str) and _NAME.fullmatch(name) is not None


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Everything ``build_model`` needs, and what a checkpoint says of itself.

    ``model_kwargs`` go to ``timm.create_model`` unchanged, as with timm's ``--model-kwargs``; they are
    arguments of the architecture only (:mod:`vitcod_cli.artifacts.model_arguments`).
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
    def from_dict(cls, values: Mapping[str, Any]) -> ModelConfig:
        """The inverse of :meth:`to_dict`.

        Raises:
            ValueError: on foreign content; the message says what is wrong.
        """
        if not isinstance(values, Mapping):
            raise ValueError("model_config is not a dictionary")
        name: Any = values.get("model")
        classes: Any = values.get("num_classes")
        size: Any = values.get("img_size")
        if not isinstance(name, str) or not name:
            raise ValueError("model is not a name")
        if not is_count(classes, 0):
            raise ValueError("num_classes is not a number of classes")
        if not isinstance(size, (list, tuple)) or not is_size(size):
            raise ValueError("img_size is not a height and a width in pixels")
        svd_type = values.get("svd_type", "none")
        if not isinstance(svd_type, str) or svd_type not in SVD_TYPES:
            raise ValueError(f"svd_type is none of {', '.join(SVD_TYPES)}")
        kwargs = values.get("model_kwargs", {})
        if not isinstance(kwargs, dict):
            raise ValueError("model_kwargs is not a dictionary")
        try:
            check_model_kwargs(kwargs, "model_kwargs")
        except VitcodError as error:
            raise ValueError(str(error).rstrip(".")) from error
        return cls(
            model=name, num_classes=classes, img_size=(size[0], size[1]), svd_type=svd_type, model_kwargs=kwargs
        )
