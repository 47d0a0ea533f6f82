"""The verb, the command and the plugin: what is read, what is reported, exit codes."""

import ast
import json

import pytest
from typer.testing import CliRunner

from batchnorm.cli import app
from batchnorm.diagnosis import lint
from batchnorm.diagnosis.source import check
from batchnorm.diagnosis.source.facts import Facts
from batchnorm.diagnosis.source.flake8 import Plugin
from batchnorm.diagnosis.source.rules import LOOKS
from batchnorm.errors import BatchNormError
from tests.command import run

RECIPE = "import torch\nbn.running_var = 0.5 * bn.running_var + 0.5 * bn.running_var\n"
EPS = "from torch import nn\nnn.BatchNorm2d(3, 0.8)\n"
NOTE = "from torch import nn\nnn.BatchNorm2d(3, momentum=0.6)\n"


def test_a_folder_with_what_is_no_python(tmp_path):
    (tmp_path / "a.py").write_text(RECIPE)
    (tmp_path / "b.py").write_text("def batch_norm(:\n")
    (tmp_path / "c.py").write_bytes(b"# batchnorm \xff\xfe\n")
    (tmp_path / "d.py").write_text("batch_norm = " + "(" * 3000 + ")" * 3000)
    (tmp_path / "venv").mkdir()
    (tmp_path / "venv" / "e.py").write_text(RECIPE)
    report = lint(tmp_path)
    assert [(f.code, f.layer) for f in report.findings] == [("BN401", f"{tmp_path / 'a.py'}:2")]
    why = {name.rsplit("/", 1)[1]: reason for name, reason in report.evidence.unreadable.items()}
    assert why.keys() == {"b.py", "c.py", "d.py"}
    assert why["b.py"].startswith("line 1: invalid syntax")
    assert why["c.py"].startswith("no text in the encoding it declares, or in UTF-8")
    assert not report.ok
    assert report.headline().endswith("3 not parsed whole)")
    with pytest.raises(BatchNormError, match="none at"):
        lint(tmp_path / "absent")


def test_what_can_be_read_of_a_broken_file_is_linted(tmp_path):
    (tmp_path / "a.py").write_text(EPS + "print 'done'\n")
    (tmp_path / "b.py").write_text("def f(:\n    pass\n" + EPS)
    report = lint(tmp_path)
    assert [f.layer.rsplit("/", 1)[1] for f in report.findings] == ["a.py:2", "b.py:4"]
    assert report.evidence.edits == {}  # no fix in a file that was not read as it stands


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"import torch\ndef f(:\n", r"path must be Python source; .*code.py is not: line 2: invalid syntax$"),
        (b"x = 1\n  y = 2\n", r"code.py is not: line 2: unexpected indent$"),
        (b"\x89PNG\xff\xfe\x00", r"code.py is not: no text in the encoding it declares, or in UTF-8"),
        (b"x = 1\n\x00\n", r"code.py is not: .*null bytes"),
        (b"x = " + b"(" * 3000 + b")" * 3000, r"code.py is not: .*(nested|too many)"),
    ],
)
def test_a_single_file_that_is_no_python_is_an_error(tmp_path, content, sentence):
    (tmp_path / "code.py").write_bytes(content)
    with pytest.raises(BatchNormError, match=sentence):
        lint(tmp_path / "code.py")


def test_a_single_file_of_python_2_is_read(tmp_path):
    (tmp_path / "code.py").write_text(EPS + "print 'done'\n")
    report = lint(tmp_path / "code.py")
    assert [f.code for f in report.findings] == ["BN417"]
    assert report.headline().endswith("1 not parsed whole)")


def test_a_folder_without_python_is_an_error(tmp_path):
    (tmp_path / "readme.txt").write_text("import torch\n")
    with pytest.raises(BatchNormError, match=r"path must hold Python source; there is no \.py file under"):
        lint(tmp_path)


def test_notes_are_in_the_verdict(tmp_path):
    (tmp_path / "a.py").write_text(NOTE)
    (tmp_path / "b.py").write_text("x = 1")
    report = lint(tmp_path)
    assert report.ok
    assert report.verdict == "1 note in 1 of 2 files"
    assert lint(tmp_path / "b.py").headline() == "Diagnosis: nothing to say about batch norm (1 file, 1 line)"


def test_select_and_ignore(tmp_path):
    (tmp_path / "a.py").write_text(EPS + RECIPE)
    codes = lambda **given: [f.code for f in lint(tmp_path, **given).findings]  # noqa: E731
    assert codes() == ["BN417", "BN401"]
    assert codes(select=["BN401"]) == ["BN401"]
    assert codes(ignore=["BN40"]) == ["BN417"]
    (tmp_path / "pyproject.toml").write_text('[tool.batchnorm.lint]\nignore = ["BN417"]\n')
    assert codes() == ["BN401"]
    with pytest.raises(BatchNormError, match="select must be made of codes"):
        lint(tmp_path, select=["BN9"])


def test_several_files_are_one_program(tmp_path):
    (tmp_path / "models.py").write_text(
        "from torch import nn\ndef build():\n    return nn.Sequential(nn.BatchNorm1d(3))\n"
    )
    (tmp_path / "main.py").write_text(
        "import torch\nfrom models import build\nnet = build()\nwith torch.no_grad():\n    net(x)\n"
    )
    assert [f.code for f in lint([tmp_path / "main.py", tmp_path / "models.py"]).findings] == ["BN405"]
    assert lint(tmp_path / "main.py").findings == []


def test_nothing_is_imported_or_run(tmp_path):
    (tmp_path / "a.py").write_text("import batchnorm_that_does_not_exist\nopen('here', 'w')\n")
    assert lint(tmp_path).ok
    assert not (tmp_path / "here").exists()


def test_fix_writes_what_the_diff_shows(tmp_path):
    file = tmp_path / "a.py"
    file.write_bytes(EPS.replace("\n", "\r\n").encode())
    evidence = lint(tmp_path).evidence
    assert "+nn.BatchNorm2d(3, momentum=0.2)" in evidence.difference()
    assert file.read_bytes() == EPS.replace("\n", "\r\n").encode()
    assert evidence.fix() == 1
    assert file.read_bytes() == b"from torch import nn\r\nnn.BatchNorm2d(3, momentum=0.2)\r\n"
    assert lint(tmp_path).findings == []


@pytest.mark.parametrize("value", ["8", "1", "1.0", "64", "len(names)"])
def test_what_can_be_no_momentum_is_not_written_as_one(tmp_path, value):
    (tmp_path / "a.py").write_text(f"import torch.nn as nn\nnn.BatchNorm2d(len(names), {value})\n")
    report = lint(tmp_path)
    (finding,) = report.findings
    assert (finding.code, finding.fix) == ("BN417", "leave the second argument out")
    assert not report.evidence.edits


def test_the_largest_momentum_is_written(tmp_path):
    (tmp_path / "a.py").write_text("import torch.nn as nn\nnn.BatchNorm2d(8, 0.99)\n")
    report = lint(tmp_path)
    assert [f.fix for f in report.findings] == ["momentum=0.01"]
    assert report.evidence.edits


def test_each_place_of_a_finding_can_be_read(tmp_path):
    text = "from torch import nn\na = nn.BatchNorm2d(8, 0.8)\nb = 1\nc = nn.BatchNorm2d(8, 0.8)\n"
    (tmp_path / "a.py").write_text(text)
    report = lint(tmp_path)
    assert [f.layer for f in report.findings] == [f"{tmp_path}/a.py:2"]
    assert report.to_dict()["also"] == {f"{tmp_path}/a.py:2 BN417": [f"{tmp_path}/a.py:4"]}
    found = list(Plugin(ast.parse(text), text.splitlines(keepends=True)).run())
    assert [(line, said.split(";")[0]) for line, _, said, _ in found] == [
        (n, found[0][2].split(";")[0]) for n in (2, 4)
    ]
    assert "also" not in found[0][2]


def test_flake8_plugin_gives_lines_and_texts():
    text = "import torch\ntorch.nn.BatchNorm2d(3, momentum=0.9)\n"
    (line, column, message, kind), *rest = Plugin(ast.parse(text), text.splitlines(keepends=True)).run()
    assert (line, column, kind, rest) == (2, 0, Plugin, [])
    assert message.startswith("BN403 momentum=0.9")


def test_command_line(tmp_path):
    (tmp_path / "a.py").write_text(EPS)
    result = run(tmp_path, "lint", "a.py", "--json")
    assert result.returncode == 1
    report = json.loads(result.stdout)
    assert [f["code"] for f in report["findings"]] == ["BN417"]
    assert report["fixable"] == {"a.py": 1}
    result = run(tmp_path, "lint", "a.py", "--fix")
    assert result.returncode == 0
    assert "+nn.BatchNorm2d(3, momentum=0.2)" in result.stdout
    assert run(tmp_path, "lint", "absent.py").returncode == 2


def fails_on(monkeypatch, code, word):
    """A rule that raises where a file has a word, and does its work elsewhere."""
    title, look = LOOKS[code]

    def broken(facts):
        if any(word in module.text for module in facts.modules):
            raise KeyError("lost")
        yield from look(facts)

    monkeypatch.setitem(LOOKS, code, (title, broken))


def test_a_rule_that_raises_stops_neither_the_other_rules_nor_the_other_files(tmp_path, monkeypatch):
    fails_on(monkeypatch, "BN417", "here")
    (tmp_path / "a.py").write_text(EPS + "import b\nhere = 1\n" + RECIPE)
    (tmp_path / "b.py").write_text(EPS)
    report = lint(tmp_path)
    assert sorted((f.code, f.layer.rsplit("/", 1)[1]) for f in report.findings) == [
        ("BN401", "a.py:6"),
        ("BN417", "b.py:2"),
    ]
    assert report.evidence.failed == {str(tmp_path / "a.py"): "BN417 failed (KeyError: lost)"}
    assert report.to_dict()["failed"] == report.evidence.failed
    (table,) = report.subject.tables()
    assert (table.title, table.rows) == ("not checked by all rules", [[*next(iter(report.evidence.failed.items()))]])
    assert report.headline().endswith("1 not checked by all rules)")


def test_a_program_that_cannot_be_interpreted_is_read_file_by_file(tmp_path, monkeypatch):
    def facts(project):
        if any("here" in module.text for module in project.modules.values()):
            raise ValueError
        return Facts(project)

    monkeypatch.setattr(check, "Facts", facts)
    (tmp_path / "a.py").write_text(EPS + "import b\nhere = 1\n")
    (tmp_path / "b.py").write_text(EPS)
    report = lint(tmp_path)
    assert [f.layer.rsplit("/", 1)[1] for f in report.findings] == ["b.py:2"]
    assert report.evidence.failed == {str(tmp_path / "a.py"): "all rules failed (ValueError)"}


def test_an_error_that_holds_what_the_program_is_stays_short(tmp_path, monkeypatch):
    class Endless:
        def __repr__(self):
            raise MemoryError

    def broken(facts):
        raise KeyError(Endless())

    monkeypatch.setitem(LOOKS, "BN417", (LOOKS["BN417"][0], broken))
    (tmp_path / "a.py").write_text(EPS)
    assert lint(tmp_path).evidence.failed == {str(tmp_path / "a.py"): "BN417 failed (KeyError)"}


def test_the_exit_code_says_that_a_rule_failed(tmp_path, monkeypatch):
    (tmp_path / "a.py").write_text(EPS)
    assert CliRunner().invoke(app, ["lint", str(tmp_path)]).exit_code == 1
    fails_on(monkeypatch, "BN403", "nn")
    result = CliRunner().invoke(app, ["lint", str(tmp_path)])
    assert (result.exit_code, "not checked by all rules" in result.stdout, "BN417" in result.stdout) == (2, True, True)


def test_flake8_says_that_a_rule_failed(monkeypatch):
    fails_on(monkeypatch, "BN417", "nn")
    found = [(line, message) for line, _, message, _ in Plugin(ast.parse(NOTE), NOTE.splitlines(keepends=True)).run()]
    assert [line for line, _ in found] == [2, 1]
    assert found[1][1] == "BN400 not checked: BN417 failed (KeyError: lost)"
