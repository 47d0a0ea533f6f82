"""Pickles as data: a reader that builds dicts, lists and tensor descriptions, and calls nothing a file names.

Python's own unpickler would import and call what the file says. This one resolves every name to an
inert `Named`, and `REDUCE`, `BUILD` and the like, on anything but the few tensor constructors below,
give an inert `Thing`. So checkpoints with foreign classes in them (a config, an optimizer, a whole
model) can be read for their tensors, and a hostile one does nothing. Memory is bounded by the file:
no opcode that allocates what it merely declares is accepted, and keys are never hashed in depth.
"""

from __future__ import annotations

import io
import pickle
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch


@dataclass(eq=False)
class Named:
    """A class or function the file refers to; never imported."""

    module: str
    name: str


@dataclass(eq=False)
class Thing:
    """An object of a foreign class: what the file would have given to it."""

    arguments: Any = ()
    state: Any = None
    items: dict[Any, Any] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Storage:
    """A storage record: its key in the archive and its type (None: bytes)."""

    key: str
    dtype: torch.dtype | None


@dataclass(frozen=True, eq=False)
class Lazy:
    """A tensor as the file describes it."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype


STORAGES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
    "UntypedStorage": None,
}
# Named like torch's, for `_rebuild_tensor_v3`; those of 8 bits have no storage of their own.
_EIGHT_BITS = (torch.float8_e4m3fn, torch.float8_e5m2, torch.float8_e4m3fnuz, torch.float8_e5m2fnuz)
DTYPES = {str(d)[6:]: d for d in (*STORAGES.values(), *_EIGHT_BITS) if d is not None}


def _integers(value: Any) -> bool:
    return isinstance(value, tuple) and all(type(n) is int and 0 <= n < 2**63 for n in value)


def _tensor(storage: Any, offset: Any, size: Any, stride: Any, dtype: torch.dtype | None = None) -> Any:
    legal = isinstance(storage, Storage) and _integers((offset,)) and _integers(size) and _integers(stride)
    if not legal or len(size) != len(stride):
        return Thing()
    kind = dtype or storage.dtype
    return Thing() if kind is None else Lazy(storage, offset, size, stride, kind)


def _construct(function: Any, arguments: Any) -> Any:
    """What a call in the file gives: a tensor description for torch's constructors, else an inert thing."""
    if not isinstance(function, Named) or not isinstance(arguments, tuple):
        return Thing(arguments)
    name, given = function.name, arguments
    if function.module in ("torch._utils", "torch._tensor"):
        if name in ("_rebuild_tensor", "_rebuild_tensor_v2") and len(given) >= 4:
            return _tensor(*given[:4])
        if name == "_rebuild_tensor_v3" and len(given) >= 7:
            kind = DTYPES.get(given[6].name) if isinstance(given[6], Named) else None
            return _tensor(*given[:4], dtype=kind) if kind is not None else Thing()
        if name in ("_rebuild_parameter", "_rebuild_parameter_with_state") and given:
            return given[0]
        if name == "_rebuild_from_type_v2" and len(given) >= 3:
            return _construct(given[0], given[2])
    if (function.module, name) in (("collections", "OrderedDict"), ("builtins", "dict")) and not given:
        return {}
    thing = Thing(given)
    # A module saved whole by a function of its own (torch.fx) has its attributes as the first argument.
    if given and type(given[0]) is dict and given[0].keys() >= {"_modules", "_parameters", "_buffers"}:
        thing.state = given[0]
    return thing


# The pure-Python class; the one written in C allocates what a memo index declares.
_Python: Any = pickle._Unpickler  # pyright: ignore[reportAttributeAccessIssue]


class Reader(_Python):
    """The pure-Python unpickler with every opcode that could act replaced."""

    dispatch: ClassVar[dict[int, Any]] = dict(_Python.dispatch)

    def __init__(self, file: Any, **options: Any) -> None:
        super().__init__(file, **options)
        self.storages: dict[str, Storage] = {}

    def find_class(self, module: Any, name: Any) -> Named:
        """A name, not what it names."""
        return Named(str(module), str(name))

    def persistent_load(self, pid: Any) -> Any:
        """`("storage", type, key, location, count)`."""
        if isinstance(pid, tuple) and len(pid) >= 3 and pid[0] == "storage" and isinstance(pid[1], Named):
            storage = Storage(str(pid[2]), STORAGES.get(pid[1].name))
            return self.storages.setdefault(storage.key, storage)
        return Thing()

    def load_reduce(self) -> None:
        """Nothing is called."""
        arguments = self.stack.pop()
        self.stack[-1] = _construct(self.stack[-1], arguments)

    dispatch[pickle.REDUCE[0]] = load_reduce
    dispatch[pickle.NEWOBJ[0]] = load_reduce

    def load_newobj_ex(self) -> None:
        """Nothing is made."""
        self.stack.pop()
        self.load_reduce()

    dispatch[pickle.NEWOBJ_EX[0]] = load_newobj_ex

    def load_inst(self) -> None:
        """Nothing is made."""
        self.readline()
        self.readline()
        self.append(Thing(tuple(self.pop_mark())))

    dispatch[pickle.INST[0]] = load_inst

    def load_obj(self) -> None:
        """Nothing is made."""
        self.append(Thing(tuple(self.pop_mark())))

    dispatch[pickle.OBJ[0]] = load_obj

    def load_build(self) -> None:
        """The state is kept, on things only."""
        state = self.stack.pop()
        if isinstance(self.stack[-1], Thing):
            self.stack[-1].state = state

    dispatch[pickle.BUILD[0]] = load_build

    def load_append(self) -> None:
        """Lists grow; things do not."""
        value = self.stack.pop()
        if isinstance(self.stack[-1], list):
            self.stack[-1].append(value)

    dispatch[pickle.APPEND[0]] = load_append

    def load_appends(self) -> None:
        """Lists grow; things do not. Sets are lists here: nothing is hashed."""
        values = self.pop_mark()
        if isinstance(self.stack[-1], list):
            self.stack[-1].extend(values)

    dispatch[pickle.APPENDS[0]] = load_appends
    dispatch[pickle.ADDITEMS[0]] = load_appends

    def load_setitem(self) -> None:
        """Entries with simple keys."""
        value, key = self.stack.pop(), self.stack.pop()
        self._set([key, value])

    dispatch[pickle.SETITEM[0]] = load_setitem

    def load_setitems(self) -> None:
        """Entries with simple keys."""
        self._set(self.pop_mark())

    dispatch[pickle.SETITEMS[0]] = load_setitems

    def _set(self, flat: list[Any]) -> None:
        target = self.stack[-1]
        items = target if type(target) is dict else target.items if isinstance(target, Thing) else None
        if items is not None:
            items.update({k: v for k, v in zip(flat[::2], flat[1::2], strict=False) if isinstance(k, (str, int))})

    def load_dict(self) -> None:
        """A dict from what lies on the stack."""
        flat = self.pop_mark()
        self.append({})
        self._set(flat)

    dispatch[pickle.DICT[0]] = load_dict

    def load_set(self) -> None:
        """An empty set, as a list."""
        self.append([])

    dispatch[pickle.EMPTY_SET[0]] = load_set

    def load_frozenset(self) -> None:
        """A frozen set, as a list."""
        self.append(list(self.pop_mark()))

    dispatch[pickle.FROZENSET[0]] = load_frozenset

    def refuse(self) -> None:
        """Opcodes no checkpoint has: some allocate what they declare, some look up a registry."""
        raise pickle.UnpicklingError("an opcode that checkpoints do not use")

    for _opcode in ("EXT1", "EXT2", "EXT4", "BYTEARRAY8", "NEXT_BUFFER", "READONLY_BUFFER"):
        dispatch[getattr(pickle, _opcode)[0]] = refuse


def read(data: bytes) -> Any:
    """What a pickle holds, as dicts, lists, simple values, `Lazy` tensors and inert things."""
    return Reader(io.BytesIO(data), encoding="utf-8", errors="replace").load()
