"""``python tests/oldest.py``: the lower bounds of pyproject.toml as constraints for pip, one a line."""

from __future__ import annotations

import re
from pathlib import Path

_BOUND = re.compile(r'"([A-Za-z0-9_.-]+)>=([0-9.]+)"')
_TOOLS = ("setuptools", "ruff", "mypy", "tensorboard", "wandb")
"""What builds and checks the package, and what no test imports."""


def constraints(text: str) -> list[str]:
    """``torch==2.8`` for each requirement ``torch>=2.8`` of a pyproject.toml."""
    return sorted({f"{name}=={bound}" for name, bound in _BOUND.findall(text) if name not in _TOOLS})


if __name__ == "__main__":
    project = Path(__file__).resolve().parents[1] / "pyproject.toml"
    print("\n".join(constraints(project.read_text(encoding="utf-8"))))
