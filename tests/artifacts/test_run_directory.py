"""The run folder: when it may be entered, and what is written to it."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
import yaml

from vitcod_cli.artifacts import run_directory
from vitcod_cli.artifacts.describe import RUN_STATE
from vitcod_cli.artifacts.output_folder import OutputSettings, check_output
from vitcod_cli.artifacts.run_directory import RunDirectory
from vitcod_cli.artifacts.run_files import wandb_id
from vitcod_cli.artifacts.run_lock import LOCK
from vitcod_cli.artifacts.safetensors_file import write_safetensors
from vitcod_cli.errors import VitcodError
from vitcod_cli.reporting import SilentReporter

OURS = {"seed": 1, "about": {"command": "finetune-dense"}}
NEW = {"seed": 2, "about": {"command": "finetune-sparse"}}


def settings(path: Path, **values: bool) -> OutputSettings:
    return OutputSettings(output_dir=str(path), **values)


def open_run(settings: OutputSettings, **sources: str | None) -> RunDirectory:
    return RunDirectory.open(settings, SilentReporter(), {f"--{name}": path for name, path in sources.items()})


def save_state(path: Path, launches: object = None, name: str = "state.safetensors") -> None:
    write_safetensors(path / name, {"x": np.zeros(1)}, RUN_STATE, {"launches": launches})


def contents(path: Path) -> dict[str, bytes]:
    """All files below ``path`` but the lock."""
    files = (file for file in path.rglob("*") if file.is_file() and file.name != LOCK)
    return {str(file.relative_to(path)): file.read_bytes() for file in files}


def finished(path: Path) -> Path:
    """A folder as a run leaves it, with files of the user's beside."""
    path.mkdir(exist_ok=True)
    save_state(path)
    (path / "config.yaml").write_text(yaml.safe_dump(OURS))
    for name in ("metrics.jsonl", "last.safetensors", "best.safetensors", "epoch.safetensors", "notes.txt"):
        (path / name).write_text(f"{name} of before\n")
    (path / "wandb-id.txt").write_text("abc123")
    for name in ("tensorboard/events.out.tfevents.1.host", "wandb/run-20250101_101010-abc123/files/config.yaml"):
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_text("log")
    (path / "wandb" / "latest-run").symlink_to("run-20250101_101010-abc123")
    return path


@pytest.fixture
def slurm(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """The launches that a run of SLURM's job 7, which was requeued, records."""
    for name, value in {"SLURM_JOB_ID": "7", "SLURM_STEP_ID": "0", "SLURM_RESTART_COUNT": "1"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("SLURM_NTASKS", "1")
    return {"slurm": "/7/0"}


def test_a_new_or_empty_folder_is_made_and_entered(tmp_path: Path) -> None:
    with open_run(settings(tmp_path / "a" / "b")) as run:
        assert run.path.is_dir()
        assert (run.last.name, run.best.name) == ("last.safetensors", "best.safetensors")
        assert (run.state.name, run.calibration.name) == ("state.safetensors", "calibration.safetensors")
    assert not (tmp_path / "a" / "b").exists(), "made for nothing"
    (tmp_path / "c").mkdir()
    open_run(settings(tmp_path / "c")).close()
    assert (tmp_path / "c").is_dir()


def test_what_a_killed_process_left_does_not_fill_a_folder(tmp_path: Path) -> None:
    left = tmp_path / ".state.safetensors.vitcod-abc.tmp"
    left.mkdir()
    (left / "file").touch()
    for path in (left / "file", left):  # a name that doesn't say whose it is: dead after a day
        os.utime(path, (1, 1))
    (tmp_path / f".{LOCK}.xyz.tmp").touch()
    with open_run(settings(tmp_path)):
        assert not left.exists()


def test_a_filled_folder_needs_a_word(tmp_path: Path) -> None:
    before = contents(finished(tmp_path))
    for check in (check_output, open_run):
        with pytest.raises(VitcodError, match=r"not empty.*--resume.*--overwrite"):
            check(settings(tmp_path))
        with pytest.raises(VitcodError, match="exclude each other"):
            check(settings(tmp_path, overwrite=True, resume=True))
    open_run(settings(tmp_path, resume=True)).close()
    assert contents(tmp_path) == before
    with open_run(settings(tmp_path, overwrite=True)) as run:
        run.write_config(NEW)
        run.log(stage="calibrate")
        assert contents(tmp_path) == before, "nothing new is there yet"
        run.begin()
        assert set(contents(tmp_path)) == {"config.yaml", "metrics.jsonl", "notes.txt"}
        assert not (tmp_path / "tensorboard").exists()
        assert not (tmp_path / "wandb").exists()
        assert yaml.safe_load((tmp_path / "config.yaml").read_text()) == NEW
        assert (tmp_path / "metrics.jsonl").read_text() == '{"stage": "calibrate"}\n'


def test_logs_that_are_not_the_runs_stay(tmp_path: Path) -> None:
    finished(tmp_path)
    others = ("tensorboard/notes.txt", "wandb/run-20250101_101010-other/files/x", "wandb/settings")
    for name in others:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("mine")
    with open_run(settings(tmp_path, overwrite=True)) as run:
        run.begin()
        assert {"notes.txt", *others} == set(contents(tmp_path)) - {"config.yaml"}


def test_a_folder_of_somebody_elses_is_not_taken(tmp_path: Path) -> None:
    """A home folder, say: its config.yaml is not a run's."""
    (tmp_path / "config.yaml").write_text("theme: dark\n# about: colours\n")
    for words in ({"overwrite": True}, {"resume": True}):
        with pytest.raises(VitcodError, match=r"config.yaml would be replaced, and no run of vitcod wrote it"):
            open_run(settings(tmp_path, **words))
    assert set(contents(tmp_path)) == {"config.yaml"}


@pytest.mark.parametrize("name", ["best.safetensors", "last.safetensors", "epoch.safetensors"])
def test_a_run_does_not_overwrite_what_it_reads(tmp_path: Path, name: str) -> None:
    run, link = finished(tmp_path / "run"), tmp_path / "link"
    link.symlink_to(run / name)
    before = contents(run)
    for source in (run / name, link):
        with pytest.raises(VitcodError, match=rf"--mask {source} is a file of the run that would be replaced"):
            open_run(settings(run, overwrite=True), mask=str(source))
    open_run(settings(run, overwrite=True), mask=str(run / "notes.txt"), teacher="timm", other=None).close()
    open_run(settings(run, resume=True), mask=str(run / name)).close()
    (run / "state.safetensors").unlink()
    with pytest.raises(VitcodError, match="would be replaced"):
        open_run(settings(run, resume=True), mask=str(run / name))
    del before["state.safetensors"]
    assert contents(run) == before


def test_other_processes_do_not_look(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They hear from the main process what it has found."""
    (tmp_path / "config.yaml").touch()
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(run_directory, "on_main", lambda work: (True, False))
    with open_run(settings(tmp_path)) as run:
        assert run.resumes
        run.begin()
        run.log(x=1)
    assert set(os.listdir(tmp_path)) == {"config.yaml"}


def test_places_that_are_no_folder(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "nowhere").symlink_to("not/there")
    refused = {
        "file": "is a file; name a folder",
        "file/below": "is a file; name a folder",
        "loop": "Too many levels of symbolic links",
        "nowhere": "is a link that leads nowhere",
        "x" * 300: "File name too long",
        "a\0b": "NUL character",
    }
    for place, words in refused.items():
        for word in ({}, {"overwrite": True}):
            with pytest.raises(VitcodError, match=words):
                open_run(settings(tmp_path / place, **word))
    with pytest.raises(VitcodError, match="--output-dir is needed"):
        OutputSettings.from_flat({})


def test_a_folder_by_a_link_is_that_folder(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    with open_run(settings(tmp_path / "link")) as run:
        with pytest.raises(VitcodError, match="in use by another run of this very process"):
            open_run(settings(tmp_path / "real", overwrite=True))
        run.begin()


@pytest.mark.parametrize("name", ["config.yaml", "metrics.jsonl", "state.safetensors", "best.safetensors"])
def test_files_that_are_none(tmp_path: Path, name: str) -> None:
    finished(tmp_path)
    for make in (Path.mkdir, os.mkfifo, lambda path: path.symlink_to(name)):
        (tmp_path / name).unlink()
        make(tmp_path / name)
        for word in ({"resume": True}, {"overwrite": True}):
            with pytest.raises(VitcodError, match=rf"{name} (is|can't be read)"):
                open_run(settings(tmp_path, **word))
        if (tmp_path / name).is_dir():
            (tmp_path / name).rmdir()
            (tmp_path / name).touch()


def test_links_stay_links(tmp_path: Path) -> None:
    """A state elsewhere in the folder: the new one is written there, too."""
    run = finished(tmp_path / "run")
    (run / "disk").mkdir()
    for name in ("state.safetensors", "config.yaml"):
        (run / name).rename(run / "disk" / name)
        (run / name).symlink_to(run / "disk" / name)
    with open_run(settings(run, overwrite=True)) as opened:
        opened.write_config(NEW)
        write_safetensors(opened.state, {"y": np.ones(1)}, RUN_STATE, {}, opened.begin)
    assert (run / "state.safetensors").is_symlink()
    assert (run / "state.safetensors").is_file()
    assert yaml.safe_load((run / "disk" / "config.yaml").read_text()) == NEW


@pytest.mark.parametrize("name", ["config.yaml", "metrics.jsonl", "best.safetensors", "wandb-id.txt"])
@pytest.mark.parametrize("there", [True, False])
def test_links_out_of_the_folder_are_not_followed(tmp_path: Path, name: str, there: bool) -> None:
    """In a folder that comes from somebody else, they would have a file of the user's replaced, or made."""
    run, precious = finished(tmp_path / "run"), tmp_path / "precious"
    if there:
        precious.write_text("mine")
    (run / name).unlink(missing_ok=True)
    (run / name).symlink_to("../precious")
    for word in ({"resume": True}, {"overwrite": True}):
        with pytest.raises(VitcodError, match=rf"{name} is a link to .*precious"):
            open_run(settings(run, **word))
    assert (precious.read_text() if there else precious.exists()) == ("mine" if there else False)


def test_metrics_that_cannot_be_appended_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    finished(tmp_path)
    monkeypatch.setattr(os, "access", lambda path, mode: not str(path).endswith("metrics.jsonl"))
    with pytest.raises(VitcodError, match=r"metrics.jsonl can't be written to"):
        open_run(settings(tmp_path, resume=True))
    open_run(settings(tmp_path, overwrite=True)).close()


def test_config_and_metrics(tmp_path: Path) -> None:
    run = open_run(settings(tmp_path))
    config = {"zebra": 1, "apple": {"lr": 1e-5, "name": None}, "list": ["a=b"]}
    run.write_config(config)
    run.log(epoch=0, loss=1.5)
    assert os.listdir(tmp_path) == [LOCK], "held back"
    run.begin()
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"epoch": 1, "lo')  # killed here
    run.log(epoch=1, loss=1.25)
    back = yaml.safe_load((tmp_path / "config.yaml").read_text())
    assert back == config
    assert list(back) == list(config)
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [{"epoch": 0, "loss": 1.5}, {"epoch": 1, "loss": 1.25}]
    run.close()
    assert sorted(os.listdir(tmp_path)) == ["config.yaml", "metrics.csv", "metrics.jsonl"]


def test_a_disk_that_is_full_when_the_run_begins_leaves_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Config, metrics or state: whichever it is that can't be written."""
    before = contents(finished(tmp_path))
    for full in (1, 2):
        calls = []

        def fsync(descriptor: int, calls: list[int] = calls, full: int = full) -> None:
            calls.append(descriptor)
            if len(calls) == full + 1:  # the first is the state's own
                raise OSError(28, "No space left on device")

        with monkeypatch.context() as patch, open_run(settings(tmp_path, overwrite=True)) as run:
            run.write_config(NEW)
            run.log(x=1)
            patch.setattr(os, "fsync", fsync)
            with pytest.raises(VitcodError, match="The disk is full"):
                write_safetensors(run.state, {"y": np.ones(1)}, RUN_STATE, {}, run.begin)
        assert contents(tmp_path) == before
        assert not list(tmp_path.glob(".*"))


def test_killed_while_the_old_run_goes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whichever file was the last to go, nothing is gone on from, and the next command begins anew."""

    class KilledError(BaseException):
        pass

    for number in range(7):
        folder, left = finished(tmp_path / str(number)), [number]

        def unlink(path: Path, missing_ok: bool = False, left: list[int] = left) -> None:
            if not left[0]:
                raise KilledError
            left[0] -= 1
            os.unlink(path) if os.path.lexists(path) else None

        run = open_run(settings(folder, overwrite=True))
        run.write_config(NEW)
        with monkeypatch.context() as patch:
            patch.setattr(Path, "unlink", unlink)
            with pytest.raises(KilledError):
                run.begin()
        (folder / LOCK).unlink()
        with open_run(settings(folder, resume=True)) as again:
            assert again.resumes == (number == 0), "before anything has gone, the old run is whole"
        with pytest.raises(VitcodError, match="not empty"):
            open_run(settings(folder))
        with open_run(settings(folder, overwrite=True)) as again:
            again.write_config(NEW)
            again.begin()
            assert set(contents(folder)) == {"config.yaml", "notes.txt"}


def test_only_the_end_of_the_metrics_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with open_run(settings(tmp_path)) as run:
        run.begin()
        with open(tmp_path / "metrics.jsonl", "wb") as file:
            file.seek(1 << 33)  # 8 GB, hardly any of it on the disk
            file.write(b'\n{"epoch": 1}\n{"ep')
        run.log(epoch=2)
        with open(tmp_path / "metrics.jsonl", "rb") as file:
            file.seek(1 << 33)
            assert file.read() == b'\n{"epoch": 1}\n{"epoch": 2}\n'
        (tmp_path / "metrics.jsonl").write_bytes(b"x" * 200_000)  # no line at all
        run.log(epoch=3)
        assert (tmp_path / "metrics.jsonl").read_text() == '{"epoch": 3}\n'


def test_metrics_of_epochs_that_are_trained_again_go(tmp_path: Path) -> None:
    run, path = RunDirectory(tmp_path), tmp_path / "metrics.jsonl"
    lines = ['{"stage": "calibrate"}', '{"epoch": 1, "loss": 1}', '{"epoch": 2}', '{"epoch": 3}', '{"epo']
    path.write_text("\n".join(lines))
    run.keep_epochs(2)
    assert path.read_text().splitlines() == lines[:3]
    path.write_bytes(b"\xff\n" + b"[" * 100_000 + b"\n3\n")
    run.keep_epochs(2)
    assert path.read_bytes() == b"3\n"
    path.unlink()
    run.keep_epochs(2)
    assert not path.exists()
    path.mkdir()
    with pytest.raises(VitcodError, match=r"metrics\.jsonl can't be read"):
        run.keep_epochs(2)


def test_a_folder_that_goes_ends_the_run_in_a_sentence(tmp_path: Path) -> None:
    run = open_run(settings(tmp_path / "run"))
    run.begin()
    (tmp_path / "run" / LOCK).unlink()
    (tmp_path / "run").rmdir()
    for work in (run.begin, run.check, lambda: run.log(x=1)):
        with pytest.raises(VitcodError, match="was removed while the run went on"):
            work()
    assert not (tmp_path / "run").exists()
    run.close()


def test_a_resumed_run_appends(tmp_path: Path) -> None:
    finished(tmp_path)
    with open_run(settings(tmp_path, resume=True)) as run:
        run.write_config(NEW)
        assert run.resumes
        assert yaml.safe_load((tmp_path / "config.yaml").read_text()) == OURS, "the state may not be whole"
        run.begin()
        run.log(epoch=1)
    assert yaml.safe_load((tmp_path / "config.yaml").read_text()) == NEW
    assert (tmp_path / "metrics.jsonl").read_text() == 'metrics.jsonl of before\n{"epoch": 1}\n'
    assert wandb_id(tmp_path) == "abc123"


@pytest.mark.parametrize("text", ["", "../x", "a b", "x" * 100, "é"])
def test_the_name_of_a_run_elsewhere_is_a_word(tmp_path: Path, text: str) -> None:
    (tmp_path / "wandb-id.txt").write_text(text)
    assert wandb_id(tmp_path) is None


# -- restarts ---------------------------------------------------------------------------------


@pytest.mark.parametrize("words", [{}, {"overwrite": True}, {"resume": True}])
def test_a_restarted_run_goes_on_with_what_it_has_saved(
    tmp_path: Path, slurm: dict[str, str], words: dict[str, bool]
) -> None:
    for name, resumes in (("calibration.safetensors", False), ("state.safetensors", True)):
        save_state(tmp_path, slurm, name)
        check_output(settings(tmp_path, **words))
        with open_run(settings(tmp_path, **words)) as run:
            assert (run.resumes, run.resumes_calibration) == (resumes, not resumes)
            assert run.launches == slurm


@pytest.mark.parametrize(
    "launches",
    [None, {}, {"slurm": "/8/0"}, {"slurm": "/7/1"}, {"torchrun": "/7/0"}, ["slurm"], "slurm", {"slurm": None}],
)
def test_a_restarted_run_does_not_take_the_state_of_another(
    tmp_path: Path, slurm: dict[str, str], launches: object
) -> None:
    save_state(tmp_path, launches)
    with open_run(settings(tmp_path, overwrite=True)) as run:
        assert not run.resumes
    with pytest.raises(VitcodError, match="not empty"):
        open_run(settings(tmp_path))
    with open_run(settings(tmp_path, resume=True)) as run:
        assert run.resumes, "that was asked for"


def test_a_restart_that_nobody_can_name_is_no_reason_to_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    save_state(tmp_path, {})
    with open_run(settings(tmp_path, overwrite=True)) as run:
        assert not run.resumes


def test_who_restarts_decides_whose_state_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An earlier torchrun of the same job is another run; torchrun itself has restarted this one."""
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "b")
    save_state(tmp_path, {"slurm": "/7/", "torchrun": "a"})
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    with open_run(settings(tmp_path, overwrite=True)) as run:
        assert not run.resumes
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    with open_run(settings(tmp_path, overwrite=True)) as run:
        assert run.resumes


def test_a_damaged_state_can_be_overwritten_after_a_restart(tmp_path: Path, slurm: dict[str, str]) -> None:
    (tmp_path / "state.safetensors").write_text("half")
    with open_run(settings(tmp_path, overwrite=True)) as run:
        assert not run.resumes


def test_a_run_resumes_where_a_state_is_and_else_begins_its_metrics_anew(tmp_path: Path) -> None:
    log = '{"stage": "calibrate"}\n'
    (tmp_path / "metrics.jsonl").write_text(log)
    (tmp_path / "state.safetensors").touch()
    with open_run(settings(tmp_path, resume=True)) as run:
        assert run.resumes
    with open_run(settings(tmp_path, overwrite=True)) as run:
        assert not run.resumes
    assert (tmp_path / "metrics.jsonl").read_text() == log
    (tmp_path / "state.safetensors").unlink()
    with open_run(settings(tmp_path, resume=True)) as run:
        assert not run.resumes
        run.begin()
        assert not (tmp_path / "metrics.jsonl").exists()
