"""The command line: which commands there are, how their options are read and their help is shown."""

from __future__ import annotations

import re
from collections import defaultdict
from functools import cache
from importlib import import_module
from typing import Annotated, Any, NamedTuple

import typer
from typer.core import TyperCommand, TyperGroup, TyperOption
from typer.main import get_command

from vitcod_cli.cli.coerce import as_type
from vitcod_cli.cli.config import type_hints
from vitcod_cli.cli.first_screen import FIRST, First
from vitcod_cli.cli.options import ARGUMENTS, HELP_ALL, Command, flatten, options_type
from vitcod_cli.cli.orphans import end_with_parent
from vitcod_cli.cli.spelling import normalizer, option_without_value, several_values
from vitcod_cli.distributed import is_main
from vitcod_cli.errors import VitcodError
from vitcod_cli.settings import options_of
from vitcod_cli.version import __version__


class Entry(NamedTuple):
    """A command: its function in ``commands/``, and its line in the list."""

    function: str
    summary: str


# A command's module is imported when the command is called for: the others cost nothing.
COMMANDS = {
    "compress": Entry("compress.compress", "All steps in one, from weights to a sparse model."),
    "sweep": Entry("sweep.sweep", "Accuracy over sparsity, in a table and a plot."),
    "finetune-dense": Entry("finetune_dense.finetune_dense", "Train or fine-tune the plain model."),
    "finetune-lowrank": Entry(
        "finetune_lowrank.finetune_lowrank", "Step 1: Q and K pass through a head auto-encoder."
    ),
    "dump-attn": Entry("dump_attn.dump_attn", "Step 2: the mean attention map of every head."),
    "sensitivity": Entry("sensitivity.sensitivity", "How much each block, or head, minds being pruned."),
    "gen-mask": Entry("gen_mask.gen_mask", "Step 3: a fixed sparse mask from that map."),
    "polarize": Entry("polarize.polarize", "For accelerators: the mask with its dense keys first."),
    "simulate": Entry("simulate.simulate", "What a mask buys on the paper's accelerator."),
    "finetune-sparse": Entry("finetune_sparse.finetune_sparse", "Step 4: recover accuracy under the mask."),
    "eval": Entry("eval.evaluate", "Acc@1, Acc@5 and loss of a checkpoint."),
    "inspect": Entry("inspect.inspect", "What a file is and what is in it."),
    "report": Entry("report.report", "Runs as one HTML page."),
    "bench": Entry("bench.bench", "Time, memory and arithmetic of a model on this machine."),
    "plot": Entry("plot.plot", "Pictures of attention maps and masks."),
    "export": Entry("export.export", "The model as a torch.export or ONNX program, or for timm."),
    "push": Entry("push.push", "Upload a model and its card to the Hugging Face Hub."),
    "convert": Entry("convert.convert", "Published checkpoints, maps and masks to ours, and back."),
    "models": Entry("models.models", "Which of timm's models can be treated."),
    "env": Entry("env.env", "Versions and hardware, for a bug report."),
    "demo": Entry("demo.demo", "All of it on handwritten digits, in three minutes."),
}

PANELS = (
    *(
        "Arguments",
        "Model",
        "Mask",
        "Order",
        "Accelerator",
        "Program",
        "Measurement",
        "Calibration",
        "Data",
        "Augmentation",
        "Recipe",
    ),
    *("Runtime", "Output", "Options"),
)
"""The panels of the help, in the order that they are shown in; what every command has (--help) comes last."""

_HELP_FLAGS = {"help_option_names": ["-h", "--help"]}
_UsageError: type[Exception] = typer.BadParameter.__mro__[1]  # Typer gives it no public name


class VitcodCommand(TyperCommand):
    """A command whose options may have several values, and whose help is shown panel by panel."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Give each of several values an option of its own, then parse as Typer does."""
        assert ctx.token_normalize_func is not None
        arguments = several_values(args, ctx.obj, ctx.token_normalize_func)
        ctx.meta[ARGUMENTS] = list(arguments)
        options = arguments[: arguments.index("--")] if "--" in arguments else arguments
        if sum(option.partition("=")[0] == "--config" for option in options) > 1:
            raise VitcodError("--config is given twice, and the first file would count for nothing; give it once.")
        hints = type_hints(ctx)
        for param in self.get_params(ctx):
            if isinstance(param, TyperOption):
                _read_plainly(param, hints.get(param.name, bool))  # of those not ours, --help is a flag
        forgotten = option_without_value(arguments, ctx.obj, ctx.token_normalize_func)
        try:
            if forgotten is not None:
                raise _UsageError(f"Option '{forgotten}' requires an argument and is followed by an option.", ctx)
            return super().parse_args(ctx, arguments)
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

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """All of it with ``--help-all``, else the first screen: what people use, and an example."""
        if ctx.meta.get(HELP_ALL):
            super().format_help(ctx, formatter)
            return
        first = FIRST.get(str(ctx.info_name), First(None, ""))
        self.format_usage(ctx, formatter)
        formatter.write_paragraph()
        with formatter.indentation():
            formatter.write_text(str(self.help).partition("\n\n")[0])
        if first.example:
            with formatter.section("Example"):
                formatter.write("".join(f"  {line}\n" for line in first.example.splitlines()))
        records = self._first_records(ctx, first.options)
        with formatter.section("Options"):
            formatter.write_dl(records, col_max=24)
        count = sum(param.get_help_record(ctx) is not None for param in self.get_params(ctx))
        if count > len(records):
            formatter.write(f"\nvitcod {ctx.info_name} --help-all shows all {count} options, and more.\n")

    def _first_records(self, ctx: Any, names: tuple[str, ...] | None) -> list[tuple[str, str]]:
        """Arguments and required options, then those of ``names``, or all."""
        params = {param.name: param for param in self.get_params(ctx)}
        own = {option.name: option for option in ctx.obj}
        needed = [name for name, option in own.items() if option.info.hint is not None or option.info.positional]
        others = [name for name in own if name not in needed] if names is None else names
        records = [params[name].get_help_record(ctx) for name in (*needed, *others)]
        return [_shortly(*record) for record in records if record is not None]

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """One section a panel. Plain text: Rich's panels are slow to load and narrow at 80 columns."""
        panels: dict[str, list[tuple[str, str]]] = defaultdict(list)
        for param in self.get_params(ctx):
            record = param.get_help_record(ctx)
            if record is not None:
                general = "Options" if isinstance(param, TyperOption) else "Arguments"
                panels[getattr(param, "rich_help_panel", None) or general].append(record)
        for panel in sorted(panels, key=PANELS.index):
            with formatter.section(panel):
                formatter.write_dl(panels[panel])


def _shortly(name: str, help: str) -> tuple[str, str]:
    """An option for the first screen: without its negation, its first sentence, and its default or need."""
    text, bracket, end = help.partition("  [")
    if text.endswith("[required]"):
        text, bracket, end = text.removesuffix("[required]").rstrip(), "  [", "required]"
    text = re.split(r"(?<=\w)[.;] |(?<=\))[.;] ", text)[0].rstrip(".") + "."
    flag = name.partition(" / ")[0] if "--no-" in name else name
    if end.startswith("default: no-") or (flag != name and end.startswith("default: (")):
        bracket = end = ""
    return flag, f"{text}{bracket}{end}"


class VitcodGroup(TyperGroup):
    """The list of commands."""

    def __init__(self, **attributes: Any) -> None:
        super().__init__(**attributes)
        self.commands = dict.fromkeys(COMMANDS)  # type: ignore[assignment]  # names, for suggestions

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """The command of that name, or None."""
        return _load(cmd_name) if cmd_name in COMMANDS else None

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """The commands and their summaries, without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, entry.summary) for name, entry in COMMANDS.items()])

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse as Typer does, but read the group's own options, all flags, plainly."""
        for option in self.get_params(ctx):
            _read_plainly(option, bool)
        return super().parse_args(ctx, args)


@cache
def _load(name: str) -> Any:
    """The Typer command of ``COMMANDS[name]``."""
    entry = COMMANDS[name]
    module, function = entry.function.split(".")
    command = getattr(import_module(f"vitcod_cli.commands.{module}"), function)
    return get_command(typer_app(name, command, entry.summary))


def typer_app(name: str, function: Command, summary: str = "") -> typer.Typer:
    """A Typer app of one command, which calls ``function`` with its options."""
    options = list(options_of(options_type(function)).values())
    context_settings = {**_HELP_FLAGS, "token_normalize_func": normalizer(options), "obj": options}
    single = typer.Typer(add_completion=False, rich_markup_mode=None)
    single.command(name, cls=VitcodCommand, short_help=summary, context_settings=context_settings)(
        flatten(function)
    )
    return single


def _read_plainly(option: Any, hint: Any) -> None:
    """Have Typer convert the values of ``option`` through ``as_type``.

    The one place where we reach into Typer: it converts through pydantic, a ``parser=`` of our own too,
    and importing pydantic takes longer than a whole ``gen-mask``.
    """

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
    context_settings=_HELP_FLAGS,
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
    end_with_parent()
