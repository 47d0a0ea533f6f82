"""Run a model on the example: what each module was called with, what came out, how long it took."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from batchnorm.models.example import Example
from batchnorm.models.objects import all_tensors
from batchnorm.models.state import preserved


@dataclass
class Calls:
    """How often a module ran, and the ranks it saw."""

    count: int = 0
    input_ranks: set[int] = field(default_factory=set[int])
    output_ranks: set[int] = field(default_factory=set[int])
    extra: bool = False


def observe(model: nn.Module, example: Example, names: Iterable[str]) -> dict[str, Calls]:
    """What the named modules are called with, in the order of their first calls."""
    calls: dict[str, Calls] = {}
    modules = dict(model.named_modules())

    def hook(name: str) -> Callable[..., None]:
        def note(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            seen = calls.setdefault(name, Calls())
            seen.count += 1
            seen.extra = seen.extra or len(args) != 1 or bool(kwargs)
            first = args[0] if args else None
            seen.input_ranks.add(first.dim() if isinstance(first, Tensor) else -1)
            seen.output_ranks.add(output.dim() if isinstance(output, Tensor) else -1)

        return note

    with preserved(model), ExitStack() as stack:
        for name in names:
            handle = modules[name].register_forward_hook(hook(name), with_kwargs=True)
            stack.callback(handle.remove)
        example.run(model)
    return calls


class Difference(NamedTuple):
    """The largest absolute difference, and that divided by the largest absolute value."""

    absolute: float
    relative: float

    def worse(self, other: Difference) -> Difference:
        """The larger of each."""
        return Difference(max(self.absolute, other.absolute), max(self.relative, other.relative))


NONE = Difference(0.0, 0.0)


def difference(was: Tensor, now: Tensor) -> Difference:
    """Of two tensors; NaN where both have it is no difference."""
    if was.shape != now.shape:
        return Difference(torch.inf, torch.inf)
    if was.numel() == 0:
        return NONE
    a, b = (t.detach().cpu().double() for t in (was, now))
    gap = torch.where((a == b) | (a.isnan() & b.isnan()), 0.0, (a - b).abs()).nan_to_num(torch.inf, torch.inf)
    size = torch.where(a.isfinite(), a.abs(), 0.0)
    most, largest = float(gap.max()), float(size.max())
    return Difference(most, 0.0 if most == 0 else most / largest if largest else torch.inf)


def compare(was: Any, now: Any) -> Difference:
    """Of two outputs of any structure; tensors are compared, in the order they come."""
    before, after = list(all_tensors(was)), list(all_tensors(now))
    if len(before) != len(after):
        return Difference(torch.inf, torch.inf)
    worst = NONE
    for a, b in zip(before, after, strict=True):
        worst = worst.worse(difference(a, b))
    return worst


def outputs_of(
    model: nn.Module, example: Example, names: Iterable[str], *, double: bool = False
) -> tuple[list[Tensor], dict[str, list[Tensor]]]:
    """The tensors of the model's output, and the outputs of the named modules at each of their calls."""
    modules = dict(model.named_modules())
    held: dict[str, list[Tensor]] = {name: [] for name in names}

    def hook(name: str) -> Callable[..., None]:
        def keep(module: nn.Module, args: Any, output: Any) -> None:
            # Cloned: an activation after it may work in place.
            held[name].append(output.detach().clone())

        return keep

    with preserved(model), ExitStack() as stack:
        for name in held:
            stack.callback(modules[name].register_forward_hook(hook(name)).remove)
        output = example.run(model, double=double)
    return [tensor.clone() for tensor in all_tensors(output)], held


def seconds(models: list[nn.Module], example: Example, rounds: int) -> list[float]:
    """Median seconds of a forward of each model, taken in turn."""
    times: list[list[float]] = [[] for _ in models]
    with ExitStack() as stack:
        for model in models:
            stack.enter_context(preserved(model))
        for turn in range(rounds + 1):
            for model, spent in zip(models, times, strict=True):
                _wait(example)
                start = time.perf_counter()
                example.run(model)
                _wait(example)
                if turn:
                    spent.append(time.perf_counter() - start)
    return [sorted(spent)[len(spent) // 2] for spent in times]


def _wait(example: Example) -> None:
    if any(tensor.is_cuda for tensor in all_tensors((example.args, example.kwargs))):
        torch.cuda.synchronize()
