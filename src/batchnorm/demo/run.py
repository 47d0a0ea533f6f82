"""The main job: the answer, a network that is broken and repaired, how that is found, and the four steps."""

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
from batchnorm.demo.words import ENGLISH, Words, lines
from batchnorm.diagnosis.report import Table as ReportTable


def run(report_path: Path, console: Console, said: Words = ENGLISH) -> int:
    """Print everything, write the HTML report and return the exit code."""

    def say(text: str) -> None:
        console.print(lines(text, console.width), highlight=False)

    console.rule(said.title, align="left")
    say(said.answer.format(momentum=0.1, old=0.9))
    digits = load_digits()
    model, history = train(digits)
    loader = digits.train_x.split(64)
    test = digits.test_x, digits.test_y
    scores = [score(model, *test, "train"), score(model, *test, "eval")]
    report = batchnorm.diagnose(model, list(zip(loader, digits.train_y.split(64), strict=True)), metric=_accuracy)
    batchnorm.recalibrate(model, loader)
    scores.append(score(model, *test, "eval"))
    rows = [[name, f"{accuracy:.1%}", f"{loss:.3f}"] for name, (accuracy, loss) in zip(said.rows, scores, strict=True)]
    console.rule(said.broken, align="left")
    say(said.trained.format(steps=STEPS, samples=len(digits.train_x), held_out=len(test[0])))
    console.print(_table(rows, said))
    say(said.point.format(steps=STEPS, left=0.99**STEPS))
    console.rule(said.found, align="left")
    console.print(report, crop=False)
    console.print()
    say(said.after.format(verdict=batchnorm.diagnose(model, loader).verdict))
    four_steps(console, said)
    # The page is in English.
    in_english = [[name, *cells] for name, (_, *cells) in zip(ENGLISH.rows, rows, strict=True)]
    tables = [ReportTable("Before and after batchnorm.recalibrate", list(ENGLISH.held_out), in_english)]
    report.to_html(report_path, timelines=history_timelines(history), tables=tables)
    console.print(said.report.format(path=report_path.resolve()), soft_wrap=True, highlight=False)
    return 0


def _accuracy(output: Tensor, batch: tuple[Tensor, Tensor]) -> float:
    return float((output.argmax(1) == batch[1]).float().mean())


def _table(rows: list[list[str]], said: Words) -> Table:
    table = Table(said.held_out[0])
    for heading in said.held_out[1:]:
        table.add_column(heading, justify="right")
    for row in rows:
        table.add_row(*row)
    return table
