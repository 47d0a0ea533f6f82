"""The rows that other frameworks show: Keras, Flax and Opacus, where they are installed (`make test-interop`)."""

import copy

import numpy as np
import pytest
import torch
from torch import nn
from torch.func import functional_call, grad, vmap

import batchnorm
import batchnorm.interop
from tests.pains.table import pain

# The frameworks warn of their own deprecations.
pytestmark = pytest.mark.filterwarnings("default")
MISSING = "{} is not installed: make test-interop installs and runs this"
X = np.random.default_rng(0).normal(2, 3, (16, 4)).astype(np.float32)


def needs(name):
    return pytest.importorskip(name, reason=MISSING.format(name))


def numbers(tensor):
    return np.asarray(needs("keras").ops.convert_to_numpy(tensor))


def keras_layer(**options):
    keras = needs("keras")
    return keras.Sequential([keras.Input((4,)), keras.layers.BatchNormalization(name="bn", **options)])


@pain(
    30,
    "trainable=False of Keras meant different things over the years, and another one in torch",
    state="prevented",
    peer="Keras 3: inference mode, in training too; torch's requires_grad_(False): the batch normalises, all moves",
    here="batchnorm.freeze(model, affine=True)",
    thread="https://github.com/keras-team/keras/pull/9965",
    page="freeze-and-pause.md#frozen-elsewhere",
    without="batchnorm.freeze",
    limit="Keras 2 and TensorFlow 1 do not run beside this torch; their meaning is given as reported",
)
def test_pain_30_trainable_of_keras():
    theirs = keras_layer()
    for _ in range(30):
        theirs(X, training=True)
    net = nn.Sequential(nn.BatchNorm1d(4))
    batchnorm.interop.translate(theirs, net)
    theirs.trainable = False
    before = numbers(theirs.layers[0].moving_mean).copy()
    frozen = numbers(theirs(X, training=True))
    assert np.array_equal(numbers(theirs.layers[0].moving_mean), before)
    x = torch.from_numpy(X)
    as_torch_freezes = copy.deepcopy(net).train().requires_grad_(False)
    assert (as_torch_freezes(x) - torch.from_numpy(frozen)).abs().max() > 0.3
    assert (as_torch_freezes[0].running_mean - torch.from_numpy(before)).abs().max() > 0.01
    batchnorm.freeze(net, affine=True)
    np.testing.assert_allclose(net.train()(x).detach().numpy(), frozen, atol=1e-5)
    np.testing.assert_allclose(net[0].running_mean.numpy(), before, rtol=1e-6)


@pain(
    45,
    "Differential privacy: batch norm is refused, even frozen",
    state="prevented",
    peer="Opacus refuses the class, frozen by batchnorm.freeze or not: the layer could mix samples",
    here="private = batchnorm.fold(model, example).model",
    thread="https://github.com/meta-pytorch/opacus/issues/472",
    page="fold.md",
    without="batchnorm.fold",
    fails_with=RuntimeError,
)
def test_pain_45_frozen_for_differential_privacy():
    model = _with_statistics()
    x = torch.randn(5, 4)
    private = batchnorm.fold(model, x).model.train()
    # No class of batch norm is left, no buffer either, and a sample's output is its own in any mode.
    assert not any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in private.modules())
    assert list(private.buffers()) == []
    assert torch.allclose(private(x), model.eval()(x), atol=1e-6)
    assert torch.allclose(private(x)[:1], private(x[:1]), atol=1e-6)

    def loss(parameters, sample):
        return functional_call(private, parameters, (sample[None],)).sum()

    slopes = vmap(grad(loss), (None, 0))(dict(private.named_parameters()), x)
    for index, sample in enumerate(x):
        private.zero_grad()
        private(sample[None]).sum().backward()
        for name, parameter in private.named_parameters():
            assert torch.allclose(slopes[name][index], parameter.grad, atol=1e-6)


def _with_statistics():
    net = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.BatchNorm1d(3), nn.Sigmoid(), nn.Linear(3, 1)).eval()
    net[2].running_mean.copy_(torch.tensor([0.5, -1.0, 2.0]))
    net[2].running_var.copy_(torch.tensor([0.5, 1.0, 4.0]))
    return net


def test_pain_45_opacus_takes_the_folded_model():
    validators, opacus = needs("opacus.validators"), needs("opacus")
    model = _with_statistics()
    for frozen in (False, True):
        model = batchnorm.freeze(model) if frozen else model
        errors = validators.ModuleValidator.validate(model.train())
        assert ["BatchNorm cannot support training with differential privacy" in str(e) for e in errors] == [True]
    private = batchnorm.fold(model.eval(), torch.randn(5, 4)).model.train()
    assert validators.ModuleValidator.validate(private) == []
    x = torch.randn(5, 4)
    wrapped = opacus.GradSampleModule(private)
    wrapped(x).sum().backward()
    scale = dict(private.named_parameters())["2.weight"]
    private.zero_grad()
    private(x[:1]).sum().backward()
    assert torch.allclose(scale.grad_sample[0], scale.grad, atol=1e-6)


def test_pain_05_keras_defaults():
    """momentum 0.99 and 40 steps; the model goes through torch, is recalibrated there and comes back."""
    theirs = keras_layer()
    for _ in range(40):
        theirs(X, training=True)
    left = 0.99**40
    np.testing.assert_allclose(numbers(theirs.layers[0].moving_mean), (1 - left) * X.mean(0), rtol=1e-4)
    np.testing.assert_allclose(numbers(theirs.layers[0].moving_variance), left + (1 - left) * X.var(0), rtol=1e-4)
    net = nn.Sequential(nn.BatchNorm1d(4))
    batchnorm.interop.translate(theirs, net)
    batchnorm.recalibrate(net, [torch.from_numpy(X)])
    batchnorm.interop.translate(net, theirs, count=16, steps=10_000)  # nothing of the initial 1 is left
    np.testing.assert_allclose(numbers(theirs.layers[0].moving_mean), X.mean(0), rtol=1e-5)
    np.testing.assert_allclose(numbers(theirs.layers[0].moving_variance), X.var(0), rtol=1e-5)


def test_pain_07_momentum_and_eps_of_keras():
    theirs = keras_layer(momentum=0.9)
    for _ in range(5):
        theirs(X * 0.01, training=True)
    net = nn.Sequential(nn.BatchNorm1d(4))
    assert batchnorm.interop.translate(theirs, net).settings == {"0": (1e-3, pytest.approx(0.1))}
    expected = numbers(theirs(X * 0.01, training=False))
    np.testing.assert_allclose(net.eval()(torch.from_numpy(X * 0.01)).detach().numpy(), expected, atol=1e-5)
    assert net[0].eps == 1e-3
    assert net[0].momentum == pytest.approx(0.1)


def test_pain_42_keras_has_no_ghost_batches():
    with pytest.raises((TypeError, ValueError), match="virtual_batch_size"):
        keras_layer(virtual_batch_size=8)


def test_pain_35_fast_variance_of_flax():
    linen, jax = needs("flax.linen"), needs("jax")
    x = (np.random.default_rng(0).normal(size=(4096, 4)) + 1e4).astype(np.float32)
    layer = linen.BatchNorm(use_running_average=False)
    y, _ = layer.apply(layer.init(jax.random.key(0), x), x, mutable=["batch_stats"])
    assert np.abs(np.asarray(y)).max() > 100
    ours = batchnorm.BatchNorm1d(4)(torch.from_numpy(x)).detach().numpy()
    exact = (x - x.mean(0, dtype=np.float64)) / np.sqrt(x.var(0, dtype=np.float64) + 1e-5)
    assert np.abs(ours - exact).max() < 1e-3


def test_pain_49_vmapped_batch_norm_of_flax():
    linen, jax = needs("flax.linen"), needs("jax")
    layer = linen.BatchNorm(use_running_average=False, momentum=0.0)
    replicas = np.stack([X - 5, X + 5])
    start = layer.init(jax.random.key(0), X)
    _, state = jax.vmap(lambda x: layer.apply(start, x, mutable=["batch_stats"]))(replicas)
    parts = [{**start, "batch_stats": jax.tree.map(lambda leaf, i=i: leaf[i], state["batch_stats"])} for i in (0, 1)]
    whole = replicas.reshape(-1, 4)
    plain = jax.tree.map(lambda a, b: (a + b) / 2, *parts)["batch_stats"]
    assert np.asarray(plain["var"]).max() < 0.5 * whole.var(0).min()
    named = [{kind: {"bn": tree} for kind, tree in part.items()} for part in parts]
    states = [batchnorm.interop.translate(part, "torch", eps=1e-5).target for part in named]
    pooled = batchnorm.interop.average(states, [16, 16])
    back = batchnorm.interop.translate(pooled, named[0], eps=1e-5).target["batch_stats"]["bn"]
    np.testing.assert_allclose(np.asarray(back["var"]), whole.var(0), rtol=1e-4)
    np.testing.assert_allclose(np.asarray(back["mean"]), whole.mean(0), atol=1e-5)
