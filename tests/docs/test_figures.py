"""The figures in the README and the pages are those of the files that the benchmarks wrote."""

import re
from pathlib import Path

import pytest
from docs.figures import claim as claim_module
from docs.figures import sources
from docs.figures.__main__ import differences
from docs.figures.table import claims

ROOT = Path(__file__).parents[2]
CLAIMS = claims()
PAGES = [
    "README.md",
    *(str(p.relative_to(ROOT)) for p in sorted((ROOT / "docs").rglob("*.md")) if "zh-CN" not in p.name),
]
CHINESE = ["README.zh-CN.md", *(str(p.relative_to(ROOT)) for p in sorted((ROOT / "docs").glob("*.zh-CN.md")))]


def test_every_claim_says_what_its_file_says():
    assert differences(CLAIMS) == [], "see: python -m docs.figures, and --write"


@pytest.mark.parametrize("page", PAGES)
def test_every_other_figure_has_a_command_or_a_source(page):
    assert sources.unsourced(page, CLAIMS) == []


@pytest.mark.parametrize("page", CHINESE)
def test_a_page_in_chinese_has_the_figures_of_the_english_one(page):
    def numbers(name):
        return set(re.findall(r"\d+\.?\d*(?= ?%)", (ROOT / name).read_text()))

    assert numbers(page) <= numbers(page.replace(".zh-CN", ""))


def test_a_figure_that_changed_in_its_file_is_found_and_put_in(monkeypatch):
    claim = next(claim for claim in CLAIMS if claim.page == "README.md")
    text = (ROOT / "README.md").read_text()
    assert claim.wrong(text) == []
    measured = {"summary": dict.fromkeys(claim_module.read("kernels.json")["summary"], 7.654)}
    monkeypatch.setattr(claim_module, "read", lambda file: measured)
    assert [new for _, new in claim.wrong(text)] == ["7.7"] * 6
    changed = claim.put(text)
    assert "is 7.7 times as fast as torch's" in changed
    assert claim.wrong(changed) == []
    assert len(changed.splitlines()) == len(text.splitlines())


def test_words_that_are_gone_from_the_page_are_found():
    claim = CLAIMS[0]
    assert claim.wrong("Nothing here.") == [("0 places with these words", figure.text()) for figure in claim.figures]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("## Speed\n\nIt is 3.1 times as fast.\n", 1),
        ("## Speed\n\n| a | b |\n|---|---|\n| ours | 3.17 |\n| theirs | 4.25 |\n", 2),
        ("## Speed\n\nIt takes 3 ms (`benchmarks/kernels.py`).\n", 0),
        ("## Speed\n\n`make bench` measures it.\n\n## Memory\n\nIt takes 12 MB.\n", 1),
        ("## Speed\n\nAn abstract says 12 % ([source](https://example.org)).\n", 0),
        ("## Speed\n\n```\n12 ms\n```\n\nMomentum is 0.1, in 5 layers.\n", 0),
    ],
)
def test_a_figure_without_a_source_is_listed(text, found, tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "ROOT", tmp_path)
    (tmp_path / "page.md").write_text(text)
    assert len(sources.unsourced("page.md", [])) == found
