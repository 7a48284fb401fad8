"""What must be true of every case: one sentence or a right result, nothing left behind, in time and in memory."""

from __future__ import annotations

import hashlib
import os
import stat
import unicodedata
from collections.abc import Sequence
from pathlib import Path

from fuzz.case import READ, REFUSED, Attempt, Done
from fuzz.sandbox import MEGABYTES, Ran

LONGEST = 2500
"""Characters of a sentence that somebody still reads."""

Tree = dict[bytes, tuple[str, int, str]]


def tree_of(folder: Path) -> Tree:
    """Everything below ``folder``: kind, permissions and content, by path. Opens regular files only."""
    tree: Tree = {}
    pending = [os.fsencode(folder)]
    while pending:
        for entry in os.scandir(pending.pop()):
            status = entry.stat(follow_symlinks=False)
            if stat.S_ISREG(status.st_mode):
                with open(entry.path, "rb") as file:
                    content = hashlib.sha256(file.read()).hexdigest()
            else:
                content = repr(os.readlink(entry.path)) if entry.is_symlink() else ""
            kind = str(stat.S_IFMT(status.st_mode))
            tree[os.path.relpath(entry.path, os.fsencode(folder))] = (kind, status.st_mode, content)
            if entry.is_dir(follow_symlinks=False):
                pending.append(entry.path)
    return tree


def judge(attempt: Attempt, done: Done, ran: Ran, before: Tree, after: Tree) -> str:
    """The outcome of a case that ended as it should: refused, or read right.

    Raises:
        AssertionError: saying what is wrong.
    """
    err, out = done.err.decode("utf-8", "replace"), done.out.decode("utf-8", "replace")
    assert not ran.hung, f"hung for {ran.seconds:.0f} s: {_place(err)}"
    assert "Traceback" not in err + out, f"traceback: {_last_line(err)} [{_place(err)}]"
    assert done.code in (0, 1, 2), f"exit code {done.code}: {_last_line(err)}"
    assert "NETWORK" not in err, "asked for the network"
    assert ran.megabytes <= MEGABYTES, f"took {ran.megabytes:.0f} MB"
    _check_text("stdout", _without_paths(done.out, attempt.outputs))
    _check_text("stderr", done.err)
    if done.code != 0:
        _check_refusal(done.code, out, err)
        assert after == before, f"a refusal changed files: {_differences(before, after)}"
        assert attempt.refusable, f"refused what is right: {_last_line(err)}"
        return REFUSED
    assert not any(line.startswith("Error: ") for line in err.splitlines()), f"an error, but exit code 0: {err}"
    assert attempt.check is not None, "read what had to be refused"
    _check_files(attempt, before, after)
    attempt.check(done)
    return READ


def _without_paths(out: bytes, outputs: Sequence[str]) -> bytes:
    """stdout without the paths asked for: they are for programs, byte for byte, as those of ``ls`` in a pipe."""
    for name in outputs:
        out = out.replace(os.fsencode(name), b"")
    return out


def _check_text(name: str, stream: bytes) -> None:
    try:
        text = stream.decode("utf-8")
    except UnicodeDecodeError as error:
        raise AssertionError(f"{name} is not UTF-8: {stream[error.start : error.start + 20]!r}") from None
    control = {c for c in text if c != "\n" and (unicodedata.category(c) in ("Cc", "Zl", "Zp") or c in _BIDI)}
    assert not control, f"control characters on {name}: {sorted(control)!r}"


_BIDI = "\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
"""What turns the direction of text, and so what a line seems to say."""


def _check_refusal(code: int, out: str, err: str) -> None:
    lines = err.splitlines()
    errors = [line for line in lines if line.startswith("Error: ")]
    assert len(errors) == 1, f"{len(errors)} errors: {err[-300:]!r}"
    assert lines[-1] == errors[0], f"said something behind its error: {lines[-1]!r}"
    assert len(errors[0]) <= LONGEST, f"an error of {len(errors[0])} characters: {errors[0][:200]}"
    assert errors[0].endswith((".", "?", ")", "!")) or code == 2, f"not a sentence: {errors[0]!r}"
    assert out == "", f"refused, but wrote on stdout: {out[:200]!r}"


def _check_files(attempt: Attempt, before: Tree, after: Tree) -> None:
    outputs = {os.fsencode(name) for name in attempt.outputs}
    new = {path for path in after if path not in before and path.split(b"/")[0] not in outputs}
    assert not new, f"left {sorted(new)}"
    lost = {path for path in before if path not in after and path.split(b"/")[0] not in outputs}
    assert not lost, f"removed {sorted(lost)}"
    changed = {p for p in before if p in after and before[p] != after[p] and p.split(b"/")[0] not in outputs}
    assert not changed, f"changed {sorted(changed)}"
    temporary = [path for path in after if b".vitcod-" in path and path not in before]
    assert not temporary, f"left {temporary}"


def _differences(before: Tree, after: Tree) -> str:
    new = sorted(path for path in after if path not in before)
    lost = sorted(path for path in before if path not in after)
    changed = sorted(path for path in before if path in after and before[path] != after[path])
    return f"new {new[:5]}, lost {lost[:5]}, changed {changed[:5]}"


def _last_line(err: str) -> str:
    lines = [line for line in err.splitlines() if line.strip()]
    return lines[-1][:300] if lines else "nothing on stderr"


def _place(err: str) -> str:
    """The innermost line of ours in a traceback."""
    frames = [line.strip() for line in err.splitlines() if "vitcod_cli" in line and "File " in line]
    # faulthandler tells the newest frame first, a traceback the oldest.
    frames = frames if "most recent call first" not in err else frames[::-1]
    return frames[-1][-120:] if frames else "?"
