"""Step 3: a fixed sparse mask from a mean attention map. Needs numpy only."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from vitcod_cli.artifacts.attention_map import map_shape, read_attention_map
from vitcod_cli.artifacts.files import check_space, checked_path, free_folder, free_path
from vitcod_cli.artifacts.mask import Mask, check_mask_memory, mask_bytes, write_mask
from vitcod_cli.artifacts.provenance import provenance
from vitcod_cli.masks.generate import generate_mask
from vitcod_cli.masks.polarize import check_threshold, polarized
from vitcod_cli.masks.settings import MaskOptions
from vitcod_cli.reporting import QUIET, Reporter


def make_mask(options: MaskOptions, reporter: Reporter = QUIET) -> tuple[Path, Mask]:
    """Make the mask that ``options`` ask for; returns the file that it is in, and the mask.

    Raises:
        VitcodError: if the map can't be read, or the mask can't be made or written.
    """
    inputs = [checked_path(options.attn_map, "--attn-map")]
    check_threshold(options.order.threshold)
    if options.output is None:
        free_folder(options.output_dir)
    else:
        free_path(options.output, options.overwrite, inputs=inputs)
    _check_room(options)
    with ThreadPoolExecutor(1) as pool:  # hashing a map takes as long as making the mask
        origin = pool.submit(provenance, "vitcod gen-mask", options.attn_map)
        mask = generate_mask(read_attention_map(options.attn_map), options.mask, reporter)
    name = f"{options.mask.name}_{mask.info['sparsity']:.2f}.safetensors"
    path = Path(options.output_dir, name) if options.output is None else Path(options.output)
    free_path(path, options.overwrite, inputs=inputs)  # again: it may have been written meanwhile
    mask = Mask(mask.keep, {**mask.info, **origin.result()})
    if options.polarize:
        mask = polarized(mask, options.order)
    write_mask(path, mask)
    return path, mask


def _check_room(options: MaskOptions) -> None:
    """Raise a VitcodError if memory or disk has no room for the mask."""
    shape = map_shape(options.attn_map)
    check_mask_memory(shape, f"--attn-map {options.attn_map}")
    folder, flag = options.output_dir, "--output-dir"
    if options.output is not None:
        folder, flag = os.path.dirname(options.output), "--output"
    if len(shape) == 4:
        check_space(folder, mask_bytes(shape), flag, f"a mask of {list(shape)}")
