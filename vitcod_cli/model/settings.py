"""Which model: the options that all commands share. Imports neither torch nor timm."""

from __future__ import annotations

import ast
from dataclasses import dataclass
from typing import Any, Literal

from vitcod_cli.artifacts.model_arguments import check_model_kwargs
from vitcod_cli.errors import VitcodError
from vitcod_cli.runtime import RuntimeSettings
from vitcod_cli.settings import Settings, required, setting

AttentionKernel = Literal["auto", "fused", "flex", "measured"]
"""How masked attention is computed at inference; see :mod:`vitcod_cli.model.kernels.choice`."""

_FILE = (
    "a file (ours, timm's or the published code's), an https:// address, or timm for the pretrained weights "
    "of --model."
)


def checkpoint_setting(hint: str | None = None) -> Any:
    """``--checkpoint``, required where there is a ``hint`` for whoever leaves it out."""
    info: dict[str, Any] = {"panel": "Model", "metavar": "FILE", "aliases": ("--finetune",)}
    if hint is not None:
        return required(f"Weights: {_FILE}", hint, **info)
    return setting(None, f"Weights: {_FILE}", show_default=False, **info)


def init_from_setting(hint: str | None = None) -> Any:
    """``--init-from``, required where there is a ``hint`` for whoever leaves it out."""
    info: dict[str, Any] = {"panel": "Model", "metavar": "FILE", "aliases": ("--finetune",)}
    if hint is not None:
        return required(f"Weights to start from: {_FILE}", hint, **info)
    return setting(None, f"Weights to start from: {_FILE}", show_default=False, **info)


def mask_setting(help: str = "Mask to apply: from gen-mask, or a published .npy.") -> Any:
    """``--mask``."""
    return setting(None, help, panel="Model", metavar="FILE", show_default=False, aliases=("--mask-path",))


def attention_setting() -> Any:
    """``--attention``."""
    return setting(
        "auto",
        "How layers with a mask compute. auto: fused attention, and on a CPU products that the mask prunes are "
        "left out where that is expected to pay; fused: never; flex: FlexAttention, for a GPU, which leaves out "
        "tiles that are pruned whole (gen-mask --block); measured: on a GPU, flex in layers where it is faster.",
        panel="Runtime",
    )


def check_attention(attention: AttentionKernel, runtime: RuntimeSettings) -> None:
    """Raise a VitcodError where ``--attention`` contradicts another option."""
    if attention != "measured":
        return
    for flag, given in (("--compile", runtime.compile), ("--deterministic", runtime.deterministic)):
        if given:
            raise VitcodError(
                f"--attention measured chooses while the model runs, which {flag} rules out; take fused or flex."
            )


@dataclass(frozen=True, kw_only=True)
class ModelSettings(Settings, panel="Model"):
    """Name and shape of the model; what is left out comes from the checkpoint."""

    model: str | None = setting(
        None,
        "Any timm ViT name, such as deit_tiny_patch16_224; a checkpoint that names its own model needs none.",
        metavar="NAME",
        show_default=False,
    )
    model_kwargs: list[str] = setting(
        [],
        "Further arguments of timm's model, as key=value (depth=6, qk_norm=True); may be repeated.",
        metavar="KEY=VALUE",
        show_default=False,
    )
    num_classes: int | None = setting(
        None,
        "Number of classes; 0 leaves the head out; left out itself, the checkpoint's or the data set's.",
        minimum=0,
        show_default=False,
    )
    img_size: int | None = setting(
        None,
        "Image size in pixels; left out, the checkpoint's or the model's own.",
        minimum=1,
        show_default=False,
        aliases=("--input-size",),
    )

    use_ema: bool | None = setting(
        None,
        "Which weights of a checkpoint that holds both: their moving average (EMA), or the raw ones.",
        flag="--use-ema/--no-use-ema",
        show_default="EMA where there is one",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self.kwargs()

    def kwargs(self) -> dict[str, Any]:
        """``model_kwargs`` as a dictionary; values are Python literals, or strings where they are none.

        Raises:
            VitcodError: for an entry without ``=``, a key given twice, or what is no argument of the architecture.
        """
        values: dict[str, Any] = {}
        for entry in self.model_kwargs:
            key, equals, text = entry.partition("=")
            key = key.strip()
            if not equals or not key.isidentifier():
                raise VitcodError(f"--model-kwargs {entry} is not of the form key=value, such as depth=6.")
            if key in values:
                raise VitcodError(f"--model-kwargs names {key} twice; give it once.")
            values[key] = _literal(text.strip())
        check_model_kwargs(values, "--model-kwargs")
        return values


def _literal(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError, TypeError):
        return text
