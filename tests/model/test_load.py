"""Which model is built, what is loaded into it, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from small_models import SMALL, config_of, random_keep, random_model, with_svd_types
from timm.layers import resample_abs_pos_embed
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from vitcod_cli.artifacts.checkpoint import write_checkpoint
from vitcod_cli.artifacts.mask import Mask, write_mask
from vitcod_cli.artifacts.model_config import SVD_TYPES, ModelConfig, SvdType
from vitcod_cli.artifacts.safetensors_file import read_safetensors_info
from vitcod_cli.errors import VitcodError
from vitcod_cli.model.build import build_model, model_config
from vitcod_cli.model.layers import keep_mask, set_keep_mask
from vitcod_cli.model.load import load_model, save_model
from vitcod_cli.model.settings import ModelSettings
from vitcod_cli.reporting import SilentReporter

torch.set_num_threads(1)

KWARGS = [f"{key}={value}" for key, value in SMALL.items()]

GOLDEN = Path(__file__).parents[1] / "golden" / "model"


class Talk(SilentReporter):
    """Remembers what was said."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def info(self, text: str) -> None:
        self.lines.append(text)


def load(source: object, talk: Talk | None = None, **values: Any) -> VisionTransformer:
    keywords = {name: values.pop(name) for name in ("mask", "classes_of_data") if name in values}
    return load_model(
        ModelSettings(**values),
        None if source is None else str(source),
        flag="--checkpoint",
        mask=keywords.get("mask"),
        reporter=talk or Talk(),
    ).eval()


def refusal(source: object, **values: Any) -> str:
    with pytest.raises(VitcodError) as error:
        load(source, **values)
    message = str(error.value)
    assert message.endswith(".")
    assert "\n" not in message
    return message


@pytest.fixture
def images() -> Tensor:
    return torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def plain(tmp_path: Path) -> Path:
    """Plain timm weights of a small DeiT with 5 classes: no word about the model."""
    path = tmp_path / "plain.safetensors"
    save_file(random_model(config_of("class token")).state_dict(), path)
    return path


# -- a checkpoint of ours needs no words ------------------------------------------------------


@torch.no_grad()
@pytest.mark.parametrize(("kind", "svd_type"), with_svd_types(*SVD_TYPES))
def test_a_saved_model_comes_back_by_itself(kind: str, svd_type: SvdType, tmp_path: Path, images: Tensor) -> None:
    model = random_model(config_of(kind, svd_type=svd_type))
    set_keep_mask(model, random_keep(model))
    talk = Talk()
    save_model(tmp_path / "x.safetensors", model, {"epoch": 3})
    back = load(tmp_path / "x.safetensors", talk)
    assert torch.equal(back(images), model(images))
    assert model_config(back) == model_config(model)
    assert torch.equal(keep_mask(back), keep_mask(model))
    assert talk.lines == []
    assert read_safetensors_info(tmp_path / "x.safetensors", kind="checkpoint", flag="")["epoch"] == 3


@torch.no_grad()
def test_the_real_low_rank_checkpoint_under_the_authors_mask(shared: Path) -> None:
    talk = Talk()
    mask = shared / "golden" / "vitcod_deit_tiny_info_0.95.npy"
    model = load(shared / "weights" / "deit_tiny_lowrank_reference.pth", talk, mask=str(mask))
    assert model_config(model) == ModelConfig(
        model="deit_tiny_patch16_224", num_classes=1000, img_size=(224, 224), svd_type="mix_head_fc_qk"
    )
    kept = keep_mask(model)
    assert kept is not None
    assert 0.94 < 1 - kept.float().mean() < 0.96
    assert talk.lines == []


# -- which model ------------------------------------------------------------------------------


def test_the_users_words_go_first(tmp_path: Path) -> None:
    save_model(tmp_path / "x.safetensors", random_model(config_of("class token")), {})
    same = model_config(load(tmp_path / "x.safetensors", model="deit_tiny_patch16_224"))
    assert same == config_of("class token")
    other = model_config(
        load(tmp_path / "x.safetensors", num_classes=7, img_size=48, model_kwargs=["drop_rate=0.1"])
    )
    assert (other.num_classes, other.img_size) == (7, (48, 48))
    assert other.model_kwargs == {**SMALL, "drop_rate": 0.1}


def test_random_weights() -> None:
    config = model_config(load(None, model="deit_tiny_patch16_224", model_kwargs=KWARGS, num_classes=9))
    assert config == ModelConfig(
        model="deit_tiny_patch16_224", num_classes=9, img_size=(224, 224), model_kwargs=SMALL
    )
    assert model_config(load(None, model="test_vit")).num_classes == 1000
    assert model_config(load(None, model="test_vit", num_classes=3)).num_classes == 3
    assert "--model is needed" in refusal(None)


def test_plain_weights_need_a_name(plain: Path) -> None:
    message = refusal(plain)
    assert "doesn't say which model" in message
    assert "2 blocks of width 24 and patches of 8 pixels" in message
    assert "--model" in message
    config = model_config(load(plain, model="deit_tiny_patch16_224", model_kwargs=KWARGS, img_size=32))
    assert config == config_of("class token")


def test_published_names_that_timm_does_not_know() -> None:
    source = GOLDEN / "heads4_q_reference.pth"
    assert "calls its model 'custom'" in refusal(source)
    kwargs = ["patch_size=8", "embed_dim=64", "depth=2", "num_heads=4"]
    config = model_config(load(source, model="deit_tiny_patch16_224", model_kwargs=kwargs))
    assert (config.num_classes, config.img_size, config.svd_type) == (10, (112, 112), "mix_head_fc_q")


def test_a_published_checkpoint_trained_under_a_mask_says_so() -> None:
    talk = Talk()
    kwargs = ["patch_size=8", "embed_dim=48", "depth=2", "num_heads=3"]
    path = GOLDEN / "heads3_dense_masked"
    load(f"{path}_reference.pth", talk, model="deit_tiny_patch16_224", model_kwargs=kwargs)
    assert len(talk.lines) == 1
    assert "heads3_dense_masked_mask_reference.npy" in talk.lines[0]
    assert "--mask" in talk.lines[0]


def test_size_and_classes_may_be_model_kwargs_as_in_timm(plain: Path) -> None:
    kwargs = [*KWARGS, "img_size=32", "num_classes=5"]
    assert model_config(load(plain, model="deit_tiny_patch16_224", model_kwargs=kwargs)) == config_of(
        "class token"
    )
    message = refusal(plain, model="deit_tiny_patch16_224", model_kwargs=kwargs, img_size=48)
    assert "--img-size 48" in message


@pytest.mark.parametrize(
    ("entries", "expected"),
    [
        (["depth=6", "mlp_ratio=4.0"], {"depth": 6, "mlp_ratio": 4.0}),
        (["qk_norm=True", "global_pool=avg"], {"qk_norm": True, "global_pool": "avg"}),
        (["init_values=None"], {"init_values": None}),
        (["img_size=(32, 48)", "act_layer=gelu_tanh"], {"img_size": (32, 48), "act_layer": "gelu_tanh"}),
        ([" depth = 6 ", "pos_embed="], {"depth": 6, "pos_embed": ""}),
    ],
)
def test_model_kwargs(entries: list[str], expected: dict[str, Any]) -> None:
    assert ModelSettings(model_kwargs=entries).kwargs() == expected


@pytest.mark.parametrize(
    "entries", [["depth"], ["=3"], ["a b=3"], ["depth=1", "depth=2"], [""], ["act_layer=gelu=tanh"], ["x="]]
)
def test_model_kwargs_that_are_none(entries: list[str]) -> None:
    with pytest.raises(VitcodError, match="--model-kwargs"):
        ModelSettings(model_kwargs=entries)


# -- the head ---------------------------------------------------------------------------------


def test_only_another_class_count_gives_a_new_head(tmp_path: Path) -> None:
    model = random_model(config_of("distilled"))
    save_model(tmp_path / "x.safetensors", model, {})
    talk = Talk()
    changed = load(tmp_path / "x.safetensors", talk, num_classes=7).state_dict()
    assert changed["head.weight"].shape == changed["head_dist.weight"].shape == (7, 24)
    for name, value in model.state_dict().items():
        assert name.startswith("head") or torch.equal(changed[name], value)
    assert len(talk.lines) == 1
    assert "head and head_dist" in talk.lines[0]
    assert "5 classes" in talk.lines[0]
    talk = Talk()
    kept = load(tmp_path / "x.safetensors", talk, num_classes=5).state_dict()
    assert all(torch.equal(kept[name], value) for name, value in model.state_dict().items())
    assert talk.lines == []


def test_a_model_without_a_head(tmp_path: Path) -> None:
    save_model(tmp_path / "x.safetensors", random_model(config_of("class token")), {})
    talk = Talk()
    headless = load(tmp_path / "x.safetensors", talk, num_classes=0)
    assert "left out" in talk.lines[0]
    save_model(tmp_path / "headless.safetensors", headless, {})
    assert model_config(load(tmp_path / "headless.safetensors")).num_classes == 0
    talk = Talk()
    assert load(tmp_path / "headless.safetensors", talk, num_classes=3).head.weight.shape == (3, 24)
    assert "starts afresh" in talk.lines[0]


# -- sizes ------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["class token", "distilled", "pooled, no class token", "registers", "deit3"])
def test_position_embeddings_are_resampled_as_timm_does(kind: str, tmp_path: Path) -> None:
    model = random_model(config_of(kind))
    save_model(tmp_path / "x.safetensors", model, {})
    talk = Talk()
    larger = load(tmp_path / "x.safetensors", talk, img_size=48)
    prefix = model.pos_embed.shape[1] - 16
    expected = resample_abs_pos_embed(model.pos_embed, new_size=(6, 6), old_size=(4, 4), num_prefix_tokens=prefix)
    torch.testing.assert_close(larger.pos_embed, expected)
    assert "resampled pos_embed" in talk.lines[0]
    assert larger(torch.zeros(1, 3, 48, 48)).shape == (1, 5)


def test_patches_are_resampled(plain: Path, tmp_path: Path) -> None:
    kwargs = [*KWARGS[1:], "patch_size=16"]
    talk = Talk()
    model = load(plain, talk, model="deit_tiny_patch16_224", model_kwargs=kwargs, img_size=64)
    assert model.patch_embed.proj.weight.shape == (24, 3, 16, 16)
    assert "patch_embed.proj.weight" in talk.lines[0]


def test_a_sparse_model_keeps_its_image_size(tmp_path: Path) -> None:
    model = random_model(config_of("class token"))
    set_keep_mask(model, random_keep(model))
    save_model(tmp_path / "x.safetensors", model, {})
    message = refusal(tmp_path / "x.safetensors", img_size=48)
    assert "17 tokens" in message
    assert "37" in message
    assert load(tmp_path / "x.safetensors", img_size=32, num_classes=2).num_classes == 2


# -- what doesn't fit -------------------------------------------------------------------------


def changed_copy(path: Path, remove: tuple[str, ...] = (), **add: Tensor) -> Path:
    state_dict = {k: v for k, v in load_file(path).items() if k not in remove}
    write_checkpoint(path.with_name("changed.safetensors"), {**state_dict, **add}, config_of("class token"), {})
    return path.with_name("changed.safetensors")


def test_missing_unexpected_and_misshapen_tensors_are_listed(plain: Path) -> None:
    assert "1 missing (norm.weight)" in refusal(changed_copy(plain, ("norm.weight",)))
    assert "1 unexpected (extra)" in refusal(changed_copy(plain, extra=torch.ones(1)))
    misshapen = changed_copy(plain, **{"norm.bias": torch.ones(7)})
    assert "1 of another shape (norm.bias [7] instead of [24])" in refusal(misshapen)
    removed = tuple(f"blocks.1.{name}" for name in ("norm1.weight", "norm1.bias", "norm2.weight", "norm2.bias"))
    message = refusal(changed_copy(plain, (*removed, "norm.weight"), extra=torch.ones(1)))
    assert "5 missing (blocks.1.norm1.weight, " in message
    assert "..." in message
    assert "1 unexpected" in message


def test_half_an_auto_encoder_is_missing_its_other_half(plain: Path) -> None:
    assert "missing (blocks.0.attn.encoder_q.bias" in refusal(
        changed_copy(plain, **{"blocks.0.attn.encoder_q.weight": torch.ones(2, 3)})
    )


@pytest.mark.parametrize(
    ("name", "kwargs", "words"),
    [
        ("deit_small_patch16_224", [], "of another shape"),
        ("deit_tiny_distilled_patch16_224", KWARGS, "3 missing (dist_token, head_dist.weight, head_dist.bias)"),
        ("vit_tiny_patch16_224", [*KWARGS, "qk_norm=True"], "8 missing"),
        ("deit_tiny_patch16_224", [*KWARGS[:2], "num_heads=3"], "missing"),
    ],
)
def test_another_architecture(plain: Path, name: str, kwargs: list[str], words: str) -> None:
    message = refusal(plain, model=name, model_kwargs=kwargs)
    assert words in message
    assert f"doesn't fit --model {name}" in message
    assert "2 blocks of width 24" in message


def test_the_likely_model_is_named(shared: Path) -> None:
    source = shared / "weights" / "deit_tiny_patch16_224.safetensors"
    assert "as deit_tiny_patch16_224 has" in refusal(source, model="deit_small_patch16_224")
    assert "as deit_tiny_patch16_224 has" in refusal(source)


def test_values_that_are_not_finite(plain: Path) -> None:
    broken = changed_copy(plain, **{"norm.bias": torch.full((24,), float("nan"))})
    assert "not finite in norm.bias" in refusal(broken)


@pytest.mark.parametrize(
    "keep",
    [
        {"blocks.0.attn.keep": torch.ones(3, 17, 17, dtype=torch.bool)},
        {f"blocks.{i}.attn.keep": torch.tensor(True) for i in range(2)},
        {f"blocks.{i}.attn.keep": torch.ones(3, 17, 17) for i in range(2)},
        {f"blocks.{i}.attn.keep": torch.ones(4, 17, 17, dtype=torch.bool) for i in range(2)},
        {f"blocks.{i}.attn.keep": torch.ones(3, 16, 17, dtype=torch.bool) for i in range(2)},
    ],
)
def test_masks_that_are_not_whole(plain: Path, keep: dict[str, Tensor]) -> None:
    assert "holds masks for" in refusal(changed_copy(plain, **keep))


def test_a_mask_of_another_model_and_a_row_without_keys(plain: Path, tmp_path: Path) -> None:
    source, mask = changed_copy(plain), tmp_path / "mask.safetensors"
    keep = random_keep(random_model(config_of("class token"))).numpy()
    write_mask(mask, Mask(keep[:, :, :16, :16]))
    assert "[2, 3, 16, 16]" in (message := refusal(source, mask=str(mask)))
    assert "[2, 3, 17, 17]" in message
    keep[1, 2, 5] = False
    write_mask(mask, Mask(keep))
    assert "block 1, head 2, row 5" in refusal(source, mask=str(mask))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_are_loaded_to_float32(plain: Path, dtype: torch.dtype) -> None:
    halves = {name: value.to(dtype) for name, value in load_file(plain).items()}
    write_checkpoint(plain, halves, config_of("class token"), {})
    model = load(plain)
    assert all(parameter.dtype == torch.float32 for parameter in model.parameters())
    assert torch.equal(model.norm.bias, halves["norm.bias"].float())


# -- the hub ----------------------------------------------------------------------------------


def test_the_hubs_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    create = timm.create_model
    hub = create("test_vit")

    def pretrained(name: str, pretrained: bool = False, **kwargs: Any) -> Any:
        return hub if pretrained else create(name, **kwargs)

    monkeypatch.setattr(timm, "create_model", pretrained)
    talk = Talk()
    model = load("timm", talk, model="test_vit", classes_of_data=5)
    assert model_config(model).num_classes == 1000
    assert torch.equal(model.head.weight, hub.head.weight)
    assert talk.lines == []
    assert load("timm", model="test_vit", num_classes=5).num_classes == 5
    assert "--model" in refusal("timm")


def test_a_hub_that_cannot_be_reached(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    message = refusal("timm", model="test_vit")
    assert message.startswith("--checkpoint timm could not get the pretrained weights of test_vit")
    assert "resnet18 can't be treated" in refusal("timm", model="resnet18")


def test_a_teacher_that_does_not_say_what_it_is_is_taken_for_the_students_model(
    tmp_path: Path, tiny_config: ModelConfig
) -> None:
    path = tmp_path / "teacher.safetensors"
    save_file(build_model(tiny_config).state_dict(), path)
    settings, reporter = ModelSettings(), SilentReporter()
    with pytest.raises(VitcodError, match="name the model with --model"):
        load_model(settings, str(path), flag="--teacher", reporter=reporter)
    student = tiny_config.changed(svd_type="mix_head_fc_qk", num_classes=7)
    teacher = load_model(settings, str(path), flag="--teacher", reporter=reporter, like=student)
    assert model_config(teacher) == tiny_config


@pytest.mark.parametrize("name", ["head.weight", "patch_embed.proj.weight", "pos_embed"])
def test_a_file_of_ours_whose_tensors_are_another_models(tmp_path: Path, name: str) -> None:
    """Foreign weights are resampled, and get a new head; a file that says what it holds holds just that."""
    model = random_model(config_of("class token"))
    tensors = dict(model.state_dict())
    tensors[name] = tensors[name][..., :-1] if name != "head.weight" else tensors[name][:-1]
    write_checkpoint(tmp_path / "odd.safetensors", tensors, model_config(model), {})
    assert f"names a model whose {name} is" in refusal(tmp_path / "odd.safetensors")


def test_a_tensor_of_more_dimensions_than_torch_computes_with(tmp_path: Path) -> None:
    tensors = dict(random_model(config_of("class token")).state_dict())
    save_file(
        {**tensors, "norm.bias": tensors["norm.bias"].reshape(*[1] * 100, -1)}, tmp_path / "deep.safetensors"
    )
    assert "norm.bias of more than 8 dimensions" in refusal(
        tmp_path / "deep.safetensors", model="deit_tiny_patch16_224", model_kwargs=KWARGS, img_size=32
    )
