"""Compiled DDP and FSDP2: the run of one process on the whole batch."""

import pytest
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import batchnorm
from tests.distributed import world

PARTS = (slice(0, 4), slice(4, 6))


def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.Linear(3, 1)).double()


def data(step):
    return torch.arange(12.0, dtype=torch.float64).reshape(6, 2).sub(step + 3).square()


def train(net, called, rows, scale):
    optimizer = torch.optim.SGD(net.parameters(), lr=1e-3)
    for step in range(3):
        optimizer.zero_grad()
        (called(data(step)[rows]).pow(2).sum() * scale).backward()
        optimizer.step()
    return called(data(9)[rows])


def on_rank(rank, ranks, kind):
    net = batchnorm.convert(model(), extent=batchnorm.layers.Sync(timeout=60))
    called = net
    if kind == "fsdp":
        from torch.distributed.fsdp import fully_shard

        fully_shard(net[0])
        fully_shard(net)
    if kind == "compiled_ddp":
        called = torch.compile(DistributedDataParallel(net), backend="aot_eager")
    if kind == "ddp_of_compiled":
        # fullgraph: the layer's sums over ranks are part of the graph.
        called = DistributedDataParallel(torch.compile(net, backend="aot_eager", fullgraph=True))
    y = train(net, called, PARTS[rank], 2.0)
    return y.detach(), {name: value.clone() for name, value in net.named_buffers()}


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["fsdp", "ddp_of_compiled", "compiled_ddp"])
def test_wrapped_training_equals_one_process(kind):
    results = world.run(on_rank, 2, kind)
    net = model()
    y = train(net, net, slice(None), 1.0)
    assert torch.allclose(torch.cat([r[0] for r in results]), y, rtol=1e-10)
    for _, buffers in results:
        for name, value in net.named_buffers():
            assert torch.allclose(buffers[name].double(), value.double(), rtol=1e-10), name
