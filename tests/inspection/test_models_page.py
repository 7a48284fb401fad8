"""docs/models.md says what is so, and a new timm can't change it unnoticed."""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest
import timm

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "models.md"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("models_page", ROOT / "benchmarks" / "models_page.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # its dataclass looks itself up
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
def test_every_architecture_is_where_the_page_says(script: ModuleType) -> None:
    known = [script.look_at(name) for name in timm.list_models()]
    page = PAGE.read_text(encoding="utf-8")
    if f"timm {timm.__version__}," in page:
        assert "\n".join(script.page(known)) + "\n" == page
    # Whatever timm is installed: none is lost, and none comes in without a word.
    listed = set(re.findall(r"^(?:[a-z0-9_]+(?:, |,$|$))+", page, re.MULTILINE))
    names = {name for line in listed for name in re.findall(r"[a-z0-9_]+", line)}
    good = {one.name for one in known if not one.refusal}
    assert good & {one.name for one in known} >= names & {one.name for one in known}
    assert not good - names, "new ones: try their laws, then make docs/models.md again"


def test_one_of_each(script: ModuleType) -> None:
    page = PAGE.read_text(encoding="utf-8")
    for name in ("deit_tiny_patch16_224", "vit_small_patch16_dinov3", "beit_base_patch16_224"):
        one = script.look_at(name)
        assert not one.refusal
        assert re.search(rf"^## {one.kind}: {re.escape(script.ATTENTION[one.attention])}$", page, re.MULTILINE)
        assert name in page
    assert script.look_at("xcit_nano_12_p16_224").refusal == "it attends between channels, not between tokens"
    assert script.look_at("resnet18").refusal == "it is no Vision Transformer with the same blocks throughout"
    assert script.look_at("vit_small_patch16_rope_mixed_224").auto_encoder
