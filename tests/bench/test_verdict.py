"""What is said of a mask, for measurements that the test makes up."""

from __future__ import annotations

import pytest

from vitcod_cli.bench.counting import Counts
from vitcod_cli.bench.measure import Comparison, Measurement, Mode, Results
from vitcod_cli.bench.report import Report
from vitcod_cli.bench.timing import ratio
from vitcod_cli.bench.verdict import in_ms, mask_verdict, standing, times

COUNTS = Counts(10, 0, 0, 1000, 200, 20)
LEAVES_OUT = "The mask leaves out 90.0 % of the attention products (18.0 % of all arithmetic)"


def results(*cases: tuple[Mode, int, list[float], list[float]]) -> Results:
    found = Results()
    for mode, batch_size, masked, unmasked in cases:
        found.measurements.append(Measurement(mode, batch_size, "model", masked, None))
        found.measurements.append(Measurement(mode, batch_size, "no mask", unmasked, None))
        spread = ratio(masked, unmasked)
        found.comparisons.append(Comparison(mode, batch_size, "no mask", spread, len(masked)))
    return found


def verdict(*cases: tuple[Mode, int, list[float], list[float]]) -> str | None:
    return mask_verdict(COUNTS, results(*cases), "no mask")


def test_no_time_saved() -> None:
    assert verdict(("forward", 32, [0.0312] * 4, [0.031] * 4)) == (
        f"{LEAVES_OUT}, but saves no time on this device: a forward pass of 32 images takes 31.2 ms with it and "
        "31.0 ms without (x1.01)."
    )


def test_time_saved() -> None:
    words = verdict(("forward", 1, [0.09, 0.092, 0.094, 0.092], [0.1] * 4))
    assert words == (
        f"{LEAVES_OUT}, and saves 8.0 % of the time on this device: a forward pass of 1 image takes 92.0 ms with "
        "it and 100 ms without (x0.92)."
    )


def test_a_saving_that_the_spread_does_not_bear_out_is_none() -> None:
    words = verdict(("forward", 8, [0.08, 0.09, 0.12, 0.13, 0.07], [0.1] * 5))
    assert words is not None
    assert "but whether it saves time is too noisy to tell on this device" in words
    assert "(x0.80 to x1.20 in pairs)" in words


@pytest.mark.parametrize(
    ("masked", "unmasked", "expected"),
    [
        ([0.09] * 4, [0.1] * 4, "faster"),
        ([0.11] * 4, [0.1] * 4, "slower"),
        ([0.099, 0.1, 0.101, 0.1], [0.1] * 4, "the same"),
        ([0.08, 0.12, 0.08, 0.12], [0.1] * 4, "too noisy"),
        ([0.096, 0.097, 0.104, 0.104], [0.1] * 4, "too noisy"),
        # Every pair says slower, and the medians faster: the machine changed in between.
        ([0.11, 0.11, 0.33, 0.33, 0.11], [0.1, 0.1, 0.3, 0.3, 0.3], "too noisy"),
        # Pairs are alike, or 5 % apart, and the medians beside them three times.
        ([0.1, 0.1, 0.1, 0.3, 0.3], [0.1, 0.1, 0.3, 0.3, 0.3], "too noisy"),
        ([0.095, 0.095, 0.095, 0.285, 0.285], [0.1, 0.1, 0.3, 0.3, 0.3], "too noisy"),
        # Too few to know how far they scatter.
        ([0.05] * 2, [0.1] * 2, "too noisy"),
        ([0.05] * 3, [0.1] * 3, "too noisy"),
    ],
)
def test_faster_slower_or_nothing(masked: list[float], unmasked: list[float], expected: str) -> None:
    found = results(("forward", 8, masked, unmasked))
    assert standing(found.comparisons[0], found) == expected


def report(masked: list[float], unmasked: list[float]) -> Report:
    environment = {
        "threads": 2,
        "precision": "float32",
        "attention": "auto",
        "training_precision": "float32",
        "compile": False,
        "channels_last": False,
    }
    environment |= {"deterministic": False, "device_name": "a CPU", "torch": "", "timm": "", "vitcod": ""}
    counts = {"model": COUNTS, "no mask": COUNTS}
    about = {"model": "m", "img_size": (8, 8), "tokens": 5, "source": "random weights", "mask": None}
    found = results(("forward", 8, masked, unmasked))
    return Report({"model": about, "no mask": about}, environment, counts, found)


@pytest.mark.parametrize(
    ("masked", "expected"),
    [
        ([0.09] * 4, "faster"),
        ([0.11] * 4, "slower"),
        ([0.1] * 4, "the same"),
        ([0.08, 0.12, 0.08, 0.12], "too noisy"),
        ([0.05, 0.05, 0.2, 0.2], "too noisy"),
        ([0.05] * 2, "too noisy"),
    ],
)
def test_table_sentence_and_json_say_the_same(masked: list[float], expected: str) -> None:
    made = report(masked, [0.1] * len(masked))
    text = " ".join(made.text().split())
    words = {
        "faster": "saves 10.0 % of the time",
        "slower": "takes 10.0 % more time",
        "the same": "saves no time",
        "too noisy": "whether it saves time is too noisy to tell",
    }
    # The row ends with it, the sentence has its words, and nothing has those of another answer.
    assert f" {len(masked)} {expected} The model's time as a multiple" in text
    assert [answer for answer, said in words.items() if said in text] == [expected]
    noisy = expected == "too noisy"
    assert ("measure for longer (--seconds, --repeats), on a machine that does nothing else" in text) == noisy
    found = made.to_dict()
    assert [one["model_is"] for one in found["comparisons"]] == [expected]
    assert words[expected] in found["mask_verdict"]


def test_a_mask_that_costs_time() -> None:
    words = verdict(("forward", 8, [0.12] * 4, [0.1] * 4))
    assert words is not None
    assert "but takes 20.0 % more time on this device" in words


def test_the_largest_batch_of_each_mode_speaks() -> None:
    same = [0.1] * 4
    words = verdict(
        ("forward", 64, same, same), ("forward", 1, [0.01] * 4, same), ("training", 8, [0.05] * 4, same)
    )
    assert words == (
        f"{LEAVES_OUT}, but saves no time on this device: a forward pass of 64 images takes 100 ms with it and "
        "100 ms without (x1.00). A training step of 8 images takes 50.0 ms with it and 100 ms without (x0.50): "
        "the mask saves 50.0 % of the time."
    )


def test_nothing_compared_nothing_said() -> None:
    assert verdict() is None


def test_figures_keep_three_digits() -> None:
    assert [in_ms(value) for value in (0.1234, 1.234, 12.34, 123.4, 12345.6)] == [
        "0.12", "1.23", "12.3", "123", "12,346"
    ]  # fmt: skip
    assert [times(value) for value in (1.0, 0.954, 12.3, 0.00964)] == ["x1.00", "x0.95", "x12.30", "x0.0096"]
