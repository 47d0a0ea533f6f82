"""An abstract interpreter: walks each function once, follows values and modes, composes functions by summaries.

Two rounds: the first collects what flows into parameters, attributes and globals; the second, which knows,
leaves the events.
"""

from __future__ import annotations

import ast
from typing import Any

from batchnorm.diagnosis.source.interpreter.statements import Statements
from batchnorm.diagnosis.source.project import FunctionInfo, Project
from batchnorm.diagnosis.source.trace import (
    Event,
    State,
    Summary,
    join,
)
from batchnorm.diagnosis.source.values import (
    Const,
    External,
    Obj,
    choice,
    options,
)

DEEPEST_CALL = 40


class Program:
    """The interpretation of a project: run it, then read `events`."""

    def __init__(self, project: Project) -> None:
        self.project = project
        self.events: dict[tuple[Any, ...], Event] = {}
        self.summaries: dict[int, Summary] = {}
        self.busy: set[int] = set()
        self.made: dict[tuple[Any, ...], Obj] = {}

    def run(self) -> list[Event]:
        """All events of the program."""
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
            walk = Interpreter(self, info, depth)
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


class Interpreter(Statements):
    """One function's walk."""

    def whole(self) -> None:
        """Bind the parameters, run the body, and keep what a caller can see."""
        node, info = self.info.node, self.info
        if not isinstance(node, ast.Module):
            self.bind_parameters()
            for decorator in getattr(node, "decorator_list", []):
                self.decorator(decorator)
        body = node.body if isinstance(node.body, list) else [ast.Return(node.body, lineno=getattr(node, "lineno", 1))]
        self.block(body)
        self.leave(self.state)
        final: State | None = None
        for state in self.exits:
            final = state if final is None else join(final, state, choice)
        final = final or self.state
        s = self.summary
        s.modes, s.layers, s.frozen, s.half = final.modes, final.layers, final.frozen, final.half
        s.loaded = set(final.loaded)
        s.assigned = final.heap
        if isinstance(node, ast.Module):
            for name in info.module.assigned:
                value = final.env.get(name)
                if value is not None and not isinstance(value, Const | External):
                    for option in options(value):
                        info.module.slot(name).flows_from(option)

    def bind_parameters(self) -> None:
        """A slot a parameter; the first one of a method is its class's own object."""
        info = self.info
        if isinstance(info.node, ast.Module):
            return
        args = info.node.args
        plain = [*args.posonlyargs, *args.args]
        names = [a.arg for a in (*plain, *args.kwonlyargs)]
        names += [a.arg for a in (args.vararg, args.kwarg) if a is not None]
        static = any(
            isinstance(d, ast.Name) and d.id == "staticmethod" for d in getattr(info.node, "decorator_list", [])
        )
        for at, name in enumerate(names):
            if at == 0 and info.owner is not None and plain and not static:
                self.state.env[name] = info.owner.self_obj
                continue
            if name not in info.params:
                info.params[name] = Obj("parameter", name, info=info)
            self.state.env[name] = info.params[name]

    def decorator(self, node: ast.expr) -> None:
        """`@torch.no_grad()` and the like."""
        target = node.func if isinstance(node, ast.Call) else node
        value = self.info.module.static(target)
        if isinstance(value, External) and value.name in self.without_gradients:
            self.state.no_grad = True
