"""Every kind of operand that the kernels are compiled for: dtypes, parameters that are not there or do not learn."""

import contextlib

import pytest
import torch

import batchnorm
from batchnorm.kernels.triton import geometry
from batchnorm.layers import Policy
from tests.kernels.triton_kernels.test_whole import batches
from tests.kernels.triton_kernels.twins import compare

pytestmark = pytest.mark.usefixtures("sizes")


@pytest.mark.parametrize("activation", [None, "leaky_relu", "gelu"])
def test_float64(activation, device):
    layer = batchnorm.BatchNorm1d(3, method="renorm", activation=activation)
    compare(layer.double(), batches((5, 3, 4)), device, torch.float64)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("narrow", [False, True])
def test_half_types_with_a_residual(narrow, dtype, device):
    layer = batchnorm.BatchNorm1d(3, method="renorm", activation="relu")
    if narrow:
        layer.weight.data, layer.bias.data = layer.weight.to(dtype), layer.bias.to(dtype)
    compare(layer, batches((5, 3, 4), residual=torch.randn(5, 3, 4)), device, dtype, times=8)


@pytest.mark.parametrize("parameters", ["none", "no bias", "neither learns", "weight alone learns"])
def test_parameters(parameters, device):
    layer = batchnorm.BatchNorm1d(3, method="renorm", activation="silu", affine=parameters != "none")
    if parameters == "no bias":
        layer.bias = None
    for name, p in layer.named_parameters():
        p.requires_grad_(parameters in ("no bias", "weight alone learns") and name == "weight")
    compare(layer, batches((5, 3, 4)), device, times=8)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_weights_of_other_types(dtype, device):
    weights = torch.tensor([0.5, 1.0, 2.0, 0.0, 1.5]).to(dtype)
    layer = batchnorm.BatchNorm1d(2, policy=Policy(weights="reliability"))
    compare(layer, batches((5, 2, 3), weights=weights), device, times=8)


def test_what_does_not_track_is_not_refused_for_its_values(device):
    # Where nothing is to move, what is not finite is no reason to refuse; a mask has the kernels say what they found.
    mask, x = torch.tensor([True, True, False]).to(device), torch.randn(3, 2, device=device)
    x[0, 0] = torch.inf
    layer = batchnorm.BatchNorm1d(2, track_running_stats=False, policy=Policy(nonfinite="raise")).to(device)
    with pytest.warns(RuntimeWarning) if device == "cpu" else contextlib.nullcontext():  # NumPy's, in the interpreter
        y = layer(x, mask)
    assert y[0, 0].isnan()
    assert torch.allclose(y[:2, 1].abs(), torch.ones(2, device=device), atol=1e-3)


@pytest.mark.parametrize("frequency", [False, True])
def test_refusing_what_is_not_finite(frequency, device):
    given = {"weights": torch.tensor([1.0, 2.0, 0.0, 1.0, 3.0])} if frequency else {}
    layer = batchnorm.BatchNorm1d(2, method="renorm", policy=Policy(nonfinite="raise"))
    compare(layer, batches((5, 2, 3), **given), device, times=8)
    if device == "cpu":  # on a device the refusal ends the process's context
        with pytest.raises(batchnorm.BatchNormError, match="batch statistics must be finite"):
            layer(torch.full((5, 2, 3), torch.nan), **given)
        assert int(layer.num_batches_tracked) == 2


def test_no_running_statistics(device):
    layer = batchnorm.BatchNorm1d(3, track_running_stats=False, activation="relu")
    compare(layer, batches((5, 3, 4)), device, times=8)


@pytest.mark.parametrize("last", [False, True])
def test_offsets_in_64_bits(last, device, monkeypatch):
    monkeypatch.setattr(geometry, "SIZES", geometry.SIZES._replace(narrow=0))
    mask = torch.rand(5, 3, 4, generator=torch.Generator().manual_seed(1)) > 0.3
    for given in ({}, {"mask": mask}):
        layer = batchnorm.BatchNorm2d(6, method="renorm", activation="silu")
        compare(layer, batches((5, 6, 3, 4), **given), device, last=last, times=8)
