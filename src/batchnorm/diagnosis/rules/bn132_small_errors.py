"""No layer is far off, but recalibrating all of them, tried on a copy, helps beyond noise: small errors add up.

Nine layers of 0.09 standard deviations each cost eight points. Also quantised weights, whose rounding moves every
layer a little.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import nn

from batchnorm.diagnosis.experiments.effect import Effect
from batchnorm.diagnosis.findings import Example, Said
from batchnorm.diagnosis.model.evidence import Evidence
from batchnorm.diagnosis.rules.examples import answered, batches, network, norms, settle, squared_error
from batchnorm.diagnosis.rules.grounds import RECALIBRATE, by_statistics, drifts

TITLE = "small errors in many layers"
SEVERITY = "warning"
FIX = RECALIBRATE
predicts = by_statistics


def look(e: Evidence) -> Said:
    """Judged by the network, since no layer shows it."""
    effect: Effect = by_statistics(e)
    sound = all(layer.sound and bool((layer.var >= 0).all()) for layer in e.layers.values())
    if effect.measured and effect.helps and sound and not any(drifts(layer) for layer in e.layers.values()):
        moved = [layer.drift for layer in e.layers.values() if layer.reached]
        yield (
            "",
            f"no layer is off by more than is small (at most {max(moved, default=0.0):.2f} standard deviations), but "
            f"all {len(moved)} together cost {abs(effect.after - effect.before):.3g} of the metric",
        )


def _deep(error: float) -> Example:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(*[m for _ in range(12) for m in network(hidden=1)[:3]], nn.Linear(8, 3))
        for layer in norms(model):
            nn.init.constant_(layer.bias, 0.3)
    settle(model, batches())
    loader = answered(model)
    with torch.no_grad():
        for index, layer in enumerate(norms(model)):
            layer.running_mean += error * (-1) ** index * layer.running_var.sqrt()
    return Example(model, loader, {"metric": squared_error})


broken = partial(_deep, 0.09)  # 0.09 standard deviations in twelve layers
healthy = partial(_deep, 0.001)  # 0.001
