"""The same as torch's layers, in what is refused and in how memory is laid out."""

import pytest
import torch
from torch import nn

import batchnorm
from batchnorm import kernels

CLASSES = ["BatchNorm1d", "BatchNorm2d", "BatchNorm3d"]


@pytest.fixture(params=["native", "reference"])
def backend(request):
    if request.param == "native" and not kernels.native.built():
        pytest.skip("the native kernels were not built")
    kernels.use(request.param)
    yield request.param
    kernels.use()


def layouts(x):
    """The same shape in many layouts."""
    yield x
    yield torch.cat([x, x], -1)[..., : x.shape[-1]]
    yield torch.cat([x, x], 0)[: x.shape[0]].transpose(0, 1).contiguous().transpose(0, 1)
    yield x.movedim(1, -1).contiguous().movedim(-1, 1)
    yield x.transpose(-1, -2).contiguous().transpose(-1, -2)
    yield x[:1].expand_as(x)
    yield x[:, :1].expand_as(x)


SHAPES = [(6, 4), (6, 4, 5), (6, 4, 1), (6, 4, 5, 3), (6, 4, 1, 1), (6, 1, 5, 3), (2, 4, 3, 5, 2)]


@pytest.mark.parametrize("mode", ["train", "eval", "frozen"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("activation", [None, "relu"])
def test_outputs_and_gradients_have_torchs_strides(backend, shape, mode, activation):
    name = CLASSES[max(0, len(shape) - 3)]
    for given in layouts(torch.randn(shape)):
        stock, ours = getattr(nn, name)(shape[1]), getattr(batchnorm, name)(shape[1], activation=activation)
        if mode == "frozen":
            batchnorm.freeze(ours)
        stock.train(mode == "train")
        ours.train(mode != "eval")
        found = []
        for layer in (nn.Sequential(stock, nn.ReLU()) if activation else stock, ours):
            x = given.detach().as_strided(given.shape, given.stride()).requires_grad_()
            y = layer(x)
            y.backward(torch.ones_like(y))
            found.append((y.stride(), x.grad.stride()))
        assert found[0] == found[1], given.stride()


def test_a_transposed_sequence_can_be_viewed(backend):
    x = torch.randn(4, 7, 3).transpose(1, 2)
    layer = batchnorm.BatchNorm1d(3)
    for mode in (True, False):
        assert layer.train(mode)(x).view(4, -1).shape == (4, 21)


@pytest.mark.parametrize(("eps", "trains"), [(0.0, True), (-1e-5, True), (-1e-5, False), (float("nan"), True)])
def test_eps_that_divides_by_nothing_is_refused_before_anything_moves(backend, eps, trains):
    layer = batchnorm.BatchNorm1d(3).train(trains)
    layer.eps = eps
    with pytest.raises(ValueError, match="eps must be"):
        layer(torch.randn(8, 3))
    assert int(layer.num_batches_tracked) == 0


def test_eps_of_0_is_for_inference(backend):
    stock, ours = nn.BatchNorm1d(3, eps=0.0).eval(), batchnorm.BatchNorm1d(3, eps=0.0).eval()
    x = torch.randn(8, 3)
    assert torch.equal(ours(x), stock(x))
    frozen = batchnorm.freeze(batchnorm.BatchNorm1d(3, eps=0.0))
    assert torch.equal(frozen.train()(x), stock(x))


@pytest.mark.parametrize("mode", ["train", "eval", "frozen", "pause"])
@pytest.mark.parametrize(
    ("spoil", "x"),
    [
        (lambda layer: layer.running_mean.requires_grad_(), torch.randn(8, 3)),
        (lambda layer: layer.running_var.requires_grad_(), torch.randn(8, 3)),
        (lambda layer: None, torch.randn(8, 3).double()),
        (lambda layer: None, torch.randn(8, 4)),
        (lambda layer: None, torch.randint(3, (8, 3))),
    ],
    ids=["running_mean", "running_var", "float64", "channels", "integers"],
)
def test_what_torch_refuses_with_a_runtime_error_is_one_here_and_a_value_error(backend, mode, spoil, x):
    layer = batchnorm.BatchNorm1d(3)
    spoil(layer)
    if mode == "frozen":
        batchnorm.freeze(layer)
    layer.train(mode != "eval")
    with batchnorm.pause(layer) if mode == "pause" else torch.enable_grad(), pytest.raises(RuntimeError) as raised:
        layer(x)
    assert isinstance(raised.value, batchnorm.BatchNormError)
    assert int(layer.num_batches_tracked) == 0


def within(context, call):
    with context:
        return call()


WEIGHTS = {
    "NaN": [1.0, float("nan"), 1, 1, 1, 1],
    "all NaN": [float("nan")] * 6,
    "negative": [1.0, -0.5, 1, 1, 1, 1],
    "negative in sum": [-1.0] * 6,
    "a negative integer": [1, -1, 1, 1, 1, 1],
    "negative integers": [-1] * 6,
    "infinite": [1.0, float("inf"), 1, 1, 1, 1],
    "minus infinity": [1.0, float("-inf"), 1, 1, 1, 1],
}


@pytest.mark.parametrize("how", ["argument", "context", "Moments", "eval", "reliability", "ghost", "renorm", "mabn"])
@pytest.mark.parametrize("kind", WEIGHTS)
def test_weights_that_mean_nothing_are_refused(backend, kind, how):
    weights, x = torch.tensor(WEIGHTS[kind]), torch.randn(6, 3) + 7
    choices = {
        "reliability": {"policy": batchnorm.layers.Policy(weights="reliability")},
        "ghost": {"extent": batchnorm.layers.Ghost(3)},
        "renorm": {"method": "renorm"},
        "mabn": {"method": "mabn"},
    }
    layer = batchnorm.BatchNorm1d(3, **choices.get(how, {})).train(how != "eval")
    calls = {
        "Moments": lambda: batchnorm.layers.Moments.of(x, weight=weights),
        "context": lambda: within(batchnorm.masked(layer, weights=weights), lambda: layer(x)),
    }
    with pytest.raises(batchnorm.BatchNormError, match="weights must be finite and not negative"):
        calls.get(how, lambda: layer(x, weights=weights))()
    assert int(layer.num_batches_tracked) == 0
    assert torch.equal(layer.running_mean, torch.zeros(3))


@pytest.mark.parametrize("dtype", [torch.int8, torch.int64, torch.float32])
def test_a_compiled_layer_refuses_negative_weights(dtype):
    torch.compiler.reset()
    layer = batchnorm.BatchNorm1d(3)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    compiled(torch.randn(4, 3), weights=torch.tensor([1, 2, 0, 1], dtype=dtype))
    with pytest.raises(RuntimeError, match="weights must be finite and not negative"):
        compiled(torch.randn(4, 3), weights=torch.tensor([1, 2, -1, 1], dtype=dtype))
    assert int(layer.num_batches_tracked) == 1


def test_weights_that_cannot_be_negative_are_taken(backend):
    layer, x = batchnorm.BatchNorm1d(3, momentum=1.0), torch.randn(4, 3)
    for weights in (torch.tensor([1, 0, 2, 1], dtype=torch.uint8), torch.tensor([1, 0, 2, 1])):
        layer(x, weights=weights)
        assert torch.allclose(layer.running_mean, (x[0] + 2 * x[2] + x[3]) / 4)
    layer(x, weights=torch.tensor([True, False, True, True]))
    assert torch.allclose(layer.running_mean, x[[0, 2, 3]].mean(0))


def test_weights_of_0_alone_change_nothing(backend):
    layer = batchnorm.BatchNorm1d(3)
    y = layer(torch.randn(6, 3), weights=torch.zeros(6))
    assert torch.equal(y, torch.zeros(6, 3))
    assert int(layer.num_batches_tracked) == 0


def test_lazy_layers_pass_bias_on_only_where_it_is_given(monkeypatch):
    """The oldest torch that is supported has no such argument."""
    seen = []
    plain = nn.modules.batchnorm._LazyNormBase.__init__
    monkeypatch.setattr(
        nn.modules.batchnorm._LazyNormBase, "__init__", lambda self, *a, **k: (seen.append(k), plain(self, *a, **k))[1]
    )
    batchnorm.LazyBatchNorm1d()
    batchnorm.LazyBatchNorm1d(bias=False)
    assert [set(keywords) & {"bias"} for keywords in seen] == [set(), {"bias"}]
