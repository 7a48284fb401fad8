"""A calibration that is stopped or killed in any block, and resumed: the very bits of one that wasn't."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from stopping import BLOCKS, STEPS, Never, Step, Stopper, figures, make_checkpoint, run

from vitcod_cli.artifacts.run_directory import RunDirectory
from vitcod_cli.artifacts.safetensors_file import write_safetensors
from vitcod_cli.errors import Interrupted, VitcodError

FILE = "calibration.safetensors"


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("checkpoints")
    return {
        "lowrank": make_checkpoint(folder / "dense.safetensors", masked=False),
        "sparse": make_checkpoint(folder / "masked.safetensors", masked=True),
        "other": make_checkpoint(folder / "other.safetensors", masked=True, seed=1),
    }


Start = Callable[..., None]


@pytest.fixture
def start(checkpoints: dict[str, str], image_folder: Path) -> Start:
    """``start(step, folder, reporter, ...)``."""

    def begin(step: Step, folder: Path, reporter: Any = None, checkpoint: str = "", **options: Any) -> None:
        run(step, checkpoints[checkpoint or step], image_folder, folder, reporter, **options)

    return begin


def assert_same(one: Path, other: Path) -> None:
    for name in ("last", "best", "state"):
        a, b = (load_file(folder / f"{name}.safetensors") for folder in (one, other))
        assert a.keys() == b.keys()
        assert [key for key in a if not torch.equal(a[key], b[key])] == [], name
    assert figures(one) == figures(other)
    assert not (other / FILE).exists(), "there is a state now"


def stopped(start: Start, *arguments: Any, code: int = 143, **options: Any) -> Stopper:
    reporter = next(argument for argument in arguments if isinstance(argument, Stopper))
    with pytest.raises(Interrupted) as error:
        start(*arguments, **options)
    assert error.value.code == code
    return reporter


@pytest.mark.parametrize("step", ["lowrank", "sparse"])
@pytest.mark.parametrize("recipe", [{}, {"epochs": 1}], ids=["calibration only", "and training"])
def test_stopped_in_every_block_and_resumed(
    start: Start, tmp_path: Path, step: Step, recipe: dict[str, Any]
) -> None:
    start(step, tmp_path / "whole", recipe=recipe)
    cut, resumed = tmp_path / "cut", 0
    for block in range(1, BLOCKS + 1):
        # A block that was finished before advances the progress once.
        reporter = Stopper(steps=2 + (0, STEPS, STEPS + 1)[block - 1])
        stopped(start, step, cut, reporter, resume=True, recipe=recipe)
        assert len(reporter.warnings) == 1
        assert f"Stopped by SIGTERM in block {block} of {BLOCKS} of the calibration; " in reporter.warnings[0]
        saved = step == "lowrank" or block > 1
        assert (cut / FILE).exists() == saved
        assert ("--resume" in reporter.warnings[0]) == saved
        resumed += sum("Going on with the calibration" in line for line in reporter.lines)
    assert resumed == (2 if step == "lowrank" else 1)
    assert not (cut / "state.safetensors").exists()
    start(step, cut, resume=True, recipe=recipe)
    assert_same(tmp_path / "whole", cut)


@pytest.mark.parametrize("step", ["lowrank", "sparse"])
@pytest.mark.parametrize("block", range(BLOCKS))
def test_killed_between_two_files(
    start: Start, tmp_path: Path, step: Step, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The block is saved and not yet in the metrics."""
    start(step, tmp_path / "whole")
    log = RunDirectory.log

    def killed(run: RunDirectory, **metrics: Any) -> None:
        if metrics.get("stage") == "calibrate" and metrics["block"] == block:
            raise KeyboardInterrupt
        log(run, **metrics)

    with monkeypatch.context() as patch:
        patch.setattr(RunDirectory, "log", killed)
        with pytest.raises(KeyboardInterrupt):
            start(step, tmp_path / "cut")
    assert (tmp_path / "cut" / FILE).exists()
    reporter = Never()
    start(step, tmp_path / "cut", reporter, resume=True)
    assert any(f"{block + 1} of {BLOCKS} blocks are finished" in line for line in reporter.lines)
    assert "moments" not in reporter.begun, "the heads are fitted already"
    assert_same(tmp_path / "whole", tmp_path / "cut")


@pytest.mark.parametrize("at", ["read images", "moments", "fit heads"])
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGUSR1, 143)])
def test_before_anything_is_saved_a_signal_ends_the_step_at_once(
    start: Start, tmp_path: Path, at: str, number: signal.Signals, code: int
) -> None:
    reporter = stopped(start, "lowrank", tmp_path / "run", Stopper(number, at), code=code)
    name = "Ctrl-C" if number == signal.SIGINT else number.name
    assert reporter.warnings == [f"Stopped by {name}; nothing was saved yet. Start the same command again."]
    assert reporter.begun[-1] == at
    assert not (tmp_path / "run").exists()
    assert signal.getsignal(number) in (signal.default_int_handler, signal.SIG_DFL)


def test_a_second_run_in_a_filled_folder_that_is_stopped_early_costs_nothing(start: Start, tmp_path: Path) -> None:
    start("sparse", tmp_path / "run")
    before = {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir()}
    stopped(start, "sparse", tmp_path / "run", Stopper(), overwrite=True, seed=1)
    assert {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir()} == before
    start("sparse", tmp_path / "whole", seed=1)
    stopped(start, "sparse", tmp_path / "run", Stopper(steps=STEPS + 1), overwrite=True, seed=1)
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == [FILE, "config.yaml", "metrics.jsonl"]
    start("sparse", tmp_path / "run", resume=True, seed=1)
    assert_same(tmp_path / "whole", tmp_path / "run")


# -- files that are not gone on from -------------------------------------------------------------


@pytest.fixture(scope="module")
def partial(
    checkpoints: dict[str, str], image_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Path]:
    """A whole run of step 4, and one that was stopped in its third block."""
    folder = tmp_path_factory.mktemp("partial")
    run("sparse", checkpoints["sparse"], image_folder, folder / "whole")
    with pytest.raises(Interrupted):
        run("sparse", checkpoints["sparse"], image_folder, folder / "cut", Stopper(steps=2 * STEPS + 1))
    return folder / "whole", folder / "cut"


def copy_of(partial: tuple[Path, Path], tmp_path: Path) -> Path:
    cut = tmp_path / "cut"
    cut.mkdir()
    for path in partial[1].iterdir():
        (cut / path.name).write_bytes(path.read_bytes())
    return cut


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"seed": 1}, "--seed"),
        ({"calibrate_lr": 1e-3}, "--calibrate-lr"),
        ({"calibrate_images": 11}, "--calibrate-images, images"),
        ({"runtime": {"precision": "bfloat16"}}, "--precision"),
        ({"checkpoint": "other"}, "weights or mask, teacher"),
    ],
)
def test_other_settings_begin_anew(
    start: Start, tmp_path: Path, partial: tuple[Path, Path], changes: dict[str, Any], named: str
) -> None:
    cut, reporter = copy_of(partial, tmp_path), Never()
    start("sparse", tmp_path / "fresh", **changes)
    start("sparse", cut, reporter, resume=True, **changes)
    assert len(reporter.warnings) == 1
    assert named in reporter.warnings[0]
    assert reporter.warnings[0].endswith("So the calibration starts from the beginning.")
    assert_same(tmp_path / "fresh", cut)


def test_what_changes_no_weight_goes_on(start: Start, tmp_path: Path, partial: tuple[Path, Path]) -> None:
    cut, reporter = copy_of(partial, tmp_path), Never()
    start("sparse", cut, reporter, resume=True, workers=1, runtime={"threads": 2})
    assert any("2 of 3 blocks are finished" in line for line in reporter.lines)
    assert reporter.warnings == []


def rewritten(path: Path, change: Callable[[dict[str, torch.Tensor], dict[str, Any]], None]) -> None:
    """As if vitcod had written it so, checksum included."""
    with safe_open(path, "pt") as file:
        about = json.loads(file.metadata()["vitcod"])
    tensors = load_file(path)
    change(tensors, about)
    write_safetensors(path, tensors, about["format"], about)


def cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def emptied(path: Path) -> None:
    path.write_bytes(b"")


def text(path: Path) -> None:
    path.write_text("what is this?")


def without_a_tensor(path: Path) -> None:
    rewritten(path, lambda tensors, about: (tensors.pop("pos_embed"), None)[1])


def of_another_shape(path: Path) -> None:
    rewritten(path, lambda tensors, about: tensors.update(pos_embed=torch.zeros(1, 5, 24)))


def of_another_type(path: Path) -> None:
    rewritten(path, lambda tensors, about: tensors.update(pos_embed=tensors["pos_embed"].double()))


def not_finite(path: Path) -> None:
    rewritten(path, lambda tensors, about: tensors["pos_embed"].fill_(torch.nan))


def more_blocks_than_there_are(path: Path) -> None:
    def change(tensors: dict[str, torch.Tensor], about: dict[str, Any]) -> None:
        about["blocks"] = [{**about["blocks"][0], "block": block} for block in range(BLOCKS + 1)]

    rewritten(path, change)


def two_fits_of_the_first_as_one(path: Path) -> None:
    def change(tensors: dict[str, torch.Tensor], about: dict[str, Any]) -> None:
        about["blocks"] += [{**about["blocks"][0], "block": None}] * 2

    rewritten(path, change)


def reports_of_nothing(path: Path) -> None:
    rewritten(path, lambda tensors, about: about.update(blocks=[{"surprise": 1}]))


def a_number_for_reports(path: Path) -> None:
    rewritten(path, lambda tensors, about: about.update(heads=3))


def text_for_an_error(path: Path) -> None:
    rewritten(path, lambda tensors, about: about["blocks"][0].update(before="0.5"))


def a_list_for_the_fingerprint(path: Path) -> None:
    rewritten(path, lambda tensors, about: about.update(fingerprint=[1]))


def of_other_bytes(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)


def of_another_kind(path: Path) -> None:
    rewritten(path, lambda tensors, about: about.update(format="mask"))


DAMAGES = [
    cut_short, emptied, text, without_a_tensor, of_another_shape, of_another_type, not_finite, reports_of_nothing,
    more_blocks_than_there_are, two_fits_of_the_first_as_one, a_number_for_reports, text_for_an_error,
    a_list_for_the_fingerprint, of_other_bytes, of_another_kind,
]  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_one_warning_and_a_new_beginning(
    start: Start, tmp_path: Path, partial: tuple[Path, Path], damage: Callable[[Path], None]
) -> None:
    cut, reporter = copy_of(partial, tmp_path), Never()
    damage(cut / FILE)
    start("sparse", cut, reporter, resume=True)
    assert len(reporter.warnings) == 1
    assert FILE in reporter.warnings[0]
    assert_same(partial[0], cut)


def test_a_folder_in_its_place_is_one_sentence(start: Start, tmp_path: Path, partial: tuple[Path, Path]) -> None:
    cut = copy_of(partial, tmp_path)
    (cut / FILE).unlink()
    (cut / FILE).mkdir()
    with pytest.raises(VitcodError, match="is a folder"):
        start("sparse", cut, resume=True)


def test_a_run_without_calibration_leaves_it_out(start: Start, tmp_path: Path, partial: tuple[Path, Path]) -> None:
    cut, reporter = copy_of(partial, tmp_path), Never()
    start("sparse", tmp_path / "fresh", calibrate_steps=0)
    start("sparse", cut, reporter, resume=True, calibrate_steps=0)
    assert len(reporter.warnings) == 1
    assert "is left out: this run has no calibration" in reporter.warnings[0]
    assert_same(tmp_path / "fresh", cut)


# -- several processes -----------------------------------------------------------------------------


def group(folder: Path, **options: Any) -> tuple[list[int], str]:
    """Two processes of one run; their exit codes and what they said."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    root = Path(__file__).parents[2]
    common = {"PYTHONPATH": str(root), "OMP_NUM_THREADS": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    processes = [
        subprocess.Popen(
            [
                sys.executable,
                Path(__file__).with_name("stopping.py"),
                json.dumps({"folder": str(folder), **options}),
            ],
            env={**os.environ, **common, "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    said = "".join(process.communicate(timeout=300)[1] for process in processes)
    return [process.returncode for process in processes], said


@pytest.fixture(scope="module")
def pair(
    checkpoints: dict[str, str], image_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict[str, Any]]:
    """A whole run of two processes of unequal shares, 7 images and 6, and its options."""
    files = {"checkpoint": checkpoints["lowrank"], "images": str(image_folder)}
    options = {"step": "lowrank", "calibrate_images": 13, "calibrate_joint_steps": STEPS, **files}
    folder = tmp_path_factory.mktemp("pair") / "whole"
    codes, said = group(folder, **options)
    assert codes == [0, 0], said
    return folder, options


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize(
    ("steps", "where", "finished"),
    [
        (STEPS + 2, "block 2 of 3 of the calibration", 1),
        (2 * STEPS + 2, "the fit of the first 2 of 3 blocks as one", 2),
    ],
)
def test_two_processes_stop_at_the_same_step_and_resume_to_the_bit(
    pair: tuple[Path, dict[str, Any]], tmp_path: Path, rank: int, steps: int, where: str, finished: int
) -> None:
    """One signal is enough."""
    whole, options = pair
    codes, said = group(tmp_path / "cut", stop={"rank": rank, "steps": steps}, **options)
    assert codes == [143, 143], said
    assert said.count(f"Stopped by SIGTERM in {where}; what is finished is saved in") == 1
    assert "Traceback" not in said
    codes, said = group(tmp_path / "cut", resume=True, **options)
    assert codes == [0, 0], said
    assert said.count(f"Going on with the calibration: {finished} of 3 blocks are finished") == 1
    assert_same(whole, tmp_path / "cut")


@pytest.mark.slow
def test_two_processes_have_enough_with_three_images_and_not_with_two(
    checkpoints: dict[str, str], image_folder: Path, tmp_path: Path
) -> None:
    """One process holds back an image, the other has none to hold back."""
    options = {"step": "sparse", "checkpoint": checkpoints["sparse"], "images": str(image_folder)}
    codes, said = group(tmp_path / "three", calibrate_images=3, **options)
    assert codes == [0, 0], said
    errors = [line["error_before"] for line in figures(tmp_path / "three") if line.get("stage") == "calibrate"]
    assert len(errors) == BLOCKS
    assert all(isinstance(error, float) for error in errors)
    codes, said = group(tmp_path / "two", calibrate_images=2, **options)
    assert codes == [1, 1]
    assert "each of the 2 processes fits to one and one more is held out to judge by, which makes 3;" in said
    assert "Traceback" not in said
    assert not (tmp_path / "two").exists()
