"""``vitcod gen-mask`` as a user meets it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from command_line import Cli, MakeMap

from vitcod_cli import artifacts
from vitcod_cli.artifacts.attention_map import AttentionMap, write_attention_map
from vitcod_cli.artifacts.files import sha256_of
from vitcod_cli.artifacts.mask import read_mask
from vitcod_cli.masks.info import info_mask
from vitcod_cli.masks.prefix import keep_prefix
from vitcod_cli.masks.statistics import block_sparsity, sparsity_of
from vitcod_cli.steps import mask as step

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def npy(tmp_path: Path, make_map: MakeMap) -> Path:
    """A map as the published code writes it."""
    path = tmp_path / "map.npy"
    np.save(path, make_map(tokens=50))
    return path


def test_name_and_content(cli: Cli, npy: Path, make_map: MakeMap) -> None:
    outcome = cli("gen-mask", "--attn-map", npy)
    assert outcome.code == 0
    assert outcome.out == "info_0.90.safetensors\n"
    mask = read_mask(npy.parent / "info_0.90.safetensors")
    expected = keep_prefix(info_mask(make_map(tokens=50), mask.info["info_cut"]), 1)
    np.testing.assert_array_equal(mask.keep, expected)
    assert mask.info["made_from"] == sha256_of(npy)
    assert mask.info["sparsity"] == sparsity_of(expected)


def test_every_block_and_the_whole_are_shown(cli: Cli, npy: Path) -> None:
    err = cli("gen-mask", "--attn-map", npy, "--info-cut", "0.5").err
    mask = read_mask(next(npy.parent.glob("info_*.safetensors")))
    for block, sparsity in enumerate(block_sparsity(mask.keep)):
        assert any(line.split()[:2] == [str(block), f"{sparsity:.1%}"] for line in err.splitlines())
    assert f"all  {sparsity_of(mask.keep):.2%}  by info, info cut 0.5" in err
    assert max(map(len, err.splitlines()[1:])) <= 80


def test_json(cli: Cli, npy: Path) -> None:
    figures = json.loads(cli("gen-mask", "--attn-map", npy, "--json", "--method", "ratio", "--ratio", "0.5").out)
    mask = read_mask(npy.parent / figures["path"])
    assert figures["path"] == f"ratio_{figures['sparsity']:.2f}.safetensors"
    assert figures["per_block"] == block_sparsity(mask.keep).tolist()
    assert (figures["method"], figures["ratio"], figures["num_prefix_tokens"]) == ("ratio", 0.5, 1)


def test_published_spelling(cli: Cli, npy: Path) -> None:
    outcome = cli("gen-mask", "--attn", npy, "--info_cut", "0.4", "--output_dir", "masks")
    assert outcome.code == 0
    assert outcome.out.startswith("masks/info_0.")
    assert (npy.parent / outcome.out.strip()).is_file()


def test_our_own_map_brings_its_prefix_tokens(cli: Cli, tmp_path: Path, make_map: MakeMap) -> None:
    path = tmp_path / "map.safetensors"
    config = {"model": "deit_tiny_distilled_patch16_224"}
    info = {"num_prefix_tokens": 2, "model_config": config}
    write_attention_map(path, AttentionMap(make_map(), 5, info))
    outcome = cli("gen-mask", "--attn-map", path, "--info-cut", "0.1", "--output", "mask.safetensors")
    assert outcome.out == "mask.safetensors\n"
    mask = read_mask(tmp_path / "mask.safetensors")
    assert mask.keep[..., :2].all()
    assert not mask.keep[..., 2].all()
    assert mask.info["model_config"] == config


def test_a_file_that_is_there_is_kept(cli: Cli, npy: Path) -> None:
    target = npy.parent / "mask.safetensors"
    target.write_bytes(b"precious")
    words = ("gen-mask", "--attn-map", npy, "--output", "mask.safetensors")
    error = cli(*words).error
    assert "--overwrite" in error
    assert target.read_bytes() == b"precious"
    assert cli(*words, "--overwrite").code == 0
    assert read_mask(target).keep.shape == (3, 2, 50, 50)


def test_a_named_file_that_is_there_is_kept_too(cli: Cli, npy: Path) -> None:
    assert cli("gen-mask", "--attn-map", npy).code == 0
    assert "info_0.90.safetensors exists" in cli("gen-mask", "--attn-map", npy).error


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (("--info-cut", "3"), ("--info-cut must be between 0 and 1, not 3",)),
        (("--sparsity", "0.999"), ("--sparsity 0.999 can't be reached", "choose one")),
        (("--sparsity", "0.9", "--info-cut", "0.1"), ("--sparsity", "--info-cut")),
        (("--method", "std", "--ratio", "0.1"), ("--ratio", "--method ratio or random")),
        (("--num-prefix-tokens", "51"), ("--num-prefix-tokens 51", "50 tokens")),
    ],
)
def test_wrong_options_leave_nothing_behind(
    cli: Cli, npy: Path, words: tuple[str, ...], parts: tuple[str, ...]
) -> None:
    error = cli("gen-mask", "--attn-map", npy, *words).error
    for part in parts:
        assert part in error
    assert list(npy.parent.iterdir()) == [npy]


def test_no_map(cli: Cli) -> None:
    assert "--attn-map is needed" in cli("gen-mask").error
    assert "nowhere.npy" in cli("gen-mask", "--attn-map", "nowhere.npy").error


@pytest.mark.parametrize("broken", ["mask", "nan", "negative", "sum", "shape", "objects"])
def test_what_is_no_map(cli: Cli, tmp_path: Path, make_map: MakeMap, broken: str) -> None:
    array = make_map()
    if broken == "mask":
        array = array > 0.1
    elif broken == "nan":
        array[1, 1, 5, 5] = np.nan
    elif broken == "negative":
        array[0, 0, 0, :2] += (1, -1)
    elif broken == "sum":
        array *= 7
    elif broken == "shape":
        array = array[..., :9]
    elif broken == "objects":
        array = np.array([{}], dtype=object)
    np.save(tmp_path / "broken.npy", array, allow_pickle=broken == "objects")
    outcome = cli("gen-mask", "--attn-map", "broken.npy")
    assert "--attn-map" in outcome.error
    assert "Traceback" not in outcome.err
    assert [path.name for path in tmp_path.iterdir()] == ["broken.npy"]


def test_neither_torch_nor_matplotlib_is_loaded(npy: Path) -> None:
    code = (
        "import sys; from vitcod_cli.__main__ import main; "
        f"code = main(['gen-mask', '--attn-map', {str(npy)!r}, '--output', {str(npy.parent / 'mask')!r}]); "
        "sys.exit(str([m for m in ('torch', 'timm', 'matplotlib', 'rich') if m in sys.modules]) if not code "
        "else code)"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False, timeout=60
    )
    assert result.stderr.splitlines()[-1] == "[]", result.stderr
    assert (npy.parent / "mask").is_file()


@pytest.mark.parametrize("scarce", ["memory", "disk"])
def test_a_mask_without_room_is_told_before_the_map_is_read(
    cli: Cli, npy: Path, monkeypatch: pytest.MonkeyPatch, scarce: str
) -> None:
    size = 3 * 2 * 50 * 50
    monkeypatch.setattr(artifacts.mask, "available_memory", lambda: size - (scarce == "memory"))
    monkeypatch.setattr(artifacts.files, "free_space", lambda folder: size - (scarce == "disk"))
    monkeypatch.setattr(step, "read_attention_map", lambda path: pytest.fail("the map is read"))
    outcome = cli("gen-mask", "--attn-map", npy, "--output", "new/mask.safetensors")
    if scarce == "memory":
        assert "--attn-map" in outcome.error
        assert "a mask of [3, 2, 50, 50] takes 0.0 GB of main memory" in outcome.error
    else:
        assert "--output: the disk of new has 0.0 GB free, and a mask of [3, 2, 50, 50] takes" in outcome.error
    assert not (npy.parent / "new").exists()
