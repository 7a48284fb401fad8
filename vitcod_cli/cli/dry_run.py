"""``--dry-run``: what a command would do with its options, without doing it."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from typing import Annotated, Any

import typer

from vitcod_cli.errors import VitcodError
from vitcod_cli.reporting import visible
from vitcod_cli.settings import Settings, options_of

READ = frozenset(
    {
        *("init_from", "checkpoint", "distill_from", "teacher", "against", "weights", "source", "sources"),
        *(
            "files",
            "runs",
            "mask",
            "masks",
            "attn_map",
            "data_path",
            "calibrate_path",
            "class_map",
            "hardware",
            "image",
        ),
    }
)
WRITTEN = frozenset({"output", "output_dir", "npz", "plot", "results_file"})
"""Options that name files and folders, of all commands."""

DryRunOption = Annotated[
    bool,
    typer.Option(
        "--dry-run",
        help="Print the options as they are understood, as a file for --config, and what would be read and "
        "written; do nothing.",
    ),
]


def dry_run(command: str, settings: Settings) -> list[str]:
    """Lines of YAML that, given as ``--config``, mean the same call; comments say what is there.

    Raises:
        VitcodError: if a file or folder that would be read isn't there.
    """
    import yaml

    values = settings.flat()
    lines = [f"# vitcod {command} --dry-run: nothing has been read or written."]
    for name, path in _paths(settings, READ, values):
        if not os.path.exists(path) and not _is_elsewhere(name, path, values):
            flag = options_of(type(settings))[name].info.flag
            raise VitcodError(f"{flag} {path} does not exist; check the path.")
        lines.append(f"# reads  {visible(path)}{_size(path)}")
    written = WRITTEN - {"output_dir"} if values.get("output") is not None else WRITTEN
    for _, path in _paths(settings, written, values):
        lines.append(f"# writes {visible(path)}{_state(path)}")
    own_name = options_of(type(settings))["output"].info.show_default if "output" in values else False
    if values.get("output") is None and isinstance(own_name, str):
        lines.append(f"# writes a file: {own_name}")
    plain = {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}
    return [*lines, *yaml.safe_dump(plain, sort_keys=False, allow_unicode=True).splitlines()]


def _paths(settings: Settings, names: frozenset[str], values: dict[str, Any]) -> Iterator[tuple[str, str]]:
    for name in options_of(type(settings)):
        value = values[name] if name in names else None
        for path in value if isinstance(value, (list, tuple)) else [value]:
            if isinstance(path, str):
                yield name, path


def _is_elsewhere(name: str, path: str, values: Mapping[str, Any]) -> bool:
    """Whether it is no file of this machine, or not yet: an address, a name of timm's, a download."""
    from vitcod_cli.artifacts.download import is_url
    from vitcod_cli.artifacts.hub import is_hub

    if path == "timm" or is_url(path) or is_hub(path):
        return True
    if name in ("teacher", "distill_from"):
        from vitcod_cli.model.build import is_known_model

        return is_known_model(path)
    return name == "data_path" and bool(values.get("download"))


def _size(path: str) -> str:
    if not os.path.isfile(path):
        return ""
    size = os.path.getsize(path)
    return f" ({size / 1e6:,.1f} MB)" if size >= 1e5 else f" ({size / 1e3:,.1f} kB)"


def _state(path: str) -> str:
    if os.path.isdir(path):
        return " (is there, and not empty)" if os.listdir(path) else " (is there)"
    return " (exists)" if os.path.lexists(path) else ""
