"""Prepared models and loaders, in one process and in two."""

import os

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from batchnorm.interop.trainers.accelerate import recalibrate
from tests.distributed import world
from tests.trainers.networks import DATA, LABELS, close, exact, network, statistics

accelerate = pytest.importorskip("accelerate")


@pytest.fixture(autouse=True)
def _one_state():
    from accelerate.state import AcceleratorState, GradientState, PartialState

    yield
    for state in (AcceleratorState, GradientState, PartialState):
        state._reset_state()


def prepared(accelerator, size=95):
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), 0.05)
    data = TensorDataset(DATA[:size], LABELS[:size])
    return accelerator.prepare(model, optimizer, DataLoader(data, batch_size=8, shuffle=True))


def test_a_prepared_model():
    model, optimizer, loader = prepared(accelerate.Accelerator(cpu=True), 96)
    torch.manual_seed(0)
    order = [batch[1].tolist() for batch in loader]
    model, optimizer, loader = prepared(accelerate.Accelerator(cpu=True), 96)
    torch.manual_seed(0)
    seen = []
    for index, (x, y) in enumerate(loader):
        seen.append(y.tolist())
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
        optimizer.zero_grad()
        if index == 5:
            result = recalibrate(accelerate.Accelerator(cpu=True), model, loader)
            assert result.samples == 96
            assert exact(model)
    assert seen == order


def test_under_mixed_precision():
    accelerator = accelerate.Accelerator(cpu=True, mixed_precision="bf16")
    model, _, loader = prepared(accelerator, 96)
    kinds = set()
    accelerator.unwrap_model(model)[1].register_forward_pre_hook(lambda m, args: kinds.add(args[0].dtype))
    recalibrate(accelerator, model, loader)
    assert kinds == {torch.bfloat16}
    assert not exact(network())


def _ranks(rank, ranks):
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(ranks), LOCAL_RANK=str(rank), ACCELERATE_USE_CPU="true")
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT="29511")
    accelerator = accelerate.Accelerator(cpu=True)
    model, optimizer, loader = prepared(accelerator)
    read = 0
    for x, y in loader:
        read += len(x)
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
        optimizer.zero_grad()
    result = recalibrate(accelerator, model, loader)
    inner = accelerator.unwrap_model(model)
    weights = [p.detach() for p in inner.parameters()]
    return accelerator.num_processes, type(model).__name__, read, result.samples, statistics(inner), weights


def test_two_processes_count_every_sample_once():
    one, other = world.run(_ranks, 2, timeout=60.0)
    assert one[:2] == (2, "DistributedDataParallel")
    # accelerate repeats a sample, so that both have as many.
    assert one[2] + other[2] == 96
    assert one[3] == other[3] == 95
    assert all(torch.equal(a, b) for a, b in zip(one[4], other[4], strict=True))
    model = network()
    with torch.no_grad():
        for parameter, value in zip(model.parameters(), one[5], strict=True):
            parameter.copy_(value)
    from batchnorm import recalibrate as alone

    alone(model, DATA[:95].split(19))
    assert close(statistics(model), one[4], 1e-5)
