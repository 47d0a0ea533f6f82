"""The arguments of one forward."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from torch.utils.data import DataLoader, Dataset

from batchnorm.arguments import told
from batchnorm.errors import BatchNormError, UserCodeError
from batchnorm.failures import layer_of, reason
from batchnorm.models.objects import all_tensors, private


class Example:
    """The arguments of one forward; copies are handed out, since a model may change its input."""

    def __init__(self, given: Any) -> None:
        self.args: tuple[Any, ...] = ()
        self.kwargs: dict[str, Any] = {}
        if isinstance(given, DataLoader | Dataset):
            raise BatchNormError(
                f"example_input must be the input of one forward; it was {told(given)}, give one batch of it"
            )
        if isinstance(given, Mapping):
            self.kwargs = {str(key): value for key, value in given.items()}
        else:
            self.args = tuple(given) if isinstance(given, (tuple, list)) else (given,)
        if next(all_tensors((self.args, self.kwargs)), None) is None:
            raise BatchNormError(
                "example_input must be a tensor, a tuple of the model's arguments or a dict of its keyword arguments; "
                f"it was {told(given)}, with no tensor in it"
            )

    def fresh(self, *, double: bool = False) -> tuple[Any, Any]:
        """Copies of the arguments, and of those by name."""

        def copied(leaf: Any) -> Any:
            if not isinstance(leaf, Tensor):
                return private(leaf, torch.float64 if double else None)
            return leaf.detach().double() if double and leaf.is_floating_point() else leaf.detach().clone()

        return pytree.tree_map(copied, (self.args, self.kwargs))

    @torch.no_grad()
    def run(self, model: nn.Module, *, double: bool = False, given: tuple[Any, Any] | None = None) -> Any:
        """The model's output, on these copies if they are given; every run draws the same random numbers."""
        args, kwargs = self.fresh(double=double) if given is None else given
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
