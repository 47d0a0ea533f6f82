"""The trends that are stable enough to assert, and that every experiment of the benchmark runs."""

import json
import math

import pytest
import torch
from digits import data, grouped, lit, network
from trends import EXPERIMENTS, QUICK, main, one_class_groups


@pytest.fixture(scope="module")
def quick(tmp_path_factory):
    out = tmp_path_factory.mktemp("trends") / "trends.json"
    main(["--quick", "--out", str(out)])
    return json.loads(out.read_text())["experiments"], out.with_suffix(".md").read_text()


@pytest.mark.slow
def test_every_experiment_gives_finite_rows_and_a_table(quick):
    experiments, table = quick
    assert list(experiments) == list(EXPERIMENTS)
    for rows in experiments.values():
        assert all(0 <= error <= 100 and math.isfinite(row["se"]) for row in rows for error in row["errors"])
        assert all(row["method"] in table for row in rows)


@pytest.mark.slow
def test_a_slow_average_lags_behind_forty_steps_and_the_others_do_not(quick):
    errors = {row["method"]: row["mean"] for row in quick[0]["ema_lag"]}
    assert errors["EMA, gain 0.01"] > 2 * errors["recalibrated"]
    for name in ("debiased EMA, gain 0.01", "EMA, gain 0.1", "window of 10"):
        assert errors["EMA, gain 0.01"] > 1.5 * errors[name]


@pytest.mark.slow
def test_groups_of_one_class_break_batch_norm_and_a_frozen_tail_or_renorm_mends_it():
    rows = one_class_groups(data(), QUICK._replace(long=800), lambda: None)
    errors = {(row["method"], row["classes_in_a_group"]): row["mean"] for row in rows}
    for mended in ("renorm", "batchnorm, frozen for the last fifth"):
        assert errors["batchnorm", 1] > 3 * errors[mended, 1]
    assert errors["batchnorm, recalibrated on shuffled batches", 1] > 0.7 * errors["batchnorm", 1]
    assert max(error for (_, classes), error in errors.items() if classes == 2) < 6


@pytest.mark.parametrize("classes", [1, 2])
def test_groups_hold_as_many_classes_as_asked(classes):
    for _, labels in grouped(data(), 3, 0, classes):
        assert all(len(group.unique()) == classes for group in labels.split(8))


def test_light_is_an_affine_map_of_each_image_within_its_limits():
    x = torch.rand(50, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    y = lit(x, torch.Generator().manual_seed(2))
    contrast = (y - y.mean((1, 2, 3), keepdim=True)).flatten(1).norm(dim=1) / (
        x - x.mean((1, 2, 3), keepdim=True)
    ).flatten(1).norm(dim=1)
    brightness = (y - contrast[:, None, None, None] * x).flatten(1)
    assert 0.5 <= float(contrast.min()) < 0.6
    assert 1.4 < float(contrast.max()) <= 1.5
    assert float(brightness.std(1).max()) < 1e-6
    assert float(brightness.abs().max()) <= 0.5 + 1e-6


def test_the_sets_do_not_overlap_and_the_momentum_is_the_methods():
    digits = data()
    assert [len(digits.train_x), len(digits.validation_x), len(digits.test_x)] == [1047, 250, 500]
    assert network("renorm")[1].momentum == 0.01
    assert network("batchnorm")[1].momentum == 0.1
