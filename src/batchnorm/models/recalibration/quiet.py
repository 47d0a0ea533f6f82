"""A model held still: in eval mode, and afterwards exactly as it was, whatever the forwards did to it."""

from __future__ import annotations

import random
import sys
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

Buffers = list[tuple[Tensor, Tensor]]


def snapshot(layers: Iterable[nn.Module]) -> Buffers:
    """The layers' own buffers, and copies of their values."""
    return [(b, b.detach().clone()) for layer in layers for b in layer._buffers.values() if b is not None]


@torch.no_grad()
def restore(buffers: Buffers) -> None:
    """Put the values back, to the bit."""
    for buffer, value in buffers:
        buffer.copy_(value)


@contextmanager
def held(model: nn.Module, targets: Iterable[_BatchNorm]) -> Iterator[None]:
    """Eval mode without gradients; then flags, attributes, other buffers and random state as they were.

    The targets' buffers are left to the caller if nothing raises, and put back if something does.
    """
    modules = list(model.modules())
    ours = {id(b) for layer in targets for b in layer._buffers.values() if b is not None}
    everything = snapshot(modules)
    devices = sorted({t.device.index for t in [*model.parameters(), *model.buffers()] if t.device.type == "cuda"})
    with ExitStack() as stack:
        stack.callback(restore_random_state, random_state(devices))
        stack.callback(lambda: restore([pair for pair in everything if id(pair[0]) not in ours]))
        for module in modules:
            stack.callback(_restore_attributes, module, dict(module.__dict__))
            # Not .eval(), which some models override.
            module.training = False
        with torch.no_grad(), _eagerly():
            try:
                yield
            except BaseException:
                restore(everything)
                raise


def _restore_attributes(module: nn.Module, before: dict[str, Any]) -> None:
    # A forward may cache tensors on its module.
    for name in [name for name in module.__dict__ if name not in before]:
        del module.__dict__[name]
    module.__dict__.update(before)


def _eagerly() -> Any:
    """Compiled modules run as written: a compiled graph does not see hooks."""
    set_stance = getattr(torch.compiler, "set_stance", None)
    # Where dynamo has not been imported nothing is compiled, and importing it takes seconds.
    if set_stance is None or "torch._dynamo" not in sys.modules:
        return ExitStack()
    return set_stance("force_eager")


def random_state(devices: Iterable[int] = ()) -> dict[str, Any]:
    """The state of torch's generators (of these CUDA devices too), Python's and numpy's."""
    state: dict[str, Any] = {"torch": torch.get_rng_state(), "python": random.getstate()}
    state["cuda"] = {index: torch.cuda.get_rng_state(index) for index in devices}
    if "numpy" in sys.modules:
        state["numpy"] = sys.modules["numpy"].random.get_state()
    return state


def restore_random_state(state: dict[str, Any]) -> None:
    """Put it back."""
    torch.set_rng_state(state["torch"])
    random.setstate(state["python"])
    for index, value in state["cuda"].items():
        torch.cuda.set_rng_state(value, index)
    if "numpy" in state:
        sys.modules["numpy"].random.set_state(state["numpy"])
