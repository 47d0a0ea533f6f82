"""The tutorial's pictures: computed from a real run, and the page says what the run says."""

import re
from pathlib import Path

import pytest

from batchnorm.demo.data import load_digits
from tests.loading import load

DOCS = Path(__file__).parents[2] / "docs"
DIGITS = load_digits()


pictures = load(DOCS / "tutorial_pictures.py")


def test_the_watched_channel_moves_as_the_rule_says():
    points, _ = pictures.follow(DIGITS, steps=6)
    slow = fast = 0.0
    for point in points:
        slow, fast = 0.99 * slow + 0.01 * point.batch_mean, 0.9 * fast + 0.1 * point.batch_mean
        assert point.running_slow == pytest.approx(slow, abs=1e-5)
        assert point.running_fast == pytest.approx(fast, abs=1e-5)


@pytest.mark.slow
def test_the_page_quotes_the_run(tmp_path):
    points, model = pictures.follow(DIGITS)
    rows = re.findall(
        r"^\| (?:statistics of the batch|running).*? \| (\d+) \| (\d+) \| (\d+) \|$",
        (DOCS / "tutorial.md").read_text(),
        re.M,
    )
    assert len(rows) == 3
    for row, name in zip(rows, ("by_batch", "by_fast", "by_slow"), strict=True):
        found = [getattr(points[step - 1], name) for step in (10, 40, 120)]
        # Rounding differs between machines, and training carries it on.
        assert [float(cell) for cell in row] == pytest.approx(found, abs=6), name
    found = pictures.outputs(model, DIGITS)
    batch, stored, exact = (values.var(0).mean() for values in found.values())
    assert batch == pytest.approx(1, abs=0.01)
    assert stored < 0.2
    assert exact == pytest.approx(1, abs=0.15)
    assert pictures.accuracy(model, DIGITS, False) > 92
    pictures.draw(points, found, tmp_path)
    for name in ("running", "accuracy", "outputs"):
        assert 2_000 < (tmp_path / f"tutorial-{name}.png").stat().st_size < 40_000
        assert (DOCS / "images" / f"tutorial-{name}.png").stat().st_size < 40_000
