"""Conventions of stored statistics: momentum, bias of the variance, what is stored for it, and debiasing."""

from __future__ import annotations

import math
from typing import Any, Literal

import numpy as np

from batchnorm.arguments import NOT_NEGATIVE, SHARE, an_array, arguments, number, word
from batchnorm.errors import BatchNormError, check

Form = Literal["variance", "std", "std_plus_eps", "std_with_eps", "second_moment"]
Bias = Literal["biased", "unbiased"]


@arguments(other=SHARE)
def torch_momentum(other: float) -> float:
    """Torch's momentum, the weight of the new batch, from a library's that weighs the old value, and back.

    Example:
        >>> torch_momentum(0.99)
        0.01
    """
    return round(1 - other, 12)


@arguments(stored=an_array, form=word(Form), mean=an_array, eps=NOT_NEGATIVE)
def variance_from(stored: Any, form: Form, *, mean: Any = None, eps: float | None = None) -> Any:
    """The running variance from what a library stores in its place.

    Example:
        >>> import numpy as np
        >>> float(variance_from(np.array([13.0]), "second_moment", mean=np.array([3.0]))[0])
        4.0

    Args:
        stored: one value a channel.
        form: "variance"; "std"; "std_plus_eps" (std + eps); "std_with_eps" (sqrt(var + eps)); "second_moment" (E[x^2]).
        mean: the running mean, needed for "second_moment".
        eps: needed for the two forms that contain it.

    Raises:
        BatchNormError: an unknown form, what it needs is missing, or values that no variance gives.
    """
    stored = np.asarray(stored, dtype=np.float64)
    if form == "variance":
        return stored
    if form == "second_moment":
        check(mean is not None, "mean", "given for a second moment", mean)
        centre = np.asarray(mean, dtype=np.float64)
        check(
            centre.shape in ((), stored.shape), "mean", f"of the shape {stored.shape} of stored", f"of {centre.shape}"
        )
        variance = stored - np.square(centre)
    elif form == "std":
        variance = np.square(stored)
    else:
        check(eps is not None, "eps", f"given for {form}", eps)
        shift = float(eps or 0.0)
        variance = np.square(stored - shift) if form == "std_plus_eps" else np.square(stored) - shift
    # Rounding of the stored value may leave a constant channel just below 0.
    lowest = float(variance.min(initial=0.0))
    tolerance = 1e-6 * float(np.abs(stored).max(initial=1.0)) ** (1 if form == "second_moment" else 2)
    check(lowest >= -tolerance, "stored", f"what a {form} can be", f"the one of a variance of {lowest:.3g}")
    return np.maximum(variance, 0.0)


@arguments(
    variance=an_array,
    count=number("2 or more values per channel and batch", lambda v: v > 1),
    have=word(Bias),
    want=word(Bias),
    weight_of_start=SHARE,
    start=NOT_NEGATIVE,
)
def rescale_variance(
    variance: Any, count: float, have: Bias, want: Bias, *, weight_of_start: float = 0.0, start: float = 1.0
) -> Any:
    """A running variance of biased batch variances as one of unbiased ones, or back.

    Example:
        >>> import numpy as np
        >>> float(rescale_variance(np.array([3.0]), 4, "biased", "unbiased")[0])
        4.0

    Args:
        variance: one value a channel.
        count: values a channel in a training batch, N * H * W.
        have: "biased" or "unbiased".
        want: the same.
        weight_of_start: how much of its first value is left in it, decay ** steps; that part is no variance of data.
        start: the value it started from.

    Raises:
        BatchNormError: a count below 2, another word than those two.
    """
    if have == want:
        return variance
    factor = count / (count - 1) if want == "unbiased" else (count - 1) / count
    rest = weight_of_start * start
    return rest + factor * (variance - rest)


def settled(decay: float) -> int:
    """Steps after which decay ** steps is below float32 resolution, so that debiasing changes nothing."""
    return math.ceil(math.log(2**-26) / math.log(min(max(decay, 1e-3), 1 - 1e-7)))


def decode(codec: str, arrays: dict[str, Any], momentum: float | None, *, repair: bool = False) -> dict[str, Any]:
    """A batch norm layer's stored arrays as torch would hold what its inference uses."""
    if codec == "haiku":
        kept = {role: arrays[role] for role in ("weight", "bias") if role in arrays}
        steps = int(arrays["counter"])
        # With a warm-up of k steps the counter starts at -k; below 1 it says nothing of the age.
        return {**kept, "running_mean": arrays["running_mean"], "running_var": arrays["running_var"], **_counter(steps)}
    if codec == "equinox":
        steps = int(arrays.pop("counter"))
        left = 0.0 if steps == 0 or momentum is None else (1 - momentum) ** steps
        mean, var = (arrays[n].astype(np.float64) for n in ("running_mean", "running_var"))
        var = (var - left if repair else var) / (1 - left)
        return {**arrays, "running_mean": mean / (1 - left), "running_var": var, **_counter(steps)}
    if codec == "equinox_ema":
        fresh = bool(arrays.pop("first_time"))
        if fresh:  # what lies there was never written
            ones = np.ones_like(arrays["running_var"])
            return {**arrays, "running_mean": 0 * ones, "running_var": ones}
        return arrays
    if codec == "std":
        var = variance_from(arrays.pop("running_std"), "std")
        return {**arrays, "running_var": var}
    return arrays


def encode(codec: str, values: dict[str, Any], decay: float | None) -> dict[str, Any]:
    """The arrays a layer has to hold so that its inference uses these values and its training goes on from them."""
    if codec == "plain":
        return values
    values = dict(values)
    counter = values.pop("num_batches_tracked", None)
    if codec == "std":
        return {**values, "running_std": np.sqrt(values.pop("running_var"))}
    if codec == "equinox_ema":
        return {**values, "first_time": np.asarray(False)}
    # A debiased average of unknown age: old enough that the correction is 1, or a first step would rescale it.
    known = counter is not None and int(counter) > 0 and decay is not None
    steps = int(counter) if known else settled(0.999 if decay is None else decay)  # pyright: ignore[reportArgumentType]
    scale = 1 - decay**steps if known and decay is not None else 1.0
    mean, var = (values[n].astype(np.float64) for n in ("running_mean", "running_var"))
    if codec == "equinox":
        return {**values, "running_mean": mean * scale, "running_var": var * scale, "counter": np.asarray(steps)}
    if codec == "haiku":
        hidden = {"hidden_mean": mean * scale, "hidden_var": var * scale}
        return {**values, **hidden, "counter": np.asarray(steps), "counter_var": np.asarray(steps)}
    raise BatchNormError(f"codec must be one this package knows; it was {codec!r}")


def _counter(steps: int) -> dict[str, Any]:
    return {"num_batches_tracked": np.asarray(steps, dtype=np.int64)} if steps > 0 else {}
