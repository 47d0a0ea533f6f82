"""The README and the documentation: code blocks run, links resolve, cards and tables say what the package says."""

import re
from pathlib import Path

import pytest
import torch

import batchnorm
from batchnorm.diagnosis import RULES
from tests.loading import load

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", ROOT / "README.zh-CN.md", *sorted(DOCS.rglob("*.md"))]
BLOCKS = [
    pytest.param(block, id=f"{page.relative_to(ROOT)}-{number}")
    for page in PAGES
    for number, block in enumerate(re.findall(r"```python\n(.*?)```", page.read_text(), re.S))
]
NOT_ROWS = ("memorized", "kalman")


def _tables():
    return load(DOCS / "tables.py")


def _anchors(page: Path) -> set[str]:
    """The names of a page's headings as mkdocs makes them, and those given by hand."""
    headings = re.findall(r"^#+ (.*?)(?: \{ #(\S+) \})?$", page.read_text(), re.M)
    slugs = {re.sub(r"[\s-]+", "-", re.sub(r"[^\w\s-]", "", text).strip().lower()) for text, _ in headings}
    return slugs | {given for _, given in headings}


@pytest.mark.parametrize("block", BLOCKS)
def test_code_blocks_run(block):
    exec(compile(block, "block", "exec"), {})


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_links_resolve(page):
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.S)
    inline = re.findall(r"\]\(([^)\s]+)\)", text)
    defined = dict(re.findall(r"^\[([^\]]+)\]: (\S+)$", text, re.M))
    for target in [*inline, *defined.values()]:
        if not target.startswith("http"):
            path, _, anchor = target.partition("#")
            there = page.parent / path if path else page
            assert there.exists(), target
            assert not anchor or anchor in _anchors(there), target
    used = re.findall(r"\]\[([^\]]+)\]", text)
    assert [name for name in used if name not in defined] == []


def test_every_method_has_its_card():
    cards = {page.stem for page in (DOCS / "methods").glob("*.md")} - {"index", "cost", "trends"}
    assert cards == {*batchnorm.methods(), *NOT_ROWS}


@pytest.mark.parametrize("name", batchnorm.methods())
def test_a_card_says_what_a_reader_looks_for(name):
    text = (DOCS / "methods" / f"{name}.md").read_text()
    for part in ("What", "When", "When not", "State", "Hyper-parameters", "Eval and `to_stock`", "Refusals", "Cost"):
        assert re.search(rf"\*\*{re.escape(part)}\.\*\*", re.sub(r"\s+", " ", text)), part
    for heading in ("Formula", "Use", "How it differs", "What did not work", "Eval mode, refusals, cost"):
        assert f"\n## {heading}\n" in text, heading
    assert "(cost.md)" in text


@pytest.mark.parametrize("page", ["index", *batchnorm.methods()])
def test_choices_in_the_pages_are_the_packages_own(page):
    path = DOCS / "methods" / f"{page}.md"
    tables = _tables()
    assert "| estimator |" in path.read_text()
    assert tables.filled(path) == path.read_text(), "run: python docs/tables.py"


@pytest.mark.parametrize("name", batchnorm.methods())
def test_a_card_names_every_buffer_the_method_keeps(name):
    text = (DOCS / "methods" / f"{name}.md").read_text()
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 2, 1), torch.nn.BatchNorm2d(2))
    stock = set(model[1].state_dict())
    kept = set(batchnorm.convert(model, name)[1].state_dict())
    assert stock <= kept
    for key in kept - stock:
        assert f"`{key}`" in text or (key.endswith("_seen") and "`_seen`" in text), key


@pytest.mark.parametrize(
    ("row", "choices"),
    [
        ("`OnlineNorm` without", {"coupling": batchnorm.layers.OnlineNorm()}),
        ("`Ghost(update=", {"method": "debiased", "extent": batchnorm.layers.Ghost(4, "sequential")}),
        (
            "`MABN`, `PowerNorm`, `UnifiedNorm` with",
            {"method": "mabn", "extent": batchnorm.layers.Ghost(4, "sequential")},
        ),
        ("`CrossIteration` with", {"method": "cbn", "extent": batchnorm.layers.Ghost(4)}),
        ("`PopulationCoupling` with", {"method": "population", "estimator": batchnorm.layers.EMA(sigma=True)}),
        ("`inplace=True` with", {"method": "renorm", "activation": "leaky_relu", "inplace": True}),
    ],
)
def test_what_the_overview_says_is_refused_is_refused(row, choices):
    assert f"| {row}" in (DOCS / "methods" / "index.md").read_text()
    with pytest.raises(batchnorm.BatchNormError):
        batchnorm.BatchNorm2d(4, **choices)


def test_every_page_is_in_the_navigation():
    text = (ROOT / "mkdocs.yml").read_text()
    assert [str(p.relative_to(DOCS)) for p in DOCS.rglob("*.md") if str(p.relative_to(DOCS)) not in text] == []


def test_every_rule_has_its_section():
    text = (DOCS / "findings.md").read_text()
    for rule in RULES:
        assert f"### {rule.code} {rule.title} {{ #{rule.code.lower()} }}" in text


def test_the_page_of_findings_is_made_from_the_rules():
    assert (DOCS / "findings.md").read_text() == load(DOCS / "findings.py").text()


def test_every_public_name_is_in_the_api_page():
    text = (DOCS / "api.md").read_text()
    named = set(re.findall(r"^::: batchnorm\.(.*)$", text, re.M))
    assert [name for name in batchnorm.__all__ if name not in named] == []
    for folder in ("diagnosis", "interop", "kernels", "layers", "models"):
        names = set(getattr(batchnorm, folder).__all__) - set(batchnorm.__all__)
        assert [name for name in sorted(names) if f"{folder}.{name}" not in named] == []
    assert {"BatchNorm2d", "convert", "layers.Renorm"} <= named
