"""Names of models for a table: short, and no two alike."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from rich.cells import cell_len, set_cell_size

from vitcod_cli.reporting import visible

_GAP = "..."
_ENDING = ".safetensors"
"""Says little, and takes much room."""


def names_of(pairs: Sequence[tuple[str, str | None]], reference: str | None = None) -> list[str]:
    """Names that tell apart the reference, where there is one, and all ``pairs`` of a checkpoint and a mask.

    They are the last parts of the paths, as many as it takes. Several masks of one checkpoint are called by the
    masks alone.
    """
    by_mask = len(pairs) > 1 and len({checkpoint for checkpoint, _ in pairs}) == 1
    texts = [_text(checkpoint, mask, by_mask) for checkpoint, mask in pairs]
    paths = [Path(text) for text in ([] if reference is None else [reference]) + texts]
    for length in range(1, max(len(path.parts) for path in paths) + 1):
        names = ["/".join(path.parts[-length:]) for path in paths]
        if len(set(names)) == len(names):
            return names
    return [f"{number}: {path.name}" for number, path in enumerate(paths, 1)]


def _text(checkpoint: str, mask: str | None, by_mask: bool) -> str:
    if mask is None:
        return checkpoint
    return mask if by_mask else f"{checkpoint} + {Path(mask).name}"


def distinct(names: Sequence[str], width: int) -> list[str]:
    """``names`` in at most ``width`` columns each, long ones cut in the middle so that they still differ.

    Args:
        names: no two alike.
    """
    shown = [visible(name) for name in names]
    stems = [name.replace(f"{_ENDING} + ", " + ").removesuffix(_ENDING) for name in shown]
    if any(cell_len(name) > width for name in shown) and len(set(stems)) == len(stems):
        shown = stems
    return next(cut for cut in _cuts(shown, width) if len(set(cut)) == len(cut))


def _cuts(names: Sequence[str], width: int) -> Iterator[list[str]]:
    """Ways to cut, the most readable first; the last are numbered, so that one of them will do."""
    room = width - len(_GAP)
    for head in (room // 3, room // 2, 0, room):
        yield [_cut(name, head, room - head, width) for name in names]
    long = [name for name in names if cell_len(name) > width]
    start = _alike(long)
    end = _alike([name[start:][::-1] for name in long])
    # What they differ in stands in the middle of long names: some of it, and what comes behind.
    for extra in (end, 0):
        middles = {name: name[start : len(name) - end + extra] for name in long}
        yield [
            _cut(_GAP + middles[name], width - len(_GAP), 0, width) if name in middles else name for name in names
        ]
    marks = [f"{number} " for number in range(1, len(names) + 1)]
    yield [
        mark + _cut(name, 0, room - len(mark), width - len(mark)) for mark, name in zip(marks, names, strict=True)
    ]


def _alike(names: Sequence[str]) -> int:
    """Characters that all of ``names`` begin with."""
    places = enumerate(zip(*names, strict=False))
    shortest = min(map(len, names), default=0)
    return next((place for place, characters in places if len(set(characters)) > 1), shortest)


def _cut(name: str, head: int, tail: int, width: int) -> str:
    """``name``, or its first ``head`` and last ``tail`` columns where it is wider than ``width``."""
    if cell_len(name) <= width:
        return name
    return f"{set_cell_size(name, head)}{_GAP}{set_cell_size(name[::-1], tail)[::-1]}"
