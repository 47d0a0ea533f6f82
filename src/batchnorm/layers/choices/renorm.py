"""Batch Renormalization: the batch's statistics, corrected towards the running ones within limits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from batchnorm.arguments import AT_LEAST_1, NOT_NEGATIVE, arguments, or_function, word
from batchnorm.kernels import wide_dtype
from batchnorm.layers.choices.couplings import Coupling
from batchnorm.layers.choices.situation import Now, State
from batchnorm.layers.rule import Numbers, Vectors

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

    def limits(self, done: Any) -> Limits:
        """r_max and d_max after this many steps."""
        if self.schedule is None:
            return self.r_max, self.d_max
        number = not isinstance(done, Tensor)
        if callable(self.schedule):
            given = torch.tensor(done, dtype=torch.float64) if number else done.to(wide_dtype(done.device))
            limits = self.schedule(given)
            return tuple(map(float, limits)) if number else limits  # pyright: ignore[reportReturnType]
        if self.schedule == "crossq":
            late = float(done >= 100_000) if number else (done >= 100_000).to(wide_dtype(done.device))
            return 1 + late * (self.r_max - 1), late * self.d_max
        r, d = (_between_0_and_1((done - 5_000) / steps) for steps in (35_000, 20_000))
        return r * (self.r_max - 1) + 1, d * self.d_max

    def plan(self, state: State, now: Now) -> tuple[Numbers, Vectors]:
        """The batch's statistics, with ratio r and offset d."""
        r_max, d_max = self.limits(now.step - 1)
        return Numbers(low=1 / r_max, high=r_max, shift=d_max), Vectors(state.mean, state.var)


def _between_0_and_1(value: Any) -> Any:
    return value.clamp(0, 1) if isinstance(value, Tensor) else min(max(value, 0.0), 1.0)
