"""``vitcod compress``: all four steps in a row, in one folder."""

from __future__ import annotations

from vitcod_cli.cli.console import console, print_json, print_result
from vitcod_cli.pipeline.options import CompressOptions


def compress(options: CompressOptions) -> None:
    """Make a model low-rank and sparse, from weights and a folder of images, in minutes.

    Labels are optional. It is the four steps, each shown as its own command, in one folder; --resume goes on
    where it ended. Prints the plan first and a table of before and after last.
    """
    from vitcod_cli.pipeline.compress import compress_run
    from vitcod_cli.pipeline.report import compress_lines

    record = compress_run(options, console())
    if options.result.json:
        print_json(record)
        return
    for line in compress_lines(record, options.output.output_dir):
        print_result(line)
