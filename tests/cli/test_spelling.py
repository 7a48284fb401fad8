"""The published spelling of options, and several values after one flag."""

from __future__ import annotations

from vitcod_cli.cli.spelling import canonical

FLAGS = {"--info-cut", "--mask", "--init-from", "--svd-type", "--model-kwargs", "--scale", "--json", "--resume"}
VALUES = {"--info-cut": 1, "--mask": 1, "--init-from": 1, "--svd-type": 1, "--model-kwargs": 1, "--scale": 2}


def spelled(line: str) -> str:
    return " ".join(canonical(line.split(), FLAGS, VALUES, {"--model-kwargs"}))


def test_underscores_become_dashes_and_values_stay() -> None:
    assert spelled("--info_cut 0.5") == "--info-cut 0.5"
    assert spelled("--svd_type=mix_head_fc_q --json") == "--svd-type=mix_head_fc_q --json"
    assert spelled("--svd-type mix_head_fc_qk") == "--svd-type mix_head_fc_qk"
    # A value may look like anything.
    assert spelled("--mask --info_cut --info_cut 1") == "--mask --info_cut --info-cut 1"
    assert spelled("--mask a_b") == "--mask a_b"


def test_other_names() -> None:
    assert spelled("--mask_path m.npy") == "--mask m.npy"
    assert spelled("--mask-path=m_1.npy") == "--mask=m_1.npy"
    assert spelled("--finetune w.pth") == "--init-from w.pth"
    assert canonical(["--finetune", "w"], {"--checkpoint"}, {"--checkpoint": 1}, ()) == ["--checkpoint", "w"]


def test_unknown_options_are_left_for_the_parser_to_refuse() -> None:
    assert spelled("--no_such 1") == "--no_such 1"
    assert spelled("--data_set digits") == "--data_set digits", "not of this command"


def test_several_values() -> None:
    expected = "--model-kwargs a=1 --model-kwargs b_c=-2 --json"
    assert spelled("--model_kwargs a=1 b_c=-2 --json") == expected
    assert spelled("--model-kwargs=a=1 b_c=-2 --json") == expected.replace("--model-kwargs a", "--model-kwargs=a")
    assert spelled("--scale 0.1 -1 --json") == "--scale 0.1 -1 --json"


def test_after_a_double_dash_nothing_changes() -> None:
    assert spelled("--json -- --info_cut") == "--json -- --info_cut"


def test_resume_auto() -> None:
    assert spelled("--resume auto --json") == "--resume --json"
    assert spelled("--resume --json") == "--resume --json"


def test_missing_value_is_left_for_the_parser_to_refuse() -> None:
    assert spelled("--info_cut") == "--info-cut"
    assert spelled("--scale 1") == "--scale 1"
