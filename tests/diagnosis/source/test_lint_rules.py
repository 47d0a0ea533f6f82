# ruff: noqa: E501
"""Every rule finds its cases in many spellings, is silent on models without batch norm, and on code that is right."""

import pytest

from batchnorm.diagnosis.source.rules import LOOKS
from tests.diagnosis.source import cases, conditional, holders, programs, purposes, scripts, spellings, training
from tests.diagnosis.source.read_code import found
from tests.diagnosis.source.textbook import KINDS

WRONG = [
    (code, source.HEAD, *(w if isinstance(w, tuple) else (w, "warning")))
    for source in (cases, training, programs, conditional, purposes, scripts, holders)
    for code, (wrong, _) in source.CASES.items()
    for w in wrong
]
RIGHT = [
    (code, source.HEAD + r)
    for source in (cases, training, programs, conditional, purposes, scripts, holders)
    for code, (_, right) in source.CASES.items()
    for r in right
]
SOME = ("a class", "torchvision", "a helper", "DataParallel")


@pytest.mark.parametrize(("code", "head", "text", "severity"), WRONG)
def test_finds_its_case_alone(code, head, text, severity):
    assert set(found(head + text)) == {(code, severity)}


@pytest.mark.parametrize(("code", "text"), RIGHT)
def test_is_silent_on_what_looks_like_it(code, text):
    assert found(text) == []


@pytest.mark.parametrize("model", spellings.WITH)
@pytest.mark.parametrize("code", spellings.MODES)
def test_finds_it_on_every_spelling_of_a_model(code, model):
    wrong, _ = spellings.MODES[code]
    severity = "note" if code == "BN412" else "warning"
    assert set(found(f"{spellings.HEAD}{spellings.WITH[model]}\n{wrong}")) == {(code, severity)}


@pytest.mark.parametrize("model", spellings.WITHOUT)
@pytest.mark.parametrize("code", spellings.MODES)
def test_is_silent_on_a_model_without_batch_norm(code, model):
    wrong, _ = spellings.MODES[code]
    head = spellings.HEAD.replace("norm_layer=nn.BatchNorm2d", "norm_layer=nn.GroupNorm")
    assert found(f"{head}{spellings.WITHOUT[model]}\n{wrong}") == []


@pytest.mark.parametrize("model", SOME)
@pytest.mark.parametrize(
    ("code", "at"), [(code, at) for code, (_, right) in spellings.MODES.items() for at in range(len(right))]
)
def test_is_silent_where_the_model_is_used_as_it_should_be(code, at, model):
    right = spellings.MODES[code][1][at]
    assert found(f"{spellings.HEAD}{spellings.WITH[model]}\n{right}") == []


def test_every_rule_has_cases():
    textbook = {code for kind in KINDS for code in kind.WRONG}
    written = {code for source in (cases, training, programs, scripts) for code in source.CASES}
    assert {"BN401", "BN410", *written, *spellings.MODES, *textbook} == set(LOOKS)


def test_update_bn_with_dropout():
    head = "from torch import nn\nfrom torch.optim.swa_utils import update_bn\n"
    assert found(head + "net = nn.Sequential(nn.Dropout(0.5), nn.BatchNorm1d(3))\nupdate_bn(loader, net)") == [
        ("BN410", "note")
    ]
    assert found(head + "net = nn.Sequential(nn.BatchNorm1d(3))\nupdate_bn(loader, net)") == []


def test_thop_moves_nothing():
    text = "from thop import profile\nfrom torch import nn\nnet = nn.Sequential(nn.BatchNorm2d(3))\nprofile(net, inputs=(x,))"
    assert found(text) == []


def test_a_summary_matters_once_weights_are_loaded():
    head = (
        "import torch\nfrom torch import nn\nfrom torchsummary import summary\nnet = nn.Sequential(nn.BatchNorm2d(3))\n"
    )
    load = "net.load_state_dict(torch.load('a.pt'))\n"
    assert found(head + load + "summary(net, (3, 8, 8))") == [("BN412", "note")]
    assert found(head + "summary(net, (3, 8, 8))") == []
    assert found(head + load + "net.eval()\nsummary(net, (3, 8, 8))") == []
    made = """
class Net(nn.Module):
    def __init__(self, file=None):
        super().__init__()
        self.body = nn.Sequential(nn.BatchNorm2d(3))
        if file is not None:
            self.body.load_state_dict(torch.load(file))
"""
    assert found(head + made + "summary(Net(), (3, 8, 8))") == []
    sure = made.replace("        if file is not None:\n    ", "")
    assert found(head + sure + "summary(Net('a.pt'), (3, 8, 8))") == [("BN412", "note")]


def test_names_are_followed_from_file_to_file():
    models = "from torch import nn\nfrom config import MOMENTUM\nclass Net(nn.Module):\n    def __init__(self):\n        super().__init__()\n        self.bn = nn.BatchNorm1d(3, momentum=MOMENTUM)\n    def forward(self, x):\n        return self.bn(x)\n"  # fmt: skip
    steps = "import torch\ndef validate(net, loader):\n    with torch.no_grad():\n        net(next(loader))\n"
    main = "from models import Net\nfrom steps import validate\nnet = Net()\nnet.train()\nvalidate(net, loader)\n"
    assert found(main, models=models, steps=steps, config="MOMENTUM = 0.1") == [("BN405", "warning")]
    fixed = main.replace("net.train()", "net.eval()")
    assert found(fixed, models=models, steps=steps, config="MOMENTUM = 0.1") == []
    assert found(fixed, models=models, steps=steps, config="MOMENTUM = 0.99") == [("BN403", "warning")]


def test_files_that_import_each_other_and_functions_that_call_themselves():
    one = "from two import b\nfrom torch import nn\ndef a(net):\n    return b(net)\nnet = nn.BatchNorm1d(3)\na(net)\n"
    two = "from one import a\ndef b(net):\n    net(1)\n    return a(net)\n"
    assert found("x = 1", one=one, two=two) == []


def test_a_layer_that_is_never_used_does_not_count():
    text = "import torch\nfrom torch import nn\nclass Net(nn.Module):\n    def __init__(self):\n        super().__init__()\n        self.norm, self.fc = None, nn.Linear(3, 3)\n        self.bn = nn.BatchNorm1d(3)\n    def forward(self, x):\n        return {}\nnet = Net()\nwith torch.no_grad():\n    net(x)\n"  # fmt: skip
    assert found(text.replace("{}", "self.fc(x)")) == []
    assert found(text.replace("{}", "self.bn(x)")) == [("BN405", "warning")]


def test_notes_of_one_rule_are_one_a_file():
    from tests.diagnosis.source.read_code import located

    (note,) = located({"code.py": "from torch import nn\n" + "nn.BatchNorm2d(3, momentum=0.6)\n" * 3})
    assert note.line == 2
    assert note.finding.message.startswith("maybe: momentum=0.6 is the weight of the NEW batch")
    assert note.finding.message.endswith("(also in lines 3, 4)")


def test_the_forward_of_a_plain_class_is_a_method_like_others():
    head = "import torch\nfrom torch import nn\n"
    held = """
class Held:
    def __init__(self):
        self.net = nn.Sequential(nn.BatchNorm2d(3))
    def setup(self):
        self.net.eval()
    def forward(self):
        self.y = self.net(self.x)
def predict(x):
    held = Held()
    {}
    held.x = x
    with torch.no_grad():
        held.forward()
    return held.y
"""
    assert found(head + held.format("held.setup()")) == []
    assert found(head + held.format("pass")) == [("BN405", "warning")]
