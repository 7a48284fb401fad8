"""``--config FILE.yaml``: option values from a file, between the command line and the defaults."""

from __future__ import annotations

import difflib
import inspect
from typing import Annotated, Any

import typer

from vitcod_cli.cli.coerce import as_type
from vitcod_cli.errors import VitcodError
from vitcod_cli.settings import ABOUT


def read_config(context: typer.Context, value: str | None) -> str | None:
    """Typer callback of ``--config``: the file's values become the defaults of this call.

    Raises:
        VitcodError: when the file can't be read, has a key that is no option of the command, or a
            value of the wrong type.
    """
    if value is None or context.resilient_parsing:
        return value
    hints = type_hints(context)
    del hints["config"]
    # YAML allows any key; ours are option names, with dashes or underscores.
    values = {str(key).replace("-", "_"): item for key, item in _load(value).items() if key != ABOUT}
    for key in values:
        if key not in hints:
            raise VitcodError(_unknown_key(value, key, list(hints), str(context.info_name)))
    context.default_map = {
        # A null, as a run's config.yaml has for what wasn't given, leaves the default.
        key: _checked(item, hints[key], f"--config {value}: {key}")
        for key, item in values.items()
        if item is not None
    }
    return value


def type_hints(context: typer.Context) -> dict[str, Any]:
    """The type of each option of the context's command, by parameter name."""
    assert context.command.callback is not None
    parameters = inspect.signature(context.command.callback).parameters
    return {name: item.annotation for name, item in parameters.items() if name != "context"}


ConfigOption = Annotated[
    str | None,
    typer.Option(
        "--config",
        metavar="FILE",
        is_eager=True,
        callback=read_config,
        help="YAML file of option values, such as a run's config.yaml; the command line goes first.",
    ),
]


def _load(path: str) -> dict[Any, Any]:
    import yaml

    try:
        with open(path, encoding="utf-8") as file:
            content = yaml.safe_load(file)
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not a text file"
        raise VitcodError(f"--config {path} can't be read: {reason}.") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" (line {mark.line + 1})" if mark is not None else ""
        raise VitcodError(f"--config {path} is not valid YAML{where}: {_first_line(error)}.") from error
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise VitcodError(f"--config {path} must hold lines like 'epochs: 10', not a {type(content).__name__}.")
    return content


def _first_line(error: Exception) -> str:
    return str(getattr(error, "problem", None) or error).splitlines()[0]


def _unknown_key(path: str, key: str, names: list[str], command: str) -> str:
    close = difflib.get_close_matches(key, names, n=3)
    hint = f"did you mean {' or '.join(close)}?" if close else f"vitcod {command} --help lists the options."
    return f"--config {path}: {key} is not an option of vitcod {command}; {hint}"


def _checked(value: Any, hint: Any, where: str) -> Any:
    try:
        return as_type(value, hint)
    except ValueError as error:
        raise VitcodError(f"{where} {error}.") from error
