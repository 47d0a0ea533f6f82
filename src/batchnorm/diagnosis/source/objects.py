"""What is known of the objects of an interpreted program: batch norm inside, aliases, weights, numbers, training."""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from collections.abc import Iterator
from functools import cached_property
from typing import Any

from batchnorm.diagnosis.source.code_words import ARGUMENTS, CodeWords, Option, methods_called
from batchnorm.diagnosis.source.contents import LIKELY, YES, Contents, inflow
from batchnorm.diagnosis.source.definitions import ClassInfo, FunctionInfo, Module
from batchnorm.diagnosis.source.interpreter.function import Interpreter
from batchnorm.diagnosis.source.interpreter.program import Program
from batchnorm.diagnosis.source.names import is_layer, loads_weights, made_by
from batchnorm.diagnosis.source.project import Project
from batchnorm.diagnosis.source.trace import Event
from batchnorm.diagnosis.source.values import Choice, Const, Form, Obj, canonical, options, word

OPTIMIZER = re.compile(r"optim|adam|sgd$|lion$|ranger|lamb$|lars$", re.IGNORECASE)
CHOSEN = re.compile(r"torchvision\.models\.__dict__")  # a model whose name is an option
DEEPEST_PART = 3


class Objects(CodeWords):
    """Events by kind, and questions about objects."""

    def __init__(self, project: Project) -> None:
        super().__init__([*project.modules.values()])
        self._kinds: dict[str, list[Event]] = defaultdict(list)
        program = Program(project, Interpreter)
        self.contents = Contents(program.scanned)
        for event in program.run():
            self._kinds[event.kind].append(event)
        self._known: dict[Any, list[Obj]] = {}

    def of(self, *kinds: str) -> Iterator[Event]:
        """The events of these kinds."""
        for kind in kinds:
            yield from self._kinds[kind]

    def set_to(self, mode: str, *kinds: str) -> Iterator[Event]:
        """The events of these kinds, `mode` and `layer mode`, that set a mode."""
        return (e for e in self.of(*kinds) if e.data["mode"] == mode)

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

    def holds(self, obj: Obj | None, owner: ClassInfo, depth: int = 0) -> bool:
        """Whether an object, or what is in its attributes, is made by a class."""
        for info in (c for alias in self.aliases(obj) for c in classes_of(alias, 3)):
            if owner in info.lineage:
                return True
            slots = [s for a in info.lineage for s in a.self_obj.attrs.values()]
            made = (o.info for s in slots for o in s.sources if isinstance(o, Obj) and o.kind == "instance")
            if depth < DEEPEST_PART and any(isinstance(c, ClassInfo) and owner in c.lineage for c in made):
                return True
            if depth < DEEPEST_PART and any(self.holds(slot, owner, depth + 1) for slot in slots[:24]):
                return True
        return False

    def is_layer(self, obj: Obj | None) -> bool:
        """Whether an object is a batch norm layer itself."""
        return any(a.kind == "external" and is_layer(a.info[0]) for a in self.aliases(obj))

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
        found = lambda: frozenset(id(n) for n in methods_called(module, "parse_"))  # noqa: E731
        return self.once(f"parses {id(module)}", found) if "parse_" in module.text else frozenset()


def classes_of(obj: Obj, most: int) -> list[ClassInfo]:
    """The classes of an object and of what flows into it."""
    return [o.info for o in (obj, *obj.sources[:most]) if isinstance(o, Obj) and isinstance(o.info, ClassInfo)]


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
