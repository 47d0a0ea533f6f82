"""How far two runs of one step may be apart, per channel and in units of the terms that cancel there."""

import numpy as np
import torch

ULP = {torch.float64: 2.0**-52, torch.float32: 2.0**-23, torch.float16: 2.0**-10, torch.bfloat16: 2.0**-7}


def by_channel(t):
    """`(C, values)` of an output, of a channel vector or of a ring, in float64."""
    array = t.detach().double().numpy()
    return array.reshape(-1, 1) if array.ndim < 2 else np.moveaxis(array, 1, 0).reshape(array.shape[1], -1)


def apart(got, truth, size, spelled, dtype, times=4, floor=None):
    """What is wrong with `got`, or None: another pattern of NaN and infinity, or an error above the bound.

    In float64 the bound is 1e-9 of the terms that make a channel; in a narrower dtype of the data it is `times` the
    error of `spelled`, the plain form in float32, plus 8 ulp of the terms. `floor` is what rounding to float64 leaves
    of nothing.
    """
    if got.shape != truth.shape:
        return f"shape {tuple(got.shape)} for {tuple(truth.shape)}"
    if not got.numel():
        return None
    # What half precision cannot hold is infinite there.
    got, truth = by_channel(got), by_channel(truth.to(got.dtype))
    odd = ~np.isfinite(truth)
    if not (np.array_equal(got[odd], truth[odd], equal_nan=True) and np.isfinite(got[~odd]).all()):
        return "another pattern of NaN and infinity"
    truth = np.where(odd, 0, truth)
    error = np.abs(np.where(odd, 0, got) - truth).max(1)
    terms = np.abs(truth).max(1) + (0 if size is None else size.double().numpy())
    bound = 1e-9 * terms
    if spelled is not None:
        theirs = np.abs(np.where(odd, 0, by_channel(spelled)) - truth)
        bound = times * np.where(np.isfinite(theirs), theirs, 0).max(1) + 8 * ULP[dtype] * terms
    bound = bound if floor is None else bound + floor.double().numpy()
    worst = int((error - bound).argmax())
    return None if error[worst] <= bound[worst] else f"{error[worst]:.2e} apart, bound {bound[worst]:.2e}"
