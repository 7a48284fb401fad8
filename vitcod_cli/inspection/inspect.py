"""Files to facts: each by what it is."""

from __future__ import annotations

import os
from typing import Any

from vitcod_cli.artifacts.attention_map import read_attention_map
from vitcod_cli.artifacts.describe import ATTENTION_MAP, CHECKPOINT, MASK, describe
from vitcod_cli.artifacts.files import checked_path, sha256_of
from vitcod_cli.artifacts.mask import read_mask
from vitcod_cli.artifacts.safetensors_file import open_safetensors
from vitcod_cli.errors import VitcodError
from vitcod_cli.inspection.masks import map_facts, mask_facts, overlaps
from vitcod_cli.inspection.settings import InspectOptions
from vitcod_cli.masks.polarize import Keep, check_threshold
from vitcod_cli.reporting import QUIET, Reporter

_FLAG = "FILE"
_MADE = (
    *("made_by", "command", "source", "made_from", "method", "info_cut", "ratio", "std_coef", "seed", "lanes"),
    *("min_density", "min_density_per", "block", "block_keys", "empty_tiles"),
)


def inspect(options: InspectOptions, reporter: Reporter = QUIET) -> dict[str, Any]:
    """``files``: what is in each; ``overlaps``: of every two masks of one shape. Plain values.

    Raises:
        VitcodError: for a file that isn't there, can't be read, or is none of these.
    """
    check_threshold(options.threshold)
    for name in options.files:
        checked_path(name, _FLAG)
    masks: dict[str, Keep] = {}
    files = [_facts(name, options, masks, reporter) for name in options.files]
    return {"files": files, "overlaps": overlaps(masks)}


def _facts(name: str, options: InspectOptions, masks: dict[str, Keep], reporter: Reporter) -> dict[str, Any]:
    description = describe(name)
    kind = CHECKPOINT if description is None else description.kind
    text = "a PyTorch file" if description is None else str(description).partition(";")[0]
    facts = {"file": name, "is": text, "kind": kind, "bytes": os.path.getsize(name), "sha256": sha256_of(name)}
    if kind == MASK:
        mask = read_mask(name, _FLAG)
        masks[name] = mask.keep
        return {**facts, **_made(mask.info), **mask_facts(mask, options.threshold, options.head_dim)}
    if kind == ATTENTION_MAP:
        attention_map = read_attention_map(name, _FLAG)
        return {**facts, **_made(attention_map.info), **map_facts(attention_map)}
    if kind == CHECKPOINT:
        from vitcod_cli.artifacts.checkpoint import read_checkpoint
        from vitcod_cli.inspection.checkpoints import checkpoint_facts

        checkpoint = read_checkpoint(name, _FLAG, reporter)
        return {**facts, **_made(checkpoint.info), **checkpoint_facts(checkpoint)}
    if description is not None and description.own:
        with open_safetensors(name, flag=_FLAG) as file:
            return {**facts, "tensors": len(list(file.handle.keys()))}
    raise VitcodError(
        f"{_FLAG} {name} is neither a checkpoint, an attention map nor a mask: it seems to be {text}."
    )


def _made(info: dict[str, Any]) -> dict[str, Any]:
    """How a file says it was made, and the name of its model."""
    config = info.get("model_config")
    model = {"model": config["model"]} if isinstance(config, dict) and "model" in config else {}
    return {"made": {name: info[name] for name in _MADE if name in info} | model}
