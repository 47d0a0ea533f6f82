"""Whole steps by Triton's kernels: every coupling with every estimator and extent, against torch in float64."""

import pytest
import torch

import batchnorm
from batchnorm import BatchNormError
from batchnorm.layers import (
    EMA,
    MABN,
    Batch,
    Cumulative,
    Diminishing,
    Ghost,
    OnlineNorm,
    Policy,
    Pooled,
    PowerNorm,
    Renorm,
    SecondMoment,
    UnifiedNorm,
    Window,
    couplings,
    recipe_for,
)
from tests.kernels.triton_kernels.twins import compare

COUPLINGS = {
    "batch": couplings.BatchCoupling(), "second moment": SecondMoment(), "renorm": Renorm(1.5, 0.5),
    "population": couplings.PopulationCoupling(), "detached": couplings.PopulationCoupling(gradient=False),
    "mabn": MABN(2, 1.5, 0, 1), "power": PowerNorm(warmup=0), "unified": UnifiedNorm(2, warmup=0),
    "online": OnlineNorm(),
}  # fmt: skip
ESTIMATORS = {
    "ema": EMA(), "debias": EMA(debias=True), "total": EMA(total=True), "sigma": EMA(sigma=True),
    "cumulative": Cumulative(), "diminishing": Diminishing(0.6), "pooled": Pooled(), "window": Window(2),
}  # fmt: skip
EXTENTS = {"batch": Batch(), "ghost": Ghost(2), "stream": Ghost(2, "sequential"), "samples": Ghost(1, "sequential")}


def combined():
    for names in [(c, e, x) for c in COUPLINGS for e in ESTIMATORS for x in EXTENTS]:
        try:
            recipe_for(coupling=COUPLINGS[names[0]], estimator=ESTIMATORS[names[1]], extent=EXTENTS[names[2]])
        except BatchNormError:
            continue
        yield names


def batches(shape, count=2, far=1.0, **given):
    scale = 1 + torch.arange(shape[1]).reshape(1, -1, *[1] * (len(shape) - 2))
    return [(torch.randn(shape) * scale + far + i, torch.randn(shape), given) for i in range(count)]


@pytest.mark.usefixtures("sizes")
@pytest.mark.parametrize("names", list(combined()), ids="-".join)
def test_every_coupling_estimator_and_extent(names, device):
    coupling, estimator, extent = COUPLINGS[names[0]], ESTIMATORS[names[1]], EXTENTS[names[2]]
    layer = batchnorm.BatchNorm(2, coupling=coupling, estimator=estimator, extent=extent, activation="relu")
    compare(layer, batches((5, 2, 3)), device, times=16 if names[0] == "online" else 8)


@pytest.mark.usefixtures("sizes")
@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("shape", [(3, 2, 5, 7), (2, 3, 33, 32), (4, 65, 1, 2), (7, 1, 1, 1)])
@pytest.mark.parametrize("activation", ["relu", None])
def test_layouts_dtypes_and_odd_sizes(shape, dtype, last, activation, device):
    layer = batchnorm.BatchNorm2d(shape[1], method="renorm", activation=activation)
    compare(layer, batches(shape, 1), device, dtype, last, times=8)


@pytest.mark.usefixtures("sizes")
@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("activation", ["relu", "leaky_relu", "relu6", "silu", "hardswish", "gelu"])
@pytest.mark.parametrize("residual", [False, True])
def test_activations_and_residuals(activation, residual, last, device):
    given = {"residual": torch.randn(3, 2, 2, 3)} if residual else {}
    layer = batchnorm.BatchNorm2d(2, activation=activation)
    compare(layer, batches((3, 2, 2, 3), **given), device, last=last, times=8)


@pytest.mark.usefixtures("sizes")
@pytest.mark.parametrize("too_few", ["raise", "population"])
@pytest.mark.parametrize("kind", ["mask", "weights"])
@pytest.mark.parametrize("method", ["batchnorm", "renorm", "ghost", "mabn", "window"])
def test_masks_and_weights(kind, method, too_few, device):
    chosen = torch.rand(5, 3, generator=torch.Generator().manual_seed(3)) > 0.3
    given = {kind: chosen if kind == "mask" else chosen * torch.rand(5, 3)}
    more = {"extent": Ghost(2)} if method == "ghost" else {}
    reliability = "reliability" if kind == "weights" and method != "window" else "frequency"
    layer = batchnorm.BatchNorm1d(2, method=method, policy=Policy(too_few=too_few, weights=reliability), **more)
    x = batches((5, 2, 3))
    x[0][0][~chosen[:, None].expand(5, 2, 3)] = torch.nan  # padding reaches nothing
    compare(layer, [(a, b, given) for a, b, _ in x], device, times=8)


@pytest.mark.usefixtures("sizes")
def test_groups_of_one_value_meet_the_running_statistics(device):
    mask = torch.tensor([True, True, True, False])
    layer = batchnorm.BatchNorm1d(2, extent=Ghost(2), policy=Policy(too_few="population"))
    compare(layer, [(a, b, {"mask": mask}) for a, b, _ in batches((4, 2))], device)
    refusing = batchnorm.BatchNorm1d(2, extent=Ghost(2)).to(device)
    if device == "cpu":  # on a device the refusal ends the process's context
        with pytest.raises(BatchNormError, match="at least 2 unmasked values"):
            refusing(torch.randn(4, 2), mask)
        assert not refusing.running_mean.any()


@pytest.mark.usefixtures("sizes")
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("policy", ["skip", "propagate"])
def test_values_that_are_not_finite(value, policy, device):
    layer = batchnorm.BatchNorm1d(2, method="renorm", policy=Policy(nonfinite=policy), activation="leaky_relu")
    (x, g, given), *_ = batches((4, 2))
    x[2, 1] = value
    compare(layer, [(x, g, given)], device)
    assert int(layer.num_batches_skipped) == (policy == "skip")
    assert int(layer.num_batches_tracked) == (policy == "propagate")


def test_empty_batches_move_nothing(device):
    layer = batchnorm.BatchNorm2d(2, method="renorm", activation="relu").to(device)
    y = layer(torch.zeros(0, 2, 3, 3, device=device, requires_grad=True))
    y.sum().backward()
    assert y.shape == (0, 2, 3, 3)
    assert int(layer.num_batches_tracked) == 0


@pytest.mark.usefixtures("sizes")
def test_a_large_mean_costs_no_digits(device):
    layer = batchnorm.BatchNorm1d(2, method="renorm", activation="relu")
    compare(layer, batches((64, 2, 40), 1, far=1e5), device, times=8)


@pytest.mark.usefixtures("sizes")
def test_the_bits_repeat(device):
    x = torch.randn(9, 3, 11, device=device)
    layer = batchnorm.BatchNorm1d(3, method="renorm", activation="silu").to(device)
    state = {name: value.clone() for name, value in layer.state_dict().items()}
    found = []
    for _ in range(2):
        layer.load_state_dict(state)
        given = x.clone().requires_grad_()
        y = layer(given)
        y.square().sum().backward()
        found.append((y.detach(), given.grad, layer.running_var.clone()))
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


@pytest.mark.usefixtures("sizes")
def test_stored_statistics_with_an_activation(device):
    layer = batchnorm.BatchNorm1d(2, activation="silu").to(device).eval()
    with torch.no_grad():
        layer.running_mean.fill_(0.5)
    x = torch.randn(4, 2, 3, device=device, requires_grad=True)
    y = layer(x)
    expected = torch.nn.functional.silu((x - 0.5) / (1 + layer.eps) ** 0.5)
    assert torch.allclose(y, expected, rtol=1e-5, atol=1e-6)
    (gradient,) = torch.autograd.grad(expected.sum(), x, retain_graph=True)
    y.sum().backward()
    assert torch.allclose(x.grad, gradient, rtol=1e-5, atol=1e-6)


def test_what_serves_is_said(device):
    model = torch.nn.Sequential(batchnorm.BatchNorm1d(2, method="renorm"), batchnorm.BatchNorm1d(2)).to(device)
    found = batchnorm.backends(model, torch.randn(4, 2, device=device))
    assert found["0"] == "triton: one launch forward and one back"
    large = batchnorm.backends(model[:1], torch.randn(4, 2, 3000, device=device))
    assert large["0"] == "triton: three launches forward and three back"
    assert found["1"].startswith("torch's batch norm kernel: torch's kernel is as fast for plain batch norm")
    assert batchnorm.backends()["triton"].startswith("in use on")
