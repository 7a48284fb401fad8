"""``--config FILE.yaml``: option values from a file, between the command line and the defaults."""

from __future__ import annotations

import inspect
from typing import Annotated, Any

import typer

from vitcod_cli.cli.coerce import as_type
from vitcod_cli.cli.streams import say
from vitcod_cli.data.settings import DataSettings
from vitcod_cli.distributed import is_main
from vitcod_cli.errors import VitcodError, did_you_mean, shown
from vitcod_cli.model.settings import ModelSettings
from vitcod_cli.runtime import RuntimeSettings
from vitcod_cli.settings import ABOUT, flag_of, options_of

_SHARED = "--config-shared"


def read_config(context: typer.Context, value: str | None) -> str | None:
    """Typer callback of ``--config``: the file's values become the defaults of this call.

    Raises:
        VitcodError: when the file can't be read, has a key that is no option of the command, or a
            value of the wrong type.
    """
    if value is None or context.resilient_parsing:
        return value
    values = _values(context, value, "--config")
    hints = _hints(context)
    for key, (name, _) in values.items():
        if name not in hints:
            raise VitcodError(_unknown_key(value, key, list(hints), str(context.info_name)))
    context.default_map = {**(context.default_map or {}), **_defaults(context, value, "--config", values)}
    return value


def read_shared_config(context: typer.Context, value: str | None) -> str | None:
    """Typer callback of ``--config-shared``: of another command's file, the model, the data and how to compute.

    Raises:
        VitcodError: when the file can't be read, or has a value of the wrong type.
    """
    if value is None or context.resilient_parsing:
        return value
    shared = {name for group in (ModelSettings, DataSettings, RuntimeSettings) for name in options_of(group)}
    known = shared & _hints(context).keys()
    values = {key: (name, item) for key, (name, item) in _values(context, value, _SHARED).items() if name in known}
    taken = _defaults(context, value, _SHARED, values)
    defaults = {option.name: option.default for option in context.obj}
    changed = [flag_of(name) for name, item in taken.items() if item != defaults.get(name)]
    if is_main():
        say(f"Taken from {value}: {', '.join(changed) or 'nothing that is not the default'}.")
    context.default_map = {**taken, **(context.default_map or {})}  # --config goes first, in whatever order
    return value


def _values(context: typer.Context, path: str, flag: str) -> dict[str, tuple[str, Any]]:
    """By key as it stands in the file, the option's name and the value."""
    from vitcod_cli.artifacts.yaml_file import read_values

    values: dict[str, tuple[str, Any]] = {}
    lines: dict[str, int] = {}
    for line, key, item in read_values(path, flag, skip=ABOUT):
        name = key.replace("-", "_")  # as on the command line
        if name in lines:
            raise VitcodError(
                f"{flag} {path}: {_plain(key)} is given twice (lines {lines[name]} and {line}); give it once."
            )
        lines[name] = line
        if name != ABOUT:
            values[key] = (name, item)
    return values


def _defaults(context: typer.Context, path: str, flag: str, values: dict[str, tuple[str, Any]]) -> dict[str, Any]:
    """The values as their options take them; a null, as a run's file has for what wasn't given, is left out."""
    hints = _hints(context)
    of_files = {option.name for option in context.obj if str(option.info.metavar).endswith("...")}
    return {
        name: _checked(
            [item] if name in of_files and isinstance(item, str) else item, hints[name], f"{flag} {path}: {name}"
        )
        for name, item in values.values()
        if item is not None
    }


def _hints(context: typer.Context) -> dict[str, Any]:
    """The types of the command's own options."""
    general = ("config", "config_shared", "dry_run", "help_all")
    return {name: hint for name, hint in type_hints(context).items() if name not in general}


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


SharedConfigOption = Annotated[
    str | None,
    typer.Option(
        _SHARED,
        metavar="FILE",
        is_eager=True,
        callback=read_shared_config,
        help="Another command's config.yaml, of which model, data and runtime options are taken.",
    ),
]


def _unknown_key(path: str, key: str, names: list[str], command: str) -> str:
    hint = did_you_mean(
        key.replace("-", "_"),
        names,
        f"vitcod {command} --help-all lists the options; of another command's file, {_SHARED} takes what fits.",
    )
    return f"--config {path}: {_plain(key)} is not an option of vitcod {command}; {hint}"


def _checked(value: Any, hint: Any, where: str) -> Any:
    try:
        return as_type(value, hint)
    except ValueError as error:
        raise VitcodError(f"{where} {error}.") from error


def _plain(key: str) -> str:
    """A key for a message: as it stands in the file where it is a name, else quoted and cut short."""
    return key if key.replace("-", "_").isidentifier() and len(key) < 60 else shown(key)
