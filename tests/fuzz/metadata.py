"""Hostile metadata of our own files: wrong types, depth, escapes, and keys that lead timm or us elsewhere."""

from __future__ import annotations

import json
from typing import Any

from fuzz.case import Bench

JUNK: list[Any] = [
    None,
    True,
    -1,
    0,
    1.5,
    1e308,
    10**30,
    2**63,
    "",
    "x",
    "\x1b[2J\x1b[31mred\n\r",
    "\ud800",
    "a\0b",
    [],
    [[]],
    {},
    {"a": {}},
    [1, 2, 3],
    ["x", "y"],
    "1" * 5000,
    "y" * 100_000,
    float("nan"),
    float("inf"),
    "\u202etxt",
]

FOREIGN_KWARGS: list[dict[str, Any]] = [
    {"checkpoint_path": "/etc/passwd"},
    {"checkpoint_path": "canary.pth"},
    {"pretrained": True},
    {"pretrained_cfg": {"url": "https://example.org/x.pth", "file": "canary.pth"}},
    {"pretrained_cfg": "hf-hub:nobody/nothing"},
    {"pretrained_cfg_overlay": {"file": "canary.pth"}},
    {"pretrained_strict": False},
    {"features_only": True},
    {"out_indices": [1]},
    {"cache_dir": "canary"},
    {"scriptable": True},
    {"exportable": True},
    {"no_jit": True},
    {"attn_layer": "x"},
    {"attn_layer": None},
    {"block_fn": "os.system"},
    {"norm_layer": "x"},
    {"act_layer": "x"},
    {"mlp_layer": "os.system"},
    {"embed_layer": "x"},
    {"weight_init": "jax"},
    {"device": "meta"},
    {"dtype": "float16"},
    {"fix_init": True},
    {"dynamic_img_size": True},
    {"drop_path_rate": 2},
    {"drop_rate": float("nan")},
    {"num_classes": 7},
    {"img_size": 64},
    {"depth": 100_000},
    {"depth": 10**12},
    {"depth": -1},
    {"depth": 2.0},
    {"embed_dim": 3 * 10**6},
    {"embed_dim": 10**18},
    {"embed_dim": "24"},
    {"num_heads": 0},
    {"num_heads": 24},
    {"num_heads": -3},
    {"patch_size": 0},
    {"patch_size": 10**9},
    {"patch_size": [8, 4]},
    {"patch_size": 1},
    {"mlp_ratio": 1e9},
    {"mlp_ratio": float("nan")},
    {"reg_tokens": 10**9},
    {"in_chans": 10**9},
    {"class_token": False},
    {"pos_embed": "none"},
    {"pool_include_prefix": True},
    {"a" * 10_000: 1},
    {"\x1b[31m": "\n"},
    {"__class__": 1},
    {"self": 1},
    {"": 1},
]

_CONFIG_VALUES: dict[str, list[Any]] = {
    "model": [
        "",
        "x",
        "resnet50",
        "swin_tiny_patch4_window7_224",
        "hf-hub:nobody/nothing",
        "local-dir:.",
        "/etc/passwd",
        "timm/x",
        "\x1b[31m",
        "vit_gigantic_patch14_224",
        "naflexvit_base_patch16_gap",
        "a" * 10_000,
    ],
    "img_size": [
        [1 << 40, 1 << 40],
        [100_000, 100_000],
        [0, 0],
        [-32, -32],
        [32],
        "ab",
        [33, 32],
        [32.7, 32.2],
        [True, True],
        ["32", "32"],
        [64, 64],
        [1e308, 1],
        None,
        32,
    ],
    "num_classes": [10**12, -1, 0, 4, 6, 5.0, True, "5", None, 2**63],
    "svd_type": ["mix_head_fc_qk", "mix_head_fc_q", "x", None, [], {}],
}


def hostile(bench: Bench, info: dict[str, Any]) -> dict[str, Any]:
    """``info`` of a file of ours, with one thing in it that its writer would never have said."""
    info, kind = json.loads(json.dumps(info)), bench.number % 4
    config = info.get("model_config")
    if config is not None and kind == 0:
        config["model_kwargs"] = {**config["model_kwargs"], **bench.any(FOREIGN_KWARGS)}
    elif config is not None and kind == 1:
        key = bench.any([*_CONFIG_VALUES])
        config[key] = bench.any(_CONFIG_VALUES[key])
    elif config is not None and kind == 2:
        config[bench.any([*config, "more"])] = bench.any(JUNK)
    elif kind == 3 and bench.random.random() < 0.3:
        info[bench.any(["deep", "model_config"])] = _deep(bench.any([100, 800]))
    else:
        names = [name for name in info if name not in ("format", "version")]
        info[bench.any([*names, "num_prefix_tokens", "model_config", "args", "epoch", "sparsity"])] = bench.any(
            JUNK
        )
    return info


def _deep(levels: int) -> Any:
    value: Any = 1
    for _ in range(levels):
        value = [value]
    return value
