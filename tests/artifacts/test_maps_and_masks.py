"""Attention maps and masks: ours and the published ``.npy``, and what is neither."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from vitcod_cli.artifacts import mask as mask_file
from vitcod_cli.artifacts.arrays import check_shape
from vitcod_cli.artifacts.attention_map import AttentionMap, map_shape, read_attention_map, write_attention_map
from vitcod_cli.artifacts.describe import CHECKPOINT, MASK
from vitcod_cli.artifacts.mask import Mask, mask_in_checkpoint, published_mask, read_mask, write_mask
from vitcod_cli.artifacts.published import write_npy
from vitcod_cli.artifacts.safetensors_file import open_safetensors, write_safetensors
from vitcod_cli.errors import VitcodError

ROOT = Path(__file__).resolve().parents[2]


def random_map(shape: tuple[int, ...] = (2, 3, 5, 5)) -> np.ndarray:
    attention = np.random.default_rng(0).random(shape, dtype=np.float32)
    return attention / attention.sum(-1, keepdims=True)


def test_attention_map_comes_back_with_what_it_says(tmp_path: Path) -> None:
    path, info = tmp_path / "map.safetensors", {"num_prefix_tokens": 2, "model_config": {"model": "x"}}
    write_attention_map(path, AttentionMap(random_map(), 64, info))
    back = read_attention_map(path)
    assert np.array_equal(back.attention, random_map())
    assert back.attention.dtype == np.float32
    assert (back.num_images, back.info) == (64, info)
    assert load_file(path).keys() == {"attention", "num_images"}


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_published_map_of_any_float_under_any_name(tmp_path: Path, dtype: type) -> None:
    write_npy(tmp_path / "map.data", np.asfortranarray(random_map().astype(dtype)))
    back = read_attention_map(tmp_path / "map.data")
    assert np.array_equal(back.attention, random_map().astype(dtype).astype(np.float32))
    assert back.attention.dtype == np.float32
    assert back.attention.flags.c_contiguous
    assert (back.num_images, back.info) == (0, {})


def test_true_means_kept_in_ours_and_pruned_in_the_published(tmp_path: Path) -> None:
    keep = np.random.default_rng(1).random((2, 3, 5, 5)) < 0.3
    write_mask(tmp_path / "ours.safetensors", Mask(keep, {"method": "info"}))
    write_npy(tmp_path / "published.npy", ~keep)
    ours, published = read_mask(tmp_path / "ours.safetensors"), read_mask(tmp_path / "published.npy")
    assert np.array_equal(ours.keep, keep)
    assert np.array_equal(published.keep, keep)
    assert np.array_equal(load_file(tmp_path / "ours.safetensors")["keep"], keep)
    assert np.array_equal(published_mask(published), ~keep)
    assert (ours.info, published.info) == ({"method": "info"}, {})


def test_the_authors_own_mask(shared: Path) -> None:
    """95 % of its entries are pruned, so a wrong polarity would show; so would the global tokens."""
    keep = read_mask(shared / "golden" / "vitcod_deit_tiny_info_0.95.npy").keep
    assert keep.shape == (12, 3, 197, 197)
    assert 0.93 < 1 - keep.mean() < 0.97
    assert keep[:, :, 0].all()
    assert keep[:, :, :, 0].all()
    expected = np.load(shared / "golden" / "vitcod_deit_tiny_global_tokens_0.95.npy")
    assert np.array_equal((keep.sum(axis=2) > 50).sum(-1), expected)


def wrong_files(folder: Path) -> dict[str, Path]:
    """Every file that is given for another one day, by what the message must say of it."""
    files = {
        "published mask": np.zeros((1, 2, 3, 3), dtype=bool),
        "published attention map": random_map((1, 2, 3, 3)),
        "array of int64 [4]": np.arange(4),
        "shape [3, 3]": random_map((3, 3)),
        "shape [1, 2, 3, 4]": random_map((1, 2, 3, 4)),
        "shape [0, 2, 3, 3]": np.zeros((0, 2, 3, 3), dtype=np.float32),
    }
    paths = {}
    for words, array in files.items():
        paths[words] = folder / f"{len(paths)}.npy"
        np.save(paths[words], array)
    paths["plain numbers"] = folder / "objects.npy"
    np.save(paths["plain numbers"], np.array([{}], dtype=object), allow_pickle=True)
    paths[".npz archive"] = folder / "archive.npz"
    np.savez(paths[".npz archive"], keep=np.ones((1, 1, 2, 2), dtype=bool))
    paths["not a whole .npy"] = folder / "short.npy"
    paths["not a whole .npy"].write_bytes(paths["published attention map"].read_bytes()[:-4])
    paths["not a whole safetensors"] = folder / "noise.npy"
    paths["not a whole safetensors"].write_bytes(bytes(range(256)))
    paths["vitcod mask"] = folder / "mask.safetensors"
    write_mask(paths["vitcod mask"], Mask(np.ones((1, 1, 2, 2), dtype=bool)))
    paths["vitcod attention map"] = folder / "map.safetensors"
    write_attention_map(paths["vitcod attention map"], AttentionMap(random_map()))
    paths["does not exist"] = folder / "nothing"
    paths["is a folder"] = folder
    return paths


@pytest.mark.parametrize("reader", [read_attention_map, read_mask])
def test_other_files_are_refused_and_named(tmp_path: Path, reader: type) -> None:
    own = ("attention map", "float") if reader is read_attention_map else ("mask", "bool")
    flag = "--attn-map" if reader is read_attention_map else "--mask"
    refused = 0
    for words, path in wrong_files(tmp_path).items():
        if words.endswith(own[0]):
            reader(path)
            continue
        with pytest.raises(VitcodError) as error:
            reader(path)
        message = str(error.value)
        assert message.startswith(f"{flag} {path} ")
        assert message.endswith(".")
        assert "\n" not in message
        # A float array of a wrong shape is no mask because of its type, whatever its shape.
        if not words.startswith("shape") or reader is read_attention_map:
            assert words in message
        refused += 1
    assert refused == 12


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, -0.1])
def test_a_map_of_anything_but_probabilities(tmp_path: Path, value: float) -> None:
    attention = random_map()
    attention[1, 2, 3, 4] = value
    np.save(tmp_path / "map.npy", attention)
    write_attention_map(tmp_path / "map.safetensors", AttentionMap(attention))
    for name in ("map.npy", "map.safetensors"):
        with pytest.raises(VitcodError, match="negative or not finite"):
            read_attention_map(tmp_path / name)


def test_a_map_of_less_than_no_images(tmp_path: Path) -> None:
    write_attention_map(tmp_path / "map", AttentionMap(random_map(), -1))
    with pytest.raises(VitcodError, match="-1 images"):
        read_attention_map(tmp_path / "map")


def test_reading_needs_no_torch(tmp_path: Path) -> None:
    write_mask(tmp_path / "mask", Mask(np.ones((1, 1, 2, 2), dtype=bool)))
    write_attention_map(tmp_path / "map", AttentionMap(random_map()))
    code = (
        "import sys\n"
        "from vitcod_cli.artifacts.attention_map import *\n"
        "from vitcod_cli.artifacts.mask import *\n"
        "write_mask('copy', read_mask('mask')); write_attention_map('copy', read_attention_map('map'))\n"
        "print('torch' in sys.modules)"
    )
    process = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert process.stdout.strip() == "False"


@pytest.mark.parametrize("tokens", [5, 8, 17])
def test_a_large_mask_is_written_as_bits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tokens: int) -> None:
    keep = np.random.default_rng(1).random((2, 3, tokens, tokens)) < 0.3
    path = tmp_path / "mask.safetensors"
    monkeypatch.setattr(mask_file, "PACKED", keep.size)
    write_mask(path, Mask(keep, {"method": "info"}))
    assert load_file(path).keys() == {"keep"}  # just not large
    monkeypatch.setattr(mask_file, "PACKED", keep.size - 1)
    write_mask(path, Mask(keep, {"method": "info"}))
    stored = load_file(path)
    assert stored.keys() == {"keep_bits"}
    np.testing.assert_array_equal(stored["keep_bits"], np.packbits(keep, axis=-1))
    assert mask_file.mask_bytes(keep.shape) == stored["keep_bits"].nbytes
    back = read_mask(path)
    np.testing.assert_array_equal(back.keep, keep)
    assert (back.keep.dtype, back.info) == (np.bool_, {"method": "info"})
    with open_safetensors(path, flag="--mask") as file:  # a vitcod that knows no bits says that it is too old
        assert file.info["version"] == 2


def test_a_shape_of_very_many_dimensions_is_told_in_short(tmp_path: Path) -> None:
    with pytest.raises(VitcodError, match=r"of shape \[1, 1, 1, 1, 1, 1, 1, 1, \.\.\.\], but") as error:
        check_shape((1,) * 5000, tmp_path / "mask.safetensors", "--mask", "a mask")
    assert len(str(error.value)) < 300


def test_bits_of_another_shape_are_no_mask(tmp_path: Path) -> None:
    bits = np.zeros((2, 3, 17, 2), dtype=np.uint8)
    write_safetensors(tmp_path / "mask.safetensors", {"keep_bits": bits}, MASK, {})
    with pytest.raises(VitcodError, match=r"array of shape \[2, 3, 17, 2\]"):
        read_mask(tmp_path / "mask.safetensors")
    write_safetensors(tmp_path / "mask.safetensors", {"keep_bits": bits > 0}, MASK, {})
    with pytest.raises(VitcodError, match="lacks its boolean mask"):
        read_mask(tmp_path / "mask.safetensors")


@pytest.mark.parametrize("form", ["bytes", "bits", "published", "checkpoint"])
def test_a_mask_that_memory_has_no_room_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str) -> None:
    """By its header alone: not even its checksum is looked at before."""
    keep = np.ones((2, 3, 5, 5), dtype=np.bool_)
    path, read = tmp_path / "mask", read_mask
    if form == "published":
        write_npy(path, ~keep)
    elif form == "checkpoint":
        tensors = {f"blocks.{index}.attn.keep": block for index, block in enumerate(keep)}
        write_safetensors(path, tensors, CHECKPOINT, {})
        read = mask_in_checkpoint  # type: ignore[assignment]
    else:
        monkeypatch.setattr(mask_file, "PACKED", 0 if form == "bits" else 2**27)
        write_mask(path, Mask(keep))
    monkeypatch.setattr(mask_file, "available_memory", lambda: keep.size)
    found = read(path, "--mask")
    assert found is not None
    np.testing.assert_array_equal(found.keep, keep)
    monkeypatch.setattr(mask_file, "local_processes", lambda: 2)
    with pytest.raises(
        VitcodError, match=r"--mask .*mask of \[2, 3, 5, 5\] takes 0\.0 GB of main memory.*--img-size"
    ):
        read(path, "--mask")


@pytest.mark.parametrize("npy", [False, True])
def test_the_shape_of_a_map_is_read_alone(tmp_path: Path, npy: bool) -> None:
    path = tmp_path / "map"
    if npy:
        write_npy(path, random_map())
    else:
        write_attention_map(path, AttentionMap(random_map()))
    assert map_shape(path) == (2, 3, 5, 5)
    write_npy(path, random_map()[0])
    assert map_shape(path) == (3, 5, 5)
