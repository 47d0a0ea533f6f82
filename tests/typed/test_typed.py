"""What `python -m tests.typed` reads, and what it says; it runs with the linters."""

from tests.typed.__main__ import HERE, PAGES, ROOT, Place, blocks, planted, verdict


def test_a_block_keeps_the_line_numbers_of_its_page():
    first, second = blocks("# Page\n\n```python\nx = 1\n```\ntext\n```\nno = 0\n```\n```python\ny = 2\n```\n")
    assert first.splitlines().index("x = 1") == 3
    assert second.splitlines().index("y = 2") == 10
    assert "no = 0" not in first + second


def test_every_page_has_blocks():
    assert {page: len(blocks((ROOT / page).read_text())) > 0 for page in PAGES} == dict.fromkeys(PAGES, True)


def test_enough_mistakes_are_planted():
    assert len(planted((HERE / "mistakes.py").read_text())) >= 60
    assert planted("a\nb  # mistake\nc  # mistaken") == {2}


def test_a_mistake_not_seen_and_an_error_elsewhere_are_wrong():
    seen = [(Place("mistakes.py", 4), "one"), (Place("mistakes.py", 6), "two"), (Place("uses.py", 4), "three")]
    line, wrong = verdict("mypy", seen, {4, 5})
    assert line == "mypy: 1 of 2 planted mistakes caught"
    assert [text.split(": ")[0] for text in wrong] == ["mistakes.py:5", "mistakes.py:6", "uses.py:4"]
    assert verdict("mypy", [(Place("mistakes.py", 4), "one")], {4}) == ("mypy: 1 of 1 planted mistakes caught", [])


def test_pages_need_not_ask_whether_a_layer_of_torch_has_buffers():
    optional = 'Item "None" of "Tensor | None" has no attribute "fill_"'
    assert verdict("mypy", [(Place("README_md_1.py", 3), optional)], set())[1] == []
    assert len(verdict("mypy", [(Place("uses.py", 3), optional)], set())[1]) == 1
