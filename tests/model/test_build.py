"""Which models are treated, which are refused by name, and what a mask must be like."""

from __future__ import annotations

import pytest
import torch
from small_models import KINDS, SMALL, config_of, random_keep, random_model

from vitcod_cli.artifacts.model_config import ModelConfig
from vitcod_cli.errors import VitcodError
from vitcod_cli.model.attention import SparseLowRankAttention
from vitcod_cli.model.build import build_model, check_architecture, default_img_size, input_channels
from vitcod_cli.model.layers import attention_shape, attentions, clear_keep_mask, keep_mask, set_keep_mask

SHAPES = {
    "class token": (2, 3, 17, 17),
    "distilled": (2, 3, 18, 18),
    "pooled, no class token": (2, 3, 16, 16),
    "registers": (2, 3, 21, 21),
    "even head count": (2, 4, 17, 17),
    "one head": (2, 1, 17, 17),
    "parallel blocks": (4, 3, 17, 17),
    "DINOv3": (2, 3, 21, 21),
    "DINOv3, key bias": (2, 3, 21, 21),
    "grouped queries": (2, 3, 25, 25),
    "relative position": (2, 3, 16, 16),
    "shared relative position": (2, 3, 16, 16),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_attention_layer_is_ours(kind: str) -> None:
    model = build_model(config_of(kind))
    assert attention_shape(model) == SHAPES.get(kind, SHAPES["class token"])
    assert len(attentions(model)) == attention_shape(model)[0]
    assert all(isinstance(layer, SparseLowRankAttention) for layer in attentions(model))


REFUSED = {
    "swin_tiny_patch4_window7_224": "SwinTransformer",
    "resnet18": "ResNet",
    "vit_dlittle_patch16_reg1_gap_256": r"VisionTransformer \(its attention is the difference of two softmaxes\);",
    "vit_base_patch16_xp_224": r"VisionTransformer \(its blocks project Q, K, V and the MLP in one product\);",
    "naflexvit_base_patch16_gap": "NaFlexVit",
    "samvit_base_patch16": "VisionTransformerSAM",
    "xcit_nano_12_p16_224": r"Xcit \(it attends between channels, not between tokens\);",
}


@pytest.mark.parametrize("name", REFUSED)
def test_other_architectures_are_refused_by_name(name: str) -> None:
    with pytest.raises(VitcodError, match=f"--model {name} can't be treated: it is a {REFUSED[name]}") as error:
        check_architecture(ModelConfig(model=name, num_classes=5, img_size=default_img_size(name)))
    assert "vitcod models lists those that can" in str(error.value)


def test_names_that_nobody_knows() -> None:
    with pytest.raises(VitcodError, match=r"did you mean .*deit_tiny_patch16_224"):
        check_architecture(ModelConfig(model="deit_tiny_patch16_244", num_classes=5, img_size=(224, 224)))
    with pytest.raises(VitcodError, match="list_models"):
        default_img_size("§§§")


@pytest.mark.parametrize(
    "kwargs",
    [
        {"nope": 1},
        {"num_heads": 0},
        {"num_heads": 5},
        {"embed_dim": "wide"},
        {"act_layer": "nope"},
        {"depth": -1},
        {"patch_size": 0},
        {"attn_layer": "diff"},
        {"depth": 0},
    ],
)
def test_arguments_that_make_no_model(kwargs: dict[str, object]) -> None:
    config = config_of("class token").changed(model_kwargs={**SMALL, **kwargs})
    with pytest.raises(VitcodError) as error:
        build_model(config)
    assert "--model deit_tiny_patch16_224" in str(error.value)
    assert str(error.value).endswith(".")


def test_images_smaller_than_a_patch() -> None:
    with pytest.raises(VitcodError, match="--img-size 7x32"):
        build_model(config_of("class token", img_size=(7, 32)))


def test_size_of_a_model() -> None:
    assert default_img_size("deit_base_patch16_384") == (384, 384)
    assert default_img_size("deit_base_patch16_384", {"img_size": 64}) == (64, 64)
    assert default_img_size("deit_base_patch16_384", {"img_size": (64, 32)}) == (64, 32)
    assert attention_shape(build_model(config_of("class token", img_size=(32, 48)))) == (2, 3, 25, 25)


def test_masks_are_set_read_and_cleared() -> None:
    model = random_model(config_of("distilled"))
    assert keep_mask(model) is None
    keep = random_keep(model)
    set_keep_mask(model, keep)
    assert torch.equal(keep_mask(model), keep)
    clear_keep_mask(model)
    assert keep_mask(model) is None
    assert "blocks.0.attn.keep" not in model.state_dict()


def test_masks_that_do_not_fit() -> None:
    model = random_model(config_of("class token"))
    for shape in ((2, 3, 16, 16), (2, 4, 17, 17), (3, 3, 17, 17), (3, 17, 17)):
        with pytest.raises(VitcodError, match="--mask has the shape") as error:
            set_keep_mask(model, torch.ones(shape, dtype=torch.bool))
        assert "[2, 3, 17, 17]" in str(error.value)
    keep = random_keep(model)
    keep[0, 1, 2] = False
    keep[1, 2, 16] = False
    with pytest.raises(VitcodError, match=r"2 queries look at no key.*block 0, head 1, row 2.*polarity"):
        set_keep_mask(model, keep)
    assert keep_mask(model) is None


@pytest.mark.parametrize(("name", "channels"), [("vit_tiny_r_s16_p8_224", 3), ("deit_tiny_patch16_224", 1)])
def test_the_channels_of_its_images(name: str, channels: int) -> None:
    """Also of a hybrid, whose patches are cut from the features of a ResNet."""
    kwargs = {} if channels == 3 else {"in_chans": channels}
    size = {"img_size": (64, 64), "num_classes": 2, "model_kwargs": {"depth": 1, **kwargs}}
    model = build_model(ModelConfig(model=name, **size))
    assert input_channels(model) == channels
    assert model(torch.zeros(1, channels, 64, 64)).shape == (1, 2)
