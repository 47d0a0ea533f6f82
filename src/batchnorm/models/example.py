"""The arguments of one forward."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from batchnorm.errors import BatchNormError
from batchnorm.models.objects import all_tensors, private


class Example:
    """The arguments of one forward; copies are handed out, since a model may change its input."""

    def __init__(self, given: Any) -> None:
        self.args: tuple[Any, ...] = ()
        self.kwargs: dict[str, Any] = {}
        if isinstance(given, Mapping):
            self.kwargs = {str(key): value for key, value in given.items()}
        else:
            self.args = tuple(given) if isinstance(given, (tuple, list)) else (given,)
        if next(all_tensors((self.args, self.kwargs)), None) is None:
            raise BatchNormError(
                "example_input must be a tensor, a tuple of the model's arguments or a dict of its keyword arguments; "
                f"it was {type(given).__name__}, with no tensor in it"
            )

    @torch.no_grad()
    def run(self, model: nn.Module, *, double: bool = False) -> Any:
        """The model's output; every run draws the same random numbers."""

        def fresh(leaf: Any) -> Any:
            if not isinstance(leaf, Tensor):
                return private(leaf, torch.float64 if double else None)
            return leaf.detach().double() if double and leaf.is_floating_point() else leaf.detach().clone()

        args, kwargs = pytree.tree_map(fresh, (self.args, self.kwargs))
        with torch.random.fork_rng():
            torch.manual_seed(0)
            return model(*args, **kwargs)
