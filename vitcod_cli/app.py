"""The command line: which commands there are, how their options are read and their help is shown."""

from __future__ import annotations

from collections import defaultdict
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from vitcod_cli import __version__
from vitcod_cli.commands.eval import evaluate
from vitcod_cli.commands.options import ARGUMENTS, Command, expand
from vitcod_cli.commands.spelling import canonical
from vitcod_cli.distributed import is_main

_UsageError: type[Exception] = typer.BadParameter.__mro__[1]  # Typer gives it no public name


class VitcodCommand(TyperCommand):
    """A command that also understands the published spelling, and shows its help panel by panel."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Bring the words into our own spelling, then parse them as Typer does."""
        params = [param for param in self.get_params(ctx) if param.param_type_name == "option"]
        valued = [param for param in params if not getattr(param, "is_flag", False)]
        words = canonical(
            args,
            flags={flag for param in params for flag in (*param.opts, *param.secondary_opts)},
            with_value={flag for param in valued for flag in param.opts},
            with_values={flag for param in valued if param.multiple for flag in param.opts},
        )
        ctx.meta[ARGUMENTS] = list(words)
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


app = typer.Typer(
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


def _register(name: str, function: Command, *, processes: bool = False) -> None:
    settings = {"help_option_names": ["-h", "--help"]}
    app.command(name, cls=VitcodCommand, context_settings=settings)(expand(function, processes=processes))


_register("eval", evaluate, processes=True)
