"""The program of an abstract interpreter, which walks each function once and composes functions by summaries.

Two rounds: the first collects what flows into parameters, attributes and globals; the second, which knows,
leaves the events.
"""

from __future__ import annotations

import ast
from collections.abc import Callable
from typing import Any

from batchnorm.diagnosis.source.contents import Scanned
from batchnorm.diagnosis.source.definitions import ClassInfo, FunctionInfo
from batchnorm.diagnosis.source.project import Project
from batchnorm.diagnosis.source.trace import Event, Summary
from batchnorm.diagnosis.source.values import Obj

DEEPEST_CALL = 40
Interpreter = Callable[["Program", FunctionInfo, int], Any]  # what walks one function


class Program:
    """The interpretation of a project by a class that walks one function."""

    def __init__(self, project: Project, interpreter: Interpreter) -> None:
        self.project, self.interpreter = project, interpreter
        self.events: dict[tuple[Any, ...], Event] = {}
        self.summaries: dict[int, Summary] = {}
        self.busy: set[int] = set()
        self.made: dict[tuple[Any, ...], Obj] = {}
        self.scanned: Scanned = {}
        self.resets = any("reset_running_stats" in m.text for m in project.modules.values())
        self.classes: dict[Obj, tuple[int, list[ClassInfo]]] = {}  # by the flows known then

    def run(self) -> list[Event]:
        """All events of the program."""
        for info in (c for module in self.project.modules.values() for c in module.classes):
            for base in info.lineage[1:]:
                base.heirs.append(info)
        for _ in range(2):
            self.events.clear()
            self.summaries.clear()
            for module in self.project.modules.values():
                order = sorted(module.functions, key=lambda f: (f.name != "__init__", isinstance(f.node, ast.Module)))
                for function in order:
                    self.summarize(function)
        return list(self.events.values())

    def summarize(self, info: FunctionInfo, depth: int = 0) -> Summary:
        """A function's summary, made once; of one that calls itself, and beyond a depth of calls, an empty one."""
        key = id(info)
        if key in self.summaries:
            return self.summaries[key]
        if key in self.busy or depth > DEEPEST_CALL:
            return Summary()
        self.busy.add(key)
        try:
            walk = self.interpreter(self, info, depth)
            walk.whole()
            self.summaries[key] = walk.summary
        except RecursionError:
            self.summaries[key] = Summary()
        finally:
            self.busy.discard(key)
        return self.summaries[key]

    def obj(self, key: tuple[Any, ...], make: Any) -> Obj:
        """The object made at a place: the same one in both rounds."""
        if key not in self.made:
            self.made[key] = make()
        return self.made[key]
