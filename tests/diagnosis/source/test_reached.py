"""A finding counts for less where no program of the files reaches its code, or where one fact is likely alone."""

import pytest

from tests.diagnosis.source.read_code import located

LAYER = "from torch import nn\nclass Net(nn.Module):\n    def __init__(self):\n        super().__init__()\n"
LAYER += "        self.bn = nn.BatchNorm2d(8, momentum=0.9)\n    def forward(self, x):\n        return self.bn(x)\n"
MAIN = "if __name__ == '__main__':\n    main()\n"
STEP = "    for x in y:\n        loss.backward()\n"


def severities(files):
    return [f.finding.severity for f in located(files)]


@pytest.mark.parametrize(
    "program",
    [
        "from net import Net\ndef main():\n    net = Net()\n" + STEP + MAIN,
        "import net\ndef main():\n    net.Net()\n" + STEP + MAIN,
        "from net import Net as N\ndef main():\n    N()\n" + STEP + MAIN,
        "import net\ndef main(name):\n    net.__dict__[name]()\n" + STEP + MAIN,
        "import net\ndef main(name):\n    getattr(net, name)()\n" + STEP + MAIN,
        "import net\ndef main(name):\n    getattr(net, 'Net')()\n" + STEP + MAIN,
        "from net import *\ndef main():\n    Net()\n" + STEP + "main()\n",
        "from net import Net\nclass Runner:\n    def run(self):\n        Net()\n    "
        + STEP.replace("\n    ", "\n        ")
        + "Runner().run()\nfor i in x:\n    print(i)\n",
        "import importlib, net\ndef main(name):\n    importlib.import_module(name)\n" + STEP + MAIN,
        "from net import Net\ndef build():\n    return Net()\n" + STEP,  # a library
    ],
)
def test_code_that_a_program_reaches_keeps_its_warning(program):
    assert severities({"net.py": LAYER, "run.py": program}) == ["warning"]


@pytest.mark.parametrize(
    "program",
    [
        "from net import Net\ndef main():\n    pass\n" + STEP + MAIN,
        "from net import Net\ndef old():\n    Net()\ndef main():\n    pass\n" + STEP + MAIN,
        "from net import Net\nclass Old:\n    def run(self):\n        Net()\ndef main():\n    pass\n" + STEP + MAIN,
        "from net import Net\nclass New:\n    def old(self):\n        Net()\ndef main():\n    New()\n" + STEP + MAIN,
        "import net\ndef main(args):\n    print(args.__dict__)\n" + STEP + MAIN,
    ],
)
def test_code_that_no_program_reaches_is_a_note(program):
    assert severities({"net.py": LAYER, "run.py": program}) == ["note"]


def test_a_program_that_does_not_train_is_not_the_only_one():
    program = "from net import Net\nif __name__ == '__main__':\n    print(1)\n"
    train = "from net import Net\nimport run\ndef train():\n    Net()\n" + STEP
    assert severities({"net.py": LAYER, "run.py": program, "train.py": train}) == ["warning"]


def test_what_a_unit_test_makes_is_a_note():
    text = LAYER + "def test_it():\n    assert Net()\n"
    assert severities({"test_net.py": text}) == ["note"]
    assert severities({"net_test.py": text}) == ["warning"]


@pytest.mark.parametrize(
    ("call", "severity"),
    [("Net()", "note"), ("Net(bn=True)", "warning"), ("Net(True)", "warning"), ("Net(*given)", "warning")],
)
def test_a_branch_that_a_default_excludes_is_a_note(call, severity):
    text = LAYER.replace("self):\n        super", "self, bn=False):\n        super", 1)
    text = text.replace("        self.bn =", "        if bn:\n            self.bn =")
    program = f"from net import Net\ndef main(given):\n    {call}\n" + STEP + MAIN
    assert severities({"net.py": text, "run.py": program}) == [severity]


def test_a_note_where_one_of_the_models_has_no_batch_norm():
    text = LAYER.replace(", momentum=0.9", "") + (
        "class Plain(nn.Module):\n    def __init__(self):\n        super().__init__()\n"
        "        self.fc = nn.Linear(8, 8)\n"
        "    def forward(self, x):\n        return self.fc(x)\n"
        "import torch\nnet = CHOICE\nnet.load_state_dict(torch.load('a'))\nwith torch.no_grad():\n    for x in y:\n"
        "        print(net(x))\n"
    )
    assert severities({"a.py": text.replace("CHOICE", "Net()")}) == ["warning"]
    assert severities({"a.py": text.replace("CHOICE", "Net() if small else Plain()")}) == ["note"]
    assert severities({"a.py": text.replace("CHOICE", "Plain()")}) == []


def test_a_rule_gives_one_note_and_names_the_other_places():
    text = LAYER.replace("0.9", "0.5")
    twice = text + "        self.bn2 = nn.BatchNorm2d(8, momentum=0.5)\n"
    (note,) = located({"a.py": twice, "b.py": text, "c.py": text})
    assert (note.path, note.line, note.finding.severity) == ("/program/a.py", 5, "note")
    assert note.finding.message.endswith("(also in /program/b.py:5, /program/c.py:5)")
