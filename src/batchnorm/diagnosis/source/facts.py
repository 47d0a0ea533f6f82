"""What the rules ask of an interpreted program."""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from collections.abc import Callable, Iterator
from functools import cached_property
from typing import Any, NamedTuple, TypeVar

from batchnorm.diagnosis.source.conditions import around, decided
from batchnorm.diagnosis.source.contents import LIKELY, YES, Contents, inflow
from batchnorm.diagnosis.source.fixes import Edit
from batchnorm.diagnosis.source.interpreter.function import Interpreter
from batchnorm.diagnosis.source.interpreter.program import Program
from batchnorm.diagnosis.source.names import RECALIBRATES, is_layer, last, loads_weights, made_by
from batchnorm.diagnosis.source.outputs import Fate, Outputs
from batchnorm.diagnosis.source.project import ClassInfo, FunctionInfo, Module, Project, in_module, nodes_of
from batchnorm.diagnosis.source.reached import Reached
from batchnorm.diagnosis.source.syntax import calls_by_name, method_of, name_of, spelled, strings, variables
from batchnorm.diagnosis.source.trace import EVAL, TRAIN, Call, Context, Event, Mode
from batchnorm.diagnosis.source.values import Choice, Const, External, Form, Obj, canonical, options, owners, word

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
OPTIMIZER = re.compile(r"optim|adam|sgd$|lion$|ranger|lamb$|lars$", re.IGNORECASE)
ADAPTS = re.compile(r"calib|adapt|update_(bn|batch_?norm)|bn_update|recompute|standing|swap_bn|refresh")
ARGUMENTS = ("args", "opt", "opts", "options", "flags", "FLAGS", "hparams", "arg", "parse_args", "cfg", "config")
CHOSEN = re.compile(r"torchvision\.models\.__dict__")  # a model whose name is an option
PLAIN = frozenset(("object", "ABC", "Protocol", "Generic"))  # bases that see to no mode
DEEPEST_PART = 3
STEPS = frozenset(("backward", "zero_grad", "manual_backward", "minimize", "optimize_parameters", "autograd", "scaler"))


class Said(NamedTuple):
    """Where, what, the fix in one line, whether the rule is sure, and the edit that a certain fix is."""

    module: Module
    node: ast.AST
    message: str
    fix: str
    sure: bool = True
    edit: Edit | None = None


def said(event: Event, message: str, fix: str, sure: bool = True, edit: Edit | None = None) -> Said:
    """What is said of an event, where it is."""
    return Said(event.function.module, event.node, message, fix, sure, edit)


class Option(NamedTuple):
    """An option of a command line: its file, its add_argument, the attribute that it is read by."""

    module: Module
    node: ast.Call
    name: str


class Facts:
    """Events by kind, and questions about objects, functions and modules."""

    def __init__(self, project: Project) -> None:
        self.modules = [*project.modules.values()]
        self.classes = [c for m in self.modules for c in m.classes]
        self.contents = Contents()
        self._kinds: dict[str, list[Event]] = defaultdict(list)
        for event in Program(project, Interpreter).run():
            self._kinds[event.kind].append(event)
        self._answers: dict[str, Any] = {}
        self._known: dict[Any, list[Obj]] = {}
        self._words: dict[int, frozenset[str]] = {}

    def weighed(self, found: Said) -> Said | None:
        """A finding in code that no program reaches, or in a test of one: of a warning a note, of a note nothing."""
        inside = found.module.body
        for function in found.module.functions:
            start = getattr(function.node, "lineno", 0)
            if start < getattr(found.node, "lineno", 0) <= getattr(function.node, "end_lineno", 0):
                inside = max(inside, function, key=lambda f: getattr(f.node, "lineno", 0))
        tests = found.module.file.startswith("test_") and (
            "unittest" in found.module.text or "assert" in found.module.text
        )
        reached = (
            not tests and inside in self._reached and (self._reached.library or not self._left_out(inside, found.node))
        )
        return found if reached else found._replace(sure=False) if found.sure else None

    def _left_out(self, function: FunctionInfo, node: ast.AST) -> bool:
        """Whether a place is in a branch that a parameter's default excludes, and no call gives another value."""
        tests = around(function.node, node) if function.literals else []
        default = {n: v for n, v in function.literals.items() if tests and not self._given(function, n)}
        return any(decided(test, default) is False for test in tests or ())

    def _given(self, function: FunctionInfo, name: str) -> bool:
        """Whether any call may give a parameter a value."""
        made = function.owner.name if function.owner is not None and function.name == "__init__" else ""
        at = function.positional.index(name) - (function.owner is not None) if name in function.positional else 99
        for call in (n for m in self.modules for n in m.nodes if isinstance(n, ast.Call)):
            by_name = any(k.arg == name for k in call.keywords)
            if by_name or name_of(call.func) in (function.name, made):
                starred = any(isinstance(a, ast.Starred) for a in call.args) or None in {k.arg for k in call.keywords}
                if by_name or starred or len(call.args) > at:
                    return True
        return False

    @cached_property
    def _reached(self) -> Reached:
        return Reached(self.modules)

    def of(self, *kinds: str) -> Iterator[Event]:
        """The events of these kinds."""
        for kind in kinds:
            yield from self._kinds[kind]

    def set_to(self, mode: str, *kinds: str) -> Iterator[Event]:
        """The events of these kinds, `mode` and `layer mode`, that set a mode."""
        return (e for e in self.of(*kinds) if e.data["mode"] == mode)

    def once(self, key: str, work_out: Callable[[], T]) -> T:
        """An answer that several rules ask for, worked out by the first."""
        if key not in self._answers:
            self._answers[key] = work_out()
        return self._answers[key]

    def has(self, obj: Any) -> int | None:
        """Whether an object has batch norm: YES, LIKELY, NO, or None where nothing is known."""
        return self.contents.contains(obj)

    def always_has(self, obj: Any) -> bool:
        """Whether an object has batch norm, whichever of several models it is."""
        return self.contents.least(obj) == YES

    @cached_property
    def speaks(self) -> bool:
        """Whether any model of the linted files has batch norm, so that an unknown one is likely to."""
        return bool(self._speaking)

    def speaks_near(self, module: Module) -> bool:
        """Whether a model with batch norm is defined or made in the folder of a file, or in the folder above it."""
        folder = module.path.rsplit("/", 2)[0] if module.path.count("/") > 1 else ""
        return any(m.path.startswith(folder) for m in self._speaking)

    @cached_property
    def _speaking(self) -> list[Module]:
        found = [e.function.module for e in self.of("layer") if e.data["name"].startswith("torch")]
        outside = ((e, e.data["name"]) for e in self.of("outside"))
        found += [e.function.module for e, n in outside if made_by(n, word(e.data["args"], 0)) or CHOSEN.match(n)]
        return [*found, *(c.module for c in self.classes if c.is_module and self.contents.scan(c)[0] == YES)]

    def same(self, one: Any, other: Any) -> bool:
        """Whether two objects may be the same."""
        return not set(self.aliases(one)).isdisjoint(self.aliases(other))

    def likely(self, obj: Obj) -> int:
        """`has`, and LIKELY for an unknown object among models that have batch norm."""
        found = self.has(obj)
        unknown = all(o.kind in ("parameter", "attribute", "global", "copy", "result") for o in self.aliases(obj))
        return LIKELY if found is None and self.speaks and unknown else found or 0

    @cached_property
    def _managers(self) -> set[int]:
        """Classes whose own methods put parts of their objects into a mode, by id."""
        events = self.of("mode", "layer mode")
        return {id(e.function.owner) for e in events if in_module(e.function) and e.function.name in self._run}

    @cached_property
    def _run(self) -> frozenset[str]:
        """The names of methods that the linted files call, or that torch does."""
        return self.called | {"__init__", "forward", "train", "eval"}

    def manages(self, obj: Obj) -> bool:
        """Whether an object sees to its own modes: a wrapper for adaptation, a model that freezes layers."""
        made = (a for a in self.aliases(obj) if a.kind in ("instance", "result") or isinstance(a.info, ClassInfo))
        classes = (c for alias in made for c in _classes(alias, 4))
        return any(adapts(c) or any(id(a) in self._managers for a in c.ancestors()) for c in classes)

    def holds(self, obj: Obj | None, owner: ClassInfo, depth: int = 0) -> bool:
        """Whether an object, or what is in its attributes, is made by a class."""
        for info in (c for alias in self.aliases(obj) for c in _classes(alias, 3)):
            if owner in info.lineage:
                return True
            slots = (s for a in info.lineage for s in a.self_obj.attrs.values())
            if depth < DEEPEST_PART and any(self.holds(slot, owner, depth + 1) for slot in list(slots)[:24]):
                return True
        return False

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
        if any(self.uses_in(c, "eval", "freeze") for c in kin) or self.evaluated(obj):
            return []
        loaded = any(self.same(e.obj, obj) for e in self.of("load"))
        quiet = event.data["no_grad"]
        return [Context(obj, Mode(TRAIN), None, quiet, False, False, False, (), None, loaded, event.function)]

    def evaluated(self, obj: Obj | None, called: bool = False) -> bool:
        """Whether anything, or code that is called, puts an object, or what it is a part of, in eval."""
        own = {*owners(obj)} if called else {o for at in owners(obj) for o in self.aliases(at)}
        evals = (e for e in self.set_to(EVAL, "mode", "layer mode") if not called or self._may_run(e.function))
        return any(not own.isdisjoint(self.aliases(e.obj)) for e in evals)

    def _may_run(self, function: FunctionInfo) -> bool:
        return not function.name or function.name in self._run

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
    def options(self) -> list[Option]:
        """The options of command lines."""
        modules = (m for m in self.modules if "add_argument" in m.text)
        return [Option(m, n, name) for m in modules for n in _methods(m, "add_argument") for name in _destinations(n)]

    @cached_property
    def spreads(self) -> bool:
        """Whether options are handed on as keywords, so that what reads them does not name them."""
        return any(
            isinstance(n, ast.keyword) and n.arg is None and not variables(n.value).isdisjoint((*ARGUMENTS, "vars"))
            for module in {id(o.module): o.module for o in self.options}.values()
            for n in module.nodes
        )

    def pretrained(self, obj: Obj, depth: int = 0) -> bool:
        """Whether an object was made with weights that were trained before, or holds a part of such a model."""
        if depth > 6:
            return False
        for alias in self.aliases(obj):
            call = alias.node
            if alias.kind == "external" and isinstance(call, ast.Call) and loads_weights(call, alias.info[0]):
                return True
            inner = alias.info[:1] if alias.kind == "iteration" else alias.sources[:4]
            if any(self.pretrained(o, depth + 1) for i in inner for o in options(i) if isinstance(o, Obj)):
                return True
        return False

    def trains(self, event: Event, at: Call | None = None) -> bool:
        """Whether the function of an event, or of a call, makes training steps; of a script's own code, the loops."""
        function = event.function if at is None else at.function
        if function.name == "training_step" or (at is not None and method_of(at.node) in self._backward):
            return True
        around = self.loops(event, at) if isinstance(function.node, ast.Module) else (function.node,)
        return any(not self._words_in(n).isdisjoint(STEPS) for n in around)

    def loops(self, event: Event, at: Call | None = None) -> tuple[ast.AST, ...]:
        """The loops around an event, or around a call, from the outermost."""
        if at is None:
            return event.data["loops"]
        nodes = nodes_of(at.function.node)
        return tuple(n for n in nodes if isinstance(n, ast.For | ast.While) and any(c is at.node for c in ast.walk(n)))

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

    def measures(self, info: FunctionInfo) -> bool:
        """Whether a function is there to measure statistics, or adapts them on purpose."""
        return self.once(f"measures {id(info)}", lambda: self._measures(info))

    def _measures(self, info: FunctionInfo) -> bool:
        if self.uses(info, *MEASURES) or ADAPTS.search(info.name.lower()):
            return True
        stored = (n for n in ast.walk(info.node) if isinstance(n, ast.Attribute) and isinstance(n.ctx, ast.Store))
        return self.uses(info, "momentum") and any(n.attr == "momentum" for n in stored)

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

    def steps(self, info: FunctionInfo | Module) -> bool:
        """Whether a function or a file makes training steps anywhere."""
        return self.uses(info, *(STEPS - {"autograd"}))

    @cached_property
    def steps_anywhere(self) -> bool:
        """Whether any of the linted files makes training steps."""
        return any(self.steps(m) for m in self.modules)

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

    def origins(
        self, value: Any, path: tuple[str, ...] = (), given: tuple[Obj, ...] = ()
    ) -> Iterator[tuple[Obj, tuple[str, ...], tuple[Obj, ...]]]:
        """What a value was taken from, by which attributes and elements, and through the results of which calls."""
        for obj in options(value):
            if not isinstance(obj, Obj) or len(path) + len(given) > 8:
                continue
            if obj.kind == "attribute" and obj.parent is not None:
                yield from self.origins(obj.parent, (obj.name, *path), given)
            if obj.kind in ("parameter", "attribute", "global", "result"):
                for source in inflow(obj)[:6]:
                    if source is not obj:
                        yield from self.origins(source, path, (*given, obj))
            elif obj.kind == "external" and obj.sources and obj.info[0].endswith("Tensor"):
                for source in obj.sources[:2]:  # copied into a tensor of its own
                    yield from self.origins(source, path, given)
            elif obj.kind == "external":
                yield obj, path, given

    def is_layer(self, obj: Obj | None) -> bool:
        """Whether an object is a batch norm layer itself."""
        return any(a.kind == "external" and is_layer(a.info[0]) for a in self.aliases(obj))

    @cached_property
    def optimizers(self) -> list[Event]:
        """The constructions of optimizers."""
        return [
            e
            for e in self.of("outside")
            if (e.data["name"].startswith("torch.optim") and "lr_scheduler" not in e.data["name"])
            or e.data["name"].rsplit(".", 1)[-1] in ("SGD", "Adam", "AdamW", "RMSprop", "LARS", "Lamb", "RAdam")
        ]

    @property
    def trained(self) -> dict[int, Obj]:
        """Objects that an optimizer was given, by id."""
        return self._trained[0]

    @property
    def knows_trained(self) -> bool:
        """Whether it is known of every optimizer what it was given."""
        return self._trained[1]

    def trains_part(self, obj: Obj) -> bool:
        """Whether an optimizer was given an object, or a part of it."""
        return any(id(part) in self.trained for part in _parts(self.aliases(obj)))

    def trains_whole(self, obj: Obj) -> bool:
        """Whether an optimizer was given an object, or what it is a part of."""
        return not self._trained_parts.isdisjoint(map(id, self.aliases(obj)))

    @cached_property
    def _trained_parts(self) -> set[int]:
        return {id(part) for part in _parts(list(self.trained.values()))}

    @cached_property
    def _trained(self) -> tuple[dict[int, Obj], bool]:
        found: dict[int, Obj] = {}
        known = bool(self.optimizers)
        for event in self.optimizers:
            stack = [*list(event.data["args"][:1]), event.data["keywords"].get("params")]
            known &= any(options(value) for value in stack)
            for _ in range(64):
                if not stack:
                    break
                for option in options(stack.pop()):
                    if isinstance(option, Form):
                        owners = [a.owner for a in option.terms if a.kind == "parameter" and isinstance(a.owner, Obj)]
                    elif isinstance(option, Obj) and option.kind == "iteration":
                        owners = [canonical(option.info[0])]
                    elif isinstance(option, Obj) and option.kind in ("list", "dict") and option.sources:
                        stack.extend(option.sources)
                        continue
                    else:
                        known &= isinstance(option, Const)
                        continue
                    found.update((id(o), o) for owner in owners for o in self.aliases(canonical(owner)))
        known &= not any(e.data["name"] == "add_param_group" for e in self.of("method"))
        made = {id(e) for e in self.optimizers}
        others = (e.data["name"] for e in self.of("outside") if id(e) not in made and "scheduler" not in e.data["name"])
        own = (a.name for c in self.classes for a in c.ancestors()[1:])
        return found, known and not any(OPTIMIZER.search(name) for name in (*others, *own))

    def aliases(self, obj: Any) -> list[Obj]:
        """An object and what it may be."""
        if obj not in self._known:
            self._known[obj] = self._aliases(obj, 0)
        return self._known[obj]

    def _aliases(self, obj: Any, depth: int) -> list[Obj]:
        if not isinstance(obj, Obj) or depth > 4:
            return []
        found = [obj]
        slot = obj.kind in ("parameter", "attribute", "global", "result")
        flows = [obj.info] if obj.kind == "wrapper" else inflow(obj)[:6] if slot else []
        for option in (o for source in flows for o in options(source)):
            found.extend(self._aliases(option, depth + 1))
        return found[:24]

    def numbers(self, value: Any, depth: int = 0) -> list[float]:
        """The literal numbers that a value may be."""
        if isinstance(value, Const):
            return [float(value.value)] if type(value.value) in (int, float) else []
        if isinstance(value, Choice):
            return [n for v in value.options for n in self.numbers(v, depth)]
        if not isinstance(value, Obj) or depth > 4:
            return []
        found = [n for source in inflow(value) for n in self.numbers(source, depth + 1)]
        if not found and value.kind == "parameter" and isinstance(value.info, FunctionInfo):
            default = value.info.defaults.get(value.name)
            found = self.numbers(value.info.module.static(default), depth + 1) if default is not None else []
        if not found and (option := self.option(value)) is not None:
            given = next((k.value for k in option.node.keywords if k.arg == "default"), None)
            found = self.numbers(option.module.static(given) if given is not None else None)
        return found

    def option(self, value: Any) -> Option | None:
        """The option of a command line that an attribute reads: of the parser it comes from, else of the only one."""
        if not isinstance(value, Obj) or value.kind != "attribute" or value.parent is None:
            return None
        named = self.options_by_name.get(value.name, [])
        if not named or (value.parent.kind == "self" and isinstance(value.parent.info, ClassInfo)):
            return None
        roots = self.aliases(value.parent)
        parsed = {id(o.node) for o in roots}
        files = {m for o in roots for m in (o.info, getattr(o.info, "module", None)) if isinstance(m, Module)}
        files |= {m for m in self.modules if not parsed.isdisjoint(self._parses(m))}
        near = [o for o in named if o.module in files] or [
            o for o in named if any(o.module in m.imported for m in files)
        ]
        spoken = near or (named if any(o.name in ARGUMENTS for o in roots) else [])
        defaults = {ast.unparse(k.value) for o in spoken for k in o.node.keywords if k.arg == "default"}
        return spoken[0] if len(defaults) == 1 else None

    def _parses(self, module: Module) -> frozenset[int]:
        """The calls of parse_args in a file."""
        found = lambda: frozenset(id(n) for n in _methods(module, "parse_"))  # noqa: E731
        return self.once(f"parses {id(module)}", found) if "parse_" in module.text else frozenset()

    @cached_property
    def options_by_name(self) -> dict[str, list[Option]]:
        """The options of command lines by the attribute that they are read by."""
        found: dict[str, list[Option]] = defaultdict(list)
        for option in self.options:
            found[option.name].append(option)
        return found


def _classes(obj: Obj, most: int) -> list[ClassInfo]:
    """The classes of an object and of what flows into it."""
    return [o.info for o in (obj, *obj.sources[:most]) if isinstance(o, Obj) and isinstance(o.info, ClassInfo)]


def _methods(module: Module, name: str) -> list[ast.Call]:
    """The calls of methods whose names begin so."""
    return [n for n in module.nodes if isinstance(n, ast.Call) and method_of(n).startswith(name)]


def _destinations(call: ast.Call) -> list[str]:
    """The attribute that an option of a command line is read by: `batch_size` of `--batch-size`."""
    said = next((k.value.value for k in call.keywords if k.arg == "dest" and isinstance(k.value, ast.Constant)), None)
    flags = [f for a in call.args if isinstance(a, ast.Constant) for f in strings(a)]
    long = [f for f in flags if f.startswith("--")] or [f for f in flags if not f.startswith("-")]
    return [said] if isinstance(said, str) else [f.lstrip("-").replace("-", "_") for f in long[:1]]


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


def _parts(objects: list[Obj]) -> Iterator[Obj]:
    """Objects and what they hold, by their own attributes and their classes'."""
    stack, seen = [(o, 0) for o in objects], set[int]()
    while stack:
        at, depth = stack.pop()
        if id(at) in seen or depth > DEEPEST_PART * 2:
            continue
        seen.add(id(at))
        yield at
        own = at.info.self_obj.attrs if isinstance(at.info, ClassInfo) else {}
        inside = [*at.attrs.values(), *own.values(), *(at.sources if at.kind == "attribute" else ())]
        stack.extend((o, depth + 1) for s in inside for o in options(s) if isinstance(o, Obj))
