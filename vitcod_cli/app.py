"""The command line: which commands there are, how their options are read and their help is shown."""

from __future__ import annotations

from collections import defaultdict
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup, TyperOption

from vitcod_cli import __version__
from vitcod_cli.commands.config import type_hints
from vitcod_cli.commands.eval import evaluate
from vitcod_cli.commands.options import ARGUMENTS, Command, expand
from vitcod_cli.commands.spelling import canonical
from vitcod_cli.commands.values import as_type
from vitcod_cli.distributed import is_main

_UsageError: type[Exception] = typer.BadParameter.__mro__[1]  # Typer gives it no public name


class VitcodCommand(TyperCommand):
    """A command that also understands the published spelling, and shows its help panel by panel."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Bring the words into our own spelling, then parse them as Typer does."""
        options = [param for param in self.get_params(ctx) if isinstance(param, TyperOption)]
        valued = [option for option in options if not option.is_flag]
        words = canonical(
            args,
            flags={flag for option in options for flag in (*option.opts, *option.secondary_opts)},
            values={flag: option.nargs for option in valued for flag in option.opts},
            repeatable={flag for option in valued if option.multiple for flag in option.opts},
        )
        ctx.meta[ARGUMENTS] = list(words)
        hints = type_hints(ctx)
        for option in options:
            _read_plainly(option, hints.get(option.name, bool))  # of those not ours, --help is a flag
        try:
            return super().parse_args(ctx, words)
        except _UsageError:
            if is_main():
                raise
            raise typer.Exit(2) from None  # every process meets it; rank 0 says it

    def invoke(self, ctx: Any) -> Any:
        """Run the command; say so when Ctrl-C ends it."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            if is_main():
                typer.echo("Interrupted.", err=True)
            raise typer.Exit(130) from None

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """One section a panel. Plain text: Rich's panels are slow to load and narrow at 80 columns."""
        panels: dict[str, list[tuple[str, str]]] = defaultdict(list)
        for param in self.get_params(ctx):
            record = param.get_help_record(ctx)
            if record is not None:
                arguments = param.param_type_name == "argument"
                panel = getattr(param, "rich_help_panel", None) or ("Arguments" if arguments else "Options")
                panels[panel].append(record)
        # Options of no panel are the general ones (--config, --help): last.
        for panel in sorted(panels, key=lambda name: name == "Options"):
            with formatter.section(panel):
                formatter.write_dl(panels[panel])


class VitcodGroup(TyperGroup):
    """The list of commands; its own options are flags."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse as Typer does, without its slow reading of values."""
        for option in self.get_params(ctx):
            _read_plainly(option, bool)
        return super().parse_args(ctx, args)


def _read_plainly(option: Any, hint: Any) -> None:
    """Have Typer convert the values of ``option`` through ``as_type`` instead of pydantic."""

    def process_value(ctx: Any, value: Any) -> Any:
        try:
            value = as_type(value, hint)
        except ValueError as error:
            raise typer.BadParameter(str(error), ctx=ctx, param=option) from error
        return value if option.callback is None else option.callback(ctx, option, value)

    if not option.required:
        option.process_value = process_value


app = typer.Typer(
    cls=VitcodGroup,
    name="vitcod",
    help="Make Vision Transformers sparse and low-rank: the ViTCoD method for DeiT and every plain timm ViT.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _show_version(value: bool) -> None:
    if value:
        typer.echo(f"vitcod {__version__}")
        raise typer.Exit


@app.callback()
def _vitcod(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    pass


def _register(name: str, function: Command, summary: str, *, processes: bool = False) -> None:
    app.command(
        name, cls=VitcodCommand, short_help=summary, context_settings={"help_option_names": ["-h", "--help"]}
    )(expand(function, processes=processes))


_register("eval", evaluate, "Acc@1, Acc@5 and loss of a checkpoint.", processes=True)
