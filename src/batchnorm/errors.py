"""The error classes of the package, and the sentence every bad argument gets."""

from __future__ import annotations


class BatchNormError(ValueError):
    """A bad argument, bad data or an impossible request; the model and the files are unchanged.

    Example:
        >>> import batchnorm, torch
        >>> try:
        ...     batchnorm.layers.EMA(decay=1.5)
        ... except batchnorm.BatchNormError as error:
        ...     print(error)
        decay must be in [0, 1), the weight of the old value; it was 1.5
    """


class OperandError(BatchNormError, RuntimeError):
    """Tensors that do not fit together in one call: another number of channels, another dtype, another device.

    Torch raises a `RuntimeError` there, so this is one as well.

    Example:
        >>> import batchnorm, torch
        >>> try:
        ...     batchnorm.BatchNorm1d(4)(torch.ones(2, 5))
        ... except RuntimeError as error:
        ...     print(error)
        input must have 4 channels on axis 1, as many as running_mean of layer BatchNorm1d(4); it had 5, in shape (2, 5)
    """


class ArgumentError(BatchNormError, TypeError):
    """An argument of the wrong type, an unknown one, or one that is missing.

    Python and torch raise a `TypeError` there, so this is one as well.

    Example:
        >>> import batchnorm
        >>> try:
        ...     batchnorm.BatchNorm2d("8")
        ... except TypeError as error:
        ...     print(error)
        num_features must be an integer of 0 or more; it was '8'
    """


class UserCodeError(BatchNormError, RuntimeError):
    """The caller's model, loader, metric or function raised: at which batch, in which layer; `__cause__` says what.

    Example:
        >>> import batchnorm, torch
        >>> model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4))
        >>> try:
        ...     batchnorm.recalibrate(model, [torch.ones(8, 5)])
        ... except batchnorm.BatchNormError as error:
        ...     print(type(error.__cause__).__name__)
        RuntimeError
    """


def check(condition: bool, argument: str, legal: str, value: object) -> None:
    """Raise a `BatchNormError` that names the argument, what is legal and what it was."""
    if not condition:
        raise BatchNormError(f"{argument} must be {legal}; it was {value}")
