"""Sizes, dtypes and devices are checked before any kernel reads: one sentence, whichever way a step is served."""

import pytest
import torch
from torch import nn

import batchnorm
from batchnorm import BatchNorm1d, BatchNorm2d, BatchNormError, OperandError, kernels

SHAPE = (6, 5, 3, 3)


def of(channels=4, **choices):
    return BatchNorm2d(channels, **choices)


# What serves each is in its name; each layer has 4 channels somewhere, and the input 5.
WAYS = {
    "native": lambda: of(),
    "native without statistics": lambda: of(track_running_stats=False),
    "without weight": lambda: of(affine=False),
    "without bias": lambda: of(bias=False),
    "activation": lambda: of(activation="relu"),
    "in place": lambda: of(activation="leaky_relu", inplace=True),
    "in place without statistics": lambda: of(activation="leaky_relu", inplace=True, track_running_stats=False),
    "stored": lambda: of().eval(),
    "stored with activation": lambda: of(activation="relu").eval(),
    "mixture": lambda: of(method="example-weighing").eval(),
    "eval without statistics": lambda: of(track_running_stats=False).eval(),
    "renorm": lambda: of(method="renorm"),
    "ghost": lambda: of(method="ghost"),
    "mabn": lambda: of(method="mabn"),
    "power": lambda: of(method="power"),
    "unified": lambda: of(method="unified"),
    "pooled": lambda: of(method="pooled"),
    "window": lambda: of(method="window"),
    "online": lambda: of(method="online"),
    "sync of one": lambda: of(method="sync"),
}


def frozen():
    layer = of()
    layer.frozen = True
    return layer


def paused():
    layer = of(track_running_stats=False)
    layer.paused = True
    return layer


WAYS |= {"frozen": frozen, "paused": paused}


@pytest.fixture(params=["native", "reference"])
def backend(request):
    if request.param in (*kernels.backends(),):
        kernels.use(None if request.param == "native" else request.param)
    yield request.param
    kernels.use()


@pytest.mark.parametrize("way", WAYS)
def test_another_number_of_channels_is_refused_and_nothing_moves(way, backend):
    layer = WAYS[way]()
    before = [b.clone() for b in layer.buffers()]
    with pytest.raises(RuntimeError) as caught:
        layer(torch.randn(SHAPE, requires_grad=True))
    assert isinstance(caught.value, OperandError)
    assert isinstance(caught.value, BatchNormError)
    assert isinstance(caught.value, ValueError)
    held = "weight" if layer.running_mean is None else "running_mean"
    assert str(caught.value) == (
        f"input must have 4 channels on axis 1, as many as {held} of layer BatchNorm2d(4); it had 5, in shape {SHAPE}"
    )
    assert all(torch.equal(a, b) for a, b in zip(layer.buffers(), before, strict=True))


@pytest.mark.parametrize("name", ["weight", "bias", "running_mean", "running_var"])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("numel", [2**4, 2**20])
def test_each_of_the_four_is_checked(name, training, numel, backend):
    layer = BatchNorm1d(5).train(training)
    getattr(layer, name).data = torch.ones(4)
    with pytest.raises(OperandError, match=f"as many as {name} of layer"):
        layer(torch.randn(numel // 5, 5, requires_grad=True))


def test_the_sentence_names_the_layer_and_the_axis():
    model = nn.Sequential(nn.Linear(3, 5), batchnorm.BatchNorm(4, channel_axis=-1))
    with pytest.raises(
        OperandError, match=r"4 channels on axis -1, as many as running_mean of layer '1' \(BatchNorm\)"
    ):
        model(torch.randn(2, 7, 3))


def test_a_layer_with_neither_statistics_nor_weights_takes_any_number_of_channels_as_torch_does(backend):
    ours, stock = (kind(4, affine=False, track_running_stats=False) for kind in (BatchNorm2d, nn.BatchNorm2d))
    x = torch.randn(SHAPE)
    assert torch.allclose(ours(x), stock(x), atol=1e-6)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("activation", [None, "relu"])
@pytest.mark.parametrize(("layer", "x"), [("float32", "float64"), ("float64", "float32"), ("float64", "bfloat16")])
def test_float64_and_float32_are_not_mixed_in_either_mode(layer, x, training, activation, backend):
    subject = BatchNorm1d(4, activation=activation, dtype=getattr(torch, layer)).train(training)
    stock = nn.BatchNorm1d(4, dtype=getattr(torch, layer)).train(training)
    data = torch.randn(8, 4, dtype=getattr(torch, x))
    with pytest.raises(RuntimeError):
        stock(data)
    with pytest.raises(OperandError, match=rf"input must be float.* is torch\.{layer}; it was torch\.{x}"):
        subject(data)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("x", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("affine", [torch.float32, torch.bfloat16, torch.float16])
def test_half_precision_beside_float32_is_served_in_both_modes(x, affine, training, backend):
    layer = BatchNorm1d(4).to(affine).train(training)
    y = layer(torch.randn(8, 4).to(x))
    assert y.dtype is x
    assert layer.running_mean.dtype is torch.float32


def test_integers_are_refused(backend):
    for layer in (BatchNorm1d(4), BatchNorm1d(4).eval()):
        with pytest.raises(OperandError, match=r"input of layer .* must be floating point; it was torch\.int64"):
            layer(torch.ones(8, 4, dtype=torch.int64))


@pytest.mark.parametrize("training", [True, False])
def test_another_device_is_refused(training, backend):
    layer = BatchNorm1d(4).train(training)
    with pytest.raises(OperandError, match=r"input must be on cpu, as running_mean of layer .* is; it was on meta"):
        layer(torch.ones(8, 4, device="meta"))
    layer.weight = nn.Parameter(torch.ones(4, device="meta"))
    with pytest.raises(OperandError, match=r"input must be on meta, as weight of layer .* is; it was on cpu"):
        layer(torch.ones(8, 4))


@pytest.mark.parametrize("activation", [None, "relu"])
def test_a_residual_that_cannot_be_added_is_refused(activation, backend):
    layer = BatchNorm1d(4, activation=activation)
    with pytest.raises(OperandError, match=r"residual of layer .* must be of the input's shape \(8, 4\), or broadcast"):
        layer(torch.randn(8, 4), residual=torch.randn(3, 4))
    with pytest.raises(OperandError, match=r"residual of layer .* must be on cpu; it was on meta"):
        layer(torch.randn(8, 4), residual=torch.empty(8, 4, device="meta"))
    assert int(layer.num_batches_tracked) == 0


def test_a_bank_is_checked_too(backend):
    model = nn.Sequential(BatchNorm1d(4))
    with batchnorm.bank(model, "b"):
        model(torch.randn(8, 4))
    model[0].bank_b_running_var.data = torch.ones(3)
    with batchnorm.bank(model, "b"), pytest.raises(OperandError, match=r"3 channels .* as many as running_var of"):
        model(torch.randn(8, 4))
    model(torch.randn(8, 4))


@pytest.mark.slow
def test_a_compiled_layer_is_refused_while_it_is_traced(backend):
    layer = torch.compile(BatchNorm2d(4, track_running_stats=False))
    with pytest.raises(RuntimeError, match="4 channels on axis 1"):
        layer(torch.randn(2, 5, 300, 300))


def test_the_passes_refuse_vectors_and_gradients_of_other_sizes():
    passes, x = kernels.select(torch.ones(2, 2)), torch.randn(6, 4)
    if passes.name != "native":
        pytest.skip("the native kernels were not built")
    row, short = torch.ones(1, 4, dtype=torch.float64), torch.ones(1, 3, dtype=torch.float64)
    with pytest.raises(OperandError, match=r"channel vectors must be \(groups, 4\)"):
        passes.apply(x, short, row, row, None)
    with pytest.raises(OperandError, match=r"channel vectors must be \(groups, 4\)"):
        passes.apply(x, row, row, short, None)
    with pytest.raises(OperandError, match=r"g must have the shape of x, \(6, 4\); it was \(5, 4\)"):
        passes.backward_reduce(x[:5], x, row, row, None)
    with pytest.raises(OperandError, match="g must have the shape of x"):
        passes.backward_apply(x[:5], x, row, row, row, row, None)
    with pytest.raises(OperandError, match="mask and weights must be on the CPU"):
        passes.reduce(x, torch.ones(6, 1, device="meta"), 1)


def test_the_operators_of_compiled_graphs_refuse_other_sizes():
    if kernels.select(torch.ones(2, 2)).name != "native":
        pytest.skip("the native kernels were not built")
    from batchnorm.kernels import calls

    # Plain batch norm: mean, share, spread, low, high, shift; gain, q, p, r; eps, slope; and the flags.
    numbers = torch.tensor([1.0, 1, 0, 1, 1, 0, 0.1, 0.9, 0.1, 0, 1e-5, 0], dtype=torch.float64)
    flags, nothing = [0, 0, 0, 1, 1, 0, 0, 0], (None,) * 5
    x, count = torch.randn(6, 4), torch.zeros((), dtype=torch.long)
    rest = (count, count.clone(), numbers, flags, 1, True, False)
    with pytest.raises(OperandError, match=r"weight must be 4 contiguous values on the CPU .* of shape \(3,\)"):
        torch.ops.batchnorm.train(x, torch.ones(3), None, None, *nothing, torch.zeros(4), torch.ones(4), *rest)
    with pytest.raises(OperandError, match="var must be 4 contiguous values"):
        torch.ops.batchnorm.train(x, None, None, None, *nothing, torch.zeros(4), torch.ones(5), *rest)
    anchor = (*nothing[:3], torch.zeros(3), None)
    with pytest.raises(OperandError, match="from_mean must be 4 contiguous values"):
        torch.ops.batchnorm.train(x, None, None, None, *anchor, torch.zeros(4), torch.ones(4), *rest)
    saved = torch.zeros(calls.size(1, 3), dtype=torch.float64)
    with pytest.raises(OperandError, match=f"saved must hold {calls.size(1, 4)} values; it held {calls.size(1, 3)}"):
        torch.ops.batchnorm.train_backward(x, x, None, None, None, saved, numbers, flags, False, 1)
