"""From an attention map and the user's settings to a mask that says how it was made."""

from __future__ import annotations

from vitcod_cli.artifacts.attention_map import AttentionMap
from vitcod_cli.artifacts.mask import Mask
from vitcod_cli.errors import VitcodError
from vitcod_cli.masks.prefix import check_rows, fill_empty_rows, keep_prefix
from vitcod_cli.masks.settings import MaskSettings
from vitcod_cli.masks.statistics import sparsity_of
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
    check_rows(attention)
    prefix = _num_prefix_tokens(attention_map, settings, reporter)
    protected = prefix if settings.protects_prefix else 0
    method = settings.chosen
    keep, parameters = method.keep(attention_map, protected)
    if protected:
        keep = keep_prefix(keep, protected)
    filled = fill_empty_rows(keep, attention)
    if filled:
        reporter.warn(
            f"{filled} rows lost all their keys and keep their largest one: an empty row has no softmax."
        )
    info = {
        "method": method.name,
        **parameters,
        "sparsity": sparsity_of(keep),
        "num_prefix_tokens": prefix,
        "protect_prefix": protected > 0,
    }
    if "model_config" in attention_map.info:
        info["model_config"] = attention_map.info["model_config"]
    if attention_map.info.get("num_prefix_tokens", prefix) != prefix:  # asked for; it is still this model's mask
        info["map_num_prefix_tokens"] = attention_map.info["num_prefix_tokens"]
    return Mask(keep, info)


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
        raise VitcodError(
            f"--num-prefix-tokens {prefix} is more than the {num_tokens} tokens of the map; give those of its "
            "model."
        )
    return int(prefix)
