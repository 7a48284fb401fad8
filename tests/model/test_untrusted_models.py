"""What a stranger's file or a mistyped option asks timm for: an architecture that this machine can hold."""

from __future__ import annotations

import io
import json
import logging
import socket
import urllib.request
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from small_models import KINDS, config_of, random_keep, random_model
from timm.models.vision_transformer import VisionTransformer

from vitcod_cli import distributed
from vitcod_cli.artifacts.mask import Mask, write_mask
from vitcod_cli.artifacts.model_config import ModelConfig
from vitcod_cli.errors import VitcodError
from vitcod_cli.model import size
from vitcod_cli.model.build import build_model, model_config
from vitcod_cli.model.hub import pretrained_model
from vitcod_cli.model.layers import keep_mask
from vitcod_cli.model.load import load_model, save_model
from vitcod_cli.model.settings import ModelSettings
from vitcod_cli.reporting import QUIET, SilentReporter

NAME = "deit_tiny_patch16_224"


class Talk(SilentReporter):
    """Remembers what it is warned of."""

    def __init__(self) -> None:
        super().__init__()
        self.warnings: list[str] = []

    def warn(self, text: str) -> None:
        self.warnings.append(text)


def load(source: object, mask: object = None, reporter: Any = QUIET, **settings: Any) -> VisionTransformer:
    return load_model(
        ModelSettings(**settings),
        None if source is None else str(source),
        flag="--checkpoint",
        reporter=reporter,
        mask=None if mask is None else str(mask),
    )


def refusal(*arguments: Any, **settings: Any) -> str:
    with pytest.raises(VitcodError) as error:
        load(*arguments, **settings)
    message = str(error.value)
    assert message[-1] in ".?"
    assert "\n" not in message
    return message


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    path = tmp_path / "model.safetensors"
    save_model(path, random_model(config_of("class token")), {})
    return path


# -- arguments --------------------------------------------------------------------------------

DANGEROUS = [
    "checkpoint_path",
    "pretrained",
    "pretrained_cfg",
    "pretrained_cfg_overlay",
    "pretrained_custom_load",
    "pretrained_strict",
    "pretrained_model_args",
    "cache_dir",
    "scriptable",
    "exportable",
    "no_jit",
    "features_only",
    "feature_cls",
    "out_indices",
    "pruned",
    "use_naflex",
    "attn_layer",
    "block_fn",
    "mlp_layer",
    "embed_layer",
    "device",
    "dtype",
    "__class__",
]


@pytest.mark.parametrize("name", DANGEROUS)
def test_only_arguments_of_the_architecture_reach_timm(
    saved: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights, config = load_file(saved), config_of("class token")
    kwargs = {**config.model_kwargs, name: "other.pth"}
    info = {"format": "checkpoint", "version": 1, "model_config": {**config.to_dict(), "model_kwargs": kwargs}}
    save_file(weights, saved, {"vitcod": json.dumps(info)})
    monkeypatch.setattr(timm, "create_model", lambda *_, **__: pytest.fail("timm was asked"))
    assert f"{name} is refused" in refusal(saved)
    assert f"--model-kwargs: {name} is refused" in refusal(None, model=NAME, model_kwargs=[f"{name}=other.pth"])
    with pytest.raises(VitcodError, match=f"{name} is refused"):
        build_model(config.changed(model_kwargs=kwargs))


@pytest.mark.parametrize(
    "name",
    [
        "hf-hub:timm/deit_tiny_patch16_224.fb_in1k",
        "hf_hub:timm/deit_tiny_patch16_224",
        "local-dir:/tmp",
        "timm/deit_tiny_patch16_224",
        "/etc/deit_tiny_patch16_224",
        "deit_tiny_patch16_224.no_such_tag",
        "deit_tiny_patch16_224./etc/passwd",
        "deit_tiny_patch16_224\n",
        "x" * 4000,
        "",
    ],
    ids=lambda name: name[:40],
)
def test_only_names_of_timms_registry(saved: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timm, "create_model", lambda *_, **__: pytest.fail("timm was asked"))
    assert "is not a model that timm knows" in refusal(None, model=name) or not name
    assert "is not a model that timm knows" in refusal("timm", model=name) or not name
    weights = load_file(saved)
    info = {
        "format": "checkpoint",
        "version": 1,
        "model_config": {**config_of("class token").to_dict(), "model": name},
    }
    save_file(weights, saved, {"vitcod": json.dumps(info)})
    assert len(refusal(saved)) < 1000


def test_a_name_with_its_tag() -> None:
    model = load(None, model=f"{NAME}.fb_in1k", model_kwargs=["depth=1"], num_classes=2)
    assert model_config(model).model == f"{NAME}.fb_in1k"


@pytest.mark.parametrize(
    "entry",
    [
        *("act_layer=gelu_tanh", "norm_layer=rmsnorm", "weight_init=jax", "patch_size=(8, 8)", "init_values=1e-5"),
        *("reg_tokens=4", "fc_norm=True", "global_pool=avg", "dynamic_img_size=True", "mlp_ratio=2", "in_chans=1"),
    ],
)
def test_arguments_that_are_the_architectures(entry: str) -> None:
    load(None, model=NAME, model_kwargs=["depth=1", "embed_dim=24", "num_heads=3", entry], img_size=32)


# -- sizes ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "settings",
    [
        {"img_size": 100_000},
        {"num_classes": 10**9},
        {"model_kwargs": ["embed_dim=4194304", "num_heads=1"]},
        {"model_kwargs": ["depth=256", "embed_dim=8192", "num_heads=1"]},
        {"model_kwargs": ["mlp_ratio=1000", "embed_dim=8192", "num_heads=1"]},
        {"model_kwargs": ["in_chans=1000000000"]},
        {"model_kwargs": ["patch_size=1"], "img_size": 600},
        {"model_kwargs": ["reg_tokens=2000000000"]},
    ],
)
def test_a_model_larger_than_the_machine(settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(size, "memory_bytes", lambda: 24 << 30)
    message = refusal(None, model=NAME, **settings)
    assert "too large for this machine" in message


@pytest.mark.parametrize("entry", ["depth=1000000", "embed_dim=-1", "num_heads=1.5", "patch_size=99999999999"])
def test_numbers_that_no_model_has(entry: str) -> None:
    assert entry.partition("=")[0] in refusal(None, model=NAME, model_kwargs=[entry])


def test_numbers_whose_product_is_no_size() -> None:
    message = refusal(None, model=NAME, model_kwargs=["embed_dim=2147483647", "num_heads=1"])
    assert "timm can't build" in message or "too large" in message


@pytest.mark.parametrize(("given", "near"), [(31, "24 or 32"), (33, "32 or 40"), (12, "8 or 16")])
def test_an_image_size_that_patches_do_not_divide(saved: Path, given: int, near: str) -> None:
    message = refusal(saved, img_size=given)
    assert f"--img-size {given} can't be divided into patches of 8 pixels" in message
    assert f"take {near}." in message


def test_image_sizes_that_timm_itself_crops_or_pads() -> None:
    own = {"depth": 1, "embed_dim": 24, "num_heads": 3}
    build_model(
        ModelConfig(model="vit_so400m_patch14_siglip_384", num_classes=0, img_size=(384, 384), model_kwargs=own)
    )
    padded = {**own, "dynamic_img_size": True, "dynamic_img_pad": True}
    build_model(ModelConfig(model=NAME, num_classes=0, img_size=(31, 31), model_kwargs=padded))


@pytest.mark.parametrize("kind", KINDS)
def test_what_fits_is_built(kind: str) -> None:
    build_model(config_of(kind))


# -- weights ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "dtype",
    [torch.int8, torch.uint8, torch.int64, torch.bool, torch.complex64, torch.float8_e4m3fn, torch.float8_e5m2],
)
@pytest.mark.parametrize("form", ["safetensors", "pth"])
def test_weights_that_are_no_floats(saved: Path, dtype: torch.dtype, form: str) -> None:
    weights = {**load_file(saved), "head.weight": torch.ones(5, 24).to(dtype)}
    path = saved.with_suffix("." + form)
    if form == "pth":
        torch.save(weights, path)
    else:
        save_file(weights, path)
    kwargs = [f"{name}={value}" for name, value in config_of("class token").model_kwargs.items()]
    message = refusal(path, model=NAME, model_kwargs=kwargs, img_size=32)
    assert f"head.weight in {str(dtype).removeprefix('torch.')}" in message


# -- another model's mask ---------------------------------------------------------------------


def masked(saved: Path, reporter: Any = QUIET, **info: Any) -> VisionTransformer:
    keep = random_keep(random_model(config_of("class token"))).numpy()
    write_mask(saved.with_name("mask"), Mask(keep, info))
    return load(saved, saved.with_name("mask"), reporter)


@pytest.mark.parametrize(
    "info",
    [
        {},
        {"num_prefix_tokens": 1},
        {"num_prefix_tokens": 3, "map_num_prefix_tokens": 1},
        {"model_config": config_of("class token", num_classes=1000, svd_type="mix_head_fc_qk").to_dict()},
        {"model_config": {**config_of("class token").to_dict(), "model": f"{NAME}.fb_in1k"}},
        {"model_config": {**config_of("class token").to_dict(), "model_kwargs": None}},
    ],
)
def test_a_mask_of_this_architecture(saved: Path, info: dict[str, Any]) -> None:
    talk = Talk()
    assert keep_mask(masked(saved, talk, **info)) is not None
    assert talk.warnings == []


@pytest.mark.parametrize(
    ("info", "words"),
    [
        ({"model_config": {**config_of("class token").to_dict(), "model": "vit_tiny_patch16_224"}}, "vit_tiny"),
        ({"model_config": {"model": "x" * 10_000}}, "was made for xxx"),
        ({"num_prefix_tokens": 2}, "--num-prefix-tokens 1"),
        ({"num_prefix_tokens": 1, "map_num_prefix_tokens": 0}, "--num-prefix-tokens 1"),
    ],
)
def test_a_mask_of_another_architecture(saved: Path, info: dict[str, Any], words: str) -> None:
    with pytest.raises(VitcodError, match=words) as error:
        masked(saved, **info)
    assert len(str(error.value)) < 500


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"img_size": (64, 64)}, "--img-size"),
        ({"model_kwargs": {"patch_size": 8, "embed_dim": 48, "depth": 2, "num_heads": 3}}, "--model-kwargs"),
    ],
)
def test_a_mask_of_another_size_is_warned_of(saved: Path, change: dict[str, Any], words: str) -> None:
    talk = Talk()
    assert (
        keep_mask(masked(saved, talk, model_config={**config_of("class token").to_dict(), **change})) is not None
    )
    assert len(talk.warnings) == 1
    assert words in talk.warnings[0]


# -- the hub ----------------------------------------------------------------------------------


class Hub:
    """Stands for the hub: how often it was asked, and whether its client was told to keep to its cache."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, answer: BaseException | None) -> None:
        self.answer, self.probes, self.offline = answer, 0, list[bool]()
        self.cached = False
        monkeypatch.setattr(urllib.request, "urlopen", self.probe)
        monkeypatch.setattr(timm, "create_model", self.create)
        for name in ("ALL_PROXY", "all_proxy"):
            monkeypatch.delenv(name, raising=False)

    def probe(self, request: urllib.request.Request, timeout: float) -> Any:
        self.probes += 1
        assert timeout <= 10
        if self.answer is not None:
            raise self.answer
        return io.BytesIO()

    def create(self, name: str, pretrained: bool = False, **_: Any) -> str:
        from huggingface_hub import constants

        assert pretrained
        assert not logging.getLogger("huggingface_hub").isEnabledFor(logging.WARNING)
        self.offline.append(constants.HF_HUB_OFFLINE)
        if constants.HF_HUB_OFFLINE and not self.cached:
            raise RuntimeError("not in the cache\nand more")
        return name


UNREACHABLE = URLError(socket.gaierror(-2, "Name or service not known"))


def test_a_hub_that_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    for answer in (None, HTTPError("https://x", 403, "no", None, None)):  # type: ignore[arg-type]
        hub = Hub(monkeypatch, answer)
        assert pretrained_model("name", "--teacher name") == "name"
        assert hub.offline == [False]


def test_a_hub_that_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    level = logging.getLogger("huggingface_hub").level
    for answer in (UNREACHABLE, TimeoutError("timed out"), ConnectionRefusedError(111, "Connection refused")):
        hub = Hub(monkeypatch, answer)
        with pytest.raises(VitcodError) as error:
            pretrained_model("name", "--teacher name")
        assert str(error.value).startswith("--teacher name could not get the pretrained weights of name (")
        assert "\n" not in str(error.value)
        assert hub.offline == [True]
        hub.cached = True
        assert pretrained_model("name", "--teacher name") == "name", "from the cache"
    assert logging.getLogger("huggingface_hub").level == level


@pytest.mark.parametrize("local_rank", [0, 1])
def test_one_process_of_a_machine_asks(monkeypatch: pytest.MonkeyPatch, local_rank: int) -> None:
    hub, others = Hub(monkeypatch, None), list[str | None]([None])
    monkeypatch.setattr(distributed, "is_distributed", lambda: True)
    monkeypatch.setattr(distributed, "local_rank", lambda: local_rank)
    monkeypatch.setattr(distributed, "gather_objects", lambda value: [*others, value])
    hub.cached = True
    assert pretrained_model("name", "--x") == "name"
    assert (hub.probes, hub.offline) == ((1, [False]) if local_rank == 0 else (0, [True]))
    others[:] = ["--x could not."]
    with pytest.raises(VitcodError, match=r"^--x could not\.$"):
        pretrained_model("name", "--x")
    assert hub.probes == (2 if local_rank == 0 else 0)
