"""The published spelling of options, and several values after one flag."""

from __future__ import annotations

from dataclasses import dataclass

from vitcod_cli.cli.spelling import normalizer, option_without_value, several_values
from vitcod_cli.masks.settings import MaskOptions
from vitcod_cli.settings import Settings, options_of, setting
from vitcod_cli.steps.options import EvalOptions, LowRankOptions


@dataclass(frozen=True, kw_only=True)
class Some(Settings):
    """Options of each kind."""

    info_cut: float = setting(0.5, "A number.")
    mask: str | None = setting(None, "A file.", aliases=("--mask-path",))
    model_kwargs: list[str] = setting([], "Several values.")
    scale: tuple[float, float] = setting((0.0, 1.0), "Two numbers.")
    json: bool = setting(False, "A flag.")
    resume: bool = setting(False, "Another.")


OPTIONS = list(options_of(Some).values())


def spelled(line: str) -> str:
    return " ".join(several_values(line.split(), OPTIONS, normalizer(OPTIONS)))


def test_underscores_become_dashes() -> None:
    normalize = normalizer(OPTIONS)
    assert normalize("info_cut") == "info-cut"
    assert normalize("no_json") == "no-json"
    assert normalize("mix_head_fc_q") == "mix_head_fc_q", "a choice of some option, not an option"
    assert normalize("no_such") == "no_such"


def test_values_stay() -> None:
    # A value may look like anything.
    assert spelled("--mask --info_cut --info_cut 1") == "--mask --info_cut --info_cut 1"
    assert spelled("--mask a_b") == "--mask a_b"


def test_other_names() -> None:
    published = {
        MaskOptions: {"attn": "attn-map"},
        EvalOptions: {
            "finetune": "checkpoint",
            "mask_path": "mask",
            "mask-path": "mask",
            "data_set": "dataset",
            "data-set": "dataset",
            "input_size": "img-size",
            "num_workers": "workers",
        },
        LowRankOptions: {
            "finetune": "init-from",
            "distillation-type": "distill",
            "distillation-alpha": "distill-alpha",
            "distillation_tau": "distill-tau",
            "teacher-model": "teacher",
        },
    }
    for options, names in published.items():
        normalize = normalizer(options_of(options).values())
        assert {name: normalize(name) for name in names} == names
    assert normalizer(options_of(MaskOptions).values())("data-set") == "data-set", "not of this command"


def test_unknown_options_are_left_for_the_parser_to_refuse() -> None:
    assert spelled("--no_such 1") == "--no_such 1"


def test_several_values() -> None:
    expected = "--model_kwargs a=1 --model_kwargs b_c=-2 --json"
    assert spelled("--model_kwargs a=1 b_c=-2 --json") == expected
    assert spelled("--model_kwargs=a=1 b_c=-2 --json") == expected.replace("--model_kwargs a", "--model_kwargs=a")
    assert spelled("--scale 0.1 -1 --json") == "--scale 0.1 -1 --json"


def test_what_is_no_value_of_the_option_stays_an_argument() -> None:
    assert spelled("--model-kwargs depth=2 model.pth") == "--model-kwargs depth=2 model.pth"


def test_after_a_double_dash_nothing_changes() -> None:
    assert spelled("--json -- --resume auto") == "--json -- --resume auto"


def test_resume_auto() -> None:
    assert spelled("--resume auto --json") == "--resume --json"
    assert spelled("--resume --json") == "--resume --json"


def test_missing_value_is_left_for_the_parser_to_refuse() -> None:
    assert spelled("--info_cut") == "--info_cut"
    assert spelled("--scale 1") == "--scale 1"


def test_an_option_in_place_of_a_value() -> None:
    """Else a file called --json would be written."""

    def forgotten(line: str) -> str | None:
        return option_without_value(line.split(), OPTIONS, normalizer(OPTIONS))

    assert forgotten("--json --mask --info_cut 1") == "--mask"
    assert forgotten("--mask --no-json") == "--mask"
    assert forgotten("--mask_path -h") == "--mask_path"
    assert forgotten("--scale 1 --config x") == "--scale"
    for line in ("--mask=--json", "--mask --x", "--mask - --json", "--scale -1 -2", "--json --resume", "--mask"):
        assert forgotten(line) is None
    assert forgotten("--json -- --mask --json") is None
