"""What a method of one's own costs: the same numbers from a user's classes and from the built-in ones.

The built-in layer and the user's take turns, step by step; the figure is the median of the ratios of neighbours.
A second built-in layer in the user's place says how far two equal layers are apart.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import batchnorm
from batchnorm.layers import EMA, Coupling, Estimator, Move, Numbers, Pull, Renorm, Vectors

# Each shape with the ratio that a user's method must not exceed there.
SHAPES = {(32, 64, 56, 56): 1.05, (256, 128): 1.10}


@dataclass(frozen=True)
class OwnRenorm(Coupling):
    """Batch renormalization with fixed limits."""

    def plan(self, state: Any, now: Any) -> tuple[Numbers, Vectors]:
        """The batch's statistics, with ratio and offset towards the population."""
        return Numbers(low=1 / 3, high=3.0, shift=5.0), Vectors(state.mean, state.var)


@dataclass(frozen=True)
class OwnPower(Coupling):
    """PowerNorm after its warm-up: the past's second moment, and a controller in the backward."""

    centres = False
    exact = False

    def memory(self, state: Any, trained: Any) -> dict[str, torch.Tensor]:
        """The controller."""
        return {"backward_v": torch.zeros_like(state.mean)[None]}

    def plan(self, state: Any, now: Any) -> tuple[Numbers, Vectors]:
        """The running second moment."""
        return Numbers(mean=0.0, share=0.0, spread=1.0), Vectors(rest=state.var)

    def pull(self, state: Any, now: Any, numbers: Any, sums: Any) -> Pull:
        """A tenth of what the controller holds."""
        return Pull(base_v=0.1 * state.memory["backward_v"][0])

    def learn(self, state: Any, now: Any, numbers: Any, sums: Any, pull: Any) -> dict[str, Any]:
        """What the gradient still has in common with the output."""
        left = sums.mean_gx - 0.1 * state.memory["backward_v"][0] * sums.y2
        return {"backward_v": state.memory["backward_v"] + sums.pooled(left)}


@dataclass(frozen=True)
class OwnAverage(Estimator):
    """An exponential moving average."""

    momentum = 0.1

    def move(self, state: Any, now: Any) -> Move:
        """Mean and variance by the same gain."""
        a = now.momentum
        return Move(gain=a, q=1 - a, p=a)


PAIRS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "renorm": ({"coupling": Renorm(3.0, 5.0)}, {"coupling": OwnRenorm()}),
    "power": ({"coupling": batchnorm.layers.PowerNorm(0.9, warmup=0)}, {"coupling": OwnPower()}),
    "average": ({"estimator": EMA()}, {"estimator": OwnAverage()}),
    "renorm and average": (
        {"coupling": Renorm(3.0, 5.0), "estimator": EMA()},
        {"coupling": OwnRenorm(), "estimator": OwnAverage()},
    ),
}


def step_of(shape: tuple[int, ...], choices: dict[str, Any]) -> Callable[[], tuple[torch.Tensor, ...]]:
    """A forward and backward of a layer with these choices: output, gradient and variance."""
    torch.manual_seed(0)
    layer = (batchnorm.BatchNorm2d if len(shape) == 4 else batchnorm.BatchNorm1d)(shape[1], **choices)
    x, g = (torch.randn(shape) + 1).requires_grad_(), torch.randn(shape)

    def run() -> tuple[torch.Tensor, ...]:
        y = layer(x)
        x.grad = None
        y.backward(g)
        return y, x.grad, layer.running_var  # pyright: ignore[reportReturnType]

    return run


def timed(call: Callable[[], object]) -> float:
    """Seconds of this thread's work."""
    start = time.thread_time()
    call()
    return time.thread_time() - start


def measure(shape: tuple[int, ...], pair: tuple[dict[str, Any], dict[str, Any]], rounds: int) -> dict[str, float]:
    """The median ratio of the user's step to the built-in one's, and of the built-in one's to itself."""
    built_in, own, again = (step_of(shape, choices) for choices in (*pair, pair[0]))
    for _ in range(3):
        for theirs, ours in zip(built_in(), own(), strict=True):
            assert torch.allclose(theirs, ours, rtol=1e-5, atol=1e-5)
        again()
    ratios: dict[str, list[float]] = {"own": [], "itself": []}
    for i in range(rounds):
        names = {"own": own, "itself": again}
        for name in sorted(names, reverse=bool(i % 2)):
            first, second = (built_in, names[name]) if i // 2 % 2 else (names[name], built_in)
            times = timed(first), timed(second)
            ratios[name].append(times[1] / times[0] if i // 2 % 2 else times[0] / times[1])
    return {name: round(statistics.median(values), 3) for name, values in ratios.items()}


def main(arguments: list[str] | None = None) -> None:
    """Measure, print and keep the JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".json"))
    chosen = parser.parse_args(arguments)
    torch.set_num_threads(1)
    rows = []
    for shape, target in SHAPES.items():
        rounds = chosen.rounds if len(shape) == 4 else 20 * chosen.rounds
        for name, pair in PAIRS.items():
            rows.append({"shape": shape, "method": name, "target": target, **measure(shape, pair, rounds)})
            print(rows[-1], flush=True)
    result = {"torch": torch.__version__, "clock": "thread time", "threads": 1, "rounds": chosen.rounds, "rows": rows}
    chosen.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
