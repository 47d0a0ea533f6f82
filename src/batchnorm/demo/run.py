"""The main job: the four steps, then a network that is broken, diagnosed, repaired and measured again."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.table import Table
from torch import Tensor

import batchnorm
from batchnorm.demo.broken_network import STEPS, score, train
from batchnorm.demo.charts import history_timelines
from batchnorm.demo.data import load_digits
from batchnorm.demo.four_steps import four_steps
from batchnorm.diagnosis.report import Table as ReportTable

HEADER = ["held-out digits", "accuracy", "loss"]


def run(report_path: Path, console: Console) -> int:
    """Print everything, write the HTML report and return the exit code."""
    four_steps(console)
    console.rule("A network that fails in eval mode", align="left")
    digits = load_digits()
    model, history = train(digits)
    loader = digits.train_x.split(64)
    test = digits.test_x, digits.test_y
    rows = [_row("train mode (statistics of the batch)", *score(model, *test, "train"))]
    rows.append(_row("eval mode, as trained", *score(model, *test, "eval")))
    console.print(
        f"Trained for {STEPS} steps at momentum 0.01 on {len(digits.train_x)} digits; {len(test[0])} are held out.\n"
    )
    report = batchnorm.diagnose(model, list(zip(loader, digits.train_y.split(64), strict=True)), metric=_accuracy)
    console.print(report, crop=False)
    result = batchnorm.recalibrate(model, loader)
    console.print()
    console.print(result)
    console.print()
    rows.append(_row("eval mode, recalibrated", *score(model, *test, "eval")))
    after = batchnorm.diagnose(model, loader)
    console.print(_table(rows))
    console.print(f"Diagnosis after the repair: {after.verdict}.")
    tables = [ReportTable("Before and after batchnorm.recalibrate", HEADER, rows)]
    report.to_html(report_path, timelines=history_timelines(history), tables=tables)
    console.print(f"Report: {report_path.resolve()}", soft_wrap=True, highlight=False)
    return 0


def _accuracy(output: Tensor, batch: tuple[Tensor, Tensor]) -> float:
    return float((output.argmax(1) == batch[1]).float().mean())


def _row(name: str, accuracy: float, loss: float) -> list[str]:
    return [name, f"{accuracy:.1%}", f"{loss:.3f}"]


def _table(rows: list[list[str]]) -> Table:
    table = Table(HEADER[0], title="before and after", title_justify="left")
    for heading in HEADER[1:]:
        table.add_column(heading, justify="right")
    for row in rows:
        table.add_row(*row)
    return table
