"""Frozen, so its author believes."""

import copy

import pytest
import torch
from torch import nn

import batchnorm
from batchnorm.interop import to_sync
from gallery.common import X, batches, metric, network, norms, train
from tests.pains.table import outcome, pain


@pain(
    2,
    "Frozen batch norm is not frozen: its statistics still move, or the next model.train() unfreezes it",
    state="prevented",
    peer="requires_grad_(False) moves them at every forward; .eval() on the layer holds until a parent's .train()",
    here="batchnorm.freeze(model)",
    thread="https://github.com/pytorch/pytorch/issues/66073",
    page="freeze-and-pause.md",
    without=("batchnorm.freeze", "batchnorm.watch"),
)
def test_pain_02_frozen_is_not_frozen():
    for rank in (1, 2, 3, "sync"):
        x = torch.randn(8, 3, *[4] * (2 if rank == "sync" else rank)) + 5
        stock = nn.Sequential(nn.BatchNorm2d(3) if rank == "sync" else getattr(nn, f"BatchNorm{rank}d")(3))
        model = to_sync(copy.deepcopy(stock)) if rank == "sync" else copy.deepcopy(stock)
        stock.requires_grad_(False)
        stock.train()(x)
        assert (stock[0].running_mean - 0.1 * x.transpose(0, 1).flatten(1).mean(1)).abs().max() < 1e-5
        stock[0].eval()
        stock.train()(x)
        assert int(stock[0].num_batches_tracked) == 2

        before = copy.deepcopy(model.state_dict())
        inferred = model.eval()(x)
        batchnorm.freeze(model)
        assert torch.equal(model.train()(x), inferred)
        assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
        assert model[0].weight.requires_grad  # weight and bias are a choice of their own
        batchnorm.unfreeze(model)
        model(x)
        assert int(model[0].num_batches_tracked) == 1
    with pytest.warns(UserWarning, match="BN302"), batchnorm.watch(model.requires_grad_(False)):
        model(x)


@pain(
    24,
    "track_running_stats = False, set afterwards, does not do what it says",
    state="prevented",
    peer="train mode stops moving the statistics; eval mode still normalises with the old ones",
    here="with batchnorm.pause(model): model(x)",
    thread="https://github.com/pytorch/pytorch/issues/20967",
    page="freeze-and-pause.md",
    without=("batchnorm.freeze", "batchnorm.pause", "batchnorm.diagnose"),
)
def test_pain_24_tracking_switched_off_afterwards():
    x = torch.randn(16, 3) * 2 + 5
    layer = nn.BatchNorm1d(3)
    layer.track_running_stats = False
    layer(x)
    assert (layer.running_mean == 0).all()
    assert abs(layer.eval()(x).mean() - x.mean()) < 1e-4  # the batch's statistics were asked for
    # Two switches with a name each: which statistics normalise, and whether they move.
    named = nn.Sequential(nn.BatchNorm1d(3))
    inferred = named.eval()(x)
    named.train()
    with batchnorm.pause(named):  # the batch's, and nothing moves
        assert abs(named(x).mean()) < 1e-5
    assert int(named[0].num_batches_tracked) == 0
    batchnorm.freeze(named)  # the stored ones, and nothing moves
    assert torch.equal(named(x), inferred)
    assert int(named[0].num_batches_tracked) == 0
    report, before, after = outcome("tracking_switched_off")
    assert [f.code for f in report.findings[:1]] == ["BN113"]
    assert before < after - 0.05


class FrozenBatchNorm2d(nn.Module):
    """As torchvision's was at first: four buffers, two spatial axes, no eps."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.eps = 0.0
        for name, value in (("weight", 1.0), ("bias", 0.0), ("running_mean", 0.0), ("running_var", 1.0)):
            self.register_buffer(name, torch.full((channels,), value))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        scale = (self.weight * (self.running_var + self.eps).rsqrt())[:, None, None]
        return x * scale + (self.bias[:, None, None] - self.running_mean[:, None, None] * scale)


@pain(
    41,
    "A frozen batch norm of a class of its own differs from batch norm, is 2-D only and cannot be unfrozen",
    state="prevented",
    peer="a stand-in for torchvision's first form (eps 0): a dead channel gives NaN, (8, 4) comes out as (4, 8, 4)",
    here="batchnorm.freeze(model, affine=True); batchnorm.unfreeze(model, affine=True)",
    thread="https://github.com/pytorch/vision/issues/2169",
    page="interop.md",
    without="batchnorm.freeze",
    limit="torchvision does not import beside this torch: the test has a stand-in of its first form",
)
def test_pain_41_a_frozen_class_of_its_own():
    x = torch.randn(8, 4, 5, 5) + 2
    x[:, 3] = 0.0
    trained = nn.BatchNorm2d(4)
    for _ in range(1500):  # long enough for the variance of a dead channel to underflow
        trained(x)
    assert trained.running_var[3] < 1e-37
    theirs = FrozenBatchNorm2d(4)
    theirs.load_state_dict({k: v for k, v in trained.state_dict().items() if k != "num_batches_tracked"})
    theirs.running_var[3] = 0.0
    assert theirs(x)[:, 3].isnan().all()
    assert theirs(torch.randn(8, 4)).shape == (4, 8, 4)  # not even refused
    inferred = trained.eval()(x)
    batchnorm.freeze(trained, affine=True)
    assert torch.equal(trained.train()(x), inferred)
    assert not trained.weight.requires_grad
    one = nn.BatchNorm1d(4)
    expected = one.eval()(x[:, :, 0, 0])
    assert torch.equal(batchnorm.freeze(one).train()(x[:, :, 0, 0]), expected)
    batchnorm.unfreeze(trained, affine=True)
    assert abs(trained(x).mean()) < 1e-5
    # Such a layer becomes one that is frozen by its state, and can be thawed.
    own = batchnorm.interop.to_torch(nn.Sequential(theirs))
    assert type(own[0]) is nn.BatchNorm2d
    assert torch.allclose(own.train()(x)[:, :3], theirs(x)[:, :3], atol=1e-5)
    assert batchnorm.models.is_frozen(own[0])


@pain(
    51,
    "Frozen with momentum=0: training looks normal and eval mode is bad",
    state="diagnosed",
    peer="train mode goes on normalising with the batch, so nothing is trained with the stored statistics",
    here="batchnorm.freeze(model)",
    thread="https://discuss.pytorch.org/t/frozen-batch-normalization-still-shows-different-performance-in-model-train-from-model-eval/25176",
    page="findings.md#bn107",
    without=("batchnorm.freeze", "batchnorm.diagnose"),
)
def test_pain_51_frozen_by_momentum_zero():
    x = X[:64] * 3 + 2
    layer = nn.BatchNorm1d(64, momentum=0.0)
    trained = layer(x)
    assert (layer.running_mean == 0).all()
    assert (layer.eval()(x) - trained).abs().mean() > 1
    batchnorm.freeze(layer)
    assert torch.equal(layer.train()(x), layer.eval()(x))
    model = train(network(), 30)
    for norm in norms(model):
        norm.momentum = 0.0
    found = batchnorm.diagnose(model.train(), batches(), metric).findings
    assert [f.code for f in found if f.code == "BN107"] == ["BN107", "BN107"]
    report, before, after = outcome("frozen_by_momentum")
    assert [f.code for f in report.findings[:1]] == ["BN107"]
    assert before < after - 0.05
