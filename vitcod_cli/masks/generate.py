"""From an attention map and the user's settings to a mask that says how it was made."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from vitcod_cli.artifacts.attention_map import AttentionMap
from vitcod_cli.artifacts.mask import Mask
from vitcod_cli.errors import VitcodError
from vitcod_cli.masks import methods as masks
from vitcod_cli.masks.allocate import allocated_mask
from vitcod_cli.masks.settings import DEFAULT_SPARSITY, MaskSettings
from vitcod_cli.reporting import Reporter


def generate_mask(attention_map: AttentionMap, settings: MaskSettings, reporter: Reporter) -> Mask:
    """The mask of ``attention_map`` by the method of ``settings``; no row of it is empty.

    Its info says the method with its parameters, the sparsity, the prefix tokens and whether they are
    protected, and the model of the map where the map says it.

    Raises:
        VitcodError: if the rows of the map don't sum to 1, its prefix is larger than it, or the wanted
            sparsity can't be reached.
    """
    attention = attention_map.attention
    masks.check_rows(attention)
    prefix = _num_prefix_tokens(attention_map, settings, reporter)
    protected = prefix if settings.protects_prefix else 0
    keep, parameters = _choose(attention_map, settings, protected)
    if protected:
        keep = masks.keep_prefix(keep, protected)
    keep, filled = masks.fill_empty_rows(keep, attention)
    if filled:
        reporter.warn(
            f"{filled} rows lost all their keys and keep their largest one: an empty row has no softmax."
        )
    info = {
        "method": settings.name,
        **parameters,
        "sparsity": masks.sparsity_of(keep),
        "num_prefix_tokens": prefix,
        "protect_prefix": protected > 0,
    }
    if "model_config" in attention_map.info:
        info["model_config"] = attention_map.info["model_config"]
    return Mask(keep, info)


def _choose(
    attention_map: AttentionMap, settings: MaskSettings, protected: int
) -> tuple[NDArray[np.bool_], dict[str, Any]]:
    """The mask before protection, and the parameters that it was made with."""
    attention = attention_map.attention
    if settings.allocate:
        importance = attention_map.importance
        if importance is None:
            raise VitcodError(
                "--allocate needs to know what every entry is worth, and --attn-map doesn't say it; make the map "
                "again with vitcod dump-attn --importance-images 256."
            )
        sparsity = DEFAULT_SPARSITY if settings.sparsity is None else settings.sparsity
        return allocated_mask(importance, sparsity, protected), {}
    if settings.method == "info":
        if settings.info_cut is not None:
            return masks.info_mask(attention, settings.info_cut), {"info_cut": settings.info_cut}
        sparsity = DEFAULT_SPARSITY if settings.sparsity is None else settings.sparsity
        keep, cut = masks.info_mask_of_sparsity(attention, sparsity, protected)
        return keep, {"info_cut": cut}
    if settings.method == "std":
        coef = 0.9 if settings.std_coef is None else settings.std_coef
        return masks.std_mask(attention, coef), {"std_coef": coef}
    ratio = 0.9 if settings.ratio is None else settings.ratio
    if settings.method == "ratio":
        return masks.ratio_mask(attention, ratio), {"ratio": ratio}
    return masks.random_mask(attention.shape, ratio, settings.seed), {"ratio": ratio, "seed": settings.seed}


def _num_prefix_tokens(attention_map: AttentionMap, settings: MaskSettings, reporter: Reporter) -> int:
    prefix = settings.num_prefix_tokens
    if prefix is None:
        prefix = attention_map.info.get("num_prefix_tokens")
    if prefix is None:
        prefix = 1
        if settings.protects_prefix:
            reporter.info(
                "The map doesn't say its prefix tokens: taking one, the class token (--num-prefix-tokens)."
            )
    num_tokens = attention_map.attention.shape[-1]
    if prefix > num_tokens:
        raise VitcodError(f"--num-prefix-tokens {prefix} is more than the {num_tokens} tokens of the map.")
    return int(prefix)
