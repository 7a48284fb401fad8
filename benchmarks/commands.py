"""Commands that the scripts of this folder type, one process each."""

from __future__ import annotations

import shlex
import subprocess
import sys
from collections.abc import Sequence


def vitcod(words: Sequence[object], *more: str) -> str:
    """What ``vitcod WORDS`` prints; it is shown first, without what is ``more``."""
    shown = [str(word) for word in words]
    print(f"$ {shlex.join(['vitcod', *shown])}", file=sys.stderr, flush=True)
    return python("-m", "vitcod_cli", *shown, *more)


def python(*words: str) -> str:
    """What Python prints; if it fails it has said why, and the script ends, too."""
    done = subprocess.run([sys.executable, *words], check=False, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        sys.exit(done.returncode)
    return done.stdout
