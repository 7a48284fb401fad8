"""The house: a room imports only rooms below it, and neighbours need nothing of each other."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import vitcod_cli

PACKAGE = Path(vitcod_cli.__file__).parent

FLOORS = (
    {"__main__", "cli", "commands"},
    {"attention", "bench", "calibration", "export", "lowrank", "plots", "training"},
    {"masks"},
    {"model"},
    {"artifacts", "data"},
    {"distributed", "errors", "reporting", "runtime", "settings", "__init__"},
)
GROUND = FLOORS[-1]


def floor_of(room: str) -> int:
    return next(floor for floor, rooms in enumerate(FLOORS) if room in rooms)


def imported_rooms(path: Path) -> set[str]:
    """The rooms that a file imports anywhere, in functions and for types too."""
    modules = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module == "vitcod_cli":
            modules |= {f"vitcod_cli.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            modules.add(node.module or "")
    rooms = {module.split(".")[1] for module in modules if module.startswith("vitcod_cli.")}
    return {room for room in rooms if (PACKAGE / room).is_dir() or (PACKAGE / f"{room}.py").is_file()}


def test_every_room_has_its_floor() -> None:
    rooms = {path.name for path in PACKAGE.iterdir() if (path / "__init__.py").is_file()}
    assert rooms <= set().union(*FLOORS)


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_go_downwards(path: Path) -> None:
    own = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    allowed = {own} | {room for room in set().union(*FLOORS) if floor_of(room) > floor_of(own)}
    if own in FLOORS[0] or own in GROUND:
        allowed |= FLOORS[floor_of(own)]
    assert imported_rooms(path) <= allowed
