"""A process that has imported everything and forks a child for each case: reads names, answers with reports.

``python -m fuzz.worker prepare ASSETS`` makes the whole files; ``python -m fuzz.worker ASSETS SEED`` reads one
case a line.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import sys
import tempfile
import traceback
from dataclasses import asdict
from pathlib import Path

from fuzz.case import Bench, Case, Done, Report
from fuzz.oracle import judge, tree_of
from fuzz.sandbox import run_forked, run_process

PROCESS_EVERY = 97
"""One case in so many runs as a process of its own."""


def run_case(case: Case, seed: int, assets: Path, index: int) -> Report:
    """Make the case, run it, judge it."""
    from fuzz.readers import READERS

    report = Report(str(case), process=index % PROCESS_EVERY == 5)
    home = Path(tempfile.mkdtemp(prefix="case-", dir=assets.parent))
    try:
        folder = home / "here"
        folder.mkdir()
        os.chdir(folder)
        attempt = READERS[case.reader][case.mutation](Bench.of(case, seed, folder, assets))
        report.command = shlex.join(
            os.fsencode(word).decode("utf-8", "backslashreplace")[:300] for word in attempt.words
        )
        report.process = report.process and not attempt.file_limit and not any("\0" in w for w in attempt.words)
        before = tree_of(folder)
        if report.process:
            ran = run_process(attempt.words, folder)
        else:
            ran = run_forked(attempt.words, folder, attempt.file_limit)
        report.seconds, report.megabytes = ran.seconds, ran.megabytes
        done = Done(ran.code, ran.out, ran.err, folder)
        report.said = done.err[-3000:].decode("utf-8", "backslashreplace")
        report.outcome = judge(attempt, done, ran, before, tree_of(folder))
    except AssertionError as error:
        report.outcome, report.problem = "failed", str(error)[:1500] or "assertion"
    except BaseException:
        report.outcome, report.problem = "failed", f"the suite itself: {traceback.format_exc()[-1500:]}"
    finally:
        os.chdir("/")
        if "VITCOD_FUZZ_KEEP" not in os.environ:
            _remove(home)
    return report


def _remove(folder: Path) -> None:
    for parent, folders, _ in os.walk(folder):
        for name in folders:
            path = os.path.join(parent, name)
            if not os.path.islink(path):
                os.chmod(path, 0o700)
    shutil.rmtree(folder, ignore_errors=True)


def main() -> None:
    """See the module."""
    # Their first use is slow, and belongs to no case; what they start must not be running when a case is forked.
    import torch

    import vitcod_cli.api
    import vitcod_cli.cli.app  # noqa: F401

    torch.set_num_threads(1)
    if sys.argv[1] == "prepare":
        from fuzz.assets import make_assets

        make_assets(Path(sys.argv[2]))
        return
    assets, seed = Path(sys.argv[1]), int(sys.argv[2])
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # whatever else is printed is no answer
    _warm_up(assets)
    for line in sys.stdin:
        index, _, name = line.strip().partition(" ")
        answers.write(json.dumps(asdict(run_case(Case.parse(name), seed, assets, int(index)))) + "\n")
        answers.flush()


def _warm_up(assets: Path) -> None:
    """Each command once: what it imports is imported, what is compiled is compiled."""
    import contextlib
    import io

    from fuzz.readers import WARM_UP
    from vitcod_cli.cli.main import main as vitcod

    with tempfile.TemporaryDirectory(dir=assets.parent) as folder:
        os.chdir(folder)
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            for words in WARM_UP:
                vitcod([word.format(assets=assets) for word in words])
        os.chdir("/")


if __name__ == "__main__":
    main()
