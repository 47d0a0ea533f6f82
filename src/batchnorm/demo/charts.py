"""The demonstration's charts."""

from __future__ import annotations

from typing import Any

from batchnorm.demo.broken_network import History


def history_charts(history: History) -> list[tuple[str, str, Any]]:
    """Batch statistics against running statistics over the steps, mean and variance."""
    pairs = (
        ("mean", history.batch_mean, history.running_mean),
        ("variance", history.batch_var, history.running_var),
    )
    caption = (
        "One channel of the first layer. The running value starts at 0 (mean) or 1 (variance) and moves 1 % of the "
        "way at each step: after 40 steps two thirds of the start are still in it."
    )
    return [(f"Running {what} over the steps", caption, _chart(what, b, r)) for what, b, r in pairs]


def _chart(what: str, batch: list[float], running: list[float]) -> Any:
    import altair

    rows = [
        {"step": step + 1, "value": value, "line": line}
        for line, values in (("batch", batch), ("running", running))
        for step, value in enumerate(values)
    ]
    colour = altair.Color(
        "line:N", title=None, scale=altair.Scale(domain=["batch", "running"], range=["#7a8794", "#b3261e"])
    )
    chart = altair.Chart(altair.Data(values=rows)).mark_line(strokeWidth=2)
    return chart.encode(
        x=altair.X("step:Q", title="training step"), y=altair.Y("value:Q", title=what), color=colour
    ).properties(width=560, height=200)
