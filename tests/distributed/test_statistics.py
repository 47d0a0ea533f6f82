"""Running statistics over ranks: what differs, what DDP keeps, and the pooled version."""

import time

import pytest
import torch
from torch import nn

import batchnorm
from tests.distributed import world


def part(rank):
    generator = torch.Generator().manual_seed(5)
    data = torch.randn(60, 3, dtype=torch.float64, generator=generator) * 2
    return (data[:20], data[20:] + 3)[rank]


def pooled(rank, ranks, kind):
    layer = {
        "stock": lambda: nn.BatchNorm1d(3, momentum=None, dtype=torch.float64),
        "ours": lambda: batchnorm.BatchNorm1d(3, method="pooled", dtype=torch.float64),
    }[kind]()
    model = nn.Sequential(layer)
    for batch in part(rank).split(10):
        model(batch)
    before = batchnorm.rank_report(model)
    told = batchnorm.sync_statistics(model)
    assert told == before
    state = {name: value.clone() for name, value in model.state_dict().items()}
    return before, state, batchnorm.rank_report(model).ok


@pytest.mark.parametrize("kind", ["stock", "ours"])
def test_ranks_pool_with_their_counts_and_the_variance_between_them(kind):
    whole = torch.cat([part(0), part(1)])
    for before, state, same in world.run(pooled, 2, kind):
        assert same
        assert not before.ok
        assert before.differing == ("0",)
        assert torch.allclose(state["0.running_mean"], whole.mean(0), rtol=1e-12)
        row = before.layers["0"]
        std = whole.std(0)
        off = ((part(0).mean(0) - whole.mean(0)) / std).abs().max()
        assert row.rank0_mean == pytest.approx(float(off), rel=0.05)
        assert int(state["0.num_batches_tracked"]) == 4
        if kind == "ours":
            assert torch.allclose(state["0.running_var"], whole.var(0), rtol=1e-12)
            assert float(state["0.pooled_count"]) == 60


def disagreeing(rank, ranks):
    def refusal(model):
        with pytest.raises(batchnorm.BatchNormError) as caught:
            batchnorm.sync_statistics(model)
        return str(caught.value)

    model = nn.Sequential(nn.BatchNorm1d(3 + rank))
    told = {"channels": refusal(model)}
    names = ("a", "b") if rank else ("b", "a")
    told["order"] = refusal(nn.ModuleDict({name: nn.BatchNorm1d(3) for name in names}))
    broken = nn.Sequential(nn.BatchNorm1d(2), nn.BatchNorm1d(3))
    broken[1].running_var.fill_(torch.nan if rank else 2.0)
    told["nan"] = refusal(broken)
    assert not batchnorm.rank_report(broken).ok
    return told, model[0].running_mean.clone(), broken[0].running_mean.clone()


def test_other_layers_on_another_rank_are_named_and_nothing_changes():
    for told, mean, first in world.run(disagreeing, 2):
        assert "must hold the same layers" in told["channels"]
        assert "('0', 4)" in told["channels"]
        assert "their order" in told["order"]
        assert "finite on every rank to be pooled; those of '1' are not" in told["nan"]
        assert not mean.any()
        assert not first.any()


def test_one_process_has_nothing_to_pool():
    layer = nn.BatchNorm1d(3)
    layer(torch.randn(8, 3))
    before = {name: value.clone() for name, value in layer.state_dict().items()}
    report = batchnorm.sync_statistics(layer)
    assert report.ok
    assert "all the same" in str(report)
    assert all(torch.equal(before[name], value) for name, value in layer.state_dict().items())
    with pytest.raises(batchnorm.BatchNormError, match="must contain a batch norm layer"):
        batchnorm.rank_report(nn.Linear(2, 2))


def absent(rank, ranks):
    layer = nn.BatchNorm1d(3)
    if rank:
        time.sleep(7)
        return None
    with pytest.raises(batchnorm.BatchNormError) as caught:
        batchnorm.sync_statistics(layer)
    return str(caught.value)


@pytest.mark.slow
def test_a_rank_that_does_not_call_is_named():
    told, _ = world.run(absent, 2, timeout=2)
    assert "every rank must reach sync_statistics or rank_report; rank 0 waited 2 s for the others" in told
    assert "rank 1 did not come" in told
