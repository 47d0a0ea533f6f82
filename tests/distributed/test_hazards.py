"""What goes wrong between ranks: it is named on every rank, or works; nothing hangs or is mixed up silently."""

import contextlib
import copy
import os
import signal
import time

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import batchnorm
from tests.distributed import world


def layer(channels=2, timeout=10, **options):
    return batchnorm.BatchNorm1d(
        channels, extent=batchnorm.layers.Sync(timeout=timeout, **options), dtype=torch.float64
    )


def refusal(call):
    """What a call says when it refuses, and how many seconds it took."""
    start = time.monotonic()
    try:
        call()
    except batchnorm.BatchNormError as error:
        return str(error), time.monotonic() - start
    return None, time.monotonic() - start


def signatures(rank, ranks):
    """Everything a rank may bring that is not the others'; each pair of layers is met anew."""
    told, x = {}, torch.randn(4, 2, dtype=torch.float64)
    dtype = torch.float64 if rank else torch.float32
    told["dtype"] = refusal(lambda: layer().to(dtype)(x.to(dtype)))
    momentum = layer()
    momentum.momentum = 0.1 if rank else 0.2
    told["momentum"] = refusal(lambda: momentum(x))
    from batchnorm.layers.processes import ranks as registration

    real = registration.version
    registration.version = lambda name: "9.9" if rank else real(name)
    told["version"] = refusal(lambda: layer()(x))
    registration.version = real
    ghosts = layer(within=batchnorm.layers.Ghost(2)) if rank else layer()
    told["choices"] = refusal(lambda: ghosts(x))
    model = nn.ModuleList([layer(), layer(3)])
    model.forward = lambda order: [model[i](torch.ones(4, 2 + i, dtype=torch.float64).cumsum(0)) for i in order]
    told["layer"] = refusal(lambda: model([rank, 1 - rank]))
    return told


def test_a_rank_that_differs_is_refused_at_the_first_step_on_every_rank():
    for told in world.run(signatures, 2):
        for key, (message, seconds) in told.items():
            assert message is not None
            assert f"{key}: " in message, message
            assert "there" in message
            assert seconds < 8


def out_of_step(rank, ranks):
    """Faults after the first step, each with its own layers."""
    told, x = {}, torch.randn(4, 2, dtype=torch.float64)
    one = layer(timeout=3)
    one(x)
    one.paused = rank == 1
    told["paused"] = refusal(lambda: one(x))
    banked = layer(timeout=3)
    banked(x)
    with batchnorm.bank(banked, "a" if rank else "b"):
        told["bank"] = refusal(lambda: banked(x))
    extra = layer(timeout=3)
    leaf = x.clone().requires_grad_()
    y = extra(leaf)
    told["a forward for a backward"] = refusal((lambda: extra(x)) if rank else (lambda: y.sum().backward()))
    twin = layer(timeout=2)
    twin(x)
    if rank:
        twin = copy.deepcopy(twin)
    told["copied on one rank"] = refusal(lambda: twin(x))
    return told


def test_ranks_out_of_step_say_where_each_is():
    first, second = world.run(out_of_step, 2)
    for told in (first, second):
        assert "rank 0 is at layer BatchNorm1d(2) (forward, call 2); rank 1" in told["paused"][0]
        assert "call 2, paused" in told["paused"][0]
        assert "bank b" in told["bank"][0]
        assert "bank a" in told["bank"][0]
        assert (
            "(backward, call 1); rank 1 is at layer BatchNorm1d(2) (forward, call 2)"
            in told["a forward for a backward"][0]
        )
        assert told["copied on one rank"][0] is not None
    assert "rank 1 did not come" in first["copied on one rank"][0]
    assert "waited for the others; rank 0 did not come" in second["copied on one rank"][0]


def subgroups(rank, ranks):
    """Pairs share statistics; the layers of both pairs have the same names."""
    groups = [dist.new_group([0, 1]), dist.new_group([2, 3])]
    model = nn.Sequential(layer(group=groups[rank // 2]), layer(group=groups[rank // 2]))
    x = torch.arange(8, dtype=torch.float64).reshape(4, 2).square() * (rank + 1)
    leaf = x.clone().requires_grad_()
    y = model(leaf)
    (y.pow(3).sum()).backward()
    return y.detach(), leaf.grad, model[0].running_mean.clone()


def test_subgroups_share_within_themselves():
    results = world.run(subgroups, 4)
    for pair in ((0, 1), (2, 3)):
        x = torch.cat([torch.arange(8, dtype=torch.float64).reshape(4, 2).square() * (r + 1) for r in pair])
        x.requires_grad_()
        stock = nn.Sequential(nn.BatchNorm1d(2), nn.BatchNorm1d(2)).double()
        y = stock(x)
        y.pow(3).sum().backward()
        for place, r in enumerate(pair):
            rows = slice(4 * place, 4 * place + 4)
            assert torch.allclose(results[r][0], y[rows], atol=1e-10)
            assert torch.allclose(results[r][1], x.grad[rows], atol=1e-10)
            assert torch.allclose(results[r][2], stock[0].running_mean, atol=1e-12)


class Branches(nn.Module):
    """A branch before the shared layer that only one rank takes.

    It is registered last, so its bucket is DDP's first: the rank that does not use it reduces it before the layer's
    sum of the backward, the other one after it.
    """

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.bn = layer(3)
        self.head = nn.Linear(3, 2)
        self.branch = nn.Linear(3, 3)

    def forward(self, x, take):
        return self.head(self.bn(self.branch(x) if take else x))


def unused(rank, ranks):
    net = Branches().double()
    # Buckets of one parameter each, so that they are reduced one by one during the backward.
    wrapped = DistributedDataParallel(net, find_unused_parameters=True, bucket_cap_mb=1e-6)
    for step in range(6):
        x = torch.randn(4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(10 * step + rank))
        net.zero_grad()
        wrapped(x, take=rank == step % 2).pow(2).sum().backward()
    return [p.grad for p in net.parameters()]


def test_ranks_may_leave_different_parameters_unused():
    for gradients in world.run(unused, 2):
        net = Branches().double()
        parts = [
            torch.randn(4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(50 + rank))
            for rank in (0, 1)
        ]
        parts[1] = net.branch(parts[1])
        net.head(net.bn(torch.cat(parts))).pow(2).sum().backward()
        for mine, parameter in zip(gradients, net.parameters(), strict=True):
            assert torch.allclose(mine, parameter.grad / 2, atol=1e-10)


def joined(rank, ranks):
    net = nn.Sequential(nn.Linear(2, 2), layer(timeout=5).float())
    wrapped = DistributedDataParallel(net)

    def epoch():
        with wrapped.join():
            for _ in range(1 + rank):
                wrapped(torch.randn(4, 2)).sum().backward()

    return refusal(epoch)


def test_join_is_refused_with_the_reason():
    for told, seconds in world.run(joined, 2):
        assert "DistributedDataParallel.join must be given throw_on_early_termination=True" in told
        assert "pass empty batches" in told
        assert seconds < 5


def ends_with_the_first(rank, ranks):
    net = nn.Sequential(nn.Linear(2, 2), layer(timeout=5).float())
    wrapped = DistributedDataParallel(net)

    def epoch():
        with wrapped.join(throw_on_early_termination=True):
            for _ in range(2 + rank):
                wrapped(torch.randn(4, 2)).sum().backward()

    with pytest.raises(RuntimeError, match="exhausted"):
        epoch()
    return net[1].num_batches_tracked.item(), net[1].running_var


def test_join_that_ends_with_the_first_rank_without_data_works():
    (steps, variance), (others, theirs) = world.run(ends_with_the_first, 2)
    assert steps == others == 2
    assert torch.equal(variance, theirs)


def stays_away(rank, ranks, how):
    one = layer(timeout=2)
    x = torch.randn(4, 2, dtype=torch.float64)
    one(x)
    if rank == 1:
        if how == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        if how == "eval":
            one.eval()
        if how == "frozen":
            batchnorm.freeze(one)
        if how == "asleep":
            time.sleep(6)
        return refusal(lambda: one(x))
    return refusal(lambda: one(x))


@pytest.mark.slow
@pytest.mark.parametrize("how", ["eval", "frozen", "asleep"])
def test_a_rank_that_stays_away_is_named(how):
    (told, seconds), _ = world.run(stays_away, 2, how)
    assert "rank 1 did not come" in told
    assert "layer BatchNorm1d(2) (forward, call 2)" in told
    assert seconds < 8


def started_over(rank, ranks):
    """The process group is destroyed and made anew: the layer registers again, in a new state."""
    one = layer()
    x = torch.arange(8, dtype=torch.float64).reshape(4, 2) * (rank + 1)
    before = one(x)
    store = dist.distributed_c10d._get_default_store()
    dist.destroy_process_group()
    dist.init_process_group("gloo", store=dist.PrefixStore("again", store), rank=rank, world_size=ranks)
    return before.detach(), one(x).detach()


def test_a_new_process_group_is_registered_anew():
    for before, after in world.run(started_over, 2):
        assert torch.equal(before, after)


def asleep_in_ddp(rank, ranks, broadcasts, step):
    """Between two steps, so that the others wait in what DDP itself says to its counterparts."""
    net = nn.Sequential(nn.Linear(2, 2), layer(timeout=2)).double()
    options = {"forward_sync_buffers": broadcasts}
    wrapped = DistributedDataParallel(net, **options)
    x = torch.randn(4, 2, dtype=torch.float64)
    for here in range(5):
        if rank == 1 and here == step:
            time.sleep(6)
        told = refusal(lambda: wrapped(x).sum().backward())
        if told[0] is not None:
            return here, *told
    return None


@pytest.mark.slow
@pytest.mark.parametrize(("broadcasts", "step"), [(False, 1), (True, 1), (True, 3), (False, 3)])
def test_a_rank_that_hangs_where_ddp_talks_is_named(broadcasts, step):
    (here, told, seconds), _ = world.run(asleep_in_ddp, 2, broadcasts, step)
    assert here == step
    assert "rank 0 waited 2 s for its sum; rank 1 did not come" in told
    place = "the forward of DistributedDataParallel" if broadcasts or step == 1 else "layer 'module.1' (BatchNorm1d)"
    assert f"every rank must reach {place}" in told
    assert seconds < 6


class Slow(torch.autograd.Function):
    """The identity, whose backward takes its time."""

    @staticmethod
    def forward(ctx, x, seconds):
        ctx.seconds = seconds
        return x.clone()

    @staticmethod
    def backward(ctx, g):
        time.sleep(ctx.seconds)
        return g, None


def asleep_in_backward(rank, ranks):
    """After the backward of the last layer, so that the others wait for DDP's sum of gradients."""
    first, norm = nn.Linear(2, 2).double(), layer(timeout=2)
    net = nn.Sequential(first, norm)
    net.forward = lambda x, seconds: norm(Slow.apply(first(x), seconds))
    wrapped = DistributedDataParallel(net, forward_sync_buffers=False)
    x = torch.randn(4, 2, dtype=torch.float64)
    for step in range(3):
        seconds = 6 if rank == 1 and step == 2 else 0
        told = refusal(lambda seconds=seconds: wrapped(x, seconds).sum().backward())
        if told[0] is not None:
            return step, *told
    return None


@pytest.mark.slow
def test_a_rank_that_hangs_while_ddp_adds_up_gradients_is_named():
    (step, told, seconds), _ = world.run(asleep_in_backward, 2)
    assert step == 2
    assert "every rank must reach the end of the backward; rank 0 waited 2 s for its sum; rank 1 did not come" in told
    assert seconds < 6


def counted(rank, ranks):
    net = nn.Sequential(nn.Linear(2, 2), layer()).double()
    wrapped = DistributedDataParallel(net, forward_sync_buffers=False)
    x, counts = torch.randn(4, 2, dtype=torch.float64), []
    for step in range(6):
        with wrapped.no_sync() if step == 4 else contextlib.nullcontext():
            loss = wrapped(x).sum()
            if step == 2 and rank == 0:  # an evaluation by one rank alone
                with torch.no_grad():
                    wrapped.eval()(x)
                wrapped.train()
            loss.backward()
        counts.append(net[1].__dict__["_partners"].state.messages)
    twin = copy.deepcopy(net[1])
    assert "_partners" not in twin.__dict__ or twin.__dict__["_partners"] is None
    return counts


def test_the_checks_before_ddp_cost_one_message_a_backward():
    # Two a step and one at the end of a backward that adds up gradients; a second forward in the first step, and one
    # before DDP compares its buckets.
    assert world.run(counted, 2) == [[4, 8, 11, 14, 16, 19]] * 2
