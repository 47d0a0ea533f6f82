"""The command line as a person runs it, in another process."""

import json

import pytest
import torch

from tests.command import run
from tests.sampling import slow_but

FACTORIES = """
import torch
from torch import nn
def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
def plain():
    return nn.Linear(2, 2)
def data():
    return list((torch.randn(64, 3, 6, 6, generator=torch.Generator().manual_seed(0)) + 3).split(32))
def empty():
    return []
def broken():
    return [torch.full((8, 3, 6, 6), float("nan"))]
NUMBER = 3
def gray():
    return torch.randn(8, 1, 6, 6).split(4)
def one():
    return torch.randn(8, 3, 6, 6)
def asks(something):
    return []
def fails():
    raise OSError("the disk is away")
def word(output, batch):
    return "good"
"""


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "mine.py").write_text(FACTORIES)
    return tmp_path


def test_diagnose_then_recalibrate_then_diagnose(folder):
    first = run(folder, "diagnose", "--model", "mine:model", "--data", "mine:data", "--json", "--html", "r.html")
    assert first.returncode == 1, first.stderr
    assert json.loads(first.stdout)["findings"][0]["code"] == "BN101"
    assert "<svg" in (folder / "r.html").read_text()
    repair = run(folder, "recalibrate", "--model", "mine:model", "--data", "mine:data", "--out", "fixed.pt", "--json")
    assert repair.returncode == 0, repair.stderr
    assert json.loads(repair.stdout)["samples"] == 64
    state = torch.load(folder / "fixed.pt", weights_only=True)
    assert int(state["1.num_batches_tracked"]) == 2
    again = run(folder, "diagnose", "--model", "mine:model", "--data", "mine:data", "--weights", "fixed.pt")
    assert again.returncode == 0, again.stdout + again.stderr
    assert "your statistics are fine" in again.stdout


def test_safetensors(folder):
    out = run(folder, "recalibrate", "--model", "mine:model", "--data", "mine:data", "--out", "f.safetensors")
    assert out.returncode == 0, out.stderr
    again = run(folder, "diagnose", "--model", "mine:model", "--data", "mine:data", "--weights", "f.safetensors")
    assert again.returncode == 0, again.stderr


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (
            ["--model", "mine:model", "--data", "mine:data", "--weights", "none.pt"],
            "there is none at none.pt",
        ),
        (
            ["--model", "mine:model", "--data", "mine:data", "--weights", "mine.py"],
            "mine.py is no torch.save file",
        ),
        (["--model", "mine:model", "--data", "mine:data", "--weights", "other.pt"], "must fit the model"),
        (["--model", "mine", "--data", "mine:data"], "must be MODULE:FACTORY"),
        (["--model", "yours:model", "--data", "mine:data"], "there is no yours"),
        (["--model", "mine.py:model", "--data", "mine:data"], "must name a module, not a file: mine:model"),
        (
            ["--model", "needs:model", "--data", "mine:data"],
            "ModuleNotFoundError in needs.py:2: No module named 'nope'",
        ),
        (["--model", "slip:model", "--data", "mine:data"], "SyntaxError in slip.py:1"),
        (["--model", "mine:modle", "--data", "mine:data"], "did you mean mine:model?"),
        (["--model", "mine:model", "--data", "mine:gray"], "expected input[4, 1, 6, 6] to have 3 channels"),
        (["--model", "mine:model", "--data", "mine:one"], "one tensor of shape (8, 3, 6, 6)"),
        (["--model", "mine:model", "--data", "mine:asks"], "must name a function that runs without arguments"),
        (["--model", "mine:model", "--data", "mine:fails"], "OSError in mine.py:23: the disk is away"),
        (["--model", "mine:model", "--data", "mine:data", "--weights", "empty.pt"], "empty.pt is empty"),
        (["--model", "mine:model", "--data", "mine:data", "--weights", "cut.pt"], "cut.pt is cut off or damaged"),
        (["--model", "mine:model", "--data", "mine:data", "--weights", "two.pt"], "Add --key model"),
        (["--model", "mine:model", "--data", "mine:data", "--weights", "two.pt", "--key", "emma"], "it was 'emma'"),
        (["--model", "mine:absent", "--data", "mine:data"], "absent"),
        (["--model", "mine:NUMBER", "--data", "mine:data"], "must name a function"),
        (["--model", "mine:data", "--data", "mine:data"], "must name a factory of a torch.nn.Module"),
        (["--model", "mine:plain", "--data", "mine:data"], "Linear has none"),
        (["--model", "mine:model", "--data", "mine:empty"], "at least one batch"),
        (["--model", "mine:model", "--data", "mine:broken"], "NaN or infinity"),
    ],
)
@pytest.mark.parametrize("verb", slow_but(["diagnose", "recalibrate"], {"diagnose"}))
def test_bad_input_is_one_sentence_exit_code_two_and_no_file(folder, verb, arguments, sentence):
    torch.save({"weight": torch.zeros(1)}, folder / "other.pt")
    two = {name: torch.nn.BatchNorm2d(4).state_dict() for name in ("model", "ema")}
    torch.save(two, folder / "two.pt")
    (folder / "cut.pt").write_bytes((folder / "other.pt").read_bytes()[:400])
    (folder / "empty.pt").touch()
    (folder / "needs.py").write_text("import torch\nimport nope\n")
    (folder / "slip.py").write_text("def model(:\n")
    out = ["--out", "out.pt"] if verb == "recalibrate" else []
    result = run(folder, verb, *arguments, *out)
    assert result.returncode == 2
    assert sentence in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
    assert not (folder / "out.pt").exists()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["diagnose", "--model", "mine:model", "--data", "mine:data", "--metric", "mine:word"], "return a number"),
        (["diagnose", "--model", "mine:model", "--data", "mine:data", "--metric", "mine:plain"], "TypeError"),
        (["diagnose", "--model", "mine:model", "--data", "mine:data", "--html", "no/r.html"], "--html must lie in"),
        (["recalibrate", "--model", "mine:model", "--data", "mine:data", "--out", "no/x.pt"], "--out must lie in"),
        (["demo", "--report", "no/r.html"], "--report must lie in"),
        (["translate", "a.pt", "no/b.pt"], "the target must lie in"),
    ],
)
def test_other_bad_input_is_one_sentence_before_any_work(folder, arguments, sentence):
    result = run(folder, *arguments)
    assert (result.returncode, result.stdout) == (2, "")
    assert sentence in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1


def test_all_of_an_error_is_shown_where_asked(folder, monkeypatch):
    monkeypatch.setenv("BATCHNORM_TRACEBACK", "1")
    result = run(folder, "diagnose", "--model", "mine:model", "--data", "mine:fails")
    assert result.returncode == 1
    assert "Traceback" in result.stderr
    assert result.stderr.strip().endswith("OSError: the disk is away")


@pytest.mark.parametrize("columns", [40, 80, 200])
def test_a_fix_is_never_broken_and_can_be_pasted(folder, monkeypatch, columns):
    monkeypatch.setenv("COLUMNS", str(columns))
    shown = run(folder, "diagnose", "--model", "mine:model", "--data", "mine:data").stdout
    assert "  fix: batchnorm.recalibrate(model, loader)" in shown
    command = next(line for line in shown.splitlines() if line.startswith("The same in a shell: ")).split(": ", 1)[1]
    assert run(folder, *command.split()[1:]).returncode == 0
    assert (folder / "fixed.pt").exists()


def test_what_was_not_asked_or_not_reached_is_said(folder):
    arguments = ("recalibrate", "--model", "mine:model", "--data", "mine:data", "--out", "out.pt", "--until", "1e-9")
    shown = " ".join(run(folder, *arguments).stdout.split())
    assert "without --weights, so with the weights that the factory gave it" in shown
    assert "2 batches: no error bar" in shown
    assert "The data ended before --until 1e-09" in shown


def test_help_names_the_options(folder):
    shown = run(folder, "recalibrate", "--help").stdout
    assert all(word in shown for word in ("--model", "--data", "--weights", "--out"))


def test_inspect_one_file_and_two(folder):
    model = torch.nn.BatchNorm1d(3)
    torch.save(model.state_dict(), folder / "a.pt")
    first = run(folder, "inspect", "a.pt", "--json")
    assert first.returncode == 1, first.stderr
    assert json.loads(first.stdout)["findings"][0]["code"] == "BN201"
    model(torch.randn(32, 3))
    torch.save(model.state_dict(), folder / "b.pt")
    second = run(folder, "inspect", "a.pt", "b.pt", "--html", "r.html")
    assert second.returncode == 1, second.stderr
    assert "BN223" in second.stdout
    assert "in a.pt: running_mean is 0" in " ".join(second.stdout.split())
    assert (folder / "r.html").exists()
    assert run(folder, "inspect", "absent.pt").returncode == 2


def test_diagnose_with_a_metric(folder):
    with (folder / "mine.py").open("a") as file:
        file.write("def size(output, batch):\n    return output.shape[0]\n")
    arguments = ["--model", "mine:model", "--data", "mine:data", "--metric", "mine:size", "--eval-data", "mine:data"]
    result = run(folder, "diagnose", *arguments, "--json")
    assert json.loads(result.stdout)["metric"] == {
        name: 32.0 for name in ("stored", "batch", "recalibrated", "eval_stored", "eval_own", "eval_exact")
    }
    assert run(folder, "diagnose", *arguments[:4], "--metric", "mine:absent").returncode == 2
