"""Given `eval_loader`: the classes have other shares there, by more than {CLASSES} in total variation.

The labels' shares, where both loaders give labels. A network has learnt those of its training: the logarithm of their
ratio, added to the output, is what undoes that. It is tried on the evaluation data, and a warning where it helps; also
where the metric is worse there, and weighing the evaluation samples as if they had the training's shares takes back
{EXPLAINED} of the lost accuracy. Else the predicted classes' shares, and within a predicted class the inputs agree, so
that nothing else need differ: a class-balanced sampler in training and the natural shares at evaluation; a note.
Recalibrating on such evaluation data takes the shares for a shift and moves every class; it was tried there, and the
report says what it did.

Source: Saerens, Latinne and Decaestecker (2002), Adjusting the outputs of a classifier to new a priori probabilities.
"""

from __future__ import annotations

import math
from functools import partial

import torch

from batchnorm.diagnosis.experiments.changes import NAMED
from batchnorm.diagnosis.experiments.class_shares import CLASSES as CLASSES
from batchnorm.diagnosis.experiments.class_shares import variation
from batchnorm.diagnosis.experiments.effect import Effect
from batchnorm.diagnosis.findings import Example, Said
from batchnorm.diagnosis.model.evidence import Evidence
from batchnorm.diagnosis.rules.examples import accuracy, batches, labelled, network

EXPLAINED = 0.5  # of the lost accuracy

TITLE = "classes have other shares in the evaluation data"
SEVERITY = "warning"
FIX = "{code}keep the stored statistics{advice}"


def predicts(e: Evidence) -> Effect:
    """What weighing the classes by their shares in the evaluation data does there; else what they explain."""
    if e.prior is not None and e.prior.helps:
        return e.prior
    return e.eval_gap if e.prior_explains >= EXPLAINED else Effect("other shares", 0, gain=0.0)


def look(e: Evidence) -> Said:
    """Histograms of labels, or of predicted classes."""
    if e.prior is not None and (e.prior.helps or e.prior_explains >= EXPLAINED):
        offsets = [float(f"{value:.3g}") for value in e.prior_offsets.tolist()]
        hook = f"model.register_forward_hook(lambda module, args, output: output + torch.tensor({offsets}))"
        said = ", ".join(f"{math.exp(value):.2g}" for value in offsets[:NAMED]) + (", ..." if offsets[NAMED:] else "")
        yield (
            "",
            f"classes have other shares in the evaluation data ({said} times those of the training labels), which "
            f"explains {min(e.prior_explains, 1.0):.0%} of the accuracy that is lost there",
            {
                "code": f"{hook}  # on such data, and " if e.prior.helps else "",
                "advice": "; do not recalibrate on the evaluation data" if e.evaluation.harms else "",
            },
        )
        return
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
            {"code": "", "advice": advice},
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
