"""The demonstration's charts."""

from __future__ import annotations

from batchnorm.demo.broken_network import History
from batchnorm.diagnosis.report import Timeline


def history_timelines(history: History) -> list[Timeline]:
    """Batch statistics against running statistics over the steps, mean and variance."""
    pairs = (
        ("mean", history.batch_mean, history.running_mean),
        ("variance", history.batch_var, history.running_var),
    )
    caption = (
        "One channel of the first layer. The running value starts at 0 (mean) or 1 (variance) and moves 1 % of the "
        "way at each step: after 40 steps two thirds of the initial value are still in it."
    )
    return [
        Timeline(f"Running {what} over the steps", caption, {"batch": _points(batch), "running": _points(running)})
        for what, batch, running in pairs
    ]


def _points(values: list[float]) -> list[tuple[float, float]]:
    return [(float(step + 1), value) for step, value in enumerate(values)]
