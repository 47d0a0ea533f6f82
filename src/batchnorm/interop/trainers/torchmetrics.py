"""Metrics of torchmetrics, or any `(output, target)`, as the `metric` of `diagnose`."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

from batchnorm.arguments import a_function, a_string, arguments
from batchnorm.errors import BatchNormError, check
from batchnorm.failures import one_number


@arguments(metric=a_function, key=a_string)
def as_metric(
    metric: Callable[[Any, Any], Any],
    *,
    target: Callable[[Any], Any] | str | int = 1,
    output: Callable[[Any], Any] | str | int | None = None,
    key: str | None = None,
) -> Callable[[Any, Any], float]:
    """A `metric(output, batch)` for `diagnose` from one that takes output and target.

    Example:
        >>> import torch
        >>> loss = as_metric(torch.nn.functional.cross_entropy)
        >>> loss(torch.zeros(4, 2), (torch.zeros(4, 3), torch.tensor([0, 1, 1, 0])))
        0.6931471824645996

    A torchmetrics metric is copied and reset for every batch, so yours keeps what it has counted.

    Args:
        metric: a torchmetrics `Metric` or `MetricCollection`, or a function.
        target: where the target is in a batch: an index, a key, or a function of the batch.
        output: where the prediction is in what the model returns; None if it is all of it.
        key: which number, where the metric gives several by name.

    Raises:
        BatchNormError: when called: a target or output that is not there, several numbers and no key.
    """
    stateful = callable(getattr(metric, "reset", None)) and callable(getattr(metric, "compute", None))
    own: Any = copy.deepcopy(metric) if stateful else metric

    def measure(result: Any, batch: Any) -> float:
        if stateful:
            own.reset()
        prediction = result if output is None else _pick(result, output, "output")
        wanted = _pick(batch, target, "target")
        if stateful and hasattr(own, "to"):
            own.to(prediction.device)
        wanted = wanted.to(prediction.device) if hasattr(wanted, "to") else wanted

        def value() -> Any:
            found = own(prediction, wanted)
            if isinstance(found, Mapping):
                check(key in found, "key", f"one of {', '.join(map(repr, found))}", repr(key))
                found = found[key]
            return found

        return one_number(value, "metric must take the output and the target, and return one number")

    return measure


def _pick(holder: Any, where: Callable[[Any], Any] | str | int, name: str) -> Any:
    if callable(where):
        return where(holder)
    try:
        return holder[where]
    except (LookupError, TypeError) as error:
        raise BatchNormError(f"{name} must be in a {type(holder).__name__}; {where!r} is not") from error
