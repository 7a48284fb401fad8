"""What ``vitcod COMMAND --help`` shows: the options that people use, and an example."""

from __future__ import annotations

from typing import NamedTuple


class First(NamedTuple):
    """The first screen of a command's help.

    Attributes:
        options: names, in the order that they are shown in, behind those that are required; None for all.
        example: a command line, of one or more lines.
    """

    options: tuple[str, ...] | None
    example: str


_MODEL = ("model",)
_RUN = ("precision", "nproc_per_node")
_FOLDER = ("resume", "overwrite")
_FILE = ("output", "output_dir", "overwrite")
_TRAINING = ("epochs", "batch_size", "lr")

FIRST = {
    "compress": First(
        (
            "data_path",
            "calibrate_path",
            "sparsity",
            "max_drop",
            *_MODEL,
            "method",
            "svd_type",
            "epochs",
            *_RUN,
            "resume",
        ),
        "vitcod compress --init-from deit_tiny.pth --data-path imagenet \\\n    --sparsity 0.9 --output-dir out",
    ),
    "sweep": First(
        ("data_path", "sparsities", "methods", *_MODEL, "epochs", *_RUN, *_FOLDER),
        "vitcod sweep --init-from deit_tiny.pth --data-path imagenet \\\n"
        "    --sparsities 0.5 0.8 0.9 --output-dir out",
    ),
    "finetune-dense": First(
        ("init_from", *_MODEL, "num_classes", "data_path", "dataset", *_TRAINING, *_RUN, "resume"),
        "vitcod finetune-dense --model deit_tiny_patch16_224 --init-from timm \\\n"
        "    --data-path pets --epochs 10 --output-dir runs/dense",
    ),
    "finetune-lowrank": First(
        (*_MODEL, "data_path", "svd_type", *_TRAINING, "calibrate_steps", *_RUN, *_FOLDER),
        "vitcod finetune-lowrank --init-from runs/dense/best.safetensors \\\n"
        "    --data-path imagenet --epochs 0 --output-dir runs/lowrank",
    ),
    "dump-attn": First(
        ("data_path", "importance_images", "max_images", "output", *_MODEL, "batch_size", *_RUN, "overwrite"),
        "vitcod dump-attn --checkpoint runs/lowrank/best.safetensors \\\n"
        "    --data-path imagenet --importance-images 256 --output attn.safetensors",
    ),
    "sensitivity": First(
        ("data_path", "sparsities", "per", "method", "attn_map", "images", "output", "plot", *_MODEL, *_RUN),
        "vitcod sensitivity --checkpoint deit_tiny.pth --data-path imagenet \\\n"
        "    --output sensitivity.csv --plot sensitivity.png",
    ),
    "gen-mask": First(
        ("sparsity", "allocate", "min_density", "info_cut", "method", "block", "block_for", "polarize", *_FILE),
        "vitcod gen-mask --attn-map attn.safetensors --sparsity 0.9 --allocate",
    ),
    "polarize": First(
        ("threshold", "order", "output", "format", "overwrite"),
        "vitcod polarize info_0.90.safetensors",
    ),
    "simulate": First(
        ("model", "hardware", "threshold", "sweep", "plot", "output", "overwrite"),
        "vitcod simulate info_0.90.safetensors --plot estimate.png",
    ),
    "finetune-sparse": First(
        ("mask", "data_path", "distill_from", *_TRAINING, "calibrate_steps", *_RUN, *_FOLDER),
        "vitcod finetune-sparse --init-from runs/lowrank/best.safetensors \\\n"
        "    --mask info_0.90.safetensors --data-path imagenet --output-dir runs/sparse",
    ),
    "eval": First(
        ("mask", "against", "features", "data_path", *_MODEL, "split", "results_file", "batch_size", *_RUN),
        "vitcod eval --checkpoint a.safetensors b.safetensors --against dense.pth \\\n    --data-path imagenet",
    ),
    "inspect": First(None, "vitcod inspect runs/sparse/best.safetensors info_0.90.safetensors"),
    "report": First(None, "vitcod report runs/compress"),
    "bench": First(
        ("checkpoint", "mask", *_MODEL, "against", "batch_size", "training", "precision", "threads"),
        "vitcod bench --checkpoint runs/sparse/best.safetensors --against timm",
    ),
    "plot": First(None, "vitcod plot attn.safetensors info_0.90.safetensors"),
    "export": First(
        ("mask", "input", "batch_size", "portable", *_MODEL, "overwrite"),
        "vitcod export --checkpoint runs/sparse/best.safetensors --output model.onnx",
    ),
    "push": First(None, "vitcod push runs/compress OWNER/NAME"),
    "convert": First(None, "vitcod convert published.pth --output ours.safetensors"),
    "models": First(None, "vitcod models 'vit_*patch14*'"),
    "env": First(None, "vitcod env"),
    "demo": First(None, "vitcod demo"),
}
"""By command."""
