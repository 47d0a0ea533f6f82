"""Which statistics normalise a group in training, where the gradient is the derivative of the forward.

Each returns mean, variance, ratio and offset of `(x - mean) / sqrt(variance + eps) * ratio + offset`; what is constant
to the gradient is detached.
"""

import torch

from tests.model import estimators
from tests.model.groups import times


def batch(case, m, state, step, own_step):
    """The batch's mean and biased variance, or its second moment (Ioffe and Szegedy 2015)."""
    return m.mean, m.var, 1.0, 0.0


def renorm(case, m, state, step, own_step):
    """r and d clipped once, with sigma the root of the running variance (Ioffe 2017, algorithm 1)."""
    r_max, d_max = renorm_limits(case.coupling, step - 1)
    sigma = (state["running_var"] + case.eps).sqrt()
    r = limited((m.var.detach() + case.eps).sqrt() / sigma, 1 / r_max, r_max)
    d = limited((m.mean.detach() - state["running_mean"]) / sigma, -d_max, d_max)
    return m.mean, m.var, r, d


def limited(value, low, high):
    """Limits that meet leave nothing to clip: r_max 1 and d_max 0 are plain batch norm."""
    return torch.full_like(value, low) if low == high else value.clamp(low, high)


def renorm_limits(choice, done):
    """The limits after so many steps; "paper" is section 4 of the paper, "crossq" the switch of CrossQ's code."""
    r_max, d_max = choice.r_max, choice.d_max
    if choice.schedule == "paper":
        up = min(max((done - 5_000) / 35_000, 0), 1), min(max((done - 5_000) / 20_000, 0), 1)
        return 1 + up[0] * (r_max - 1), up[1] * d_max
    if choice.schedule == "crossq":
        return (r_max, d_max) if done >= 100_000 else (1.0, 0.0)
    return choice.schedule(done) if callable(choice.schedule) else (r_max, d_max)


def population(case, m, state, step, own_step):
    """The running statistics with this batch in them; the spread of the means counts where it is kept (`total`)."""
    a = estimators.gain(case.estimator, state, m.n, own_step)
    old_mean, old_var = estimators.rest(case.estimator, state, m.n)
    mean, var = times(a, m.mean) + times(1 - a, old_mean), times(a, m.var) + times(1 - a, old_var)
    if case.estimator.total or case.estimator.kind == "pooled":
        var = var + times(a * (1 - a), (m.mean - old_mean) ** 2)
    return (mean, var, 1.0, 0.0) if case.coupling.gradient else (mean.detach(), var.detach(), 1.0, 0.0)


EXACT = {"batch": batch, "second moment": batch, "renorm": renorm, "population": population}
