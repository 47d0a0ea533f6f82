"""What the code of a program says by its words: what functions use, call and are called, the options of scripts."""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from collections.abc import Callable
from functools import cached_property
from typing import Any, NamedTuple, TypeVar

from batchnorm.diagnosis.source.definitions import ClassInfo, FunctionInfo, Module
from batchnorm.diagnosis.source.fixes import Edit
from batchnorm.diagnosis.source.names import RECALIBRATES
from batchnorm.diagnosis.source.parameters import Parameters, function_at
from batchnorm.diagnosis.source.reached import Reached
from batchnorm.diagnosis.source.syntax import calls_by_name, method_of, name_of, nodes_of, strings, variables

T = TypeVar("T")
MEASURES = (
    *RECALIBRATES,
    "reset_running_stats",
    "running_mean",
    "num_batches_tracked",
    "reset_stats",
    "reset_bn",
    "accumulate",
    "precise_bn",
    "calibrate_bn",
    "bn_calibration",
    "cumulative",
    "standing_statistics",
)
ADAPTS = re.compile(r"calib|adapt|update_(bn|batch_?norm)|bn_update|recompute|standing|swap_bn|refresh")
ARGUED = re.compile(
    r"(eval\(\)|eval mode|batch ?norm\w*|\bbn\b|norm layers?)"
    r".{0,100}\b(not|\w+n't|should|on purpose|intend\w*|instead)\b",
    re.IGNORECASE,
)
MOST_ABOVE = 40  # lines
STEPS = frozenset(("backward", "zero_grad", "manual_backward", "minimize", "optimize_parameters", "autograd", "scaler"))
ARGUMENTS = ("args", "opt", "opts", "options", "flags", "FLAGS", "hparams", "arg", "parse_args", "cfg", "config")


class Said(NamedTuple):
    """Where, what, the fix in one line, whether the rule is sure, and the edit that a certain fix is."""

    module: Module
    node: ast.AST
    message: str
    fix: str
    sure: bool = True
    edit: Edit | None = None


class Option(NamedTuple):
    """An option of a command line: its file, its add_argument, the attribute that it is read by."""

    module: Module
    node: ast.Call
    name: str


class CodeWords:
    """Questions that the words of the files answer."""

    def __init__(self, modules: list[Module]) -> None:
        self.modules = modules
        self.classes = [c for m in self.modules for c in m.classes]
        self._answers: dict[str, Any] = {}
        self._words: dict[int, frozenset[str]] = {}

    def once(self, key: str, work_out: Callable[[], T]) -> T:
        """An answer that several rules ask for, worked out by the first."""
        if key not in self._answers:
            self._answers[key] = work_out()
        return self._answers[key]

    def words(self, info: FunctionInfo | Module) -> frozenset[str]:
        """Every name and attribute that a function or a module uses, inner functions included."""
        return self._words_in(info.tree if isinstance(info, Module) else info.node)

    def _words_in(self, node: ast.AST) -> frozenset[str]:
        if id(node) not in self._words:
            found = set()
            for n in nodes_of(node):
                if isinstance(n, ast.Name):
                    found.add(n.id)
                elif isinstance(n, ast.Attribute):
                    found.add(n.attr)
                elif isinstance(n, ast.alias):
                    found.add(n.name.rsplit(".", 1)[-1])
                elif isinstance(n, ast.keyword) and n.arg:
                    found.add(n.arg)
                elif isinstance(n, ast.FunctionDef):
                    found.add(n.name)
            self._words[id(node)] = frozenset(found)
        return self._words[id(node)]

    def uses(self, info: FunctionInfo | Module, *names: str) -> bool:
        """Whether one of these names occurs in a function or module."""
        return not self.words(info).isdisjoint(names)

    def uses_in(self, owner: ClassInfo, *names: str) -> bool:
        """Whether one of these names occurs in a class, or is one of its methods."""
        return not self._words_in(owner.node).isdisjoint(names)

    @cached_property
    def statements(self) -> set[int]:
        """The calls whose values nothing uses, by id."""
        nodes = (n for m in self.modules for n in m.nodes)
        return {id(n.value) for n in nodes if isinstance(n, ast.Expr)}

    def only_constructs(self, function: FunctionInfo) -> bool:
        """Whether a function is a constructor, or is called by constructors alone."""
        if function.name == "__init__":
            return True
        modules = [m for m in self.modules if function.name in m.text]
        calls = {id(n) for m in modules for n in m.nodes if calls_by_name(n, function.name)}
        made = {id(n) for m in modules for f in m.functions if f.name == "__init__" for n in ast.walk(f.node)}
        return bool(calls) and calls <= made

    @cached_property
    def called(self) -> frozenset[str]:
        """The names of all functions and methods that the linted files call."""
        return frozenset(name_of(n.func) for m in self.modules for n in m.nodes if isinstance(n, ast.Call))

    @cached_property
    def mentioned(self) -> frozenset[str]:
        """Every name, attribute, parameter and string that the linted files use, definitions and imports apart."""
        found: set[str] = set()
        for module in self.modules:
            for n in module.nodes:
                if isinstance(n, ast.Name):
                    found.add(n.id)
                elif isinstance(n, ast.Attribute) and isinstance(n.ctx, ast.Load):
                    found.add(n.attr)
                elif isinstance(n, ast.arg):
                    found.add(n.arg)
                elif isinstance(n, ast.Constant) and isinstance(n.value, str):
                    found.add(n.value)
        return frozenset(found)

    @cached_property
    def _run(self) -> frozenset[str]:
        """The names of methods that the linted files call, or that torch does."""
        return self.called | {"__init__", "forward", "train", "eval"}

    def may_run(self, function: FunctionInfo) -> bool:
        """Whether something calls a function of that name."""
        return not function.name or function.name in self._run

    @cached_property
    def options(self) -> list[Option]:
        """The options of command lines."""
        modules = (m for m in self.modules if "add_argument" in m.text)
        return [
            Option(m, n, name) for m in modules for n in methods_called(m, "add_argument") for name in _destinations(n)
        ]

    @cached_property
    def options_by_name(self) -> dict[str, list[Option]]:
        """The options of command lines by the attribute that they are read by."""
        found: dict[str, list[Option]] = defaultdict(list)
        for option in self.options:
            found[option.name].append(option)
        return found

    @cached_property
    def spreads(self) -> bool:
        """Whether options are handed on as keywords, so that what reads them does not name them."""
        return any(
            isinstance(n, ast.keyword) and n.arg is None and not variables(n.value).isdisjoint((*ARGUMENTS, "vars"))
            for module in {id(o.module): o.module for o in self.options}.values()
            for n in module.nodes
        )

    def measures(self, info: FunctionInfo) -> bool:
        """Whether a function is there to measure statistics, or adapts them on purpose."""
        return self.once(f"measures {id(info)}", lambda: self._measures(info))

    def _measures(self, info: FunctionInfo) -> bool:
        if self.uses(info, *MEASURES) or ADAPTS.search(info.name.lower()):
            return True
        stored = (n for n in ast.walk(info.node) if isinstance(n, ast.Attribute) and isinstance(n.ctx, ast.Store))
        return self.uses(info, "momentum") and any(n.attr == "momentum" for n in stored)

    def steps(self, info: FunctionInfo | Module) -> bool:
        """Whether a function or a file makes training steps anywhere."""
        return self.uses(info, *(STEPS - {"autograd"}))

    @cached_property
    def steps_anywhere(self) -> bool:
        """Whether any of the linted files makes training steps."""
        return any(self.steps(m) for m in self.modules)

    def called_apart(self, name: str) -> bool:
        """Whether something calls functions of that name, and nothing that training steps run."""
        return name in self.called and name not in self._run_by_steps

    @cached_property
    def _run_by_steps(self) -> set[str]:
        """The names that functions with training steps call, and what those call."""
        calls: dict[str, set[str]] = defaultdict(set)
        stack = list[str]()
        for function in (f for m in self.modules for f in m.functions):
            names = (
                {name_of(n.func) for n in nodes_of(function.node) if isinstance(n, ast.Call)}
                if function.name
                else set()
            )
            calls[function.name] |= names
            stack.extend(names if self.steps(function) else ())
        found = set[str]()
        while stack:
            name = stack.pop()
            stack.extend(calls.get(name, set()) - found if name not in found else ())
            found.add(name)
        return found

    @cached_property
    def _backward(self) -> frozenset[str]:
        """The names of functions that run something backward."""
        return frozenset(
            f.name
            for m in self.modules
            if "backward" in m.text
            for f in m.functions
            if f.name and not self._words_in(f.node).isdisjoint(("backward", "manual_backward"))
        )

    def reaches(self, found: Said) -> bool:
        """Whether a program, and no test of one, runs the code of a finding."""
        inside = function_at(found.module, found.node)
        tests = found.module.file.startswith("test_") and (
            "unittest" in found.module.text or "assert" in found.module.text
        )
        return (
            not tests
            and inside in self.reached
            and (self.reached.library or not self.parameters.exclude(inside, found.node))
        )

    def argued(self, found: Said) -> bool:
        """Whether a comment of the function, above a place, says why the mode is as it is."""
        function = function_at(found.module, found.node)
        first, here = getattr(function.node, "lineno", 1), getattr(found.node, "lineno", 1)
        lines = found.module.text.splitlines()[max(first, here - MOST_ABOVE) - 1 : here]
        return bool(ARGUED.search(" ".join(line.partition("#")[2] for line in lines)))

    @cached_property
    def parameters(self) -> Parameters:
        """The literal values of parameters."""
        return Parameters(self.modules)

    @cached_property
    def reached(self) -> Reached:
        """The functions that a run of the programs reaches."""
        return Reached(self.modules)


def methods_called(module: Module, name: str) -> list[ast.Call]:
    """The calls of methods whose names begin so."""
    return [n for n in module.nodes if isinstance(n, ast.Call) and method_of(n).startswith(name)]


def _destinations(call: ast.Call) -> list[str]:
    """The attribute that an option of a command line is read by: `batch_size` of `--batch-size`."""
    said = next((k.value.value for k in call.keywords if k.arg == "dest" and isinstance(k.value, ast.Constant)), None)
    flags = [f for a in call.args if isinstance(a, ast.Constant) for f in strings(a)]
    long = [f for f in flags if f.startswith("--")] or [f for f in flags if not f.startswith("-")]
    return [said] if isinstance(said, str) else [f.lstrip("-").replace("-", "_") for f in long[:1]]
