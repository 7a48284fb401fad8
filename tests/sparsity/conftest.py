"""Small attention maps, and the command line in this process."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from mask_tools import Cli, MakeMap, Outcome

from vitcod_cli.__main__ import main


@pytest.fixture
def cli(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Cli:
    monkeypatch.chdir(tmp_path)

    def run(*words: object) -> Outcome:
        capfd.readouterr()
        code = main([str(word) for word in words])
        return Outcome(code, *capfd.readouterr())

    return run


@pytest.fixture
def make_map() -> MakeMap:
    """``make_map(blocks, heads, tokens, seed=0, concentration=0.3)``: random rows that sum to 1, float32."""

    def make(
        blocks: int = 3, heads: int = 2, tokens: int = 17, seed: int = 0, concentration: float = 0.3
    ) -> np.ndarray:
        generator = np.random.default_rng(seed)
        rows = generator.dirichlet(np.full(tokens, concentration), size=(blocks, heads, tokens))
        return rows.astype(np.float32)

    return make
