"""What diagnosis says of a momentum: too few steps for it, a function of the step, and numbers that are none."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional

import batchnorm


def network(momentum=0.001):
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16, momentum=momentum), nn.ReLU()]
    layers += [nn.Conv2d(16, 16, 3), nn.BatchNorm2d(16, momentum=momentum), nn.ReLU()]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(256, 3))


def batches(number, seed):
    generator = torch.Generator().manual_seed(seed)
    labels = [torch.randint(0, 3, (32,), generator=generator) for _ in range(number)]
    return [(torch.randn(32, 3, 8, 8, generator=generator) * 3 + 2 + y[:, None, None, None], y) for y in labels]


def train(model, steps, seed):
    optimizer = torch.optim.SGD(model.train().parameters(), lr=0.02, momentum=0.9)
    for x, y in batches(steps, seed):
        optimizer.zero_grad()
        functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    return model


LOADER = [x for x, _ in batches(20, 99)]


def diagnosed(model):
    return batchnorm.diagnose(copy.deepcopy(model), LOADER)


def test_the_fixes_of_too_few_steps_work_and_a_conversion_that_keeps_the_count_would_not():
    model = train(network(), 60, 1)
    first = diagnosed(model).findings[0]
    assert first.code == "BN108"
    assert first.message.startswith("60 updates at momentum 0.001 leave 94% of the initial value")
    assert first.fix == (
        'batchnorm.recalibrate(model, loader)  # before training on, batchnorm.convert(model, "debiased", count=0)'
    )
    fresh = copy.deepcopy(model)
    batchnorm.recalibrate(fresh, LOADER)
    assert diagnosed(fresh).ok
    on = train(batchnorm.convert(copy.deepcopy(fresh), "debiased", count=0), 20, 2)
    forgotten = train(batchnorm.convert(copy.deepcopy(model), "debiased", count=0), 20, 2)
    kept = train(batchnorm.convert(copy.deepcopy(model), "debiased"), 20, 2)
    assert diagnosed(on).ok
    assert diagnosed(forgotten).ok
    assert all(torch.equal(on[i].running_var, forgotten[i].running_var) for i in (1, 4))
    assert diagnosed(kept).layers["1"].drift > 10 * diagnosed(on).layers["1"].drift


@pytest.mark.parametrize("method", ["debiased", "pooled", "window", "diminishing", "cumulative"])
def test_an_average_without_an_initial_value_is_not_told_that_it_holds_one(method):
    model = train(batchnorm.convert(network(), method), 40, 1)
    for layer in (model[1], model[4]):
        layer.running_mean.mul_(0.2)
        layer.running_var.mul_(0.3).add_(0.7)
    codes = [finding.code for finding in diagnosed(model).findings]
    assert "BN104" in codes
    assert "BN108" not in codes


def test_a_method_is_not_told_to_become_another():
    model = train(batchnorm.convert(network(), "renorm"), 10, 1)
    first = diagnosed(model).findings[0]
    assert (first.code, first.fix) == ("BN108", "batchnorm.recalibrate(model, loader)")


def test_a_momentum_that_is_a_function_of_the_step_is_diagnosed_and_watched_by_its_value():
    model = train(batchnorm.convert(network(), "diminishing"), 3, 1)
    assert diagnosed(model).layers["1"].momentum == pytest.approx(1 / 4)
    with batchnorm.watch(model, every=1) as report:
        model.train()
        for x in LOADER[:2]:
            model(x).sum().backward()
    assert report.layers["1"].momentum == pytest.approx(1 / 6)
    assert [point.gain for point in report.layers["1"].timeline] == pytest.approx([1 / 5, 1 / 6])


@pytest.mark.filterwarnings("ignore:BN308")
@pytest.mark.parametrize(("method", "said"), [("batchnorm", True), ("debiased", False)])
def test_a_run_too_short_for_its_momentum_is_judged_where_the_start_fades(method, said):
    model = batchnorm.convert(network(), method)
    report = batchnorm.watch(model, steps=20, every=1)
    model.train()(LOADER[0]).sum().backward()
    report.close()
    assert ("BN308" in [finding.code for finding in report.findings]) is said


@pytest.mark.parametrize("momentum", [2.0, -0.5, 3.0])
def test_a_momentum_outside_its_range_comes_before_its_symptoms_and_its_fix_works(momentum):
    model = network()
    model[4].momentum = momentum
    model = train(model, 7, 1)
    recalibrated = copy.deepcopy(model).eval()
    batchnorm.recalibrate(recalibrated, LOADER)
    assert "BN129" not in [finding.code for finding in diagnosed(recalibrated).findings]
    first = diagnosed(model).findings[0]
    assert (first.code, first.layer, first.severity) == ("BN129", "4", "error")
    assert f"momentum is {momentum:g}" in first.message
    assert first.fix == 'model.get_submodule("4").momentum = 0.1; batchnorm.recalibrate(model, loader)'
    exec(first.fix, {"model": model, "loader": LOADER, "batchnorm": batchnorm})
    assert model[4].momentum == 0.1
    assert diagnosed(model).ok
