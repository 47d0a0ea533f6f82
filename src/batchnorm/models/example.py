"""The arguments of one forward."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from batchnorm.arguments import told
from batchnorm.errors import BatchNormError, UserCodeError
from batchnorm.failures import layer_of, reason


class Example:
    """The arguments of one forward; copies are handed out, since a model may change its input."""

    def __init__(self, given: Any) -> None:
        self.args: tuple[Any, ...] = ()
        self.kwargs: dict[str, Any] = {}
        if isinstance(given, Mapping):
            self.kwargs = {str(key): value for key, value in given.items()}
        else:
            self.args = tuple(given) if isinstance(given, (tuple, list)) else (given,)
        if not any(isinstance(leaf, Tensor) for leaf in pytree.tree_leaves((self.args, self.kwargs))):
            raise BatchNormError(
                "example_input must be a tensor, a tuple of the model's arguments or a dict of its keyword arguments; "
                f"it was {told(given)}"
            )

    @torch.no_grad()
    def run(self, model: nn.Module, *, double: bool = False) -> Any:
        """The model's output; every run draws the same random numbers."""

        def fresh(leaf: Any) -> Any:
            if not isinstance(leaf, Tensor):
                return leaf
            return leaf.detach().double() if double and leaf.is_floating_point() else leaf.detach().clone()

        args, kwargs = pytree.tree_map(fresh, (self.args, self.kwargs))
        with torch.random.fork_rng():
            torch.manual_seed(0)
            try:
                return model(*args, **kwargs)
            except (BatchNormError, torch.OutOfMemoryError, MemoryError):
                raise
            except Exception as error:
                raise UserCodeError(
                    f"example_input must run through the model; it failed{layer_of(error, model)}: {reason(error)}"
                ) from error
