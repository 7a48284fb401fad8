"""A low-rank model as weights that plain timm loads: the auto-encoders folded into ``qkv``."""

from __future__ import annotations

from timm.models.vision_transformer import VisionTransformer

from vitcod_cli.artifacts.model_config import ModelConfig
from vitcod_cli.errors import VitcodError
from vitcod_cli.model.build import model_config
from vitcod_cli.model.layers import attentions, fold_auto_encoders, keep_mask


def fold_for_timm(model: VisionTransformer) -> ModelConfig:
    """Fold ``model`` in place, and say which plain model it has become.

    Raises:
        VitcodError: if it has a mask, or auto-encoders behind a norm on Q and K: timm has no place for them.
    """
    programs = "export to .pt2 or .onnx, which hold all of it"
    if keep_mask(model) is not None:
        raise VitcodError(f"--output to .safetensors: plain timm has no place for the mask; {programs}.")
    if any(layer.svd_type != "none" and not layer.foldable for layer in attentions(model)):
        raise VitcodError(
            "--output to .safetensors: the auto-encoders lie behind a norm on Q and K and can't be folded into "
            f"qkv, and plain timm has no place for them; {programs}."
        )
    config = model_config(model)
    biases = [layer.qkv.bias is not None for layer in attentions(model)]
    fold_auto_encoders(model)
    # An auto-encoder has a bias, even where qkv had none.
    renewed = biases != [layer.qkv.bias is not None for layer in attentions(model)]
    kwargs = {**config.model_kwargs, "qkv_bias": True} if renewed else config.model_kwargs
    return config.changed(svd_type="none", model_kwargs=kwargs)
