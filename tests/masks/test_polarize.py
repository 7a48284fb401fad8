"""Dense keys first: nothing is lost, and the order is the published one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from command_line import Cli
from golden_masks import Keep, large_cases, mask_of, real_masks, small_cases, unpacked
from safetensors.numpy import load_file, save_file
from torch import Tensor

from vitcod_cli.artifacts.mask import Mask, TokenOrder, read_mask, write_mask
from vitcod_cli.errors import VitcodError
from vitcod_cli.masks.polarize import (
    Split,
    keys_of_queries,
    reordered,
    restored,
    sparser_part,
    threshold_of,
    token_order,
)

SHAPE = (2, 3, 17, 17)


def random_mask(shape: tuple[int, ...] = SHAPE, seed: int = 0) -> Keep:
    """Some keys that most queries keep, among sparse ones; the first is kept by all."""
    random = np.random.default_rng(seed)
    density = random.choice([0.1, 0.8], p=[0.7, 0.3], size=(*shape[:2], 1, shape[-1]))
    keep: Keep = random.random(shape) < density
    keep[..., 0] = True
    return keep


@pytest.fixture
def mask_file(tmp_path: Path) -> Path:
    path = tmp_path / "mask.safetensors"
    write_mask(path, Mask(random_mask(), {"method": "random", "sparsity": 0.5, "num_prefix_tokens": 1}))
    return path


# -- the published order ------------------------------------------------------------------------


@pytest.mark.parametrize("case", small_cases(), ids=lambda case: f"{case['N']}-{case['H']}-{case['threshold']}")
def test_small_masks_are_split_as_published(case: dict[str, Any]) -> None:
    keep = mask_of(case)
    order = token_order(keep, case["threshold"])
    split = Split.of(keep, order)
    assert np.array_equal(reordered(keep, order), mask_of(case, "reordered_packbits_b64"))
    assert order.global_tokens.tolist() == case["global_tokens"]
    assert split.kept.tolist() == case["kept"]
    assert split.kept_in_dense.tolist() == case["kept_in_dense_columns"]


def test_real_masks_are_split_as_published(shared: Path) -> None:
    authors = np.load(shared / "golden" / "vitcod_deit_tiny_global_tokens_0.95.npy")
    for name, keep, golden in real_masks(shared):
        order = token_order(keep, threshold_of(None, 197, 1))
        split = Split.of(keep, order)
        assert np.array_equal(order.permutation, golden["permutation_new_to_old"]), name
        assert np.array_equal(order.global_tokens, golden["global_tokens"]), name
        assert np.array_equal(reordered(keep, order), unpacked(golden["reordered_pruned_packed"], keep.shape)), (
            name
        )
        assert np.array_equal(split.kept, golden["kept"]), name
        assert np.array_equal(split.kept_in_dense, golden["kept_in_dense_columns"]), name
        assert name != "authors_info_0.95" or np.array_equal(order.global_tokens, authors)


def test_dense_keys_fill_and_slots_by_threshold(shared: Path) -> None:
    """As worked out for the specification, for twelve thresholds."""
    golden = json.loads((shared / "accelerator" / "golden" / "threshold_sweep_derived.json").read_text())["masks"]
    masks = {name: keep for name, keep, _ in real_masks(shared) if name in golden}
    assert len(masks) > 3
    for name, keep in masks.items():
        for row in golden[name]:
            split = Split.of(keep, token_order(keep, row["threshold"]))
            total = split.rows()[-1]
            assert split.global_tokens.sum() == row["dense_columns"]
            assert split.slots.sum() == row["slots"]
            assert total["fill"] == pytest.approx(row["fill_of_dense"] or 0)
            assert total["slots"] == pytest.approx(row["slots_over_kept"])


@pytest.mark.parametrize("case", large_cases(), ids=lambda case: str(case["N"]))
def test_the_published_swaps_beyond_200_tokens(case: dict[str, Any]) -> None:
    """The published program loses entries there; its rule does not."""
    n = case["N"]
    keep = np.zeros((1, 1, n, n), dtype=np.bool_)
    dense = np.sort(case["perm_clean"][: case["global_tokens"]])
    keep[..., dense] = True
    order = token_order(keep, case["threshold"])
    assert order.permutation[0, 0].tolist() == case["perm_clean"]
    assert np.count_nonzero(reordered(keep, order)) == np.count_nonzero(keep)


# -- laws ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("columns_only", [False, True])
@pytest.mark.parametrize("tokens", [1, 2, 17, 201, 257])
def test_nothing_is_lost(tokens: int, columns_only: bool) -> None:
    keep = random_mask((2, 3, tokens, tokens))
    order = token_order(keep, tokens // 2)
    moved = reordered(keep, order, columns_only=columns_only)
    assert np.array_equal(restored(moved, order, columns_only=columns_only), keep)
    dense = np.count_nonzero(moved, axis=-2) > tokens // 2
    assert np.array_equal(dense, np.arange(tokens) < order.global_tokens[..., None])


def attention(q: Tensor, k: Tensor, v: Tensor, keep: Tensor) -> Tensor:
    logits = q @ k.transpose(-2, -1) / q.shape[-1] ** 0.5
    return logits.masked_fill(~keep, -torch.inf).softmax(dim=-1) @ v


@pytest.mark.parametrize("columns_only", [False, True])
def test_attention_is_the_same_in_the_new_order(columns_only: bool) -> None:
    keep = random_mask()
    order = token_order(keep, 8)
    moved = torch.from_numpy(reordered(keep, order, columns_only=columns_only))
    q, k, v = torch.randn(3, *SHAPE[:3], 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    index = torch.from_numpy(order.permutation).long()[..., None].expand_as(q)
    expected = attention(q, k, v, torch.from_numpy(keep))
    found = attention(q if columns_only else q.gather(2, index), k.gather(2, index), v.gather(2, index), moved)
    if not columns_only:
        found = torch.empty_like(found).scatter_(2, index, found)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("columns_only", [False, True])
def test_the_index_of_the_sparse_part_says_all_of_it(columns_only: bool) -> None:
    keep = random_mask()
    order = token_order(keep, 8)
    index, moved = (
        sparser_part(keep, order, columns_only=columns_only),
        reordered(keep, order, columns_only=columns_only),
    )
    heads = SHAPE[0] * SHAPE[1]
    assert index.starts.shape == (heads + 1,)
    for head in range(heads):
        block, number = divmod(head, SHAPE[1])
        rows = index.rows[index.starts[head] : index.starts[head + 1]]
        found = np.zeros(SHAPE[2:], dtype=np.bool_)
        for column in range(SHAPE[-1]):
            start, end = index.pointers[block, number, column : column + 2]
            found[rows[start:end], column] = True
        expected = moved[block, number].copy()
        expected[:, : order.global_tokens[block, number]] = False
        assert np.array_equal(found, expected)


def test_odd_masks() -> None:
    """Nothing kept, everything kept, no dense key: all can be split."""
    shape = (1, 2, 5, 5)
    for keep in (
        np.zeros(shape, np.bool_),
        np.ones(shape, np.bool_),
        np.eye(5, dtype=np.bool_)[None, None].repeat(2, 1),
    ):
        order = token_order(keep, 2)
        assert np.array_equal(restored(reordered(keep, order), order), keep)
        rows = Split.of(keep, order).rows()
        assert all(np.isfinite(list(row.values())).all() for row in rows)
    assert keys_of_queries(np.ones(shape, np.bool_)).tolist() == [[[5] * 5] * 2]


@pytest.mark.parametrize(
    ("text", "tokens", "expected"),
    [
        (None, 197, 50),
        (None, 1025, 260),
        ("50", 577, 50),
        ("0.25", 197, 49),
        ("1.0", 10, 10),
        ("0", 10, 0),
        ("auto", 197, 49),
    ],
)
def test_thresholds(text: str | None, tokens: int, expected: int) -> None:
    assert threshold_of(text, tokens, 0.25) == expected


def test_auto_calls_a_key_dense_from_where_it_costs_no_more() -> None:
    """With sparse work a quarter as efficient, a key of 100 queries is dense from 25 on."""
    keep = np.zeros((1, 1, 100, 100), dtype=np.bool_)
    for key in range(100):
        keep[..., :key, key] = True
    order = token_order(keep, threshold_of("auto", 100, 0.25))
    assert np.sort(order.permutation[0, 0][: order.global_tokens[0, 0]]).tolist() == list(range(25, 100))
    assert threshold_of("auto", 100, 1.0) == 99  # keys that all queries keep: as cheap, and without an index


# -- files and the command ----------------------------------------------------------------------


def test_polarize(cli: Cli, mask_file: Path, tmp_path: Path) -> None:
    out = cli("polarize", str(mask_file), "--output-dir", str(tmp_path), "--threshold", "8", "--json")
    result = json.loads(out.out)
    assert result["paths"] == [str(tmp_path / "mask_polarized.safetensors")]
    read = read_mask(result["paths"][0])
    expected = token_order(random_mask(), 8)
    assert np.array_equal(read.keep, random_mask())
    assert read.order is not None
    assert np.array_equal(read.order.permutation, expected.permutation)
    assert result["global_tokens"] == expected.global_tokens.tolist()
    assert read.info["threshold"] == 8
    assert read.info["num_prefix_tokens"] == 1
    assert "made_from" in read.info
    assert all(len(line) <= 80 for line in out.err.splitlines())


def test_polarize_for_the_published_simulator(cli: Cli, shared: Path, tmp_path: Path) -> None:
    source = shared / "golden" / "vitcod_deit_tiny_info_0.95.npy"
    out = cli("polarize", str(source), "--format", "published", "--output-dir", str(tmp_path)).out.split()
    name, _, golden = next(iter(real_masks(shared)))
    assert name == "authors_info_0.95"
    moved, tokens = (np.load(path) for path in out)
    assert moved.dtype == tokens.dtype == np.float64
    assert np.array_equal(moved == 0, unpacked(golden["reordered_pruned_packed"], moved.shape))
    assert np.array_equal(tokens, np.load(shared / "golden" / "vitcod_deit_tiny_global_tokens_0.95.npy"))


def test_npz_for_tools_without_safetensors(cli: Cli, mask_file: Path, tmp_path: Path) -> None:
    path = tmp_path / "all.npz"
    cli("polarize", str(mask_file), "--output-dir", str(tmp_path), "--npz", str(path), "--order", "columns")
    order = token_order(random_mask(), threshold_of(None, 17, 1))
    index = sparser_part(random_mask(), order, columns_only=True)
    with np.load(path, allow_pickle=False) as file:
        assert np.array_equal(file["permutation"], order.permutation)
        assert np.array_equal(file["csc_rows"], index.rows)
        assert np.array_equal(file["keep"], random_mask())


def test_weights_as_integers_for_hardware(cli: Cli, mask_file: Path, tmp_path: Path) -> None:
    """Each matrix is within half a step of a row's scale; nothing of the checkpoint is missing."""
    random, path, checkpoint = np.random.default_rng(0), tmp_path / "all.npz", tmp_path / "weights.safetensors"
    shapes = {
        "blocks.0.attn.qkv.weight": (72, 24),
        "patch_embed.proj.weight": (24, 3, 8, 8),
        "pos_embed": (1, 17, 24),
        "blocks.0.attn.qkv.bias": (72,),
    }
    weights = {name: random.standard_normal(shape, dtype=np.float32) for name, shape in shapes.items()}
    save_file(weights, checkpoint)
    words = ["--output-dir", str(tmp_path), "--npz", str(path), "--weights", str(checkpoint)]
    cli("polarize", str(mask_file), *words)
    with np.load(path, allow_pickle=False) as file:
        for name, values in weights.items():
            found = file[f"weights/{name}"]
            if found.dtype == np.int8:
                scale = file[f"weights/{name}.scale"]
                assert scale.shape == (len(values), *[1] * (values.ndim - 1))
                assert (np.abs(found * scale - values) <= scale * 0.5001).all()
                assert np.abs(found).max() == 127
            else:
                assert np.array_equal(found, values)
        assert file["weights/blocks.0.attn.qkv.weight"].dtype == np.int8
        assert file["weights/pos_embed"].dtype == np.float32
    error = cli("polarize", str(mask_file), "--output", str(tmp_path / "x"), "--weights", str(checkpoint)).error
    assert "--npz" in error


def test_a_polarized_mask_is_a_mask(cli: Cli, mask_file: Path, tmp_path: Path) -> None:
    """It draws, converts and polarizes as the one that it was made of."""
    polarized = str(tmp_path / "p.safetensors")
    cli("polarize", str(mask_file), "--output", polarized)
    cli("convert", polarized, "--to", "reference", "--output", str(tmp_path / "p.npy"))
    assert np.array_equal(~np.load(tmp_path / "p.npy"), random_mask())
    cli("polarize", polarized, "--output", str(tmp_path / "again.safetensors"))
    one, other = load_file(polarized), load_file(tmp_path / "again.safetensors")
    assert all(np.array_equal(one[name], other[name]) for name in ("keep", "permutation", "global_tokens"))


def test_gen_mask_polarizes_in_one_go(cli: Cli, mask_file: Path, tmp_path: Path) -> None:
    attention_map = np.random.default_rng(0).dirichlet(np.ones(17), size=SHAPE[:3]).astype(np.float32)
    np.save(tmp_path / "map.npy", attention_map)
    words = ["gen-mask", "--attn-map", str(tmp_path / "map.npy"), "--sparsity", "0.7"]
    cli(*words, "--output", str(tmp_path / "plain.safetensors"))
    cli(*words, "--output", str(tmp_path / "both.safetensors"), "--polarize", "--threshold", "6")
    plain, both = read_mask(tmp_path / "plain.safetensors"), read_mask(tmp_path / "both.safetensors")
    assert np.array_equal(plain.keep, both.keep)
    assert both.order is not None
    assert np.array_equal(both.order.permutation, token_order(plain.keep, 6).permutation)
    error = cli(*words, "--output", str(tmp_path / "no.safetensors"), "--threshold", "6").error
    assert "--polarize" in error


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda order, keep: TokenOrder(order.permutation[..., ::-1].copy(), order.global_tokens), "another mask"),
        (lambda order, keep: TokenOrder(order.permutation * 0, order.global_tokens), "another mask"),
        (lambda order, keep: TokenOrder(order.permutation - 1, order.global_tokens), "another mask"),
        (lambda order, keep: TokenOrder(order.permutation, order.global_tokens + 17), "another mask"),
        (lambda order, keep: TokenOrder(order.permutation, order.global_tokens - 18), "another mask"),
        (
            lambda order, keep: TokenOrder(order.permutation.astype(np.int64), order.global_tokens),
            "int32 permutation",
        ),
        (lambda order, keep: TokenOrder(order.permutation[:1], order.global_tokens), "int32 permutation"),
        (
            lambda order, keep: TokenOrder(order.permutation, order.global_tokens[:, :1].copy()),
            "int32 global_tokens",
        ),
        (lambda order, keep: token_order(random_mask(seed=1), 8), "another mask"),
    ],
)
def test_the_order_of_another_mask_is_refused(tmp_path: Path, change: Any, says: str) -> None:
    path, keep = tmp_path / "m.safetensors", random_mask()
    write_mask(path, Mask(keep, {}, change(token_order(keep, 8), keep)))
    with pytest.raises(VitcodError, match=f"{says}.*vitcod polarize"):
        read_mask(path)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--threshold", "many"], "--threshold 'many' is no number of queries"),
        (["--threshold", "2.5"], "--threshold '2.5' is no number of queries"),
        (["--threshold", "-1"], "--threshold '-1' is no number of queries"),
        (["--threshold", "18"], "--threshold '18' is more than the 17 queries"),
        (["--format", "published", "--output", "x.npy"], "--output-dir"),
        (["--output", "{mask}", "--overwrite"], "is read by this command"),
        (["--output", "{mask}"], "is read by this command"),
        (["--output", "out.safetensors", "--npz", "out.safetensors"], "--npz out.safetensors"),
        (["--sparse-efficiency", "0"], "--sparse-efficiency must be"),
    ],
)
def test_what_polarize_refuses(
    cli: Cli, mask_file: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, words: list[str], says: str
) -> None:
    monkeypatch.chdir(tmp_path)
    assert says in cli("polarize", str(mask_file), *(word.format(mask=mask_file) for word in words)).error
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mask.safetensors"]
    assert np.array_equal(read_mask(mask_file).keep, random_mask())
