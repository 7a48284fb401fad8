"""A ``model_best.pth.tar`` as timm's train.py writes it: EMA, arguments, optimizer; for docs/onnx.md.

    python benchmarks/timm_checkpoint.py --weights deit_tiny.safetensors --data-path imagewoof --output-dir dogs

DeiT-Tiny with a head for 37 breeds of dogs (the ten of Imagewoof, and 27 others that ImageNet has), which
begins as those rows of the ImageNet head; one epoch on Imagewoof's training pictures.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import timm
import torch
import torch.nn.functional as F
from timm.data.dataset_factory import create_dataset
from timm.data.imagenet_info import ImageNetInfo
from timm.data.loader import create_loader
from timm.models.vision_transformer import VisionTransformer
from timm.utils.checkpoint_saver import CheckpointSaver
from timm.utils.model_ema import ModelEmaV3

CLASSES = 37
DOGS = slice(151, 269)
"""Of ImageNet's labels."""


def main() -> None:
    """Train, and save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", required=True)
    parser.add_argument("--data-path", required=True)
    parser.add_argument("--output-dir", required=True)
    parser.add_argument("--lr", type=float, default=2e-5)
    parser.add_argument("--batch-size", type=int, default=32)
    options = parser.parse_args()
    folder = Path(options.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)

    info = ImageNetInfo()
    names = [info.index_to_label_name(label) for label in range(1000)]
    shown = sorted(os.listdir(Path(options.data_path, "val")))
    others = [name for name in names[DOGS] if name not in shown][::3]
    breeds = sorted([*shown, *others[: CLASSES - len(shown)]])
    class_map = folder / "breeds.txt"
    class_map.write_text("\n".join(breeds) + "\n")

    model = timm.create_model("deit_tiny_patch16_224", checkpoint_path=options.weights)
    assert isinstance(model, VisionTransformer)
    head, rows = model.get_submodule("head"), [names.index(breed) for breed in breeds]
    kept = {name: value[rows] for name, value in head.state_dict().items()}
    model.reset_classifier(CLASSES)
    model.get_submodule("head").load_state_dict(kept)
    ema = ModelEmaV3(model, decay=0.98)
    dataset = create_dataset("", root=str(Path(options.data_path, "train")), class_map=str(class_map))  # type: ignore[arg-type]
    loader = create_loader(
        dataset,
        (3, 224, 224),
        options.batch_size,
        is_training=True,
        use_prefetcher=False,
        num_workers=2,
        persistent_workers=False,
        device=torch.device("cpu"),
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=options.lr, weight_decay=0.05)
    model.train()
    for step, (images, labels) in enumerate(loader):
        with torch.autocast("cpu", torch.bfloat16):
            logits = model(images)
        loss = F.cross_entropy(logits.float(), labels, label_smoothing=0.1)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        ema.update(model, step=step)
        print(f"{step + 1}/{len(loader)} loss {loss.item():.3f}", flush=True)
    args = argparse.Namespace(model="deit_tiny_patch16_224", num_classes=CLASSES, lr=options.lr)
    saver = CheckpointSaver(  # type: ignore[no-untyped-call]
        model, optimizer, args=args, model_ema=ema, checkpoint_dir=str(folder), recovery_dir=str(folder)
    )
    saver.save_checkpoint(0, metric=0.0)  # type: ignore[no-untyped-call]


if __name__ == "__main__":
    main()
