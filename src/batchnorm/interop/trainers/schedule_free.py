"""Schedule-free optimizers: evaluation has other weights than training, and so other statistics."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from batchnorm.arguments import a_module, arguments, some_batches, told
from batchnorm.errors import check
from batchnorm.interop.trainers.loaders import again
from batchnorm.models import Recalibration
from batchnorm.models import recalibrate as recalibrate_model


@arguments(model=a_module, loader=some_batches)
def recalibrate(model: nn.Module, optimizer: Any, loader: Iterable[Any], **options: Any) -> Recalibration:
    """Put the optimizer into eval mode and recalibrate at the weights it gives: for the end of training.

    Example:
        >>> optimizer = schedulefree.AdamWScheduleFree(model.parameters())  # doctest: +SKIP
        >>> recalibrate(model, optimizer, loader)  # doctest: +SKIP
        >>> torch.save(model.state_dict(), "final.pt")  # doctest: +SKIP

    If anything raises, the optimizer is in the mode it was in, and the model as it was.

    Args:
        model: its batch norm buffers are written.
        optimizer: with `train()` and `eval()`, as those of `schedulefree` and its wrapper.
        loader: as in `batchnorm.recalibrate`; a `DataLoader` in use is not disturbed.
        **options: further arguments of `batchnorm.recalibrate`.

    Raises:
        BatchNormError: an optimizer without the two modes; as `batchnorm.recalibrate`.
    """
    training = _in_training(optimizer)
    optimizer.eval()
    try:
        return recalibrate_model(model, again(loader), **options)
    except BaseException:
        if training:
            optimizer.train()
        raise


@arguments(model=a_module, loader=some_batches)
@contextmanager
def evaluating(model: nn.Module, optimizer: Any, loader: Iterable[Any], **options: Any) -> Iterator[Recalibration]:
    """Within the context weights and statistics are those of evaluation; afterwards those of training again.

    Example:
        >>> with evaluating(model, optimizer, loader, until=0.01):  # doctest: +SKIP
        ...     model.eval()
        ...     validate(model)

    The statistics come back to the bit, the weights as the optimizer gives them back (to rounding).
    The mode of the model is the caller's business.

    Args:
        model: as in `recalibrate`.
        optimizer: as in `recalibrate`.
        loader: as in `recalibrate`.
        **options: as in `recalibrate`.

    Raises:
        BatchNormError: as `recalibrate`.
    """
    training = _in_training(optimizer)
    result = recalibrate(model, optimizer, loader, **options)
    try:
        yield result
    finally:
        result.undo()
        if training:
            optimizer.train()


def _in_training(optimizer: Any) -> bool:
    modes = callable(getattr(optimizer, "train", None)) and callable(getattr(optimizer, "eval", None))
    check(modes, "optimizer", "schedule-free, with train() and eval()", told(optimizer))
    return bool(getattr(optimizer, "train_mode", optimizer.param_groups[0].get("train_mode", False)))
