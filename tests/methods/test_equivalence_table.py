"""Every composition equals the same thing on the concatenated, compacted data.

The table is generated: how a batch is cut and counted (mask, weights, ghost groups, groups in sequence,
sync in one process, accumulation: alone and in pairs), times every coupling, times every
estimator. What must refuse is a rule of its own, `legal`, tested over the same product.
"""

import copy
from itertools import combinations, product

import pytest
import torch
from torch import nn

import batchnorm
from batchnorm import BatchNormError
from batchnorm.layers import (
    EMA,
    BatchCoupling,
    Cumulative,
    Diminishing,
    Ghost,
    Masked,
    Pooled,
    PopulationCoupling,
    SecondMoment,
    Sync,
    Weighted,
    Window,
)
from tests.methods.plain import Run, affine, close, data, randn, run

WAYS = ("mask", "weights", "ghost", "sequential", "sync", "accumulate")
CUTS = [(), *combinations(WAYS, 1), *combinations(WAYS, 2)]
COUPLINGS = {
    "batch": BatchCoupling(),
    "second-moment": SecondMoment(),
    "renorm": batchnorm.layers.Renorm(1.5, 0.5),
    "population": PopulationCoupling(),
    "constant-population": PopulationCoupling(gradient=False),
    "mabn": batchnorm.layers.MABN(window=2, warmup=1, correct_after=1),
    "power": batchnorm.layers.PowerNorm(warmup=1),
    "unified": batchnorm.layers.UnifiedNorm(window=2, warmup=1),
    "cbn": batchnorm.layers.CrossIteration(window=2, burn_in=1),
    "online": batchnorm.layers.OnlineNorm(clamp=None),
}
ESTIMATORS = {
    "ema": EMA(0.7),
    "biased": EMA(0.7, correction=0),
    "total": EMA(0.7, total=True, correction=0),
    "sigma": EMA(0.7, sigma=True, correction=0),
    "debiased": EMA(0.7, debias=True),
    "scheduled": EMA(lambda step: step.double() / (step + 2), debias=True),
    "cumulative": Cumulative(),
    "diminishing": Diminishing(0.5),
    "pooled": Pooled(),
    "window": Window(2),
    "window-total": Window(2, total=True),
}
SHAPE = (6, 3, 4)
STEPS = 3


def legal(ways, coupling, estimator):
    """Which choices can be combined; everything else must be refused in a sentence."""
    if {"mask", "weights"} <= set(ways):
        return False  # a mask is weights of 0 and 1: one of the two
    if len({"ghost", "sequential", "sync"} & set(ways)) > 1:
        return False  # one extent
    if estimator == "sigma" and "population" in coupling:
        return False  # an average of standard deviations has no linear share of the batch
    if coupling == "cbn" and set(ways) & {"mask", "weights", "ghost", "sequential", "accumulate"}:
        return False  # its slopes are those of whole single batches
    if coupling in ("mabn", "power", "unified") and "accumulate" in ways:
        return False  # their backward updates its averages with every micro-batch
    if coupling == "online" and "sequential" not in ways:
        return False  # only single samples in sequence have an order
    if "sequential" in ways:
        plain_average = estimator in ("ema", "biased", "total", "sigma")
        return plain_average and coupling not in ("mabn", "power", "unified", "cbn") and "accumulate" not in ways
    return True


def extent_of(ways, coupling):
    inner = None
    if "ghost" in ways:
        inner = Ghost(2)
    elif "sequential" in ways:
        inner = Ghost(1 if coupling == "online" else 2, "sequential")
    elif "sync" in ways:
        inner = Sync()
    for word, kind in (("mask", Masked), ("weights", Weighted)):
        if word in ways:
            inner = kind(inner) if inner is not None else kind()
    return inner


def layer_of(extent, coupling, estimator):
    options = {"coupling": COUPLINGS[coupling], "estimator": ESTIMATORS[estimator], "dtype": torch.float64}
    if coupling == "online" and extent is None:
        extent = Ghost(1, "sequential")
    layer = affine(batchnorm.BatchNorm(3, extent=extent, **options))
    if coupling == "cbn":
        layer.attach(BEFORE)
    return layer


BEFORE = nn.Linear(3, 3, bias=False, dtype=torch.float64)


def given_of(ways, step):
    """What counts in this step, one weight a position: at least two positions of every sample."""
    if "mask" in ways:
        keep = randn(SHAPE[0], SHAPE[2], seed=step) > 0
        keep[:, :2] = True
        return {"mask": keep}, keep.long()
    if "weights" in ways:
        weights = torch.randint(0, 3, (SHAPE[0], SHAPE[2]), generator=torch.Generator().manual_seed(step))
        weights[:, :2] = torch.tensor([1, 2])
        return {"weights": weights.double()}, weights
    return {}, torch.ones(SHAPE[0], SHAPE[2], dtype=torch.long)


def compacted(x, g, counts):
    """The positions that count, repeated as often as they do, as one sample `(1, C, M)`; g at the first of each."""
    index = torch.arange(counts.numel()).repeat_interleave(counts.flatten())
    first = torch.ones_like(index, dtype=torch.bool)
    first[1:] = index[1:] != index[:-1]
    flat_x, flat_g = (t.movedim(1, -1).reshape(-1, t.shape[1]) for t in (x, g))
    taken = torch.where(first[:, None], flat_g[index], 0.0)
    return flat_x[index].T[None], taken.T[None], index, first


def spread(values, index, shape, pick=None):
    """Compacted values `(1, C, M)` back at their positions; those of one position added up, or the picked ones."""
    flat = torch.zeros(shape[0] * shape[2], shape[1], dtype=torch.float64)
    values = values[0].T
    if pick is not None:
        index, values = index[pick], values[pick]
    flat.index_add_(0, index, values)
    return flat.reshape(shape[0], shape[2], shape[1]).movedim(-1, 1)


def run_compacted(layer, x, g, counts):
    packed_x, packed_g, index, first = compacted(x, g, counts)
    got = run(layer, packed_x, packed_g)
    return got._replace(y=spread(got.y, index, x.shape, first), dx=spread(got.dx, index, x.shape))


def joined(runs):
    dy, dx = (torch.cat([getattr(r, name) for r in runs]) for name in ("y", "dx"))
    return Run(dy, dx, sum(r.dweight for r in runs), sum(r.dbias for r in runs))


def backward_names(layer):
    return [name for name in layer.memory_names if name.startswith("backward")]


def expected_step(layer, ways, x, g, counts):
    """One training step spelled out on a plain layer, which it moves."""
    chunk = 3 if "accumulate" in ways else len(x)
    if "sequential" in ways:
        size = 1 if COUPLINGS["online"] == layer.recipe.coupling else 2
        parts = list(zip(*(t.split(size) for t in (x, g, counts)), strict=True))
        tracked = int(layer.num_batches_tracked)
        runs = [run_compacted(layer, *part) for part in parts]
        layer.num_batches_tracked.fill_(tracked + 1)
        return joined(runs)
    start, runs = copy.deepcopy(layer), []
    for micro in zip(*(t.split(chunk) for t in (x, g, counts)), strict=True):
        groups = max(1, len(micro[0]) // 2) if "ghost" in ways else 1
        sizes = [len(part) for part in torch.arange(len(micro[0])).tensor_split(groups)]
        twins, held = [], []
        for part in zip(*(t.split(sizes) for t in micro), strict=True):
            twins.append(copy.deepcopy(start))
            runs.append(run_compacted(twins[-1], *part))
            held.append(part[2].sum())
        # What backward remembers is linear in the groups: the mean of their copies, by what they hold.
        for name in backward_names(start):
            values = torch.stack([getattr(t, name).double() * n for t, n in zip(twins, held, strict=True)])
            buffer = getattr(start, name)
            buffer.copy_(
                (values.sum(0) / sum(held)).round() if buffer.dtype == torch.long else values.sum(0) / sum(held)
            )
    packed_x, packed_g, _, _ = compacted(x, g, counts)
    run(layer, packed_x, packed_g)
    for name in backward_names(start):
        getattr(layer, name).copy_(getattr(start, name))
    return joined(runs)


def actual_step(layer, ways, x, g, given):
    if "accumulate" not in ways:
        return run(layer, x, g, **given)
    with batchnorm.accumulate(layer):
        runs = [
            run(layer, *pair, **{name: value[i * 3 : i * 3 + 3] for name, value in given.items()})
            for i, pair in enumerate(zip(x.split(3), g.split(3), strict=True))
        ]
    return joined(runs)


TABLE = list(product(CUTS, COUPLINGS, ESTIMATORS))
LEGAL = [row for row in TABLE if legal(*row)]


def name_of(row):
    return f"{'+'.join(row[0]) or 'plain'}-{row[1]}-{row[2]}"


# Two estimators of different make run every time with everything; the whole table is for the slow suite.
ALWAYS = ("ema", "window-total")
ROWS = [row if row[2] in ALWAYS else pytest.param(row, marks=pytest.mark.slow) for row in LEGAL]


@pytest.mark.parametrize("row", ROWS, ids=[name_of(row) for row in LEGAL])
def test_composition_equals_compacted_data(row):
    ways, coupling, estimator = row
    layer = layer_of(extent_of(ways, coupling), coupling, estimator)
    plain = layer_of(None, coupling, estimator)
    for step in range(STEPS):
        x, g = data(step, *SHAPE), randn(*SHAPE, seed=step + 50)
        given, counts = given_of(ways, step)
        expected = expected_step(plain, ways, x, g, counts)
        got = actual_step(layer, ways, x, g, given)
        for name, a, b in zip(Run._fields, got, expected, strict=True):
            assert close(a, b, 1e-11), (name, step)
    for name, value in plain.state_dict().items():
        assert close(layer.state_dict()[name].double(), value.double(), 1e-11), name


def test_what_does_not_go_together_is_refused_in_a_sentence():
    refused = 0
    for ways, coupling, estimator in TABLE:
        if legal(ways, coupling, estimator):
            continue
        if len({"ghost", "sequential", "sync"} & set(ways)) > 1:
            continue  # cannot even be written down: a layer has one extent
        with pytest.raises(BatchNormError, match=r".{20,}"):
            attempt(ways, coupling, estimator)
        refused += 1
    assert refused > 400


def attempt(ways, coupling, estimator):
    """Construction and, for what only a call can know, one call."""
    extent = extent_of(ways, coupling)
    if extent is None and coupling == "online":
        extent = batchnorm.layers.Batch()
    layer = layer_of(extent, coupling, estimator)
    x, (given, _) = data(1, *SHAPE), given_of(ways, 1)
    if {"mask", "weights"} <= set(ways):
        given["weights"] = given["mask"].double()
    if "accumulate" in ways:
        with batchnorm.accumulate(layer):
            layer(x, **given)
    else:
        layer(x, **given)


def test_every_pair_of_ways_and_every_choice_is_in_the_table():
    seen = {(tuple(sorted(row[0])), row[1], row[2]) for row in LEGAL}
    assert len(seen) == len(LEGAL) > 1000
    for axis, names in ((1, COUPLINGS), (2, ESTIMATORS)):
        assert {row[axis] for row in LEGAL} == set(names)
    assert {way for row in LEGAL for way in row[0]} == set(WAYS)
