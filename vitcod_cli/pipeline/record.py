"""``compress.json`` and ``sweep.json``: which stages are done, of what they were made, and what came of them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from vitcod_cli.artifacts.files import atomic_path, sha256_of
from vitcod_cli.distributed import is_main, on_main
from vitcod_cli.errors import VitcodError
from vitcod_cli.reporting import without_secrets
from vitcod_cli.settings import Settings, flag_of, options_of

Row = dict[str, Any]
"""What is known of one model, plain values."""

_LARGEST = 64 << 20
_HARMLESS = frozenset(
    {
        *("output_dir", "output", "overwrite", "resume", "json", "save_every", "log_to"),
        *("workers", "threads", "nproc_per_node", "max_bad_images", "eval_batch_size"),
    }
)
"""Options that the outcome of a stage doesn't depend on."""


@dataclass
class Stage:
    """One step that was run, or has been begun.

    Attributes:
        command: the command line that does the same; empty where there is none.
        output: the file that it makes, below the folder.
        identity: what the outcome depends on, by option.
        sha256: of the output, when it is finished; else empty.
        seconds: that it took.
    """

    name: str
    command: str
    output: str
    identity: dict[str, Any]
    sha256: str = ""
    seconds: float = 0.0


@dataclass
class Record:
    """The file, and what is in it; the same on all processes, of which the main one writes.

    Attributes:
        about: command line, versions, machine, model, data.
        results: one row a model; the first is the dense one.
    """

    path: Path
    about: dict[str, Any]
    stages: list[Stage] = field(default_factory=list)
    results: list[Row] = field(default_factory=list)

    @classmethod
    def open(cls, path: Path, about: Mapping[str, Any], *, resumes: bool) -> Record:
        """A new record, or, where one goes on, with the stages and results of the file.

        Raises:
            VitcodError: if the file can't be read, or is something else.
        """
        record = cls(path, dict(about))
        if resumes:
            record.stages, record.results = on_main(lambda: _read(path))
        return record

    def finished(self, stage: Stage) -> bool:
        """Whether the stage is done, and its output is as it was then.

        Raises:
            VitcodError: if it was done, or begun, with other options or files.
        """
        known = next((old for old in self.stages if old.name == stage.name), None)
        if known is None:
            return False
        others = sorted(
            name
            for name in {**known.identity, **stage.identity}
            if known.identity.get(name) != stage.identity.get(name)
        )
        if others:
            raise VitcodError(
                f"--resume: {known.output} was made with another {', '.join(others)}; give the same options and "
                "files as then, name another --output-dir, or start afresh with --overwrite."
            )
        path = self.path.parent / known.output
        return bool(known.sha256) and on_main(lambda: path.is_file() and sha256_of(path) == known.sha256)

    def begin(self, stage: Stage) -> None:
        """Note that the stage is being run; the row of what it made before goes."""
        self.results = [row for row in self.results if row["checkpoint"] != stage.output]
        self.stages = [*(old for old in self.stages if old.name != stage.name), stage]
        self.write()

    def forget(self, stage: Stage) -> None:
        """Note that the stage was not to be had after all."""
        self.stages.remove(stage)
        self.write()

    def finish(self, stage: Stage, seconds: float) -> None:
        """Note that the stage is done."""
        stage.sha256 = on_main(lambda: sha256_of(self.path.parent / stage.output))
        stage.seconds = round(seconds, 1)
        self.write()

    def result(self, name: str) -> Row | None:
        """The row of that name."""
        return next((row for row in self.results if row["name"] == name), None)

    def add_result(self, row: Row) -> None:
        """Add a row, in place of one of the same name."""
        self.results = [*(old for old in self.results if old["name"] != row["name"]), row]
        self.write()

    def to_dict(self) -> dict[str, Any]:
        """Plain values: everything."""
        return {**self.about, "stages": [asdict(stage) for stage in self.stages], "results": self.results}

    def write(self) -> None:
        """Write the file, whole or not at all."""
        if is_main():
            with atomic_path(self.path) as temporary:
                temporary.write_text(json.dumps(self.to_dict(), indent=2) + "\n", encoding="utf-8")


def identity_of(options: Settings, files: Mapping[str, str]) -> dict[str, Any]:
    """What the outcome of a step depends on: its options by flag, and the checksums of the files it reads.

    Args:
        files: by the name of the option that names them; what is no file (``timm``) stands for itself.
    """
    known = options_of(type(options))
    values = {
        known[name].info.flag.split("/")[0]: value
        for name, value in options.flat().items()
        if name not in _HARMLESS and name not in files
    }
    checksums = on_main(
        lambda: {
            flag_of(name): sha256_of(path) if Path(path).is_file() else without_secrets(path)
            for name, path in files.items()
        }
    )
    identity: dict[str, Any] = json.loads(json.dumps({**values, **checksums}))
    return identity


def _read(path: Path) -> tuple[list[Stage], list[Row]]:
    """Stages and results; none where there is no file."""
    if not path.exists():
        return [], []
    try:
        if path.stat().st_size > _LARGEST:
            raise ValueError("it is too large")
        content = json.loads(path.read_text(encoding="utf-8"))
        stages = [Stage(**stage) for stage in content["stages"]]
        results = [dict(row) for row in content["results"]]
        texts = [text for stage in stages for text in (stage.name, stage.command, stage.output, stage.sha256)]
        texts += [row[key] for row in results for key in ("name", "checkpoint")]
        if not all(isinstance(text, str) for text in texts) or any(
            not isinstance(stage.identity, dict) or Path(stage.output).is_absolute() or ".." in stage.output
            for stage in stages
        ):
            raise ValueError("its stages are no stages")
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise VitcodError(
            f"--resume: {path} can't be gone on from ({error}); start afresh with --overwrite."
        ) from error
    return stages, results
