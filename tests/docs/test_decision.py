"""The decision page and the Chinese pages: the pictures are the script's, and both languages say the same."""

import re
from pathlib import Path

import pytest

from tests.loading import load

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAIRS = [(DOCS / "eval-is-bad.md", DOCS / "eval-is-bad.zh-CN.md"), (ROOT / "README.md", ROOT / "README.zh-CN.md")]


def _picture(suffix):
    return load(DOCS / "decision_picture.py").picture(suffix)


@pytest.mark.parametrize("suffix", ["", ".zh-CN"])
def test_the_picture_is_what_the_script_draws(suffix):
    kept = (DOCS / "images" / f"decision{suffix}.svg").read_text()
    assert kept == _picture(suffix), "run: python docs/decision_picture.py"
    assert "<title>" in kept
    assert not re.search(r"href|url\((?!#)|@import|<script", kept)


def _bare_code(text):
    """The code blocks without their comments."""
    blocks = re.findall(r"```\w*\n(.*?)```", text, re.S)
    return [re.sub(r"  +# .*", "", block) for block in blocks]


@pytest.mark.parametrize("pair", PAIRS, ids=lambda pair: pair[0].name)
def test_the_languages_say_the_same(pair):
    english, chinese = (page.read_text() for page in pair)
    assert _bare_code(english) == _bare_code(chinese)
    assert len(re.findall(r"^#+ ", english, re.M)) == len(re.findall(r"^#+ ", chinese, re.M))
    if pair[0].name == "eval-is-bad.md":
        assert len(re.findall(r"^\|", english, re.M)) == len(re.findall(r"^\|", chinese, re.M))
        for pattern in (r"findings\.md#bn\d+", r"BN\d{3}", r"`([^`\n]+)`"):
            ours, theirs = (set(re.findall(pattern, re.sub("steps|步数", "t", text))) for text in (english, chinese))
            assert ours == theirs, pattern
    assert f"]({pair[1].name})" in english
    assert f"]({pair[0].name})" in chinese
