"""What the tests of every room share: small models, small images, the command line as a process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from command_line import Cli, MakeMap, Outcome
from PIL import Image

from vitcod_cli.__main__ import main
from vitcod_cli.artifacts.model_config import ModelConfig

ROOT = Path(__file__).resolve().parents[1]

# Models here are far too small for several threads to pay.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# A shell's background job ignores Ctrl-C, and so would all that the tests start and interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)

RunCli = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real weights, pictures and golden files that lies beside the checkout."""
    path = ROOT.parent / "shared"
    if not path.is_dir():
        pytest.skip("the shared folder with real weights and golden files is not beside the checkout")
    return path


@pytest.fixture
def tiny_config() -> ModelConfig:
    """A DeiT of 2 blocks, 3 heads and 17 tokens, for 5 classes."""
    return ModelConfig(
        model="deit_tiny_patch16_224",
        num_classes=5,
        img_size=(32, 32),
        model_kwargs={"patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 3},
    )


@pytest.fixture(scope="session")
def image_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random JPEGs in the ImageNet layout: 5 classes, 20 images in train/, 13 in val/. Don't write into it."""
    root, random = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    for split, count in (("train", 20), ("val", 13)):
        for index in range(count):
            path = root / split / f"class{index % 5}" / f"{index:02}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(random.integers(0, 256, (40, 48, 3), dtype=np.uint8)).save(path)
    return root


@pytest.fixture
def run_cli(tmp_path: Path) -> RunCli:
    """``run_cli("eval", "--json", KEY="value")``: the command in a process of its own, in ``tmp_path``.

    Keyword arguments are environment variables; ``timeout`` is seconds.
    """

    def run(*arguments: object, timeout: float = 120, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "vitcod_cli", *map(str, arguments)],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **environment},
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )

    return run


@pytest.fixture
def cli(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Cli:
    """``cli("eval", "--json")``: the command in this process, quick, in ``tmp_path``."""
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
