"""Cross-Iteration Batch Normalization: what the Taylor compensation makes exact, and how its error falls."""

import copy
from itertools import pairwise

import pytest
import torch
from torch import nn

from batchnorm import BatchNorm1d, BatchNorm2d
from batchnorm.layers import CrossIteration
from tests.methods.plain import affine, axes, batch_norm, close, moments, normalise, over, randn

X = randn(8, 2, 6, 6, seed=3) + 0.5


def pair(window=2, burn_in=0, plain=False):
    conv = nn.Conv2d(2, 3, 3, bias=False, dtype=torch.float64)
    with torch.no_grad():
        conv.weight.copy_(randn(3, 2, 3, 3, seed=5))
    if plain:
        return conv, affine(BatchNorm2d(3, dtype=torch.float64))
    options = {"coupling": CrossIteration(window, burn_in), "dtype": torch.float64}
    layer = affine(BatchNorm2d(3, method="cbn", **options))
    layer.attach(conv)
    return conv, layer


def change(conv, size):
    with torch.no_grad():
        conv.weight.add_(randn(*conv.weight.shape, seed=6), alpha=size)


def after_a_change(size, compensated=True):
    """The second forward of one input, the weights moved by `size` in between; y without its affine map."""
    conv, layer = pair()
    layer(conv(X))
    if not compensated:
        layer.past_mean_slope.zero_()
        layer.past_square_slope.zero_()
    change(conv, size)
    x = conv(X)
    y = (layer(x) - over(layer.bias, x)) / over(layer.weight, x)
    return x.detach(), y.detach()


@pytest.mark.parametrize("window", [1, 4])
def test_window_of_one_or_burn_in_is_batch_norm(window):
    conv, layer = pair(window, burn_in=0 if window == 1 else 100)
    twin, plain = pair(plain=True)
    for step in range(4):
        outputs = [norm(c(X + step)) for c, norm in ((conv, layer), (twin, plain))]
        for y in outputs:
            y.square().sum().backward()
        assert close(*outputs)
        assert close(conv.weight.grad, twin.weight.grad, 1e-11)
        change(conv, 0.1)
        change(twin, 0.1)


@pytest.mark.parametrize("size", [0.3, 3.0])
def test_compensated_mean_is_exact_since_it_is_linear_in_the_weights(size):
    """Same input, so both batches have one mean at the present weights, however far they moved."""
    x, y = after_a_change(size)
    assert close(y.mean(axes(y)), torch.zeros(3, dtype=torch.float64))
    _, raw = after_a_change(size, compensated=False)
    assert raw.mean(axes(raw)).abs().min() > 1e-3
    assert x.shape == y.shape


def square_error(size, compensated):
    """Twice the error of the normalising variance: that of the one past E[x^2], where its mean is exact."""
    x, y = after_a_change(size, compensated)
    (mean_x, var_x), (_, var_y) = moments(x), moments(y)
    used = var_x / var_y - 1e-5
    if compensated:
        return (2 * (used - var_x)).abs().sum()
    # The mean is off as well; put E[x^2] together from what normalised.
    mean = mean_x - y.mean(axes(y)) * (used + 1e-5).sqrt()
    return (2 * (used + mean.square() - var_x - mean_x.square())).abs().sum()


def test_error_of_the_compensated_square_falls_with_the_square_of_the_change():
    compensated = [float(square_error(h, True)) for h in (0.04, 0.02, 0.01)]
    for coarse, fine in pairwise(compensated):
        assert 3.8 < coarse / fine < 4.2
    uncompensated = [float(square_error(h, False)) for h in (0.04, 0.02, 0.01)]
    for coarse, fine in pairwise(uncompensated):
        assert 1.8 < coarse / fine < 2.2
    assert compensated[-1] < uncompensated[-1] / 20


def test_fixed_weights_and_a_constant_input_are_batch_norm():
    conv, layer = pair(window=4)
    for _ in range(6):
        y = layer(conv(X))
    x = conv(X)
    assert close(y, batch_norm(x) * over(layer.weight, x) + over(layer.bias, x))


@pytest.mark.parametrize("window", [2, 3, 4])
def test_gradient_follows_the_unified_rule_with_the_share_of_one_in_k(window):
    conv, layer = pair(window)
    for step in range(5):
        x = conv(X * (1 + step) + step).detach().requires_grad_()
        # Fixed weights: no graph to them, the slopes are zero, the past moments are constants.
        y = layer(x)
        g = randn(*y.shape, seed=step)
        (dx,) = torch.autograd.grad(y, x, g)
        k = min(step + 1, window)
        yhat = ((y - over(layer.bias, y)) / over(layer.weight, y)).detach()
        upstream = g * over(layer.weight.detach(), x)
        mean, var = moments(x.detach())
        s = (var / yhat.var(axes(x), correction=0)).sqrt()
        assert close((x - over(mean, x)).detach() / over(s, x), yhat - over(yhat.mean(axes(x)), x), 1e-9)
        through = over(upstream.mean(axes(x)), x) + yhat * over((upstream * yhat).mean(axes(x)), x)
        assert close(dx, (upstream - through / k) / over(s, x), 1e-9)


def test_running_statistics_are_fed_by_the_present_batch():
    conv, layer = pair(window=3)
    twin, plain = pair(plain=True)
    for step in range(4):
        layer(conv(X + step))
        plain(twin(X + step))
    assert close(layer.running_mean, plain.running_mean)
    assert close(layer.running_var, plain.running_var)


def test_linear_layers_and_copies_look_back_at_their_own_weights():
    net = nn.Sequential(nn.Linear(4, 3, dtype=torch.float64), BatchNorm1d(3, method="cbn", dtype=torch.float64))
    net[1].attach(net[0])
    twin = copy.deepcopy(net)
    assert twin[1].before is twin[0]
    for step in range(10):
        x = randn(6, 4, seed=step)
        assert torch.equal(net(x), twin(x))
        change(net[0], 0.1)
        change(twin[0], 0.1)


class Paper:
    """The paper's moments in plain operations: autograd does the rest."""

    def __init__(self, window, burn_in, through):
        self.window, self.burn_in, self.through, self.past, self.t = window, burn_in, through, [], 0

    def __call__(self, x, weight):
        self.t += 1
        mean, square = x.mean(axes(x)), x.square().mean(axes(x))
        slopes = [torch.autograd.grad(m.sum(), weight, retain_graph=True)[0] for m in (mean, square)]
        now = weight if self.through else weight.detach()
        means, squares = [mean], [square]
        for past in self.past if self.t > self.burn_in else []:
            moved = now - past[4]
            means.append(past[0] + (past[2] * moved).flatten(1).sum(1))
            squares.append(torch.maximum(past[1] + (past[3] * moved).flatten(1).sum(1), means[-1].square()))
        self.past.append((mean.detach(), square.detach(), *slopes, weight.detach().clone()))
        self.past = self.past[1 - self.window :]
        mean = torch.stack(means).mean(0)
        return normalise(x, mean, torch.stack(squares).mean(0) - mean.square())


@pytest.mark.parametrize("through", [True, False])
@pytest.mark.parametrize(("window", "burn_in"), [(2, 0), (4, 3)])
def test_every_gradient_over_a_training_run_is_that_of_the_paper_s_formula(window, burn_in, through):
    conv, layer = pair()
    layer = affine(BatchNorm2d(3, coupling=CrossIteration(window, burn_in, through), dtype=torch.float64))
    layer.attach(conv)
    twin, paper = copy.deepcopy(conv), Paper(window, burn_in, through)
    for step in range(8):
        x = X[:2] * (1 + 0.1 * step) + 0.1 * step
        g = randn(2, 3, 4, 4, seed=step)
        y = layer(conv(x))
        z = twin(x)
        expected = paper(z, twin.weight) * over(layer.weight.detach(), z) + over(layer.bias.detach(), z)
        assert close(y, expected, 1e-10)
        (got,) = torch.autograd.grad(y, conv.weight, g)
        (wanted,) = torch.autograd.grad(expected, twin.weight, g)
        assert close(got, wanted, 1e-9)
        with torch.no_grad():
            conv.weight -= 0.05 * got
            twin.weight -= 0.05 * got


def gradient_along_the_weights(through):
    """How much of the gradient points along each filter; of batch norm nothing does (but for eps)."""
    conv, layer = pair()
    layer = BatchNorm2d(3, coupling=CrossIteration(4, 0, through), dtype=torch.float64)
    layer.attach(conv)
    for step in range(5):
        y = layer(conv(randn(2, 2, 6, 6, seed=step)))
    (grad,) = torch.autograd.grad(y, conv.weight, randn(*y.shape, seed=9))
    along = (grad * conv.weight).flatten(1).sum(1).abs() / (
        grad.flatten(1).norm(dim=1) * conv.weight.flatten(1).norm(dim=1)
    )
    return float(along.detach().max())


def test_the_gradient_through_the_weights_leaves_their_length_alone():
    assert gradient_along_the_weights(True) < 1e-5
    assert gradient_along_the_weights(False) > 1e-2


def test_second_derivatives_reach_the_weights():
    conv, layer = pair()
    layer(conv(X))
    change(conv, 0.1)

    def value(weight):
        held = conv.weight.detach().clone()
        with torch.no_grad():
            conv.weight.copy_(weight)
        state = {name: buffer.clone() for name, buffer in layer.named_buffers()}
        y = layer(conv(X))
        (grad,) = torch.autograd.grad((y * randn(*y.shape, seed=2)).sum(), conv.weight, create_graph=True)
        second = grad.square().sum()
        (found,) = torch.autograd.grad(second, conv.weight)
        with torch.no_grad():
            conv.weight.copy_(held)
            for name, buffer in layer.named_buffers():
                buffer.copy_(state[name])
        return float(second.detach()), found

    at, direction = conv.weight.detach().clone(), randn(*conv.weight.shape, seed=4)
    _, found = value(at)
    h = 1e-5
    slope = (value(at + h * direction)[0] - value(at - h * direction)[0]) / (2 * h)
    assert abs(slope - float((found * direction).sum())) < 1e-5 * abs(slope)
