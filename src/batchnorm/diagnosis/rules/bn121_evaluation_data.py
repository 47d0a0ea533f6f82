"""Given `eval_loader`: the evaluation inputs are not like the loader's, and that makes the metric worse.

Compared are the model's own inputs, each against its sampling error: quantiles by channel or column (beyond {APART}
deviations), means by position (beyond {SHIFT}), power by frequency (beyond a factor of 1.35), sizes, padding and the
frequencies of tokens; and what the first layer receives (mean beyond {SHIFT} deviations, variance beyond a factor of
1.6). What was done to them is the simplest that explains it: values that mark missing cells or dead pixels, a part of
the samples in other units, a gain of its own for each sample, a line (a x + b), the training inputs' normalisation
left out, channels in another order, a line for single channels or columns, a curve, turned, enlarged, noise, blur,
motion along one direction, compression in blocks, another rate, cut or resized. It is tried: undone on the evaluation
data, and done to the loader's inputs. Where the inputs look alike and the metric is worse, other orders of up to
three channels and ways to turn inputs are tried on a part; the best is the cause if it takes back half of the loss. A
warning where undoing it helps, or doing it harms; where it cannot be tried, where the metric is worse, unless
augmentation of the training inputs (crops, noise, mixup) explains the difference as well. Recalibrating on the
evaluation data is advised only where it helps. Other shares of the classes are BN131.
"""

from __future__ import annotations

from batchnorm.diagnosis.experiments.effect import Effect
from batchnorm.diagnosis.experiments.values import APART as APART
from batchnorm.diagnosis.experiments.values import SHIFT as SHIFT
from batchnorm.diagnosis.findings import Example, Said
from batchnorm.diagnosis.model.evidence import Evidence
from batchnorm.diagnosis.rules.examples import batches, network
from batchnorm.diagnosis.rules.grounds import SURE as SURE
from batchnorm.diagnosis.rules.grounds import above, ruled_out

LOG_RATIO = 0.5  # of the variance

TITLE = "evaluation data differ from training data"
SEVERITY = "warning"
FIX = "{code}evaluate with the training's preprocessing{undo}{advice}"


def predicts(e: Evidence) -> Effect | None:
    """How much worse the metric is on the evaluation data, or what undoing the difference does there.

    A difference that, done to the loader's inputs, does no harm is not what makes the metric worse; nor is one that
    augmentation explains as well, unless undoing it helps.
    """
    applied, undone = e.eval_applied, e.eval_undone
    if not e.eval_gap.measured:
        return applied if e.difference.usual else None
    if undone is not None and undone.measured and undone.helps:
        return undone
    if applied is not None and applied.measured and e.difference.words:
        return e.eval_gap if applied.harms else ruled_out(e.eval_gap)
    if e.difference.usual:
        return ruled_out(e.eval_gap)
    return e.evaluation if e.evaluation.helps and not e.eval_gap.helps else e.eval_gap


def look(e: Evidence) -> Said:
    """The inputs themselves, else what the first layer receives."""
    layer, found = next(iter(e.eval_shift.items()), ("", None))
    words, by_layer = e.difference.words, ""
    if found is not None:
        shift, error, ratio, ratio_error = found
        if above(shift, SHIFT, error) or above(ratio, LOG_RATIO, ratio_error):
            by_layer = (
                f"layer {layer or '(root)'} receives evaluation data {shift:.2f} standard deviations (+- {error:.2f}) "
                f"from the loader's, with a variance off by a factor of {2.718281828**ratio:.2f}"
            )
    if e.difference.by_class or not (words or by_layer):
        return
    if words and e.eval_gap.helps and _fails(e.eval_undone):
        words += " (not that alone: undone, the metric is no better)"
    said = "; ".join(part for part in (words, by_layer) if part)
    yield layer, said if words else f"{said}: other preprocessing, augmentation or another source", _fix(e)


def _fails(undone: Effect | None) -> bool:
    """Whether undoing what the inputs show was tried, and is no repair."""
    return undone is not None and undone.measured and not undone.helps


def _fix(e: Evidence) -> dict[str, str]:
    own, back, code = e.evaluation, e.eval_undone, e.difference.code
    better = back is not None and back.measured and back.helps and not own.better_than(back)
    if code and better and e.feeds_tensors:
        hook = f"model.register_forward_pre_hook(lambda module, args: ({code}, *args[1:]))"
        return {"code": f"{hook}  # on such data, or ", "undo": "", "advice": ""}
    undo = f": {code}, for the model's args" if code and not _fails(back) else ""
    if better:
        return {"code": "", "undo": undo, "advice": ""}
    if own.measured and own.helps:
        return {"code": f"{own.what}  # or ", "undo": undo, "advice": ""}
    advice = "" if own.measured else "; if the data are meant to differ, recalibrate on unlabelled evaluation data"
    return {"code": "", "undo": undo, "advice": "; do not recalibrate on evaluation data" if own.harms else advice}


def broken() -> Example:
    """Another mean."""
    return Example(network(), batches(), {"eval_loader": [x + 1 for x in batches(50, seed=1)]})


def healthy() -> Example:
    """Other data of one distribution."""
    return Example(network(), batches(), {"eval_loader": batches(50, seed=1)})
