"""Batches that are objects or dictionaries with more in them than the model takes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from batchnorm.arguments import a_string, arguments, some_batches
from batchnorm.errors import BatchNormError, check
from batchnorm.models.batches import numbered


class Fields:
    """The parts of each batch that a model is called with, by name; read as often as the loader can be.

    Example:
        >>> import torch
        >>> loader = [{"image": torch.zeros(2, 3), "label": torch.zeros(2), "path": "a.nii"}]
        >>> [list(batch) for batch in Fields(loader, x="image")]
        [['x']]

    For PyTorch Geometric, `Fields(loader, "x", "edge_index", "batch")`; for MONAI, `Fields(loader, x="image")`.
    Samples are then counted along the first part: nodes of a graph, images of a batch.

    Args:
        loader: batches with `batch[name]`.
        names: parts that the model knows by the same name.
        renamed: `argument=name` where it does not.

    Raises:
        BatchNormError: no names; when read: a batch without such a part.
    """

    @arguments(loader=some_batches)
    def __init__(self, loader: Iterable[Any], *names: str, **renamed: str) -> None:
        check(bool(names or renamed), "names", "at least one part of a batch", "empty")
        for argument, name in (*((f"names[{i}]", name) for i, name in enumerate(names)), *renamed.items()):
            a_string(argument, name)
        self._loader, self._parts = loader, {**{name: name for name in names}, **renamed}

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for batch in numbered(self._loader):
            try:
                yield {argument: batch[name] for argument, name in self._parts.items()}
            except (KeyError, AttributeError, TypeError, IndexError) as error:
                parts = ", ".join(map(repr, self._parts.values()))
                raise BatchNormError(
                    f"loader must give batches that hold {parts}; a {type(batch).__name__} does not"
                ) from error
