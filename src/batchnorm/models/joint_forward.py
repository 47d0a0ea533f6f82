"""Several inputs in one forward: they share statistics as the rows of one batch do."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from batchnorm.arguments import a_function, a_module, arguments, told
from batchnorm.errors import ArgumentError, BatchNormError, OperandError, UserCodeError
from batchnorm.failures import layer_of, reason


@arguments(model=a_module, forward_fn=a_function)
def union(model: nn.Module, *inputs: Any, forward_fn: Callable[..., Any] | None = None) -> tuple[Any, ...]:
    """One forward over several inputs together, so that they share statistics; the outputs, apart again.

    Example:
        >>> import torch, batchnorm
        >>> critic = torch.nn.Sequential(torch.nn.BatchNorm1d(3))
        >>> now, then = torch.randn(8, 3), torch.randn(8, 3) + 4
        >>> q, q_next = batchnorm.models.union(critic, now, then)
        >>> q.shape, bool(q.mean() < 0 < q_next.mean())
        (torch.Size([8, 3]), True)

    The rule of CrossQ (Bhatt et al. 2024): the critic sees (state, action) and the next ones in one
    train-mode pass, normalised by the moments of their mixture.

    Args:
        model: any module.
        inputs: tensors, or tuples of tensors that are the model's arguments, with equal shapes but
            for the first axis.
        forward_fn: `forward_fn(model, *arguments)` in the place of calling the model.

    Raises:
        BatchNormError: fewer than two inputs, or inputs of different make.
    """
    several = [tuple(item) if isinstance(item, (tuple, list)) else (item,) for item in inputs]
    if len(several) < 2:
        raise BatchNormError(f"inputs must be two or more; there were {len(several)}")
    odd = [part for item in several for part in item if not isinstance(part, Tensor) or not part.dim()]
    if odd or len({len(i) for i in several}) > 1:
        was = told(odd[0]) if odd else f"tuples of {' and '.join(str(len(i)) for i in several)}"
        raise ArgumentError(f"inputs must be tensors with a batch axis, or tuples of as many such; one was {was}")
    if len({part.device for item in several for part in item}) > 1:
        raise OperandError(f"inputs must be on one device; they were on {[str(item[0].device) for item in several]}")
    sizes = [len(item[0]) for item in several]
    together = []
    for parts in zip(*several, strict=True):
        if len({part.shape[1:] for part in parts}) > 1 or [len(part) for part in parts] != sizes:
            raise BatchNormError(
                f"inputs must agree but for the first axis; shapes were {[tuple(p.shape) for p in parts]}"
            )
        together.append(torch.cat(parts))
    y = _run(model, together, forward_fn)
    if isinstance(y, Tensor):
        return y.split(sizes)
    columns = [part.split(sizes) for part in y]
    return tuple(type(y)(row) for row in zip(*columns, strict=True))


def _run(model: nn.Module, together: list[Tensor], forward_fn: Callable[..., Any] | None) -> Any:
    try:
        return model(*together) if forward_fn is None else forward_fn(model, *together)
    except (BatchNormError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        who = "inputs must be what the model runs on" if forward_fn is None else "forward_fn must run the model"
        raise UserCodeError(f"{who}; it failed{layer_of(error, model)}: {reason(error)}") from error
