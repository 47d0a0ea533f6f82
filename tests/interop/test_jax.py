"""Kernels and averages of the JAX libraries, run by them."""

import numpy as np
import pytest
import torch
from torch import nn

from batchnorm.interop import translate
from tests.interop.networks import last, needs

pytestmark = pytest.mark.filterwarnings("default")
DECAY, EPS = 0.9, 1e-5
X = np.random.default_rng(0).normal(2, 3, (6, 4, 5, 5)).astype(np.float32)


def equinox_norm(mode):
    needs("jax", "equinox")
    import equinox as eqx

    return eqx.nn.make_with_state(eqx.nn.BatchNorm)(4, "batch", eps=EPS, momentum=DECAY, mode=mode)


def equinox_run(pair, x, train):
    import equinox as eqx
    import jax

    model = eqx.nn.inference_mode(pair[0], not train)
    y, state = jax.vmap(model, axis_name="batch", in_axes=(0, None), out_axes=(0, None))(x, pair[1])
    return np.asarray(y), (pair[0], state)


def torch_norm():
    net = nn.BatchNorm2d(4, EPS, 1 - DECAY).eval()
    with torch.no_grad():
        net.running_mean.copy_(torch.tensor([1.0, -2.0, 0.0, 5.0]))
        net.running_var.copy_(torch.tensor([0.5, 2.0, 9.0, 1.0]))
        net.weight.copy_(torch.tensor([1.0, 2.0, -1.0, 0.5]))
        net.bias.copy_(torch.tensor([0.0, 1.0, 2.0, 3.0]))
    return net


@pytest.mark.parametrize("steps", [0, 7])
@pytest.mark.parametrize("mode", ["batch", "ema"])
def test_equinox_goes_on_from_torch_s_statistics(mode, steps):
    """One more training step moves the mean and variance by the tenth that it should, however old they are."""
    net = torch_norm()
    net.num_batches_tracked.fill_(steps)
    pair = translate(net, equinox_norm(mode)).target
    with torch.no_grad():
        np.testing.assert_allclose(equinox_run(pair, X, False)[0], net(torch.from_numpy(X)), rtol=1e-5, atol=1e-5)
    _, pair = equinox_run(pair, X, True)
    moved = translate(pair, "torch").target
    gain = 0.1 if mode == "ema" or steps == 0 else 0.1 / (1 - DECAY**8)
    mean = net.running_mean.numpy() * (1 - gain) + gain * X.mean((0, 2, 3))
    var = net.running_var.numpy() * (1 - gain) + gain * X.var((0, 2, 3))
    np.testing.assert_allclose(moved["running_mean"], mean, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(moved["running_var"], var, rtol=1e-4)


def test_the_initial_variance_that_equinox_keeps_can_be_taken_out():
    """Mode "batch" starts its variance at 1 and then divides as if it had started at 0."""
    pair, rng = equinox_norm("batch"), np.random.default_rng(1)
    var = np.zeros(4)
    for _ in range(5):
        x = rng.normal(0, 0.5, X.shape).astype(np.float32)
        _, pair = equinox_run(pair, x, True)
        var = DECAY * var + 0.1 * x.var((0, 2, 3), dtype=np.float64)
    var /= 1 - DECAY**5
    as_used = translate(pair, "torch").target
    left = DECAY**5 / (1 - DECAY**5)
    np.testing.assert_allclose(as_used["running_var"], var + left, rtol=1e-5)
    assert left > 1.4
    repaired = translate(pair, "torch", repair=True).target
    np.testing.assert_allclose(repaired["running_var"], var, rtol=1e-4)
    assert int(repaired["num_batches_tracked"]) == 5
    # What torch is given as used computes what Equinox computes.
    net = nn.BatchNorm2d(4)
    translate(pair, net)
    with torch.no_grad():
        ours = net.eval()(torch.from_numpy(X))
    np.testing.assert_allclose(equinox_run(pair, X, False)[0], ours, rtol=1e-5, atol=1e-5)


def test_an_equinox_state_stays_valid_and_an_eps_it_fixes_is_compared():
    from batchnorm import BatchNormError

    pair = equinox_norm("batch")
    translate(torch_norm(), pair)
    assert equinox_run(pair, X, False)[0].shape == X.shape
    with pytest.raises(BatchNormError, match="built with the source's eps"):
        translate(nn.BatchNorm2d(4, 1e-3), pair)
    fresh = translate(equinox_norm("ema"), "torch").target
    assert fresh["running_var"].tolist() == [1, 1, 1, 1]


@pytest.mark.parametrize("steps", [0, 7])
def test_haiku_goes_on_from_torch_s_statistics(steps):
    needs("jax", "haiku")
    import haiku as hk
    import jax

    run = hk.transform_with_state(lambda x, train: hk.BatchNorm(True, True, DECAY, eps=EPS, name="n")(x, train))
    pair = run.init(jax.random.key(0), last(X), True)
    net = torch_norm()
    net.num_batches_tracked.fill_(steps)
    pair = translate(net, pair).target
    y = np.moveaxis(np.asarray(run.apply(*pair, None, last(X), False)[0]), -1, 1)
    with torch.no_grad():
        np.testing.assert_allclose(y, net(torch.from_numpy(X)), rtol=1e-5, atol=1e-5)
    _, state = run.apply(*pair, None, last(X), True)
    moved = translate((pair[0], state), "torch").target
    gain = 0.1 if steps == 0 else 0.1 / (1 - DECAY**8)
    mean = net.running_mean.numpy() * (1 - gain) + gain * X.mean((0, 2, 3))
    np.testing.assert_allclose(moved["n.running_mean"], mean, rtol=1e-4, atol=1e-5)
    assert int(moved["n.num_batches_tracked"]) == (8 if steps else int(state["n/~/mean_ema"]["counter"]))


def kernels():
    """Layers of each library with the torch layer that is the same: name, makers of (tree, run), torch's."""
    import equinox as eqx
    import flax.linen as linen
    import haiku as hk
    import jax
    from flax import nnx

    key, rngs = jax.random.key(0), nnx.Rngs(0)

    def of_linen(module):
        variables = module.init(key, last(X))
        return variables, lambda v, x: np.moveaxis(np.asarray(module.apply(v, last(x))), -1, 1)

    def of_nnx(module):
        return module, lambda m, x: np.moveaxis(np.asarray(m(last(x))), -1, 1)

    def of_haiku(make):
        run = hk.transform_with_state(lambda x: make()(x))
        return run.init(key, last(X)), lambda p, x: np.moveaxis(np.asarray(run.apply(*p, None, last(x))[0]), -1, 1)

    def of_equinox(layer):
        pair = (layer, eqx.nn.State(layer))
        return pair, lambda p, x: np.asarray(jax.vmap(p[0])(x))

    conv, up = nn.Conv2d(4, 6, (3, 2)), nn.ConvTranspose2d(4, 6, (3, 2))
    grouped, strided = nn.Conv2d(4, 6, 3, groups=2), nn.ConvTranspose2d(4, 6, 2, 2)
    valid = {"padding": "VALID"}
    return [
        ("linen conv", of_linen(linen.Conv(6, (3, 2), **valid)), conv),
        ("linen grouped", of_linen(linen.Conv(6, (3, 3), feature_group_count=2, **valid)), grouped),
        ("linen transposed", of_linen(linen.ConvTranspose(6, (3, 2), **valid)), up),
        ("linen strided", of_linen(linen.ConvTranspose(6, (2, 2), (2, 2), **valid)), strided),
        ("nnx conv", of_nnx(nnx.Conv(4, 6, (3, 2), rngs=rngs, **valid)), conv),
        ("nnx transposed", of_nnx(nnx.ConvTranspose(4, 6, (3, 2), rngs=rngs, **valid)), up),
        ("nnx turned", of_nnx(nnx.ConvTranspose(4, 6, (3, 2), transpose_kernel=True, rngs=rngs, **valid)), up),
        ("haiku conv", of_haiku(lambda: hk.Conv2D(6, (3, 2), **valid)), conv),
        ("haiku grouped", of_haiku(lambda: hk.Conv2D(6, 3, feature_group_count=2, **valid)), grouped),
        ("haiku transposed", of_haiku(lambda: hk.Conv2DTranspose(6, (3, 2), **valid)), up),
        ("equinox conv", of_equinox(eqx.nn.Conv2d(4, 6, (3, 2), key=key)), conv),
        ("equinox grouped", of_equinox(eqx.nn.Conv2d(4, 6, 3, groups=2, key=key)), grouped),
        ("equinox transposed", of_equinox(eqx.nn.ConvTranspose2d(4, 6, (3, 2), key=key)), up),
        ("equinox strided", of_equinox(eqx.nn.ConvTranspose2d(4, 6, 2, 2, key=key)), strided),
    ]


def test_every_kernel_computes_the_same_in_both_directions():
    needs("jax", "flax", "haiku", "equinox")
    for name, (tree, run), layer in kernels():
        translate(tree, layer, trust_numbers=True)
        with torch.no_grad():
            y = layer(torch.from_numpy(X)).numpy()
        np.testing.assert_allclose(y, run(tree, X), rtol=1e-5, atol=1e-5, err_msg=name)
        nn.init.normal_(layer.weight)
        nn.init.normal_(layer.bias)
        with torch.no_grad():
            y = layer(torch.from_numpy(X)).numpy()
        there = translate(layer, tree).target
        np.testing.assert_allclose(run(there, X), y, rtol=1e-4, atol=1e-4, err_msg=name)


def test_a_pure_dictionary_of_nnx_there_and_back():
    needs("jax", "flax")
    from flax import nnx

    module = nnx.BatchNorm(4, epsilon=EPS, momentum=DECAY, rngs=nnx.Rngs(0), use_running_average=True)
    tree = nnx.to_pure_dict(nnx.state(module))
    filled = translate(torch_norm(), {"norm": tree}, map={"": "norm"}).target["norm"]
    state = nnx.state(module)
    nnx.replace_by_pure_dict(state, filled)
    nnx.update(module, state)
    with torch.no_grad():
        wanted = torch_norm()(torch.from_numpy(X))
    np.testing.assert_allclose(np.moveaxis(np.asarray(module(last(X))), -1, 1), wanted, rtol=1e-5, atol=1e-5)
