"""The folder of a run and the state in it, which ``--resume`` goes on from."""

from __future__ import annotations

import json
import os
import shutil
import stat
from typing import Any

import torch

from fuzz import safetensors_files as st
from fuzz.assets import RUN
from fuzz.case import Attempt, Bench, Check
from fuzz.checkpoints import DATA
from fuzz.facts import known
from fuzz.files import ODD_NAMES, FileReader, Made, Use, is_utf8, make_special
from fuzz.metadata import JUNK
from fuzz.safetensors_files import changed, claims, contents, sealed

_WORDS = ("finetune-dense", "--init-from={assets}/dense.safetensors", *DATA, *RUN, "--resume", "--output-dir={}")
_IN_PLACE = ("fifo", "zero", "full", "null", "folder", "dangling", "loop", "socket", "empty", "unreadable")


def _resumed(bench: Bench, _: Any) -> Check:
    return known(bench.assets, "resumed")


class RunReader(FileReader):
    """A whole run in ``run/`` but for one file of it."""

    def _file(self, bench: Bench, content: bytes) -> str:
        _copy(bench, "run")
        (bench.folder / self.asset).write_bytes(content)
        return "run"

    def _names(self, bench: Bench) -> Attempt:
        odd = bench.turn(ODD_NAMES)
        name = os.fsdecode(odd)
        _copy(bench, name)
        attempt = self.attempt(bench, name, True, refusable=not is_utf8(odd))
        attempt.outputs = (name,)
        return attempt

    def _special(self, bench: Bench) -> Attempt:
        """Something special instead of one of the run's files, or of its folder."""
        kind = bench.turn(_IN_PLACE)
        if bench.random.random() < 0.2 and kind not in ("empty", "folder"):
            return self.attempt(bench, make_special(bench, "run", kind), None)
        _copy(bench, "run")
        victim = bench.any(
            [self.asset, self.asset, "run/metrics.jsonl", "run/config.yaml", "run/last.safetensors"]
        )
        (bench.folder / victim).unlink(missing_ok=True)
        make_special(bench, victim, kind)
        attempt = self.attempt(bench, "run", True)
        if victim.endswith("state.safetensors") and kind != "dangling":
            attempt.check = None
        return attempt


def _copy(bench: Bench, name: str) -> None:
    target = bench.folder / name
    shutil.copytree(bench.assets / "run", target)
    for file in target.iterdir():
        file.chmod(file.stat().st_mode | stat.S_IWUSR)


def _metadata(bench: Bench) -> Made:
    """States whose values are of other types, or say what cannot be."""
    tensors, info = contents(bench.assets / "run/state.safetensors")
    junk = bench.any(JUNK)
    match bench.number % 5:
        case 0:
            info[bench.any([key for key in info if key not in ("format", "version")])] = junk
        case 1:
            info["position"][bench.any([*info["position"], "more"])] = junk
        case 2:
            info["optimizer"][bench.any([*info["optimizer"]])] = junk
        case 3:
            info["position"]["best"][bench.any([*info["position"]["best"], "more"])] = junk
        case _:
            info["hyper_parameters"][bench.any([*info["hyper_parameters"], "\x1b[31m"])] = junk
            return Made(sealed(bench, tensors, info), True)
    return Made(sealed(bench, tensors, info), True)


def _other_tensors(bench: Bench) -> Made:
    """A state that lacks a tensor, or has one that belongs to nothing."""
    tensors, info = contents(bench.assets / "run/state.safetensors")
    name = bench.any([*tensors])
    if bench.number % 3 == 0:
        del tensors[name]
    elif bench.number % 3 == 1:
        tensors[bench.any(["model/more", "optimizer/x/y", "ema/more", "\x1b[31m"])] = torch.ones(2)
    else:
        tensors = {key: value for key, value in tensors.items() if not key.startswith(name.split("/")[0])}
    return Made(sealed(bench, tensors, info), True)


def _model_tensors(change: str) -> Any:
    def make(bench: Bench) -> Made:
        tensors, _ = contents(bench.assets / "run/state.safetensors")
        names = tuple(name for name in tensors if name.startswith(("model/", "ema/")))
        return changed("run/state.safetensors", change, names)(bench)

    return make


STATE = RunReader(
    name="state",
    asset="run/state.safetensors",
    parse=lambda bench, _: True,
    uses=[Use(_WORDS, _resumed, ("run",))],
    by_hand={
        **{change: _model_tensors(change) for change in st.CHANGES},
        "claims": claims("run/state.safetensors"),
        "metadata": _metadata,
        "other tensors": _other_tensors,
    },
    foreign=("dense.safetensors", "map.npy", "published.pth", "val.tar", "config.yaml"),
)


def _metrics(bench: Bench, _: bytes) -> Any:
    return True


def _metrics_lines(bench: Bench) -> Made:
    lines: list[Any] = [
        [],
        "x",
        None,
        {"epoch": "1"},
        {"epoch": True},
        {"epoch": 10**30},
        {"epoch": -1},
        {"\x1b[31m": 1},
    ]
    text = json.dumps(bench.turn(lines)) + "\n"
    half = bench.any(["", '{"epoch": 1, ', "\xff\x00", "[" * 50_000])
    return Made((bench.asset("run/metrics.jsonl").decode() + text + half).encode("latin1"), True)


METRICS = RunReader(
    name="metrics",
    asset="run/metrics.jsonl",
    parse=_metrics,
    uses=[Use(_WORDS, _resumed, ("run",))],
    by_hand={"metadata": _metrics_lines},
)

READERS = [STATE, METRICS]
