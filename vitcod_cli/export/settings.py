"""What is exported, and in which form. Imports neither torch nor timm."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from vitcod_cli.errors import VitcodError
from vitcod_cli.model.settings import ModelSettings, checkpoint_setting, mask_setting
from vitcod_cli.settings import ResultSettings, Settings, required, setting

Form = Literal["program", "onnx", "weights", "arrays"]

_FORMS: dict[str, Form] = {".pt2": "program", ".onnx": "onnx", ".safetensors": "weights", ".npz": "arrays"}


@dataclass(frozen=True, kw_only=True)
class ExportOptions(Settings, panel="Output"):
    """Options of ``vitcod export``."""

    checkpoint: str = checkpoint_setting("name the weights to export.")
    mask: str | None = mask_setting()
    output: str = required(
        "File to write: .onnx or .pt2 (torch.export) for a program, .safetensors for weights that timm loads, "
        ".npz for weights, mask and its statistics.",
        "name the file to write, such as model.pt2 or model.onnx.",
        metavar="FILE",
    )
    overwrite: bool = setting(False, "Replace the file when it is there already.")
    input: Literal["float32", "uint8"] = setting(
        "float32",
        "Images that the program takes: float32, normalised already, or uint8, which it normalises itself.",
        panel="Program",
    )
    portable: bool = setting(
        False,
        "Standard ONNX operators only. Without it attention is onnxruntime's own operator, which is faster there "
        "and which OpenVINO reads, too.",
        panel="Program",
    )
    batch_size: int | None = setting(
        None,
        "Images in a batch of the program. With a fixed number, attention leaves out what the mask prunes "
        "where that is expected to save time.",
        panel="Program",
        minimum=1,
        metavar="N",
        show_default="any number",
    )
    model: ModelSettings = field(default_factory=ModelSettings)
    result: ResultSettings = field(default_factory=ResultSettings)

    def __post_init__(self) -> None:
        super().__post_init__()
        _ = self.form

    @property
    def path(self) -> Path:
        """The file to write."""
        return Path(self.output)

    @property
    def form(self) -> Form:
        """What the ending of ``output`` asks for.

        Raises:
            VitcodError: if it asks for nothing known, or for weights with an option of programs.
        """
        form = _FORMS.get(self.path.suffix.lower())
        if form is None:
            raise VitcodError(
                f"--output {self.path} doesn't end in .pt2 (a torch.export program), .onnx, .safetensors "
                "(weights for timm) or .npz (arrays); the ending says what to write."
            )
        for flag, is_set in (("--batch-size", self.batch_size is not None), ("--input", self.input != "float32")):
            if form in ("weights", "arrays") and is_set:
                raise VitcodError(f"{flag} is for programs; leave it out for weights, or export to .pt2 or .onnx.")
        if self.portable and form != "onnx":
            raise VitcodError("--portable is for .onnx files; leave it out, or let --output end in .onnx.")
        return form
