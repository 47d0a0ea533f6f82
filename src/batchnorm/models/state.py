"""All that a model holds, put back when a verb has ended: the one place where a verb holds a model still."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from batchnorm.models.random_state import cuda_devices, random_state, restore_random_state
from batchnorm.models.values import Values

Buffers = list[tuple[Tensor, Tensor]]


@contextmanager
def preserved(model: nn.Module, *, but: Iterable[Tensor] = ()) -> Iterator[None]:
    """Whatever happens within, the model is the same afterwards, and so are the random generators.

    Held are parameters, gradients, buffers, hooks, flags, classes and Python attributes of every
    module: counters, queues, lists, dictionaries, arrays, generators, objects that hold such, and
    modules that hide in a list. Tensors whose values did not change are not written, so that graphs
    that a caller holds stay valid. The tensors in `but` keep what was written to them if nothing raises.
    Out of reach: closures, running iterators, what a module keeps in another process, and the
    parameters of FSDP, which its own machinery moves.
    """
    values, random = Values.of(model), random_state(cuda_devices(model))
    left = {id(tensor) for tensor in but}
    try:
        yield
    except BaseException:
        left.clear()
        raise
    finally:
        with _uninterrupted():
            values.restore(left)
            restore_random_state(random)


@contextmanager
def held(model: nn.Module, *, but: Iterable[Tensor] = ()) -> Iterator[None]:
    """`preserved`, with the whole model in eval mode, without gradients, and compiled parts run as written."""
    with preserved(model, but=but), evaluating(model), _eagerly():
        yield


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """The whole model in eval mode without gradients; then its flags, and nothing else, as they were."""
    with in_mode(model, False), torch.no_grad():
        yield


@contextmanager
def in_mode(model: nn.Module, training: bool, but: Iterable[nn.Module] = ()) -> Iterator[None]:
    """Every module in one mode, those in `but` in the other; then the flags, and nothing else, as they were.

    For use within `preserved`: a forward may change more.
    """
    flags = {module: module.training for module in model.modules()}
    try:
        # Not .eval(), which some models override.
        for module in flags:
            module.training = training
        for module in but:
            module.training = not training
        yield
    finally:
        for module, flag in flags.items():
            module.training = flag


def snapshot(layers: Iterable[nn.Module]) -> Buffers:
    """The layers' own buffers, and copies of their values."""
    return [(b, b.detach().clone()) for layer in layers for b in layer._buffers.values() if b is not None]


@torch.no_grad()
def restore(buffers: Buffers) -> None:
    """Put the values back, to the bit."""
    for buffer, value in buffers:
        buffer.copy_(value)


def _eagerly() -> Any:
    """Compiled modules run as written: a compiled graph does not see hooks."""
    set_stance = getattr(torch.compiler, "set_stance", None)
    # Where dynamo has not been imported nothing is compiled, and importing it takes seconds.
    if set_stance is None or "torch._dynamo" not in sys.modules:
        return ExitStack()
    return set_stance("force_eager")


@contextmanager
def _uninterrupted() -> Iterator[None]:
    """Ctrl-C waits until the block has ended, in the thread that receives it."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    received: list[Any] = []
    before = signal.getsignal(signal.SIGINT)
    if not callable(before):
        yield
        return
    signal.signal(signal.SIGINT, lambda number, frame: received.append(frame))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
        if received:
            before(signal.SIGINT, received[0])
