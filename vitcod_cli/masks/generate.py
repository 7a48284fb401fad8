"""From an attention map and the user's settings to a mask that says how it was made."""

from __future__ import annotations

from typing import Any

from vitcod_cli.artifacts.attention_map import AttentionMap
from vitcod_cli.artifacts.mask import Mask
from vitcod_cli.errors import VitcodError
from vitcod_cli.masks.blocks import cut_tokens, made_of_tiles, map_of_tiles, whole_tiles
from vitcod_cli.masks.method import Made
from vitcod_cli.masks.prefix import check_rows
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
    check_rows(attention_map.attention)
    prefix = _num_prefix_tokens(attention_map, settings, reporter)
    made, tiled = _made(attention_map, settings, prefix)
    if made.filled:
        of_what, key = (" of tiles", "tile") if tiled else ("", "one")
        reporter.warn(
            f"{made.filled} rows{of_what} lost all their keys and keep their largest {key}: an empty row has no "
            "softmax."
        )
    keep = made.keep
    info = {
        "method": settings.chosen.name,
        **made.parameters,
        **tiled,
        "sparsity": sparsity_of(keep),
        "num_prefix_tokens": prefix,
        "protect_prefix": prefix > 0 and settings.protects_prefix,
    }
    if "model_config" in attention_map.info:
        info["model_config"] = attention_map.info["model_config"]
    if attention_map.info.get("num_prefix_tokens", prefix) != prefix:  # asked for; it is still this model's mask
        info["map_num_prefix_tokens"] = attention_map.info["num_prefix_tokens"]
    return Mask(keep, info)


def _made(attention_map: AttentionMap, settings: MaskSettings, prefix: int) -> tuple[Made, dict[str, Any]]:
    """The mask, and what is to say of its tiles where it is one of ``--block``."""
    method, protected = settings.chosen, settings.protects_prefix
    if not settings.tiles.given:
        return method.make(attention_map, prefix if protected else 0), {}
    config = attention_map.info.get("model_config", {})
    tiles = cut_tokens(attention_map.attention.shape[-1], prefix, config, settings.tiles)
    small = map_of_tiles(attention_map, tiles)
    made = made_of_tiles(method, small, tiles, tiles.num_prefix if protected else 0)
    tiled = {**tiles.parameters, "empty_tiles": sparsity_of(made.keep)}
    return made._replace(keep=whole_tiles(made.keep, tiles)), tiled


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
