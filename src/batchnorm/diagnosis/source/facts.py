"""What the rules ask of an interpreted program."""

from __future__ import annotations

import ast
from collections import defaultdict
from functools import cached_property
from typing import Any

from batchnorm.diagnosis.source.code_words import STEPS, Said
from batchnorm.diagnosis.source.contents import YES
from batchnorm.diagnosis.source.definitions import ClassInfo, FunctionInfo, in_module
from batchnorm.diagnosis.source.fixes import Edit
from batchnorm.diagnosis.source.names import last
from batchnorm.diagnosis.source.objects import Objects, classes_of
from batchnorm.diagnosis.source.outputs import Fate, Outputs
from batchnorm.diagnosis.source.syntax import method_of, name_of, nodes_of, spelled
from batchnorm.diagnosis.source.trace import EVAL, TRAIN, Call, Context, Event, Mode
from batchnorm.diagnosis.source.values import Const, External, Obj, number, options, owners

STEERING = ("momentum", "track_running_stats")
PLAIN = frozenset(("object", "ABC", "Protocol", "Generic"))  # bases that see to no mode


def said(event: Event, message: str, fix: str, sure: bool = True, edit: Edit | None = None) -> Said:
    """What is said of an event, where it is."""
    return Said(event.function.module, event.node, message, fix, sure, edit)


class Facts(Objects):
    """Questions about forwards, modes and steps."""

    @cached_property
    def _managers(self) -> set[int]:
        """Classes whose own methods put parts of their objects into a mode, by id; themselves, where a forward does."""
        events = (e for e in self.of("mode", "layer mode") if in_module(e.function) and e.function.name in self._run)
        return {id(e.function.owner) for e in events if not _fits(e)}

    def manages(self, obj: Obj) -> bool:
        """Whether an object sees to its own modes: a wrapper for adaptation, a model that freezes layers."""
        made = (a for a in self.aliases(obj) if a.kind in ("instance", "result") or isinstance(a.info, ClassInfo))
        classes = (c for alias in made for c in classes_of(alias, 4))
        return any(adapts(c) or any(id(a) in self._managers for a in c.ancestors()) for c in classes)

    def as_made(self, event: Event) -> list[Context]:
        """The situation of a forward that no linted code reaches: in train mode, if nothing puts its model in eval."""
        obj, owner = event.obj, event.function.owner
        if obj is None or owner is None or obj.kind != "attribute" or obj.parent is not owner.self_obj:
            return []
        kin = [*owner.lineage, *owner.heirs]
        bases = {last(a.name) for c in kin for a in c.ancestors() if isinstance(a, External)}
        trainer = "LightningModule" in bases and event.function.name == "training_step"
        if not trainer and (owner.is_module or not bases <= PLAIN or self.has(obj) != YES):
            return []
        if any(self._may_evaluate(c) for c in kin) or self.evaluated(obj):
            return []
        loaded = any(self.same(e.obj, obj) for e in self.of("load"))
        quiet = event.data["no_grad"]
        return [Context(obj, Mode(TRAIN), None, quiet, False, False, False, (), None, loaded, event.function)]

    @cached_property
    def steers_statistics(self) -> bool:
        """Whether the program says which forwards move statistics: by momentum, or by whether they are tracked."""
        layers = (e for e in self.of("attribute") if e.obj is not None and e.obj.kind in ("batch norm", "layer"))
        tracked = (e.data["keywords"].get("track_running_stats") for e in self.of("layer"))
        values = [e.data["value"] for e in layers if e.data["name"] in STEERING]
        once = len({number(v) for v in values}) == 1 and number(values[0])  # where the network is made
        return (bool(values) and not once) or any(t == Const(False) for t in tracked)

    def _may_evaluate(self, owner: ClassInfo) -> bool:
        """Whether a class puts in eval, or freezes, what is not known."""
        calls = (n for n in nodes_of(owner.node) if isinstance(n, ast.Call) and method_of(n) == "eval")
        return self.uses_in(owner, "freeze") or not self._evals.issuperset(map(id, calls))

    @cached_property
    def _evals(self) -> frozenset[int]:
        """The calls of eval() on what is known, by id."""
        return frozenset(id(e.node) for e in self.set_to(EVAL, "mode", "layer mode") if e.obj is not None)

    def evaluated(self, obj: Obj | None, called: bool = False) -> bool:
        """Whether anything, or code that is called, puts an object, or what it is a part of, in eval."""
        around = [o for at in owners(obj) for o in self.aliases(at)]
        own = {*owners(obj), *(o.info for o in around if o.kind == "wrapper")} if called else {*around}
        evals = (e for e in self.set_to(EVAL, "mode", "layer mode") if not called or self.may_run(e.function))
        return any(not own.isdisjoint(self.aliases(e.obj)) for e in evals)

    def trains(self, event: Event, at: Call | None = None) -> bool:
        """Whether the function of an event, or of a call, makes training steps; of a script's own code, the loops."""
        function = function_of(event, at)
        if function.name == "training_step" or (at is not None and method_of(at.node) in self._backward):
            return True
        around = self.loops(event, at) if isinstance(function.node, ast.Module) else (function.node,)
        return any(not self._words_in(n).isdisjoint(STEPS) for n in around)

    def loops(self, event: Event, at: Call | None = None) -> tuple[ast.AST, ...]:
        """The loops around an event, or around a call, from the outermost."""
        if at is None:
            return event.data["loops"]

        def around() -> tuple[ast.AST, ...]:
            loops = (n for n in nodes_of(at.function.node) if isinstance(n, ast.For | ast.While))
            return tuple(n for n in loops if any(c is at.node for c in nodes_of(n)))

        return self.once(f"loops {id(at.node)}", around)

    def fate(self, event: Event, at: Call | None = None) -> Fate:
        """What becomes of a forward's output within its function, or where a method that runs it is called."""
        if at is None:
            return self.outputs(event).fate(event.node)
        known = self.once(f"call {id(at.node)}", lambda: Outputs(at.function.body, [at.node], self._backward))
        return known.fate(at.node)

    def outputs(self, event: Event) -> Outputs:
        """Where the outputs of all forwards of a forward's function go."""

        def follow() -> Outputs:
            forwards = [e.node for e in self.forwards_in(event.function)]
            return Outputs(event.function.body, forwards, self._backward)

        return self.once(f"outputs {id(event.function)}", follow)

    def trains_beside(self, event: Event) -> bool:
        """Whether a forward's function runs another model, of which an optimizer has the weights."""
        others = [e for e in self.forwards_in(event.function) if called(e) != called(event)]
        return any(self.trains_part(o) for e in others for o in (e.obj, *(c.obj for c in e.contexts)) if o is not None)

    def forwards_in(self, function: FunctionInfo) -> list[Event]:
        """The forwards in a function."""
        return self._forwards_in[id(function)]

    def forwards_at(self, event: Event) -> list[Event]:
        """The forwards of all that a call may run."""
        return [e for e in self.forwards_in(event.function) if e.node is event.node]

    @cached_property
    def _forwards_in(self) -> dict[int, list[Event]]:
        """The forwards by the function that they are in."""
        found: dict[int, list[Event]] = defaultdict(list)
        for event in self.of("forward"):
            found[id(event.function)].append(event)
        return found

    def forwards_of(self, value: Any) -> list[Event]:
        """The forwards whose outputs a value is, or is made from."""
        found = []
        for option in options(value):
            at = option
            for _ in range(4):
                if not isinstance(at, Obj) or at.kind == "output":
                    break
                first = next(iter(at.sources), None)
                at = {"attribute": at.parent, "list": first, "unknown": at.info}.get(at.kind)
            if isinstance(at, Obj) and isinstance(at.info, Event):
                found.append(at.info)
        return found


def _fits(event: Event) -> bool:
    """Whether a mode is a whole model's, set by a method such as `fit` or `predict`, and not by its forward."""
    whole = event.kind == "mode" and event.obj is not None and event.obj.kind in ("self", "parameter", "global")
    return whole and event.function.name not in ("forward", "__call__", "train", "eval", "__init__")


def function_of(event: Event, at: Call | None) -> FunctionInfo:
    """Where a forward stands: in its own function, or in the one that calls a method which runs it."""
    return event.function if at is None else at.function


def adapts(info: ClassInfo) -> bool:
    """Whether a torch module wraps a model together with its optimizer, as test-time adaptation does."""
    init = info.method("__init__") if info.is_module else None
    return init is not None and any(a.arg == "optimizer" for a in init.arguments.args)


def file_of(event: Event) -> str:
    """The name of the file that an event is in."""
    return event.function.module.file


def called(event: Event) -> str:
    """The name of what a forward calls."""
    func = event.node.func
    return spelled(event.node.args[0] if name_of(func) == "data_parallel" and event.node.args else func)
