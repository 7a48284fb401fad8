"""Class maps: names in a text file, or names and labels in JSON."""

from __future__ import annotations

import json
from typing import Any

import torch

from fuzz.case import Bench, Check
from fuzz.checkpoints import DATA
from fuzz.facts import evaluation, images_of, logits_of, says
from fuzz.files import FileReader, Made, Use
from fuzz.metadata import JUNK
from fuzz.safetensors_files import strictly_parsed


def _lines(bench: Bench, content: bytes) -> dict[str, int] | None:
    try:
        text = content.decode("utf-8-sig").replace("\r\n", "\n").replace("\r", "\n")
    except UnicodeDecodeError:
        return None
    names = [line.strip() for line in text.rstrip().split("\n")]
    if not names or not all(names) or len(set(names)) < len(names):
        return None
    return _usable({name: label for label, name in enumerate(names)})


def _json(bench: Bench, content: bytes) -> dict[str, int] | None:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        assert len({name for name, _ in pairs}) == len(pairs)
        return dict(pairs)

    try:
        values = json.loads(content.decode("utf-8-sig"), object_pairs_hook=unique)
    except (ValueError, AssertionError, RecursionError):
        return None
    if not isinstance(values, dict) or not values or not all(type(v) is int and v >= 0 for v in values.values()):
        return None
    return _usable(values)


def _usable(labels: dict[str, int]) -> dict[str, int] | None:
    """The labels, if one of the five class folders is named and the model has all of them."""
    named = any(f"class{index}" in labels for index in range(5))
    return labels if named and max(labels.values()) < 5 else None


def _relabelled(bench: Bench, labels: dict[str, int]) -> Check:
    weights = strictly_parsed(bench.asset("timm.safetensors"))
    assert weights is not None
    logits = logits_of(weights, bench.assets)
    assert logits is not None
    ranks = images_of(bench.assets / "images/val")[1]
    kept = [index for index, rank in enumerate(ranks) if f"class{rank}" in labels]
    expected = evaluation(logits[torch.tensor(kept)], [labels[f"class{ranks[index]}"] for index in kept])

    def check(done: Any) -> None:
        says(expected)(done)
        assert len(kept) == len(ranks) or b"Warning: " in done.err, "classes were left out without a warning"

    return check


def _odd_names(bench: Bench) -> Made:
    """Names that nobody gives a class, beside those of the folders."""
    names = ["class0", "class1", "class2", "class3", "class4"]
    odd = bench.turn(
        [
            "\x1b[31mred",
            "x" * 100_000,
            "../..",
            "a\0b",
            "\u202e",
            "class0\u200b",
            "日本",
            "\ud7ff",
            "class0 class1",
        ]
    )
    names[int(bench.random.integers(1, 5))] = odd
    content = "\n".join(names).encode()
    return Made(content, _lines(bench, content))


def _odd_labels(bench: Bench) -> Made:
    labels: dict[str, Any] = {f"class{index}": index for index in range(5)}
    labels[bench.any([*labels])] = bench.turn([value for value in JUNK if value != 0])
    return Made(json.dumps(labels).encode())


def _json_claims(bench: Bench) -> Made:
    texts = [
        "[" * 100_000,
        '{"class0": ' * 20_000,
        '{"class0": ' + "9" * 6000 + "}",
        '{"class0": 1e999}',
        '{"class0": NaN}',
        '{"class0": 0, "class0": 1}',
        '{"class0": 999999999999}',
        "{}",
        "",
        "null",
        "3",
        '"x"',
        '{"class0": 1099511627776}',
        '{"class0": 0.0}',
        '{"class0": -0}x',
        "{'class0': 0}",
        '{"class0": 0,}',
        '{"class0": 1' + "0" * 18 + "}",
    ]
    return Made(bench.turn(texts).encode())


def _line_claims(bench: Bench) -> Made:
    texts = [
        "class0\n" * 2,
        "\n",
        " \n \n",
        "",
        "class0\n\nclass1\n",
        "\n".join(f"c{i}" for i in range(200_000)) + "\nclass0",
        "x" * 5_000_000,
        "class0\r\n\r\nclass1",
        "class0\n class0\n",
        "nothing\nknown\n",
        "\ufeff\ufeffclass0\nclass0",
    ]
    content = bench.turn(texts).encode()
    return Made(content, _lines(bench, content))


_USE = Use(("eval", "--checkpoint={assets}/dense.safetensors", "--class-map={}", *DATA), _relabelled)

CLASS_MAP = FileReader(
    name="class map",
    asset="classes.txt",
    parse=_lines,
    uses=[_USE],
    by_hand={"metadata": _odd_names, "claims": _line_claims},
    foreign=("map.npy", "dense.safetensors", "legacy.pth", "val.tar", "config.yaml"),
)

CLASS_MAP_JSON = FileReader(
    name="class map json",
    asset="classes.json",
    parse=_json,
    uses=[_USE],
    by_hand={"dtype": _odd_labels, "claims": _json_claims},
    foreign=("map.npy", "dense.safetensors", "facts.json", "classes.txt", "config.yaml"),
)

READERS = [CLASS_MAP, CLASS_MAP_JSON]
