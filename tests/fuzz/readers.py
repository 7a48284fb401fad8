"""All readers, all their mutations, and how many cases each gets."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

from fuzz import arrays, checkpoints, class_maps, configs, pickles, runs
from fuzz.archives import TAR
from fuzz.case import Case, Make
from fuzz.layouts import LAYOUTS
from fuzz.outputs import OUTPUTS
from fuzz.pictures import PICTURES
from fuzz.shards import SHARDS
from fuzz.values import OPTIONS

READERS: dict[str, dict[str, Make]] = {
    reader.name: reader.mutations()
    for reader in (
        *checkpoints.READERS,
        *pickles.READERS,
        *arrays.READERS,
        *configs.READERS,
        *class_maps.READERS,
        *runs.READERS,
    )
} | {
    "images": {**PICTURES, **LAYOUTS},
    "tar": TAR,
    "shards": SHARDS,
    "options": OPTIONS,
    "output": OUTPUTS,
}
"""By reader and mutation, what makes a case."""

_WEIGHTS = {"whole": 0.3, "values": 2.0, "values again": 2.0, "values more": 2.0, "command lines": 3.0}

WARM_UP = (
    ("eval", "--checkpoint={assets}/sparse.safetensors", *checkpoints.DATA),
    ("convert", "{assets}/published.pth", "--output=a.safetensors"),
    ("convert", "{assets}/sparse.safetensors", "--output=a.pth", "--to=reference"),
    ("dump-attn", "--checkpoint={assets}/dense.safetensors", *checkpoints.DATA[:2], "--output=b.safetensors"),
    ("gen-mask", "--attn-map={assets}/map.npy", "--output=c.safetensors"),
    ("plot", "{assets}/map.npy", "--output-dir=d"),
    ("simulate", "{assets}/polarized.safetensors"),
    ("polarize", "{assets}/mask.npy", "--output=g.safetensors"),
    (
        "finetune-dense",
        "--init-from={assets}/dense.safetensors",
        *checkpoints.DATA,
        "--epochs=0",
        "--output-dir=f",
    ),
    ("export", "--checkpoint={assets}/dense.safetensors", "--output=e.safetensors"),
)


def plan(count: int) -> list[Case]:
    """``count`` cases, all mutations of all readers in turns."""
    pairs = [(reader, mutation) for reader, makes in READERS.items() for mutation in makes]

    def cases() -> Iterator[Case]:
        credit, number = dict.fromkeys(pairs, 0.0), dict.fromkeys(pairs, 0)
        while True:
            for pair in pairs:
                credit[pair] += _WEIGHTS.get(pair[1], 1.0)
                while credit[pair] >= 1:
                    credit[pair] -= 1
                    yield Case(*pair, number[pair])
                    number[pair] += 1

    return list(islice(cases(), count))
