"""Statistics shared over processes: each rank's numbers are those of one process on the concatenated batch."""

import copy
from dataclasses import dataclass

import pytest
import torch
from torch import nn

import batchnorm
from batchnorm.layers import METHODS, Coupling, Numbers, Vectors
from tests.distributed import world
from tests.subjects import SHORT

# One at a time by nature: a stream of samples, and slopes over the weights of one process.
ALONE = ("online", "cbn")
# Ghost groups of two lie inside ranks, so the whole batch has the same groups.
SIZES = {2: (4, 2), 3: (4, 0, 6), 4: (2, 6, 0, 2), 8: (2, 0, 4, 2, 0, 2, 6, 2)}


def layer_of(method, dtype):
    """The method with its extent over ranks."""
    options = dict(SHORT.get(method, {}))
    options["extent"] = batchnorm.layers.Sync(timeout=30)
    if method == "ghost":
        options["extent"] = batchnorm.layers.Sync(batchnorm.layers.Ghost(2), timeout=30)
    layer = batchnorm.BatchNorm1d(3, method=method if method not in ("masked", "weighted") else "batchnorm",
                                  dtype=dtype, **options)  # fmt: skip
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([1.0, 2.0, -0.5]))
    return layer


def batches(total, dtype):
    generator = torch.Generator().manual_seed(3)
    for step in range(3):
        x = torch.randn(total, 3, 4, dtype=torch.float64, generator=generator) * (1 + step) + 2 * step
        g = torch.randn(total, 3, 4, dtype=torch.float64, generator=generator)
        mask = torch.rand(total, 4, generator=generator) > 0.3
        # Two samples weigh more than 1 together, as repetitions must.
        weights = torch.rand(total, generator=generator, dtype=torch.float64) + 0.6
        yield x.to(dtype), g.to(dtype), mask, weights.to(dtype)


def steps(layer, sizes, rank, kind, dtype):
    """Three training steps on this rank's part, or the whole where rank is None."""
    start = 0 if rank is None else sum(sizes[:rank])
    stop = sum(sizes) if rank is None else start + sizes[rank]
    rows = []
    for x, g, mask, weights in batches(sum(sizes), dtype):
        leaf = x[start:stop].clone().requires_grad_()
        given = {"mask": {"mask": mask[start:stop]}, "weights": {"weights": weights[start:stop]}}.get(kind, {})
        y = layer(leaf, **given)
        layer.zero_grad()
        y.backward(g[start:stop])
        rows.append((y.detach(), leaf.grad, layer.weight.grad.clone(), layer.bias.grad.clone()))
    return rows, {name: b.clone() for name, b in layer.named_buffers()}


def on_rank(rank, ranks, dtype):
    results = {}
    for method in METHODS:
        if method in ALONE:
            continue
        for kind in ("plain", "mask", "weights"):
            results[method, kind] = steps(layer_of(method, dtype), SIZES[ranks], rank, kind, dtype)
    return results


@pytest.mark.parametrize(
    ("ranks", "dtype"),
    [
        (2, torch.float64),
        pytest.param(3, torch.float64, marks=pytest.mark.slow),
        pytest.param(4, torch.float64, marks=pytest.mark.slow),
        pytest.param(8, torch.float64, marks=pytest.mark.slow),
        pytest.param(3, torch.float32, marks=pytest.mark.slow),
    ],
)
def test_ranks_equal_one_process_on_the_whole_batch(ranks, dtype):
    tolerance = 1e-10 if dtype == torch.float64 else 1e-5
    by_rank = world.run(on_rank, ranks, dtype)
    for key in by_rank[0]:
        method, kind = key
        whole = layer_of(method, dtype)
        rows, buffers = steps(whole, SIZES[ranks], None, kind, dtype)
        for step, (y, dx, dw, db) in enumerate(rows):
            parts = [result[key][0][step] for result in by_rank]
            assert torch.allclose(torch.cat([p[0] for p in parts]), y, rtol=tolerance, atol=tolerance), key
            assert torch.allclose(torch.cat([p[1] for p in parts]), dx, rtol=tolerance, atol=tolerance), key
            assert torch.allclose(sum(p[2] for p in parts), dw, rtol=tolerance, atol=10 * tolerance), key
            assert torch.allclose(sum(p[3] for p in parts), db, rtol=tolerance, atol=10 * tolerance), key
        for result in by_rank:
            for name, value in buffers.items():
                assert torch.allclose(result[key][1][name], value, rtol=tolerance, atol=tolerance), (key, name)


def far_mean(rank, ranks):
    layer = batchnorm.BatchNorm1d(1, extent=batchnorm.layers.Sync(timeout=30), dtype=torch.float64, momentum=1.0)
    variances = []
    for centre in (1e7, 0.0, -1e9):  # the shift of the last step is far off every time
        x = torch.tensor([[0.0], [1.0]], dtype=torch.float64) + rank + centre
        layer(x)
        variances.append(float(layer.running_var))
    return variances


def test_a_mean_far_from_the_shift_costs_no_digits():
    exact = float(torch.tensor([0.0, 1.0, 1.0, 2.0], dtype=torch.float64).var())
    for variances in world.run(far_mean, 2):
        assert variances == pytest.approx([exact] * 3, rel=1e-7)


def bad_batches(rank, ranks):
    layer = batchnorm.BatchNorm1d(2, extent=batchnorm.layers.Sync(timeout=30))
    x = torch.randn(4, 2, generator=torch.Generator().manual_seed(rank))
    if rank == 1:
        x[0, 0] = torch.nan
    layer(x)
    return layer.running_mean.clone(), int(layer.num_batches_skipped), int(layer.num_batches_tracked)


def test_a_batch_poisoned_on_one_rank_is_skipped_on_all():
    for mean, skipped, tracked in world.run(bad_batches, 2):
        assert torch.equal(mean, torch.zeros(2))
        assert (skipped, tracked) == (1, 0)


def disagreeing(rank, ranks):
    torch.manual_seed(0)
    told = {}
    layer = batchnorm.BatchNorm1d(2 + rank, extent=batchnorm.layers.Sync(timeout=10))
    try:
        layer(torch.randn(4, 2 + rank))
    except batchnorm.BatchNormError as error:
        told["channels"] = str(error)
    first, second = (batchnorm.BatchNorm1d(2, extent=batchnorm.layers.Sync(timeout=10)) for _ in range(2))
    model = nn.ModuleDict({"a": first, "b": second})
    model.forward = lambda x, order: [model[name](x) for name in order]
    x = torch.randn(4, 2)
    model(x, "ab")
    try:
        model(x, "ab" if rank == 0 else "ba")
    except batchnorm.BatchNormError as error:
        told["order"] = str(error)
    return told


def test_ranks_that_disagree_say_how():
    for told in world.run(disagreeing, 2):
        assert "channels: 2 here, 3 there" in told["channels"] or "channels: 3 here, 2 there" in told["channels"]
        assert "the same order" in told["order"]


def waiting(rank, ranks):
    layer = batchnorm.BatchNorm1d(2, extent=batchnorm.layers.Sync(timeout=2))
    x = torch.randn(4, 2)
    layer(x)
    if rank == 1:
        return None  # as a rank that raised or was killed
    try:
        layer(x)
    except batchnorm.BatchNormError as error:
        return str(error)


def test_a_rank_that_does_not_come_is_named():
    told, _ = world.run(waiting, 2, timeout=20)
    assert "layer BatchNorm1d(2)" in told
    assert "rank 1 did not come" in told


def second_derivative(rank, ranks):
    layer = batchnorm.BatchNorm1d(2, extent=batchnorm.layers.Sync(timeout=30), dtype=torch.float64)
    x = torch.randn(6, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1))[3 * rank : 3 * rank + 3]
    x = x.clone().requires_grad_()
    (first,) = torch.autograd.grad(layer(x).pow(3).sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(first.square().sum(), x)
    return first.detach(), second


@pytest.mark.slow
def test_second_derivatives_cross_ranks():
    layer = nn.BatchNorm1d(2, dtype=torch.float64)
    x = torch.randn(6, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).requires_grad_()
    (first,) = torch.autograd.grad(layer(x).pow(3).sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(first.square().sum(), x)
    results = world.run(second_derivative, 2)
    assert torch.allclose(torch.cat([r[0] for r in results]), first, atol=1e-10)
    assert torch.allclose(torch.cat([r[1] for r in results]), second, atol=1e-9)


def test_one_process_is_the_batch():
    x = torch.randn(6, 2)
    synced, plain = batchnorm.BatchNorm1d(2, extent=batchnorm.layers.Sync()), batchnorm.BatchNorm1d(2)
    assert torch.equal(synced(x), plain(x))
    twin = copy.deepcopy(synced)
    assert torch.equal(twin(x), plain(x))


@dataclass(frozen=True, eq=False)
class Share(Coupling):
    """One learned number in three places."""

    p: torch.Tensor

    def plan(self, state, now):
        return Numbers(self.p, self.p), Vectors(state.mean, rest=(1 - self.p) * state.var)


def learned(rank, ranks, sizes):
    """The gradients of a learned share, and of weight, on this rank's part."""
    p = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    extent = None if rank is None else batchnorm.layers.Sync(timeout=30)
    layer = batchnorm.BatchNorm1d(3, coupling=Share(p), extent=extent, dtype=torch.float64)
    start = 0 if rank is None else sum(sizes[:rank])
    stop = sum(sizes) if rank is None else start + sizes[rank]
    for x, g, *_ in batches(sum(sizes), torch.float64):
        (layer(x[start:stop]) * g[start:stop]).sum().backward()
    return p.grad, layer.weight.grad


@pytest.mark.parametrize("ranks", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_gradients_of_learned_numbers_sum_to_those_of_one_process(ranks):
    sizes = SIZES[ranks]
    found = world.run(learned, ranks, sizes)
    for mine, *theirs in zip(learned(None, 1, sizes), *found, strict=True):
        assert torch.allclose(sum(theirs), mine, rtol=1e-10)
