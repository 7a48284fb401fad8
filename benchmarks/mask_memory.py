"""What gen-mask and dump-attn take of memory and time: peak resident memory of whole processes.

    python benchmarks/mask_memory.py
    python benchmarks/mask_memory.py --checkpoint deit_tiny_patch16_224.safetensors --data-path IMAGES
    python benchmarks/mask_memory.py --checkout ../another ...

Masks are made of a random map [blocks, heads, tokens, tokens], ``.npy`` and ours with importance. With weights and
images, a map and the importance of its entries are measured too. ``--checkout`` runs another version's code, after
this one's in every round. Memory is what the system counts (``ru_maxrss``), with the pages of mapped files in it.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from statistics import median

import numpy as np
from numpy.lib.format import open_memmap
from rich.console import Console
from rich.table import Table

from vitcod_cli.artifacts.attention_map import AttentionMap, write_attention_map

HERE = Path(__file__).resolve().parents[1]
METHODS = {
    "info, sparsity 0.9": ("map.npy", "--sparsity", "0.9"),
    "info, sparsity 0.5": ("map.npy", "--sparsity", "0.5"),
    "info, cut 0.4": ("map.npy", "--info-cut", "0.4"),
    "ratio": ("map.npy", "--method", "ratio"),
    "ratio 1 (no key is left)": ("map.npy", "--method", "ratio", "--ratio", "1"),
    "std": ("map.npy", "--method", "std"),
    "random": ("map.npy", "--method", "random"),
    "allocate": ("map.safetensors", "--allocate"),
    "sparsity 0.9, with importance": ("map.safetensors", "--sparsity", "0.9"),
}


def measure(words: list[str], code: Path) -> tuple[float, float, float]:
    """Seconds, seconds of all cores together, and peak MiB of ``vitcod WORDS``.

    Linux counts what the process that starts another had at its most, so this one has to stay small.
    """
    start = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-m", "vitcod_cli", *words],
        cwd=code,  # with -m the current folder comes before all others
        env={**os.environ, "PYTHONPATH": str(code)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - start
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        sys.exit(f"failed: vitcod {' '.join(words)}")
    peak = usage.ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)
    return seconds, usage.ru_utime + usage.ru_stime, peak


def make_maps(folder: Path, shape: tuple[int, ...]) -> float:
    """A map with heads of different sharpness, without and with importance; returns its MiB."""
    random = np.random.default_rng(0)
    attention = open_memmap(folder / "map.npy", "w+", np.float32, shape)
    importance = open_memmap(folder / "importance.npy", "w+", np.float32, shape)
    for head in np.ndindex(shape[:2]):
        rows = np.exp(random.standard_normal(shape[2:], dtype=np.float32) * random.uniform(0.5, 3))
        attention[head] = rows / rows.sum(axis=-1, keepdims=True)
        importance[head] = random.random(shape[2:], dtype=np.float32)
    write_attention_map(
        folder / "map.safetensors", AttentionMap(attention, 8, {"num_prefix_tokens": 1}, importance)
    )
    return attention.nbytes / 2**20


def main() -> None:
    """A row for each method, and for dump-attn where there are weights."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", type=int, nargs=3, default=(12, 16, 1025), metavar=("L", "H", "N"))
    parser.add_argument("--checkpoint", help="weights of DeiT-Tiny; left out, only masks are made")
    parser.add_argument("--data-path", help="images for dump-attn")
    parser.add_argument("--model", default="deit_tiny_patch16_224")
    parser.add_argument("--img-size", default="512")
    parser.add_argument("--importance-images", default="8")
    parser.add_argument("--max-images", default="96")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--checkout", type=Path, help="the code of another version, to compare with")
    options = parser.parse_args()
    blocks, heads, tokens = options.shape
    codes = [HERE, *([options.checkout.resolve()] if options.checkout else [])]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as apart:
            size = apart.submit(make_maps, folder, (blocks, heads, tokens, tokens)).result()
        table = Table("", "code", "s", "core s", "peak MiB", "of the map", title=f"map of {size:,.0f} MiB")
        output = ["--output", str(folder / "output.safetensors"), "--overwrite"]
        runs = {
            label: ["gen-mask", "--attn-map", str(folder / file), *words, *output]
            for label, (file, *words) in METHODS.items()
        }
        if options.checkpoint:
            runs["dump-attn"] = ["dump-attn", "--checkpoint", os.path.abspath(options.checkpoint)]
            runs["dump-attn"] += ["--data-path", os.path.abspath(options.data_path)]
            runs["dump-attn"] += ["--model", options.model, "--img-size", options.img_size, *output]
            runs["dump-attn"] += ["--max-images", options.max_images]
            runs["and importance"] = [*runs["dump-attn"], "--importance-images", options.importance_images]
        for label, words in runs.items():
            found: dict[Path, list[tuple[float, float, float]]] = {code: [] for code in codes}
            for _ in range(options.rounds if words[0] == "gen-mask" else 1):
                for code in codes:
                    found[code].append(measure(words, code))
            for code, rounds in found.items():
                seconds, cores, peak = (median(one[index] for one in rounds) for index in range(3))
                share = f"{peak / size:.2f}" if words[0] == "gen-mask" else ""
                which = "this" if code == HERE else "other"
                table.add_row(label, which, f"{seconds:.1f}", f"{cores:.1f}", f"{peak:,.0f}", share)
    Console(width=90).print(table)


if __name__ == "__main__":
    main()
