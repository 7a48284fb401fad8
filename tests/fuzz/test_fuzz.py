"""Every reader against every kind of damage: one sentence or a right result, nothing left behind.

``VITCOD_FUZZ_CASE='map npy/claims/3' pytest tests/fuzz`` runs one case; ``VITCOD_FUZZ_SEED`` and
``VITCOD_FUZZ_CASES`` draw others; with ``VITCOD_FUZZ_KEEP=1`` the files of the cases stay.
"""

from __future__ import annotations

from collections import Counter

import pytest

from fuzz.case import READ, REFUSED, Case, Report
from fuzz.conftest import CASES, ONE, SEED
from fuzz.readers import READERS

pytestmark = pytest.mark.slow

SHOWN = 15


@pytest.mark.parametrize("reader", [Case.parse(ONE).reader] if ONE else [*READERS])
def test_reader(reports: list[Report], reader: str) -> None:
    """Every case of the reader ends as it should."""
    mine = [report for report in reports if Case.parse(report.case).reader == reader]
    failed = [report for report in mine if report.problem is not None]
    told = "\n".join(
        f"VITCOD_FUZZ_SEED={SEED} VITCOD_FUZZ_CASE='{report.case}': {report.problem}\n    vitcod {report.command}"
        for report in failed[:SHOWN]
    )
    assert mine
    assert not failed, f"{len(failed)} of {len(mine)} cases failed:\n{told}"


@pytest.mark.skipif(ONE is not None or CASES < 2000, reason="only some of the cases are run")
def test_the_cases_are_what_they_promise(reports: list[Report]) -> None:
    """As many as promised, of all kinds; every reader refuses some and reads some; some run as processes."""
    cases = Counter(Case.parse(report.case)[:2] for report in reports)
    outcomes = Counter((Case.parse(report.case).reader, report.outcome) for report in reports)
    assert len(reports) == CASES
    assert all(cases[reader, mutation] >= 3 for reader, makes in READERS.items() for mutation in makes)
    assert all(outcomes[reader, outcome] for reader in READERS for outcome in (REFUSED, READ))
    assert sum(report.process for report in reports) >= 20
