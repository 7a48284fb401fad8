"""``vitcod report``: runs as one HTML page."""

from __future__ import annotations

from vitcod_cli.cli.console import print_path
from vitcod_cli.report.settings import ReportOptions


def report(options: ReportOptions) -> None:
    """Write runs as one HTML page: figures, curves, masks, the exact commands, versions and hashes.

    The page is one file, needs no network, and is good on a phone and on paper. RUN is the folder of compress or
    sweep, of a fine-tuning run, or of several of these.
    """
    from vitcod_cli.report.report import report as run

    print_path(run(options))
