"""Forwards that run again inside a backward (activation checkpointing): no second update, same circumstances."""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from copy import copy
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import BackwardCFunction
from torch.utils import _python_dispatch, checkpoint

from batchnorm.layers.asserting import tracing, transformed
from batchnorm.layers.choices.situation import Now, State

# What contexts set on a layer: a mask, a bank, `accumulate(renorm=True)`, a pause.
CIRCUMSTANCES = ("_given", "active_bank", "recipe", "paused", "accumulating")
_VALUES = 512
_C: Any = torch._C
# Private, and wrapped here once: the hooks that pack what is saved; where torch has none, every forward is remembered.
saved_tensor_hooks: Any = getattr(_C._autograd, "_top_saved_tensors_default_hooks", None) or (lambda _: True)
# The id of the autograd graph task that runs on this thread, or -1.
graph_task: Any = _C._current_graph_task_id


# What Python runs between the engine and a recomputed forward: the backward of an autograd function (reentrant
# checkpoints, reversible networks), or the hook by which a checkpoint gives back a tensor that it did not save.
_BACKWARDS = {
    getattr(BackwardCFunction, name).__code__ for name in ("apply", "apply_boxed") if hasattr(BackwardCFunction, name)
}
_OF_FUNCTIONS = BackwardCFunction.apply.__code__.co_filename
_OF_CHECKPOINTS = checkpoint.__file__
# A backward that runs another one, of what it has recomputed: hooks in there are hooks.
_ENGINES = {f.__code__ for f in (torch.autograd.backward, torch.autograd.grad, Tensor.backward)}


def recomputing() -> bool:
    """Whether this forward is one of before that runs again inside a backward pass, as checkpointing makes it.

    A forward that a gradient hook starts is a new one, though it runs inside a backward too. Torch does not say
    which it is, so the call stack is read, in backward passes alone.
    """
    if torch.compiler.is_compiling():
        return False
    return graph_task() != -1 and _called_by_a_recomputation(sys._getframe(1))


def _called_by_a_recomputation(frame: Any) -> bool:
    below: Any = None  # the last frame that is not torch's wrapping of autograd functions,
    beneath: Any = None  # and the one that it called
    while frame is not None:
        code = frame.f_code
        if code.co_filename == _OF_CHECKPOINTS and code.co_name == "unpack_hook":
            return True
        # `below` is the function's backward here; where it called the engine itself, a hook called us.
        if code in _BACKWARDS and (beneath is None or beneath.f_code not in _ENGINES):
            return True
        if code.co_filename != _OF_FUNCTIONS:
            below, beneath = frame, below
        frame = frame.f_back
    return False


def bookkeeping() -> AbstractContextManager[Any]:
    """Around operations that a recomputed forward has more of, or fewer: the steps of statistics and what tells them.

    A selective checkpoint hands a recomputed forward what it kept by the order of operations, so it must see the same
    ones both times.
    """
    if torch.compiler.is_compiling() or _C._len_torch_dispatch_stack() == 0:
        return nullcontext()
    # Private, and wrapped here once.
    modes = _python_dispatch._get_current_dispatch_mode_stack()
    selective = any(type(mode).__module__ == checkpoint.__name__ for mode in modes)
    return _python_dispatch._disable_current_modes() if selective else nullcontext()


def may_run_again() -> bool:
    """Whether this forward may be recomputed later, so that it is worth remembering.

    Reentrant checkpoints (and reversible networks) first run without gradients, the others under hooks that
    pack what is saved; an ordinary training step does neither.
    """
    if torch.compiler.is_compiling() or tracing():
        return False
    if not torch.is_grad_enabled():
        return not torch.is_inference_mode_enabled()
    return saved_tensor_hooks(False) is not None


class Forward:
    """One forward: some values of its input, what contexts had set, and the statistics it met."""

    __slots__ = ("circumstances", "eps", "estimator", "key", "momentum", "reads", "shape", "vectors")

    def __init__(self, x: Tensor, circumstances: tuple[Any, ...]) -> None:
        self.key, self.shape, self.circumstances = _some_values(x), x.shape, circumstances
        self.vectors: dict[str, Tensor] = {}
        self.eps, self.momentum, self.estimator, self.reads = 0.0, None, None, False

    def met(self, state: State, now: Now) -> None:
        """Keep the statistics; they are copies of the buffers already, which nothing writes to."""
        mean, step = state.mean, now.step
        self.reads = not isinstance(step, Tensor)
        self.vectors = {"mean": mean, "var": state.var, "step": torch.tensor(step) if self.reads else step.clone()}
        if isinstance(now.momentum, Tensor):
            self.vectors["momentum"] = now.momentum.to(mean.dtype)
        self.vectors.update({f"memory {name}": value for name, value in state.memory.items()})
        self.estimator = now.estimator
        self.eps, self.momentum = now.eps, None if isinstance(now.momentum, Tensor) else now.momentum

    def situation(self) -> tuple[State, Now] | None:
        """The statistics it met, where it reads any."""
        if not self.vectors:
            return None
        v = self.vectors
        memory = {name.removeprefix("memory "): value for name, value in v.items() if name.startswith("memory ")}
        step = v["step"].item() if self.reads else v["step"]
        now = Now(step, v.get("momentum", self.momentum), self.eps, self.estimator)
        return State(v["mean"], v["var"], memory), now


class ForwardRecord:
    """The recent forwards of a layer that may be recomputed, found again by some values of their input.

    A layer may run several times between two backwards and backwards may run in any order, so
    the position says nothing; the recomputed forward has the input of its first. Up to 512 values spread
    over the input are compared. The match is an argmin over tensors, and a value is waited for only
    where forwards of one shape ran under different contexts or momenta. Copies and pickles start empty.
    """

    def __init__(self, length: int = 32) -> None:
        self._length = length
        self._entries: deque[Forward] = deque(maxlen=length)

    def begin(self, x: Tensor, circumstances: tuple[Any, ...]) -> Forward:
        """Remember a forward that starts."""
        entry = Forward(x, circumstances)
        self._entries.append(entry)
        return entry

    def recall(self, x: Tensor) -> Forward | None:
        """The remembered forward whose input is nearest."""
        key = _some_values(x)
        # Newest first: of equal inputs argmin takes the first, and a training loop asks for its last forward.
        kind = x.shape, key.dtype, key.device, type(key)
        entries = [e for e in reversed(self._entries) if kind == (e.shape, e.key.dtype, e.key.device, type(e.key))]
        if not entries:
            return None
        distances = (torch.stack([e.key for e in entries]) - key).abs().sum(-1)
        first = entries[0]
        if any(_differ(first, e) for e in entries):
            # Which context it was decides what Python does, so here a value must be known.
            nearest = int(distances.argmin())
            # Farther away than rounding: the forward has left the record.
            return entries[nearest] if float(distances[nearest]) <= 1e-2 * float(key.abs().sum()) else None
        if not first.vectors:
            return first
        nearest = distances.argmin()[None]
        found = copy(first)
        found.vectors = {
            name: torch.stack([e.vectors[name] for e in entries]).index_select(0, nearest)[0] for name in first.vectors
        }
        return found

    def __deepcopy__(self, memo: dict[int, Any]) -> ForwardRecord:
        return ForwardRecord(self._length)

    def __reduce__(self) -> tuple[type[ForwardRecord], tuple[int]]:
        return ForwardRecord, (self._length,)


def _differ(a: Forward, b: Forward) -> bool:
    same = all(p is q or p == q for p, q in zip(a.circumstances[1:], b.circumstances[1:], strict=True))
    same = same and a.momentum == b.momentum and a.eps == b.eps
    # Masks are compared by identity: their values would have to be waited for.
    return not (same and a.circumstances[0] is b.circumstances[0] and a.vectors.keys() == b.vectors.keys())


@torch.no_grad()
def _some_values(x: Tensor) -> Tensor:
    """Values spread evenly over the input, as it lies in memory; NaN of padding as 0."""
    x = x.detach()
    flat = (x if x.is_contiguous() else x.movedim(1, -1)).reshape(-1)
    # An odd stride meets other channels and positions than a power of two would.
    return flat[:: max(1, len(flat) // _VALUES) | 1].nan_to_num()


@contextmanager
def as_first(layer: Any, first: Forward) -> Iterator[None]:
    """Within the context the layer is as it was in this forward, whatever context is over by now."""
    own = layer.__dict__
    before = {name: own[name] for name in CIRCUMSTANCES if name in own}
    try:
        own.update(zip(CIRCUMSTANCES, first.circumstances, strict=True), _forward=first)
        yield
    finally:
        for name in (*CIRCUMSTANCES, "_forward"):
            own.pop(name, None)
        own.update(before)


def on_record(layer: Any, x: Tensor, given: Any, residual: Tensor | None) -> Tensor:
    """The layer's output; remembered where it may be recomputed, and then as it was the first time."""
    record = layer.__dict__.get("_record")
    if record is not None and recomputing():
        with bookkeeping():
            first = record.recall(x)
        if first is not None:
            with as_first(layer, first):
                return layer._output(x, given, residual)
    elif may_run_again() and not transformed():
        if record is None:
            record = layer.__dict__["_record"] = ForwardRecord()
        with bookkeeping():
            layer.__dict__["_forward"] = record.begin(x, tuple(getattr(layer, name) for name in CIRCUMSTANCES))
        try:
            return layer._output(x, given, residual)
        finally:
            layer.__dict__.pop("_forward", None)
    return layer._output(x, given, residual)
