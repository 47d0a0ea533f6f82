"""Function transforms over layers that keep state."""

import pytest
import torch
from torch import nn
from torch.func import functional_call, grad, jacrev, vmap

import batchnorm
from tests.pains.table import pain


@pain(
    37,
    "vmap, grad and jacrev over batch norm fail",
    state="prevented",
    peer="in train mode all three raise: the buffers would move in place inside the transform",
    here="with batchnorm.pause(model): torch.func.vmap(model)(xs)",
    thread="https://github.com/pytorch/pytorch/issues/85533",
    page="freeze-and-pause.md",
    without="batchnorm.pause",
    fails_with=RuntimeError,
)
def test_pain_37_function_transforms():
    xs = torch.randn(3, 5, 2, dtype=torch.float64)

    for layer in (nn.BatchNorm1d(2, dtype=torch.float64), batchnorm.BatchNorm1d(2, dtype=torch.float64)):

        def loss(x, layer=layer):
            return layer(x).pow(3).sum()

        calls = (lambda: vmap(layer)(xs), lambda: grad(loss)(xs[0]), lambda: jacrev(layer)(xs[0]))  # noqa: B023
        for call in calls:
            with pytest.raises(RuntimeError, match=r"in.?place"):
                call()
        layer.reset_running_stats()
        with batchnorm.pause(layer):
            y, slopes = vmap(layer)(xs), vmap(grad(loss))(xs)
            rows = jacrev(layer)(xs[0])
        assert int(layer.num_batches_tracked) == 0
        normal = (xs - xs.mean(1, keepdim=True)) / (xs.var(1, correction=0, keepdim=True) + 1e-5).sqrt()
        assert torch.allclose(y, normal, atol=1e-12)
        for x, slope in zip(xs, slopes, strict=True):
            leaf = x.clone().requires_grad_()
            loss(leaf).backward()
            assert torch.allclose(slope, leaf.grad, atol=1e-12)
        assert rows.shape == (5, 2, 5, 2)


def test_pain_37_statistics_come_back_as_values():
    """A purely functional step: the buffers go in and come out, mapped over three models at once."""
    layer = batchnorm.BatchNorm1d(2)
    xs = torch.randn(3, 5, 2) + torch.tensor([0.0, 4.0, 8.0])[:, None, None]

    def step(buffers, x):
        moved = {name: value.clone() for name, value in buffers.items()}
        return functional_call(layer, moved, (x,)).pow(3).sum(), moved

    stacked = {name: torch.stack([value] * 3) for name, value in layer.named_buffers()}
    slopes, moved = vmap(grad(step, argnums=1, has_aux=True))(stacked, xs)
    assert torch.allclose(moved["running_mean"], 0.1 * xs.mean(1), atol=1e-6)
    assert torch.allclose(moved["running_var"], 0.9 + 0.1 * xs.var(1), atol=1e-5)
    assert slopes.shape == xs.shape
    assert (layer.running_mean == 0).all()
