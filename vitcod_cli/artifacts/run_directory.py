"""The folder of one run: its config, metrics and checkpoints, and the state that ``--resume`` reads."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vitcod_cli.artifacts import metrics_file
from vitcod_cli.artifacts.files import atomic_path, remove_leftovers
from vitcod_cli.artifacts.output_folder import (
    OutputSettings,
    check_filled,
    check_output,
    lock_folder,
    make_folder,
)
from vitcod_cli.artifacts.run_files import (
    BEST,
    CALIBRATION,
    CONFIG,
    LAST,
    METRICS,
    STATE,
    TABLE,
    check_files,
    check_replaceable,
    remove_file,
    remove_run,
)
from vitcod_cli.artifacts.run_lock import RunLock
from vitcod_cli.artifacts.safetensors_file import open_safetensors
from vitcod_cli.distributed import is_main, on_main
from vitcod_cli.errors import VitcodError
from vitcod_cli.reporting import Reporter
from vitcod_cli.restarts import is_restart_of, launches, restarted


@dataclass
class RunDirectory:
    """An opened run folder, locked against other runs until :meth:`close`. Only the main process writes to it.

    What a run has left that this one replaces stays until the first new file is whole: :meth:`begin`.

    Attributes:
        resumes: whether the run goes on from the state in the folder, the same in every process. It
            does when there is one and ``--resume`` was given, or torchrun or SLURM has restarted the
            run that saved it. What would be thrown away then (a calibration, say) need not be computed.
        resumes_calibration: whether it goes on from the calibration in the folder, which ended before
            there was a state.
        launches: what :func:`~vitcod_cli.restarts.launches` says, on the main process; goes into
            the metadata of the files that a run can go on from.
        provenance: how the run's checkpoints are made, JSON values.
    """

    path: Path
    resumes: bool = False
    resumes_calibration: bool = False
    launches: Mapping[str, str] = field(default_factory=dict)
    provenance: Mapping[str, Any] = field(default_factory=dict)
    _sources: Mapping[str, str | None] = field(default_factory=dict)
    _lock: RunLock | None = None
    _made: bool = False
    _begun: bool = False
    _config: dict[str, Any] | None = None
    _lines: list[bytes] = field(default_factory=list)

    @classmethod
    def open(
        cls, settings: OutputSettings, reporter: Reporter, sources: Mapping[str, str | None] | None = None
    ) -> RunDirectory:
        """Make or enter the folder that ``settings`` name, and lock it; all processes of a run do it together.

        A folder that isn't empty is entered with ``resume`` and, with ``overwrite``, emptied of what
        a run writes (other files are left alone) by :meth:`begin`. A run that torchrun or SLURM has
        restarted goes on in its folder whatever ``settings`` say.

        Args:
            sources: the files that the run reads, by option.

        Raises:
            VitcodError: if the folder can't be made or written to, another run is using it, it isn't empty
                and neither ``resume`` nor ``overwrite`` is set, or a source would be deleted.
        """
        check_output(settings)
        run = cls(Path(settings.output_dir), _sources=sources or {})
        run.resumes, run.resumes_calibration = on_main(lambda: run._enter(settings, reporter))
        if settings.resume and run._starts:
            reporter.info(f"There is no saved state in {run.path}: starting from the beginning.")
        return run

    def __enter__(self) -> RunDirectory:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let other runs in; a folder that was made for nothing goes."""
        if self._lock is not None:
            self._lock.release()
            self._lock = None
            if self._made and not self._begun:
                with suppress(OSError):
                    self.path.rmdir()

    @property
    def _starts(self) -> bool:
        """Whether nothing in the folder is gone on from."""
        return not (self.resumes or self.resumes_calibration)

    def _enter(self, settings: OutputSettings, reporter: Reporter) -> tuple[bool, bool]:
        """On the main process: lock the folder, and see what the run can go on from."""
        self._made = make_folder(self.path)
        self._lock = lock_folder(self.path, self._made, reporter, wait=restarted())
        try:
            check_files(self.path)
            self.launches = launches()
            saved = [self.path / name for name in (STATE, CALIBRATION)]
            same = restarted() and any(is_restart_of(_launches_of(path)) for path in saved)
            check_filled(self.path, settings, same)
            remove_leftovers(self.path)
            resumes, calibration = ((settings.resume or same) and path.is_file() for path in saved)
            if not (resumes or calibration):
                check_replaceable(self.path, self._sources)
            elif not os.access(self.path / METRICS, os.W_OK) and (self.path / METRICS).exists():
                raise VitcodError(f"{self.path / METRICS} can't be written to; change its permissions.")
        except BaseException:
            self.close()
            raise
        return resumes, calibration and not resumes

    def start_anew(self) -> None:
        """Leave out the calibration in the folder: it is replaced like anything else of an earlier run.

        Raises:
            VitcodError: if a file that the run reads would be deleted.
        """
        on_main(lambda: check_replaceable(self.path, self._sources))
        self.resumes_calibration = False

    def begin(self) -> None:
        """Remove what an earlier run has left, and write what this one has held back: config and metrics.

        Called when a new file to go on from is whole, just before it takes its place (``before_replace``
        of :func:`atomic_path`), and when a saved state has been read. All but the first call only see
        that the folder is still this run's.

        Raises:
            VitcodError: if something can't be written (then the earlier run is untouched), or another run
                has taken the folder over.
        """
        if not is_main():
            return
        self.check()
        if self._begun:
            return
        with ExitStack() as written:  # before anything goes: the disk may be full
            if self._config is not None:
                _write_synced(written.enter_context(atomic_path(self.path / CONFIG)), _yaml(self._config))
            if self._starts:
                if self._lines:
                    metrics = written.enter_context(atomic_path(self.path / METRICS))
                    _write_synced(metrics, b"".join(self._lines))
                remove_run(self.path)
        self._begun = True
        self._write_table()

    def check(self) -> None:
        """Raise a VitcodError if the folder is no longer this run's, before it writes there."""
        if self._lock is not None:
            self._lock.check()

    @property
    def last(self) -> Path:
        """The checkpoint of the last epoch."""
        return self.path / LAST

    @property
    def best(self) -> Path:
        """The checkpoint with the highest Acc@1, or with the least error of the features."""
        return self.path / BEST

    @property
    def state(self) -> Path:
        """What ``--resume`` needs."""
        return self.path / STATE

    @property
    def calibration(self) -> Path:
        """The blocks that a calibration has finished; gone when there is a state."""
        return self.path / CALIBRATION

    def write_config(self, config: dict[str, Any]) -> None:
        """Write ``config.yaml``, everything the run was started with, as soon as the run has begun."""
        self._config = config

    def log(self, **metrics: Any) -> None:
        """Append one line to ``metrics.jsonl``, in place of half a line that a killed process left.

        Before a new run has begun, lines are held back.
        """
        if not is_main():
            return
        line = metrics_file.line_of(metrics)
        if self._starts and not self._begun:
            self._lines.append(line)
            return
        self.check()
        path = self.path / METRICS
        try:
            metrics_file.append(path, line)
        except OSError as error:
            raise VitcodError(
                f"Can't write {path} ({error.strerror}); mend that (free some space, say) and go on with --resume."
            ) from error
        if "epoch" in metrics:
            self._write_table()

    def _write_table(self) -> None:
        """The epochs again as ``metrics.csv``."""
        metrics_file.write_table(self.path / METRICS, self.path / TABLE)

    def rewrite_metrics(self, lines: Iterable[dict[str, Any]]) -> None:
        """Replace ``metrics.jsonl`` by ``lines``: what a run that goes on has logged so far.

        Raises:
            VitcodError: if it can't be written.
        """
        if is_main():
            self.check()
            with atomic_path(self.path / METRICS) as temporary:
                temporary.write_bytes(b"".join(map(metrics_file.line_of, lines)))

    def drop_calibration(self) -> None:
        """Remove the finished part of a calibration: there is a state to go on from."""
        if is_main():
            self.check()
            remove_file(self.calibration)

    def keep_epochs(self, epochs: int) -> None:
        """Keep in ``metrics.jsonl`` the lines of the first ``epochs`` epochs; the others are trained again.

        Lines without an epoch (of a calibration, say) stay; a line that a killed process left
        unfinished goes.
        """
        path = self.path / METRICS
        try:
            metrics_file.keep_epochs(path, epochs)
            self._write_table()
        except OSError as error:
            raise VitcodError(f"{path} can't be read ({error.strerror}); move it away.") from error


def _launches_of(path: Path) -> object:
    """Which launch has saved the state or calibration ``path``; None if there is none that can be read."""
    if not path.is_file():
        return None
    try:
        with open_safetensors(path, flag="--output-dir") as file:
            return file.info.get("launches")
    except VitcodError:  # whoever wants to go on from it will be told
        return None


def _yaml(config: dict[str, Any]) -> bytes:
    import yaml

    return yaml.safe_dump(config, sort_keys=False, allow_unicode=True).encode()


def _write_synced(path: Path, content: bytes) -> None:
    """Write so that a full disk shows here."""
    with open(path, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
