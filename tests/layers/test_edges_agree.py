"""At the edges both ways of serving a step give what the closed form or torch gives, or refuse with the reason."""

import pytest
import torch
from torch import nn

from batchnorm import BatchNorm1d, BatchNormError, kernels
from batchnorm.layers import MABN, Policy, Pooled, PowerNorm, UnifiedNorm, Window

WEIGHTS = torch.tensor([0.3, 0.1, 0.2, 0.4, 0.15, 0.25], dtype=torch.float64)


@pytest.fixture(params=[None, "reference"], autouse=True)
def _backend(request):
    kernels.use(request.param)
    yield
    kernels.use()


@pytest.mark.parametrize("size", [1, 3])
def test_a_window_corrects_precisions_in_their_own_unit(size):
    x = torch.randn(6, 1, dtype=torch.float64) * 2 + 1
    layer = BatchNorm1d(1, estimator=Window(size), policy=Policy(weights="reliability"), dtype=torch.float64)
    layer(x, weights=WEIGHTS)
    total = WEIGHTS.sum()
    mean = (WEIGHTS * x[:, 0]).sum() / total
    expected = (WEIGHTS * (x[:, 0] - mean).square()).sum() / (total - WEIGHTS.square().sum() / total)
    assert float(layer.running_var) == pytest.approx(float(expected), rel=1e-12)


@pytest.mark.parametrize("estimator", [Pooled(), Pooled(correction=0), Window(2, total=True)])
def test_what_pools_values_refuses_precisions(estimator):
    with pytest.raises(BatchNormError, match="precisions have no count"):
        BatchNorm1d(1, estimator=estimator, policy=Policy(weights="reliability"))


@pytest.mark.parametrize("row", [0, 1])
@pytest.mark.parametrize("sign", [1, -1])
def test_an_infinity_that_propagates_is_torchs(row, sign):
    x = torch.ones(4, 2)
    x[row, 0] = sign * torch.inf
    ours, stock = BatchNorm1d(2, policy=Policy(nonfinite="propagate")), nn.BatchNorm1d(2)
    ours(x), stock(x)
    assert torch.equal(ours.running_mean, stock.running_mean)
    assert torch.allclose(ours.running_var, stock.running_var, equal_nan=True)


def test_raise_judges_the_variance_that_would_be_stored():
    layer = BatchNorm1d(2, policy=Policy(nonfinite="raise"))
    layer.running_var.fill_(torch.inf)
    with pytest.raises(BatchNormError, match="finite"):
        layer(torch.randn(4, 2))


MEMORY = {
    "mabn": MABN(window=2, warmup=0),
    "power": PowerNorm(warmup=0),
    "unified": UnifiedNorm(window=2, warmup=0),
}


@pytest.mark.parametrize("method", MEMORY)
def test_one_value_meets_the_running_statistics_and_so_does_its_gradient(method):
    policy = Policy(too_few="population")
    layer = BatchNorm1d(2, method=method, coupling=MEMORY[method], policy=policy, dtype=torch.float64)
    for _ in range(5):
        layer(torch.randn(6, 2, dtype=torch.float64, requires_grad=True)).square().sum().backward()
    invstd = 1 / (layer.running_var + layer.eps).sqrt()
    memory = {name: layer.stat(name).clone() for name in layer.memory_names if name.startswith("backward")}
    x = torch.randn(6, 2, dtype=torch.float64, requires_grad=True)
    y = layer(x, mask=torch.arange(6) == 2)
    (y.sum()).backward()
    assert torch.allclose(y[2], x[2] * invstd, rtol=1e-12)
    assert torch.allclose(x.grad[2], invstd, rtol=1e-12)
    assert all(torch.equal(layer.stat(name), value) for name, value in memory.items())
