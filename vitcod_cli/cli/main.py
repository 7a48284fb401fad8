"""Run a command line, and turn what goes wrong into one sentence and an exit code."""

from __future__ import annotations

import logging
import os
import sys
import warnings
from collections.abc import Sequence

from vitcod_cli.distributed import first_to_report, is_main
from vitcod_cli.errors import VitcodError


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line ``argv`` (default: this process's) and return its exit code.

    0: done; 1: the user's mistake or a broken input, told in one sentence on stderr; 2: wrong
    usage; 130 / 143: stopped by Ctrl-C / SIGTERM. A defect of ours keeps its traceback.
    """
    if not is_main():
        # Else what timm and torch log would be said by every process.
        logging.getLogger().addHandler(logging.NullHandler())
    with warnings.catch_warnings():
        if not sys.warnoptions:
            # Third parties' advice to programmers is noise to users; PYTHONWARNINGS brings it back.
            warnings.simplefilter("ignore")
        try:
            code = _run(sys.argv[1:] if argv is None else list(argv))
            sys.stdout.flush()
            return code
        except VitcodError as error:
            if first_to_report():
                print(f"Error: {error}", file=sys.stderr, flush=True)
            return 1
        except KeyboardInterrupt:
            if is_main():
                print("Interrupted.", file=sys.stderr, flush=True)
            return 130
        except BrokenPipeError:
            # Whoever read our output has gone; point stdout elsewhere so that its last flush is quiet too.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 1


def _run(arguments: list[str]) -> int:
    from typer.main import get_command

    from vitcod_cli.cli.app import app

    try:
        get_command(app).main(arguments, prog_name="vitcod")
    except SystemExit as error:
        if error.code is None or isinstance(error.code, int):
            return error.code or 0
        print(error.code, file=sys.stderr, flush=True)  # sys.exit("text"), as Python itself treats it
        return 1
    return 0
