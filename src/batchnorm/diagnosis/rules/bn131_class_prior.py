"""Given `eval_loader`: the predicted classes have other shares there, by more than {CLASSES} in total variation.

And within a predicted class the inputs agree, so that nothing else need differ: a class-balanced sampler in training
and the natural shares at evaluation. Recalibrating on such evaluation data takes the shares for a shift and moves every
class; it was tried there, and the report says what it did. A note: keep the stored statistics.
"""

from __future__ import annotations

from functools import partial

import torch

from batchnorm.diagnosis.experiments.differing import CLASSES as CLASSES
from batchnorm.diagnosis.experiments.differing import variation
from batchnorm.diagnosis.findings import Example, Said
from batchnorm.diagnosis.model.evidence import Evidence
from batchnorm.diagnosis.rules.examples import accuracy, batches, labelled, network

TITLE = "classes have other shares in the evaluation data"
SEVERITY = "note"
FIX = "keep the stored statistics{advice}"


def look(e: Evidence) -> Said:
    """Histograms of predicted classes."""
    ours, theirs = e.outcomes.get("stored"), e.outcomes.get("eval_stored")
    if ours is None or theirs is None or ours.classes is None or theirs.classes is None:
        return
    if e.difference.words and not e.difference.by_class:
        return
    apart = variation(ours.classes, theirs.classes)
    noise = (len(ours.classes) * (1 / max(ours.samples, 1) + 1 / max(theirs.samples, 1))) ** 0.5
    if apart > max(CLASSES, noise):
        own = e.outcomes.get("eval_own")
        moved = 0.0 if own is None or own.classes is None else variation(theirs.classes, own.classes)
        advice = "; do not recalibrate on the evaluation data" if e.evaluation.harms or moved > CLASSES else ""
        yield (
            "",
            f"the predicted classes have other shares in the evaluation data (total variation {apart:.2f}); "
            f"recalibrated on them, {moved:.0%} of the predictions go to other classes",
            {"advice": advice},
        )


def _shares(skewed: bool) -> Example:
    model = network()
    x = torch.cat(batches(seed=1))
    classes = model.eval()(x).argmax(1).detach()
    most = torch.bincount(classes).argmax()
    rest = (classes != most).nonzero().flatten()
    kept = torch.cat([(classes == most).nonzero().flatten(), rest[: 20 if skewed else len(rest)]]).sort().values
    evaluation = labelled(model, list(x[kept].split(32)))
    return Example(model, labelled(model), {"metric": accuracy, "eval_loader": evaluation})


broken = partial(_shares, True)  # nearly all of one class
healthy = partial(_shares, False)  # the same shares
