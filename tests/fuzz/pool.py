"""The side of the tests: workers that run the cases, two at a time, and what came of it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from fuzz.case import Case, Report
from fuzz.sandbox import SECONDS

WORKERS = 2
TESTS = Path(__file__).resolve().parents[1]


def _python(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "fuzz.worker", *arguments]


def _environment(assets: Path) -> dict[str, str]:
    paths = os.pathsep.join([str(TESTS), str(TESTS.parent), *filter(None, [os.environ.get("PYTHONPATH")])])
    quiet = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
    quiet["PATH"] = os.pathsep.join([str(assets / "bin"), os.environ.get("PATH", os.defpath)])
    return {**os.environ, "PYTHONPATH": paths, **quiet}


def run_cases(cases: Sequence[Case], seed: int, folder: Path) -> list[Report]:
    """Run ``cases`` on files in ``folder``; a worker that dies makes its case fail, and is replaced."""
    assets = folder / "assets"
    assets.mkdir()
    subprocess.run(_python("prepare", str(assets)), check=True, env=_environment(assets))
    pending, reports, lock = iter(list(enumerate(cases))), [], threading.Lock()

    def work() -> None:
        worker = _Worker(assets, seed)
        while True:
            with lock:
                item = next(pending, None)
            if item is None:
                worker.close()
                return
            report = worker.run(*item)
            if report is None:
                worker.close()
                report = Report(str(item[1]), "failed", "the worker died")
                worker = _Worker(assets, seed)
            with lock:
                reports.append(report)

    threads = [threading.Thread(target=work) for _ in range(min(WORKERS, len(cases)))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return reports


class _Worker:
    def __init__(self, assets: Path, seed: int) -> None:
        self._process = subprocess.Popen(
            _python(str(assets), str(seed)),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=_environment(assets),
        )

    def run(self, index: int, case: Case) -> Report | None:
        """The report of ``case``, or None if the worker died of it."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        # The worker itself stops a child that takes too long; this is for a worker that hangs.
        watchdog = threading.Timer(6 * SECONDS, self._process.kill)
        watchdog.start()
        try:
            self._process.stdin.write(f"{index} {case}\n")
            self._process.stdin.flush()
            return Report(**json.loads(self._process.stdout.readline()))
        except (ValueError, OSError):
            return None
        finally:
            watchdog.cancel()

    def close(self) -> None:
        """Let it end."""
        assert self._process.stdin is not None
        with suppress(OSError):
            self._process.stdin.close()
        self._process.wait()
