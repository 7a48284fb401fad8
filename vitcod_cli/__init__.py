"""vitcod: make Vision Transformers sparse and low-rank (ViTCoD, HPCA 2023)."""

from vitcod_cli.version import __version__

__all__ = ["__version__"]
