"""The rule against autograd of what it says, and natively against torch, for numbers of every kind."""

import random
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch

from batchnorm import BatchNorm1d, kernels
from batchnorm.kernels import native, reference
from batchnorm.layers import UNCENTRED, Coupling, Ghost, Moments, Move, Numbers, Pull, Vectors, rule

C, EPS, DOUBLE = 3, 1e-4, torch.float64


def randn(*shape, seed=0):
    return torch.randn(shape, dtype=DOUBLE, generator=torch.Generator().manual_seed(seed))


def drawn(seed):
    """Numbers and vectors of every kind."""
    r = random.Random(seed)
    share, log = r.choice((0.0, 0.3, 1.0)), r.random() < 0.3
    numbers = Numbers(
        r.choice((0.0, 0.4, 1.0)), share, r.choice((0.0, 1 - share, 1.0)), log, r.choice((1.0, 0.8)),
        r.choice((1.0, 1.3)), r.random() < 0.5, r.choice((0.0, 0.2)),
    )  # fmt: skip
    pm, pv, rest = randn(C, seed=seed), randn(C, seed=seed + 1).square() + 0.2, randn(C, seed=seed + 2).square() + 0.1
    return numbers, Vectors(pm if r.random() < 0.8 else None, pv, rest.log() if log else rest)


def moments(x, groups=1):
    raw = reference.reduce(x, None, groups)
    return Moments(raw.count, raw.mean, raw.m2, raw.count_squared)


@pytest.mark.parametrize("seed", range(30))
def test_the_pull_is_the_derivative_of_the_plan(seed):
    numbers, vectors = drawn(seed)
    x, g, weight, bias = (randn(*s, seed=seed + i) for i, s in enumerate(((9, C, 2), (9, C, 2), (C,), (C,)), 3))
    leaves = {name: t.clone().requires_grad_() for name, t in {"x": x, "weight": weight, "bias": bias}.items()}
    k = numbers._replace(mean=torch.tensor([0.2, 0.5, 0.9], dtype=DOUBLE), share=randn(C).square())
    rows = rule.plan(moments(leaves["x"], 2), k, vectors, EPS)
    y = reference.apply(leaves["x"], rows.mean, *rule.affine(rows, leaves["weight"], leaves["bias"]))
    expected = dict(zip(leaves, torch.autograd.grad(y, list(leaves.values()), g), strict=True))
    with torch.no_grad():
        batch = moments(x, 2)
        rows = rule.plan(batch, k, vectors, EPS)
        sums = reference.backward_reduce(g, x, rows.mean, rows.invstd)
        scale, u, w = rule.pull(rows, weight, *sums)
        got = {"x": reference.backward_apply(g, x, rows.centre, scale, u.expand_as(scale), w.expand_as(scale))}
        got["weight"], got["bias"] = rule.parameters(rows, *sums)
    # The ratio is a constant to the gradient of the output, and quiet to the output alone: no derivative is left to it.
    if not (numbers.quiet and (numbers.low, numbers.high) != (1, 1)):
        for name, value in got.items():
            assert torch.allclose(value, expected[name], rtol=1e-9, atol=1e-10), name


@dataclass(frozen=True)
class Given(Coupling):
    """The numbers as they are."""

    numbers: Any = field(compare=False)
    vectors: Any = field(compare=False)
    own: Any = None

    @property
    def centres(self):
        return self.numbers is not UNCENTRED

    @property
    def exact(self):
        return self.own is None

    def plan(self, state, now):
        return self.numbers, self.vectors

    def pull(self, state, now, numbers, sums):
        return self.own


@pytest.mark.skipif(not native.built(), reason="the native kernels are not built")
@pytest.mark.parametrize("seed", range(40))
def test_the_extension_has_the_same_rule(seed):
    numbers, vectors = drawn(seed)
    own = Pull(0.3, 0.6, randn(C, seed=seed + 5), randn(C, seed=seed + 6)) if seed % 3 == 0 else None
    found = []
    for backend in ("native", "reference"):
        layer = BatchNorm1d(
            C, dtype=DOUBLE, coupling=Given(numbers, vectors, own), extent=Ghost(4) if seed % 2 else None
        )
        torch.nn.init.normal_(layer.weight, generator=torch.Generator().manual_seed(seed))
        x = randn(9, C, 2, seed=seed + 3).requires_grad_()
        kernels.use(backend)
        try:
            y = layer(x)
            y.backward(randn(9, C, 2, seed=seed + 4))
        finally:
            kernels.use()
        found.append((y, x.grad, layer.weight.grad, layer.bias.grad, layer.running_mean, layer.running_var))
    for one, other in zip(*found, strict=True):
        assert torch.allclose(one, other, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("how", [Move(0.1, 0.9, 0.1), Move(0.1, 0.9, 0.1, 0.09), Move(0.2, 0.8, 0.2, root=True)])
def test_a_stream_is_move_after_move(how):
    batch, mean, var = moments(randn(12, C, 2), 4), randn(C, seed=1), randn(C, seed=2).square()
    ok = torch.tensor([[True], [True], [False], [True]])
    (means, variances), last = rule.stream(batch, mean, var, EPS, how, ok)
    at = mean, var
    for i in range(4):
        assert torch.allclose(means[i], at[0])
        assert torch.allclose(variances[i], at[1])
        at = rule.move(batch.row(i), *at, EPS, how) if ok[i] else at
    assert torch.allclose(torch.stack(last), torch.stack(at))


@pytest.mark.parametrize("bad", [torch.inf, torch.nan])
def test_a_weight_of_zero_leaves_out_what_it_weighs(bad):
    batch = Moments(*(torch.full((1, C), value, dtype=DOUBLE) for value in (4.0, bad, bad)))
    rows = rule.plan(batch, rule.STORED, Vectors(torch.ones(C), rest=torch.ones(C)), EPS)
    assert torch.equal(rows.mean, torch.ones(1, C, dtype=DOUBLE))
    assert torch.isfinite(rows.invstd).all()
    assert torch.isfinite(rows.centre).all()
    mean, var = rule.move(batch, torch.ones(C), torch.ones(C), EPS, Move())
    assert torch.isfinite(mean).all()
    assert torch.isfinite(var).all()


@pytest.mark.parametrize(("word", "enters"), [("skip", False), ("raise", False), ("propagate", True)])
def test_what_may_enter(word, enters):
    one = torch.ones(C, dtype=DOUBLE)
    good, bad = Moments(one * 4, one, one), Moments(one * 4, one, one.clone().fill_(torch.nan))
    assert bool(rule.may_enter(good, one, word)[0])
    assert bool(rule.may_enter(bad, one, word)[0]) is enters
    assert not rule.may_enter(Moments(one * 0, one, one), one, word)[0]
    *_, skipped, sound = rule.may_enter(bad, one, word)
    assert bool(skipped) is not enters
    for batch, several in ((good, None), (Moments(one * 0, bad.mean, bad.m2), None), (bad, one < 0)):
        assert not rule.may_enter(batch, one, word, several)[1]
    assert (sound is not None and not sound) is (word == "raise")
