# ruff: noqa: E501
"""Files: Python 2, broken ones, `# noqa`, configuration, fixes."""

import ast

import pytest

from batchnorm.diagnosis.source import fixes
from batchnorm.diagnosis.source.config import Config, load
from batchnorm.diagnosis.source.files import SourceFile, parse
from batchnorm.diagnosis.source.fixes import Edit
from batchnorm.diagnosis.source.noqa import Silenced
from batchnorm.errors import BatchNormError
from tests.diagnosis.source.read_code import located

PYTHON_2 = '''import torch.nn as nn
print "training", 3
print
print >>log, "a", "b",
for i in range(3): print i
if True:
    print "loss: %f" % (1 / 2)
    print("already"), 2
try:
    exec "x = 1"
except ValueError, e:
    raise RuntimeError, "bad"
y = y.cuda(async=True)
n, mode = 10L, 0755
if n <> 3: s = `n` + ur"a"
nn.BatchNorm2d(8, 0.8)
'''  # fmt: skip


def tree_of(text, tmp_path):
    return parse(SourceFile(tmp_path / "a.py", text))


def test_python_2_is_read_with_its_line_numbers(tmp_path):
    file = tree_of(PYTHON_2, tmp_path)
    assert file.problem.startswith("Python 2 (line ")
    assert file.problem.endswith("read as Python 3")
    assert file.lost == []
    calls = {
        n.func.id: n.lineno for n in ast.walk(file.tree) if isinstance(n, ast.Call) and isinstance(n.func, ast.Name)
    }
    assert calls["exec"] == 10
    assert ast.unparse(file.tree.body[-1]) == "nn.BatchNorm2d(8, 0.8)"
    assert file.tree.body[-1].lineno == 16


def test_a_line_that_does_not_parse_is_left_out(tmp_path):
    file = tree_of("a = 1\ndef f(:\n    b = 2\nc = = 3\nd = 4\n", tmp_path)
    assert file.lost == [2, 4]
    assert file.problem == "line 2: invalid syntax; read without line 2, 4"
    assert [n.id for n in ast.walk(file.tree) if isinstance(n, ast.Name)] == ["a", "d", "b"]


def test_what_is_no_python_has_no_tree(tmp_path):
    assert tree_of("x = 1\n\0\n", tmp_path).tree is None
    assert tree_of("(" * 3000, tmp_path).problem


@pytest.mark.parametrize(
    ("comment", "silent"),
    [
        ("# noqa", True),
        ("# NOQA", True),
        ("# NoQA:BN403", True),
        ("# noqa: BN403", True),
        ("# noqa: bn403", True),
        ("# noqa: E501,BN403", True),
        ("# noqa: E501 BN403", True),
        ("# a reason # noqa: BN403", True),
        ("# noqa: BN403 because it is meant", True),
        ("# noqa : BN403", True),  # flake8: blanket
        ("# noqa : E501", True),
        ("# noqa: E501", False),
        ("# noqa: BN4031", False),
        ("# noqa: BN40", False),
        ("# noqa: BN4", False),
        ("#noqa", False),  # flake8 wants the blank
        ("# no qa", False),
        ("x = '# noqa'", False),
    ],
)
def test_noqa(comment, silent):
    text = f"from torch import nn\nnn.BatchNorm2d(3, momentum=0.9)  {comment}\n" if comment.startswith("#") else (
        f"from torch import nn\nnn.BatchNorm2d(3, momentum=0.9); {comment}\n"
    )  # fmt: skip
    assert (located({"a.py": text}) == []) is silent


def test_noqa_holds_for_the_whole_statement_and_not_for_the_next():
    text = "from torch import nn\nnn.BatchNorm2d(\n    3,\n    momentum=0.9,\n)  # noqa: BN403\n\nnn.BatchNorm2d(3, momentum=0.9)\n"
    assert [f.line for f in located({"a.py": text})] == [7]


def test_noqa_for_a_file():
    text = "from torch import nn\nnn.BatchNorm2d(3, momentum=0.9)\nnn.BatchNorm2d(3, momentum=2)\n"
    assert [f.finding.code for f in located({"a.py": "# flake8: noqa: BN403\n" + text})] == ["BN416"]
    assert located({"a.py": "# flake8: noqa\n" + text}) == []
    assert Silenced("# ruff: noqa\n")(5, "BN401")


def test_configuration(tmp_path):
    (tmp_path / "pyproject.toml").write_text(
        '[tool.batchnorm.lint]\nselect = ["BN40", "BN417"]\nignore = ["BN403"]\nper-file-ignores = {"old/*.py" = ["BN4"], "one.py" = ["BN417"]}\n'
    )
    (tmp_path / "src").mkdir()
    config = load(tmp_path / "src")
    assert config.wanted("BN405", str(tmp_path / "src/a.py"))
    assert config.wanted("BN417", str(tmp_path / "src/a.py"))
    assert not config.wanted("BN403", str(tmp_path / "src/a.py"))
    assert not config.wanted("BN412", str(tmp_path / "src/a.py"))
    assert not config.wanted("BN405", str(tmp_path / "old/a.py"))
    assert not config.wanted("BN417", str(tmp_path / "src/one.py"))
    assert load(tmp_path.parent) == Config()


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("[tool.batchnorm.lint]\nselect = 'BN4'", "select in .* must be a list of codes such as 'BN405'; it was 'BN4'"),
        (
            "[tool.batchnorm.lint]\nignore = ['E501']",
            "ignore in .* must be made of codes such as 'BN405', .*; it was 'E501'",
        ),
        (
            "[tool.batchnorm.lint]\nexclude = []",
            "a key of .* must be one of select, ignore, per-file-ignores; it was 'exclude'",
        ),
        ("[tool.batchnorm.lint\n", "must be TOML"),
    ],
)
def test_a_configuration_that_is_wrong_is_named(tmp_path, text, sentence):
    (tmp_path / "pyproject.toml").write_text(text)
    with pytest.raises(BatchNormError, match=sentence):
        load(tmp_path)


FIXED = [
    ("nn.BatchNorm2d(8, 0.8)\n", "nn.BatchNorm2d(8, momentum=0.2)\n"),
    ("nn.BatchNorm2d(8, 0.8)\n" * 2, "nn.BatchNorm2d(8, momentum=0.2)\n" * 2),
    ("nn.BatchNorm2d(8, 0.1)\n", "nn.BatchNorm2d(8, momentum=0.1)\n"),
    ("momentum = f()\nnn.BatchNorm2d(8, momentum)\n", "momentum = f()\nnn.BatchNorm2d(8, momentum=momentum)\n"),
    ("x = 'ä', nn.BatchNorm2d(8, 0.9)\n", "x = 'ä', nn.BatchNorm2d(8, momentum=0.1)\n"),
    ("nn.BatchNorm2d(8, 0.8, 0.1)\n", None),
    ("def f(bn):\n    bn.running_mean = 0.9 * bn.running_mean + 0.1 * bn.running_mean\n", "def f(bn):\n    pass\n"),
    (
        "net = nn.BatchNorm1d(3)\ntotal = net.state_dict()\nfor k in total.keys():\n    total[k] /= 3\n",
        "net = nn.BatchNorm1d(3)\ntotal = net.state_dict()\nfor k in total.keys():\n"
        "    if not total[k].is_floating_point():\n        continue\n    total[k] /= 3\n",
    ),
]


@pytest.mark.parametrize(("wrong", "right"), FIXED)
def test_a_certain_fix_is_applied_and_leaves_nothing_to_find(wrong, right):
    text = "import torch\nfrom torch import nn\n" + wrong
    edits = [edit for f in located({"a.py": text}) for edit in f.edits]
    if right is None:
        assert edits == []
        return
    new = fixes.apply(text, edits)
    assert new == "import torch\nfrom torch import nn\n" + right
    assert located({"a.py": new}) == []


def test_of_two_edits_that_overlap_one_is_made():
    assert fixes.apply("abcdef\n", [Edit(1, 0, 1, 4, "X"), Edit(1, 2, 1, 6, "Y")]) == "abY\n"
    assert fixes.apply("a\r\nb\r\n", [Edit(2, 0, 2, 1, "c")]) == "a\r\nc\r\n"
