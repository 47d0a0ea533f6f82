"""Calls of functions of the linted files: arguments flow in, the summary happens to them, values come back."""

from __future__ import annotations

import ast
from typing import Any, TypeVar

from batchnorm.diagnosis.source.conditions import decided, passed
from batchnorm.diagnosis.source.definitions import FunctionInfo, in_module
from batchnorm.diagnosis.source.interpreter.forwards import MEASURED, Forwards
from batchnorm.diagnosis.source.interpreter.mapping import Mapping
from batchnorm.diagnosis.source.interpreter.walk import OPAQUE
from batchnorm.diagnosis.source.trace import EVAL, SLOTS, TRAIN, UNKNOWN, Call, Freeze, Mode, Summary, Test, Use
from batchnorm.diagnosis.source.values import Const, Form, Obj, Tuple, canonical, choice, objects_in, options, owners

T = TypeVar("T")
MADE = ("external", "instance", "copy", "result")  # kinds of objects that a function makes
RETURNED = (*MADE, "wrapper", "list", "dict")  # and returns as another one with each call
MOST_WRITES = 40  # of a summary
MOST_RETURNS = 4
MOST_TESTS = 12  # of a freeze


class Summaries(Forwards):
    """Functions of the linted files."""

    def apply(
        self, node: ast.Call, info: FunctionInfo, owner: Obj | None, args: list[Any], keywords: dict[str, Any]
    ) -> Any:
        """Call a function: its arguments flow into its parameters, and its summary happens here."""
        bound = self.bound(info, owner, args, keywords)
        if info.makes_by_name is not None and (named := self.named_in(bound.get(info.makes_by_name))) is not None:
            return self.invoke(node, named, args[len(bound) :], {})
        for name, value in bound.items():
            slot = info.params.get(name)
            if slot is None:
                slot = info.params.setdefault(name, Obj("parameter", name, info=info))
            for option in options(value):
                slot.flows_from(option)
        summary = self.program.summarize(info, self.depth + 1)
        mapped = Mapping(self, node, info, bound, owner)
        self._run(summary, mapped, info)
        self._switch_modes(summary, mapped)
        self._set_parts(summary, mapped)
        self._assign(summary, mapped)
        self._write(summary, mapped)
        self.state.version += summary.moves
        self.entered = {o: mode for slot, mode in summary.inside.items() for o in mapped.objects(slot)}
        return self._returned(node, info, summary, mapped)

    def bound(self, info: FunctionInfo, owner: Obj | None, args: list[Any], keywords: dict[str, Any]) -> dict[str, Any]:
        """Arguments by parameter name."""
        names, others = info.positional, info.arguments.kwarg
        if info.owner is not None and names and not info.static:
            if owner is not None or names[0] == "cls":
                names = names[1:]
            elif names[0] == "self":
                names, args = names[1:], args[1:]
        found: dict[str, Any] = dict(zip(names, args, strict=False))
        named = {*names, *(a.arg for a in info.arguments.kwonlyargs)}
        found.update({k: v for k, v in keywords.items() if k in named})
        if others is not None and not named.issuperset(keywords):
            found[others.arg] = self.dictionary(others, [(Const(k), v) for k, v in keywords.items() if k not in named])
        return found

    def _run(self, s: Summary, mapped: Mapping, info: FunctionInfo) -> None:
        """The callee's forwards, those apart that its arguments rule out."""
        switched = {id(o): slot for slot in s.modes for o in mapped.objects(slot)}
        all_uses = {(key, id(obj)): (use, obj) for key, use in s.uses.items() for obj in mapped.objects(use.here.obj)}
        for use, obj in all_uses.values():
            slot = switched.get(id(obj), use.here.obj)
            if use.event.function is info and passed(use.event.data["tests"], mapped.given) is None:
                continue
            if obj.kind in OPAQUE or obj.kind == "output":
                continue
            if slot is use.here.obj:
                self._happen(use, obj, mapped)
            elif _at_first(s.modes[slot], info):  # the callee sets its mode under another name
                before = dict(self.state.modes)
                self.state.modes[obj] = s.modes[slot]
                self._happen(use, obj, mapped)
                self.state.modes = before

    def _happen(self, use: Use, obj: Obj, mapped: Mapping) -> None:
        """A callee's forward of what is here `obj`."""
        use = use if use.mode is None else use._replace(mode=self._resolved(use.mode, mapped))
        if use.mode is not None and use.mode.value == UNKNOWN:
            return
        there, call = use.here, mapped.node
        here_made = obj.kind == "copy" and obj.info is mapped.info  # of what the callee was given
        copied = next(mapped.objects(obj.sources[0]), None) if here_made else None
        mode = use.mode or self.mode(obj) or (self.mode(copied) if copied is not None else None)
        quiet = tuple(o for slot in there.quiet for o in mapped.objects(slot))
        no_grad = _either(there.no_grad, self.state.no_grad)
        here = self.situation(obj, mode or Mode(UNKNOWN), no_grad=no_grad, layers=self._layers(use, obj))
        enters = there.at is None and in_module(use.event.function) and not in_module(self.info)
        here = here._replace(
            one_rank=there.one_rank or here.one_rank,
            conditional=there.conditional or here.conditional,
            loaded=here.loaded or copied in self.state.loaded,
            frozen=there.frozen + tuple(f for f in here.frozen if not any(self.inside(f[0], o) for o in quiet)),
            quiet=here.quiet + quiet,
            half=there.half or here.half,
            at=Call(call, self.info) if enters else there.at,
            call=there.call or Call(call, self.info),
        )
        self.measured(obj, mode, use.event)
        if mode is None or use.mode is not None:
            self._use(Use(use.event, use.mode, here))
        if mode is None:
            return
        if use.mode is not None and not (here.frozen or here.half or here.one_rank or here.layers or here.loaded):
            return  # nothing that the function did not know itself
        moving = here.layers is None or here.layers.value == TRAIN
        use.event.seen(here if moving else here._replace(frozen=()))
        self.state.version += mode.value != EVAL

    def _layers(self, use: Use, obj: Obj) -> Mode | None:
        """The mode of the layers in a callee's forward; its own train() undoes what was frozen here."""
        layers = use.here.layers or self.layers_mode(obj)
        if use.mode is None or use.mode.value != TRAIN or self.sees_to_modes(obj):
            return layers
        if use.here.layers is None and layers is not None and layers.value == EVAL:
            if use.mode.node is not None:
                self.event("unfreeze", use.mode.node, obj, frozen=layers, by=use.mode.function or self.info)
            layers = Mode(TRAIN, use.mode.node, use.mode.function)
        self.undo(obj, use.mode)
        return layers

    def _switch_modes(self, s: Summary, mapped: Mapping) -> None:
        """The modes that the callee leaves its parameters in."""
        for obj, mode in s.modes.items():
            own = obj.kind == "self" and mapped.self_obj in (None, obj)
            known = own or obj.kind in SLOTS or (obj.kind in MADE and obj not in s.born)  # made elsewhere
            mode = self._resolved(mode, mapped)
            if mode is None:
                continue
            targets = [*dict.fromkeys(mapped.objects(obj))] if known else []
            for target in targets:
                if mode.value == UNKNOWN:
                    self.state.modes[target] = mode
                else:
                    self.switch(target, mode._replace(sure=mode.sure and len(targets) == 1))

    def _resolved(self, mode: Mode, mapped: Mapping) -> Mode | None:
        """A mode that depends on a parameter, at a call: None where the call says that it is not set."""
        if mode.value != UNKNOWN or mode.test is None or mode.lapse is None:
            return mode
        given = {n: v.value for n, v in mapped.given.items() if isinstance(v, Const)}
        return None if decided(Test(mode.test, True), given) is False else mode

    def _set_parts(self, s: Summary, mapped: Mapping) -> None:
        """What the callee did to layers, to requires_grad, to the precision and to the weights."""
        _carry(s.layers, self.state.layers, mapped)
        frozen: dict[Obj, Freeze] = {}
        _carry(self._frozen(s, mapped), frozen, mapped)
        self.froze(frozen)
        _carry(s.half, self.state.half, mapped)
        on = {o for o, f in s.frozen.items() if f.flag is not None and passed([f.flag], mapped.given) is None}
        for target in (t for obj in on for t in mapped.objects(obj)):
            self.event("thaw", mapped.node, target)
            self.summary.thawed.add(target)
        for target in (t for obj in s.thawed - set(s.frozen) | on for t in mapped.objects(obj)):
            self.state.frozen.pop(target, None)
        self.state.loaded |= {o for slot in s.loaded for o in mapped.objects(slot)}

    def _frozen(self, s: Summary, mapped: Mapping) -> dict[Obj, Freeze]:
        """What a callee freezes with these arguments, under the conditions of the call too."""
        found = {o: (f, passed(f.tests, mapped.given)) for o, f in s.frozen.items()}
        here = Call(mapped.node, self.info)
        calls = {o: f.call or (here if _top(o).kind == "parameter" else None) for o, f in s.frozen.items()}
        return {
            o: self.under(f._replace(tests=tuple(t), call=calls[o])) for o, (f, t) in found.items() if t is not None
        }

    def under(self, frozen: Freeze) -> Freeze:
        """A freeze, under the conditions of this place too."""
        return frozen._replace(tests=(*self.tests, *frozen.tests)[:MOST_TESTS])

    def _assign(self, s: Summary, mapped: Mapping) -> None:
        """What the callee assigned to attributes."""
        for (obj, name), value in s.assigned.items():
            if obj.kind not in ("self", "parameter", "attribute", "instance"):
                continue
            targets = [t for t in objects_in(mapped(obj)) if t is not obj or obj.kind == "self" or name == MEASURED]
            new = mapped(value) if targets else None
            for target in targets:
                if isinstance(new, Form) and obj.kind == "self":
                    target.attr(name).flows_from(new)
                    continue
                self.state.heap[target, name] = new
                for option in options(new):
                    target.attr(name).flows_from(option)
                    inside = option.sources if isinstance(option, Obj) and option.kind in ("list", "dict") else [option]
                    for made in (o for o in inside if isinstance(o, Obj) and o.kind in MADE and o in s.modes):
                        self.state.modes[made] = s.modes[made]
                    if isinstance(option, Obj) and target.kind in ("instance", "result") and option is not target:
                        self.held.setdefault(option, target)

    def _write(self, s: Summary, mapped: Mapping) -> None:
        """The callee's writes to what is here a model's parameters."""
        for event, atom, atoms in s.writes:
            target = mapped.atom(atom)
            if target is None or target == atom:
                continue
            here = [mapped.atom(a) or a for a in atoms]
            event.data.setdefault("mapped", []).append((target, here))
            if len(self.summary.writes) < MOST_WRITES:
                self.summary.writes.append((event, target, here))

    def _returned(self, node: ast.Call, info: FunctionInfo, s: Summary, mapped: Mapping) -> Any:
        found, returned = [], [o for value in s.returns[:MOST_RETURNS] for o in options(value)]
        made = [o for o in returned if passed(s.born.get(canonical(o), ()), mapped.given) is not None]
        for option in made or returned:
            if isinstance(option, Tuple):
                each = ([self._fresh(node, info, s, o, mapped) for o in options(item)] for item in option.items)
                found.append(Tuple(tuple(map(choice, each))))
            else:
                found.append(self._fresh(node, info, s, option, mapped))
        return choice(found) if s.returns else None

    def _fresh(self, node: ast.Call, info: FunctionInfo, s: Summary, value: Any, mapped: Mapping) -> Any:
        """A returned value; what the function itself makes is another object with each call."""
        new = mapped(value)
        if not (isinstance(new, Obj) and new is value and new.kind in RETURNED):
            return new
        inner = canonical(new)
        made = self.program.obj(
            (node, id(info), id(new)), lambda: Obj("result", info.name, info=info, node=node, sources=[new])
        )
        self.born.setdefault(made, tuple(self.tests))
        made.given = {name: mapped(slot) for name, slot in info.params.items()}
        told: list[dict[Obj, Any]] = [s.modes, s.layers, self._frozen(s, mapped), s.half]
        here: list[dict[Obj, Any]] = [self.state.modes, self.state.layers, self.state.frozen, self.state.half]
        for what, held in zip(told, here, strict=True):
            held.update({made: what[inner]} if inner in what else {})
        if inner.kind == "instance" and inner.info.is_module:
            self.wrap(made, [mapped(source) for source in inner.sources], node)
        if inner in s.loaded:
            self.state.loaded |= {made}
        return made


def _top(obj: Obj) -> Obj:
    """What an object is a part of."""
    *_, top = owners(obj)
    return top


def _at_first(mode: Mode, info: FunctionInfo) -> bool:
    """Whether a function sets a mode before its first loop, or first in it, and no other one after."""
    loop = next((n.body[0].lineno for n in info.body if isinstance(n, ast.For | ast.While)), 0)
    return mode.value in (TRAIN, EVAL) and mode.function is info and getattr(mode.node, "lineno", loop + 1) <= loop


def _either(a: bool | None, b: bool | None) -> bool | None:
    """Whether one of two holds; None where that is unknown."""
    return True if a or b else None if a is None or b is None else False


def _carry(told: dict[Obj, T], held: dict[Obj, T], mapped: Mapping) -> None:
    """What a summary says of its objects holds for what they are here."""
    for obj, what in told.items():
        held.update(dict.fromkeys(mapped.objects(obj), what))
