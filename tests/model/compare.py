"""How far two runs of one step may be apart, per channel and in units of the terms that cancel there."""

import torch

ULP = {torch.float64: 2.0**-52, torch.float32: 2.0**-23, torch.float16: 2.0**-10, torch.bfloat16: 2.0**-7}
NAMES = (("y", "y"), ("dx", "dx"), ("dweight", "dw"), ("dbias", "db"))


def by_channel(t):
    """`(C, values)` of an output, of a channel vector or of a ring."""
    if t.dim() < 2:
        return t.reshape(-1, 1)
    return t.movedim(1, 0).flatten(1)


def apart(got, truth, size, spelled=None, dtype=None):
    """What is wrong with `got`, or None: another pattern of NaN and infinity, or an error above the bound.

    In float64 the bound is 1e-9 of the terms; else 4 times the error of `spelled`, plus 8 ulp of the terms. dtype is that of
    the data, where `got` is wider than what it was made of.
    """
    ulp = ULP[dtype or got.dtype]
    got, truth = got.double(), truth.double()
    if got.shape != truth.shape:
        return f"shape {tuple(got.shape)} for {tuple(truth.shape)}"
    odd = ~torch.isfinite(truth)
    if not torch.equal(torch.nan_to_num(got[odd], 7.0), torch.nan_to_num(truth[odd], 7.0)) or not got[~odd].isfinite().all():
        return "another pattern of NaN and infinity"
    if not got.numel():
        return None
    error = by_channel(torch.where(odd, 0, got - truth).abs()).amax(1)
    terms = by_channel(torch.where(odd, 0, truth).abs()).amax(1) + (0 if size is None else size.double())
    bound = 1e-9 * terms
    if spelled is not None:
        others = by_channel(torch.where(odd, 0, spelled.double() - truth).abs().nan_to_num(0, 0, 0)).amax(1)
        bound = 4 * others + 8 * ulp * terms
    worst = (error - bound).argmax()
    return None if error[worst] <= bound[worst] else f"{float(error[worst]):.2e} apart, bound {float(bound[worst]):.2e}"
