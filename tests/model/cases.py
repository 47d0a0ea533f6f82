"""Random cases: the choices of a layer as plain values, and batches of every kind, hostile ones included."""

import random
from typing import Any, NamedTuple

import torch


class Extent(NamedTuple):
    """Groups of at least `size` samples (None: the batch), and whether each meets what its predecessor left."""

    size: int | None = None
    sequential: bool = False


class Estimator(NamedTuple):
    kind: str = "ema"
    momentum: Any = 0.1
    correction: int = 1
    total: bool = False
    sigma: bool = False
    debias: bool = False
    size: int = 2
    power: float = 1.0
    scale: float = 1.0


class Coupling(NamedTuple):
    kind: str = "batch"
    r_max: float = 1.0
    d_max: float = 0.0
    schedule: Any = None
    gradient: bool = True
    window: int = 2
    warmup: int = 0
    correct_after: int = 0
    backward_decay: float = 0.9
    filter_outliers: bool = False
    clamp: float | None = None
    layer_scaling: bool = False


class Mixture(NamedTuple):
    weight: float | None = None
    prior: float | None = None
    per: str = "example"


class Policy(NamedTuple):
    nonfinite: str = "skip"
    too_few: str = "raise"
    reliability: bool = False


class Case(NamedTuple):
    extent: Extent = Extent()
    estimator: Estimator = Estimator()
    coupling: Coupling = Coupling()
    inference: Mixture | None = None
    policy: Policy = Policy()
    eps: float = 1e-5
    tracks: bool = True
    activation: str | None = None
    slope: float = 0.01
    channels: int = 2
    sizes: tuple = ()
    channels_last: bool = False
    trained: bool = False
    step: int = 0
    steps: tuple = ()


class Step(NamedTuple):
    """One batch: how many samples, what is wrong with them, and whether a mask, weights or a residual come along."""

    training: bool
    samples: int
    data: str
    weighting: str | None
    residual: bool


def falling(power, scale):
    return lambda step: (scale / step.double() ** power).clamp_max(1.0)


def quick_then_slow(step):
    return 1 / (step + 1)


def widening(done):
    return 1 + done / (done + 2), done / (done + 1)


DATA = ("finite", "finite", "finite", "nan", "inf", "both infinities", "constant", "one value", "empty", "far")
WEIGHTING = (None, None, "mask", "mask", "weights", "below one", "one left", "all padding", "group of padding")


def draw(seed):
    """The case of a seed."""
    r = random.Random(seed)

    def flip(chance=0.5):
        return r.random() < chance

    coupling = Coupling(
        r.choice(("batch", "second moment", "renorm", "population", "mabn", "power", "unified", "online")),
        r_max=r.choice((1.0, 1.2, 3.0)), d_max=r.choice((0.0, 0.3, 5.0)),
        schedule=r.choice((None, None, "paper", "crossq", widening)), gradient=flip(0.7), window=r.randint(1, 3),
        warmup=r.choice((0, 0, 1, 2)), correct_after=r.choice((0, 2)), backward_decay=r.choice((0.9, 0.5)),
        filter_outliers=flip(), clamp=r.choice((None, 0.7)),
    )  # fmt: skip
    coupling = coupling._replace(layer_scaling=coupling.clamp is None and flip())
    sequential = coupling.kind == "online" or (
        coupling.kind in ("batch", "second moment", "renorm", "population") and flip(0.2)
    )
    size = 1 if coupling.kind == "online" else r.choice((None, None, 1, 2, 3))
    extent = Extent(size or 2, True) if sequential else Extent(size)
    policy = Policy(r.choice(("skip", "skip", "propagate", "raise")), r.choice(("raise", "population")), flip())
    estimator = drawn_estimator(r, flip, sequential, coupling.kind, policy)
    spatial = r.choice(((), (), (1,), (3,), (2, 2), (60,)))
    case = Case(
        extent, estimator, coupling, drawn_mixture(r), policy, eps=r.choice((1e-5, 1e-3)), tracks=flip(0.93),
        activation=r.choice((*[None] * 4, "relu", "leaky_relu", "relu6", "silu", "hardswish", "gelu")),
        slope=r.choice((0.01, 0.3)),
        channels=r.choice((1, 2, 3, 17)), sizes=spatial, trained=flip(0.3), step=r.choice((0, 0, 0, 20_000, 200_000)),
    )  # fmt: skip
    rows = [drawn_step(r, flip, training) for training in [True] * r.randint(2, 4) + [False]]
    if case.activation in ("relu6", "silu", "hardswish", "gelu"):
        # What torch's say of NaN and infinity depends on where in a vector they stand.
        # Far from zero, Online's controllers are all rounding, which a curve's slope turns into more.
        out = ("nan", "inf", "both infinities", *(("far",) if case.coupling.kind == "online" else ()))
        rows = [row._replace(data="finite") if row.data in out else row for row in rows]
        # One value has no unbiased variance: propagated, it is a NaN as well.
        case = case._replace(
            policy=policy._replace(nonfinite="skip" if policy.nonfinite == "propagate" else policy.nonfinite)
        )
    return case._replace(channels_last=len(case.sizes) == 2 and flip(), steps=tuple(rows))


def drawn_estimator(r, flip, sequential, coupling, policy):
    kind = "ema" if sequential else r.choice(("ema", "ema", "cumulative", "diminishing", "pooled", "window"))
    estimator = Estimator(kind, correction=r.randint(0, 1), size=r.randint(1, 3))
    if kind in ("ema", "cumulative", "diminishing"):
        word = r.choice(("total", "sigma", "neither"))
        estimator = estimator._replace(total=word == "total", sigma=word == "sigma" and coupling != "population")
    if kind == "window":
        estimator = estimator._replace(total=flip() and not policy.reliability, momentum=None)
    if kind == "pooled":
        return estimator._replace(kind="ema") if policy.reliability else estimator._replace(momentum=None)
    if kind == "cumulative":
        return estimator._replace(momentum=None)
    if kind == "diminishing":
        power, scale = r.choice((1.0, 0.6)), r.choice((1.0, 0.7))
        return estimator._replace(power=power, scale=scale, momentum=falling(power, scale))
    if kind == "ema":
        estimator = estimator._replace(
            momentum=r.choice((0.1, 0.3, 1.0, 0.0, None, *(() if sequential else (quick_then_slow,))))
        )
        return estimator._replace(debias=flip() and not sequential)
    return estimator


def drawn_mixture(r):
    weight = r.choice((None, None, None, 0.0, 0.3, 1.0, "prior"))
    if weight is None:
        return None
    per = r.choice(("example", "batch"))
    return Mixture(prior=4.0, per=per) if weight == "prior" else Mixture(weight, per=per)


def drawn_step(r, flip, training):
    data, weighting = r.choice(DATA), r.choice(WEIGHTING)
    samples = {"empty": 0, "one value": 1}.get(data, r.randint(2, 7))
    return Step(training, samples, data, weighting, flip(0.2))


def tensors(case, index, seed):
    """x, the output's gradient, weights or mask `(N, 1, *)` and the residual of one step, in float32 values."""
    step, generator = case.steps[index], torch.Generator().manual_seed(seed * 16 + index)
    shape = (step.samples, case.channels, *case.sizes)

    def randn(*size):
        return torch.randn(size, generator=generator)

    channel = torch.arange(case.channels).reshape(1, -1, *[1] * len(case.sizes))
    x, g = randn(*shape) * (1 + 0.5 * channel) + index - channel * 0.7, randn(*shape)
    if step.data == "far":
        x = x + 100
    if step.data == "constant":
        x = torch.zeros_like(x) + channel
    w = weights(step, (step.samples, 1, *case.sizes), generator)
    if x.numel() and step.data in ("nan", "inf", "both infinities"):
        for _ in range(2 if step.data == "both infinities" else 1):
            at = tuple(int(torch.randint(n, (1,), generator=generator)) for n in shape)
            x[at] = torch.nan if step.data == "nan" else torch.inf if _ == 0 else -torch.inf
    return x, g, w, randn(*shape) if step.residual else None


def weights(step, shape, generator):
    """The mask or weights of a step, or None."""
    n, kind = torch.Size(shape).numel(), step.weighting
    if kind is None:
        return None
    chosen = torch.rand(shape, generator=generator) > 0.4
    if kind == "all padding":
        return torch.zeros(shape, dtype=torch.bool)
    if kind == "one left":
        return (torch.arange(n) == n // 2).reshape(shape)
    if kind == "group of padding":
        chosen = torch.ones(shape, dtype=torch.bool)
        chosen[: (step.samples + 1) // 2] = False
        return chosen
    if kind == "mask":
        return chosen
    real = torch.rand(shape, generator=generator) + (0.5 if kind == "weights" else 0.0)
    return torch.where(chosen, real, 0.0) * (2.0 if kind == "weights" else 0.4)
