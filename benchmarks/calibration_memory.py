"""Memory and time of a calibration over the number of pictures and the model's size; tokens in memory or a file.

    python benchmarks/calibration_memory.py --model deit_tiny_patch16_224 --pictures 256 1024

Random weights and pictures, one crop each, a few steps a block: what grows with the pictures is the passes over
all of them. Each case is a process of its own. "own" is what only the process has (its peak, every 20 ms); pages
of a file that are in memory count as "file", and the system takes them back when it needs them.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table


class Peaks(threading.Thread):
    """The most memory that this process has had: its own, and of files; MiB."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.own = self.file = 0.0
        self.done = threading.Event()

    def run(self) -> None:
        """Look every 20 ms."""
        while not self.done.wait(0.02):
            lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
            kib = {
                name: int(rest.split()[0])
                for name, _, rest in (line.partition(":") for line in lines)
                if "kB" in rest
            }
            self.own, self.file = max(self.own, kib["RssAnon"] / 1024), max(self.file, kib["RssFile"] / 1024)


def child(name: str, pictures: int, place: str, steps: int, folder: str) -> dict[str, float]:
    """One calibration; seconds and peaks."""
    import torch

    from vitcod_cli.artifacts.model_config import ModelConfig
    from vitcod_cli.calibration import token_store
    from vitcod_cli.calibration.blockwise import calibrate
    from vitcod_cli.calibration.settings import CalibrationSettings
    from vitcod_cli.data.calibration import CalibrationImages
    from vitcod_cli.model.build import build_model, default_img_size
    from vitcod_cli.model.preprocessing import preprocess_of
    from vitcod_cli.reporting import QUIET
    from vitcod_cli.runtime import RuntimeSettings, start
    from vitcod_cli.steps.setup import dense_copy

    if place == "file":
        token_store.available_memory = lambda: 0  # type: ignore[attr-defined]
    with start(RuntimeSettings(device="cpu")) as runtime:
        teacher = build_model(ModelConfig(model=name, num_classes=1000, img_size=default_img_size(name)))
        student, preprocess = dense_copy(teacher), preprocess_of(teacher)
        with torch.no_grad():
            for parameter in student.parameters():
                parameter.mul_(1 + 0.05 * torch.randn_like(parameter))
        shape = (pictures, *preprocess.input_size)
        images = CalibrationImages(
            torch.randint(256, shape, dtype=torch.uint8), preprocess, runtime.device, pictures
        )
        settings = CalibrationSettings(calibrate_steps=steps, calibrate_crops=1)
        peaks, begun, worked = Peaks(), time.monotonic(), time.process_time()
        peaks.start()
        calibrate(
            student,
            teacher,
            images,
            settings,
            scope="block",
            runtime=runtime.for_training,
            reporter=QUIET,
            folder=Path(folder),
        )
        seconds, cpu = time.monotonic() - begun, time.process_time() - worked
        peaks.done.set()
        peaks.join()
    return {"seconds": seconds, "cpu": cpu, "own": peaks.own, "file": peaks.file}


def main() -> None:
    """All cases; a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="deit_tiny_patch16_224")
    parser.add_argument("--pictures", type=int, nargs="+", default=[256, 1024])
    parser.add_argument("--steps", type=int, default=2, help="of each block")
    parser.add_argument("--folder", default=tempfile.gettempdir(), help="for the file")
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        pictures, place = options.child
        print(json.dumps(child(options.model, int(pictures), place, options.steps, options.folder)))
        return
    table = Table("pictures", "tokens in", "s", "CPU s", "own MiB", "file MiB", title=options.model)
    for pictures in options.pictures:
        for place in ("memory", "file"):
            command = [sys.executable, __file__, "--model", options.model, "--steps", str(options.steps)]
            command += ["--folder", options.folder, "--child", str(pictures), place]
            found = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)
            seconds = (f"{found['seconds']:,.1f}", f"{found['cpu']:,.1f}")
            figures = (*seconds, f"{found['own']:,.0f}", f"{found['file']:,.0f}")
            table.add_row(f"{pictures:,}", place, *figures)
    Console(width=90).print(table)


if __name__ == "__main__":
    main()
