"""Writing a figure as PNG, PDF or SVG: the same figure gives the same bytes."""

from __future__ import annotations

import os
from typing import Any

from vitcod_cli.artifacts.files import atomic_path

_NO_DATE = {"png": {}, "pdf": {"CreationDate": None}, "svg": {"Date": None}}


def save_figure(figure: Any, path: str | os.PathLike[str], kind: str, **options: Any) -> None:
    """Write a matplotlib Figure atomically.

    Args:
        kind: png, pdf or svg. In the latter two images stay as they are, pixel by pixel: a reader who enlarges
            them finds every token, where matplotlib would resample them to the size of their panel.
        options: of ``savefig``.

    Raises:
        VitcodError: if the file can't be written; what was there is untouched.
    """
    import matplotlib

    if kind != "png":
        for image in (image for axes in figure.axes for image in axes.images):
            image.set_interpolation("none")
    # Names inside an SVG are random without a salt.
    with atomic_path(path) as temporary, matplotlib.rc_context({"svg.hashsalt": "vitcod"}):
        figure.savefig(temporary, format=kind, metadata=_NO_DATE[kind], **options)
