"""Shell completion of model names. Imports no timm, which takes seconds at every press of TAB."""

from __future__ import annotations

import re
from importlib.util import find_spec
from pathlib import Path

from vitcod_cli.artifacts.model_arguments import VIT_MODULES


def model_names(incomplete: str) -> list[str]:
    """timm's names of Vision Transformers that begin with ``incomplete``, read from its source."""
    timm = find_spec("timm")
    folders = (timm.submodule_search_locations if timm is not None else None) or []
    names: set[str] = set()
    for folder in folders:
        for module in VIT_MODULES:
            try:
                source = Path(folder, "models", f"{module}.py").read_text(encoding="utf-8")
            except OSError:  # another timm: nothing to complete is no error
                continue
            names.update(re.findall(r"^@register_model\ndef (\w+)", source, re.MULTILINE))
    return sorted(name for name in names if name.startswith(incomplete))
