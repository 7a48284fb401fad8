"""The layers: a room imports only rooms below it, and rooms beside each other need nothing of one another."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import vitcod_cli

PACKAGE = Path(vitcod_cli.__file__).parent

LAYERS = (
    {"__init__", "__main__"},
    {"cli", "commands"},
    {"api"},
    {"pipeline"},
    {"steps"},
    {
        "accelerator",
        "attention",
        "bench",
        "calibration",
        "export",
        "inspection",
        "lowrank",
        "plots",
        "report",
        "training",
    },
    {"evaluation", "masks"},
    {"model"},
    {"artifacts", "data"},
    {
        "distributed",
        "errors",
        "machine",
        "place",
        "process_group",
        "reporting",
        "restarts",
        "runtime",
        "settings",
        "signals",
        "version",
    },
)
ROOMS = set().union(*LAYERS)
FREE = ({"cli", "commands"}, LAYERS[-1])
"""Layers whose rooms may import each other."""


def layer_of(room: str) -> int:
    return next(layer for layer, rooms in enumerate(LAYERS) if room in rooms)


def imported_modules(path: Path) -> set[str]:
    """Our modules that a file imports anywhere: in functions, for types, by name (``import_module``) too."""
    modules = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: imports are absolute"
            modules |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Call) and getattr(node.func, "id", getattr(node.func, "attr", "")) in (
            "import_module",
            "__import__",
        ):
            name = node.args[0]
            text = name.values[0] if isinstance(name, ast.JoinedStr) else name
            assert isinstance(text, ast.Constant), f"{path}: the module's name must begin with its room"
            modules.add(str(text.value))
    return {module for module in modules if module.startswith("vitcod_cli")}


def room_of(module: str) -> str:
    parts = module.split(".")
    return parts[1] if len(parts) > 1 and parts[1] in ROOMS else "__init__"


def own_room(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def test_every_room_has_its_layer() -> None:
    assert {own_room(path) for path in PACKAGE.rglob("*.py")} <= ROOMS


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_go_downwards(path: Path) -> None:
    own = own_room(path)
    allowed = {own} | {room for room in ROOMS if layer_of(room) > layer_of(own)}
    allowed |= next((rooms for rooms in FREE if own in rooms), set())
    assert {room_of(module) for module in imported_modules(path)} <= allowed


def test_imports_by_name_are_seen(tmp_path: Path) -> None:
    file = tmp_path / "sly.py"
    file.write_text("from importlib import import_module\nimport_module(f'vitcod_cli.commands.{x}')\n")
    assert {room_of(module) for module in imported_modules(file)} == {"commands"}
    file.write_text("import importlib\nimportlib.import_module('vitcod_cli.cli.app')\n")
    assert {room_of(module) for module in imported_modules(file)} == {"cli"}


def test_no_module_is_part_of_a_circle() -> None:
    """Imports inside functions count: a circle through them is a circle for the reader."""
    paths = {
        str(path.relative_to(PACKAGE.parent).with_suffix("")).replace("/", "."): path
        for path in PACKAGE.rglob("*.py")
    }
    paths = {name.removesuffix(".__init__"): path for name, path in paths.items()}

    def module_of(name: str) -> str:
        while name not in paths:
            name = name.rpartition(".")[0]
        return name

    graph = {
        name: {module_of(module.rstrip(".")) for module in imported_modules(path)} - {name, "vitcod_cli"}
        for name, path in paths.items()
    }
    done: set[str] = set()

    def visit(name: str, trail: tuple[str, ...]) -> None:
        assert name not in trail, " -> ".join((*trail[trail.index(name) :], name))
        if name not in done:
            for other in graph[name]:
                visit(other, (*trail, name))
            done.add(name)

    for name in graph:
        visit(name, ())
