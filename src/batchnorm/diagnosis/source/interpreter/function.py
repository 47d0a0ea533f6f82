"""One function's walk: its parameters, its body, what a caller can see of it."""

from __future__ import annotations

import ast

from batchnorm.diagnosis.source.definitions import Class
from batchnorm.diagnosis.source.interpreter.statements import Statements
from batchnorm.diagnosis.source.names import WITHOUT_GRADIENTS
from batchnorm.diagnosis.source.trace import State, join
from batchnorm.diagnosis.source.values import Const, External, Obj, choice, options


class Interpreter(Statements):
    """One function's walk."""

    def whole(self) -> None:
        """Bind the parameters, run the body, and keep what a caller can see."""
        info = self.info
        self.bind_parameters()
        for decorator in info.decorators:
            self.decorator(decorator)
        self.block(info.body)
        self.leave(self.state)
        final: State | None = None
        for state in self.exits:
            final = state if final is None else join(final, state, choice)
        final = final or self.state
        s = self.summary
        s.modes, s.layers, s.frozen, s.half = final.modes, final.layers, final.frozen, final.half
        s.loaded = set(final.loaded)
        s.assigned, s.born = final.heap, self.born
        if isinstance(info.node, ast.Module):
            for name in info.module.assigned:
                value = final.env.get(name)
                if value is not None and not isinstance(value, Const | External):
                    for option in options(value):
                        info.module.slot(name).flows_from(option)

    def bind_parameters(self) -> None:
        """A slot a parameter; the first one of a method is its class's own object."""
        info = self.info
        args = info.arguments
        others = [a.arg for a in (*args.kwonlyargs, args.vararg, args.kwarg) if a is not None]
        for at, name in enumerate((*info.positional, *others)):
            if at == 0 and info.owner is not None and info.positional and not info.static:
                self.state.env[name] = Class(info.owner) if info.of_class or name == "cls" else info.owner.self_obj
                continue
            if name not in info.params:
                info.params[name] = Obj("parameter", name, info=info)
            self.state.env[name] = info.params[name]

    def decorator(self, node: ast.expr) -> None:
        """`@torch.no_grad()` and the like."""
        target = node.func if isinstance(node, ast.Call) else node
        value = self.info.module.static(target)
        if isinstance(value, External) and WITHOUT_GRADIENTS.fullmatch(value.name):
            self.state.no_grad = True
