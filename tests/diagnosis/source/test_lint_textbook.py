"""Every kind of mistake in textbook spellings, and sound code that looks like it."""

import pytest

from tests.diagnosis.source.read_code import found, located
from tests.diagnosis.source.textbook import KINDS
from tests.diagnosis.source.textbook.head import HEAD

WRONG = [(code, *case) for kind in KINDS for code, cases in kind.WRONG.items() for case in cases]
RIGHT = [text for kind in KINDS for text in kind.RIGHT]


@pytest.mark.parametrize(("code", "text", "severity"), WRONG)
def test_finds_the_mistake_alone(code, text, severity):
    assert set(found(HEAD + text)) == {(code, severity)}


@pytest.mark.parametrize("text", RIGHT)
def test_is_silent_on_sound_code(text):
    assert found(HEAD + text) == []


SWA = (
    HEAD
    + """
from torch.optim.swa_utils import AveragedModel, update_bn

def main(loader):
    model = Net()
    swa = AveragedModel(model)
    for x, y in loader:
        model.train()
        model(x).sum().backward()
        swa.update_parameters(model)
    swa.eval()
    return swa(x)
"""
)


def test_what_an_unconnected_file_does_excuses_nothing():
    other = "from torch.optim.swa_utils import update_bn\ndef f(loader, swa):\n    update_bn(loader, swa)\n"
    where = {f.path.rsplit("/", 1)[-1]: f.finding.code for f in located({"swa.py": SWA, "other.py": other})}
    assert where == {"swa.py": "BN409"}


@pytest.mark.parametrize(
    "files",
    [
        {"swa.py": SWA + "\nimport other\n", "other.py": "def f(loader, swa):\n    update_bn(loader, swa)\n"},
        {"other.py": "from swa import main\ndef f(loader, swa):\n    update_bn(loader, swa)\n", "swa.py": SWA},
        {"a/__init__.py": "", "a/swa.py": SWA, "a/other.py": "def f(loader, swa):\n    update_bn(loader, swa)\n"},
        {
            "run.py": "import swa, other\n",
            "swa.py": SWA,
            "other.py": "def f(loader, swa):\n    update_bn(loader, swa)\n",
        },
        {"run.py": "importlib.import_module(n)\n", "swa.py": SWA, "other.py": "def f(l, s):\n    update_bn(l, s)\n"},
    ],
)
def test_what_connected_files_do_counts(files):
    assert located(files) == []
