"""Batch Renormalization: the batch's statistics, corrected towards the running ones within limits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from batchnorm.arguments import AT_LEAST_1, NOT_NEGATIVE, arguments, or_function, word
from batchnorm.kernels import wide_dtype
from batchnorm.layers.couplings import Coupling, Plan
from batchnorm.layers.estimators import Estimator, Now, State
from batchnorm.layers.moments import Moments

Limits = tuple[Any, Any]
LimitSchedule = Literal["paper", "crossq"]


@arguments(r_max=AT_LEAST_1, d_max=NOT_NEGATIVE, schedule=or_function(word(LimitSchedule)))
@dataclass(frozen=True)
class Renorm(Coupling):
    """Batch renormalization: normalise with the batch, then correct towards the running statistics within limits.

    Example:
        >>> import torch, batchnorm
        >>> layer = batchnorm.BatchNorm1d(4, method="renorm", coupling=batchnorm.layers.Renorm(schedule="paper"))
        >>> _ = layer(torch.randn(32, 4))

    y = (x - mean_B) / sigma_B * r + d with r = sigma_B / sigma within [1 / r_max, r_max] and
    d = (mean_B - mean) / sigma within [-d_max, d_max], both constants to the gradient and clipped
    once. Where nothing is clipped, y is what inference gives. sigma is sqrt(running_var + eps).

    Args:
        r_max: limit of the scale correction, 1 or more.
        d_max: limit of the shift correction, 0 or more.
        schedule: None uses the limits from the first step. "paper" starts with 1 and 0 for 5,000
            steps and reaches r_max at 40,000 and d_max at 25,000 on straight lines. "crossq" starts
            with 1 and 0 and switches at 100,000 steps. Or a function of the number of steps done
            (a float64 tensor) that returns (r_max, d_max).

    Raises:
        BatchNormError: r_max below 1, d_max below 0, another schedule.

    Source: Ioffe, "Batch Renormalization" (2017), algorithm 1 and section 4; Bhatt et al., "CrossQ" (2024).
    """

    r_max: float = 3.0
    d_max: float = 5.0
    schedule: LimitSchedule | Callable[[Tensor], Limits] | None = None

    def limits(self, done: Tensor) -> Limits:
        """r_max and d_max after this many steps."""
        if self.schedule is None:
            return self.r_max, self.d_max
        done = done.to(wide_dtype(done.device))
        if callable(self.schedule):
            return self.schedule(done)
        if self.schedule == "crossq":
            late = (done >= 100_000).to(done.dtype)
            return 1 + late * (self.r_max - 1), late * self.d_max
        r = ((done - 5_000) / 35_000).clamp(0, 1) * (self.r_max - 1) + 1
        d = ((done - 5_000) / 20_000).clamp(0, 1) * self.d_max
        return r, d

    def plan(self, batch: Moments, state: State, now: Now, estimator: Estimator) -> Plan:
        """The batch's statistics, with ratio r and offset d."""
        var = batch.var(0)
        sigma = (state.var + now.eps).sqrt()
        limits = self.limits(now.step - 1)
        r_max, d_max = (torch.as_tensor(limit, dtype=sigma.dtype, device=sigma.device) for limit in limits)
        # Limits that meet leave nothing to clip, whatever the running statistics are.
        r = torch.where(r_max == 1, 1.0, torch.clamp((var.detach() + now.eps).sqrt() / sigma, 1 / r_max, r_max))
        d = torch.where(d_max == 0, 0.0, torch.clamp((batch.mean.detach() - state.mean) / sigma, -d_max, d_max))
        return Plan(batch.mean, var, 1.0, batch.mean, r, d)
