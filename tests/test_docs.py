"""The README and the documentation: code blocks run, links resolve, every finding has its section."""

import re
from pathlib import Path

import pytest

import batchnorm
from batchnorm.diagnose import RULES

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCKS = [
    pytest.param(block, id=f"{page.name}-{number}")
    for page in PAGES
    for number, block in enumerate(re.findall(r"```python\n(.*?)```", page.read_text(), re.S))
]


@pytest.mark.parametrize("block", BLOCKS)
def test_code_blocks_run(block):
    exec(compile(block, "block", "exec"), {})


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_resolve(page):
    for target in re.findall(r"\]\(([^)#]+?)(?:#[^)]*)?\)", page.read_text()):
        if not target.startswith("http"):
            assert (page.parent / target).exists(), target


def test_every_rule_has_its_section():
    text = (ROOT / "docs" / "findings.md").read_text()
    for rule in RULES:
        assert f"### {rule.code} {rule.title} {{ #{rule.code.lower()} }}" in text


def test_every_public_name_is_in_the_api_page():
    text = (ROOT / "docs" / "api.md").read_text()
    names = [n for n in vars(batchnorm) if not n.startswith("_") and callable(getattr(batchnorm, n))]
    assert len(names) == 17
    assert [n for n in names if not re.search(rf"\.{n}\b", text)] == []
