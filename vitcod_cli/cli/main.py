"""Run a command line, and turn what goes wrong into one sentence and an exit code."""

from __future__ import annotations

import logging
import os
import signal
import sys
import warnings
from collections.abc import Sequence
from typing import Any

from vitcod_cli.cli.stop import StopSignals
from vitcod_cli.cli.streams import ReaderGoneError, guard, say
from vitcod_cli.distributed import is_main
from vitcod_cli.errors import Interrupted, VitcodError, shown
from vitcod_cli.machine import is_out_of_memory
from vitcod_cli.process_group import first_to_report
from vitcod_cli.reporting import visible
from vitcod_cli.settings import LONGEST

_LONGEST_MESSAGE = 1000
"""Characters of a message about wrong usage: it repeats what was typed."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line ``argv`` (default: this process's) and return its exit code.

    0: done; 1: the user's mistake, a broken input, or a result that can't be shown, told in one sentence
    on stderr; 2: wrong usage; 128 + n: stopped by signal n, such as 130 by Ctrl-C and 143 by SIGTERM.
    A defect of ours keeps its traceback.
    """
    stop, restore = StopSignals(), guard()
    try:
        stop.install()
        try:
            code = _outcome(sys.argv[1:] if argv is None else list(argv), stop)
        finally:
            stop.end()
    except BaseException as error:
        # Whatever a signal has become on its way up: imports turn it into an ImportError of their own.
        number = stop.received or getattr(error, "sigval", None)  # of torchrun's SignalException
        if number is None:
            raise
        code = 128 + int(number)
        if is_main():
            say("Interrupted." if number == signal.SIGINT else f"Stopped by {signal.Signals(number).name}.")
    finally:
        if argv is not None:  # else the process ends, and its last words go through them too
            stop.restore()
            restore()
    return code


def _outcome(arguments: list[str], stop: StopSignals) -> int:
    if not is_main():
        # Else what timm and torch log would be said by every process.
        logging.getLogger().addHandler(logging.NullHandler())
    with warnings.catch_warnings():
        if not sys.warnoptions:
            # Third parties' advice to programmers is noise to users; PYTHONWARNINGS brings it back.
            warnings.simplefilter("ignore")
        try:
            _check_current_folder()
            _check_lengths(arguments)
            code = _run(arguments)
            if stop.received is not None and code:
                raise Interrupted(code)
            return code
        except ReaderGoneError:
            return 1
        except VitcodError as error:
            if stop.received is not None:
                raise
            if first_to_report():
                say(f"Error: {error}")
            return 1
        except KeyboardInterrupt:
            if is_main():
                say("Interrupted.")
            return 130
        except Exception as error:
            if stop.received is not None or not is_out_of_memory(error):
                raise
            if first_to_report():
                say(
                    "Error: There is not enough memory: lower --batch-size, or take a smaller model or image size."
                )
            return 1


def _check_lengths(arguments: Sequence[str]) -> None:
    """What is longer than any path is pasted by mistake; usage errors would repeat all of it."""
    for argument in arguments:
        if len(argument) > LONGEST:
            raise VitcodError(f"An argument is longer than {LONGEST} characters ({shown(argument)}); shorten it.")


def _check_current_folder() -> None:
    try:
        os.getcwd()
    except OSError as error:  # removed, most often; MKL would end the process
        raise VitcodError(f"The current folder can't be used ({error.strerror}); change to another.") from error


def _run(arguments: list[str]) -> int:
    from typer.main import get_command

    from vitcod_cli.cli.app import app

    try:
        code = get_command(app).main(arguments, prog_name="vitcod", standalone_mode=False)
    except SystemExit as error:
        if error.code is None or isinstance(error.code, int):
            return error.code or 0
        say(str(error.code))  # sys.exit("text"), as Python itself treats it
        return 1
    except Exception as error:
        if not hasattr(error, "format_message"):  # Click's own, which Typer gives no public name
            raise
        return _usage_error(error)
    return code if isinstance(code, int) else 0


def _usage_error(error: Any) -> int:
    """Say what Typer says, but in lines that only we can break."""
    text = error.message
    if type(error).__name__ == "NoArgsIsHelpError":  # the help, which is our own text
        if is_main():
            for line in text.splitlines():
                say(line)
        return int(error.exit_code)
    error.message = visible(text if len(text) <= _LONGEST_MESSAGE else f"{text[:_LONGEST_MESSAGE]}...")
    if is_main():
        error.show(file=sys.stderr)
    return int(error.exit_code)
