"""What the methods of torch modules and of tensors do."""

# ruff: noqa: D102 (a method a kind of node, named by it)

from __future__ import annotations

import ast
from dataclasses import replace
from typing import Any

from batchnorm.diagnosis.source import tensors
from batchnorm.diagnosis.source.definitions import Function
from batchnorm.diagnosis.source.interpreter.containers import ITERATIONS
from batchnorm.diagnosis.source.interpreter.forwards import MEASURED
from batchnorm.diagnosis.source.interpreter.outside import Outside
from batchnorm.diagnosis.source.trace import EVAL, SWITCHED, TRAIN, UNKNOWN, Mode
from batchnorm.diagnosis.source.values import Const, External, Flag, Form, Obj, canonical, objects_in, options, word

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


HALVES = ("torch.float16", "torch.half", "torch.bfloat16")


class Methods(Outside):
    """Methods that no linted file defines."""

    def _tensor_method(self, node: ast.Call, base: Form, name: str, args: list[Any], keywords: dict[str, Any]) -> Any:
        args = [self.unknown_tensor(a) if name != "mul_" and self.is_parameter(a) else a for a in args]
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
            return replace(value, terms=dict(value.terms), live=base.live)
        return value

    def added(self, node: ast.Call, base: Obj, args: list[Any]) -> None:
        """`base.add_module(name, part)`: an attribute where the name is literal, and what base holds in any case."""
        attribute = word(args, 0)
        if attribute is not None and isinstance(node.func, ast.Attribute):
            target = ast.Attribute(node.func.value, attribute, ast.Store())
            self.bind(ast.copy_location(target, node), args[1], node)
        for option in options(args[1]) if base.kind == "external" else ():
            base.flows_from(option)

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
        elif Const(True) in options(on):
            self.set_mode(base, SWITCHED, node)
        else:
            self.forget_modes([base])
        return base

    def m_itself(self, node: ast.Call, base: Obj, name: str, args: list[Any], keywords: dict[str, Any]) -> Any:
        obj, given = canonical(base), (a.name for a in (*args, *keywords.values()) if isinstance(a, External))
        if name == "requires_grad_":
            self.gradients(base, args[0] if args else keywords.get("requires_grad", Const(True)), node)
        elif name in ("half", "bfloat16") or (name == "to" and any(n in HALVES for n in given)):
            self.state.half[obj] = (node, self.info, False)
        elif name in ("float", "double") and obj.kind != "batch norm":
            self.state.half.pop(obj, None)
        elif name == "apply" and args:
            self._applied(node, base, args[0])
        if obj.kind == "batch norm" and name == "float":
            self.state.half.clear()
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
                if (slot, MEASURED) in summary.assigned:
                    self.state.heap[canonical(base), MEASURED] = summary.assigned[slot, MEASURED]
                if slot in summary.frozen:
                    self.state.frozen[canonical(base)] = self.under(summary.frozen[slot])

    def m_iterate(self, node: ast.Call, base: Obj, name: str, args: list[Any], keywords: dict[str, Any]) -> Any:
        if name in ("keys", "values", "items") and base.kind == "batch norm":
            return None
        owner = base if base.kind in ("layer", "batch norm") and name == "parameters" else canonical(base)
        return self.program.obj((node, id(owner), name), lambda: Obj("iteration", name, info=(owner, name), node=node))

    def m_state(self, node: ast.Call, base: Obj, name: str, args: list[Any], keywords: dict[str, Any]) -> Any:
        inner = canonical(base)
        return self.program.obj(
            (node, id(inner), name), lambda: Obj("state", f"{inner.path}.state_dict()", info=inner, node=node)
        )

    def m_load(self, node: ast.Call, base: Obj, name: str, args: list[Any], keywords: dict[str, Any]) -> Any:
        inner = canonical(base)
        strict = keywords.get("strict", args[1] if len(args) > 1 else Const(True))
        self.event("load", node, inner, state=args[0] if args else None, strict=strict)
        self.state.loaded |= {inner}
        self.remeasured(inner)
        return None

    def m_reset(self, node: ast.Call, base: Obj, name: str, args: list[Any], keywords: dict[str, Any]) -> Any:
        owner = base.parent if base.kind == "batch norm" else base.info if base.kind == "layer" else base
        for obj in map(canonical, objects_in(owner)):
            self.state.heap[obj, MEASURED] = Mode(UNKNOWN, node, self.info)

    def m_forward(self, node: ast.Call, base: Obj, name: str, args: list[Any], keywords: dict[str, Any]) -> Any:
        return self.forward(node, base, [*args, *keywords.values()])


STANDARD: dict[str, Any] = {
    "eval": Methods.m_eval,
    "train": Methods.m_train,
    "state_dict": Methods.m_state,
    "load_state_dict": Methods.m_load,
    "reset_running_stats": Methods.m_reset,
    "forward": Methods.m_forward,
    "__call__": Methods.m_forward,
    **dict.fromkeys(RETURNS_ITSELF, Methods.m_itself),
    **dict.fromkeys((*ITERATIONS, "keys", "values", "items"), Methods.m_iterate),
}
