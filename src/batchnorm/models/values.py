"""What a model's modules hold, to the last list and counter, and how it is put back in place."""

from __future__ import annotations

import random
import sys
from collections import deque
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

# Objects inside objects that are looked into: further on lies the whole program.
_DEPTH = 2
# Bytes; larger arrays, and larger tensors inside objects, are data rather than state.
_LARGEST = 1 << 28
ATOMS = (int, float, complex, str, bytes, bool, type(None), torch.dtype, torch.device, torch.Size, type)
# Objects of these keep books of their own, and trainers of the last two lead to everything else.
_FOREIGN = (
    "torch", "logging", "threading", "multiprocessing", "weakref", "_weakrefset", "builtins", "functools", "lightning",
    "pytorch_lightning",
)  # fmt: skip
_SHARDED = {"FSDPModule", "FullyShardedDataParallel"}
_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


class Values:
    """The values of a model at one time; containers and tensors are put back in place, so that references stay."""

    def __init__(self) -> None:
        self._seen: dict[int, Any] = {}
        self._tensors: list[_TensorValue] = []
        self._undo: list[Callable[[], None]] = []
        self._sharded = False

    @staticmethod
    def of(model: nn.Module) -> Values:
        """Everything that can be reached from a model."""
        values = Values()
        values._sharded = any(_SHARDED & {kind.__name__ for kind in type(m).__mro__} for m in model.modules())
        values._take(model, 0)
        return values

    def restore(self, but: set[int]) -> None:
        """Put everything back; tensors whose `id` is in `but` keep their values. The first error is raised last."""
        errors: list[Exception] = []
        for undo in [*self._undo, *(tensor.restore for tensor in self._tensors if id(tensor.tensor) not in but)]:
            try:
                undo()
            except Exception as error:
                errors.append(error)
        if errors:
            raise errors[0]

    def _take(self, value: Any, depth: int) -> None:
        if type(value) in ATOMS or id(value) in self._seen:
            return
        # Kept, so that its id is not given to another object.
        self._seen[id(value)] = value
        if isinstance(value, Tensor):
            self._tensor(value, depth)
        elif isinstance(value, nn.Module):
            self._module(value)
        elif isinstance(value, dict):
            self._mapping(value, depth)
        elif isinstance(value, (list, deque, bytearray)):
            self._undo.append(_sequence(value))
            for item in () if isinstance(value, bytearray) else value:
                self._take(item, depth)
        elif isinstance(value, set):
            self._undo.append(_set(value))
        elif isinstance(value, (tuple, frozenset)):
            for item in value:
                self._take(item, depth)
        elif (undo := _generator(value)) is not None:
            self._undo.append(undo)
        elif depth < _DEPTH and type(value).__module__.partition(".")[0] not in _FOREIGN:
            self._object(value, depth + 1)

    def _module(self, module: nn.Module) -> None:
        kind = type(module)
        self._undo.append(lambda: _set_class(module, kind))
        self._mapping(module.__dict__, 0)
        # A scripted module keeps these elsewhere.
        for value in (*module.parameters(recurse=False), *module.buffers(recurse=False), *module.children()):
            self._take(value, 0)

    def _mapping(self, values: Any, depth: int) -> None:
        before = list(values.items())

        def undo() -> None:
            now = list(values.items())
            if len(now) != len(before) or any(a is not c or b is not d for (a, b), (c, d) in zip(now, before)):  # noqa: B905
                values.clear()
                for key, value in before:
                    values[key] = value

        if not (self._sharded and any(isinstance(value, nn.Parameter) for _, value in before)):
            self._undo.append(undo)
        for _, value in before:
            self._take(value, depth)

    def _object(self, value: Any, depth: int) -> None:
        held = getattr(value, "__dict__", None)
        if isinstance(held, dict) and not isinstance(value, type):
            self._mapping(held, depth)
        for name in slots_of(value):
            if hasattr(value, name):
                self._slot(value, name, depth)

    def _slot(self, value: Any, name: str, depth: int) -> None:
        before = getattr(value, name)

        def undo() -> None:
            if getattr(value, name, None) is not before:
                object.__setattr__(value, name, before)

        self._undo.append(undo)
        self._take(before, depth)

    def _tensor(self, tensor: Tensor, depth: int) -> None:
        if is_lazy(tensor) or tensor.is_meta or type(tensor).__name__ == "FakeTensor":
            return
        if self._sharded and isinstance(tensor, nn.Parameter):
            return
        if depth and tensor.numel() * tensor.element_size() > _LARGEST:
            return
        whole: Any = tensor
        inside: Any = whole.__tensor_flatten__()[0] if is_traceable_wrapper_subclass(tensor) else None
        self._tensors.append(_TensorValue(tensor, inside is None))
        for name in inside or ():
            self._take(getattr(tensor, name), depth)


class _TensorValue:
    """A tensor's storage, its values, its gradient and whether it takes one; not plain are those made of others."""

    def __init__(self, tensor: Tensor, plain: bool) -> None:
        self.tensor, self.plain = tensor, plain
        # Shares the storage, and still has it if `.data` is set anew.
        self.storage = tensor.detach() if plain else tensor
        self.values = self.storage.clone() if plain else tensor
        self.leaf = tensor.is_leaf
        self.trains = tensor.requires_grad
        self.gradient = tensor.grad if self.leaf else None

    @torch.no_grad()
    def restore(self) -> None:
        tensor, storage = self.tensor, self.storage
        if self.plain and not _same_place(tensor, storage):
            tensor.data = storage
        if self.plain and not _same_bits(storage, self.values):
            with torch.inference_mode() if storage.is_inference() else nullcontext():
                storage.copy_(self.values)
        if self.leaf:
            if tensor.requires_grad != self.trains:
                tensor.requires_grad_(self.trains)
            if tensor.grad is not self.gradient:
                tensor.grad = self.gradient


def _same_place(a: Tensor, b: Tensor) -> bool:
    if a.shape != b.shape or a.dtype != b.dtype or a.device != b.device or a.layout != b.layout:
        return False
    # What has no address is compared by its values alone.
    try:
        return a.stride() == b.stride() and a.data_ptr() == b.data_ptr()
    except RuntimeError:
        return True


def _same_bits(a: Tensor, b: Tensor) -> bool:
    if a.layout != torch.strided or a.is_quantized:
        return False
    if a.is_complex():
        a, b = torch.view_as_real(a.resolve_conj()), torch.view_as_real(b.resolve_conj())
    # As integers, so that NaN is itself and -0 is not 0.
    bits = _BITS[a.element_size()]
    return torch.equal(a.resolve_neg().view(bits), b.resolve_neg().view(bits))


def _set_class(module: nn.Module, kind: type[nn.Module]) -> None:
    if type(module) is not kind:
        module.__class__ = kind


def _sequence(value: Any) -> Callable[[], None]:
    before = list(value)

    def undo() -> None:
        if len(value) != len(before) or any(a is not b for a, b in zip(value, before, strict=True)):
            value.clear()
            value.extend(before)

    return undo


def _set(value: Any) -> Callable[[], None]:
    before = set(value)

    def undo() -> None:
        if set(value) != before:
            value.clear()
            for item in before:
                value.add(item)

    return undo


def _generator(value: Any) -> Callable[[], None] | None:
    """How to put back a random generator or an array; None for anything else."""
    if isinstance(value, torch.Generator):
        state = value.get_state()
        return lambda: value.set_state(state) and None
    if isinstance(value, random.Random):
        inner = value.getstate()
        return lambda: value.setstate(inner)
    numpy = sys.modules.get("numpy")
    if numpy is None:
        return None
    if isinstance(value, numpy.ndarray):
        if value.nbytes > _LARGEST or not value.flags.writeable:
            return lambda: None
        copied = value.copy()
        return lambda: numpy.copyto(value, copied)
    if isinstance(value, numpy.random.Generator):
        bits = value.bit_generator.state
        return lambda: setattr(value.bit_generator, "state", bits)
    if isinstance(value, numpy.random.RandomState):
        legacy = value.get_state()
        return lambda: value.set_state(legacy)
    return None


def slots_of(value: Any) -> list[str]:
    """The names of an object's slots, those of its class's bases first."""
    kinds: Any = reversed(type(value).__mro__)
    return list(dict.fromkeys(name for kind in kinds for name in _names(kind.__dict__.get("__slots__", ()))))


def _names(slots: Any) -> tuple[str, ...]:
    names = (slots,) if isinstance(slots, str) else tuple(slots)
    return tuple(name for name in names if name not in ("__dict__", "__weakref__") and not name.startswith("__"))
