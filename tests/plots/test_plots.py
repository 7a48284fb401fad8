"""Pictures: every token is drawn, the labels are there and apart."""

from __future__ import annotations

import base64
import io
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from command_line import Cli, MakeMap
from PIL import Image

from vitcod_cli.artifacts.describe import CHECKPOINT
from vitcod_cli.artifacts.mask import Mask, mask_in_checkpoint, write_mask
from vitcod_cli.artifacts.model_config import ModelConfig
from vitcod_cli.artifacts.safetensors_file import write_safetensors
from vitcod_cli.errors import VitcodError
from vitcod_cli.masks.info import info_mask
from vitcod_cli.masks.polarize import reordered, token_order
from vitcod_cli.masks.prefix import keep_prefix
from vitcod_cli.model.build import build_model
from vitcod_cli.model.grid import Grid, patch_grid
from vitcod_cli.model.layers import attention_shape, set_keep_mask
from vitcod_cli.model.load import save_model
from vitcod_cli.plots.canvas import DPI, TokenAxis
from vitcod_cli.plots.draw import Maps, draw_block, draw_overview, draw_query, save_plots
from vitcod_cli.plots.sensitivity import draw_blocks, draw_heads, save_sensitivity
from vitcod_cli.plots.view import View, look_at
from vitcod_cli.reporting import SilentReporter


def pixels(figure: Any) -> np.ndarray:
    """The picture as drawn, [height, width, 3]."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3]


def panel(figure: Any, picture: np.ndarray, place: int) -> np.ndarray:
    """The pixels of one panel."""
    box = figure.axes[place].get_window_extent()
    height = len(picture)
    return picture[height - round(box.y1) : height - round(box.y0), round(box.x0) : round(box.x1)]


def tick_labels(axis: Any) -> list[Any]:
    """Those of ticks inside the axis; older matplotlibs have others, and draw none of them."""
    low, high = sorted(axis.get_view_interval())
    return [tick.label1 for tick in axis.get_major_ticks() if low <= tick.get_loc() <= high]


@pytest.mark.parametrize(("tokens", "prefix"), [(17, 1), (50, 0), (197, 1), (198, 2), (577, 1)])
def test_every_token_is_a_whole_number_of_pixels(tokens: int, prefix: int) -> None:
    keep = np.random.default_rng(0).random((1, 1, tokens, tokens)) < 0.05
    figure = draw_block(Maps(None, keep, prefix), 0, "x")
    drawn = panel(figure, pixels(figure), 0).sum(axis=-1) < 384  # dark = kept
    axis = TokenAxis(tokens, prefix)
    assert drawn.shape == (axis.size, axis.size)
    wide = axis.widen(keep[0, 0])
    scale = axis.size // len(wide)
    np.testing.assert_array_equal(drawn, wide.repeat(scale, axis=0).repeat(scale, axis=1))


def test_prefix_tokens_are_drawn_thicker_and_that_is_said() -> None:
    axis = TokenAxis(197, 1)
    image = np.zeros((197, 197))
    image[0] = 1
    rows = axis.widen(image).any(axis=1).sum()
    assert rows == 3
    assert "3 times" in axis.note
    assert TokenAxis(197, 0).note == ""


@pytest.mark.parametrize("heads", [1, 3, 6])
@pytest.mark.parametrize("kind", ["map", "mask", "both"])
def test_a_block_shows_every_head(make_map: MakeMap, heads: int, kind: str) -> None:
    attention = make_map(heads=heads)
    keep = keep_prefix(info_mask(attention, 0.5), 1)
    maps = Maps(None if kind == "mask" else attention, None if kind == "map" else keep, 1)
    figure = draw_block(maps, 1, "some model")
    titles = [axes.get_title() for axes in figure.axes if axes.get_title()]
    for head in range(heads):
        named = [title for title in titles if title.startswith(f"head {head}")]
        assert len(named) == (2 if kind == "both" else 1)
        if kind != "map":
            assert f"{1 - keep[1, head].mean():.1%} pruned" in named[-1]
    texts = " ".join(text.get_text() for text in figure.texts)
    assert "some model, block 1" in texts
    colour_bars = [axes for axes in figure.axes if "probability" in axes.get_ylabel()]
    assert len(colour_bars) == (kind != "mask")


@pytest.mark.parametrize(("heads", "tokens"), [(1, 17), (5, 197)])
def test_texts_do_not_overlap(make_map: MakeMap, heads: int, tokens: int) -> None:
    attention = make_map(blocks=4, heads=heads, tokens=tokens)
    maps = Maps(attention, keep_prefix(info_mask(attention, 0.5), 1), 1)
    for figure in (draw_block(maps, 0, "deit_base_distilled_patch16_384"), draw_overview(maps, "deit_base")):
        picture = pixels(figure)
        texts = [*figure.texts]
        for axes in figure.axes:
            texts += [axes.title, axes.xaxis.label, axes.yaxis.label]
            texts += [*tick_labels(axes.xaxis), *tick_labels(axes.yaxis)]
        boxes = [text.get_window_extent() for text in texts if text.get_visible() and text.get_text().strip()]
        assert len(boxes) > 5
        overlaps = [(a, b) for index, a in enumerate(boxes) for b in boxes[index + 1 :] if a.overlaps(b)]
        assert not overlaps
        assert all(box.x0 >= 0 and box.x1 <= picture.shape[1] and box.y0 >= 0 for box in boxes)


def test_an_overview_has_a_panel_for_every_head_of_every_block(make_map: MakeMap) -> None:
    attention = make_map(blocks=3, heads=2)
    figure = draw_overview(Maps(attention, None, 1), "x")
    assert len([axes for axes in figure.axes if axes.images]) >= 6
    assert [axes.get_title() for axes in figure.axes if axes.get_title()] == ["block 0", "block 1", "block 2"]


def test_constant_and_zero_maps_are_drawn() -> None:
    pixels(draw_block(Maps(np.full((1, 1, 9, 9), 1 / 9, dtype=np.float32)), 0, "constant"))
    pixels(draw_overview(Maps(np.eye(9, dtype=np.float32)[None, None]), "identity"))
    pixels(draw_block(Maps(np.ones((1, 1, 1, 1), dtype=np.float32)), 0, "one token"))


def test_files(tmp_path: Path, make_map: MakeMap) -> None:
    attention = make_map(blocks=2)
    paths = save_plots(Maps(attention, info_mask(attention, 0.5)), tmp_path / "new", "x", SilentReporter())
    assert [path.name for path in paths] == ["overview.png", "block_00.png", "block_01.png"]
    for path in paths:
        with Image.open(path) as picture:
            assert picture.format == "PNG"
            assert min(picture.size) > 300
    assert DPI == 100


def test_a_map_and_a_mask_of_other_sizes(make_map: MakeMap) -> None:
    with pytest.raises(VitcodError, match=r"\[3, 2, 17, 17\] .* \[3, 2, 9, 9\]"):
        Maps(make_map(), info_mask(make_map(tokens=9), 0.5))


def test_plot_command(cli: Cli, tmp_path: Path, make_map: MakeMap) -> None:
    attention = make_map(blocks=1)
    np.save(tmp_path / "map.npy", attention)
    np.save(tmp_path / "mask.npy", ~info_mask(attention, 0.5))
    np.save(tmp_path / "other.npy", ~info_mask(make_map(tokens=9), 0.5))
    assert cli("plot", "map.npy", "mask.npy", "--output-dir", "both").out.split()[0] == "both/overview.png"
    assert "--overwrite" in cli("plot", "map.npy", "--output-dir", "both").error
    assert "different models" in cli("plot", "map.npy", "other.npy").error
    assert "second mask" in cli("plot", "mask.npy", "other.npy").error
    assert "nowhere.npy" in cli("plot", "nowhere.npy").error


def test_a_checkpoint_with_a_mask(cli: Cli, tmp_path: Path, tiny_config: ModelConfig) -> None:
    model = build_model(tiny_config)
    save_model("dense.safetensors", model, {})
    message = cli("plot", "dense.safetensors").error
    assert "a checkpoint without a mask; give a mask, or an attention map" in message
    keep = np.random.default_rng(0).random(attention_shape(model)) < 0.3
    keep[..., 0] = True
    set_keep_mask(model, torch.from_numpy(keep))
    save_model("sparse.safetensors", model, {})
    write_mask("mask.safetensors", Mask(keep, {"model_config": {"model": tiny_config.model}}))
    for name in ("sparse", "mask"):
        assert cli("plot", f"{name}.safetensors", "--output-dir", name).code == 0
    for name in ("overview.png", "block_01.png"):
        assert Path("sparse", name).read_bytes() == Path("mask", name).read_bytes()


@pytest.mark.parametrize(("kind", "begin"), [("png", b"\x89PNG"), ("pdf", b"%PDF"), ("svg", b"<?xml")])
def test_kinds_of_files(cli: Cli, make_map: MakeMap, kind: str, begin: bytes) -> None:
    np.save("map.npy", make_map(blocks=1))
    outcome = cli("plot", "map.npy", "--format", kind, "--output-dir", "out")
    assert outcome.out.split() == [f"out/overview.{kind}", f"out/block_00.{kind}"]
    assert all(Path(path).read_bytes().startswith(begin) for path in outcome.out.split())
    assert "--overwrite" in cli("plot", "map.npy", "--format", kind, "--output-dir", "out").error


@pytest.mark.parametrize("masked", [True, False])
def test_what_a_patch_of_a_picture_looks_at(masked: bool) -> None:
    """Of 4 x 4 patches, all white, the one at row 1, column 2 keeps those at (0, 3) and (3, 0)."""
    keep = np.zeros((1, 2, 17, 17), dtype=np.bool_)
    keep[..., 0] = True
    token = 1 + 1 * 4 + 2
    keep[0, 0, token, [1 + 0 * 4 + 3, 1 + 3 * 4 + 0]] = True
    view = View(np.full((64, 64, 3), 255, dtype=np.uint8), 1, 2, 4)
    attention = (keep + 0.01) / (keep + 0.01).sum(axis=-1, keepdims=True)
    maps = Maps(None, keep) if masked else Maps(attention.astype(np.float32))
    figure = draw_query(maps, view, "x")
    drawn = panel(figure, pixels(figure), 0).astype(int).sum(axis=-1)
    edge = len(drawn) / 4
    centres = drawn[np.ix_(*2 * [[int((place + 0.5) * edge) for place in range(4)]])]
    expected = np.zeros((4, 4), dtype=bool)
    expected[0, 3] = expected[3, 0] = True
    found = centres > 600 if masked else centres < np.median(centres) - 100
    np.testing.assert_array_equal(found, expected)


def test_a_picture_as_a_command(cli: Cli, make_map: MakeMap) -> None:
    np.save("map.npy", make_map(blocks=1))
    Image.new("RGB", (90, 70), "green").save("picture.png")
    words = ("plot", "map.npy", "--output-dir", "out", "--overwrite", "--image", "picture.png")
    assert cli(*words).out.split()[-1] == "out/query.png"
    assert cli(*words, "--query", 3, 0).code == 0
    assert "--query 4 0 is outside of the 4 x 4 patches" in cli(*words, "--query", 4, 0).error
    assert "--query is a patch of --image" in cli("plot", "map.npy", "--query", 1, 1).error
    assert "--image map.npy can't be read" in cli("plot", "map.npy", "--image", "map.npy").error
    assert "--image gone.png can't be read" in cli("plot", "map.npy", "--image", "gone.png").error
    np.save("odd.npy", make_map(tokens=16))
    assert "square grid" in cli("plot", "odd.npy", "--image", "picture.png").error


@pytest.mark.parametrize(
    ("model", "kwargs", "prefix"),
    [
        ("deit_tiny_distilled_patch16_224", {}, 2),
        ("vit_tiny_patch16_224", {"class_token": False, "global_pool": "avg"}, 0),
        ("vit_tiny_patch16_224", {"reg_tokens": 4}, 5),
    ],
)
def test_a_checkpoint_says_its_prefix_tokens(
    cli: Cli, tiny_config: ModelConfig, model: str, kwargs: dict[str, Any], prefix: int
) -> None:
    """Only its tensors do; with another number, its patches would make no grid."""
    config = tiny_config.changed(model=model, model_kwargs={**tiny_config.model_kwargs, **kwargs})
    built = build_model(config)
    keep = np.ones(attention_shape(built), dtype=np.bool_)
    set_keep_mask(built, torch.from_numpy(keep))
    save_model("sparse.safetensors", built, {})
    mask = mask_in_checkpoint("sparse.safetensors", "FILE")
    assert mask is not None
    assert mask.info["num_prefix_tokens"] == built.num_prefix_tokens == prefix
    Image.new("RGB", (90, 70)).save("picture.png")
    assert cli("plot", "sparse.safetensors", "--image", "picture.png").out.split()[-1] == "plots/query.png"


@pytest.mark.parametrize("damage", ["hole", "shapes", "type", "square", "digits"])
def test_masks_of_a_checkpoint_that_make_none(cli: Cli, damage: str) -> None:
    masks = {f"blocks.{block}.attn.keep": np.ones((2, 17, 17), dtype=np.bool_) for block in (0, 1)}
    first = masks.pop("blocks.0.attn.keep")
    if damage == "shapes":
        masks["blocks.0.attn.keep"] = first[:1]
    elif damage == "type":
        masks = {"blocks.0.attn.keep": first.astype(np.float32)}
    elif damage == "square":
        masks = {"blocks.0.attn.keep": np.ascontiguousarray(first[..., :9])}
    elif damage == "digits":
        masks = {f"blocks.{'9' * 5000}.attn.keep": first}
    write_safetensors("odd.safetensors", masks, CHECKPOINT, {"model_config": {"model": "x"}})
    message = cli("plot", "odd.safetensors").error
    assert message.startswith("MAP_OR_MASK odd.safetensors ")
    assert {"square": "[1, 2, 17, 9]", "digits": "without a mask"}.get(damage, "don't fit each other") in message


def test_a_mask_that_protects_other_tokens_is_drawn_with_its_models(cli: Cli) -> None:
    """gen-mask --num-prefix-tokens says what is protected, not what the model has."""
    keep = np.random.default_rng(0).random((1, 1, 197, 197)) < 0.1
    for name, info in (
        ("plain", {"num_prefix_tokens": 1}),
        ("asked", {"num_prefix_tokens": 0, "map_num_prefix_tokens": 1}),
    ):
        write_mask(f"{name}.safetensors", Mask(keep, info))
        assert cli("plot", f"{name}.safetensors", "--title", "x", "--output-dir", name).code == 0
    assert Path("plain/block_00.png").read_bytes() == Path("asked/block_00.png").read_bytes()
    write_mask("odd.safetensors", Mask(keep, {"map_num_prefix_tokens": 198}))
    assert "map_num_prefix_tokens are 198" in cli("plot", "odd.safetensors").error


def config_of(height: int, width: int, **kwargs: Any) -> dict[str, Any]:
    """What a map says of a model for such images."""
    return ModelConfig(model="x", num_classes=3, img_size=(height, width), model_kwargs=kwargs).to_dict()


@pytest.mark.parametrize(
    ("patches", "config", "expected"),
    [
        (196, {}, Grid(14, 14, (224, 224))),
        (195, {}, None),
        (0, {}, None),
        (0, config_of(224, 224), None),
        (196, config_of(224, 224), Grid(14, 14, (224, 224))),
        (16, config_of(32, 32), Grid(4, 4, (32, 32))),
        (16, config_of(128, 32), Grid(8, 2, (128, 32))),
        (196, config_of(224, 224, patch_size=[32, 8]), Grid(7, 28, (224, 224))),
        (195, config_of(224, 224), None),
    ],
)
def test_grids_of_patches(patches: int, config: dict[str, Any], expected: Grid | None) -> None:
    assert patch_grid(patches, config) == expected


def test_a_grid_that_is_no_square_takes_no_picture(cli: Cli) -> None:
    """Its 16 patches would make a square."""
    info = {"num_prefix_tokens": 1, "model_config": config_of(128, 32)}
    write_mask("mask.safetensors", Mask(np.ones((1, 1, 17, 17), dtype=np.bool_), info))
    Image.new("RGB", (90, 70)).save("picture.png")
    message = cli("plot", "mask.safetensors", "--image", "picture.png").error
    assert message == "--image needs a square grid of patches, and this model's is 8 x 2; leave it out."
    assert cli("plot", "mask.safetensors").code == 0


@pytest.mark.parametrize(("size", "share"), [(32, 1.0), (224, 224 / 256)])
def test_a_picture_has_the_crop_of_the_evaluation(tmp_path: Path, size: int, share: float) -> None:
    """Models for up to 32 pixels see the whole picture, others its middle."""
    pixels_ = np.full((256, 256, 3), 255, dtype=np.uint8)
    pixels_[32:-32, 32:-32] = 0
    Image.fromarray(pixels_).save(tmp_path / "framed.png")
    grid = Grid(4, 4, (size, size))
    picture = look_at(str(tmp_path / "framed.png"), None, grid).picture
    dark = (picture[len(picture) // 2, :, 0] < 128).mean()
    assert dark == pytest.approx(0.75 / share, abs=0.03)


@pytest.mark.parametrize("prefix", [0, 1, 2])
def test_ticks_are_at_the_rows_of_patches(prefix: int) -> None:
    keep = np.ones((1, 1, 196 + prefix, 196 + prefix), dtype=np.bool_)
    figure = draw_block(Maps(None, keep, prefix), 0, "x")
    axis, axes = TokenAxis(196 + prefix, prefix), figure.axes[0]
    first = axis.widen(np.eye(196 + prefix, dtype=np.bool_)).shape[0] - 196  # cells of the prefix
    names = [label.get_text() for label in axes.get_xticklabels()]
    where = dict(zip(names, axes.get_xticks(), strict=True))
    rows = {first + 14 * row for row in range(14)}
    assert (names[0] == "prefix") == (prefix > 0)
    assert where.pop("prefix", None) == ((first - 1) / 2 if prefix else None)
    assert {first + int(name) - prefix for name in where} == set(where.values())
    assert len(where) >= 3
    assert {*where.values(), *axes.get_xticks(minor=True)} == rows
    assert {*axes.get_yticks(minor=True)} == {*axes.get_xticks(minor=True)}
    assert "each row of the 14 x 14 patches" in " ".join(text.get_text() for text in figure.texts)


def test_patches_without_a_grid_have_ticks_and_no_note_of_one() -> None:
    figure = draw_block(Maps(None, np.ones((1, 1, 196, 196), dtype=np.bool_), 1), 0, "x")
    assert len(figure.axes[0].get_xticks()) >= 4
    assert not any("Ticks" in text.get_text() for text in figure.texts)


def test_the_footnote_fits_the_narrowest_picture() -> None:
    keep = np.ones((1, 1, 197, 197), dtype=np.bool_)
    for figure in (draw_block(Maps(None, keep), 0, "x"), draw_overview(Maps(None, keep), "x")):
        width = pixels(figure).shape[1]
        assert all(text.get_window_extent().x1 <= width for text in figure.texts)


@pytest.mark.parametrize("name", ["overview", "block_00"])
def test_an_svg_holds_every_token(tmp_path: Path, name: str) -> None:
    """Enlarged, it shows them all; in pixels of the panel some rows and columns would be lost."""
    keep = np.random.default_rng(0).random((1, 2, 197, 197)) < 0.05
    save_plots(Maps(None, keep), tmp_path, "x", SilentReporter(), kind="svg")
    found = re.findall(r'data:image/png;base64,\s*([^"]+)"', (tmp_path / f"{name}.svg").read_text())
    images = [Image.open(io.BytesIO(base64.b64decode(re.sub(r"\s", "", each)))).convert("L") for each in found]
    assert len(images) == 2
    for head, image in enumerate(images):
        expected = TokenAxis(197, 1).widen(keep[0, head])
        np.testing.assert_array_equal(np.asarray(image) < 128, expected)


@pytest.mark.parametrize("kind", ["png", "pdf", "svg"])
def test_the_same_picture_has_the_same_bytes(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    keep = np.ones((1, 1, 17, 17), dtype=np.bool_)
    written = []
    for moment in ("0", "1000000000"):
        monkeypatch.setenv("SOURCE_DATE_EPOCH", moment)  # what a date would be taken from
        paths = save_plots(Maps(None, keep), tmp_path, "x", SilentReporter(), kind=kind)
        written.append([path.read_bytes() for path in paths])
    assert written[0] == written[1]


@pytest.mark.parametrize("name", ["overview", "block_03", "query"])
def test_no_picture_is_replaced_unasked(cli: Cli, make_map: MakeMap, name: str) -> None:
    np.save("map.npy", make_map(blocks=1))
    Image.new("RGB", (90, 70)).save("picture.png")
    Path("out").mkdir()
    there = Path("out", f"{name}.png")
    there.write_text("mine")
    words = ("plot", "map.npy", "--image", "picture.png", "--output-dir", "out")
    assert "--overwrite" in cli(*words).error
    assert there.read_text() == "mine"
    assert cli(*words, "--format", "svg").code == 0


def test_a_title_of_any_letters(make_map: MakeMap, tmp_path: Path) -> None:
    """It may come from a file, or be bytes that this locale can't read."""
    title = "\udcff\x1b[31m\n$\\frac$"
    save_plots(Maps(make_map(blocks=1)), tmp_path, title, SilentReporter())


def test_a_polarized_mask_is_drawn_in_both_orders(tmp_path: Path, cli: Cli) -> None:
    keep = np.zeros((1, 2, 17, 17), dtype=np.bool_)
    keep[..., [0, 9]] = True
    for name, mask in (
        ("plain", Mask(keep)),
        ("polarized", Mask(keep, {"order": "tokens"}, token_order(keep, 8))),
    ):
        write_mask(tmp_path / f"{name}.safetensors", mask)
        cli("plot", str(tmp_path / f"{name}.safetensors"), "--output-dir", str(tmp_path / name))
    heights = [Image.open(tmp_path / name / "block_00.png").height for name in ("plain", "polarized")]
    assert heights[1] > 1.5 * heights[0]
    maps = Maps(keep=keep, moved=reordered(keep, token_order(keep, 8)), global_tokens=np.array([[2, 2]], np.int32))
    panels = draw_block(maps, 0, "x").axes
    assert [panel.get_title() for panel in panels] == [
        text for head in (0, 1) for text in (f"head {head}: 88.2% pruned", f"head {head}: 2 dense keys first")
    ]
    assert np.asarray(panels[1].images[0].get_array())[:, :2].all()
    assert not np.asarray(panels[1].images[0].get_array())[:, 2:].any()


def test_a_file_that_gives_no_size_of_patches_has_the_grid_of_its_images() -> None:
    config = {"model": "deit_tiny_patch16_224", "num_classes": 10, "img_size": [224, 224], "svd_type": "none"}
    for kwargs in ({}, {"patch_size": None}, {"patch_size": 16}):
        assert str(patch_grid(196, {**config, "model_kwargs": kwargs})) == "14 x 14"


def sensitivities(heads: int | None) -> list[dict[str, Any]]:
    """Of three blocks at two sparsities; the last block minds nothing."""
    return [
        {
            "block": block,
            **({} if head is None else {"head": head}),
            "target": target,
            "kl": 0.0 if block == 2 else target * (1 + block) * (1 + (head or 0)),
            "standard_error": 0.01,
            "images": 9,
        }
        for block in range(3)
        for head in ([None] if heads is None else range(heads))
        for target in (0.5, 0.9)
    ]


def test_sensitivity_of_blocks_is_a_curve_for_each_sparsity() -> None:
    figure = draw_blocks(sensitivities(None), "kl", "KL")
    (axes,) = figure.axes
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["50 %", "90 %"]
    for line, target in zip(axes.lines, (0.5, 0.9), strict=True):
        assert line.get_ydata()[:2] == pytest.approx([target, 2 * target])
    assert axes.get_yscale() == "log"
    lowest = axes.get_ylim()[0]
    assert 0 < lowest < 0.5
    assert [line.get_ydata()[2] for line in axes.lines] == pytest.approx([lowest, lowest])
    pixels(figure)


def test_sensitivity_of_heads_is_a_map_for_each_sparsity(tmp_path: Path) -> None:
    rows = [row for row in sensitivities(4) if (row["head"], row["target"]) != (3, 0.9)]
    figure = draw_heads(rows, "kl", "KL")
    low, high, _ = figure.axes
    assert [axes.get_title() for axes in (low, high)] == ["50 % pruned", "90 % pruned"]
    cells = low.images[0].get_array()
    assert cells.shape == (3, 4)
    np.testing.assert_allclose(cells[1], [1.0, 2.0, 3.0, 4.0])
    assert np.ma.is_masked(high.images[0].get_array()[1, 3])  # what is missing stays white
    assert low.images[0].norm is high.images[0].norm
    pixels(figure)
    for kind, start in (("png", b"\x89PNG"), ("pdf", b"%PDF-"), ("svg", b"<?xml")):
        save_sensitivity(str(tmp_path / f"s.{kind}"), rows, "kl", title="$x$ \x1b")
        assert (tmp_path / f"s.{kind}").read_bytes().startswith(start)
