"""Nothing is said of code that no program of the files reaches, and less where one fact is likely alone."""

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
        "import net\nfrom other import Net\ndef main():\n    Net()\n" + STEP + MAIN,  # another one of that name
    ],
)
def test_nothing_is_said_of_code_that_no_program_reaches(program):
    other = "from torch import nn\nclass Net(nn.Module):\n    pass\n"
    assert severities({"net.py": LAYER, "run.py": program, "other.py": other}) == []


def test_a_library_with_tests_is_a_library():
    test = "import pool\ndef test_it():\n    pool.step().backward()\n"
    files = {"net.py": LAYER, "pool.py": "import net\ndef step():\n    return 1\n", "test_net.py": test}
    assert severities(files) == ["warning"]
    assert severities(files | {"run.py": "import pool\nif __name__ == '__main__':\n    pool.step().backward()\n"}) == []


def test_a_name_may_mean_what_a_file_of_its_imports_brings():
    program = "import models\ndef main():\n    models.Net()\n" + STEP + MAIN
    files = {"models/__init__.py": "from .net import *\n", "models/net.py": LAYER, "run.py": program}
    assert severities(files) == ["warning"]


def test_a_program_that_does_not_train_is_not_the_only_one():
    program = "from net import Net\nif __name__ == '__main__':\n    print(1)\n"
    train = "from net import Net\nimport run\ndef train():\n    Net()\n" + STEP
    assert severities({"net.py": LAYER, "run.py": program, "train.py": train}) == ["warning"]


def test_nothing_is_said_of_what_a_unit_test_makes():
    text = LAYER + "def test_it():\n    assert Net()\n"
    assert severities({"test_net.py": text}) == []
    assert severities({"net_test.py": text}) == ["warning"]


@pytest.mark.parametrize(
    ("call", "said"),
    [("Net()", []), ("Net(bn=True)", ["warning"]), ("Net(True)", ["warning"]), ("Net(*given)", ["warning"])],
)
def test_nothing_is_said_of_a_branch_that_a_default_excludes(call, said):
    text = LAYER.replace("self):\n        super", "self, bn=False):\n        super", 1)
    text = text.replace("        self.bn =", "        if bn:\n            self.bn =")
    program = f"from net import Net\ndef main(given):\n    {call}\n" + STEP + MAIN
    assert severities({"net.py": text, "run.py": program}) == said


def test_nothing_is_said_of_what_no_call_switches_on():
    """Of functions that hand on a parameter, which nothing gives another value than its default."""
    layer = LAYER.replace("self):\n        super", "self, bn=False):\n        super", 1)
    layer = layer.replace("nn.BatchNorm2d(8, momentum=0.9)", "nn.BatchNorm2d(8, momentum=0.9) if bn else None")
    block = "from net import Net\ndef block(bn=False):\n    return [Net(bn=bn), Net(bn)]\n"
    program = "from block import block\ndef main():\n    block(CALL)\n" + STEP + MAIN
    files = {"net.py": layer, "block.py": block}
    assert severities(files | {"run.py": program.replace("CALL", "")}) == []
    assert severities(files | {"run.py": program.replace("CALL", "False")}) == []
    assert severities(files | {"run.py": program.replace("CALL", "bn=True")}) == ["warning"]
    assert severities(files | {"run.py": program.replace("CALL", "args.bn")}) == ["warning"]
    heir = "from net import Net\nclass Own(Net):\n    def __init__(self):\n        super().__init__(True)\n"
    assert severities(files | {"run.py": heir + program.replace("CALL", "")}) == ["warning"]


def test_a_file_beside_a_program_that_nothing_imports_is_not_run():
    program = "def main():\n    model = build()\n    step = SGD(model.parameters())\n" + STEP + MAIN
    assert severities({"models/net.py": LAYER, "models/run.py": program}) == []
    assert severities({"other/net.py": LAYER, "models/run.py": program}) == ["warning"]
    assert severities(
        {"net.py": LAYER, "run.py": program.replace("    model", "    execfile('net.py')\n    model")}
    ) == ["warning"]


@pytest.mark.parametrize(
    "acts",
    [
        "if args.train:\n    for x in y:\n        train()\n",
        "args = parser.parse_args()\n",
        "try:\n    train()\nexcept KeyboardInterrupt:\n    pass\n",
        "with open('a') as file:\n    train()\n",
    ],
)
def test_a_script_is_a_program_by_what_it_does(acts):
    script = "from net import Net\ndef train():\n    Net()\n" + STEP + acts
    assert severities({"net.py": LAYER, "run.py": script.replace("args = parser", "train()\nargs = parser")}) == [
        "warning"
    ]


def test_a_name_is_looked_up_where_it_stands():
    """Of two files with a class of one name; of imports in branches; of all names of a file."""
    other = LAYER.replace("momentum=0.9", "momentum=0.95")
    files = {"net.py": LAYER, "other.py": other}
    program = "def main(name):\n    IMPORT\n    Net()\n" + STEP + MAIN
    both = "if name:\n        from net import Net\n    else:\n        from other import Net"
    assert len(located(files | {"run.py": program.replace("IMPORT", "from net import Net")})) == 1
    assert len(located(files | {"run.py": program.replace("IMPORT", both)})) == 2
    stars = "from net import *\nfrom other import *\ndef main(name):\n    eval(name)()\n" + STEP + MAIN
    assert len(located(files | {"run.py": stars})) == 2


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


def test_a_rule_gives_one_warning_a_file_and_names_the_other_lines():
    more = "        self.bn2 = nn.BatchNorm2d(8, momentum=0.9)\n        self.bn3 = nn.BatchNorm2d(8, momentum=0.95)\n"
    twice = LAYER.replace("    def forward", more + "    def forward")
    first, other, second = located({"a.py": twice, "b.py": LAYER})
    assert (first.path, first.line, first.finding.severity) == ("/program/a.py", 5, "warning")
    assert first.finding.message.endswith("(also in line 6)")
    assert (other.line, "(also" in other.finding.message) == (7, False)
    assert (second.path, "(also" in second.finding.message) == ("/program/b.py", False)
