"""Several processes: whose statistics are kept, how they are pooled, what an update in between does to a backward."""

import copy
import functools

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import update_bn

import batchnorm
import batchnorm.interop
from tests.distributed import world
from tests.pains.table import is_off, pain, switch_off

FEATURES = ("batchnorm.sync_statistics", "batchnorm.recalibrate", "batchnorm.interop.to_torch", "batchnorm.layers.Sync")
SIZES = (6, 2)


def data(rank):
    return torch.randn(SIZES[rank], 2, generator=torch.Generator().manual_seed(rank)) + 4.0 * rank


def refusal(call):
    try:
        call()
    except (RuntimeError, ValueError) as error:
        return str(error)
    return None


def on_rank(rank, ranks, off):
    """Everything the tests below look at, in one start of the processes."""
    for name in off:
        switch_off(name, setattr)
    told, x = {}, data(rank)

    net = nn.Sequential(nn.BatchNorm1d(2, momentum=1.0), nn.Linear(2, 1))
    wrapped = DistributedDataParallel(net)
    for _ in range(3):
        wrapped(x).sum().backward()
    told["kept by DDP"] = copy.deepcopy(net[0].state_dict())
    evaluated = copy.deepcopy(net)
    DistributedDataParallel(evaluated).eval()(x)
    told["evaluated by DDP"] = evaluated[0].running_mean
    told["apart"] = batchnorm.rank_report(net).layers["0"].mean_spread
    batchnorm.sync_statistics(net)
    told["pooled"] = copy.deepcopy(net[0].state_dict())

    for key, layer in (("stock", nn.BatchNorm1d(2)), ("ours", batchnorm.BatchNorm1d(2))):
        y = layer.eval()(x.clone().requires_grad_())
        received = layer.running_mean.clone()
        dist.broadcast(received, 0)
        layer.running_mean.copy_(received)
        told[f"broadcast, {key}"] = refusal(lambda y=y: y.sum().backward())

    trained = nn.Sequential(nn.Linear(2, 2), nn.SyncBatchNorm(2))
    told["SyncBatchNorm"] = refusal(lambda: trained(x))
    inferred = trained.eval()(x)
    plain = batchnorm.interop.to_torch(trained)
    told["plain"] = type(plain[1]).__name__, torch.equal(plain(x), inferred), refusal(lambda: plain.train()(x))

    by_update_bn, by_recalibrate = nn.Sequential(nn.BatchNorm1d(2)), nn.Sequential(nn.BatchNorm1d(2))
    update_bn(x.split(4), by_update_bn)
    group = dist.group.WORLD
    batchnorm.recalibrate(by_recalibrate, x.split(4), process_group=group, progress=False)
    told["update_bn"], told["recalibrate"] = by_update_bn.state_dict(), by_recalibrate.state_dict()
    within = nn.Sequential(nn.BatchNorm1d(2))
    batchnorm.recalibrate(within, x.split(4), process_group=group, progress=False, variance="within")
    told["within"] = within.state_dict()

    of_means = torch.stack([x.mean(0), x.var(0, correction=0) + x.mean(0).square()])
    dist.all_reduce(of_means)
    told["mean of means"] = of_means[0] / ranks
    layer = batchnorm.BatchNorm1d(2, momentum=1.0, extent=batchnorm.layers.Sync())
    told["y"] = layer(x).detach()
    told["sync"] = copy.deepcopy(layer.state_dict())
    empty = batchnorm.BatchNorm1d(2, momentum=1.0, extent=batchnorm.layers.Sync())
    told["empty"] = refusal(lambda: empty(x if rank == 0 else x[:0])), empty.running_mean.clone()
    return told


@functools.cache
def _run(off):
    return world.run(on_rank, 2, off)


def results():
    return _run(tuple(name for name in FEATURES if is_off(name)))


WHOLE = torch.cat([data(0), data(1)])


@pain(
    10,
    "Under DDP each rank evaluates differently, or only rank 0's data is in the checkpoint",
    state="repaired",
    peer="rank 0's buffers go to all before each forward, the last update differs, the others' data are lost",
    here="batchnorm.sync_statistics(model)",
    thread="https://github.com/huggingface/pytorch-image-models/issues/110",
    page="many-processes.md",
    without="batchnorm.sync_statistics",
)
def test_pain_10_ranks_differ():
    ranks = results()
    means, variances = torch.stack([x.mean(0) for x in (data(0), data(1))]), [data(r).var(0) for r in (0, 1)]
    for rank, told in enumerate(ranks):
        assert torch.allclose(told["kept by DDP"]["running_mean"], means[rank], atol=1e-6)
        assert torch.allclose(told["evaluated by DDP"], means[0], atol=1e-6)  # of rank 0's data on every rank
        assert told["apart"] > 0.5
        # Both ranks saw three batches, so they weigh the same; the variance between them is part of the whole.
        between = ((means[0] - means[1]) / 2).square()
        assert torch.allclose(told["pooled"]["running_mean"], means.mean(0), atol=1e-6)
        assert torch.allclose(told["pooled"]["running_var"], sum(variances) / 2 + between, rtol=1e-5)
        assert int(told["pooled"]["num_batches_tracked"]) == 3


@pain(
    11,
    "RuntimeError: modified by an inplace operation, with DDP and two forwards (GAN, siamese, recurrent)",
    state="prevented",
    peer="copying statistics in between raises; DDP 2.13 hides its copies; an eval forward before a train one gets "
    "wrong gradients silently",
    here="batchnorm.convert(model)",
    thread="https://github.com/pytorch/pytorch/issues/175024",
    page="deviations.md",
    without="batchnorm.BatchNorm1d",
    limit="DDP of torch 2.13 no longer raises by itself; copies of statistics that others make still do",
)
def test_pain_11_two_forwards_before_a_backward():
    for told in results():
        assert "modified by an inplace operation" in told["broadcast, stock"]
        assert told["broadcast, ours"] is None
    x = torch.randn(8, 3)
    slopes = {}
    for key, layer in (("stock", nn.BatchNorm1d(3)), ("ours", batchnorm.BatchNorm1d(3))):
        layer.running_var.fill_(4.0)
        leaf = x.clone().requires_grad_()
        y = layer.eval()(leaf)
        layer.train()(5 * x + 3)
        y.sum().backward()
        slopes[key] = leaf.grad
    # d y / d x = 1 / sqrt(4): of the statistics that y was made with.
    assert (slopes["stock"] - 0.5).abs().min() > 0.02
    assert torch.allclose(slopes["ours"], torch.tensor(0.5), atol=1e-5)


@pain(
    14,
    "A model trained with SyncBatchNorm cannot run on a CPU, be exported or quantised",
    state="repaired",
    peer="refuses CPU tensors in a process group, and has no inverse of convert_sync_batchnorm",
    here="model = batchnorm.interop.to_torch(model)",
    thread="https://github.com/pytorch/pytorch/issues/41081",
    page="interop.md",
    without="batchnorm.interop.to_torch",
)
def test_pain_14_sync_batch_norm_on_a_cpu():
    assert [name for name in dir(nn.SyncBatchNorm) if "convert" in name] == ["convert_sync_batchnorm"]
    for told in results():
        assert "expected input tensor to be on GPU" in told["SyncBatchNorm"]
        assert told["plain"] == ("BatchNorm1d", True, None)


@pain(
    27,
    "Precise-BN tools disagree across ranks, and say neither how they weigh nor which variance they take",
    state="prevented",
    peer="update_bn on each rank's shard: other statistics on every rank, 4 and 2 samples weighing alike",
    here="batchnorm.recalibrate(model, loader, process_group=torch.distributed.group.WORLD)",
    thread="https://github.com/facebookresearch/fvcore/issues/152",
    page="recalibrate.md",
    without="batchnorm.recalibrate",
)
def test_pain_27_precise_statistics_on_ranks():
    first, second = results()
    mean = "0.running_mean"
    assert (first["update_bn"][mean] - second["update_bn"][mean]).abs().min() > 3
    assert (first["update_bn"][mean] - data(0).mean(0)).abs().max() > 0.05
    for name, value in first["recalibrate"].items():
        assert torch.equal(value, second["recalibrate"][name])
    assert torch.allclose(first["recalibrate"][mean], WHOLE.mean(0), atol=1e-6)
    assert torch.allclose(first["recalibrate"]["0.running_var"], WHOLE.var(0), rtol=1e-5)
    assert (first["within"]["0.running_var"] < 0.6 * WHOLE.var(0)).all()


@pain(
    36,
    "SyncBN with unequal batches on the ranks gives another running_var, or crashes on an empty one",
    state="prevented",
    peer="a mean of the ranks' means, as home-made ones take it, is off: 2 for 1 with 6 and 2 samples",
    here="batchnorm.convert(model, extent=batchnorm.layers.Sync())",
    thread="https://github.com/NVIDIA/apex/issues/387",
    page="many-processes.md",
    without="batchnorm.layers.Sync",
)
def test_pain_36_uneven_ranks():
    ranks = results()
    normal = (WHOLE - WHOLE.mean(0)) / (WHOLE.var(0, correction=0) + 1e-5).sqrt()
    for told, part in zip(ranks, normal.split(SIZES), strict=True):
        assert (told["mean of means"] - WHOLE.mean(0)).abs().min() > 0.5
        assert torch.allclose(told["y"], part, atol=1e-5)
        assert torch.allclose(told["sync"]["running_mean"], WHOLE.mean(0), atol=1e-6)
        assert torch.allclose(told["sync"]["running_var"], WHOLE.var(0), rtol=1e-5)
        assert told["empty"][0] is None
        assert torch.allclose(told["empty"][1], data(0).mean(0), atol=1e-6)


@pytest.mark.slow
def test_pain_11_wrong_gradients_also_through_ddp():
    for slopes in world.run(_through_ddp, 2):
        assert (slopes["stock"] - 0.5).abs().min() > 0.02
        assert torch.allclose(slopes["ours"], torch.tensor(0.5), atol=1e-5)


def _through_ddp(rank, ranks):
    x = torch.randn(8, 3, generator=torch.Generator().manual_seed(0))
    slopes = {}
    for key, layer in (("stock", nn.BatchNorm1d(3)), ("ours", batchnorm.BatchNorm1d(3))):
        layer.running_var.fill_(4.0)
        wrapped = DistributedDataParallel(layer)
        leaf = x.clone().requires_grad_()
        y = wrapped.eval()(leaf)
        z = wrapped.train()(5 * x + 3)
        (y.sum() + 0 * z.sum()).backward()
        slopes[key] = leaf.grad
    return slopes
