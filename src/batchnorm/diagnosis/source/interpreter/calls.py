"""Call expressions: what is called, with which arguments."""

from __future__ import annotations

import ast
import re
from typing import Any

from batchnorm.diagnosis.source import tensors
from batchnorm.diagnosis.source.contents import inflow
from batchnorm.diagnosis.source.definitions import Class, ClassInfo, Function, FunctionInfo, Super
from batchnorm.diagnosis.source.interpreter.methods import STANDARD, Methods
from batchnorm.diagnosis.source.names import is_layer, last, loads_weights
from batchnorm.diagnosis.source.syntax import name_of
from batchnorm.diagnosis.source.trace import EVAL, SLOTS, TRAIN, Mode, join
from batchnorm.diagnosis.source.values import (
    Choice,
    Const,
    External,
    Form,
    Obj,
    Partial,
    Tuple,
    canonical,
    choice,
    options,
)

MAY_SWITCH = re.compile(
    r"fit|freeze|evaluate|run|test|validate|setup|restore|resume|load(_weights|_networks|_checkpoint)?"
)
NO_TENSOR = ("backward", "item", "size", "dim", "tolist", "numel")  # methods of a tensor that return none
NO_PARTS = re.compile(r"zero_grad|register_(buffer|parameter|forward_hook)|get_parameter")
MOST_NAMED = 6  # classes under one name that are followed one by one
DEEPEST_NAME = 4
CONTAINERS = ("append", "add", "insert", "extend", "update", "setdefault")


class Calls(Methods):
    """The call expressions."""

    def call(self, node: ast.Call) -> Any:
        """A call's value."""
        func = node.func
        base: Any = None
        if isinstance(func, ast.Attribute):
            base = self.ev(func.value)
            target = None if isinstance(base, Obj | Form | Choice | Tuple | Super) else self.read(base, func.attr, func)
        else:
            target = self.ev(func)
        args: list[Any] = []
        starred = False
        for a in node.args:
            starred |= isinstance(a, ast.Starred)
            value = self.ev(a)
            if isinstance(a, ast.Starred) and isinstance(value, Tuple):
                args.extend(value.items)
            else:
                args.append(value)
        keywords = {k.arg: self.ev(k.value) for k in node.keywords if k.arg is not None}
        for k in (k for k in node.keywords if k.arg is None):
            spread = self.entries(self.ev(k.value))  # `**settings`, of a dict whose entries are known
            keywords.update({name: entry for name, entry in spread.items() if entry is not None})
        if isinstance(func, ast.Attribute) and isinstance(base, Super):
            return self.inherited(node, base.info, func.attr, args, keywords)
        if isinstance(func, ast.Attribute) and isinstance(base, Obj | Form | Choice | Tuple):
            return self.method_call(node, base, func.attr, args, keywords)
        if isinstance(base, Class) and base.info.is_module and name_of(func) == "load_from_checkpoint":
            made = self.construct(node, base.info, [], keywords)
            self.state.loaded |= {made}
            return made
        if target is None:
            return self._unknown(args, keywords)
        return choice([self.invoke(node, t, args, keywords) for t in options(target)])

    def inherited(self, node: ast.Call, info: ClassInfo, name: str, args: list[Any], keywords: dict[str, Any]) -> Any:
        """`super().name(...)`: the method of the nearest base that has it."""
        own = info.self_obj
        for base in info.ancestors()[1:]:
            if isinstance(base, ClassInfo) and name in base.methods:
                return self.apply(node, base.methods[name], own, args, keywords)
        if name in ("train", "eval") and info.is_module:
            for part, layers in self.state.layers.items() if name == "train" else ():
                if layers.value == EVAL and layers.function is self.info and self.inside(part, own):
                    self.event("unfreeze", node, own, frozen=layers, by=self.info)
            return STANDARD[name](self, node, own, name, args, keywords)
        return None

    def invoke(self, node: ast.Call, target: Any, args: list[Any], keywords: dict[str, Any]) -> Any:
        """Call a value."""
        if isinstance(target, Function):
            return self.apply(node, target.info, target.owner, args, keywords)
        if isinstance(target, Class):
            return self.construct(node, target.info, args, keywords)
        if isinstance(target, Partial):
            return self.invoke(node, target.target, [*target.args, *args], {**dict(target.keywords), **keywords})
        if isinstance(target, External):
            return self.outside(node, target.name, args, keywords)
        if isinstance(target, Obj):
            named = [n for n in self._named_by(target) if _takes(n, node)]
            own = [n for n in named if isinstance(n, Class | Function)]
            named = own if own and keywords else named
            if not named:
                return self.forward(node, target, [*args, *keywords.values()])
            if len(named) <= MOST_NAMED:
                return choice([self.invoke(node, t, args, keywords) for t in named])
            made = self.program.obj((node, "named"), lambda: Obj("result", target.name, node=node))
            made.sources = [*dict.fromkeys((*made.sources, *named))][:MOST_NAMED]
            self.state.modes[made] = Mode(TRAIN)
            if loads_weights(node, target.name):
                self.state.loaded |= {made}
            return made
        return None

    def _named_by(self, target: Obj, depth: int = 0) -> list[Any]:
        """The classes and functions that a dict, a registry or an option may hold under a name; none if a model is."""
        found: list[Any] = []
        if depth < DEEPEST_NAME and target.kind in ("attribute", "parameter", "global"):
            for option in (o for source in inflow(target) for o in options(source)):
                if isinstance(option, Class | Function | External | Partial):
                    found.append(option)
                elif isinstance(option, Obj) and option is not target:
                    found.extend(self._named_by(option, depth + 1))
        return [*dict.fromkeys(found)]

    def decorated(self, node: ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef, value: Any) -> None:
        """A decorator of the linted files may register what it is given."""
        for decorator in node.decorator_list:
            for option in options(self.ev(decorator)):
                if isinstance(option, Function) and option.info.node is not node:
                    call: Any = self.program.obj((decorator, "call"), lambda at=decorator: _called_by(at))
                    self.apply(call, option.info, option.owner, [value], {})

    def construct(self, node: ast.Call, info: ClassInfo, args: list[Any], keywords: dict[str, Any]) -> Any:
        """An instance of a class of the linted files."""
        made = self.program.obj((node, id(info)), lambda: Obj("instance", info.name, info=info, node=node))
        for option in (o for value in (*args, *keywords.values()) for o in options(value)):
            if isinstance(option, Class | Obj | External | Partial):
                made.flows_from(option)
        self.born.setdefault(made, tuple(self.tests))
        if info.is_module:
            self.state.modes[made] = Mode(TRAIN)
        for external in info.ancestors():
            if isinstance(external, External) and is_layer(external.name):
                self.event("layer", node, made, name=external.name, args=args, keywords=keywords, subclass=info)
        init = info.method("__init__")
        if init is not None:
            self.apply(node, init, made, args, keywords)
        if info.is_module:
            self.wrap(made, [*args, *keywords.values()], node)
        return made

    def method_call(self, node: ast.Call, base: Any, name: str, args: list[Any], keywords: dict[str, Any]) -> Any:
        """`base.name(...)`."""
        if isinstance(base, Choice):
            self.several = sum(isinstance(o, Obj) and o.kind in SLOTS for o in base.options) > 1
            made = [self.method_call(node, option, name, args, keywords) for option in base.options]
            self.several = False
            return choice(made)
        if isinstance(base, Form):
            return self._tensor_method(node, base, name, args, keywords)
        if isinstance(base, Tuple):
            return None
        if not isinstance(base, Obj):
            target = self.read(base, name, node)
            return self.invoke(node, target, args, keywords) if target is not None else None
        if base.kind == "output":
            self.state.version += 1
            return None if name in NO_TENSOR else base
        classes = self.classes_of(base)
        modules = any(c.is_module for c in classes)
        if classes and not (name in ("load_state_dict", "state_dict") or (modules and name in ("forward", "__call__"))):
            modules = modules and name in ("train", "eval")
            own = [] if modules or len(classes) > MOST_NAMED else [c.method(name) for c in classes]
            if own == [None] and base.kind == "self":
                own = [h.methods[name] for h in classes[0].heirs if name in h.methods][:MOST_NAMED]
            if own and None not in own:
                return self._each(node, [f for f in dict.fromkeys(own) if f], base, args, keywords)
        if name in STANDARD:
            return STANDARD[name](self, node, base, name, args, keywords)
        if name in ("next", "__next__") and not args:
            return self.element(base)
        if base.kind == "dict" and name in ("get", "pop") and args:
            return self.item(base, args[0])
        if NO_PARTS.fullmatch(name):
            return None
        if name in ("add_module", "register_module") and len(args) == 2:
            self.added(node, base, args)
            return None
        if name in ("get", "pop") and args and isinstance(args[0], Const) and args[0].value in self.entries(base):
            return self.item(base, args[0])
        held = self.state.heap.get((base, name))
        if held is None and base.kind in ("self", "instance"):
            held = self.slot_of(base, name)
        if name == "append" and args and base.kind == "external" and last(base.info[0]) == "ModuleList":
            base.flows_from(args[0])
            self.state.heap.setdefault((base, "[0]"), args[0])
            self.state.heap[base, "[-1]"] = args[0]
            return None
        if base.kind in ("list", "dict") and name in CONTAINERS:
            for key, value in (self.entries(choice(args)) | keywords if name == "update" else {}).items():
                base.attr(f"[{key}]").flows_from(value)
            self.collected(node, base, args)
            for value in args:
                if name in ("extend", "update"):
                    of_dict = isinstance(value, Obj) and value.kind == "dict"
                    value = choice(list(value.sources)) if of_dict else self.element(value)
                for option in options(value):
                    base.flows_from(option)
            return None
        if name in tensors.IN_PLACE and base.kind in ("attribute", "parameter", "result", "unknown"):
            return self._tensor_method(node, self.unknown_tensor(base), name, args, keywords)
        if name in ("clone", "detach") and base.kind == "attribute" and base.name == "[]":
            return self.unknown_tensor(base)
        if isinstance(held, Function | Class | External | Partial):
            return self.invoke(node, held, args, keywords)
        outside = MAY_SWITCH.fullmatch(name) and not getattr(held, "sources", held)  # a method of a base from outside
        if isinstance(held, Obj) and held is not base and held.kind not in ("list", "dict") and not outside:
            return self.invoke(node, held, args, keywords)
        if name[:1] != "_" and self._callable_part(base, name):
            return self.forward(node, base.attr(name), [*args, *keywords.values()])
        if name in ("resize_", "resize_as_"):
            return base
        if name == "copy_" and base.kind == "external" and args:
            base.flows_from(args[0])
            return base
        # A method that nobody defines: it may do anything to models it is given, and it may run its own model forward.
        self.event("method", node, canonical(base), name=name, args=args)
        if MAY_SWITCH.fullmatch(name):
            self.forget_modes([base])
        self.forget_modes(args)
        self.state.version += 1
        return self.program.obj((node, "result of", name), lambda: Obj("unknown", name, info=base, node=node))

    def _each(
        self, node: ast.Call, methods: list[FunctionInfo], base: Obj, args: list[Any], keywords: dict[str, Any]
    ) -> Any:
        """A method, by the class that the object is of; what holds after any of them holds after the call."""
        values, before, after = [], self.state, None
        for method in methods:
            self.state = before if len(methods) == 1 else before.copy()
            values.append(self.apply(node, method, base, args, keywords))
            after = self.state if after is None else join(after, self.state, choice)
        self.state = after or before
        return choice(values)

    def _callable_part(self, base: Obj, name: str) -> bool:
        held = (base, *(c.self_obj for c in self.classes_of(base)))
        known = any(name in o.attrs and o.attrs[name].sources for o in held)
        return known and base.kind in ("parameter", "attribute", "global", "instance", "copy")


def _takes(target: Any, call: ast.Call) -> bool:
    """Whether a function or class has parameters for a call's arguments."""
    info = target.info if isinstance(target, Class | Function) else None
    info = info.method("__init__") if isinstance(info, ClassInfo) else info
    names = {k.arg for k in call.keywords}
    if info is None or None in names or any(isinstance(a, ast.Starred) for a in call.args):
        return True
    known, first = info.arguments, info.owner is not None and not info.static
    places, given = info.positional[first:], len(call.args)
    enough = given + len(names) >= len(places) - len(known.defaults)
    named = known.kwarg is not None or names <= {*places, *(a.arg for a in known.kwonlyargs)}
    return enough and named and (known.vararg is not None or given <= len(places))


def _called_by(decorator: ast.expr) -> Any:
    """The call that a decorator is."""
    return ast.copy_location(ast.Call(decorator, [], []), decorator)
