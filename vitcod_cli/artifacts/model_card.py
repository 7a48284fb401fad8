"""The model card: ``README.md`` beside a finished model, with the front matter that the Hub reads."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from vitcod_cli.artifacts.files import atomic_path, sha256_of
from vitcod_cli.artifacts.hub import REPOSITORY
from vitcod_cli.artifacts.run_files import CARD, CARD_MARK, is_our_card
from vitcod_cli.artifacts.safetensors_file import open_safetensors
from vitcod_cli.reporting import visible
from vitcod_cli.version import __version__

_NO_MARKDOWN = str.maketrans({letter: f"\\{letter}" for letter in r"\`*_{}[]<>#|!"})


@dataclass(frozen=True)
class CardModel:
    """What a card says of a checkpoint of ours, read from the file itself.

    Attributes:
        info: its metadata.
        sparsity: of each block; empty without a mask.
    """

    path: Path
    sha256: str
    info: Mapping[str, Any]
    sparsity: Sequence[float]

    @classmethod
    def read(cls, path: Path) -> CardModel:
        """Of a checkpoint.

        Raises:
            VitcodError: if it can't be read.
        """
        with open_safetensors(path, flag="--checkpoint") as file:
            keys = [key for key in file.handle.keys() if re.fullmatch(r"blocks\.\d+\.attn\.keep", key)]  # noqa: SIM118
            keys.sort(key=lambda key: int(key.split(".")[1]))
            sparsity = [1 - float(file.handle.get_tensor(key).mean()) for key in keys]
            return cls(path, sha256_of(path), dict(file.info), sparsity)

    @property
    def config(self) -> Mapping[str, Any]:
        """Its architecture."""
        config = self.info.get("model_config")
        return config if isinstance(config, Mapping) else {}

    @property
    def has_head(self) -> bool:
        """Whether it chooses among classes; else it gives features."""
        return self.config.get("num_classes") != 0


def model_card(model: CardModel, *, command: str = "", dataset: str | None = None, labelled: bool = True) -> str:
    """The text of the card.

    Args:
        command: the command line that made it.
        dataset: path or name of the data; of a path, the last part is told.
        labelled: without labels, the accuracy in the file is agreement with a teacher, and is told as that.
    """
    name = str(model.config.get("model", "a Vision Transformer"))
    data = os.path.basename(os.path.normpath(dataset)) if dataset else None
    front = yaml.safe_dump(_front_matter(model, name, data, labelled), sort_keys=False, allow_unicode=True)
    parts = [
        f"---\n{front}---",
        CARD_MARK,
        f"# {_plain(name)}, {_treatment(model)}",
        _description(model),
        _figures(model, data, labelled),
        _USAGE.format(outputs="logits" if model.has_head else "features"),
        _making(model, command),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def write_model_card(folder: Path, text: str) -> None:
    """Write the card into ``folder``, unless there is a README that isn't ours, or leads elsewhere."""
    path = folder / CARD
    if path.is_symlink() or (path.exists() and not is_our_card(path)):
        return
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def _front_matter(model: CardModel, name: str, data: str | None, labelled: bool) -> dict[str, Any]:
    task = "image-classification" if model.has_head else "image-feature-extraction"
    front: dict[str, Any] = {
        "library_name": "vitcod",
        "pipeline_tag": task,
        "tags": ["vitcod", "vision-transformer", task, *_tags(model)],
    }
    figures = {"Acc@1": model.info.get("acc1"), "Acc@5": model.info.get("acc5")}
    metrics = [
        {"type": "accuracy", "name": key, "value": round(value, 3)}
        for key, value in figures.items()
        if isinstance(value, float) and math.isfinite(value)
    ]
    if metrics and data and labelled:
        result = {
            "task": {"type": "image-classification"},
            "dataset": {"name": data, "type": data},
            "metrics": metrics,
        }
        front["model-index"] = [{"name": name, "results": [result]}]
    return front


def _tags(model: CardModel) -> list[str]:
    low_rank = model.config.get("svd_type", "none") != "none"
    return [*(["low-rank"] if low_rank else []), *(["sparse-attention"] if model.sparsity else [])]


def _treatment(model: CardModel) -> str:
    tags = {"low-rank": "low-rank heads", "sparse-attention": "sparse attention"}
    return " and ".join(tags[tag] for tag in _tags(model)) or "fine-tuned"


def _description(model: CardModel) -> str:
    config = model.config
    size = config.get("img_size")
    lines = [
        "A Vision Transformer made by [ViTCoD](https://arxiv.org/abs/2210.09573) "
        f"with vitcod {_plain(_version(model))}.",
        "",
        f"- architecture: {_plain(config.get('model', 'unknown'))} of timm, "
        + (f"{_plain(config.get('num_classes', '?'))} classes" if model.has_head else "without a head"),
    ]
    if isinstance(size, Sequence) and len(size) == 2:
        lines.append(f"- images: {_plain(size[0])} x {_plain(size[1])} pixels")
    if config.get("svd_type", "none") != "none":
        lines.append(f"- Q and K pass through head auto-encoders ({_plain(config['svd_type'])})")
    if model.sparsity:
        mean = sum(model.sparsity) / len(model.sparsity)
        blocks = ", ".join(f"{100 * value:.1f}" for value in model.sparsity)
        lines.append(f"- fixed mask: {mean:.1%} of the attention entries are pruned; by block, in %: {blocks}")
    return "\n".join(lines)


def _figures(model: CardModel, data: str | None, labelled: bool) -> str:
    names = {
        "acc1": "Acc@1" if labelled else "agreement with the uncompressed model",
        **({"acc5": "Acc@5"} if labelled else {}),
        "loss": "loss",
        "cosine": "cosine of the features with those of the uncompressed model, mean",
        "relative_error": "distance of the features to those, as a share of their length, mean",
    }
    rows = [
        f"| {text} | {model.info[key]:.3f} |" for key, text in names.items() if _is_number(model.info.get(key))
    ]
    if not rows:
        return ""
    where = f"Validation images of {_plain(data)}." if data else "Validation images."
    return "\n".join(["## Figures", "", where, "", "| | |", "|---|---|", *rows])


_USAGE = f"""## Use

    pip install vitcod

    import vitcod_cli
    model = vitcod_cli.load("hf-hub:{REPOSITORY}")
    {{outputs}} = model(model.transform(image)[None])

`vitcod export --checkpoint hf-hub:{REPOSITORY} --output model.onnx` makes a program of it that needs neither
vitcod nor timm. Plain timm can't load the file where it holds auto-encoders or a mask."""


def _making(model: CardModel, command: str) -> str:
    lines = ["## How it was made", ""]
    if command:
        lines += [f"    {visible(command)}", ""]
    versions = model.info.get("versions")
    if isinstance(versions, Mapping):
        text = ", ".join(f"{_plain(name)} {_plain(version)}" for name, version in versions.items())
        lines.append(f"- versions: {text}")
    sources = model.info.get("sha256")
    if isinstance(sources, Mapping):
        lines += [f"- SHA-256 of {_plain(name)}: {_plain(value)}" for name, value in sources.items()]
    lines.append(f"- SHA-256 of this model's file: {model.sha256}")
    return "\n".join(lines)


def _version(model: CardModel) -> str:
    versions = model.info.get("versions")
    return str(versions.get("vitcod", __version__)) if isinstance(versions, Mapping) else __version__


def _plain(value: Any) -> str:
    """As text in Markdown that is nothing else."""
    return visible(str(value))[:200].translate(_NO_MARKDOWN)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
