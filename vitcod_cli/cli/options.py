"""From the options of a command, one settings class, to a Typer callback that takes them one by one.

A command is a function of one parameter, whose type says its options::

    def evaluate(options: EvalOptions) -> None: ...

:func:`flatten` gives Typer one flat parameter for each option and hands the function its settings.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import MISSING
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

import typer

from vitcod_cli.cli.coerce import bare
from vitcod_cli.cli.completion import model_names
from vitcod_cli.cli.config import ConfigOption, SharedConfigOption
from vitcod_cli.cli.console import print_result
from vitcod_cli.cli.dry_run import DryRunOption
from vitcod_cli.cli.dry_run import dry_run as lines_of_dry_run
from vitcod_cli.cli.launch import check_agreement, check_count, is_launched, launch
from vitcod_cli.cli.streams import reserved_stdout
from vitcod_cli.distributed import is_main
from vitcod_cli.place import check_environment
from vitcod_cli.settings import Option, Setting, Settings, options_of

Command = Callable[[Any], None]

_COMPLETED = {"model": model_names, "patterns": model_names}
"""What the shell offers for an option's value, by the option's name."""

ARGUMENTS = "vitcod_cli.arguments"
"""Key of the context's ``meta`` that holds the arguments behind the command's name, for ``launch``."""


HELP_ALL = "vitcod_cli.help_all"
"""Key of the context's ``meta`` that is there when all of the help is wanted."""


def _show_all(context: typer.Context, value: bool) -> None:
    if value and not context.resilient_parsing:
        context.meta[HELP_ALL] = True
        typer.echo(context.get_help())
        raise typer.Exit


HelpAllOption = Annotated[
    bool, typer.Option("--help-all", is_eager=True, callback=_show_all, help="Show all options and exit.")
]


def options_type(function: Command) -> type[Settings]:
    """The settings class that ``function``, a command, takes."""
    hints = get_type_hints(function)
    (name,) = inspect.signature(function).parameters
    options: type[Settings] = hints[name]
    return options


def flatten(function: Command) -> Callable[..., None]:
    """The Typer callback of a command: one keyword parameter for each of its options, and ``--config``."""
    options = options_type(function)
    parameters = [_parameter(option) for option in options_of(options).values()]
    parameters.append(_keyword("config", None, ConfigOption))
    parameters.append(_keyword("config_shared", None, SharedConfigOption))
    parameters.append(_keyword("dry_run", False, DryRunOption))
    parameters.append(_keyword("help_all", False, HelpAllOption))
    parameters.append(_keyword("context", inspect.Parameter.empty, typer.Context))
    function = reserved_stdout()(function)  # what libraries print meanwhile is no result

    def command(
        *,
        context: typer.Context,
        config: str | None,
        config_shared: str | None,
        dry_run: bool,
        help_all: bool,
        **values: Any,
    ) -> None:
        check_environment()
        settings = options.from_flat(values)
        if dry_run:
            if is_main():
                for line in lines_of_dry_run(str(context.info_name), settings):
                    print_result(line)
            return
        processes = values.get("nproc_per_node", 1)
        if is_launched():
            source = context.get_parameter_source("nproc_per_node")
            if source is not None and source.name == "COMMANDLINE":  # one from a file gives way to torchrun
                check_agreement(processes)
            function(settings)
        elif processes > 1:
            check_count(processes, values["device"])
            launch(processes, [str(context.info_name), *context.meta[ARGUMENTS]])
        else:
            function(settings)

    command.__name__, command.__doc__, command.__module__ = (
        function.__name__,
        function.__doc__,
        function.__module__,
    )
    command.__annotations__ = {}
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    return command


def _keyword(name: str, default: Any, annotation: Any) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


def _parameter(option: Option) -> inspect.Parameter:
    """What Typer makes an option, or an argument, of. Ranges are left to the settings class: exit code 1."""
    info, hint, complete = option.info, option.type, _COMPLETED.get(option.name)
    if info.positional:
        argument = typer.Argument(help=info.help, metavar=info.metavar, autocompletion=complete)
        default = inspect.Parameter.empty if option.default is MISSING else option.default
        return _keyword(option.name, default, Annotated[hint, argument])
    flag = info.flag
    if bare(hint) is bool and "/" not in flag and not flag.startswith("--no-"):
        flag = f"{flag}/--no-{flag.removeprefix('--')}"
    help = info.help
    if range := _range_for_help(info):
        help = f"{help} ({range})"
    default, show_default = option.default, info.show_default
    if info.hint is not None:  # Typer's own way of requiring an option ends in its words and exit code 2
        default, show_default, help, hint = None, False, f"{help} [required]", hint | None
    metavar = info.metavar
    if choices := _choices_of_list(hint):  # Typer has no lists of them; ours are checked when they are read
        hint, metavar = list[str], metavar or f"[{'|'.join(choices)}]"
    declaration = typer.Option(
        flag,
        help=help,
        metavar=metavar,
        show_default=show_default,
        rich_help_panel=info.panel,
        hidden=info.hidden,
        autocompletion=complete,
    )
    return _keyword(option.name, None if default is MISSING else default, Annotated[hint, declaration])


def _choices_of_list(hint: Any) -> tuple[str, ...]:
    """The choices of an option that takes several of them; none for other options."""
    if get_origin(bare(hint)) is not list:
        return ()
    (item,) = get_args(bare(hint))
    return get_args(item) if get_origin(item) is Literal else ()


def _range_for_help(info: Setting) -> str:
    """The bounds that are worth a word: not those that only keep nonsense out."""
    if info.minimum is not None and info.maximum is not None and info.maximum < 1e6:
        return f"{info.minimum:g} to {info.maximum:g}"
    if info.below is not None and info.above is not None:
        return f"above {info.above:g} and below {info.below:g}"
    if info.below is not None:
        return f"{info.minimum:g} to below {info.below:g}"
    return ""
