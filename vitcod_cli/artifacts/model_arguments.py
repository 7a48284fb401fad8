"""Which arguments of timm's Vision Transformers a user or a file may give: those of the architecture, no others.

``timm.create_model`` also takes arguments that load other files, ask the network or call what they are given
(``checkpoint_path``, ``pretrained_cfg``, ``cache_dir``, ``block_fn``, ...). A checkpoint is a stranger's file, so
what is not on this list is refused by its name. Imports neither torch nor timm.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from vitcod_cli.errors import VitcodError

VIT_MODULES = (
    "deit",
    "vision_transformer",
    "vision_transformer_hybrid",
    "eva",
    "beit",
    "vision_transformer_relpos",
    "vitamin",
)
"""Of timm.models, those whose architectures are Vision Transformers with the same blocks throughout; all take
``img_size``."""

_Check = Callable[[Any], bool]
_LARGEST = 2**31 - 1
_DEEPEST = 256


def is_count(value: object, least: int = 1, most: int = _LARGEST) -> bool:
    """Whether ``value`` is an integer in that range; True and 1.0 are none."""
    return type(value) is int and least <= value <= most


def is_size(value: object) -> bool:
    """Whether ``value`` is one length, or a height and a width."""
    if isinstance(value, (list, tuple)):
        return len(value) == 2 and all(is_count(side) for side in value)
    return is_count(value)


def _is_number(least: float, most: float) -> _Check:
    return lambda value: type(value) in (int, float) and least <= value <= most  # NaN is in no range


def _is_one_of(*names: str) -> _Check:
    return lambda value: isinstance(value, str) and value in names


def _is_bool(value: object) -> bool:
    return type(value) is bool


_COUNT = (is_count, f"a whole number from 1 to {_LARGEST}")
_FROM_ZERO = (lambda value: is_count(value, 0), f"a whole number from 0 to {_LARGEST}")
_NUMBER = (_is_number(0, 1e6), "a number from 0 to 1000000")
_SIZE = (is_size, "a whole number, or two")
_BOOL = (_is_bool, "True or False")
_RATE = (_is_number(0, 1), "a number from 0 to 1")
_POOLS = ("", "avg", "avgmax", "max", "token", "map", "prr")
_NORMS = tuple(f"{name}{kind}" for name in ("layernorm", "rmsnorm", "simplenorm") for kind in ("", "fp32"))
_ACTIVATIONS = (
    *("gelu", "gelu_tanh", "quick_gelu", "relu", "relu6", "leaky_relu", "prelu", "elu", "celu", "selu"),
    *("silu", "swish", "mish", "sigmoid", "tanh", "hard_sigmoid", "hard_swish", "hard_mish", "identity"),
)
_INITS = ("", "skip", "reset", "jax", "jax_nlhb", "moco")


def _names(*names: str) -> tuple[_Check, str]:
    return _is_one_of(*names), "one of " + ", ".join(name or "''" for name in names)


MODEL_ARGUMENTS: dict[str, tuple[_Check, str]] = {
    "img_size": _SIZE,
    "patch_size": _SIZE,
    "in_chans": _COUNT,
    "num_classes": _FROM_ZERO,
    "embed_dim": _COUNT,
    "depth": (lambda value: is_count(value, 1, _DEEPEST), f"a whole number from 1 to {_DEEPEST}"),
    "num_heads": _COUNT,
    "mlp_ratio": (_is_number(0, 1000), "a number from 0 to 1000"),
    "init_values": (_is_number(-1000, 1000), "a number from -1000 to 1000, or None"),
    "reg_tokens": _FROM_ZERO,
    **dict.fromkeys(("qkv_bias", "qk_norm", "scale_attn_norm", "scale_mlp_norm", "proj_bias"), _BOOL),
    **dict.fromkeys(("class_token", "no_embed_class", "pre_norm", "final_norm", "fc_norm"), _BOOL),
    **dict.fromkeys(("pool_include_prefix", "dynamic_img_size", "dynamic_img_pad", "fix_init"), _BOOL),
    **dict.fromkeys(("drop_rate", "pos_drop_rate", "patch_drop_rate", "proj_drop_rate"), _RATE),
    **dict.fromkeys(("attn_drop_rate", "drop_path_rate"), _RATE),
    **dict.fromkeys(("qkv_fused", "swiglu_mlp", "scale_mlp", "scale_attn_inner", "attn_only_layer_scale"), _BOOL),
    **dict.fromkeys(("use_abs_pos_emb", "use_rot_pos_emb", "use_rel_pos_bias", "use_shared_rel_pos_bias"), _BOOL),
    **dict.fromkeys(("use_post_norm", "use_pre_transformer_norm", "use_post_transformer_norm"), _BOOL),
    **dict.fromkeys(("use_fc_norm", "rope_rotate_half", "shared_rel_pos"), _BOOL),
    **dict.fromkeys(("num_kv_heads", "attn_pool_num_heads", "rel_pos_dim"), _COUNT),
    **dict.fromkeys(("swiglu_align_to", "num_reg_tokens"), _FROM_ZERO),
    **dict.fromkeys(("rope_grid_offset", "head_init_scale"), (_is_number(-1000, 1000), "a number")),
    **dict.fromkeys(("rope_shift_coords", "rope_jitter_coords", "rope_rescale_coords"), _NUMBER),
    **dict.fromkeys(("rope_temperature", "attn_pool_mlp_ratio"), _NUMBER),
    "ref_feat_shape": _SIZE,
    "attn_type": _names("eva", "rope"),
    "rope_type": _names("cat", "mixed", "dinov3", "mrope"),
    "rope_grid_indexing": _names("ij", "xy"),
    "rel_pos_type": _names("mlp", "mlp-swin", "bias"),
    "global_pool": _names(*_POOLS),
    "pos_embed": _names("", "none", "learn"),
    "weight_init": _names(*_INITS),
    "norm_layer": _names(*_NORMS),
    "embed_norm_layer": _names(*_NORMS),
    "act_layer": _names(*_ACTIVATIONS),
}
"""By name: what tells a good value, and that in words. None always stands for timm's own default."""


def check_model_kwargs(kwargs: Mapping[str, Any], where: str) -> None:
    """Refuse what is no argument of the architecture, or no value for it.

    Args:
        kwargs: for ``timm.create_model``.
        where: the option or the file that they come from, as the beginning of a sentence.

    Raises:
        VitcodError: naming the argument, and what is allowed.
    """
    for name, value in kwargs.items():
        if name not in MODEL_ARGUMENTS:
            raise VitcodError(
                f"{where}: {str(name)[:100]} is refused, because only arguments that describe the architecture "
                f"are passed on to timm ({', '.join(MODEL_ARGUMENTS)})."
            )
        is_good, words = MODEL_ARGUMENTS[name]
        if value is not None and not is_good(value):
            raise VitcodError(f"{where}: {name} must be {words}, not {_short(value)}.")


def _short(value: object) -> str:
    # repr of a long or deep value would be slow, or fail.
    if isinstance(value, (str, int, float, bool)) and not (isinstance(value, int) and value.bit_length() > 300):
        text = repr(value)
        return text if len(text) <= 60 else f"{text[:60]}..."
    return f"a {type(value).__name__}"
