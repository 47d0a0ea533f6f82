"""The model itself: torch's own layer where that says what is right, closed forms, and nothing of the package."""

from pathlib import Path

import pytest
import torch
from torch import nn

from tests.model.cases import Case, Coupling, Estimator, Extent, Policy
from tests.model.layer import Model, Refused

HERE = Path(__file__).parent
DOUBLE = torch.float64


def model_of(channels=3, **choices):
    case = Case(channels=channels, **choices)
    one, zero = torch.ones(channels, dtype=DOUBLE), torch.zeros(channels, dtype=DOUBLE)
    return Model(case, DOUBLE, one * 1.3, one * 0.2, zero, one, 0)


def randn(*shape):
    return torch.randn(shape, dtype=DOUBLE)


def test_it_imports_nothing_of_the_package():
    bound = {"package.py", "runs.py", "test_random_runs.py", "test_model.py"}
    for file in HERE.glob("*.py"):
        assert file.name in bound or "batchnorm" not in file.read_text().replace("batch norm", ""), file.name


@pytest.mark.parametrize("momentum", [0.1, None])
@pytest.mark.parametrize("shape", [(6, 3), (4, 3, 5), (2, 3, 2, 3)])
def test_plain_batch_norm_is_torchs(shape, momentum):
    ours, stock = model_of(estimator=Estimator(momentum=momentum)), nn.BatchNorm1d(3, momentum=momentum, dtype=DOUBLE)
    with torch.no_grad():
        stock.weight.fill_(1.3), stock.bias.fill_(0.2)
    for _ in range(3):
        x, g = randn(*shape).requires_grad_(), randn(*shape)
        stock.zero_grad()
        y = stock(x.flatten(2) if x.dim() > 3 else x).reshape(shape)
        y.backward(g)
        run = ours.train(x.detach(), g)
        for got, expected in zip(run[:4], (y, x.grad, stock.weight.grad, stock.bias.grad), strict=True):
            assert torch.allclose(got, expected, rtol=1e-12, atol=1e-12)
    assert torch.allclose(ours.state["running_mean"], stock.running_mean, rtol=1e-13)
    assert torch.allclose(ours.state["running_var"], stock.running_var, rtol=1e-13)


def test_weights_that_are_whole_numbers_repeat_samples():
    x, g, repeats = randn(4, 3), randn(4, 3), torch.tensor([1, 3, 2, 1])
    weighted, repeated = model_of(), model_of()
    run = weighted.train(x, g, repeats.double().reshape(4, 1))
    assert torch.allclose(
        run.y.repeat_interleave(repeats, 0), repeated.train(x.repeat_interleave(repeats, 0), randn(7, 3)).y
    )
    for name in ("running_mean", "running_var"):
        assert torch.allclose(weighted.state[name], repeated.state[name])


def test_pooled_statistics_are_those_of_all_values():
    model, parts = model_of(estimator=Estimator("pooled", None)), [randn(4, 3), randn(2, 3) + 5, randn(3, 3)]
    for x in parts:
        model.train(x, x)
    whole = torch.cat(parts)
    assert torch.allclose(model.state["running_mean"], whole.mean(0))
    assert torch.allclose(model.state["running_var"], whole.var(0))


def test_a_stream_of_samples_may_be_cut_anywhere():
    coupling = Coupling("online", clamp=None)
    x, g = randn(6, 3, 4), randn(6, 3, 4)
    runs = []
    for cuts in ([6], [1, 5], [2, 3, 1]):
        model = model_of(extent=Extent(1, True), estimator=Estimator(total=True, correction=0), coupling=coupling)
        parts = [model.train(a, b) for a, b in zip(x.split(cuts), g.split(cuts), strict=True)]
        runs.append((torch.cat([part.y for part in parts]), torch.cat([part.dx for part in parts])))
    for y, dx in runs[1:]:
        assert torch.allclose(y, runs[0][0], rtol=1e-12)
        assert torch.allclose(dx, runs[0][1], rtol=1e-12)


@pytest.mark.parametrize("kind", ["mabn", "unified", "power"])
def test_windows_of_one_and_warm_up_are_the_derivative(kind):
    coupling = Coupling(kind, window=1, r_max=1.0, correct_after=100, warmup=100 if kind != "mabn" else 0)
    estimate, exact = model_of(coupling=coupling), model_of(coupling=Coupling("second moment"))
    x, g = randn(5, 3), randn(5, 3)
    for got, expected in zip(estimate.train(x, g)[:4], exact.train(x, g)[:4], strict=True):
        assert torch.allclose(got, expected, rtol=1e-12)


def test_one_value_and_weights_that_sum_to_one_are_refused():
    with pytest.raises(Refused, match="one value"):
        model_of().train(randn(1, 3), randn(1, 3))
    weights = torch.full((4, 1), 0.25, dtype=DOUBLE)
    with pytest.raises(Refused, match="sum to one"):
        model_of().train(randn(4, 3), randn(4, 3), weights)
    run = model_of(policy=Policy(reliability=True)).train(randn(4, 3), randn(4, 3), weights)
    assert run.y.isfinite().all()
