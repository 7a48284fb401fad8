"""Between steps 3 and 4, for hardware: a mask with the order in which an accelerator takes its tokens."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vitcod_cli.artifacts.files import atomic_path, checked_path, free_path
from vitcod_cli.artifacts.mask import Mask, published_mask, read_mask, write_mask
from vitcod_cli.artifacts.npz_file import write_npz
from vitcod_cli.artifacts.provenance import provenance
from vitcod_cli.errors import VitcodError
from vitcod_cli.masks.order_settings import PolarizeOptions
from vitcod_cli.masks.polarize import check_threshold, polarized, reordered, sparser_part
from vitcod_cli.masks.statistics import sparsity_of

FLAG = "MASK"


def polarize(options: PolarizeOptions) -> tuple[list[Path], Mask]:
    """Polarize the mask that ``options`` name; returns the files that were written, and the mask.

    Raises:
        VitcodError: if the mask can't be read, or something can't be written.
    """
    source = checked_path(options.mask, FLAG)
    paths = _outputs(options)
    for path, flag in paths.items():
        free_path(path, options.overwrite, flag, inputs=[source, options.weights])
    check_threshold(options.order.threshold)
    weights = _weights(options)
    read = read_mask(source, FLAG)
    info = {"sparsity": sparsity_of(read.keep), **read.info}
    mask = polarized(Mask(read.keep, {**info, **provenance("vitcod polarize", options.mask)}), options.order)
    written = list(paths)
    if options.format == "published":
        _write_published(mask, written[0], written[1])
    else:
        write_mask(written[0], mask)
    if options.npz is not None:
        _write_npz(mask, weights, written[-1])
    return written, mask


def _outputs(options: PolarizeOptions) -> dict[Path, str]:
    """The files to write, and the option that names each."""
    folder, stem = Path(options.output_dir), Path(options.mask).stem
    if options.format == "published":
        if options.output is not None:
            raise VitcodError("--format published writes two files; name their folder with --output-dir.")
        paths = {folder / f"{name}_{stem}.npy": "--output-dir" for name in ("reodered", "global_token")}
    elif options.output is not None:
        paths = {Path(options.output): "--output"}
    else:
        paths = {folder / f"{stem}_polarized.safetensors": "--output-dir"}
    if options.npz is not None:
        if Path(options.npz) in paths:
            raise VitcodError(f"--npz {options.npz} is the other file that is written; name another.")
        paths[Path(options.npz)] = "--npz"
    return paths


def _columns_only(mask: Mask) -> bool:
    return bool(mask.info["order"] == "columns")


def _write_published(mask: Mask, moved: Path, tokens: Path) -> None:
    """As the published script does: float64, 1 = pruned, and the number of dense keys of each head [L, H]."""
    assert mask.order is not None
    pruned = published_mask(Mask(reordered(mask.keep, mask.order, columns_only=_columns_only(mask))))
    _save(moved, pruned.astype(np.float64))
    _save(tokens, mask.order.global_tokens.astype(np.float64))


def _save(path: Path, array: NDArray[np.float64]) -> None:
    with atomic_path(path) as temporary, open(temporary, "wb") as file:
        np.save(file, array, allow_pickle=False)


def _weights(options: PolarizeOptions) -> dict[str, NDArray[np.generic]]:
    if options.weights is None:
        return {}
    if options.npz is None:
        raise VitcodError("--weights go into the file of --npz: name that too.")
    from vitcod_cli.artifacts.checkpoint import read_checkpoint
    from vitcod_cli.export.integers import int8_weights

    tensors = read_checkpoint(options.weights, "--weights").state_dict
    floats = {name: tensor.float().numpy() for name, tensor in tensors.items() if tensor.is_floating_point()}
    return {f"weights/{name}": array for name, array in int8_weights(floats).items()}


def _write_npz(mask: Mask, weights: dict[str, NDArray[np.generic]], path: Path) -> None:
    """For tools without safetensors; ``docs/accelerator.md`` says what is in it."""
    assert mask.order is not None
    index = sparser_part(mask.keep, mask.order, columns_only=_columns_only(mask))
    arrays: dict[str, Any] = {
        "keep": mask.keep,
        "permutation": mask.order.permutation,
        "global_tokens": mask.order.global_tokens,
        "csc_pointers": index.pointers,
        "csc_starts": index.starts,
        "csc_rows": index.rows,
        **weights,
    }
    write_npz(path, arrays)
