"""``--config FILE.yaml``: option values from a file, between the command line and the defaults."""

from __future__ import annotations

import inspect
from typing import Annotated, Any

import typer

from vitcod_cli.cli.coerce import as_type
from vitcod_cli.errors import VitcodError, did_you_mean, shown
from vitcod_cli.settings import ABOUT


def read_config(context: typer.Context, value: str | None) -> str | None:
    """Typer callback of ``--config``: the file's values become the defaults of this call.

    Raises:
        VitcodError: when the file can't be read, has a key that is no option of the command, or a
            value of the wrong type.
    """
    if value is None or context.resilient_parsing:
        return value
    from vitcod_cli.artifacts.yaml_file import read_values

    hints = type_hints(context)
    del hints["config"], hints["help_all"]
    of_files = {option.name for option in context.obj if str(option.info.metavar).endswith("...")}
    values: dict[str, Any] = {}
    lines: dict[str, int] = {}
    for line, key, item in read_values(value, "--config", skip=ABOUT):
        name = key.replace("-", "_")  # as on the command line
        if name in lines:
            raise VitcodError(
                f"--config {value}: {_plain(key)} is given twice (lines {lines[name]} and {line}); give it once."
            )
        lines[name] = line
        if name == ABOUT:
            continue
        if name not in hints:
            raise VitcodError(_unknown_key(value, key, list(hints), str(context.info_name)))
        values[name] = item
    context.default_map = {
        # A null, as a run's config.yaml has for what wasn't given, leaves the default.
        key: _checked(
            [item] if key in of_files and isinstance(item, str) else item, hints[key], f"--config {value}: {key}"
        )
        for key, item in values.items()
        if item is not None
    }
    return value


def type_hints(context: typer.Context) -> dict[str, Any]:
    """The type of each option of the context's command, by parameter name."""
    assert context.command.callback is not None
    parameters = inspect.signature(context.command.callback).parameters
    hints = {name: item.annotation for name, item in parameters.items() if name != "context"}
    return hints | {option.name: option.type for option in context.obj}  # Typer is told less of lists of choices


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


def _unknown_key(path: str, key: str, names: list[str], command: str) -> str:
    hint = did_you_mean(key.replace("-", "_"), names, f"vitcod {command} --help-all lists the options.")
    return f"--config {path}: {_plain(key)} is not an option of vitcod {command}; {hint}"


def _checked(value: Any, hint: Any, where: str) -> Any:
    try:
        return as_type(value, hint)
    except ValueError as error:
        raise VitcodError(f"{where} {error}.") from error


def _plain(key: str) -> str:
    """A key for a message: as it stands in the file where it is a name, else quoted and cut short."""
    return key if key.replace("-", "_").isidentifier() and len(key) < 60 else shown(key)
