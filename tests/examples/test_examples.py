"""The examples: what each returns shows what it claims; the notebooks are the scripts, and run."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.loading import load

EXAMPLES = Path(__file__).parents[2] / "examples"
NOTEBOOKS = EXAMPLES / "notebooks"
SCRIPTS = sorted(path.stem for path in EXAMPLES.glob("*.py") if path.stem != "example_tools")


@pytest.fixture(autouse=True)
def _threads():
    """The examples run on one thread, and set it once, when they are first imported."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def example(path, monkeypatch):
    monkeypatch.syspath_prepend(str(EXAMPLES))
    return load(path)


def four_steps(found):
    assert max(found["normalise"], found["move"], found["inference"]) < 2e-5
    assert found["left"] == pytest.approx(0.9**20)


def repair(found):
    assert found["named"]
    assert found["ok"]
    assert found["batch"] < 10 < 40 < found["stored"]
    assert found["repaired"] < 10
    assert found["undone"] == found["stored"]


def lag(found):
    assert found["warned"]
    assert found["EMA, gain 0.01"] > 2 * found["debiased, gain 0.01"] > 2 * found["recalibrated"]
    assert found["cumulative"] > found["recalibrated"]
    assert found["recalibrated"] < 8


def own_method(found):
    assert found["natively"] in (3, 0)
    assert found["layers"] == 3
    assert found["apart"] < 1e-4
    assert found["own"] < 60


def small_batches(found):
    assert found["renorm"] < found["batchnorm"] / 2
    assert found["frozen for the last fifth"] < found["batchnorm"] / 2
    assert found["batchnorm, recalibrated"] > 2 * found["frozen for the last fifth"]
    assert found["pairs, mabn"] < found["pairs, batchnorm"]


def pruning(found):
    assert found["dense"] < 4
    for part in (0.4, 0.6, 0.7, 0.8):
        assert found[f"recalibrated {part}"] < found[f"stored {part}"]
    assert found["recalibrated 0.6"] < 5 < 10 < found["stored 0.6"]


def merging(found):
    assert found["order of matched"] == pytest.approx(0, abs=0.5)
    assert found["variance, not matched"] < 0.65 < found["variance, matched"] < 1
    assert found["average, not matched, recalibrated"] < 0.75 * found["average, not matched"]
    assert found["average, matched"] < 0.5 * found["average, not matched"]
    assert found["average, matched, recalibrated"] < 6


def padding(found):
    assert found["masked"] < found["plain"] - 2
    assert found["masked factor"] < 1.1 < 1.2 < found["plain factor"]


def crossq(found):
    assert found["union"] < 0.75 * found["apart"]
    assert found["union"] < 0.75 * found["guess"]
    assert found["updates apart"] == 2 * found["updates union"] == 2 * found["steps"]


def domains(found):
    for name in ("scans", "negatives"):
        assert found[f"{name}, its own bank"] < 6 < 20 < found[f"{name}, shared statistics"]
    assert found["faint scans, bank measured on them"] < 6 < 40 < found["faint scans, bank of the scans"]
    assert found["stock differs"] < 1e-4


def gan(found):
    assert found["initial"] > 2 * found["standing"]
    assert found["standing"] < found["copied"]
    assert found["standing"] == pytest.approx(found["batch"], rel=0.1)
    assert found["truncated bank"] < found["truncated"] / 4


CLAIMS = [four_steps, repair, lag, small_batches, pruning, merging, padding, crossq, domains, gan, own_method]


def test_every_script_has_its_claim_and_its_notebook():
    assert sorted(claim.__name__ for claim in CLAIMS) == SCRIPTS
    assert sorted(path.stem for path in NOTEBOOKS.glob("*.ipynb")) == SCRIPTS
    page = (EXAMPLES.parent / "docs" / "examples.md").read_text()
    assert [name for name in SCRIPTS if f"`{name}.py`" not in page] == []


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:BN308")
@pytest.mark.parametrize("claim", CLAIMS, ids=lambda claim: claim.__name__)
def test_a_script_shows_what_it_claims(claim, monkeypatch):
    found = example(EXAMPLES / f"{claim.__name__}.py", monkeypatch).run()
    claim(found)


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_notebook_is_its_script(name, monkeypatch):
    made = example(NOTEBOOKS / "make.py", monkeypatch).notebook(EXAMPLES / f"{name}.py")
    path = NOTEBOOKS / f"{name}.ipynb"
    kept = json.loads(path.read_text())
    sources = [[(cell["cell_type"], "".join(cell["source"])) for cell in one["cells"]] for one in (made, kept)]
    assert sources[0] == sources[1], "run: python examples/notebooks/make.py"
    assert sources[0][-1] == ("code", "figures = run()")
    printed = kept["cells"][-1]["outputs"]
    assert [out["output_type"] for out in printed] == ["stream"]
    assert "\x1b" not in path.read_text()
    assert path.stat().st_size < 20_000


@pytest.mark.slow
@pytest.mark.parametrize("name", SCRIPTS)
def test_a_notebook_runs(name, tmp_path):
    pytest.importorskip("nbclient", reason="the notebooks are NOT run: nbclient is missing")
    command = [sys.executable, str(NOTEBOOKS / "make.py"), name, "--quick", "--to", str(tmp_path)]
    subprocess.run(command, check=True, capture_output=True, timeout=300)
    cells = json.loads((tmp_path / f"{name}.ipynb").read_text())["cells"]
    assert "┃" in "".join("".join(out["text"]) for out in cells[-1]["outputs"])


@pytest.mark.slow
def test_a_script_runs_from_the_command_line():
    command = [sys.executable, str(EXAMPLES / "four_steps.py"), "--quick"]
    shown = subprocess.run(command, check=True, capture_output=True, text=True, timeout=120).stdout
    assert "over 4 batches" in shown
