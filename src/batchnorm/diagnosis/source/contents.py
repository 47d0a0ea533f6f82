"""What an object contains, as far as the program says: batch norm, dropout.

`contains` answers with a level: YES (a constructor of batch norm is reached), LIKELY (one is reached under a
condition, or a function that mentions one returned it), NO (everything that is known of it has none), None (unknown).
"""

from __future__ import annotations

import ast
from typing import Any

from batchnorm.diagnosis.source.definitions import Class, ClassInfo, Function, FunctionInfo
from batchnorm.diagnosis.source.names import DROPOUT, is_layer, last, made_by
from batchnorm.diagnosis.source.syntax import name_of, of_self
from batchnorm.diagnosis.source.values import Choice, External, Obj, Partial, Tuple

Scanned = dict[tuple[int, frozenset[tuple[str, Any]]], tuple[int, bool, list[tuple[ast.AST, str]]]]
YES, LIKELY, NO = 2, 1, 0
DEEPEST = 24
UNKNOWN, OTHER = "an argument that is no literal", "another normalization"
PARTS = ("layer1", "layer2", "layer3", "layer4", "features", "backbone", "encoder", "bn1")  # of well-known models
NOT_CONTENT = ("isinstance", "issubclass", "type", "hasattr")


class Contents:
    """Answers, each worked out once."""

    def __init__(self, scanned: Scanned | None = None) -> None:
        self._scanned: Scanned = {} if scanned is None else scanned  # of bodies, which no flow changes
        self._level: dict[int, int | None] = {}
        self._least: dict[int, int | None] = {}

    def contains(self, value: Any, depth: int = 0) -> int | None:
        """The level of a value."""
        if depth > DEEPEST or value is None:
            return None
        if isinstance(value, Choice):
            return _best([self.contains(v, depth + 1) for v in value.options])
        if isinstance(value, Tuple):
            return _best([self.contains(v, depth + 1) for v in value.items])
        if isinstance(value, Class | Function):
            return self.scan(value.info)[0]
        if isinstance(value, External):
            made = made_by(value.name, None)
            return None if made is None else YES if made else NO
        if isinstance(value, Partial):
            return self.contains(value.target, depth + 1)
        if not isinstance(value, Obj):
            return None
        return self._of_object(value, depth)

    def _of_object(self, obj: Obj, depth: int) -> int | None:
        if id(obj) not in self._level:
            self._level[id(obj)] = None  # while it is worked out: an object may be a part of itself
            self._level[id(obj)] = self._work_out(obj, depth)
        return self._level[id(obj)]

    def least(self, value: Any) -> int | None:
        """The level of a value in the worst case: of several models that a name may stand for, the least."""
        if isinstance(value, Choice):
            return _worst([self.least(v) for v in value.options])
        if not isinstance(value, Obj):
            return self.contains(value)
        if id(value) not in self._least:
            self._least[id(value)] = None  # while it is worked out
            own, several = self.contains(value) if value.kind != "wrapper" else None, [value.info]
            if value.kind != "wrapper":
                slot = value.kind in ("parameter", "attribute", "global", "copy")
                held = inflow(value) if slot or (value.kind == "result" and value.info) else []
                several = [s for s in held if s is not value]
            self._least[id(value)] = _worst([own, *map(self.least, several)])
        return self._least[id(value)]

    def _work_out(self, obj: Obj, depth: int) -> int | None:
        if obj.kind == "batch norm":
            return YES
        if obj.kind == "iteration" and ("children" in obj.name or "modules" in obj.name):
            return self.contains(obj.info[0], depth + 1)
        if obj.kind == "layer":
            return self.contains(obj.info, depth + 1)
        levels: list[int | None] = []
        if obj.kind in ("instance", "self") and isinstance(obj.info, ClassInfo):
            levels.append(self.scan(obj.info, self._constructed(obj))[0])
            if levels[0] == NO and obj.info.is_module:  # made by a name that only the interpreter follows
                held = [
                    slot for slot in obj.info.self_obj.attrs.values() if slot.name in obj.info.module.read_attributes
                ]
                levels.extend(min(level, LIKELY) for level in map(self.contains, held) if level)
            levels.extend(
                self.contains(s, depth + 1) for s in obj.sources
            )  # classes and layers given to the constructor
            return _best(levels)
        if obj.kind == "external":
            name, first = obj.info
            made = made_by(name, first)
            levels.append(None if made is None else YES if made else NO)
            if name.endswith("__dict__") and name.startswith("torchvision"):
                levels.append(LIKELY)
            levels.extend(self.contains(s, depth + 1) for s in obj.sources)
            return _best(levels)
        if obj.kind == "wrapper":
            return self.contains(obj.info, depth + 1)
        if self._switched_off(obj):
            return NO
        for source in inflow(obj):
            levels.append(self.contains(source, depth + 1))
        if obj.kind == "attribute" and not levels and obj.name in PARTS and isinstance(obj.parent, Obj):
            levels.extend(self.contains(p, depth + 1) for p in _made_outside(obj.parent))
        if obj.kind == "result" and _best(levels) is None and isinstance(obj.info, FunctionInfo):
            levels.append(min(self.scan(obj.info)[0], LIKELY) or None)
        return _best(levels)

    def _constructed(self, obj: Obj) -> frozenset[tuple[str, Any]]:
        """What the call that made an instance says of its constructor's parameters."""
        init = obj.info.methods.get("__init__") if obj.kind == "instance" else None
        given = _switches(obj.node, init, 1) if init is not None and isinstance(obj.node, ast.Call) else frozenset()
        if (UNKNOWN in dict(given).values()) and any(map(_is_other, obj.sources)):
            given = frozenset((name, OTHER if value == UNKNOWN else value) for name, value in given)
        return given

    def _switched_off(self, obj: Obj) -> bool:
        """Whether a function that can make batch norm layers was told not to, by a literal switch."""
        info, call = obj.info, obj.node
        if obj.kind != "result" or not isinstance(info, FunctionInfo) or not isinstance(call, ast.Call):
            return False
        given = _switches(call, info) if info.owner is None else None
        return bool(given) and self.scan(info, given)[0] == NO and self.scan(info)[0] != NO

    def dropout(self, value: Any, depth: int = 0) -> bool:
        """Whether a value contains dropout."""
        if depth > DEEPEST or value is None:
            return False
        if isinstance(value, Choice):
            return any(self.dropout(v, depth + 1) for v in value.options)
        if isinstance(value, Class):
            return self.scan(value.info)[1]
        if not isinstance(value, Obj):
            return False
        if value.kind in ("instance", "self") and isinstance(value.info, ClassInfo):
            return self.scan(value.info)[1]
        if value.kind == "external" and DROPOUT.search(value.info[0]):
            return True
        if value.kind == "wrapper":
            return self.dropout(value.info, depth + 1)
        return any(
            self.dropout(s, depth + 1) for s in (*inflow(value), *(value.sources if value.kind == "external" else ()))
        )

    def layer_names(self, value: Any, depth: int = 0) -> set[str] | None:
        """The attribute names of batch norm layers in a model of the linted files; None if some are unknown."""
        if isinstance(value, Choice) or not isinstance(value, Obj) or depth > DEEPEST:
            return None
        if value.kind in ("instance", "self") and isinstance(value.info, ClassInfo):
            return {name for _, name in self.scan(value.info)[2]}
        if value.kind == "external":
            if value.info[0] == "torch.nn.Sequential":
                return {str(at) for at, s in enumerate(value.sources) if self.contains(s) == YES}
            known = "resnet" in last(value.info[0]).lower() or "resnet" in str(value.info[1] or "").lower()
            return {"bn1", "1"} if known and made_by(*value.info) else None
        sources = [value.info] if value.kind == "wrapper" else inflow(value)
        found = [self.layer_names(s, depth + 1) for s in sources]
        known = [names for names in found if names]
        return set().union(*known) if known and len(known) == len(found) else None

    def scan(
        self, info: ClassInfo | FunctionInfo, given: frozenset[tuple[str, Any]] = frozenset()
    ) -> tuple[int, bool, list[tuple[ast.AST, str]]]:
        """Level, dropout and layers (constructor, attribute name) of a class or function; `given`: what a call says."""
        key = (id(info), given)
        if key in self._scanned:
            return self._scanned[key]
        self._scanned[key] = (NO, False, [])
        scan = _Scan(self, info, dict(given))
        if isinstance(info, ClassInfo):
            for method in info.methods.values():
                scan.given = dict(given) if method.name == "__init__" else {}
                if method.name not in ("forward", "train", "load_state_dict", "load_weights", "load_darknet_weights"):
                    scan.function(method)
            for base in info.bases:
                if isinstance(base, Class):
                    scan.take(self.scan(base.info), 2)
                elif isinstance(base, External) and made_by(base.name, None):
                    scan.take((YES, False, []), 2)
        else:
            scan.function(info)
        if isinstance(info, ClassInfo) and scan.layers and not scan.used():
            scan.level = NO
        self._scanned[key] = (scan.level, scan.dropout, scan.layers)
        return self._scanned[key]


class _Scan:
    """One walk over a body: which layer classes it reaches, and under which conditions."""

    def __init__(self, contents: Contents, root: ClassInfo | FunctionInfo, given: dict[str, Any]) -> None:
        self.contents, self.module, self.root, self.given = contents, root.module, root, given
        self.level, self.dropout, self.layers = NO, False, []
        self.defaults: dict[str, Any] = {}
        self.held: list[str] = []  # the attribute that each layer, found in the class itself, is in
        self.attribute = ""
        self.others: set[str] = set()  # parameters that are another normalization by default

    def used(self) -> bool:
        """Whether any attribute that holds a layer is read anywhere in the file."""
        return any(not name or name in self.module.read_attributes for name in self.held) or not self.held

    def take(self, found: tuple[int, bool, list[tuple[ast.AST, str]]], certain: int) -> None:
        self.level = max(self.level, min(found[0], certain))
        self.dropout |= found[1]
        self.layers.extend(found[2])
        self.held.extend([self.attribute] if found[0] else [])

    def function(self, info: FunctionInfo) -> None:
        self.defaults = {n: v for n, v in {**info.literals, **self.given}.items() if v is not UNKNOWN}
        own = {n: d for n, d in info.defaults.items() if self.given.get(n) != OTHER}
        self.others = {n for n, d in own.items() if self._no_layer(d)}
        for name, default in own.items():
            self.visit(default, YES if self.given.get(name) != UNKNOWN else LIKELY, "")
        for part in info.body:
            self.visit(part, YES, "")

    def _no_layer(self, default: ast.expr) -> bool:
        """Whether a parameter is another normalization by default, which is handed on under the same name."""
        return _is_other(self._static(default) if isinstance(default, ast.Name | ast.Attribute) else None)

    def visit(self, node: ast.AST, certain: int, name: str) -> None:
        stack = [(node, certain, name)]
        while stack:
            node, certain, name = stack.pop()
            if isinstance(node, ast.If | ast.IfExp):
                known = _decided(node.test, self.given)
                if known is not None:
                    chosen = node.body if known else node.orelse
                    stack.extend((child, certain, name) for child in (chosen if isinstance(chosen, list) else [chosen]))
                    continue
                holds = _holds(node.test, self.defaults)
                for block, level in ((node.body, holds), (node.orelse, YES - holds)):
                    inner = min(certain, max(level, LIKELY))
                    stack.extend((child, inner, name) for child in (block if isinstance(block, list) else [block]))
                continue
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in NOT_CONTENT:
                continue
            if isinstance(node, ast.Call) and name_of(node.func) in ("eval", "globals") and not _literal(node):
                self._any_class(certain)
            if isinstance(node, ast.ExceptHandler):
                certain = min(certain, LIKELY)
            if isinstance(node, ast.Assign) and len(node.targets) == 1:
                target = node.targets[0]
                if isinstance(target, ast.Attribute):
                    name = target.attr
                    if of_self(target):
                        self.visit_in(node.value, certain, name)
                        continue
                stack.append((node.value, certain, name))
                continue
            if isinstance(node, ast.Attribute) and node.attr.startswith("convert_"):
                continue  # of what is there
            if isinstance(node, ast.Name | ast.Attribute):
                self._name(node, certain, name)
                if isinstance(node, ast.Attribute):
                    stack.append((node.value, certain, name)) if not isinstance(node.value, ast.Name) else None
                continue
            if isinstance(node, ast.arg | ast.Compare):
                continue
            if isinstance(node, ast.List | ast.Tuple):
                stack.extend((child, certain, name or str(at)) for at, child in enumerate(node.elts))
                continue
            if isinstance(node, ast.Call) and name_of(node.func) == "add_module" and len(node.args) == 2:
                given = node.args[0].value if isinstance(node.args[0], ast.Constant) else ast.unparse(node.args[0])
                stack.append((node.args[1], certain, str(given)))
                continue
            if isinstance(node, ast.Call) and self._call(node, certain):
                stack.extend((child, certain, name) for child in (*node.args, *(k.value for k in node.keywords)))
                continue
            if isinstance(node, ast.Call) and name_of(node.func) == "Sequential":
                stack.extend((child, certain, str(at)) for at, child in enumerate(node.args))
                continue
            stack.extend((child, certain, name) for child in ast.iter_child_nodes(node))

    def _call(self, node: ast.Call, certain: int) -> bool:
        """A call of a function or a class of the linted files, with the literal switches that it is given."""
        value = self._static(node.func) if isinstance(node.func, ast.Name | ast.Attribute) else None
        if not isinstance(value, Function | Class) or value.info is self.root:
            return False
        bound = isinstance(value, Class)
        init = value.info.method("__init__") if isinstance(value, Class) else value.info
        given = _switches(node, init, int(bound), self.given) if init is not None else None
        if given:
            self._made_by(value.info, certain, given)
        return bool(given)

    def _made_by(self, info: ClassInfo | FunctionInfo, certain: int, given: frozenset[Any] = frozenset()) -> None:
        """What a class or a function makes; of a class method, what its class does too."""
        owner = info.owner if isinstance(info, FunctionInfo) and info.of_class else None
        self.take(self.contents.scan(info, given), certain)
        if owner is not None and owner is not self.root:
            self.take(self.contents.scan(owner), certain)

    def _any_class(self, certain: int) -> None:
        """Layers by names of a configuration: any class that the file knows, if it is a module."""
        for module in (self.module, *self.module.starred):
            for value in map(module.top, [*module.names]):
                if isinstance(value, Class) and value.info.is_module and value.info is not self.root:
                    self.take(self.contents.scan(value.info), min(certain, LIKELY))

    def visit_in(self, node: ast.AST, certain: int, attribute: str) -> None:
        """What an attribute of self holds."""
        before, self.attribute = self.attribute, attribute
        self.visit(node, certain, attribute)
        self.attribute = before

    def _name(self, node: ast.Name | ast.Attribute, certain: int, name: str) -> None:
        if not isinstance(node.ctx, ast.Load):
            return
        value = self._static(node)
        if isinstance(value, External):
            if is_layer(value.name):
                self.level = max(self.level, certain)
                self.layers.append((node, name))
                self.held.append(self.attribute)
            elif DROPOUT.search(value.name):
                self.dropout = True
            elif made_by(value.name, None):
                self.level = max(self.level, certain)
        elif isinstance(value, Class | Function) and value.info is not self.root:
            init = value.info.method("__init__") if isinstance(value, Class) else value.info
            others = self.others & {*init.defaults} if init is not None else set()
            self._made_by(value.info, certain, frozenset((n, OTHER) for n in others))

    def _static(self, node: ast.Name | ast.Attribute) -> Any:
        return None if of_self(node) else self.module.static(node)


def inflow(obj: Obj, depth: int = 0) -> list[Any]:
    """What flows into a slot: its own sources, and of an attribute, the same attribute of what its owner may be."""
    found = list(obj.sources)
    if obj.kind == "attribute" and obj.parent is not None and depth < 6:
        own = obj.parent.kind in ("self", "instance")
        for source in obj.parent.sources if own else inflow(obj.parent, depth + 1):
            if isinstance(source, Tuple) and obj.name[:1] == "[":
                at = obj.name[1:-1]
                found.extend(source.items[int(at) : int(at) + 1] if at.isdecimal() else () if at else source.items)
            elif isinstance(source, Obj) and source.kind == "wrapper" and obj.name == "module":
                found.append(source.info)
            elif isinstance(source, Obj) and obj.name in source.attrs:
                found.append(source.attrs[obj.name])
            elif isinstance(source, Obj) and source.kind in ("list", "dict") and obj.name == "[]":
                found.extend(source.sources)
            elif isinstance(source, Obj) and source.kind in ("attribute", "parameter", "result", "wrapper", "copy"):
                found.append(source.attr(obj.name))
        info = obj.parent.info
        if own and isinstance(info, ClassInfo):
            slots = (a.self_obj.attrs.get(obj.name) for a in info.lineage)
            found.extend(slot for slot in slots if slot is not None and slot is not obj)
            if not found and obj.parent.kind == "self":  # made by the classes that inherit from this one
                heirs = (a.self_obj.attrs.get(obj.name) for a in info.heirs)
                found.extend(slot for slot in heirs if slot is not None and slot.sources)
    return found


def _made_outside(obj: Obj, depth: int = 0) -> list[Obj]:
    """The models from outside that an object may be."""
    if obj.kind == "external":
        return [obj] if made_by(*obj.info) else []
    inner = [obj.info] if obj.kind == "wrapper" else inflow(obj) if depth < 4 else []
    return [found for o in inner if isinstance(o, Obj) for found in _made_outside(o, depth + 1)]


def _is_other(value: Any) -> bool:
    """Whether an argument is another normalization, also as a parameter's default."""
    if isinstance(value, Obj) and value.kind == "parameter" and isinstance(value.info, FunctionInfo):
        default = value.info.defaults.get(value.name)
        found = [*value.sources, *([value.info.module.static(default)] if default is not None else [])]
        return bool(found) and all(map(_is_other, found))
    return isinstance(value, External) and value.name.startswith("torch.nn.") and not is_layer(value.name)


def _literal(call: ast.Call) -> bool:
    return bool(call.args) and isinstance(call.args[0], ast.Constant)


def _worst(levels: list[int | None]) -> int | None:
    return min((level for level in levels if level is not None), default=None)


def _best(levels: list[int | None]) -> int | None:
    return max((level for level in levels if level is not None), default=None)


def _switches(
    call: ast.Call, info: FunctionInfo, bound: int = 0, here: dict[str, Any] | None = None
) -> frozenset[tuple[str, Any]]:
    """The literal switches and words of a call's parameters, defaults included; UNKNOWN where one is given another.

    What a parameter of the caller is, `here` says.
    """
    names = info.positional[bound:]
    found: dict[str, Any] = {n: v for n, v in info.literals.items() if v is None or isinstance(v, bool | str)}
    if any(isinstance(a, ast.Starred) for a in call.args) or any(k.arg is None for k in call.keywords):
        return frozenset((name, UNKNOWN) for name in found)
    for name, value in (*zip(names, call.args, strict=False), *((k.arg or "", k.value) for k in call.keywords)):
        said = value.value if isinstance(value, ast.Constant) else UNKNOWN
        said = here.get(value.id, UNKNOWN) if here and isinstance(value, ast.Name) else said
        found[name] = said if said is None or isinstance(said, bool | str) else UNKNOWN
    return frozenset(found.items())


def _decided(test: ast.AST, given: dict[str, Any]) -> bool | None:
    """Whether a condition holds in a call whose switches are known; None where it does not depend on them alone."""
    if isinstance(test, ast.UnaryOp) and isinstance(test.op, ast.Not):
        inner = _decided(test.operand, given)
        return None if inner is None else not inner
    known = isinstance(test, ast.Name) and given.get(test.id, UNKNOWN) is not UNKNOWN
    return bool(given[test.id]) if known and isinstance(test, ast.Name) else None


def _holds(test: ast.AST, defaults: dict[str, Any]) -> int:
    """Whether a condition holds with the parameters' defaults: YES, NO, or LIKELY where that is unknown."""
    if isinstance(test, ast.UnaryOp) and isinstance(test.op, ast.Not):
        return YES - _holds(test.operand, defaults)
    if isinstance(test, ast.Name) and test.id in defaults:
        return YES if defaults[test.id] else NO
    if isinstance(test, ast.Attribute):
        return _holds(ast.Name(test.attr), defaults) if test.attr in defaults else LIKELY
    if isinstance(test, ast.Compare) and isinstance(test.comparators[0], ast.Constant) and len(test.ops) == 1:
        name, op, right = getattr(test.left, "id", ""), test.ops[0], test.comparators[0].value
        left = defaults.get(name)
        if name in defaults and isinstance(op, ast.Eq | ast.Is | ast.NotEq | ast.IsNot):
            return YES if (left == right) == isinstance(op, ast.Eq | ast.Is) else NO
        if isinstance(left, int | float) and isinstance(op, ast.Gt):
            return YES if isinstance(right, int | float) and left > right else NO
    if isinstance(test, ast.BoolOp):
        parts = [_holds(v, defaults) for v in test.values]
        return min(parts) if isinstance(test.op, ast.And) else max(parts)
    return LIKELY
