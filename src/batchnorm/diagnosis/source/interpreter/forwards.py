"""Forwards: `model(x)`, in the mode that is known here or that a caller knows."""

from __future__ import annotations

import ast
from typing import Any

from batchnorm.diagnosis.source.interpreter.objects import OPAQUE
from batchnorm.diagnosis.source.interpreter.writes import Writes
from batchnorm.diagnosis.source.project import ClassInfo
from batchnorm.diagnosis.source.trace import EVAL, LEFT, MOST_USES, SLOTS, SWITCHED, TRAIN, Use
from batchnorm.diagnosis.source.values import VOLATILE, Obj, canonical, options

MOST_INPUTS = 8  # of a forward


class Forwards(Writes):
    """Forwards."""

    def forward(self, node: ast.Call, base: Obj, args: list[Any]) -> Any:
        """`model(x)`."""
        if base.kind in OPAQUE and base.kind != "layer":
            return None
        obj = canonical(base)
        if obj.kind == "self" and isinstance(obj.info, ClassInfo) and not obj.info.is_module:
            return None
        before = self.state.no_grad
        self.state.no_grad = True if any(v is VOLATILE for a in args for v in options(a)) else before
        output = self._forward(node, base, obj, args)
        self.state.no_grad = before
        return output

    def _forward(self, node: ast.Call, base: Obj, obj: Obj, args: list[Any]) -> Obj:
        event = self.event("forward", node, obj)
        event.data.setdefault("inputs", []).extend(args[:MOST_INPUTS])
        del event.data["inputs"][MOST_INPUTS:]
        if base.kind == "wrapper":
            event.data["wrapper"] = base.name
        mode = self.mode(obj)
        if mode is None:
            self._use(self._used(event, obj))
        else:
            event.seen(self.situation(obj, mode, no_grad=self.state.no_grad))
            if mode.value in (TRAIN, EVAL, SWITCHED, LEFT) and mode.node is not None:
                self._use(self._used(event, obj, mode))
        if mode is None or mode.value != EVAL:
            self.state.version += 1
        self.summary.moves = True
        output = self.program.obj((node, "output"), lambda: Obj("output", "output", node=node))
        output.info = event  # of this round
        return output

    def _used(self, event: Any, obj: Obj, mode: Any = None) -> Use:
        """The call as it stands here, in a mode if one is known."""
        layers, moving, half = self.layers_mode(obj), self.moving(obj), self.half_of(obj)
        return Use(event, obj, self.state.no_grad, self.ranks > 0, layers, moving, half, self.conditions > 0, mode)

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
