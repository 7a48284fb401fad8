"""From settings dataclasses to Typer options, and back.

A command is a function whose keyword parameters are :class:`~vitcod_cli.settings.Settings` classes
and, where one fits better, plain Typer parameters::

    def evaluate(*, model: ModelSettings, data: DataSettings, json: JsonOption = False) -> None: ...

:func:`expand` gives Typer one flat option per field and hands the function its dataclasses.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import MISSING, Field, fields
from typing import Annotated, Any, get_type_hints

import typer

from vitcod_cli.cli.coerce import bare
from vitcod_cli.cli.config import ConfigOption
from vitcod_cli.cli.launch import ProcessesOption, is_launched, launch
from vitcod_cli.settings import SettingInfo, Settings, setting_info

Command = Callable[..., None]

ARGUMENTS = "vitcod_cli.arguments"
"""Key of the context's ``meta`` that holds the words after the command's name, for ``launch``."""


def expand(function: Command, *, processes: bool = False) -> Command:
    """The Typer callback of a command: one flat parameter for each field of its settings.

    Args:
        function: the command; its parameters must have type hints, and are passed by keyword.
        processes: whether it runs a model, and so takes ``--nproc-per-node``.

    Raises:
        TypeError: when two settings of the command have a field of the same name.
    """
    hints = get_type_hints(function, include_extras=True)
    groups: dict[str, type[Settings]] = {name: hint for name, hint in hints.items() if _is_settings(hint)}
    options = {name: _options_of(group) for name, group in groups.items()}
    parameters: list[inspect.Parameter] = []
    for name, parameter in inspect.signature(function).parameters.items():
        parameters += options.get(name) or [_keyword(name, parameter.default, hints[name])]
    if processes:
        parameters.append(_keyword("nproc_per_node", 1, ProcessesOption))
    parameters.append(_keyword("config", None, ConfigOption))
    parameters.append(_keyword("context", inspect.Parameter.empty, typer.Context))
    names = [parameter.name for parameter in parameters]
    if twice := {name for name in names if names.count(name) > 1}:
        raise TypeError(f"{function.__name__} has several options called {sorted(twice)}")

    def command(*, context: typer.Context, config: str | None, nproc_per_node: int = 1, **values: Any) -> None:
        arguments: dict[str, Any] = {}
        for name, group in groups.items():
            arguments[name] = group(**{option.name: values.pop(option.name) for option in options[name]})
        if nproc_per_node > 1 and not is_launched():
            launch(nproc_per_node, [str(context.info_name), *context.meta[ARGUMENTS]])
        else:
            function(**arguments, **values)

    command.__name__, command.__doc__, command.__module__ = (
        function.__name__,
        function.__doc__,
        function.__module__,
    )
    command.__annotations__ = {}
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    return command


def _is_settings(hint: Any) -> bool:
    return isinstance(hint, type) and issubclass(hint, Settings)


def _keyword(name: str, default: Any, annotation: Any) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


def _options_of(group: type[Settings]) -> list[inspect.Parameter]:
    hints = get_type_hints(group)
    return [
        _option(field, info, hints[field.name])
        for field in fields(group)
        if (info := setting_info(field)) is not None
    ]


def _option(field: Field[Any], info: SettingInfo, hint: Any) -> inspect.Parameter:
    """One Typer option. Ranges are left to the settings class: our words, exit code 1."""
    flag = info.flag
    if bare(hint) is bool and "/" not in flag and not flag.startswith("--no-"):
        flag = f"{flag}/--no-{flag.removeprefix('--')}"
    help = info.help
    if info.minimum is not None and info.maximum is not None and info.maximum < 1e6:
        help = f"{help} ({info.minimum:g} to {info.maximum:g})"
    option = typer.Option(
        flag, help=help, metavar=info.metavar, show_default=info.show_default, rich_help_panel=info.panel
    )
    default = field.default_factory() if field.default_factory is not MISSING else field.default
    return _keyword(field.name, default, Annotated[hint, option])
