"""One whole file of every kind, and what the commands say of them: what the cases damage."""

from __future__ import annotations

import argparse
import io
import json
import shutil
import tarfile
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file

from fuzz.facts import CLASSES, KWARGS, MODEL, SHAPE, SIZE
from fuzz.legacy import legacy_bytes
from vitcod_cli.artifacts.attention_map import AttentionMap, write_attention_map
from vitcod_cli.artifacts.mask import Mask, write_mask
from vitcod_cli.artifacts.model_config import ModelConfig
from vitcod_cli.cli.main import main
from vitcod_cli.masks.polarize import token_order
from vitcod_cli.model.build import build_model
from vitcod_cli.model.layers import set_keep_mask
from vitcod_cli.model.load import save_model

CONFIG = ModelConfig(model=MODEL, num_classes=CLASSES, img_size=(SIZE, SIZE), model_kwargs=KWARGS)

RUN = ["--epochs=1", "--batch-size=4", "--no-aug", "--no-repeated-aug", "--workers=0", "--drop-path=0"]
"""The training whose state the cases resume; with one epoch there is nothing left to train."""


def make_assets(folder: Path) -> None:
    """Fill ``folder``."""
    random = np.random.default_rng(0)
    torch.manual_seed(0)
    torch.set_num_threads(1)
    _images(folder / "images", random)
    _models(folder)
    attention = random.dirichlet(np.full(SHAPE[-1], 0.3), size=SHAPE[:-1]).astype(np.float32)
    keep = attention > 0.05
    keep[..., 0] = True
    write_attention_map(folder / "map.safetensors", AttentionMap(attention, 7, {"num_prefix_tokens": 1}))
    write_mask(
        folder / "mask.safetensors", Mask(keep, {"method": "info", "sparsity": 0.5, "num_prefix_tokens": 1})
    )
    write_mask(
        folder / "polarized.safetensors",
        Mask(keep, {"num_prefix_tokens": 1, "order": "tokens"}, token_order(keep, 9)),
    )
    np.save(folder / "map.npy", attention)
    np.save(folder / "mask.npy", ~keep)
    _sparse_model(folder, keep)
    _archives(folder)
    (folder / "classes.txt").write_text("".join(f"class{index}\n" for index in range(CLASSES)))
    (folder / "classes.json").write_text(
        json.dumps({f"class{index}": index for index in range(CLASSES)}, indent=1)
    )
    (folder / "config.yaml").write_text(
        "method: info\ninfo_cut: 0.9\nnum_prefix_tokens: 1\noutput: out.safetensors\n"
    )
    _said(*_training(folder, "run"))
    _programs(folder / "bin")
    data = [f"--data-path={folder / 'images'}", "--workers=0", "--json"]
    shutil.copytree(folder / "run", folder / "resumed")
    facts = {
        "resumed": _said(*_training(folder, "resumed"), "--resume", "--json"),
        "simulated": _said("simulate", str(folder / "polarized.safetensors"), "--json"),
        "dense": _said("eval", f"--checkpoint={folder / 'dense.safetensors'}", *data),
        "sparse": _said("eval", f"--checkpoint={folder / 'sparse.safetensors'}", *data),
        "masked": _said(
            "eval", f"--checkpoint={folder / 'dense.safetensors'}", f"--mask={folder / 'mask.npy'}", *data
        ),
    }
    (folder / "facts.json").write_text(json.dumps(facts))


def _images(folder: Path, random: np.random.Generator) -> None:
    for split, count in (("train", 10), ("val", 10)):
        for index in range(count):
            path = folder / split / f"class{index % CLASSES}" / f"{index:02}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(random.integers(0, 256, (36, 40, 3), dtype=np.uint8)).save(path, compress_level=1)


def _models(folder: Path) -> None:
    model = build_model(CONFIG).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1:  # large enough that attention, and so each mask, matters
                parameter.normal_(std=parameter[0].numel() ** -0.5 * (2 if "qkv" in name else 1))
    save_model(folder / "dense.safetensors", model, {"made_by": "fuzz"})
    weights = {name: value.contiguous() for name, value in model.state_dict().items()}
    save_file(weights, folder / "timm.safetensors", metadata={"format": "pt"})
    args = argparse.Namespace(
        model=MODEL, model_kwargs=KWARGS, input_size=SIZE, lr=1e-5, output_dir="out", svd_type=None
    )
    content = {"model": weights, "epoch": 3, "args": args, "best": np.float64(3.5)}
    torch.save(content, folder / "published.pth")
    (folder / "legacy.pth").write_bytes(legacy_bytes(content))


def _sparse_model(folder: Path, keep: np.ndarray) -> None:
    model = build_model(CONFIG.changed(svd_type="mix_head_fc_qk"))
    dense = torch.load(folder / "published.pth", weights_only=False)["model"]
    model.load_state_dict(dense, strict=False)
    set_keep_mask(model, torch.from_numpy(keep))
    save_model(folder / "sparse.safetensors", model, {})


def _archives(folder: Path) -> None:
    files = sorted((folder / "images/val").glob("*/*.png"))
    with tarfile.open(folder / "val.tar", "w") as tar:
        for file in files:
            info = tarfile.TarInfo(f"{file.parent.name}/{file.name}")
            info.size = file.stat().st_size
            tar.addfile(info, io.BytesIO(file.read_bytes()))
    for shard in range(2):
        with tarfile.open(folder / f"val-{shard}.tar", "w") as tar:
            for file in files[shard::2]:
                for suffix, content in (("png", file.read_bytes()), ("cls", file.parent.name[-1:].encode())):
                    info = tarfile.TarInfo(f"{file.stem}.{suffix}")
                    info.size = len(content)
                    tar.addfile(info, io.BytesIO(content))


def _training(folder: Path, run: str) -> list[str]:
    source, data = f"--init-from={folder / 'dense.safetensors'}", f"--data-path={folder / 'images'}"
    return ["finetune-dense", source, data, f"--output-dir={folder / run}", *RUN]


def _programs(folder: Path) -> None:
    """A folder of programs for ``PATH``: whatever would start a Ghostscript for a picture leaves a file behind."""
    folder.mkdir()
    for name in ("gs", "gswin64c", "curl", "pwned"):
        (folder / name).write_text("#!/bin/sh\ntouch pwned\n")
        (folder / name).chmod(0o755)


def _said(*words: str) -> object:
    """What the command says on stdout, as JSON where it is that."""
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        code = main(list(words))
    assert code == 0, f"vitcod {' '.join(words)}: {err.getvalue()}"
    return json.loads(out.getvalue()) if "--json" in words else out.getvalue()
