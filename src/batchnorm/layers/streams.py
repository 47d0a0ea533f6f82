"""Running statistics that move group after group: everything at once but the recurrence itself."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from batchnorm.kernels.recurrence import before, recurrence
from batchnorm.layers.estimators import State, times
from batchnorm.layers.moments import Moments


def stream(estimator: Any, batch: Moments, state: State, gain: Any, ok: Tensor, eps: float) -> tuple[State, State]:
    """What each group meets `(groups, C)`, and what is left at the end; groups that are not ok change nothing.

    The estimator is a moving average (`Recipe` refuses others here); gain is a number or `(groups, 1)`.
    """
    groups, wide = len(batch.mean), batch.mean.dtype
    gain = torch.as_tensor(gain, dtype=wide, device=batch.mean.device).expand(groups, 1)
    keep = torch.where(ok, 1 - gain, 1.0)

    def followed(values: Tensor, start: Tensor) -> tuple[Tensor, Tensor]:
        states = recurrence(torch.where(ok, values, 0.0), keep, start)
        return before(states, start), states[-1]

    means, mean = followed(times(gain, batch.mean), state.mean)
    var = batch.var(estimator.correction)
    if estimator.sigma:
        sigmas, sigma = followed(times(gain, (var + eps).sqrt()), (state.var + eps).sqrt())
        variances, last = ((s.square() - eps).clamp_min(0) for s in (sigmas, sigma))
    else:
        spread = times(gain, var)
        if estimator.total:
            spread = spread + times(gain * (1 - gain), (batch.mean - means).square())
        variances, last = followed(spread, state.var)
    return State(means, variances, state.memory), State(mean, last, state.memory)
