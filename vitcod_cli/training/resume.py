"""From where a run goes on, and what is said about it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vitcod_cli.artifacts.files import atomic_path
from vitcod_cli.errors import VitcodError
from vitcod_cli.reporting import Reporter
from vitcod_cli.settings import Settings, settings_of
from vitcod_cli.training.state import FLAG, Position, StateFile, Trained

# What changes neither the weights nor the figures.
_HARMLESS = {
    "save_every",
    "log_to",
    "eval_batch_size",
    "eval_every",
    "max_steps",
    "device",
    "threads",
    "skip_nonfinite",
    "nproc_per_node",
}


def hyper_parameters(*settings: Settings) -> dict[str, Any]:
    """What a run was trained with, by option, as JSON values."""
    return {
        info.flag: _json(getattr(group, name))
        for group in settings
        for name, info in settings_of(type(group)).items()
        if name not in _HARMLESS
    }


def _json(value: Any) -> Any:
    return json.loads(json.dumps(value))


def differences(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """``--lr 0.001 (was 0.0001)`` for each hyper-parameter that isn't what it was."""
    return [
        f"{flag} {value} (was {then[flag]})" for flag, value in now.items() if flag in then and then[flag] != value
    ]


@dataclass(frozen=True)
class Resumption:
    """Reads a run's state back.

    Attributes:
        hyper: :func:`hyper_parameters` of this run.
        order: what the images of each step depend on; a run whose order is another one can only go
            on between epochs.
    """

    file: StateFile
    hyper: Mapping[str, Any]
    order: Mapping[str, Any]
    reporter: Reporter

    def load(self, trained: Trained) -> Position:
        """Put the saved state into ``trained`` and return how far it had come.

        Raises:
            VitcodError: if it can't be read or is another model's.
        """
        if not self.file.exists():
            raise VitcodError(
                f"{FLAG}: {self.file.path} isn't there for this process; --output-dir must be a folder that all "
                "machines of the run share."
            )
        info = self.file.info()
        changed = differences(info["order"], self.order)
        position = Position.from_dict(info["position"])
        back = bool(changed) and not position.between_epochs
        if back:
            info = self.file.info(boundary=True)
            position = Position.from_dict(info["position"])
        trained.load(self.file.tensors(boundary=back), info)
        self._say(info, position, changed, back)
        return position

    def _say(self, info: Mapping[str, Any], position: Position, order: list[str], back: bool) -> None:
        epoch = position.epoch + 1 + position.trained
        where = f"the start of epoch {epoch}"
        if not position.between_epochs:
            where = f"step {position.step} of epoch {epoch}"
        if back:
            self.reporter.warn(
                f"Each step sees other images than before: {', '.join(order)}. So the run goes back to {where}; "
                "the steps after it are trained again."
            )
        self.reporter.info(f"Going on from {where} ({self.file.path}).")
        changed = differences(info["hyper_parameters"], self.hyper)
        if not back:
            changed = [text for text in order if text not in changed] + changed
        if changed:
            self.reporter.warn(f"{FLAG} with other hyper-parameters than the run had: {', '.join(changed)}.")


def keep_epochs(path: Path, epochs: int) -> None:
    """Keep of a ``metrics.jsonl`` the lines of the first ``epochs`` epochs; the others are trained again.

    Lines without an epoch (of a calibration, say) stay; a line that a killed process left
    unfinished goes.
    """
    if not path.exists():
        return
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    kept = [line for line in lines if _is_kept(line, epochs)]
    if kept != lines:
        with atomic_path(path) as temporary:
            temporary.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")


def _is_kept(line: str, epochs: int) -> bool:
    try:
        figures = json.loads(line)
    except ValueError:
        return False
    return not isinstance(figures, dict) or not isinstance(figures.get("epoch"), int) or figures["epoch"] <= epochs
