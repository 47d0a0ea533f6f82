"""Which mode an object is in, and what train() and eval() do to it and to its parts."""

from __future__ import annotations

import ast
from typing import Any

from batchnorm.diagnosis.source.conditions import exclusive
from batchnorm.diagnosis.source.contents import Contents
from batchnorm.diagnosis.source.definitions import ClassInfo
from batchnorm.diagnosis.source.interpreter.walk import OPAQUE, Walk
from batchnorm.diagnosis.source.trace import EVAL, SWITCHED, TRAIN, UNKNOWN, Context, Freeze, Mode
from batchnorm.diagnosis.source.values import MODELS, Obj, canonical, objects_in, owners, within

CONTAINERS = ("torch.nn.Sequential", "torch.nn.ModuleList")


class Modes(Walk):
    """Modes of objects."""

    def situation(self, obj: Obj, mode: Mode, *, no_grad: bool | None = None, layers: Mode | None = None) -> Context:
        """What holds at this point for an object."""
        frozen = self.moving(obj)
        return Context(
            obj,
            mode,
            layers if layers is not None else self.layers_mode(obj),
            no_grad,
            self.second > 0,
            self.ranks > 0,
            self.conditions > 0,
            frozen,
            self.half_of(obj),
            any(self.inside(o, obj) or self.inside(obj, o) for o in self.state.loaded),
            self.info,
            quiet=tuple(
                o
                for held in (self.state.modes, self.state.layers)
                for o, m in held.items()
                if m.value == EVAL and o.kind == "attribute" and o is not obj and within(o, obj)
            ),
        )

    def half_of(self, obj: Obj) -> Any:
        """Where an object was put into half precision."""
        return next((v for o, v in self.state.half.items() if self.inside(o, obj) or self.inside(obj, o)), None)

    def moving(self, obj: Obj) -> tuple[tuple[Obj, Freeze], ...]:
        """The parts of an object that are frozen by requires_grad and by nothing else."""
        found = []
        for part, freeze in self.state.frozen.items():
            mode, layers = self.mode(part), self.layers_mode(part)
            if freeze.tests and exclusive(freeze.tests, (*self.tests, *self.returned)):
                continue
            if (
                self.inside(part, obj)
                and (mode is None or mode.value in (TRAIN, SWITCHED) or part is obj)
                and (layers is None or layers.value == TRAIN)
            ):
                found.append((part, freeze))
        return tuple(found)

    def mode(self, obj: Obj) -> Mode | None:
        """The mode of an object, its own or its owner's; None where only a caller knows."""
        at: Obj | None = canonical(obj)
        for _ in range(12):
            if at is None:
                break
            if at in self.state.modes:
                return self.state.modes[at]
            if at.kind == "attribute" and at.name[:1] == "[" and at.parent is not None:
                each = at.parent.attrs.get("[]")
                if each in self.state.modes:
                    return self.state.modes[each]
            part = at.parent is not None and at.kind in ("attribute", "batch norm")
            at = canonical(at.parent) if part else self.held.get(at)
        return None

    def layers_mode(self, obj: Obj) -> Mode | None:
        """The mode of an object's batch norm layers, where it was set apart from the object's."""
        layers = self.state.layers
        return next((layers[at] for at in owners(canonical(obj)) if at in layers), None) if layers else None

    def set_mode(self, value: Any, mode: str, node: ast.AST) -> None:
        """`x.train()` and `x.eval()`, for all that x can be."""
        for obj in {id(o): o for o in (canonical(o) for o in objects_in(value))}.values():
            if obj.kind in ("layer", "batch norm"):
                self.set_layers(obj.info if obj.kind == "layer" else obj.parent, mode, node, obj)
                continue
            event = self.event("mode", node, obj, mode=mode)
            event.seen(self.situation(obj, self.mode(obj) or Mode(UNKNOWN)))
            self.switch(obj, Mode(mode, node, self.info, sure=not self.several))

    def switch(self, obj: Obj, mode: Mode) -> None:
        """A mode for an object and its parts; train() undoes what was frozen inside, unless its class sees to that."""
        own = mode.value == TRAIN and self.sees_to_modes(obj)
        if obj.kind == "attribute" and obj.name == "[]" and obj.parent is not None:
            for name, slot in obj.parent.attrs.items():
                if name[:1] == "[" and slot is not obj:
                    self.state.modes.pop(slot, None)
        for held in [o for o in self.state.modes if o is not obj and within(o, obj)]:
            self._undone(held, obj, mode) if not own else None
            del self.state.modes[held]
        for held in [o for o in self.state.layers if within(o, obj)]:
            if mode.value == TRAIN and self.state.layers[held].value == EVAL and not own:
                frozen = self.state.layers[held]
                if mode.node is not None:
                    self.event("unfreeze", mode.node, obj, frozen=frozen, by=mode.function or self.info)
                self.state.layers[held] = mode
            else:
                del self.state.layers[held]
        if own:
            self.state.layers[obj] = Mode(UNKNOWN, mode.node, mode.function)
        self.state.modes[obj] = mode
        if not own:
            self.set_parts(obj, mode)
        self._around(obj, mode)

    def _around(self, obj: Obj, mode: Mode) -> None:
        """The layers of an object that has none of its own, and holds another one, are in the other one's mode."""
        owner = self.held.get(obj)
        if owner is None or not isinstance(owner.info, ClassInfo) or Contents(self.program.scanned).scan(owner.info)[0]:
            return
        if mode.value == EVAL and owner not in self.state.layers:
            self.state.layers[owner] = Mode(UNKNOWN, mode.node, mode.function)
        elif mode.value == TRAIN and owner in self.state.layers and self.state.layers[owner].value == UNKNOWN:
            del self.state.layers[owner]

    def wrap(self, made: Obj, parts: list[Any], node: ast.AST) -> None:
        """A new object without batch norm of its own, around models in eval: its layers are not in its train mode."""
        held = (o for value in parts for o in objects_in(value))
        of = (o.info[0] if o.kind == "iteration" else o.info if o.kind == "layer" else o for o in held)
        modes = [(o, self.mode(o)) for o in of if isinstance(o, Obj)]
        around = [o for o, mode in modes if mode is not None and mode.value == EVAL]
        if not around or self.layers_mode(made) is not None:
            return
        contents = Contents(self.program.scanned)  # of now: what flows where is not known in the first round
        own = isinstance(made.info, ClassInfo) and contents.scan(made.info)[0]
        if not own and not any(contents.contains(o) for o, _ in modes if o not in around):
            self.state.layers[made] = Mode(UNKNOWN, node, self.info)

    def sees_to_modes(self, obj: Obj) -> bool:
        """Whether an object's class has a train() of its own."""
        info = self.class_of(obj)
        return info is not None and info.is_module and info.method("train") is not None

    def _undone(self, part: Obj, obj: Obj, mode: Mode) -> None:
        """A part that was put in eval where its owner was made, or together with its weights, trains again."""
        frozen = _evals(self.state.modes[part])
        if mode.value != TRAIN or mode.node is None or frozen.value != EVAL or frozen.function is None:
            return
        owner = frozen.function.owner
        made = frozen.function.name == "__init__" and owner is not None and owner.is_module
        if made or any(f.function is frozen.function and self.inside(o, part) for o, f in self.state.frozen.items()):
            self.event("part trains again", mode.node, part, frozen=frozen, of=obj, by=mode.function or self.info)

    def undo(self, obj: Obj, mode: Mode) -> None:
        """What a train() inside a function undoes, where the function leaves another mode behind."""
        for part, held in list(self.state.modes.items()):
            if _evals(held).value == EVAL and part is not obj and self.inside(part, obj):
                self._undone(part, obj, mode)

    def set_parts(self, obj: Obj, mode: Mode, depth: int = 0) -> None:
        """A mode for the objects that were assigned to an object's attributes."""
        if depth > 2 or (obj.kind == "self" and not (isinstance(obj.info, ClassInfo) and obj.info.is_module)):
            return
        for (owner, _), value in list(self.state.heap.items()):
            if owner is obj:
                for part in map(canonical, objects_in(value)):
                    if part in self.state.modes and part is not obj:
                        self._undone(part, obj, mode)
                        self.state.modes[part] = mode
                        self.set_parts(part, mode, depth + 1)
        info: Any = obj.info
        held = obj.sources if obj.kind == "external" and info[0] in CONTAINERS else ()
        for part in (canonical(o) for value in held for o in objects_in(value)):
            if part is not obj and part.kind in MODELS:
                self.state.modes[part] = mode
                self.set_parts(part, mode, depth + 1)

    def set_layers(self, owner: Any, mode: str, node: ast.AST, layer: Obj) -> None:
        """A mode for batch norm layers alone."""
        for obj in map(canonical, objects_in(owner)):
            if layer.kind == "layer":
                # Not told apart by their class: some of the model's layers, which ones is not known.
                if mode == EVAL:
                    self.state.layers[obj] = Mode(UNKNOWN, node, self.info)
                continue
            self.event("layer mode", node, obj, mode=mode)
            self.state.layers[obj] = Mode(mode, node, self.info)

    def forget_modes(self, values: list[Any]) -> None:
        """Models that an unknown function was given may come back in any mode."""
        for obj in (canonical(o) for value in values for o in objects_in(value)):
            model = obj.kind != "self" or (isinstance(obj.info, ClassInfo) and obj.info.is_module)
            if obj.kind not in OPAQUE and model and (obj in self.state.modes or obj.kind in MODELS):
                self.state.modes[obj] = Mode(UNKNOWN)


def _evals(mode: Mode) -> Mode:
    """The eval() of one of two branches, or the mode."""
    return mode if mode.lapse is None else mode.lapse
