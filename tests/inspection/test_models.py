"""``vitcod models``: what can be treated is, and why the rest can't."""

from __future__ import annotations

import json

import timm
from command_line import Cli, the_error

from vitcod_cli.artifacts.model_config import ModelConfig
from vitcod_cli.model.build import build_model


def test_what_a_pattern_finds(cli: Cli) -> None:
    outcome = cli("models", "deit_tiny*", "resnet18d", "convit_tiny", "--json")
    assert outcome.code == 0, outcome.err
    found = json.loads(outcome.out)
    expected = list(timm.list_models("deit_tiny*"))
    assert [one["name"] for one in found["models"]] == expected
    one = next(one for one in found["models"] if one["name"] == "deit_tiny_patch16_224")
    model = build_model(ModelConfig(model="deit_tiny_patch16_224", num_classes=1000, img_size=(224, 224)))
    assert one["parameters"] == sum(parameter.numel() for parameter in model.parameters())
    assert (one["blocks"], one["heads"], one["tokens"], one["img_size"]) == (12, 3, 197, [224, 224])
    assert one["pretrained"][0] == "deit_tiny_patch16_224.fb_in1k"
    assert found["others"].keys() == {"resnet18d", "convit_tiny"}
    assert found["others"]["resnet18d"].startswith("can't be treated: it is a ResNet")


def test_lines(cli: Cli) -> None:
    outcome = cli("models", "tiny_patch16_224", "resnet18d")
    names = [line.split()[0] for line in outcome.out.splitlines()]
    assert {"deit_tiny_patch16_224", "vit_tiny_patch16_224"} <= set(names)
    assert "resnet18d can't be treated: it is a ResNet" in outcome.out
    assert "[PATTERN]" not in outcome.out
    assert "fits no name of timm" in the_error(cli("models", "no-such-model"))
