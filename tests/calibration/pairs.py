"""A small dense model, the same under a mask, and images to fit one to the other."""

from __future__ import annotations

import copy

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from vitcod_cli.artifacts.model_config import ModelConfig
from vitcod_cli.data.calibration import CalibrationImages
from vitcod_cli.data.preprocess import Preprocess
from vitcod_cli.model.build import build_model
from vitcod_cli.model.layers import attention_shape, attentions, set_keep_mask
from vitcod_cli.runtime import Runtime, RuntimeSettings

CPU = torch.device("cpu")
RUNTIME = Runtime(RuntimeSettings(), CPU, torch.float32)
PREPROCESS = Preprocess((3, 32, 32), (0.5, 0.5, 0.5), (0.25, 0.25, 0.25), "bicubic", 0.875)


def calibration_images(count: int = 48) -> CalibrationImages:
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(count, 3, 4, 4, generator=generator)
    images = nn.functional.interpolate(coarse, size=(32, 32), mode="bilinear") * 255
    return CalibrationImages(images.to(torch.uint8), PREPROCESS, CPU, count)


def teacher_and_student(config: ModelConfig) -> tuple[VisionTransformer, VisionTransformer]:
    """A dense model with lively attention, and the same under a mask that keeps the diagonal and class token."""
    torch.manual_seed(0)
    teacher = build_model(config).eval()
    for layer in attentions(teacher):
        nn.init.normal_(layer.qkv.weight, std=0.3)
        nn.init.normal_(layer.proj.weight, std=0.3)
    student = copy.deepcopy(teacher)
    shape = attention_shape(teacher)
    keep = torch.eye(shape[-1], dtype=torch.bool).expand(shape).clone()
    keep[..., 0] = keep[..., 0, :] = True
    set_keep_mask(student, keep)
    return teacher, student
