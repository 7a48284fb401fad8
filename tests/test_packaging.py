"""What the package imports is what it asks for."""

from __future__ import annotations

import ast
import re
import sys
from pathlib import Path

import vitcod_cli

if sys.version_info >= (3, 11):
    import tomllib
else:  # pytest brings it along
    import tomli as tomllib

PACKAGE = Path(vitcod_cli.__file__).parent
PROJECT = PACKAGE.parent / "pyproject.toml"

DISTRIBUTIONS = {"PIL": "pillow", "yaml": "pyyaml", "datasets": None, "webdataset": None, "braceexpand": None}
"""Of modules that aren't called like their package; None: for an option whose message names the package."""


def imported() -> set[str]:
    """The top-level modules that the package imports anywhere."""
    names: set[str] = set()
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                names |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                names.add(node.module.partition(".")[0])
    return names - set(sys.stdlib_module_names) - {"vitcod_cli", "__future__"}


def declared() -> set[str]:
    """The packages of ``dependencies`` and of the optional ones that users may install."""
    project = tomllib.loads(PROJECT.read_text(encoding="utf-8"))["project"]
    optional = project["optional-dependencies"]
    lines = [
        *project["dependencies"],
        *(line for name in optional if name not in ("dev", "test") for line in optional[name]),
    ]
    return {re.split(r"[\[<>=!~; ]", line)[0].lower().replace("-", "_") for line in lines}


def test_every_import_is_declared() -> None:
    packages = {DISTRIBUTIONS.get(name, name.lower()) for name in imported()}
    assert packages - {None} <= declared()


def test_every_dependency_is_imported() -> None:
    project = tomllib.loads(PROJECT.read_text(encoding="utf-8"))["project"]
    needed = {re.split(r"[<>=]", line)[0].lower() for line in project["dependencies"]}
    assert needed <= {DISTRIBUTIONS.get(name) or name.lower() for name in imported()}
