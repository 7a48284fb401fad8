"""Config files: ``--config`` of ``gen-mask``."""

from __future__ import annotations

from typing import Any

import numpy as np
import yaml

from fuzz.case import Bench, Check
from fuzz.facts import anything, holds_mask, pruned
from fuzz.files import FileReader, Made, Use

_KNOWN = {"method": str, "info_cut": float, "num_prefix_tokens": int, "output": str}


def _config(bench: Bench, content: bytes) -> dict[str, Any] | None:
    """The options of ``gen-mask`` in a config file; None where one is unknown or of another type."""
    try:
        values = yaml.safe_load(content.decode("utf-8"))
    except Exception:  # a damaged file makes PyYAML raise what it likes
        return None
    if values is None:
        return {}
    if not isinstance(values, dict) or not all(isinstance(key, str) for key in values):
        return None
    values = {
        key.replace("-", "_"): value for key, value in values.items() if value is not None and key != "about"
    }
    return None if any(not _fits(key, value) for key, value in values.items()) else values


def _fits(key: str, value: Any) -> bool:
    if key not in _KNOWN:
        return key in ("sparsity", "overwrite", "json", "attn_map")
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        return False
    if key == "method":
        return value in ("info", "ratio", "std", "random")
    try:
        number = float(value) if key in ("info_cut", "num_prefix_tokens") else 0.0
    except (ValueError, OverflowError):
        return False
    return 0 <= number <= (1 if key == "info_cut" else 17)


def _configured(bench: Bench, values: dict[str, Any]) -> Check:
    if values.get("method", "info") != "info" or "info_cut" not in values or set(values) - set(_KNOWN):
        return anything
    attention = np.load(bench.assets / "map.npy")
    prefix = int(float(values.get("num_prefix_tokens", 1)))
    return holds_mask("out.safetensors", pruned(attention, float(values["info_cut"]), prefix))


def _yaml_types(bench: Bench) -> Made:
    """A value of the wrong type for its option."""
    key = bench.turn([*_KNOWN, "sparsity", "attn_map"])
    wrong: list[Any] = [["x"], {"a": 1}, True, b"bytes", [1, 2], [[]], {}, "x", "0.9.1", "nine", "", [None]]
    wrong += [1.5, 10**40] if key == "num_prefix_tokens" else []
    if key in ("output", "attn_map", "method"):
        wrong = [value for value in wrong if not isinstance(value, str) or key == "method"]
    return Made(yaml.safe_dump({"method": "info", "info_cut": 0.9, key: bench.any(wrong)}).encode())


def _yaml_ranks(bench: Bench) -> Made:
    """Not a mapping of options at all."""
    texts = [
        "- a\n- b\n",
        "just words\n",
        "3\n",
        "[]\n",
        "true\n",
        "2001-01-01\n",
        "a: b\n---\nc: d\n",
        "!!set {a, b}\n",
        "!!omap [a: 1]\n",
        '"quoted"\n',
        "? [a]\n: b\n",
        "? {a: 1}\n: 1\n",
        "1: 2\n",
        "null: 1\n",
        "- method: info\n",
    ]
    return Made(bench.turn(texts).encode())


def _yaml_claims(bench: Bench) -> Made:
    """What is small on disk and large in memory, or deeper than any reader goes."""
    laughs = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
        f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 10)
    )
    merges = "a0: &a0 {x: 1}\n" + "".join(
        f"a{i}: &a{i}\n  <<: [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 9)
    )
    texts = [
        laughs,
        "info_cut: " + "[" * 100_000,
        "{a: " * 50_000,
        "- " * 50_000,
        "num_prefix_tokens: " + "9" * 5000,
        laughs + "about: *a9\n",
        "info_cut: *nowhere\n",
        "&a info_cut: &a 0.9\n",
        "a: &a [*a]\n",
        "? " * 20_000,
        merges,
        "method: !!int info\n",
        "info_cut: !!timestamp 0.9\n",
        "num_prefix_tokens: 1:2:3:4:5:6:7:8:9:0\n",
        "info_cut: 2001-99-99\n",
        "info_cut: !!bool x\n",
        "info_cut: !!float x\n",
        "info_cut: !!binary '*'\n",
        "method: !!python/object/apply:os.system ['touch pwned']\n",
        "!!python/name:os.system : 1\n",
        "method: !include /etc/passwd\n",
        "%YAML 9.9\n---\nmethod: info\n",
        "%TAG ! tag:x,2000:\n--- !x\n",
        "about: !!python/object/new:os.system ['touch pwned']\n",
        "x" * 2_000_000,
        "#" * 100 + "\n" * 1_000_000 + "x",
    ]
    return Made(bench.turn(texts).encode())


def _yaml_keys(bench: Bench) -> Made:
    """Keys that are no options, or stand twice; text that is no text."""
    texts: list[bytes] = [
        b"config: other.yaml\n",
        b"context: 1\n",
        b"help: true\n",
        b"version: true\n",
        b"method : info\nmethod: info\n",
        b"info_cut: 0.9\ninfo_cut: 0.1\n",
        b"info-cut: 0.9\ninfo_cut: 0.1\n",
        b'"\\e[31m": 1\n',
        b'"a\\nb": 1\n',
        b"\xff\xfe\x00",
        b"method: \x1b[31m\n",
        b"method: info\x00\n",
        b'method: "\\ud83d"\n',
        b'output: "a\\0b"\n',
        b'method: "\\e[2J"\n',
        b"a" * 100_000 + b": 1\n",
        b"self: 1\n",
        b"__class__: 1\n",
        b"'': 1\n",
        b"nproc_per_node: 9\n",
        b"Method: info\n",
        b"method=info\n",
        b'{"method": "info", "x": 1}',
        b"\tmethod: info\n",
        '"\u202emethod": 1\n'.encode(),
        "méthode: info\n".encode(),
    ]
    return Made(bench.turn(texts))


def _yaml_numbers(bench: Bench) -> Made:
    numbers = [
        ".nan",
        ".inf",
        "-.inf",
        "nan",
        "inf",
        "1e999",
        "-1e-999",
        "1e400",
        "-0.1",
        "1.0000001",
        "'NaN'",
        "'-inf'",
    ]
    key = "info_cut" if bench.number % 3 else "sparsity"
    text = bench.turn(numbers)
    allowed = text == "-1e-999"  # which is a zero
    return Made(f"{key}: {text}\n".encode(), {} if allowed else None)


CONFIG = FileReader(
    name="config",
    asset="config.yaml",
    parse=_config,
    uses=[
        Use(
            ("gen-mask", "--config={}", "--attn-map={assets}/map.npy", "--output=out.safetensors"),
            _configured,
            ("out.safetensors",),
        ),
    ],
    by_hand={
        "dtype": _yaml_types,
        "rank": _yaml_ranks,
        "nonfinite": _yaml_numbers,
        "claims": _yaml_claims,
        "metadata": _yaml_keys,
    },
    foreign=("map.npy", "dense.safetensors", "legacy.pth", "classes.txt", "val.tar", "facts.json"),
)

READERS = [CONFIG]
