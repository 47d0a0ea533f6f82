"""The native way over processes against the spelled one, and branches that share a message against one each."""

import contextlib

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import batchnorm
from batchnorm import kernels
from tests.distributed import world

SIZES = {2: (4, 2), 3: (3, 0, 5)}
STEPS = 4


def branches(**options):
    """Two branches of a block, one with an activation and channels last."""
    extent = batchnorm.layers.Sync(timeout=30)
    torch.manual_seed(5)
    made = nn.ModuleList(
        [
            batchnorm.BatchNorm(3, extent=extent, dtype=torch.float64, activation="relu", **options),
            batchnorm.BatchNorm(5, extent=extent, dtype=torch.float64, channel_axis=-1, **options),
        ]
    )
    for parameter in made.parameters():
        nn.init.normal_(parameter)
    return made


def steps(layers, sizes, rank, together):
    """Steps on this rank's part, or on the whole where rank is None; the mean jumps, so that a shift is far off."""
    start, stop = (0, sum(sizes)) if rank is None else (sum(sizes[:rank]), sum(sizes[: rank + 1]))
    generator = torch.Generator().manual_seed(2)
    rows = []
    for step in range(STEPS):
        x, y = (torch.randn(sum(sizes), *shape, generator=generator, dtype=torch.float64) for shape in ((3, 4), (4, 5)))
        leaves = [(t + (1e7 if step == 2 else step))[start:stop].clone().requires_grad_() for t in (x, y)]
        if together:
            outputs = batchnorm.forward_together(layers, leaves)
        else:
            outputs = [layer(leaf) for layer, leaf in zip(layers, leaves, strict=True)]
        layers.zero_grad()
        # In the last step nobody needs the first branch.
        sum(y.pow(3).sum() for y in outputs[step == STEPS - 1 :]).backward()
        zeros = [torch.zeros_like(leaf) if leaf.grad is None else leaf.grad for leaf in leaves]
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in layers.parameters()]
        rows.append(([y.detach() for y in outputs], zeros, gradients))
    return rows, [b.clone() for b in layers.buffers()]


def on_rank(rank, ranks, backends, together):
    kernels.use(backends[rank])
    layers = branches()
    found = steps(layers, SIZES[ranks], rank, together)
    return *found, layers[0].__dict__["_partners"].state.messages


@pytest.mark.parametrize(
    ("ranks", "backends", "together"),
    [
        (2, ("native", "native"), True),
        (2, ("native", "reference"), False),
        pytest.param(3, ("native", "native", "native"), True, marks=pytest.mark.slow),
        pytest.param(3, ("native", "native", "reference"), False, marks=pytest.mark.slow),
    ],
)
def test_however_it_is_computed_it_is_one_process_on_the_whole(ranks, backends, together):
    results = world.run(on_rank, ranks, backends, together)
    whole, buffers = steps(branches(), SIZES[ranks], None, together)
    for step, (outputs, dx, parameters) in enumerate(whole):
        parts = [rows[step] for rows, _, _ in results]
        # Where the mean is 1e7 times the deviation, as many digits are gone from x itself.
        loose = 1e-7 if step == 2 else 1e-10
        for k in (0, 1):
            assert torch.allclose(torch.cat([part[0][k] for part in parts]), outputs[k], atol=loose)
            assert torch.allclose(torch.cat([part[1][k] for part in parts]), dx[k], atol=loose)
        for k, expected in enumerate(parameters):
            assert torch.allclose(sum(part[2][k] for part in parts), expected, atol=100 * loose)
    for _, mine, messages in results:
        assert all(torch.allclose(a.double(), b.double(), rtol=1e-9) for a, b in zip(mine, buffers, strict=True))
        # The same bits on every rank, whoever computed them.
        assert all(torch.equal(a, b) for a, b in zip(mine, results[0][1], strict=True))
        # One forward and one backward a step; a second forward in the first and where the mean jumped and came back.
        # One each, the first branch of the last step has no backward.
        assert messages == (2 * STEPS + 3 if together else 2 * (2 * STEPS + 3) - 1)


VARIANTS = {
    "plain": {},
    "cumulative": {"momentum": None},
    "debiased": {"estimator": batchnorm.layers.EMA(0.9, debias=True)},
    "total": {"estimator": batchnorm.layers.EMA(0.9, total=True)},
    "pooled": {"method": "pooled"},
    "no affine": {"affine": False},
    "no bias": {"bias": False},
    "no statistics": {"track_running_stats": False},
    "leaky": {"activation": "leaky_relu"},
    "population": {"policy": batchnorm.layers.Policy(too_few="population")},
}


def both_ways(rank, ranks):
    """Each variant natively and spelled in torch operations, on images in every layout and dtype."""
    apart = {}
    for name, options in VARIANTS.items():
        for dtype in (torch.float32, torch.float64, torch.bfloat16):
            for layout in (torch.contiguous_format, torch.channels_last):
                found = []
                for backend in ("native", "reference"):
                    kernels.use(backend)
                    found.append(two_steps(name, options, rank, dtype, layout))
                kernels.use()
                pairs = zip(*found, strict=True)
                apart[name, str(dtype), str(layout)] = max(float((a - b).abs().max()) for a, b in pairs)
    return apart


def two_steps(name, options, rank, dtype, layout):
    extent = batchnorm.layers.Sync(timeout=30)
    one = batchnorm.BatchNorm2d(4, extent=extent, **options)
    one = one.double() if dtype == torch.float64 else one
    found = []
    for step in range(2):
        generator = torch.Generator().manual_seed(10 * step + rank)
        x = (torch.randn(3 - rank, 4, 5, 6, generator=generator) * 2 + 3).to(dtype).to(memory_format=layout)
        leaf = x.requires_grad_()
        watching = FlopCounterMode(display=False) if step else contextlib.nullcontext()
        with batchnorm.accumulate(one) if name == "plain" and step else contextlib.nullcontext():
            y = one(leaf)
        with watching:  # sees operations, so the backward must be spelled
            y.backward(torch.randn(x.shape, generator=generator).to(dtype).transpose(2, 3).contiguous().transpose(2, 3)
                       if step else torch.ones((), dtype=dtype).expand_as(y))  # fmt: skip
        found += [y.detach().double(), leaf.grad.double(), *(p.grad.double() for p in one.parameters())]
        found += [b.double() for b in one.buffers()]
    return found


def test_native_and_spelled_agree_for_every_choice_and_layout():
    for apart in world.run(both_ways, 2):
        for (name, dtype, layout), difference in apart.items():
            # bfloat16 has 8 bits; weights take sums of 45 gradients.
            limit = {"torch.float64": 1e-11, "torch.float32": 5e-5, "torch.bfloat16": 0.2}[dtype]
            assert difference < limit, (name, dtype, layout)


def hooked(rank, ranks):
    layers, seen = branches(), []
    if rank == 0:  # as `watch` on rank 0 alone
        layers[0].register_forward_pre_hook(lambda module, args: seen.append(args[0].shape))
        layers[0].register_forward_hook(lambda module, args, output: output * 2)
    x = [torch.randn(4, 3, 2, dtype=torch.float64), torch.randn(4, 2, 5, dtype=torch.float64)]
    y = batchnorm.forward_together(layers, x)
    layers.eval()
    inference = batchnorm.forward_together(layers, x)
    for layer, one, got in zip(layers, x, inference, strict=True):
        assert torch.equal(layer(one), got)
    with pytest.raises(batchnorm.BatchNormError, match="inputs must be one for each of 2 layers"):
        batchnorm.forward_together(layers, x[:1])
    return seen, float(y[0].std()), float(y[1].std())


def test_hooks_are_called_and_may_differ_over_ranks():
    (seen, doubled, _), (none, plain, _) = world.run(hooked, 2)
    assert seen[0] == (4, 3, 2)
    assert none == []
    assert doubled > plain


def masked(rank, ranks):
    """What cannot go together runs one after the other."""
    layers = branches()
    x = [torch.ones(4, 3, 2, dtype=torch.float64).cumsum(0) + rank, torch.ones(4, 2, 5, dtype=torch.float64).cumsum(0)]
    with batchnorm.masked(layers, torch.tensor([True, True, True, False])[:, None].expand(4, 2)):
        y = batchnorm.forward_together(layers, x)
    return float(y[0][3].detach().abs().max()), layers[0].__dict__["_partners"].state.messages


def test_a_mask_makes_them_run_alone():
    assert world.run(masked, 2) == [(0.0, 4), (0.0, 4)]


def refused(rank, ranks):
    """One value on all ranks together, and a batch that is not finite where that is an error."""
    told = []
    for x, options in (
        (torch.ones(1 - rank, 3, dtype=torch.float64), {}),
        (torch.full((4, 3), torch.inf if rank else 1.0), {"policy": batchnorm.layers.Policy(nonfinite="raise")}),
    ):
        one = batchnorm.BatchNorm1d(3, extent=batchnorm.layers.Sync(timeout=30), dtype=x.dtype, **options)
        with pytest.raises(batchnorm.BatchNormError) as caught:
            one(x.requires_grad_())
        told.append((str(caught.value), one.running_mean.tolist(), int(one.num_batches_tracked)))
    return told


def test_what_cannot_be_normalised_is_refused_on_every_rank():
    for few, broken in world.run(refused, 2):
        assert few == (
            "training needs at least 2 unmasked values per channel, over all ranks: layer BatchNorm1d(3)",
            [0.0, 0.0, 0.0],
            0,
        )
        assert broken == ("batch statistics must be finite: layer BatchNorm1d(3)", [0.0, 0.0, 0.0], 0)
