"""The literal values of parameters over all calls, and the branches that none of them lets in."""

import ast
from pathlib import Path

import pytest

from batchnorm.diagnosis.source.parameters import Parameters, function_at
from batchnorm.diagnosis.source.project import Project

LAYER = "class Layer(Module):\n    def __init__(self, c, bn=False):\n        self.bn = Norm(c) if bn else None\n"
NET = "class Net:\n    def __init__(self, bn=False):\n        self.use = bn\n        Layer(3, self.use)\n"
CHOICE = """\
def norm(c, kind=None):
    if kind is None:
        return 1
    elif kind == 'batch':
        return Norm(c)
"""


def read(text, **others):
    project = Project(Path("/program"))
    for name, file in {"code": text, **others}.items():
        project.add(Path(f"/program/{name}.py"), file, ast.parse(file))
    modules = list(project.modules.values())
    for info in (c for module in modules for c in module.classes):
        for base in info.lineage[1:]:
            base.heirs.append(info)
    return modules


def values(text, function="__init__", name="bn", **others):
    modules = read(text, **others)
    info = next(f for f in modules[0].functions if f.name == function)
    return Parameters(modules).values(info, name)


@pytest.mark.parametrize(
    ("calls", "known"),
    [
        ("", {False}),
        ("Layer(3)\n", {False}),
        ("Layer(3, True)\n", {True}),
        ("Layer(3)\nLayer(3, bn=True)\n", {False, True}),
        ("Layer(3, bn=None)\nLayer(3, bn='batch')\n", {None, "batch"}),
        ("ON = True\nLayer(3, bn=ON)\n", {True}),
        ("def make(bn=False):\n    return Layer(3, bn)\nmake()\n", {False}),
        ("def make(bn=False):\n    return Layer(3, bn)\nmake(True)\n", {True}),
        ("def one(b):\n    return two(b)\ndef two(b):\n    return Layer(3, b)\none(True)\none(False)\n", {True, False}),
        (
            "class Net:\n    def __init__(self, bn=False):\n        self.use = bn\n        Layer(3, self.use)\nNet()\n",
            {False},
        ),
        ("class Own(Layer):\n    pass\nOwn(3, True)\n", {True}),
        ("class Own(Layer):\n    def __init__(self):\n        super().__init__(3, bn=True)\n", {True}),
        ("isinstance(x, Layer)\nLayer(3)\n", {False}),
    ],
)
def test_all_calls_are_known(calls, known):
    assert values(LAYER + calls) == known


@pytest.mark.parametrize(
    "calls",
    [
        "Layer(3, args.bn)\n",
        "Layer(*given)\n",
        "Layer(3, **given)\n",
        "blocks = [Layer]\n",
        "build(Layer)\n",
        "from functools import partial\npartial(Layer, bn=True)\n",
        "def make(bn=False):\n    bn = read()\n    return Layer(3, bn)\nmake()\n",
        NET + "    def switch(self):\n        self.use = True\nNet()\n",
        "\n".join(f"Layer(3, {number})" for number in range(5)),
    ],
)
def test_one_call_is_unknown(calls):
    assert values(LAYER + calls) is None


def test_four_values_are_known():
    assert values(LAYER + "\n".join(f"Layer(3, {number})" for number in range(4))) == {0, 1, 2, 3}


def test_a_class_under_another_name_is_handed_on():
    assert values(LAYER, other="from code import Layer as Block\nBlock(3, True)\n") is None
    assert values(LAYER, other="from code import Layer\nLayer(3, True)\n") == {True}


def test_a_function_that_calls_itself_is_unknown():
    assert values("def f(bn):\n    f(bn)\n", "f") is None


@pytest.mark.parametrize(
    ("calls", "excluded"),
    [
        ("Layer(3)\n", True),
        ("Layer(3, False)\nLayer(3, bn=None)\n", True),
        ("Layer(3)\nLayer(3, True)\n", False),
        ("Layer(3, args.bn)\n", False),
    ],
)
def test_a_branch_that_no_value_lets_in(calls, excluded):
    modules = read(LAYER + calls)
    node = next(n for n in ast.walk(modules[0].tree) if isinstance(n, ast.Call) and ast.unparse(n) == "Norm(c)")
    assert Parameters(modules).exclude(function_at(modules[0], node), node) is excluded


def test_a_word_decides_a_branch():
    for call, excluded in (("norm(3)", True), ("norm(3, 'layer')", True), ("norm(3, 'batch')", False)):
        modules = read(CHOICE + call)
        node = next(n for n in ast.walk(modules[0].tree) if isinstance(n, ast.Call) and ast.unparse(n) == "Norm(c)")
        assert Parameters(modules).exclude(function_at(modules[0], node), node) is excluded
