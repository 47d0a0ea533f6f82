"""Putting the new statistics in place, all or none, and saying what that changed."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from batchnorm.models.recalibration.collect import rms
from batchnorm.models.recalibration.correlation import correlation_times
from batchnorm.models.recalibration.fixed_point import distance, estimate
from batchnorm.models.recalibration.result import RecalibratedLayer, Recalibration, Upstream
from batchnorm.models.recalibration.run import Outcome
from batchnorm.models.recalibration.targets import Target, Targets
from batchnorm.models.recalibration.totals import FEWEST_BATCHES, Totals, Variance, errors_in_std
from batchnorm.models.state import restore, snapshot


def write(
    outcome: Outcome,
    targets: Targets,
    written: dict[str, Target],
    variance: Variance,
    upstream: Upstream,
    bank: str | None,
) -> Recalibration:
    """Put the statistics in place, all or none, and say what that changed."""
    layers = [written[name].layer for name in outcome.totals]
    before = snapshot(layers)
    banks = [(layer, layer.__dict__.get("active_bank")) for layer in layers]
    rows: dict[str, RecalibratedLayer] = {}
    try:
        for layer in layers if bank is not None else ():
            layer.active_bank = bank  # pyright: ignore
        for name, totals in outcome.totals.items():
            target = written[name]
            mean, var = estimate(target, totals, variance)
            rows[name] = _row(target, totals, variance, mean, var, outcome.residual[name])
            target.finish(mean, var, outcome.batches, float(totals.count[0]))
    except BaseException:
        restore(before)
        raise
    finally:
        for layer, own in banks if bank is not None else ():
            layer.active_bank = own  # pyright: ignore
    return Recalibration(
        outcome.samples,
        outcome.batches,
        outcome.offered,
        upstream,
        rows,
        tuple(name for name in targets.active if name not in rows),
        targets.frozen,
        outcome.skipped,
        None if outcome.batches < FEWEST_BATCHES else not (outcome.sorted or outcome.grouped),
        outcome.sorted,
        outcome.grouped,
        outcome.converged,
        outcome.passes,
        outcome.stored_order,
        outcome.plan,
        outcome.spread,
        outcome.forwards,
        outcome.drawn,
        before,
    )


def _row(
    target: Target, totals: Totals, variance: Variance, mean: Tensor, var: Tensor, residual: float
) -> RecalibratedLayer:
    moved = distance(target, mean, var)
    if not target.centres:
        mean, var = torch.zeros_like(mean), var + mean.square()
    old_mean, old_var = target.read()
    eps = target.layer.eps
    shift = (mean - old_mean) / (old_var.clamp_min(0) + eps).sqrt()
    ratio = ((var + eps) / (old_var.clamp_min(0) + eps)).log().mean().exp()
    of_mean, of_var = found = totals.standard_errors(variance)
    error = float(errors_in_std(totals, torch.full_like(mean, eps), variance, found))
    known = math.isfinite(error)
    return RecalibratedLayer(
        int(totals.count[0]),
        rms(shift),
        float(ratio),
        moved,
        error if known else math.nan,
        residual,
        float(len(totals.sketches) / correlation_times(totals.sketches).max()),
        known and totals.heavy_tailed,
        shift,
        of_mean if known else torch.full_like(of_mean, torch.nan),
        of_var if known else torch.full_like(of_var, torch.nan),
    )
