"""Functions and classes from outside the linted files."""

from __future__ import annotations

import ast
import re
from typing import Any

from batchnorm.diagnosis.source import tensors
from batchnorm.diagnosis.source.definitions import Class, Function, Module, Namespace, Super
from batchnorm.diagnosis.source.interpreter.summaries import Summaries
from batchnorm.diagnosis.source.interpreter.walk import OPAQUE
from batchnorm.diagnosis.source.names import (
    CHECKPOINT,
    FACTORIES,
    HARMLESS,
    RECALIBRATES,
    WRAPPERS,
    is_layer,
    last,
    loads_weights,
)
from batchnorm.diagnosis.source.trace import TRAIN, UNKNOWN, Mode
from batchnorm.diagnosis.source.values import (
    VOLATILE,
    ClassName,
    Const,
    External,
    Form,
    Obj,
    Partial,
    Tuple,
    canonical,
    choice,
    objects_in,
    options,
    word,
)

PASSES_THROUGH = re.compile(
    r"tqdm(\.auto|\.notebook)?(\.tqdm|\.trange)?|list|tuple|iter|(itertools\.)?cycle|reversed|sorted|set|"
    r"torch\.autograd\.(variable\.)?Variable|torch\.(compile|jit\.script|jit\.trace)"
)
DICTS = ("dict", "collections.OrderedDict")
EXPORTS = re.compile(r"torch\.(jit\.(script|trace)|onnx\.(dynamo_)?export|export\.export)")
ATTRIBUTES = re.compile(r"(Simple)?Namespace|EasyDict|edict|AttrDict|Munch|ConfigDict|Box|CfgNode|CN")
PREPARES = ("prepare", "initialize", "setup")
CONVERTS_SYNC = ("convert_sync_batchnorm", "convert_syncbn_model", "convert_model")


class Outside(Summaries):
    """Names from outside."""

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
        if short == "Variable" and keywords.get("volatile") == Const(True):
            return VOLATILE
        if EXPORTS.fullmatch(name):
            self._exported(node, name, first if args else keywords.get("model"), keywords)
        if PASSES_THROUGH.fullmatch(name):
            return first if name != "set" else None
        if name.endswith("__dict__.get"):
            return External(name.removesuffix(".get"))
        if name in DICTS and isinstance(first, Obj) and first.kind == "iteration":
            return first
        if name in DICTS and (not args or self.entries(first)):
            return self.dictionary(node, [*((None, a) for a in args), *((Const(k), v) for k, v in keywords.items())])
        if name in ("zip", "itertools.izip", "izip"):
            return self.program.obj((node, "zip", *map(id, args)), lambda: Obj("zip", "zip", info=args, node=node))
        if name == "next" and first is not None:
            return self.element(first)
        if name == "enumerate":
            return self.program.obj(
                (node, "enumerate", id(first)), lambda: Obj("enumerate", "enumerate", info=first, node=node)
            )
        if name == "filter" and len(args) > 1:
            return args[1]
        if name in ("itertools.chain", "chain"):
            return self.together(node, args)
        if short == "partial" and args:
            return Partial(first, tuple(args[1:]), tuple(keywords.items()))
        wrapper = WRAPPERS.fullmatch(short) if args else None
        if wrapper:
            return self._wrapped(node, first, "ddp" if wrapper["ddp"] else "data parallel")
        if name.startswith("torch.nn.parallel") and short == "data_parallel" and args:
            return choice([self.forward(node, o, [*args[1:], *keywords.values()]) for o in objects_in(first)])
        if short in CONVERTS_SYNC and args:
            for obj in objects_in(first):
                event = self.event("sync", node, obj)
                event.data["wrapped"] = any(o.kind == "wrapper" and o.name == "ddp" for o in objects_in(first))
            return first
        if short in PREPARES and args:
            found = [a for a in args if objects_in(a)]
            return Tuple(tuple(args)) if len(args) > 1 else found[0] if found else first
        if name in CHECKPOINT and args:
            self.event("checkpoint", node, None, what=first)
            return None
        attribute = word(args, 1)
        names = [getattr(o, "value", None) for o in options(args[1])] if name == "getattr" and args[1:] else []
        if names and all(isinstance(n, str) for n in names):
            return choice([self.read(first, str(n), node) for n in names])
        if name == "getattr" and len(args) >= 2 and (named := self.named_in(first)) is not None:
            return named
        if name == "globals":
            return self.names_of(self.info.module)
        if name == "eval" and first is not None and not isinstance(first, Const):
            return self.item(self.names_of(self.info.module), None)
        if name == "setattr" and len(args) == 3 and attribute is not None:
            target = ast.Attribute(node.args[0], attribute, ast.Store())
            self.bind(ast.copy_location(target, node), args[2], node)
            return None
        if name == "type" and isinstance(first, Obj):
            return ClassName(first)
        if name == "str" and isinstance(first, ClassName):
            return first
        if name.startswith("torch.") and short in ("lerp", "add", "sub", "mul", "div", "true_divide", "clone"):
            found = tensors.function(short, args, keywords, self.state.version)
            if found is not None:
                return found
        if short == "set_grad_enabled" and name.startswith("torch"):
            self.state.no_grad = (not first.value) if isinstance(first, Const) else None
            return None
        event = self.event("outside", node, None, name=name, args=args, keywords=keywords)
        for obj in (o for value in args[:2] for o in objects_in(value) if o.kind not in OPAQUE):
            mode = self.mode(obj) or Mode(UNKNOWN)
            event.seen(self.situation(canonical(obj), mode, no_grad=self.state.no_grad))
        if short in RECALIBRATES:
            for obj in (canonical(o) for a in args for o in objects_in(a)):
                self.remeasured(obj)
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
            return self._made(node, name, args, Mode(UNKNOWN), keywords)
        return self._made(node, name, args, Mode(TRAIN) if self._constructs(name) else Mode(UNKNOWN), keywords)

    def _exported(self, node: ast.Call, name: str, model: Any, keywords: dict[str, Any]) -> None:
        for obj in {id(o): o for o in map(canonical, objects_in(model)) if o.kind not in OPAQUE}.values():
            event = self.event("export", node, obj, name=name, keywords=keywords)
            self.happens(event, obj)

    def named_in(self, module: Any) -> Any:
        """What a name that is not known may stand for in a file, or in a well-known module."""
        if isinstance(module, Namespace):
            return self.item(self.names_of(module.module), None)
        if isinstance(module, External) and FACTORIES.match(module.name):
            return External(f"{module.name}.__dict__")
        return External("torch.optim.Optimizer") if module == External("torch.optim") else None

    def names_of(self, module: Module) -> Obj:
        """The classes and functions at the top of a file, as a dict."""
        made = self.program.obj((id(module), "names"), lambda: Obj("dict", module.name))
        values = (of.top(name) for of in (module, *module.starred) for name in of.names if name[:1] != "_")
        held = [v for v in values if isinstance(v, Class | Function | External)]
        for value in sorted(held, key=lambda v: not (isinstance(v, Class) and v.info.is_module)):
            if not isinstance(value, External) or FACTORIES.match(value.name):
                made.flows_from(value)
        return made

    def _unknown(self, args: list[Any], keywords: dict[str, Any]) -> None:
        self.forget_modes([*args, *keywords.values()])
        self.state.version += 1
        self.summary.moves = True

    def _constructs(self, name: str) -> bool:
        return bool(FACTORIES.match(name) and not name.startswith("torch.hub")) or name.startswith("torch.nn.")

    def _made(
        self, node: ast.Call, name: str, args: list[Any], mode: Mode, keywords: dict[str, Any] | None = None
    ) -> Obj:
        first = word(args, 0)
        if name.startswith("torch.hub") and len(args) > 1 and isinstance(args[1], Const):
            first = args[1].value
        made = self.program.obj((node, name), lambda: Obj("external", last(name), info=(name, first), node=node))
        if ATTRIBUTES.fullmatch(last(name)):
            for key, value in {**(self.entries(args[0]) if args else {}), **(keywords or {})}.items():
                made.attr(key).flows_from(value)
        self.born.setdefault(made, tuple(self.tests))
        for option in (o for a in args for o in options(a)) if name.startswith("torch.nn.") else ():
            made.flows_from(option)
        if name.startswith("torch.optim.") or last(name) in ("SGD", "Adam", "AdamW", "RMSprop", "LARS"):
            made.kind = "optimizer"
        if mode.value == TRAIN and made.kind == "external":
            self.state.modes[made] = mode
            if name.startswith("torch.nn."):
                self.wrap(made, args, node)
            if loads_weights(node, name):
                self.state.loaded |= {made}
        return made

    def _copied(self, node: ast.Call, value: Any) -> Any:
        if isinstance(value, Form):
            return tensors.frozen_form(value, self.state.version)
        found = []
        for obj in objects_in(value):
            inner = canonical(obj)
            made = self.program.obj(
                (node, id(inner)),
                lambda inner=inner: Obj("copy", inner.path, info=self.info, node=node, sources=[inner]),
            )
            mode = self.mode(inner)
            if mode is not None:
                self.state.modes[made] = mode
            if inner in self.state.loaded:
                self.state.loaded |= {made}
            found.append(made)
        return choice(found) if found else value

    def _wrapped(self, node: ast.Call, value: Any, how: str) -> Any:
        found = []
        for obj in objects_in(value):
            inner = canonical(obj)
            made = self.program.obj((node, id(inner)), lambda inner=inner: Obj("wrapper", how, info=inner, node=node))
            if how == "ddp":
                self.event("ddp", node, inner)
            found.append(made)
        return choice(found) if found else self._made(node, how, [value], Mode(UNKNOWN))
