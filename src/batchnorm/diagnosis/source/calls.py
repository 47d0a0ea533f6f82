"""What calls do: modes, forwards, wrappers, copies, and functions of the linted files by their summaries."""

# ruff: noqa: D102 (a method a kind of node, named by it)

from __future__ import annotations

import ast
from typing import Any

from batchnorm.diagnosis.source import tensors
from batchnorm.diagnosis.source.names import CHECKPOINT, FACTORIES, HARMLESS, WRAPPERS, is_layer, last
from batchnorm.diagnosis.source.objects import ITERATIONS, OPAQUE, Objects, canonical, objects_in
from batchnorm.diagnosis.source.project import ClassInfo, FunctionInfo
from batchnorm.diagnosis.source.trace import EVAL, MOST_USES, SLOTS, SWITCHED, TRAIN, UNKNOWN, Mode, Summary, Use
from batchnorm.diagnosis.source.values import (
    Atom,
    Choice,
    Class,
    ClassName,
    Const,
    External,
    Flag,
    Form,
    Function,
    Obj,
    Partial,
    Scalar,
    Super,
    Tuple,
    choice,
    options,
)

RETURNS_ITSELF = (
    "cuda",
    "cpu",
    "to",
    "float",
    "double",
    "half",
    "bfloat16",
    "type",
    "share_memory",
    "xpu",
    "npu",
    "compile",
    "requires_grad_",
    "apply",
    "to_empty",
)
PASSES_THROUGH = (
    "tqdm.tqdm",
    "tqdm.auto.tqdm",
    "tqdm",
    "list",
    "tuple",
    "iter",
    "reversed",
    "sorted",
    "set",
    "tqdm.notebook.tqdm",
    "tqdm.trange",
    "torch.autograd.Variable",
    "torch.autograd.variable.Variable",
)
PREPARES = ("prepare", "initialize", "setup")
CONVERTS_SYNC = ("convert_sync_batchnorm", "convert_syncbn_model", "convert_model")
MOST_INPUTS = 8  # of a forward
MADE = ("external", "instance", "copy", "result")  # kinds of objects that a function makes
NO_TENSOR = ("backward", "item", "size", "dim", "tolist", "numel")  # methods of a tensor that return none
CONTAINERS = ("append", "add", "insert", "extend", "update", "setdefault")


class Calls(Objects):
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
        for k in node.keywords:
            if k.arg is None:
                keywords.update(self._spread(self.ev(k.value)))
        if isinstance(func, ast.Attribute) and isinstance(base, Super):
            return self.inherited(node, base.info, func.attr, args, keywords)
        if isinstance(func, ast.Attribute) and isinstance(base, Obj | Form | Choice | Tuple):
            return self.method_call(node, base, func.attr, args, keywords)
        return (
            choice([self.invoke(node, t, args, keywords) for t in options(target)])
            if target is not None
            else self._unknown(args, keywords)
        )

    def _spread(self, value: Any) -> dict[str, Any]:
        """`**settings`, of a dict whose entries are known."""
        found: dict[str, Any] = {}
        for obj in objects_in(value):
            if obj.kind == "dict":
                for name, slot in obj.attrs.items():
                    if name.startswith("[") and len(slot.sources) == 1:
                        found[name[1:-1]] = slot.sources[0]
        return found

    def _unknown(self, args: list[Any], keywords: dict[str, Any]) -> Any:
        self.forget_modes([*args, *keywords.values()])
        self.state.version += 1
        self.summary.moves = True
        return None

    def inherited(self, node: ast.Call, info: ClassInfo, name: str, args: list[Any], keywords: dict[str, Any]) -> Any:
        """`super().name(...)`: the method of the nearest base that has it."""
        own = info.self_obj
        for base in info.ancestors()[1:]:
            if isinstance(base, ClassInfo) and name in base.methods:
                return self.apply(node, base.methods[name], own, args, keywords)
        if name in ("train", "eval") and info.is_module:
            return STANDARD[name](self, node, own, name, args, keywords)
        return None

    # Callables
    # ---------------------------------------------------------------------------------------------------------

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
            return self.forward(node, target, args)
        return None

    def construct(self, node: ast.Call, info: ClassInfo, args: list[Any], keywords: dict[str, Any]) -> Any:
        """An instance of a class of the linted files."""
        made = self.program.obj((node, id(info)), lambda: Obj("instance", info.name, info=info, node=node))
        for value in (*args, *keywords.values()):
            for option in options(value):
                if isinstance(option, Class | Obj | External | Partial):
                    made.flows_from(option)
        if info.is_module:
            self.state.modes[made] = Mode(TRAIN)
        for external in info.ancestors():
            if isinstance(external, External) and is_layer(external.name):
                self.event("layer", node, made, name=external.name, args=args, keywords=keywords, subclass=info)
        init = info.method("__init__")
        if init is not None:
            self.apply(node, init, made, args, keywords)
        return made

    def outside(self, node: ast.Call, name: str, args: list[Any], keywords: dict[str, Any]) -> Any:
        """A function or class from outside the linted files."""
        short = last(name)
        first = args[0] if args else None
        if is_layer(name):
            self.event("layer", node, None, name=name, args=args, keywords=keywords, subclass=None)
        if name == "super":
            return Super(self.info.owner) if self.info.owner is not None else None
        if name in ("copy.deepcopy", "deepcopy", "copy.copy"):
            return self._copied(node, first)
        if name in PASSES_THROUGH or name in ("torch.jit.script", "torch.jit.trace", "torch.compile"):
            return first if name != "set" else None
        if name in ("zip", "itertools.izip", "izip"):
            return self.program.obj(
                (node, "zip", *(id(a) for a in args)), lambda: Obj("zip", "zip", info=args, node=node)
            )
        if name == "next" and first is not None:
            return self.element(first)
        if name == "enumerate":
            return self.program.obj(
                (node, "enumerate", id(first)), lambda: Obj("enumerate", "enumerate", info=first, node=node)
            )
        if short == "partial" and args:
            return Partial(first, tuple(args[1:]), tuple(keywords.items()))
        if short in WRAPPERS and args:
            return self._wrapped(node, first, WRAPPERS[short])
        if short in CONVERTS_SYNC and args:
            for obj in objects_in(first):
                event = self.event("sync", node, obj)
                event.data["wrapped"] = any(o.kind == "wrapper" and o.name == "ddp" for o in objects_in(first))
            return first
        if short in PREPARES and args:
            found = [a for a in args if objects_in(a)]
            return Tuple(tuple(args)) if len(args) > 1 else found[0] if found else first
        if name in CHECKPOINT and args:
            self.event("checkpoint", node, None, what=first, arguments=args[1:])
            return None
        if name == "getattr" and len(args) >= 2 and isinstance(args[1], Const) and isinstance(args[1].value, str):
            return self.read(first, args[1].value, node)
        if (
            name == "setattr"
            and len(args) == 3
            and isinstance(args[1], Const)
            and isinstance(args[1].value, str)
            and isinstance(node.args[0], ast.expr)
        ):
            self.bind_attribute(
                ast.copy_location(ast.Attribute(node.args[0], args[1].value, ast.Store()), node), args[2], node
            )
            return None
        if name == "type" and isinstance(first, Obj):
            return ClassName(first)
        if name == "str" and isinstance(first, ClassName):
            return first
        if name.startswith("torch.") and short in ("lerp", "add", "sub", "mul", "div", "true_divide", "clone"):
            found = tensors.function(short, args, keywords, self.state.version)
            if found is not None:
                return found
        if name in ("list", "tuple") and first is not None:
            return first
        if short == "set_grad_enabled" and name.startswith("torch"):
            self.state.no_grad = (not first.value) if isinstance(first, Const) else None
            return None
        event = self.event("outside", node, None, name=name, args=args, keywords=keywords)
        for value in args[:2]:
            for obj in objects_in(value):
                if obj.kind not in OPAQUE:
                    event.seen(
                        self.situation(canonical(obj), self.mode(obj) or Mode(UNKNOWN), no_grad=self.state.no_grad)
                    )
        if short in ("update_bn", "bn_update", "update_bn_stats", "recalibrate"):
            return None
        if name == "torch.load" or short in ("load_model", "load_from_checkpoint"):
            return self._made(node, name, args, Mode(UNKNOWN))
        if short == "AveragedModel" and args:
            made = self._copied(node, first)
            if isinstance(made, Obj):
                made.name = "averaged"
            return made
        if not HARMLESS.match(name) and any(objects_in(a) for a in (*args, *keywords.values())):
            self._unknown(args, keywords)
            return self._made(node, name, args, Mode(UNKNOWN))
        return self._made(node, name, args, Mode(TRAIN) if self._constructs(name) else Mode(UNKNOWN))

    def _constructs(self, name: str) -> bool:
        return bool(FACTORIES.match(name) and not name.startswith("torch.hub")) or name.startswith("torch.nn.")

    def _made(self, node: ast.Call, name: str, args: list[Any], mode: Mode) -> Obj:
        first = args[0].value if args and isinstance(args[0], Const) and isinstance(args[0].value, str) else None
        if name.startswith("torch.hub") and len(args) > 1 and isinstance(args[1], Const):
            first = args[1].value
        made = self.program.obj((node, name), lambda: Obj("external", last(name), info=(name, first), node=node))
        if name.startswith("torch.nn."):
            for value in args:
                for option in options(value):
                    made.flows_from(option)
        if name.startswith("torch.optim.") or last(name) in ("SGD", "Adam", "AdamW", "RMSprop", "LARS"):
            made.kind = "optimizer"
        if mode.value == TRAIN and made.kind == "external":
            self.state.modes[made] = mode
            if (
                any(
                    k.arg in ("pretrained", "weights") and not (isinstance(k.value, ast.Constant) and not k.value.value)
                    for k in node.keywords
                )
                or last(name) == "from_pretrained"
            ):
                self.state.loaded |= {made}
        return made

    def _copied(self, node: ast.Call, value: Any) -> Any:
        if isinstance(value, Form):
            return tensors.frozen_form(value, self.state.version)
        found = []
        for obj in objects_in(value):
            inner = canonical(obj)
            made = self.program.obj(
                (node, id(inner)), lambda inner=inner: Obj("copy", inner.path, node=node, sources=[inner])
            )
            mode = self.mode(inner)
            if mode is not None:
                self.state.modes[made] = mode
            found.append(made)
        return choice(found) if found else value

    def _wrapped(self, node: ast.Call, value: Any, how: str) -> Any:
        found = []
        for obj in objects_in(value):
            inner = canonical(obj)
            made = self.program.obj((node, id(inner)), lambda inner=inner: Obj("wrapper", how, info=inner, node=node))
            found.append(made)
        return choice(found) if found else self._made(node, how, [value], Mode(UNKNOWN))

    # Methods
    # -----------------------------------------------------------------------------------------------------------

    def method_call(self, node: ast.Call, base: Any, name: str, args: list[Any], keywords: dict[str, Any]) -> Any:
        """`base.name(...)`."""
        if isinstance(base, Choice):
            return choice([self.method_call(node, option, name, args, keywords) for option in base.options])
        if isinstance(base, Form):
            return self._tensor_method(node, base, name, args, keywords)
        if isinstance(base, External | Class | Function) or not isinstance(base, Obj | Tuple):
            target = self.read(base, name, node)
            return self.invoke(node, target, args, keywords) if target is not None else None
        if isinstance(base, Tuple):
            return None
        if base.kind == "output":
            self.state.version += 1
            return None if name in NO_TENSOR else base
        info = self.class_of(base)
        if info is not None:
            own = info.method(name)
            if (
                own is not None
                and not (name in ("train", "eval") and info.is_module)
                and name not in ("load_state_dict", "state_dict", "forward", "__call__")
            ):
                return self.apply(node, own, base, args, keywords)
        if name in STANDARD:
            return STANDARD[name](self, node, base, name, args, keywords)
        held = self.state.heap.get((base, name))
        if held is None and base.kind in ("self", "instance"):
            held = self.slot_of(base, name)
        if name == "append" and args and base.kind == "external" and last(base.info[0]) == "ModuleList":
            base.flows_from(args[0])
            self.state.heap.setdefault((base, "[0]"), args[0])
            self.state.heap[base, "[-1]"] = args[0]
            return None
        if base.kind in ("list", "dict") and name in CONTAINERS:
            for value in args:
                if name in ("extend", "update"):
                    value = (
                        self.element(value)
                        if not isinstance(value, Obj) or value.kind != "dict"
                        else choice(list(value.sources))
                    )
                for option in options(value):
                    base.flows_from(option)
            return None
        if name in tensors.IN_PLACE and base.kind in ("attribute", "parameter", "result", "unknown"):
            return self._tensor_method(node, self.unknown_tensor(base), name, args, keywords)
        if name in ("clone", "detach") and base.kind == "attribute" and base.name == "[]":
            return self.unknown_tensor(base)
        if isinstance(held, Function | Class | External | Partial):
            return self.invoke(node, held, args, keywords)
        if isinstance(held, Obj) and held is not base and held.kind not in ("list", "dict"):
            return self.forward(node, held, args)
        if name[:1] != "_" and self._callable_part(base, name):
            return self.forward(node, base.attr(name), args)
        # A method that nobody defines: it may do anything to models it is given, and it may run its own model forward.
        self.event("method", node, canonical(base), name=name, args=args)
        if name in (
            "fit",
            "evaluate",
            "run",
            "test",
            "validate",
            "load",
            "load_weights",
            "load_networks",
            "setup",
            "restore",
            "load_checkpoint",
            "resume",
        ):
            self.forget_modes([base])
        self.forget_modes(args)
        self.state.version += 1
        return self.program.obj((node, "result of", name), lambda: Obj("unknown", name, info=base, node=node))

    def _callable_part(self, base: Obj, name: str) -> bool:
        return (
            base.kind in ("parameter", "attribute", "global", "instance", "copy")
            and name in base.attrs
            and bool(base.attrs[name].sources)
        )

    def _tensor_method(self, node: ast.Call, base: Form, name: str, args: list[Any], keywords: dict[str, Any]) -> Any:
        args = [
            self.unknown_tensor(a)
            if isinstance(a, Obj)
            and a.kind in ("attribute", "parameter")
            and a.name in ("[]", "param", "p")
            and name != "mul_"
            else a
            for a in args
        ]
        if name == "requires_grad_":
            self.gradients(base, args[0] if args else Const(True), node)
            return base
        if name in ("type", "is_floating_point", "size", "numel", "dim", "item", "element_size"):
            if name == "type" and args:
                return tensors.method(base, "to", args, keywords, self.state.version)
            return None
        value = tensors.method(base, name, args, keywords, self.state.version)
        if name.endswith("_") and name in tensors.IN_PLACE and value is not None:
            if base.live:
                self.written(node, base, value, in_place=name, argument=args[0] if args else None)
            # The same object, with its new content; a live one stays the buffer.
            return (
                Form(dict(value.terms), False, value.mixed, value.converted, value.divided)
                if not base.live
                else _InPlace(value, base)
            )
        return value

    def m_eval(self, node: ast.Call, base: Obj, name: str, args: list[Any], keywords: dict[str, Any]) -> Any:
        if args or base.kind in ("optimizer",):
            return None
        self.set_mode(base, EVAL, node)
        return base

    def m_train(self, node: ast.Call, base: Obj, name: str, args: list[Any], keywords: dict[str, Any]) -> Any:
        on = args[0] if args else keywords.get("mode", Const(True))
        if len(args) > 1 or base.kind == "optimizer" or set(keywords) - {"mode"}:
            return None
        if isinstance(on, Const) and isinstance(on.value, bool | int):
            self.set_mode(base, TRAIN if on.value else EVAL, node)
        elif isinstance(on, Flag) and on.mode is not None and canonical(on.obj) is canonical(base):
            self.set_mode(base, on.mode, node) if on.mode != UNKNOWN else self.forget_modes([base])
        elif isinstance(on, Flag) and canonical(on.obj) is canonical(base):
            # Back to what the caller left.
            self.state.modes.pop(canonical(base), None)
        else:
            self.forget_modes([base])
        return base

    def m_itself(self, node: ast.Call, base: Obj, name: str, args: list[Any], keywords: dict[str, Any]) -> Any:
        obj = canonical(base)
        if name == "requires_grad_":
            self.gradients(base, args[0] if args else keywords.get("requires_grad", Const(True)), node)
        elif name in ("half", "bfloat16") or (
            name == "to"
            and any(
                isinstance(a, External) and a.name in ("torch.float16", "torch.half", "torch.bfloat16")
                for a in (*args, *keywords.values())
            )
        ):
            self.state.half[obj] = (node, self.info)
        elif name in ("float", "double") and obj.kind != "batch norm":
            self.state.half.pop(obj, None)
        elif name == "apply" and args:
            self._applied(node, base, args[0])
        if obj.kind == "batch norm" and name == "float":
            for o in [*self.state.half]:
                self.state.half.pop(o)
            self.event("float layers", node, obj)
        return base

    def _applied(self, node: ast.Call, base: Obj, function: Any) -> None:
        """`model.apply(f)`: what f does to a layer happens to the model's layers."""
        for target in options(function):
            if isinstance(target, Function) and isinstance(target.info.node, ast.FunctionDef | ast.Lambda):
                summary = self.program.summarize(target.info, self.depth + 1)
                if not target.info.params:
                    continue
                slot = next(iter(target.info.params.values()))
                slot.flows_from(self.program.obj((node, id(base), "layer"), lambda: Obj("layer", "m", info=base)))
                if slot in summary.layers:
                    self.state.layers[canonical(base)] = Mode(summary.layers[slot].value, node, self.info)
                    self.event("layer mode", node, canonical(base), mode=summary.layers[slot].value)
                if slot in summary.frozen:
                    self.state.frozen[canonical(base)] = summary.frozen[slot]

    def m_iterate(self, node: ast.Call, base: Obj, name: str, args: list[Any], keywords: dict[str, Any]) -> Any:
        if name in ("keys", "values", "items") and base.kind == "batch norm":
            return None
        if base.kind in ("layer", "batch norm") and name == "parameters":
            owner: Any = base
            return self.program.obj(
                (node, id(base), name), lambda: Obj("iteration", name, info=(owner, name), node=node)
            )
        inner = canonical(base)
        return self.program.obj((node, id(inner), name), lambda: Obj("iteration", name, info=(inner, name), node=node))

    def m_state(self, node: ast.Call, base: Obj, name: str, args: list[Any], keywords: dict[str, Any]) -> Any:
        inner = canonical(base)
        return self.program.obj(
            (node, id(inner), name), lambda: Obj("state", f"{inner.path}.state_dict()", info=inner, node=node)
        )

    def m_load(self, node: ast.Call, base: Obj, name: str, args: list[Any], keywords: dict[str, Any]) -> Any:
        inner = canonical(base)
        self.event(
            "load",
            node,
            inner,
            state=args[0] if args else None,
            strict=keywords.get("strict", args[1] if len(args) > 1 else Const(True)),
        )
        self.state.loaded |= {inner}
        return None

    def m_forward(self, node: ast.Call, base: Obj, name: str, args: list[Any], keywords: dict[str, Any]) -> Any:
        return self.forward(node, base, args)

    def forward(self, node: ast.Call, base: Obj, args: list[Any]) -> Any:
        """`model(x)`."""
        if base.kind in OPAQUE and base.kind != "layer":
            return None
        obj = canonical(base)
        if obj.kind == "self" and isinstance(obj.info, ClassInfo) and not obj.info.is_module:
            return None
        event = self.event("forward", node, obj)
        event.data.setdefault("inputs", []).extend(args[:MOST_INPUTS])
        del event.data["inputs"][MOST_INPUTS:]
        if base.kind == "wrapper":
            event.data["wrapper"] = base.name
        mode = self.mode(obj)
        one_rank = self.ranks > 0
        if mode is None:
            self._use(
                Use(
                    event,
                    obj,
                    self.state.no_grad,
                    one_rank,
                    self.layers_mode(obj),
                    self._frozen(obj),
                    self._half(obj),
                    self.conditions > 0,
                )
            )
        else:
            event.seen(self.situation(obj, mode, no_grad=self.state.no_grad))
            if mode.value in (TRAIN, EVAL, SWITCHED) and mode.node is not None:
                self._use(
                    Use(
                        event,
                        obj,
                        self.state.no_grad,
                        one_rank,
                        self.layers_mode(obj),
                        self._frozen(obj),
                        self._half(obj),
                        self.conditions > 0,
                        mode,
                    )
                )
        if mode is None or mode.value != EVAL:
            self.state.version += 1
        self.summary.moves = True
        return self.program.obj((node, "output"), lambda: Obj("output", "output", info=event, node=node))

    def _frozen(self, obj: Obj) -> Any:
        return self.moving(obj)

    def _half(self, obj: Obj) -> Any:
        return next((v for o, v in self.state.half.items() if self.inside(o, obj) or self.inside(obj, o)), None)

    def _use(self, use: Use) -> None:
        if use.mode is not None and use.slot.kind not in SLOTS:
            return
        key = (
            id(use.event),
            id(use.slot),
            use.no_grad,
            None if use.layers is None else use.layers.value,
            use.one_rank,
            None if use.mode is None else use.mode.value,
        )
        if len(self.summary.uses) < MOST_USES:
            self.summary.uses.setdefault(key, use)

    # Functions of the linted files
    # ----------------------------------------------------------------------------------------

    def apply(
        self, node: ast.Call, info: FunctionInfo, owner: Obj | None, args: list[Any], keywords: dict[str, Any]
    ) -> Any:
        """Call a function: its arguments flow into its parameters, and its summary happens here."""
        bound = self.bound(info, owner, args, keywords)
        info.callers += 1
        for name, value in bound.items():
            slot = info.params.get(name)
            if slot is None:
                slot = info.params.setdefault(name, Obj("parameter", name, info=info))
            for option in options(value):
                slot.flows_from(option)
        summary = self.program.summarize(info, self.depth + 1)
        if info.owner is not None and info.owner.self_obj is not owner and isinstance(owner, Obj):
            self_obj: Obj | None = info.owner.self_obj
        else:
            self_obj = None
        return self._instantiate(node, info, summary, bound, self_obj, owner)

    def bound(self, info: FunctionInfo, owner: Obj | None, args: list[Any], keywords: dict[str, Any]) -> dict[str, Any]:
        """Arguments by parameter name."""
        node = info.node
        if isinstance(node, ast.Module):
            return {}
        names = [a.arg for a in (*node.args.posonlyargs, *node.args.args)]
        static = any(isinstance(d, ast.Name) and d.id == "staticmethod" for d in getattr(node, "decorator_list", []))
        if info.owner is not None and names and not static and (owner is not None or names[0] == "cls"):
            names = names[1:]
        elif info.owner is not None and names and not static and names[0] == "self":
            names, args = names[1:], args[1:]
        found: dict[str, Any] = dict(zip(names, args, strict=False))
        found.update({k: v for k, v in keywords.items() if k in names or k in [a.arg for a in node.args.kwonlyargs]})
        return found

    def _instantiate(
        self,
        node: ast.Call,
        info: FunctionInfo,
        s: Summary,
        bound: dict[str, Any],
        self_obj: Obj | None,
        owner: Obj | None,
    ) -> Any:
        slots = {id(slot): bound.get(name) for name, slot in info.params.items()}
        memo: dict[int, Any] = {}

        def mapped(value: Any, depth: int = 0) -> Any:
            if isinstance(value, Scalar):
                return tensors.substitute(value, mapped)
            if isinstance(value, Tuple):
                return Tuple(tuple(mapped(v, depth + 1) for v in value.items)) if depth < 4 else None
            if isinstance(value, Choice):
                return choice([mapped(v, depth + 1) for v in value.options]) if depth < 4 else None
            if not isinstance(value, Obj):
                return value
            if id(value) in memo:
                return memo[id(value)]
            found: Any = value
            if self_obj is not None and value is self_obj:
                found = owner
            elif id(value) in slots:
                found = slots[id(value)]
            elif value.kind == "global" and value.info is self.info.module and isinstance(self.info.node, ast.Module):
                found = self.state.env.get(value.name, value)
            elif value.kind == "attribute" and value.parent is not None and depth < 8:
                parent = mapped(value.parent, depth + 1)
                if parent is not value.parent and value.name == "[]":
                    found = self.element(parent)
                elif parent is not value.parent:
                    found = (
                        choice([self.read(p, value.name, node) for p in options(parent)])
                        if parent is not None
                        else None
                    )
                elif (value.parent, value.name) in self.state.heap:
                    found = self.state.heap[value.parent, value.name]
            elif value.kind == "batch norm" and value.parent is not None and depth < 8:
                parent = mapped(value.parent, depth + 1)
                found = value if parent is value.parent else parent
            memo[id(value)] = found
            return found

        known = {}
        switched = {id(canonical(o)): slot for slot in s.modes for o in objects_in(mapped(slot))}
        for key, use in s.uses.items():
            for obj in {id(o): o for o in map(canonical, objects_in(mapped(use.slot)))}.values():
                if switched.get(id(obj), use.slot) is not use.slot:
                    continue  # the callee knows it by two names, and sets its mode under the other one
                known[key, id(obj)] = (use, obj)
        for use, obj in known.values():
            self._happen(use, obj)
        for obj, mode in s.modes.items():
            for target in map(canonical, objects_in(mapped(obj))):
                if (
                    obj.kind in ("parameter", "attribute", "global")
                    or obj is self_obj
                    or (obj.kind == "self" and self_obj is None)
                ):
                    if mode.value == UNKNOWN:
                        self.state.modes[target] = mode
                    else:
                        self.switch(target, mode)
        for obj, mode in s.layers.items():
            for target in map(canonical, objects_in(mapped(obj))):
                self.state.layers[target] = mode
        for obj, what in s.frozen.items():
            for target in map(canonical, objects_in(mapped(obj))):
                self.state.frozen[target] = what
        for obj in s.thawed - set(s.frozen):
            for target in map(canonical, objects_in(mapped(obj))):
                self.state.frozen.pop(target, None)
        for obj, what in s.half.items():
            for target in map(canonical, objects_in(mapped(obj))):
                self.state.half[target] = what
        self.state.loaded |= {canonical(o) for slot in s.loaded for o in objects_in(mapped(slot))}
        for (obj, name), value in s.assigned.items():
            if obj.kind in ("self", "parameter", "attribute", "instance"):
                new = mapped(value)
                for target in objects_in(mapped(obj)):
                    if target is obj and obj.kind != "self":
                        continue
                    if isinstance(new, Form) and obj.kind == "self":
                        target.attr(name).flows_from(new)
                        continue
                    self.state.heap[target, name] = new
                    for option in options(new):
                        target.attr(name).flows_from(option)
                        if isinstance(option, Obj) and option.kind in MADE and option in s.modes:
                            self.state.modes[option] = s.modes[option]
                        if isinstance(option, Obj) and target.kind in ("instance", "result") and option is not target:
                            self.held.setdefault(option, target)
        for event, atom, atoms in s.writes:
            self._written_by(event, atom, atoms, mapped)
        if s.moves:
            self.state.version += 1
        return self._returned(node, info, s, mapped)

    def _happen(self, use: Use, obj: Obj) -> None:
        """A callee's forward of what is here `obj`."""
        if obj.kind in OPAQUE or obj.kind == "output":
            return
        mode = use.mode or self.mode(obj)
        no_grad = (
            True
            if use.no_grad or self.state.no_grad
            else None
            if use.no_grad is None or self.state.no_grad is None
            else False
        )
        layers = use.layers if use.layers is not None else self.layers_mode(obj)
        if (
            use.mode is not None
            and use.mode.value == TRAIN
            and use.layers is None
            and layers is not None
            and layers.value == EVAL
            and not self.sees_to_modes(obj)
        ):
            # The callee's train() undoes what was frozen here.
            self.event("unfreeze", use.mode.node, obj, frozen=layers) if use.mode.node is not None else None
            layers = Mode(TRAIN, use.mode.node, use.mode.function)
        if use.mode is not None and use.mode.value == TRAIN and not self.sees_to_modes(obj):
            self.undo(obj, use.mode)
        if mode is None or use.mode is not None:
            rank = use.one_rank or self.ranks > 0
            self._use(
                use._replace(
                    slot=obj,
                    no_grad=no_grad,
                    one_rank=rank,
                    layers=layers,
                    frozen=use.frozen + self._frozen(obj),
                    half=use.half or self._half(obj),
                    conditional=use.conditional or self.conditions > 0,
                )
            )
            if use.mode is None:
                return
        assert mode is not None
        context = self.situation(obj, mode, no_grad=no_grad, layers=layers)
        if layers is not None and layers.value != TRAIN:
            context = context._replace(frozen=())
        if use.mode is not None and not (
            context.frozen
            or context.half
            or context.loaded
            or layers is not None
            or use.frozen
            or use.half
            or use.one_rank
            or context.one_rank
        ):
            return  # nothing that the function did not know itself
        use.event.seen(
            context._replace(
                one_rank=context.one_rank or use.one_rank,
                frozen=context.frozen + use.frozen,
                half=context.half or use.half,
                conditional=context.conditional or use.conditional,
            )
        )
        if mode.value != EVAL:
            self.state.version += 1

    def _written_by(self, event: Any, atom: Atom, atoms: list[Atom], mapped: Any) -> None:
        """A callee's write to what is here a model's parameters."""
        target = self._mapped_atom(atom, mapped)
        if target is None or target == atom:
            return
        event.data.setdefault("mapped", []).append((target, [self._mapped_atom(a, mapped) or a for a in atoms]))
        if len(self.summary.writes) < 40:
            self.summary.writes.append((event, target, [self._mapped_atom(a, mapped) or a for a in atoms]))

    def _mapped_atom(self, atom: Atom, mapped: Any) -> Atom | None:
        owner = atom.owner
        if not isinstance(owner, Obj):
            return None
        if atom.kind == "element" and owner.name == "[]" and owner.parent is not None:
            element = self.element(mapped(owner.parent))
            for option in options(element):
                if isinstance(option, Form):
                    return next(iter(option.terms))
            return None
        for obj in objects_in(mapped(owner)):
            return atom._replace(owner=canonical(obj))
        return None

    def _returned(self, node: ast.Call, info: FunctionInfo, s: Summary, mapped: Any) -> Any:
        found = []
        for value in s.returns[:4]:
            for option in options(value):
                if isinstance(option, Tuple):
                    found.append(
                        Tuple(
                            tuple(
                                choice([self._fresh(node, info, s, o, mapped) for o in options(item)])
                                for item in option.items
                            )
                        )
                    )
                else:
                    found.append(self._fresh(node, info, s, option, mapped))
        if not found and not s.returns:
            return None
        return choice(found)

    def _fresh(self, node: ast.Call, info: FunctionInfo, s: Summary, value: Any, mapped: Any) -> Any:
        """A returned value; what the function itself makes is another object with each call."""
        new = mapped(value)
        if not (
            isinstance(new, Obj)
            and new is value
            and new.kind in ("instance", "external", "copy", "result", "wrapper", "list", "dict")
        ):
            return new
        inner = canonical(new)
        made = self.program.obj(
            (node, id(info), id(new)), lambda: Obj("result", info.name, info=info, node=node, sources=[new])
        )
        made.given = {name: mapped(slot) for name, slot in info.params.items()}
        if inner in s.modes:
            self.state.modes[made] = s.modes[inner]
        if inner in s.layers:
            self.state.layers[made] = s.layers[inner]
        if inner in s.frozen:
            self.state.frozen[made] = s.frozen[inner]
        if inner in s.half:
            self.state.half[made] = s.half[inner]
        if inner in s.loaded:
            self.state.loaded |= {made}
        return made


def _InPlace(value: Form, base: Form) -> Form:
    """The buffer itself with its new content: more in-place calls go on from there."""
    return _Chained(dict(value.terms), True, value.mixed, value.converted, value.divided)


class _Chained(Form):
    """What an in-place call returns."""


STANDARD: dict[str, Any] = {
    "eval": Calls.m_eval,
    "train": Calls.m_train,
    "state_dict": Calls.m_state,
    "load_state_dict": Calls.m_load,
    "forward": Calls.m_forward,
    "__call__": Calls.m_forward,
    **dict.fromkeys(RETURNS_ITSELF, Calls.m_itself),
    **dict.fromkeys((*ITERATIONS, "keys", "values", "items"), Calls.m_iterate),
}
