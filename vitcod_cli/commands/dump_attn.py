"""``vitcod dump-attn``: step 2, the mean attention map of a model over its training images."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from vitcod_cli.commands.common import JsonOption, MaskOption
from vitcod_cli.data.settings import DataSettings
from vitcod_cli.errors import VitcodError
from vitcod_cli.model.settings import ModelSettings
from vitcod_cli.runtime import RuntimeSettings
from vitcod_cli.settings import Settings, setting

if TYPE_CHECKING:
    from timm.models.vision_transformer import VisionTransformer


@dataclass(frozen=True, kw_only=True)
class AttentionSettings(Settings):
    """Whose attention, over which images, and where to."""

    checkpoint: str | None = setting(
        None,
        "Weights: a file (ours, timm's or the published code's), an https:// address, or timm for the pretrained "
        "weights of --model.",
        panel="Model",
        metavar="FILE",
        show_default=False,
    )
    split: Literal["train", "val"] = setting("train", "Split to average over.", panel="Data")
    transform: Literal["eval", "train"] = setting(
        "eval", "Resize and crop as for evaluation, or augment as for training.", panel="Data"
    )
    max_images: int | None = setting(
        None,
        "Images to average over, spread evenly over the split (of a stream, the first ones).",
        panel="Data",
        metavar="N",
        minimum=1,
        show_default="all",
    )
    importance_images: int = setting(
        0,
        "Images to measure on how much the model's answer hangs on every entry, for gen-mask --allocate; 256 "
        "will do. Takes as long as evaluating 15 times as many; needs no labels.",
        panel="Data",
        metavar="N",
        minimum=0,
        show_default="0, which leaves it out",
    )
    batch_size: int = setting(96, "Images in a batch of each process.", panel="Runtime", minimum=1)
    output: str = setting("attn.safetensors", "File to write.", panel="Output", metavar="FILE")
    overwrite: bool = setting(False, "Replace the file when it is there already.", panel="Output")

    def __post_init__(self) -> None:
        super().__post_init__()
        if Path(self.output).exists() and not self.overwrite:
            raise VitcodError(f"{self.output} exists; replace it with --overwrite, or name another with --output.")


def dump_attn(
    *,
    attention: AttentionSettings,
    mask: MaskOption = None,
    model: ModelSettings,
    data: DataSettings,
    runtime: RuntimeSettings,
    json: JsonOption = False,
) -> None:
    """Step 2: average the attention of every head over the training images.

    Prints the path of the map on stdout. Works on dense, low-rank and sparse models alike.
    """
    if attention.checkpoint is None:
        raise VitcodError("--checkpoint is needed: name the weights whose attention is wanted.")
    from vitcod_cli.artifacts.attention_map import AttentionMap, write_attention_map
    from vitcod_cli.attention.collect import collect_attention
    from vitcod_cli.attention.importance import collect_importance
    from vitcod_cli.cli.console import console, print_json, print_result
    from vitcod_cli.commands.common import preprocess_of
    from vitcod_cli.data.calibration import calibration_images
    from vitcod_cli.data.datasets import open_dataset
    from vitcod_cli.data.loaders import eval_loader
    from vitcod_cli.data.subset import evenly_spaced
    from vitcod_cli.distributed import is_main
    from vitcod_cli.model.build import fold_auto_encoders
    from vitcod_cli.model.load import load_model
    from vitcod_cli.runtime import start

    reporter = console()
    with start(runtime) as place:
        network = load_model(model, attention.checkpoint, flag="--checkpoint", reporter=reporter, mask=mask)
        fold_auto_encoders(network)
        images = open_dataset(data, attention.split, num_classes=network.num_classes, reporter=reporter)
        preprocess = preprocess_of(network, data)
        read = calibration_images(
            images,
            preprocess,
            attention.importance_images,
            workers=data.workers,
            device=place.device,
            seed=runtime.seed,
            reporter=reporter,
        )
        if attention.max_images is not None:
            images = evenly_spaced(images, attention.max_images)
        loader = eval_loader(
            images,
            preprocess,
            batch_size=attention.batch_size,
            workers=data.workers,
            device=place.device,
            transform=attention.transform,
            seed=runtime.seed,
            reporter=reporter,
        )
        place.advise(reporter)
        mean, num_images = collect_attention(
            place.compiled(place.prepare(network)), loader, place, reporter, attention.max_images
        )
        importance = None
        if attention.importance_images:
            importance = collect_importance(network, read, place, reporter)
        if is_main():
            info = {**_info(network, attention), "importance_images": read.num_images}
            write_attention_map(attention.output, AttentionMap(mean, num_images, info, importance))
    reporter.info(f"Averaged over {num_images} images.")
    if json:
        print_json({"path": attention.output, "images": num_images, "shape": list(mean.shape)})
    else:
        print_result(attention.output)


def _info(network: VisionTransformer, settings: AttentionSettings) -> dict[str, Any]:
    """What the map says of itself."""
    from vitcod_cli.artifacts.files import sha256_of
    from vitcod_cli.model.build import keep_mask, model_config

    source = str(settings.checkpoint)
    info = {
        "made_by": "vitcod dump-attn",
        "source": source.rpartition("/")[2],
        "model_config": model_config(network).to_dict(),
        "num_prefix_tokens": network.num_prefix_tokens,
        "sparse": keep_mask(network) is not None,
        "split": settings.split,
        "transform": settings.transform,
    }
    return {**info, "made_from": sha256_of(source)} if Path(source).is_file() else info
