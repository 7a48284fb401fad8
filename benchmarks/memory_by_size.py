"""Peak memory and time of dump-attn, importance, gen-mask and a calibration over the size of the images.

    python benchmarks/memory_by_size.py --checkpoint deit_tiny_patch16_224.safetensors --data-path IMAGES
    python benchmarks/memory_by_size.py --checkout ../another --sizes 224 512 ...

Few images and few steps: what is measured is what grows with the tokens, not with the images. Each command is a
process of its own. Memory is what the system counts (``ru_maxrss``), with the pages of mapped files in it, which
the system takes back when it needs them. ``--checkout`` runs another version's code instead of this one's.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from itertools import islice
from pathlib import Path

from mask_memory import HERE, measure
from rich.console import Console
from rich.table import Table

ENDINGS = (".jpeg", ".jpg", ".png")


def pictures(options: argparse.Namespace, folder: Path) -> Path:
    """A folder of a few pictures, of which every fifth will be kept to judge by."""
    folder.mkdir()
    found = (
        path for path in sorted(Path(options.data_path).resolve().rglob("*")) if path.suffix.lower() in ENDINGS
    )
    for path in islice(found, options.images + options.images // 4 + 1):
        (folder / path.name).symlink_to(path)
    return folder


def commands(options: argparse.Namespace, size: int, folder: Path) -> dict[str, list[str]]:
    """The words of each command, by what the table calls it; later ones read what earlier ones write."""
    weights, data = os.path.abspath(options.checkpoint), str(pictures(options, folder / "pictures"))
    model = ["--model", options.model, "--img-size", str(size), "--workers", "0"]
    model += ["--dataset", "images", "--data-path", data]
    images, attention_map, mask = str(options.images), str(folder / "attn"), str(folder / "mask")
    dump = ["dump-attn", "--checkpoint", weights, *model, "--max-images", images, "--output", attention_map]
    gen_mask = ["gen-mask", "--attn-map", attention_map, "--overwrite", "--output", mask, "--sparsity", "0.9"]
    calibration = ["finetune-sparse", "--init-from", weights, *model, "--mask", mask, "--epochs", "0"]
    calibration += ["--calibrate-images", images, "--calibrate-steps", "2", "--calibrate-crops", "1"]
    calibration += ["--batch-size", "2"]
    return {
        "dump-attn": [*dump, "--overwrite"],
        "and importance": [*dump, "--overwrite", "--importance-images", images],
        "gen-mask, info": gen_mask,
        "gen-mask --allocate": [*gen_mask, "--allocate"],
        "calibration": [*calibration, "--output-dir", str(folder / "run")],
    }


def main() -> None:
    """A row for each size and command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", required=True, help="weights of --model")
    parser.add_argument("--data-path", required=True, help="a folder of images")
    parser.add_argument("--model", default="deit_tiny_patch16_224")
    parser.add_argument("--sizes", type=int, nargs="+", default=[224, 384, 512, 768])
    parser.add_argument("--images", type=int, default=2)
    parser.add_argument("--checkout", type=Path, default=HERE, help="the code of another version")
    options = parser.parse_args()
    table = Table("pixels", "", "s", "core s", "peak MiB", title=f"{options.model}, {options.images} images")
    for size in options.sizes:
        with tempfile.TemporaryDirectory() as name:
            for label, words in commands(options, size, Path(name)).items():
                seconds, cores, peak = measure(words, options.checkout.resolve())
                table.add_row(str(size), label, f"{seconds:.1f}", f"{cores:.1f}", f"{peak:,.0f}")
    Console(width=90).print(table)


if __name__ == "__main__":
    main()
