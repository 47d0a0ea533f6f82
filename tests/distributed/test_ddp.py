"""Under DistributedDataParallel: the run of one process on the whole batch, in the ways people train."""

import copy
from contextlib import nullcontext

import pytest
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

import batchnorm
from tests.distributed import world

SIZES = (5, 3)


class Net(nn.Module):
    """Two convolutions with batch norm; an extra head that only some runs use."""

    def __init__(self, checkpointed=False):
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(
            nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 6, 3, stride=2), nn.BatchNorm2d(6), nn.ReLU()
        )
        self.head = nn.Linear(6, 3)
        self.unused = nn.Linear(6, 3)
        self.checkpointed = checkpointed

    def forward(self, x):
        features = checkpoint(self.body, x, use_reentrant=False) if self.checkpointed else self.body(x)
        return self.head(features.mean((2, 3)))


def synced(**options):
    net = Net(**options).double()
    return batchnorm.convert(net, extent=batchnorm.layers.Sync(timeout=30))


def data(step):
    generator = torch.Generator().manual_seed(step)
    x = torch.randn(sum(SIZES), 1, 8, 8, dtype=torch.float64, generator=generator) + step % 3
    return x, torch.randint(0, 3, (sum(SIZES),), generator=generator)


def train(model, steps, rank=None, accumulate=False, wrapped=None):
    """SGD on this rank's part. DDP averages gradients over ranks, so each loss is scaled to make a sum of them."""
    wrapped = wrapped or model
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    losses = []
    for step in range(steps):
        x, target = data(step)
        part = slice(None) if rank is None else slice(*((0, SIZES[0]) if rank == 0 else (SIZES[0], None)))
        scale = 1 if rank is None else len(SIZES)
        later = accumulate and step % 2 == 0
        with wrapped.no_sync() if later and rank is not None else nullcontext():
            loss = nn.functional.cross_entropy(wrapped(x[part]), target[part], reduction="sum") / sum(SIZES)
            (loss * scale).backward()
        losses.append(float(loss.detach()))
        if not later:
            optimizer.step()
            optimizer.zero_grad()
    return losses, {name: value.clone() for name, value in model.state_dict().items()}


def on_rank(rank, ranks, kind, steps):
    options = {"find_unused_parameters": True}
    model = synced(checkpointed=kind == "checkpointed")
    if kind == "no broadcast":
        options["broadcast_buffers"] = False
    wrapped = DistributedDataParallel(model, **options)
    return train(model, steps, rank, accumulate=kind == "no_sync", wrapped=wrapped)


def compare(kind, steps):
    by_rank = world.run(on_rank, 2, kind, steps)
    losses, state = train(synced(checkpointed=kind == "checkpointed"), steps, accumulate=kind == "no_sync")
    assert torch.allclose(
        torch.tensor([r[0] for r in by_rank], dtype=torch.float64).sum(0),
        torch.tensor(losses, dtype=torch.float64),
        rtol=1e-8,
        atol=1e-10,
    )
    for _, theirs in by_rank:
        for name, value in state.items():
            assert torch.allclose(theirs[name].double(), value.double(), rtol=1e-8, atol=1e-9), name


def test_training_equals_one_process():
    compare("plain", 10)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["no broadcast", "no_sync", "checkpointed"])
def test_training_equals_one_process_also(kind):
    compare(kind, 10)


@pytest.mark.slow
def test_two_hundred_steps_equal_one_process():
    compare("plain", 200)


def two_forwards(rank, ranks, broadcast):
    """A siamese step: two forwards, then one backward; torch's DDP broadcast moves buffers in between."""
    model = synced()
    wrapped = DistributedDataParallel(model, broadcast_buffers=broadcast, find_unused_parameters=True)
    x, _ = data(1)
    mine = x[:5] if rank == 0 else x[5:]
    (wrapped(mine) - wrapped(mine.flip(-1))).square().sum().backward()
    return model.body[0].weight.grad


@pytest.mark.parametrize("broadcast", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_two_forwards_before_a_backward(broadcast):
    gradients = world.run(two_forwards, 2, broadcast)
    model, (x, _) = synced(), data(1)
    (model(x) - model(x.flip(-1))).square().sum().backward()
    expected = model.body[0].weight.grad / 2
    assert all(torch.allclose(gradient, expected, rtol=1e-9) for gradient in gradients)


def loads_anywhere(rank, ranks):
    model = synced()
    train(model, 3, rank, wrapped=DistributedDataParallel(model, find_unused_parameters=True))
    stock = batchnorm.to_stock(copy.deepcopy(model)).eval()
    x, _ = data(7)
    return model.state_dict(), stock(x)


@pytest.mark.slow
def test_a_model_trained_synced_loads_anywhere():
    (state, y), _ = world.run(loads_anywhere, 2)
    stock = Net().double().eval()
    stock.load_state_dict(state, strict=True)
    assert torch.allclose(stock(data(7)[0]), y, atol=1e-12)
