import io
import re

import numpy as np
import pytest
import torch
from rich.cells import cell_len
from rich.console import Console

import batchnorm
from batchnorm.demo.broken_network import score, train
from batchnorm.demo.data import load_digits
from batchnorm.demo.four_steps import four_steps
from batchnorm.demo.run import run
from batchnorm.demo.words import CHINESE, ENGLISH, Words, lines, words


@pytest.fixture
def console():
    return Console(width=80, record=True, file=io.StringIO())


def test_embedded_digits_are_the_uci_ones():
    ours = load_digits()
    theirs = pytest.importorskip("sklearn.datasets").load_digits()
    x = torch.cat([ours.train_x, ours.test_x])
    assert (len(ours.train_x), len(ours.test_x)) == (1297, 500)
    rows = {tuple(row) for row in (x.flatten(1) * 16).numpy().astype(int).tolist()}
    assert rows == {tuple(row) for row in theirs.data.astype(int).tolist()}
    assert np.bincount(torch.cat([ours.train_y, ours.test_y])).tolist() == np.bincount(theirs.target).tolist()


def test_four_steps_equal_the_formula(console):
    shown = four_steps(console)
    for step in shown.steps:
        assert torch.allclose(step.mean_after, step.mean_by_hand, atol=1e-6)
        assert torch.allclose(step.var_after, step.var_by_hand, atol=1e-6)
        assert step.normalised_mean.abs().max() < 1e-5
        assert (step.normalised_var - 1).abs().max() < 1e-4
    assert shown.initial_left == pytest.approx(0.9**5)
    assert shown.inference_error < 1e-5
    assert shown.recipe_change < 1e-6


@pytest.mark.parametrize(
    ("text", "width", "expected"),
    [
        ("a bc d", 4, "a bc\nd"),
        ("a longword b", 4, "a\nlongword\nb"),
        ("批归一化，用", 8, "批归一\n化，用"),  # no line begins with a comma
        ("批 (1) 次\n用", 6, "批 (1)\n次\n用"),
    ],
)
def test_lines_break_between_chinese_characters_too(text, width, expected):
    assert lines(text, width) == expected


@pytest.mark.parametrize("name", Words._fields)
def test_both_languages_fill_in_the_same_values(name):
    def places(value):
        return sorted(re.findall(r"{(\w+)", value if isinstance(value, str) else " ".join(value)))

    assert places(getattr(ENGLISH, name)) == places(getattr(CHINESE, name))


def test_the_language_is_the_locales_or_the_one_asked_for(monkeypatch):
    for variable in ("LC_ALL", "LC_MESSAGES", "LANG"):
        monkeypatch.delenv(variable, raising=False)
    assert words(None) is ENGLISH
    monkeypatch.setenv("LANG", "zh_CN.UTF-8")
    assert words(None) is CHINESE
    assert words("en") is ENGLISH
    with pytest.raises(batchnorm.BatchNormError, match="--lang must be en or zh; it was 'fr'"):
        words("fr")


def test_the_point_comes_before_the_tables(console, tmp_path):
    run(tmp_path / "demo.html", console, CHINESE)
    text = console.export_text()
    screen = "\n".join(text.splitlines()[:20])
    for point in ("永远不要手工更新它们", "同一组权重", "评估模式，训练之后", "batchnorm.recalibrate(model, loader)"):
        assert point in screen.replace("\n", ""), point
    assert max(cell_len(line) for line in text.splitlines() if "/" not in line and "fix:" not in line) <= 80


def test_the_network_is_broken_for_its_reason_and_repaired():
    digits = load_digits()
    model, _ = train(digits)
    test = digits.test_x, digits.test_y
    good, bad = score(model, *test, "train")[0], score(model, *test, "eval")[0]
    assert good > 0.93
    assert bad < 0.75
    report = batchnorm.diagnose(model, digits.train_x.split(64))
    assert {"BN104", "BN108"} == {finding.code for finding in report.findings}
    batchnorm.recalibrate(model, digits.train_x.split(64))
    assert score(model, *test, "eval")[0] > 0.93


def test_the_whole_run_fits_a_terminal_and_writes_its_report(console, tmp_path):
    assert run(tmp_path / "demo.html", console) == 0
    text = console.export_text()
    assert "BN108" in text
    assert "your statistics are fine" in text
    # What is to be copied is never broken: a path, a fix.
    wide = [line for line in text.splitlines() if not line.startswith(("Report:", "  fix: "))]
    assert max(map(len, wide)) <= 80
    page = (tmp_path / "demo.html").read_text()
    assert page.count('"title":"Running ') == 2
    assert "Before and after batchnorm.recalibrate" in page
