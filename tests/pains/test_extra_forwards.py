"""Forwards that move the statistics though nobody meant them to, or at the wrong time."""

import copy
import io
from contextlib import redirect_stdout

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import batchnorm
from gallery.common import X, accuracy, network, norms, train
from tests.pains.table import outcome, pain


def _run_watched(model, x):
    with batchnorm.watch(model):
        for _ in range(60):
            checkpoint(model, x, use_reentrant=False).sum().backward()


@pain(
    12,
    "Gradient checkpointing updates the statistics twice a step",
    state="prevented",
    peer="reentrant and not: the counter says 2 after one step, and 1 - 0.9^2 of the batch has gone in",
    here="batchnorm.convert(model)",
    thread="https://github.com/pytorch/pytorch/issues/96136",
    page="deviations.md",
    without=("batchnorm.convert", "batchnorm.watch"),
)
def test_pain_12_checkpointing():
    x = (torch.randn(16, 3) + 4).requires_grad_()

    def step(layer, reentrant):
        checkpoint(layer, x, use_reentrant=reentrant).square().sum().backward()
        return int(layer.num_batches_tracked), layer.running_mean / x.mean(0)

    for reentrant in (True, False):
        counter, share = step(nn.BatchNorm1d(3), reentrant)
        assert counter == 2
        assert torch.allclose(share, torch.tensor(1 - 0.9**2), atol=1e-5)
        counter, share = step(batchnorm.convert(nn.BatchNorm1d(3)), reentrant)
        assert counter == 1
        assert torch.allclose(share, torch.tensor(0.1), atol=1e-5)
    watched = nn.Sequential(nn.BatchNorm1d(3))
    with pytest.warns(UserWarning, match="BN301"):
        _run_watched(watched, x)


@pain(
    13,
    "An unintended forward in train mode: a summary, a FLOP counter, a learning-rate finder",
    state="prevented",
    peer="no_grad and inference_mode do not stop the update; 20 forwards on noise spoil a trained network",
    here="with batchnorm.pause(model): summary(model)",
    thread="https://github.com/sksq96/pytorch-summary/issues/67",
    page="freeze-and-pause.md",
    without=("batchnorm.pause", "gallery.runs.watch"),
)
def test_pain_13_a_forward_nobody_meant():
    for quiet in (torch.no_grad, torch.inference_mode):
        layer = nn.BatchNorm1d(64)
        with quiet():
            layer(X[:32] + 1)
        assert abs(layer.running_mean.mean() - 0.1 * (X[:32] + 1).mean()) < 1e-6
    report, before, after = outcome("summary_in_train_mode")
    assert report.findings
    assert report.findings[0].code == "BN303"
    assert before < after - 0.05
    assert after > 0.9


class Bypass:
    """Switch batch norm off by its momentum, as users of SAM do; the backup lives on the layer."""

    @staticmethod
    def disable(model):
        for layer in norms(model):
            layer.backup_momentum = layer.momentum
            layer.momentum = 0

    @staticmethod
    def enable(model):
        for layer in norms(model):
            layer.momentum = layer.backup_momentum


@pain(
    17,
    "Methods with two forwards (SAM, VAT, PGD, consistency) corrupt the statistics",
    state="prevented",
    peer="the perturbed pass counts too; a momentum saved twice in a row stays 0 for the rest of training",
    here="with batchnorm.pause(model): loss(model(x)).backward()",
    thread="https://github.com/davda54/sam/issues/30",
    page="freeze-and-pause.md",
    without="batchnorm.pause",
)
def test_pain_17_two_forwards():
    model = network()
    Bypass.disable(model)
    Bypass.disable(model)
    Bypass.enable(model)
    assert {layer.momentum for layer in norms(model)} == {0}
    plain, sam = network(), network()
    optimizers = [torch.optim.SGD(m.parameters(), lr=0.1) for m in (plain, sam)]
    for part in X[:256].split(64):
        plain(part).square().mean().backward()
        optimizers[0].step()
        optimizers[0].zero_grad()
        sam(part).square().mean().backward()
        with batchnorm.pause(sam), batchnorm.pause(sam):  # nested, as where a trainer pauses too
            sam(part + 0.5).square().mean().mul(0).backward()
        optimizers[1].step()
        optimizers[1].zero_grad()
    for a, b in zip(norms(plain), norms(sam), strict=True):
        assert torch.equal(a.running_mean, b.running_mean)
        assert int(b.num_batches_tracked) == 4
        assert b.track_running_stats
        assert b.momentum == 0.1
    report, before, after = outcome("second_forward_moves_too")
    assert report.findings[0].code == "BN311"
    assert before < after - 0.05


def _summary(model: nn.Module) -> str:
    """Shapes by a forward on random data, as summary tools print them."""
    told = io.StringIO()
    with redirect_stdout(told):
        handles = [m.register_forward_hook(lambda m, i, o: print(type(m).__name__, tuple(o.shape))) for m in model]
        model(torch.rand(2, 64))
    for handle in handles:
        handle.remove()
    return told.getvalue()


def test_pain_13_a_summary_shows_the_same_inside_a_pause():
    model = train(network(), 60)
    before = accuracy(model)
    kept = copy.deepcopy(model.state_dict())
    with batchnorm.pause(model):
        inside = _summary(model)
    assert accuracy(model) == before
    assert all(torch.equal(value, kept[name]) for name, value in model.state_dict().items())
    assert _summary(model) == inside
    assert not torch.equal(model[1].running_mean, kept["1.running_mean"])
