"""What a loader may yield, and how a model is called with it."""

from __future__ import annotations

import inspect
import itertools
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from batchnorm.errors import BatchNormError
from batchnorm.failures import of_forward, of_loader
from batchnorm.models.objects import all_tensors


def call(
    model: nn.Module,
    batch: Any,
    forward_fn: Callable[[nn.Module, Any], Any] | None,
    device: torch.device | None = None,
    channels_last: bool = False,
    number: int | None = None,
    loader: str = "loader",
) -> Any:
    """Run the model on a batch, moved to the device (default: where the model is; a forward_fn moves its own).

    Raises:
        UserCodeError: what the model or the forward_fn raised, with the batch's number and the layer. Running out of
            memory is no mistake of a call, and raises as it is.
    """
    try:
        return _call(model, batch, forward_fn, device, channels_last)
    except (BatchNormError, torch.OutOfMemoryError, MemoryError):
        raise
    except Exception as error:
        raise of_forward(error, model, batch, number, forward_fn is not None, loader) from error


def _call(model: nn.Module, batch: Any, forward_fn: Any, device: torch.device | None, channels_last: bool) -> Any:
    # Copies, which models may change in place: the next pass begins with the same values.
    if forward_fn is not None and device is None:
        batch = _copied(batch)
        return forward_fn(model, _last(batch) if channels_last else batch)
    if device is None:
        device = next((p.device for p in itertools.chain(model.parameters(), model.buffers())), torch.device("cpu"))
    batch = _to(batch, device)
    if channels_last:
        batch = _last(batch)
    if forward_fn is not None:
        return forward_fn(model, batch)
    if isinstance(batch, Mapping):
        return model(**batch) if _takes_names(model, batch) else model(batch)
    if isinstance(batch, (tuple, list)):
        return model(batch[0])
    return model(batch)


def numbered(loader: Iterable[Any], name: str = "loader") -> Iterator[Any]:
    """A loader's batches.

    Raises:
        UserCodeError: what the loader raised, with the number of the batch that was to come.
    """
    number = 0
    try:
        for number, batch in enumerate(loader, 1):  # noqa: B007
            yield batch
    except (BatchNormError, torch.OutOfMemoryError, MemoryError):
        raise
    except Exception as error:
        raise of_loader(error, name, number) from error


def _takes_names(model: nn.Module, batch: Mapping[str, Any]) -> bool:
    """Whether a dict holds a model's arguments by name; some models take it whole, as their one argument."""
    try:
        names = inspect.signature(model.forward)
    except (TypeError, ValueError):
        return True
    return _binds(names, (), dict(batch)) or not _binds(names, (batch,), {})


def _binds(names: inspect.Signature, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    try:
        names.bind(*args, **kwargs)
    except TypeError:
        return False
    return True


def _copied(value: Any) -> Any:
    """A batch with tensors of its own; other mappings than a dict stay what a forward_fn knows."""
    if isinstance(value, Tensor):
        return value.clone()
    if type(value) is dict:
        return {key: _copied(item) for key, item in value.items()}
    return type(value)(map(_copied, value)) if type(value) in (tuple, list) else value


def _to(value: Any, device: torch.device) -> Any:
    return _mapped(value, lambda tensor: tensor.to(device, copy=True))


def _last(value: Any) -> Any:
    formats = {4: torch.channels_last, 5: torch.channels_last_3d}
    return _mapped(value, lambda t: t.contiguous(memory_format=formats[t.dim()]) if t.dim() in formats else t)


def _mapped(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, Mapping):
        return {key: _mapped(item, change) for key, item in value.items()}
    if type(value) in (tuple, list):
        return type(value)(_mapped(item, change) for item in value)
    return value


def tensors(batch: Any) -> Iterator[Tensor]:
    """Every tensor in a batch that containers hold; `objects.all_tensors` finds those of objects too."""
    if isinstance(batch, Tensor):
        yield batch
    elif isinstance(batch, (Mapping, tuple, list)):
        for item in batch.values() if isinstance(batch, Mapping) else batch:
            yield from tensors(item)


def count_samples(batch: Any) -> int:
    """The size of the first axis of the first tensor in a batch; the number of graphs where an object says it."""
    if isinstance(batch, Tensor):
        return batch.shape[0] if batch.dim() else 1
    if isinstance(batch, (Mapping, tuple, list)):
        items = batch.values() if isinstance(batch, Mapping) else batch
        return next(filter(None, map(count_samples, items)), 0)
    graphs = getattr(batch, "num_graphs", None)
    return graphs if isinstance(graphs, int) else next(filter(None, map(count_samples, all_tensors(batch))), 0)


@contextmanager
def progress_bar(loader: Iterable[Any], shown: bool, label: str) -> Iterator[Callable[[int], None]]:
    """A bar on stderr, where that is a terminal; the function given moves it on by so many batches."""
    if not shown or not sys.stderr.isatty():
        yield lambda steps: None
        return
    from rich.console import Console
    from rich.progress import Progress

    try:
        total = len(loader)  # pyright: ignore[reportArgumentType]
    except TypeError:
        total = None
    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(label, total=total)
        yield lambda steps: bar.advance(task, steps)


def counted(number: int, one: str, more: str | None = None) -> str:
    """The number with its noun."""
    return f"{number} {one if number == 1 else more or one + 's'}"
