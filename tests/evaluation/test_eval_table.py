"""The table of several models."""

from __future__ import annotations

import numpy as np
import pytest
from rich.cells import cell_len

from vitcod_cli.evaluation.accuracy import Evaluation
from vitcod_cli.evaluation.paired import paired_difference
from vitcod_cli.evaluation.report import EvaluationReport, ModelReport


def report_of(name: str, right: bool, loss: float, labelled: bool = True) -> ModelReport:
    hits, none = np.full(50, right), np.full(50, not right)
    losses = np.zeros(50)
    difference = paired_difference(hits, none, losses, losses) if labelled else None
    figure = 100.0 * right
    return ModelReport(name, {"sparsity": 1.0}, Evaluation(figure, figure, loss, 50), 100.0, loss, difference)


@pytest.mark.parametrize("labelled", [True, False])
@pytest.mark.parametrize("loss", [0.0, 12.3456, 1e9])
def test_it_has_80_columns_at_most(labelled: bool, loss: float) -> None:
    names = ["x" * 200, f"{'y' * 100}1{'y' * 100}", f"{'y' * 100}2{'y' * 100}", "模" * 100]
    models = [report_of(name, place % 2 == 0, loss, labelled) for place, name in enumerate(names)]
    lines = EvaluationReport(models, alone=False, labelled=labelled, about={}).lines()
    assert max(map(cell_len, lines)) <= 80
    heads = {line.split()[0] for line in lines[2 : 2 + len(names)]}
    assert len(heads) == len(names)
    assert ("Acc@1" in lines[0]) is labelled
    assert ("<0.001" in lines[2]) is labelled
    ends = {cell_len(line) for line in lines[:2]}
    assert len(ends) == 1, "the rule is as wide as the table"
