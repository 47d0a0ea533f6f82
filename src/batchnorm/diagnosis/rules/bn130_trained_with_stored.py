"""The metric is better with the stored statistics, or with a new layer's 0 and 1, than with exact ones.

The weights were trained with them.

Batch norm was in eval while the weights trained: `norm_eval` of detectors, `m.train()` and then `bn.eval()` each
step, a forgotten `.train()`, an actor. Keep the statistics: recalibrating, tried on a copy, makes it worse. A warning
where a layer is in train mode now, so that the next forward moves them; else a note. Layers that a model's own
`train()` leaves in eval count as frozen. Where recalibrating does not help, the statistics of a new layer, 0 and 1, are
tried too: a model that was never put in train mode was trained with them, and may have been recalibrated since; then
the metric lies more than {KNOWS} deviations from guessing, and with the stored ones at most {LOST} as far. Other
statistics that were overwritten cannot be found again; a checkpoint from before has them.
"""

from __future__ import annotations

from dataclasses import replace

import torch

from batchnorm.diagnosis.experiments.effect import Effect
from batchnorm.diagnosis.findings import Example, Said
from batchnorm.diagnosis.model.evidence import Evidence
from batchnorm.diagnosis.rules.examples import answered, network, norms, squared_error

NEW = "new"  # the condition
KNOWS = 0.3  # deviations from guessing: a network that was trained so is not near it
LOST = 0.8  # of that distance: by less, 0 and 1 may be better by accident
TITLE = "trained with the stored statistics"
SEVERITY = "warning"
FIX = "{code}batchnorm.freeze(model)  # keep the statistics; do not recalibrate"
RESET = "[layer.reset_running_stats() for layer in batchnorm.models.batch_norm_layers(model).values()]; "


def predicts(e: Evidence) -> Effect:
    """New statistics instead of the stored ones; or keeping these, where train mode would move them."""
    new = with_new_statistics(e)
    if new is not None:
        return new
    moves = any(layer.training and not layer.frozen for layer in e.layers.values())
    gain = e.statistics.gain
    kept = None if gain is None else -gain if moves else 0.0
    return replace(e.statistics, gain=kept)


def look(e: Evidence) -> Said:
    """Exact statistics are worse, or new ones better."""
    new = with_new_statistics(e)
    if new is not None:
        yield (
            "",
            f"the metric is {new.before:.4g} with the stored statistics and {new.after:.4g} with 0 and 1: "
            "the weights were trained in eval mode, and the statistics were overwritten since",
            {"code": RESET},
        )
    elif e.statistics.harms and not _another_cause(e):
        yield (
            "",
            f"the metric is {e.statistics.before:.4g} with the stored statistics and {e.statistics.after:.4g} with "
            "exact ones: the weights were trained with the stored ones (batch norm in eval)",
            {"code": ""},
        )


def _another_cause(e: Evidence) -> bool:
    """Exact statistics are right on the evaluation data, or none fit all calls of a layer."""
    calls = e.by_call
    return bool((e.eval_exact.measured and e.eval_exact.helps) or (calls and calls.measured and calls.helps))


def with_new_statistics(e: Evidence) -> Effect | None:
    """What 0 and 1 in every layer do, where they help; tried once, where recalibrating gains nothing."""
    layers = [layer for layer in e.layers.values() if layer.reached and not layer.frozen and not layer.initial]
    if not layers or not e.statistics.measured or e.statistics.helps or e.attempt is None:
        return None
    if NEW not in e.outcomes:
        tried = e.attempt(NEW, {v.name: (torch.zeros_like(v.mean), torch.ones_like(v.var)) for v in layers})
        e.new_statistics = tried
    new = e.new_statistics
    # A change of the output alone does not tell which side is right.
    better = new is not None and new.measured and new.helps
    return new if better and e.knows(NEW) > KNOWS and e.knows("stored") <= LOST * e.knows(NEW) else None


def broken() -> Example:
    """Answers that are right under statistics of another scale."""
    model = network()
    with torch.no_grad():
        for layer in norms(model):
            layer.running_mean += 0.7 * layer.running_var.sqrt()
            layer.running_var *= 3
    return Example(model.eval(), answered(model), {"metric": squared_error})


def healthy() -> Example:
    """Answers that are right under exact statistics."""
    model = network()
    return Example(model, answered(model), {"metric": squared_error})
