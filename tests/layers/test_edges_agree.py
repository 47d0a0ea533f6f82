"""At the edges both ways of serving a step give what the closed form or torch gives, or refuse with the reason."""

import pytest
import torch
from torch import nn

from batchnorm import BatchNorm1d, BatchNorm2d, BatchNormError, kernels
from batchnorm.layers import EMA, MABN, Cumulative, Diminishing, Policy, Pooled, PowerNorm, Renorm, UnifiedNorm, Window
from batchnorm.layers.couplings import BatchCoupling, PopulationCoupling, SecondMoment

WEIGHTS = torch.tensor([0.3, 0.1, 0.2, 0.4, 0.15, 0.25], dtype=torch.float64)


@pytest.fixture(params=[None, "reference"], autouse=True)
def _backend(request):
    kernels.use(request.param)
    yield
    kernels.use()


# Estimators whose first batch is all that they store.
FIRST = [Window(1), Window(3), Cumulative(), EMA(debias=True), EMA(lambda step: 1 - 1e-9 / step, debias=True)]


@pytest.mark.parametrize("unit", [1.0, 0.1])
@pytest.mark.parametrize("estimator", FIRST)
def test_precisions_are_corrected_in_their_own_unit(estimator, unit):
    x, weights = torch.randn(6, 1, dtype=torch.float64) * 2 + 1, WEIGHTS * unit
    layer = BatchNorm1d(1, estimator=estimator, policy=Policy(weights="reliability"), dtype=torch.float64)
    layer(x, weights=weights)
    total = weights.sum()
    mean = (weights * x[:, 0]).sum() / total
    expected = (weights * (x[:, 0] - mean).square()).sum() / (total - weights.square().sum() / total)
    assert float(layer.running_var) == pytest.approx(float(expected), rel=1e-12)


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("weights", ["frequency", "reliability"])
def test_little_left_by_the_correction_is_as_exact_as_the_weights(weights, last):
    """The count less the correction cancels; float32 sums of weights would show there."""
    x = torch.randn(60, 3, 1, 1)
    w = torch.full((60,), 1.01 / 60)
    if weights == "reliability":
        w = torch.where(torch.arange(60) == 0, 1.0, 1e-4)
    layer = BatchNorm2d(3, estimator=Cumulative(), policy=Policy(weights=weights))
    layer(x.contiguous(memory_format=torch.channels_last) if last else x, weights=w)
    x, w = x.double().flatten(1), w.double()
    rest = w.sum() - (1 if weights == "frequency" else w.square().sum() / w.sum())
    mean = (w @ x) / w.sum()
    assert torch.allclose(layer.running_var.double(), w @ (x - mean).square() / rest, rtol=5e-6)


@pytest.mark.parametrize("momentum", [0.1, 1e-7, 1e-12])
@pytest.mark.parametrize("schedule", [False, True])
def test_a_debiased_average_keeps_no_trace_of_the_initial_value(schedule, momentum):
    estimator = EMA(lambda step: 1 - momentum / step, debias=True) if schedule else EMA(1 - momentum, debias=True)
    layer = BatchNorm1d(2, estimator=estimator, dtype=torch.float64)
    layer(torch.full((4, 2), 3.0, dtype=torch.float64))
    assert layer.running_var.abs().max() < 1e-16


@pytest.mark.parametrize("estimator", [Pooled(), Pooled(correction=0), Window(2, total=True)])
def test_what_pools_values_refuses_precisions(estimator):
    with pytest.raises(BatchNormError, match="precisions have no count"):
        BatchNorm1d(1, estimator=estimator, policy=Policy(weights="reliability"))


@pytest.mark.parametrize("estimator", [EMA(), Cumulative(), Window(1), Window(2), EMA(debias=True), EMA(total=True)])
@pytest.mark.parametrize("row", [0, 1])
@pytest.mark.parametrize("sign", [1, -1])
def test_an_infinity_that_propagates_is_torchs(row, sign, estimator):
    x = torch.ones(4, 2)
    x[row, 0] = sign * torch.inf
    ours = BatchNorm1d(2, estimator=estimator, policy=Policy(nonfinite="propagate"))
    stock = nn.BatchNorm1d(2, momentum=0.1 if estimator in (EMA(), EMA(total=True)) else 1.0)
    ours(x), stock(x)
    if estimator == EMA(total=True):
        stock.running_var[1] += 0.09  # the spread of the means
    assert torch.equal(ours.running_mean, stock.running_mean)
    assert torch.allclose(ours.running_var, stock.running_var, equal_nan=True)


@pytest.mark.parametrize("estimator", [EMA(), EMA(sigma=True), EMA(total=True), Diminishing(scale=0.5), Pooled()])
@pytest.mark.parametrize("name", ["running_mean", "running_var"])
def test_raise_judges_what_would_be_stored(name, estimator):
    layer = BatchNorm1d(2, estimator=estimator, policy=Policy(nonfinite="raise"))
    x = torch.randn(4, 2)
    layer(x)
    before = {key: value.clone() for key, value in layer.state_dict().items()}
    # Where the mean alone is not finite, the variance is finite; the spread of the means makes it NaN.
    layer.stat(name)[1] = before[name][1] = torch.inf
    if name == "running_mean" and estimator in (EMA(), EMA(sigma=True), Diminishing(scale=0.5)):
        layer(x)
        assert layer.running_var.isfinite().all()
        return
    with pytest.raises(BatchNormError, match="finite"):
        layer(x)
    for key, value in layer.state_dict().items():
        assert torch.equal(value, before[key]), key


@pytest.mark.parametrize("estimator", [EMA(0.0), Window(1), Cumulative()])
def test_raise_passes_where_what_is_not_finite_is_forgotten(estimator):
    layer = BatchNorm1d(2, estimator=estimator, policy=Policy(nonfinite="raise"))
    layer.running_var.fill_(torch.inf)
    layer(torch.randn(4, 2))
    assert layer.running_var.isfinite().all()


COUPLINGS = [
    MABN(window=2, warmup=0),
    PowerNorm(warmup=0),
    PowerNorm(warmup=100),
    UnifiedNorm(window=2, warmup=0),
    BatchCoupling(),
    SecondMoment(),
    Renorm(3.0, 5.0),
    PopulationCoupling(),
]


@pytest.mark.parametrize("coupling", COUPLINGS)
def test_one_value_meets_the_running_statistics_and_so_does_its_gradient(coupling):
    layer = BatchNorm1d(2, coupling=coupling, policy=Policy(too_few="population"), dtype=torch.float64)
    for _ in range(5):
        layer(torch.randn(6, 2, dtype=torch.float64, requires_grad=True)).square().sum().backward()
    invstd = 1 / (layer.running_var + layer.eps).sqrt()
    memory = {name: layer.stat(name).clone() for name in layer.memory_names if name.startswith("backward")}
    x = torch.randn(6, 2, dtype=torch.float64, requires_grad=True)
    y = layer(x, mask=torch.arange(6) == 2)
    (y.sum()).backward()
    assert torch.allclose(y[2], (x[2] - layer.running_mean) * invstd, rtol=1e-12)
    assert torch.allclose(x.grad[2], invstd, rtol=1e-12)
    assert all(torch.equal(layer.stat(name), value) for name, value in memory.items())
