"""The cost benchmark reaches every method; how long they take is no test."""

import cost
import pytest
import torch

import batchnorm


@pytest.mark.parametrize(
    ("shape", "layout"),
    [((8, 8, 4, 4), torch.channels_last), ((8, 8, 5), torch.contiguous_format)],
)
def test_every_method_is_measured_past_its_warm_up(shape, layout):
    row = cost.measure(shape, layout, 2, lambda: None)
    assert row["failed"] == {}
    assert {*batchnorm.methods(), "copy", "torch"} <= row["ratio_to_batchnorm"].keys()
    assert row["ratio_to_batchnorm"]["batchnorm"] == row["ratio_to_torch"]["torch"] == 1
    assert all(value > 0 for name, value in row["milliseconds"].items() if name != "cbn")


def test_a_method_that_raises_or_gives_nan_is_set_aside_with_the_reason():
    def raises():
        raise batchnorm.BatchNormError("x must be finite; it was not")

    usable, failed = cost.prepare({"a": lambda: torch.tensor(torch.nan), "b": raises, "c": lambda: torch.ones(1)})
    assert list(usable) == ["c"]
    assert failed == {"a": "its output is not finite", "b": "x must be finite; it was not"}


def test_only_methods_held_to_the_target_count_as_over_it():
    ratios = {"copy": 0.2, "batchnorm": 1.0, "ghost": 1.2, "renorm": 1.1, "online": 30.0, "online, inference": 2.0}
    assert cost.over_target([{"ratio_to_batchnorm": ratios}]) == {"ghost": 1.2}
