"""vitcod: make Vision Transformers sparse and low-rank (ViTCoD, HPCA 2023)."""

__version__ = "0.1.0"
