"""``vitcod sweep``: accuracy over sparsity, as a table, a file and a picture."""

from __future__ import annotations

from vitcod_cli.cli.console import console, print_json, print_result
from vitcod_cli.pipeline.options import SweepOptions


def sweep(options: SweepOptions) -> None:
    """Mask, calibrate and evaluate one model at several sparsities: the curve that papers show.

    Leaves sweep.csv, sweep.json, accuracy.png and accuracy.pdf (of a model without a head features.png and
    features.pdf) in the output folder, and every point as a run of its own; --resume goes on where it ended, with
    further points too.
    """
    from vitcod_cli.pipeline.report import sweep_lines
    from vitcod_cli.pipeline.sweep import TABLE, pictures_of
    from vitcod_cli.pipeline.sweep import sweep as run

    record = run(options, console())
    if options.result.json:
        print_json(record)
        return
    for line in sweep_lines(record):
        print_result(line)
    files = ", ".join((TABLE, *pictures_of(record["results"][0])))
    print_result(f"In {options.output.output_dir}: {files}, and a run for each point.")
