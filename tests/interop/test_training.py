"""A network trained a little in Keras or Flax goes on in torch, with the losses it would have had."""

import numpy as np
import pytest
import torch
from torch import nn

from batchnorm.interop import translate
from tests.interop.networks import DECAY, EPS, Keras, Linen, TorchNet, last, needs

pytestmark = pytest.mark.filterwarnings("default")
RATE, BEFORE, AFTER, BATCH = 0.05, 15, 20, 32
SIZES = {"size": 8, "channels": 1, "classes": 10}


def digits():
    datasets = pytest.importorskip("sklearn.datasets", reason="scikit-learn is not installed")
    images, labels = datasets.load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(images))[: (BEFORE + AFTER) * BATCH]
    x = (images[order].reshape(-1, 1, 8, 8) / 16).astype(np.float32)
    return x.reshape(-1, BATCH, 1, 8, 8), labels[order].reshape(-1, BATCH)


def train_torch(net, x, y):
    optimizer, losses = torch.optim.SGD(net.parameters(), RATE), []
    net.train()
    for images, labels in zip(x, y, strict=True):
        loss = nn.functional.cross_entropy(net(torch.from_numpy(images)), torch.from_numpy(labels))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    return np.array(losses)


def keras_network():
    import keras

    one = Keras(1, **SIZES)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    one.net.compile(keras.optimizers.SGD(RATE), loss, jit_compile=False)

    def train(x, y):
        losses = []
        for images, labels in zip(x, y, strict=True):
            one.net.reset_metrics()  # else it answers the mean of all losses so far
            losses.append(float(one.net.train_on_batch(last(images), labels)))
        return np.array(losses)

    return train, lambda: one.source


def linen_network():
    import jax
    import optax

    one = Linen(1, **SIZES)

    @jax.jit
    def step(variables, x, y):
        def loss(params):
            out, new = one.net.apply({**variables, "params": params}, x, True, mutable=["batch_stats"])
            return optax.softmax_cross_entropy_with_integer_labels(out, y).mean(), new

        (value, new), slope = jax.value_and_grad(loss, has_aux=True)(variables["params"])
        return value, {"params": jax.tree.map(lambda p, g: p - RATE * g, variables["params"], slope), **new}

    def train(x, y):
        losses = []
        for images, labels in zip(x, y, strict=True):
            value, one.source = step(one.source, last(images), labels)
            losses.append(float(value))
        return np.array(losses)

    return train, lambda: one.source


def both(train, weights, choices):
    """The network that torch trained; losses of the first steps there, of the next ones there, and in torch."""
    x, y = digits()
    first = train(x[:BEFORE], y[:BEFORE])
    net = TorchNet(channels=1, classes=10, eps=0.1)
    translate(weights(), net, **choices)
    return net, first, train(x[BEFORE:], y[BEFORE:]), train_torch(net, x[BEFORE:], y[BEFORE:])


@pytest.mark.parametrize(("make", "modules"), [(keras_network, ["keras"]), (linen_network, ["jax", "flax", "optax"])])
def test_training_goes_on_with_the_same_losses(make, modules):
    needs(*modules)
    train, weights = make()
    choices = {"eps": EPS, "momentum": 1 - DECAY} if "flax" in modules else {}
    net, first, theirs, ours = both(train, weights, choices)
    np.testing.assert_allclose(ours, theirs, rtol=1e-5)
    assert ours[-1] < first[0]
    after = translate(weights(), "torch").target
    for name in ("first", "block0.bn2", "block1.norm"):
        key = name if name + ".running_mean" in after else name.replace(".", "_")
        moved = net.get_submodule(name)
        torch.testing.assert_close(moved.running_mean, after[f"{key}.running_mean"], rtol=1e-4, atol=1e-5)
        # torch's 20 new batches are unbiased: n is at least 32 * 4 * 4 values a channel.
        torch.testing.assert_close(moved.running_var, after[f"{key}.running_var"], rtol=1 / 500, atol=1e-5)
