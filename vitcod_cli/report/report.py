"""``vitcod report``: read the runs, write the page."""

from __future__ import annotations

from pathlib import Path

from vitcod_cli.artifacts.files import atomic_path, free_path
from vitcod_cli.errors import VitcodError
from vitcod_cli.report.page import page
from vitcod_cli.report.settings import ReportOptions
from vitcod_cli.report.sources import read_source

FILE = "report.html"
_OURS = b"Made by vitcod "


def report(options: ReportOptions) -> Path:
    """Write the page of the runs that ``options`` name; returns its path.

    A page of ours is replaced; another file only with ``overwrite``.

    Raises:
        VitcodError: if a run can't be read, or the page can't be written.
    """
    path = _target(options)
    sources = [source for run in options.runs for source in read_source(run)]
    text = page(sources, options.title)
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return path


def _target(options: ReportOptions) -> Path:
    """Where the page goes, once it is known to be free."""
    first = Path(options.runs[0])
    path = (
        Path(options.output) if options.output is not None else (first if first.is_dir() else first.parent) / FILE
    )
    if not first.exists():
        raise VitcodError(f"RUN {first} does not exist; name the folder of a run.")
    return free_path(path, options.overwrite or _is_ours(path), inputs=options.runs)


def _is_ours(path: Path) -> bool:
    try:
        with open(path, "rb") as file:
            return _OURS in file.read()
    except OSError:
        return False
