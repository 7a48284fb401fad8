"""Runs the cases once a session, and says at its end how many of which kind there were."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from fuzz.case import READ, REFUSED, Case, Report
from fuzz.pool import run_cases

CASES = int(os.environ.get("VITCOD_FUZZ_CASES", "3000"))
SEED = int(os.environ.get("VITCOD_FUZZ_SEED", "0"))
ONE = os.environ.get("VITCOD_FUZZ_CASE")
"""Space for underscores in the name of a reader may be left: ``map npy/claims/3``."""

_summary: list[str] = []


@pytest.fixture(scope="session")
def reports() -> Iterator[list[Report]]:
    """What became of every case."""
    from fuzz.readers import plan

    cases = [Case.parse(ONE)] if ONE else plan(CASES)
    # Not tmp_path: below a folder that only root may enter, files that are no longer root's can't be tried.
    folder = Path(tempfile.mkdtemp(prefix="vitcod-fuzz-"))
    start = time.monotonic()
    try:
        reports = run_cases(cases, SEED, folder)
        _summary.extend(_table(reports, time.monotonic() - start))
        yield reports
    finally:
        if "VITCOD_FUZZ_KEEP" not in os.environ:
            shutil.rmtree(folder, ignore_errors=True)


def _table(reports: list[Report], seconds: float) -> list[str]:
    """Counts by reader and mutation: refused, read right, failed."""
    counts = Counter((*Case.parse(report.case)[:2], report.outcome) for report in reports)
    totals = Counter(report.outcome for report in reports)
    processes = sum(report.process for report in reports)
    lines = [
        f"{len(reports)} cases of seed {SEED} in {seconds:.0f} s, {processes} in processes of their own: "
        f"{totals[REFUSED]} refused, {totals[READ]} read right, {totals['failed']} failed",
        f"memory {max(r.megabytes for r in reports):.0f} MB, longest {max(r.seconds for r in reports):.1f} s, "
        "by reader and mutation, refused + read right (! failed):",
    ]
    for reader in dict.fromkeys(Case.parse(report.case).reader for report in reports):
        cells = []
        for mutation in dict.fromkeys(m for r, m, _ in counts if r == reader):
            refused, read, failed = (counts[reader, mutation, outcome] for outcome in (REFUSED, READ, "failed"))
            cells.append(f"{mutation} {refused}+{read}" + (f"!{failed}" if failed else ""))
        lines.append(f"  {reader}: {', '.join(cells)}")
    return lines


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """The counts, whether all went well or not."""
    if _summary:
        terminalreporter.section("fuzz")
        for line in _summary:
            terminalreporter.write_line(line)
