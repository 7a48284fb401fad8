"""Whether a mask was made for this model: a mask of ours says which map it is from, and a map of which model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vitcod_cli.artifacts.model_config import ModelConfig
from vitcod_cli.errors import VitcodError
from vitcod_cli.model.build import model_config
from vitcod_cli.model.families import Transformer
from vitcod_cli.reporting import Reporter

_TRAINING = (
    *("drop_rate", "pos_drop_rate", "patch_drop_rate", "proj_drop_rate", "attn_drop_rate", "drop_path_rate"),
    *("weight_init", "fix_init", "num_classes", "img_size"),
)
"""Arguments that say nothing of where attention goes."""


def check_origin(info: Mapping[str, Any], model: Transformer, where: str, reporter: Reporter) -> None:
    """Compare the model that a mask says it was made for with the one that it is put on; both have its shape.

    Another checkpoint of the same architecture is fine: masks are made to be fine-tuned under. A mask that says
    nothing, such as a published one, is taken as it is.

    Args:
        info: of the mask.
        where: the option and the file, as the beginning of a sentence.

    Raises:
        VitcodError: if it names another architecture, or another number of prefix tokens.
    """
    config = model_config(model)
    named = info.get("model_config")
    if named is not None and _architecture(named["model"]) != _architecture(config.model):
        raise VitcodError(
            f"{where} was made for {named['model'][:100]}, and the model is {config.model}; make one from an "
            "attention map of this model (vitcod dump-attn)."
        )
    prefix = info.get("map_num_prefix_tokens", info.get("num_prefix_tokens"))
    if prefix is not None and prefix != model.num_prefix_tokens:
        raise VitcodError(
            f"{where} was made for {prefix} tokens before the patches, and the model has "
            f"{model.num_prefix_tokens}; make it again with --num-prefix-tokens {model.num_prefix_tokens}."
        )
    other = [] if named is None else _differences(named, config)
    if other:
        reporter.warn(
            f"{where} was made for a {config.model} of another {' and '.join(other)}; it has the right shape, and "
            "may be another model's."
        )


def _architecture(name: str) -> str:
    """The name without the tag of its weights."""
    return name.partition(".")[0]


def _differences(named: Mapping[str, Any], config: ModelConfig) -> list[str]:
    size, kwargs = named.get("img_size"), named.get("model_kwargs")
    differences = []
    if isinstance(size, (list, tuple)) and tuple(size) != config.img_size:
        differences.append("--img-size")
    if isinstance(kwargs, Mapping) and _shape(kwargs) != _shape(config.model_kwargs):
        differences.append("--model-kwargs")
    return differences


def _shape(kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """What of a model's arguments matters, as JSON gives it back; None is timm's default, as if left out."""
    return {
        name: list(value) if isinstance(value, tuple) else value
        for name, value in kwargs.items()
        if name not in _TRAINING and value is not None
    }
