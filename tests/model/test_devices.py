"""The way of a GPU, where there is none: no tensor is left on the CPU.

Forward passes run under torch's ``FakeTensorMode``, whose tensors say that they are on ``cuda`` and hold nothing;
operations on tensors of two devices fail there as they do on a GPU. Autograd's backward pass asks the CUDA driver,
so that runs on the ``meta`` device, which is no CPU either. What neither can show (which numbers are sent where)
is left to a list of every tensor that the package makes without saying on which device.
"""

from __future__ import annotations

import ast
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from small_models import KINDS, config_of, random_model
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

import vitcod_cli
from vitcod_cli.attention.collect import CollectingKernel
from vitcod_cli.attention.damage import DamageKernel
from vitcod_cli.attention.importance import fisher_direction
from vitcod_cli.calibration.blockwise import apply_block, embed, fitted_parameters
from vitcod_cli.calibration.objective import OutputLoss
from vitcod_cli.calibration.token_store import TokenStore
from vitcod_cli.data.augmentation import AugmentationSettings
from vitcod_cli.data.calibration import CalibrationImages
from vitcod_cli.data.preprocess import Preprocess, _figures
from vitcod_cli.data.renormalise import Renormalise
from vitcod_cli.evaluation.accuracy import _count
from vitcod_cli.evaluation.extractor import FeatureExtractor
from vitcod_cli.evaluation.neighbours import _alike, nearest
from vitcod_cli.lowrank.moments import MomentKernel
from vitcod_cli.model.layers import (
    attention_shape,
    attentions,
    fold_auto_encoders,
    prepare_inference,
    recording_reconstruction,
    set_keep_mask,
    using,
)
from vitcod_cli.runtime import Runtime, RuntimeSettings
from vitcod_cli.training.losses import Criterion, make_mixup
from vitcod_cli.training.network import TrainingModel
from vitcod_cli.training.recipe import LowRankRecipe

needs_fake_cuda = pytest.mark.skipif(
    tuple(map(int, torch.__version__.split(".")[:2])) < (2, 14),
    reason="fake CUDA tensors end the process with torch 2.8 where there is no GPU; seen to work with 2.14",
)

CUDA, META = torch.device("cuda", 0), torch.device("meta")
MODELS = [*KINDS, "low-rank", "sparse", "low-rank, sparse", "low-rank, sparse, query-key norm"]


def model_on(device: torch.device, kind: str) -> VisionTransformer:
    """A small model whose parameters and buffers are empty tensors on ``device``; call it in the fake mode."""
    svd_type = "mix_head_fc_qk" if "low-rank" in kind else "none"
    base = kind if kind in KINDS else "query-key norm" if "query-key norm" in kind else "class token"
    model = random_model(config_of(base, svd_type=svd_type))
    if "sparse" in kind:
        set_keep_mask(
            model, torch.eye(attention_shape(model)[-1], dtype=torch.bool).expand(attention_shape(model))
        )
    return model


def moved(model: nn.Module, device: torch.device) -> Any:
    """``model`` with empty tensors of ``device`` for its own: ``.to`` can't make fake ones of real ones."""
    for module in model.modules():
        for name, value in module._parameters.items():
            if value is not None:
                module._parameters[name] = nn.Parameter(torch.empty(value.shape, dtype=value.dtype, device=device))
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = torch.empty(buffer.shape, dtype=buffer.dtype, device=device)
    return model


@pytest.fixture
def autocast_for_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """Autocast believes that there is a GPU, with bfloat16."""
    monkeypatch.setattr("torch.cuda.amp.common.amp_definitely_not_available", lambda: False)
    monkeypatch.setattr("torch.cuda.is_bf16_supported", lambda *_, **__: True)


@pytest.fixture
def autocast_for_meta(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch has no autocast for the meta device, and refuses even to say that it is off."""
    enabled, autocast = torch.is_autocast_enabled, torch.autocast
    monkeypatch.setattr("torch.is_autocast_enabled", lambda device: device != "meta" and enabled(device))
    monkeypatch.setattr(
        "torch.autocast",
        lambda device, *args, **kwargs: nullcontext() if device == "meta" else autocast(device, *args, **kwargs),
    )


def runtime(dtype: torch.dtype = torch.float32, device: torch.device = CUDA, **settings: Any) -> Runtime:
    return Runtime(RuntimeSettings(**settings), device, dtype)


def images(count: int = 2, device: torch.device = CUDA) -> Tensor:
    return torch.empty(count, 3, 32, 32, device=device)


@needs_fake_cuda
def test_a_tensor_left_on_the_cpu_is_found() -> None:
    """Both stand-ins for a GPU refuse to compute on two devices: else none of these tests could fail."""
    with FakeTensorMode(), pytest.raises(RuntimeError, match="device"):
        torch.empty(3, device=CUDA) + torch.empty(3)
    with pytest.raises(RuntimeError, match="device"):
        torch.empty(3, device=META) + torch.empty(3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.usefixtures("autocast_for_gpus")
@needs_fake_cuda
def test_forward(kind: str, dtype: torch.dtype) -> None:
    """As trained, with its reconstruction loss; folded; and prepared for inference."""
    model = model_on(CUDA, kind)
    with FakeTensorMode():
        model, running = moved(model, CUDA), runtime(dtype)
        expected = torch.float32 if dtype == torch.float32 else dtype
        for change in (None, fold_auto_encoders, lambda model: prepare_inference(model, dtype)):
            if change is not None:
                change(model)
            with running.autocast(), recording_reconstruction(model, change is None):
                logits, recon = TrainingModel(model)(images())
            assert logits.device == CUDA
            assert logits.dtype == expected
            assert recon.device == CUDA


@pytest.mark.parametrize("kind", ["class token", "low-rank, sparse", "low-rank, sparse, query-key norm"])
@needs_fake_cuda
def test_kernels_that_collect(kind: str) -> None:
    """Step 2's sums and step 1's moments are added up on the GPU."""
    model = model_on(CUDA, kind)
    with FakeTensorMode():
        model = moved(model, CUDA)
        sums = torch.zeros(attention_shape(model), dtype=torch.float64, device=CUDA)
        with torch.no_grad(), using(model, lambda index: CollectingKernel(sums[index])):
            assert model(images()).device == CUDA
        with using(model, lambda index: DamageKernel(sums[index])):
            logits = model(images())
        assert fisher_direction(logits.float(), torch.Generator().manual_seed(0)).device == CUDA
        kernels = [MomentKernel(layer, 1) for layer in attentions(model)]
        with using(model, lambda index: kernels[index]):
            assert model(images()).device == CUDA
        assert {tensor.device for kernel in kernels for tensor in kernel.moments.tensors()} == {CUDA}


@needs_fake_cuda
def test_images_come_to_the_gpu() -> None:
    preprocess = Preprocess((3, 32, 32), (0.5, 0.4, 0.3), (0.2, 0.2, 0.1), "bicubic", 0.875)
    other = Preprocess((3, 32, 32), (0.5, 0.5, 0.5), (0.5, 0.5, 0.5), "bicubic", 0.875)
    with FakeTensorMode():
        read = torch.empty(6, 3, 32, 32, dtype=torch.uint8)
        assert preprocess.to_device(read, CUDA).device == CUDA
        assert preprocess.to_device(torch.empty(6, 3, 32, 32), CUDA).device == CUDA
        sample = CalibrationImages(read, preprocess, CUDA, 6)
        assert {batch.device for batch in sample.batches(4)} == {CUDA}
        again = moved(Renormalise(preprocess, other), CUDA)(sample.tensor(slice(0, 2)))
        assert again.device == CUDA
        shown = runtime(channels_last=True).to_device(again)
        assert shown.is_contiguous(memory_format=torch.channels_last)
        assert (
            _count(torch.empty(4, 7, device=CUDA), torch.zeros(4, dtype=torch.int64, device=CUDA)).device == CUDA
        )
    _figures.cache_clear()  # fake ones must not be met by another test


@pytest.mark.parametrize("place", [CUDA, torch.device("cpu")], ids=["GPU memory", "main memory"])
@needs_fake_cuda
def test_blocks_are_calibrated_on_the_gpu(place: torch.device) -> None:
    """Wherever there is room for the tokens."""
    model = model_on(CUDA, "low-rank, sparse")
    with FakeTensorMode():
        model, running = moved(model, CUDA), runtime()
        tokens = embed(model, [images(3), images(2)], 5, running, TokenStore(place))
        assert tokens.device == place
        target = tokens.clone()
        apply_block(model.blocks[0], target, running)
        loss = OutputLoss.scaled_to(target, 1, CUDA)
        assert target.device == place
        assert loss(model.blocks[0](tokens.to(CUDA)), target.to(CUDA)).device == CUDA


@pytest.mark.parametrize("distill", ["none", "soft", "hard"])
@pytest.mark.parametrize("mixup", [0.0, 0.8])
@pytest.mark.parametrize(
    "kind", ["class token", "distilled", "low-rank, sparse", "low-rank, sparse, query-key norm"]
)
@pytest.mark.usefixtures("autocast_for_meta")
def test_a_training_step_backwards(kind: str, mixup: float, distill: Any) -> None:
    """Losses of every kind, and a gradient for every parameter, on a device that is not the CPU."""
    model = model_on(META, kind).to(META).train()
    teacher = model_on(META, "class token").to(META).eval()
    recipe = LowRankRecipe(distill=distill, teacher=None if distill == "none" else "teacher.pth")
    augmentation = AugmentationSettings(mixup=mixup, cutmix=0.0)
    criterion = Criterion(recipe, augmentation, None if distill == "none" else teacher)
    batch, targets = images(4, META), torch.zeros(4, dtype=torch.int64, device=META)
    mix = make_mixup(augmentation, 5)
    if mix is not None:
        batch, targets = mix(batch, targets)
    if kind == "distilled":
        model.set_distilled_training(criterion.teacher is not None)
    with recording_reconstruction(model):
        outputs, recon = TrainingModel(model)(batch)
        losses = criterion(outputs, targets, recon, criterion.teacher_logits(batch))
        losses.total.backward()  # type: ignore[no-untyped-call]
    missing = [name for name, parameter in model.named_parameters() if parameter.grad is None]
    assert not missing
    assert {parameter.grad.device for parameter in model.parameters() if parameter.grad is not None} == {META}


@pytest.mark.parametrize("kind", ["class token", "low-rank, sparse"])
@pytest.mark.usefixtures("autocast_for_meta")
def test_importance_backwards(kind: str) -> None:
    model = model_on(META, kind).to(META).requires_grad_(False)
    sums = torch.zeros(attention_shape(model), dtype=torch.float64, device=META)
    with using(model, lambda index: DamageKernel(sums[index])):
        logits = model(images(2, META).requires_grad_())
        direction = fisher_direction(logits, torch.Generator().manual_seed(0))
        (direction * logits).sum().backward()


@pytest.mark.parametrize("scope", ["attention", "block"])
@pytest.mark.usefixtures("autocast_for_meta")
def test_a_block_backwards(scope: Any) -> None:
    block = model_on(META, "low-rank, sparse").to(META).blocks[0]
    tokens = torch.empty(3, 17, 24, device=META)
    loss = OutputLoss.scaled_to(tokens, 1, META)
    loss(block(tokens), tokens).backward()
    assert all(parameter.grad is not None for parameter in fitted_parameters(block, scope))


@needs_fake_cuda
def test_features_and_neighbours() -> None:
    model = model_on(CUDA, "class token")
    with FakeTensorMode():
        pooled, patches = FeatureExtractor(moved(model, CUDA))(images(4))
        assert patches is not None
        assert (pooled.device, patches.device) == (CUDA, CUDA)
        found = nearest(pooled, 1, 3, 2)
        assert found.shape == (3, 2)
        assert (found.device, _alike(found, found).device) == (CUDA, CUDA)


FACTORIES = {
    *("arange", "as_tensor", "empty", "eye", "from_numpy", "full", "Generator", "linspace", "ones", "rand"),
    *("randint", "randn", "randperm", "tensor", "zeros"),
}
"""What makes a tensor on the CPU when it isn't told where; ``new_zeros``, ``zeros_like`` stay where they are."""

ON_THE_CPU = {
    "artifacts/safetensors_file.py": "what is written comes from the CPU",
    "attention/collect.py": "sums in main memory, of a model on the CPU",
    "attention/importance.py": "ranks, moved at once; masks, which set_keep moves; signs drawn on the CPU",
    "attention/measure.py": "labels that nobody reads",
    "attention/sensitivity.py": "a mask, which set_keep moves",
    "calibration/block_fit.py": "drawn by a generator of the CPU, and moved",
    "calibration/fit.py": "images in main memory; a generator of the CPU, so that a step sees the same everywhere",
    "calibration/joint_fit.py": "places of images in main memory; numbers drawn by a generator of the CPU",
    "calibration/blockwise.py": "the tokens of no image",
    "calibration/token_store.py": "what is mapped from a file is in main memory",
    "data/batches.py": "a generator of the CPU",
    "data/calibration.py": "the images stay in main memory",
    "data/order.py": "the order of the images is the CPU's",
    "data/renormalise.py": "buffers, moved with the module",
    "data/samples.py": "made by workers",
    "data/streams.py": "a generator of the CPU",
    "evaluation/programs.py": "exported programs run on the CPU; their images are moved there, and back",
    "export/onnx_form.py": "programs are exported on the CPU",
    "export/program.py": "programs are exported and checked on the CPU",
    "model/kernels/flex.py": "indices from numpy, moved at once",
    "model/kernels/planned.py": "plans are for CPUs",
    "model/load.py": "a mask, which set_keep_mask moves",
    "pipeline/in_memory.py": "a mask, which set_keep_mask moves",
    "pipeline/plan.py": "which images of a batch are taken, again and again",
    "training/preflight.py": "a tiny layer, to try an optimizer on; an image for a teacher, moved at once",
}
"""Files that make tensors without a device, and why they may."""


def test_whoever_makes_a_tensor_says_where() -> None:
    package, found = Path(vitcod_cli.__file__).parent, set()
    for path in sorted(package.rglob("*.py")):
        for call in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(call, ast.Call) and _makes_a_tensor(call):
                found.add(path.relative_to(package).as_posix())
    assert found == set(ON_THE_CPU)


def _makes_a_tensor(call: ast.Call) -> bool:
    """Whether ``call`` is ``torch.zeros(...)`` or its like without ``device=``."""
    function = call.func
    of_torch = isinstance(function, ast.Attribute) and isinstance(function.value, ast.Name)
    if not of_torch or function.value.id != "torch" or function.attr not in FACTORIES:  # type: ignore[union-attr, attr-defined]
        return False
    return all(keyword.arg != "device" for keyword in call.keywords)
