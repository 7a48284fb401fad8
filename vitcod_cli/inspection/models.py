"""``vitcod models``: which of timm's architectures can be treated, and why the others can't."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from fnmatch import fnmatch
from typing import Any

import timm
import torch

from vitcod_cli.artifacts.model_arguments import VIT_MODULES
from vitcod_cli.artifacts.model_config import ModelConfig
from vitcod_cli.errors import VitcodError
from vitcod_cli.inspection.models_settings import ModelsOptions
from vitcod_cli.model.build import build_model, default_img_size
from vitcod_cli.model.layers import attention_shape
from vitcod_cli.reporting import Reporter

_WIDTH = 80


@dataclass(frozen=True)
class Architecture:
    """A name that can be treated.

    Attributes:
        img_size: (height, width) that it has by default.
        tokens: with class and register tokens.
        pretrained: tags of weights that timm knows, the default first.
    """

    name: str
    img_size: tuple[int, int]
    blocks: int
    heads: int
    tokens: int
    parameters: int
    pretrained: list[str]


@dataclass(frozen=True)
class Found:
    """What a pattern finds.

    Attributes:
        others: names that can't be treated, with the reason.
    """

    architectures: list[Architecture]
    others: dict[str, str]

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for ``--json``."""
        return {"models": [asdict(one) for one in self.architectures], "others": self.others}


def models(options: ModelsOptions, reporter: Reporter) -> Found:
    """Look at all names that ``options`` mean, each built without memory for its weights.

    Raises:
        VitcodError: if there is none.
    """
    names = _names(options.patterns)
    found, others = [], {}
    with reporter.progress("models", len(names), unit="models") as progress:
        for name in names:
            try:
                found.append(_architecture(name))
            except VitcodError as error:
                others[name] = _reason(name, str(error))
            progress.advance()
    return Found(found, others)


def _reason(name: str, text: str) -> str:
    """Without what is said of the option that would name the model."""
    return text.removeprefix(f"--model {name} ").partition("; choose")[0].rstrip(".")


def _names(patterns: Sequence[str]) -> list[str]:
    if not patterns:
        return [name for module in VIT_MODULES for name in timm.list_models(module=module)]
    wide = [pattern if any(letter in pattern for letter in "*?[") else f"*{pattern}*" for pattern in patterns]
    names = [name for name in timm.list_models() if any(fnmatch(name, pattern) for pattern in wide)]
    if not names:
        raise VitcodError(
            f"PATTERN {' '.join(patterns)} fits no name of timm {timm.__version__}; vitcod models lists all that "
            "can be treated."
        )
    return names


def _architecture(name: str) -> Architecture:
    size = default_img_size(name)
    known = timm.get_pretrained_cfg(name)
    config = ModelConfig(model=name, num_classes=1000 if known is None else known.num_classes, img_size=size)
    with torch.device("meta"):
        model = build_model(config)
    tags: list[str] = list(timm.list_pretrained(f"{name}.*"))
    blocks, heads, tokens, _ = attention_shape(model)
    count = sum(parameter.numel() for parameter in model.parameters())
    return Architecture(name, size, blocks, heads, tokens, count, tags)


def lines(found: Found) -> list[str]:
    """A line for each model, and what can't be treated behind them."""
    text = []
    if found.architectures:
        width = max(len(one.name) for one in found.architectures)
        text.append(f"{'name':{width}}   pixels  blocks x heads  tokens  params  weights")
        for one in found.architectures:
            pixels = "x".join(map(str, one.img_size)) if len(set(one.img_size)) > 1 else str(one.img_size[0])
            text.append(
                f"{one.name:{width}} {pixels:>8}  {f'{one.blocks} x {one.heads}':>14}  {one.tokens:6}  "
                f"{f'{one.parameters / 1e6:,.1f}M':>6}  {len(one.pretrained) or '-'!s:>7}"
            )
        text.append(f"{len(found.architectures)} models. Weights: sets of them that timm can download.")
    if found.others:
        for reason in dict.fromkeys(found.others.values()):
            names = [name for name, own in found.others.items() if own == reason]
            text += textwrap.wrap(f"{', '.join(names)} {reason}.", _WIDTH)
    return text
