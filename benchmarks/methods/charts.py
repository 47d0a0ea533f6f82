"""The pictures of the trends, drawn from the kept figures."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import altair

IMAGES = Path(__file__).parents[2] / "docs" / "images"
RED, GREY, BLUE = "#b3261e", "#7a8794", "#1f5fa8"


def values(rows: list[dict[str, Any]]) -> altair.Data:
    """The rows with both ends of one standard error."""
    return altair.Data(
        values=[
            {**row, "low": max(row["mean"] - row["se"], 0), "high": row["mean"] + row["se"], "order": place}
            for place, row in enumerate(rows)
        ]
    )


def dots(rows: list[dict[str, Any]], title: str) -> altair.LayerChart:
    """A dot a method with its standard error, in the order of the rows."""
    base = altair.Chart(values(rows), title=altair.Title(title, anchor="start", fontSize=12))
    y = altair.Y("method:N", title=None, sort=altair.SortField("order"), axis=altair.Axis(labelLimit=280))
    scale = altair.Scale(domain=[0, 80])
    bars = base.mark_rule(color=GREY, strokeWidth=2).encode(x=altair.X("low:Q", scale=scale), x2="high:Q", y=y)
    points = base.mark_circle(color=RED, size=70, opacity=1).encode(
        x=altair.X("mean:Q", title="error, %", scale=scale), y=y
    )
    return (bars + points).properties(width=360, height=26 * len(rows))


def population(experiments: dict[str, list[dict[str, Any]]]) -> altair.VConcatChart:
    """Groups of one and two classes, and the lag of the averages."""
    groups = experiments["one_class_groups"]
    panels = [
        dots(
            [row for row in groups if row["classes_in_a_group"] == classes],
            f"Groups of 8, samples of a group from {classes} class{'es' if classes > 1 else ''}",
        )
        for classes in (1, 2)
    ]
    lag = dots(experiments["ema_lag"], "40 training steps, the same weights in every row")
    return altair.vconcat(*panels, lag)


def batches(rows: list[dict[str, Any]]) -> altair.LayerChart:
    """Error against the normalisation batch, a line for each source of statistics."""
    base = altair.Chart(values(rows))
    names = list(dict.fromkeys(row["method"] for row in rows))
    colour = altair.Color(
        "method:N", title=None, scale=altair.Scale(domain=names, range=[GREY, BLUE, RED]), legend=altair.Legend()
    )
    x = altair.X(
        "normalisation_batch:Q",
        title="samples that normalise each other",
        scale=altair.Scale(type="log", base=2),
        axis=altair.Axis(values=[2, 4, 8, 16, 64]),
    )
    lines = base.mark_line(point=True, strokeWidth=2).encode(
        x=x, y=altair.Y("mean:Q", title="error, %", scale=altair.Scale(domainMin=0)), color=colour
    )
    bars = base.mark_rule(strokeWidth=1.5).encode(x=x, y="low:Q", y2="high:Q", color=colour)
    return (bars + lines).properties(width=420, height=260)


def main() -> None:
    """Draw both pictures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--figures", type=Path, default=Path(__file__).with_name("trends.json"))
    parser.add_argument("--images", type=Path, default=IMAGES)
    chosen = parser.parse_args()
    experiments = json.loads(chosen.figures.read_text())["experiments"]
    for name, chart in (
        ("trends-statistics", population(experiments)),
        ("trends-batches", batches(experiments["batches_at_test_time"])),
    ):
        chart.configure_view(stroke=None).save(chosen.images / f"{name}.png", scale_factor=2)


if __name__ == "__main__":
    main()
