"""``vitcod`` and ``python -m vitcod_cli``."""

from __future__ import annotations

import sys

TYPE_CHECKING = False  # importing typing takes a while, in which Ctrl-C would end in a traceback
if TYPE_CHECKING:
    from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line ``argv`` (default: this process's) and return its exit code."""
    try:
        from vitcod_cli.cli.main import main as run

        return run(argv)
    except KeyboardInterrupt:  # while importing; later it is taken care of
        if sys.stderr is not None:
            print("Interrupted.", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
