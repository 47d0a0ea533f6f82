"""What a loader may yield, and how a model is called with it."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from io import StringIO
from typing import Any

import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor, nn

from batchnorm.errors import BatchNormError


def call(model: nn.Module, batch: Any, forward_fn: Callable[[nn.Module, Any], Any] | None) -> Any:
    """Run the model on a batch, moved to where the model is."""
    if forward_fn is not None:
        return forward_fn(model, batch)
    device = next((p.device for p in itertools.chain(model.parameters(), model.buffers())), torch.device("cpu"))
    batch = _to(batch, device)
    if isinstance(batch, Mapping):
        return model(**batch)
    if isinstance(batch, (tuple, list)):
        if not batch:
            raise BatchNormError("loader must yield a tensor, a tuple, a list or a dict; it yielded an empty one")
        return model(batch[0])
    return model(batch)


def _to(value: Any, device: torch.device) -> Any:
    if isinstance(value, Tensor):
        return value.to(device)
    if isinstance(value, Mapping):
        return {key: _to(item, device) for key, item in value.items()}
    if type(value) in (tuple, list):
        return type(value)(_to(item, device) for item in value)
    return value


def count_samples(batch: Any) -> int:
    """The size of the first axis of the first tensor in a batch."""
    if isinstance(batch, Tensor):
        return batch.shape[0] if batch.dim() else 1
    items = batch.values() if isinstance(batch, Mapping) else batch if isinstance(batch, (tuple, list)) else ()
    for item in items:
        found = count_samples(item)
        if found:
            return found
    return 0


def progress(loader: Iterable[Any], limit: int | None, shown: bool, label: str) -> Iterator[Any]:
    """The loader's batches, at most limit, with a bar on stderr where asked."""
    total = len(loader) if hasattr(loader, "__len__") else None  # pyright: ignore[reportArgumentType]
    batches: Iterable[Any] = itertools.islice(loader, limit)
    if shown:
        bound = limit if total is None else total if limit is None else min(total, limit)
        batches = track(batches, label, total=bound, console=Console(stderr=True), transient=True)
    return iter(batches)


def as_text(renderable: Any, width: int = 100) -> str:
    """What rich would print, as plain text."""
    out = StringIO()
    Console(file=out, width=width, color_system=None).print(renderable)
    return out.getvalue().rstrip()
