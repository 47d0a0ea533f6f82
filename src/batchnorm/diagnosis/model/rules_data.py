"""Rules on the data: how many values, how alike the batches, and whether the gap lies elsewhere."""

from __future__ import annotations

from batchnorm.diagnosis.findings import Said
from batchnorm.diagnosis.model.evidence import SPREAD, Evidence
from batchnorm.diagnosis.model.layer import LayerEvidence
from batchnorm.diagnosis.model.rules_statistics import SURE, drifts

FEW_VALUES = 16  # below, the batch variance is off by 35 % or more, sqrt(2 / n)
PADDING = 0.05
BETWEEN_CALLS = 0.1  # of the variance
TWO_GROUPS = 0.93  # of the spread of batch means; two halves of a normal distribution explain 0.64
GAP = 0.05  # of the size of the output
PERSISTS = 0.15  # of the metric
SHIFT = 0.25  # standard deviations between training and evaluation data


def few_values(e: Evidence) -> Said:
    """Few values per channel in a batch."""
    for layer in e.layers.values():
        n = layer.collected.fewest_values
        if n < FEW_VALUES and not layer.frozen:
            yield (
                layer.name,
                f"a batch has {n:.0f} values per channel: its variance is uncertain by "
                f"{(2 / max(n - 1, 1)) ** 0.5:.0%}",
                "use larger batches, or batchnorm.freeze(model)",
            )


def one_value(e: Evidence) -> Said:
    """One value per channel: there is no variance, and training stops."""
    for layer in e.layers.values():
        if layer.inputs.single is not None:
            yield (
                layer.name,
                f"batch {layer.inputs.single} has one value per channel: it has no variance, and training stops there",
                "drop_last=True in the loader, or larger batches, or batchnorm.freeze(model)",
            )


def padding(e: Evidence) -> Said:
    """Padding among the data."""
    for layer in e.layers.values():
        if layer.inputs.padding > PADDING:
            yield (
                layer.name,
                f"{layer.inputs.padding:.0%} of the positions repeat at the end of samples of different length: "
                "padding is counted as data",
                "batchnorm.convert(model) and give its layers the lengths or a mask, then recalibrate",
            )


def several_distributions(e: Evidence) -> Said:
    """One layer for several inputs that are not alike: calls of one forward, or two kinds of batches."""
    for layer in e.layers.values():
        if layer.frozen or layer.collected.values is None:
            continue
        between = layer.inputs.between_calls(layer.collected.values.var(1).cpu())
        if between > BETWEEN_CALLS:
            yield (
                layer.name,
                f"{between:.0%} of the variance lies between the calls of one forward: several distributions share "
                "one mean and variance, which fit none of them",
                "give each its own statistics: one layer each, with shared weight and bias",
            )
        elif layer.spread > SPREAD and layer.inputs.two_groups() > TWO_GROUPS:
            yield (
                layer.name,
                f"the batches' means fall in two groups (which explain {layer.inputs.two_groups():.0%} of their "
                f"spread, {layer.spread:.0f} times that of shuffled batches): two kinds of data take turns",
                "mix the two in every batch, or give each its own statistics",
            )


def _first_unlike(e: Evidence) -> tuple[LayerEvidence, float] | None:
    spreads = [(layer, layer.spread) for layer in e.layers.values() if layer.reached]
    worst = max(spreads, key=lambda pair: pair[1], default=None)
    return worst if worst is not None and worst[1] > SPREAD else None


def unlike_batches(e: Evidence) -> Said:
    """Batches whose means vary more than those of shuffled samples."""
    found = _first_unlike(e)
    if found is not None and not any(True for _ in several_distributions(e)):
        layer, spread = found
        yield (
            layer.name,
            f"the batches' means vary {spread:.0f} times as much as those of shuffled batches: each batch is of its "
            "own kind (sorted data, one class, one patient, one scene)",
            "shuffle the loader; if batches are like that in training, train with renorm or freeze towards the end",
        )


def leakage(e: Evidence) -> Said:
    """Right statistics do not give what the batch's give: the samples of a batch tell each other something."""
    if _first_unlike(e) is None or any(True for _ in several_distributions(e)):
        return
    batch, fresh = e.choices.mean("batch"), e.choices.mean("recalibrated")
    # Without a metric nobody can say which of the two is right: a sorted validation loader differs as much.
    if batch is None or fresh is None or not e.choices.nearer_to_chance("recalibrated", "batch"):
        return
    difference, error = e.choices.differs("batch", "recalibrated")
    persists = abs(difference) > max(PERSISTS * max(abs(batch), abs(fresh)), SURE * error)
    said = f"the metric is {batch:.3g} with the batch's statistics and {fresh:.3g} with exact ones"
    if persists:
        yield (
            "",
            f"recalibration does not close the gap: {said}. The network was trained on batches of one kind and reads "
            "from their statistics what kind it is",
            "train with shuffled batches, or with batchnorm.convert(model, 'renorm'), or frozen for the last fifth",
        )


def other_cause(e: Evidence) -> Said:
    """Train and eval differ although the statistics are right."""
    gap = e.rest_gap or 0.0
    if gap > GAP and not any(drifts(layer) for layer in e.layers.values()):
        names = ", ".join(e.random_modules[:3])
        more = f" and {len(e.random_modules) - 3} more" if len(e.random_modules) > 3 else ""
        what = f" ({names}{more})" if names else ""
        ours = "" if e.output_gap is None else f", batch norm {e.output_gap:.0%}"
        yield (
            "",
            f"what is random in train mode{what} moves the output by {gap:.0%} of its size{ours}: dropout, stochastic "
            "depth or the like make the gap, not the statistics",
            "compare the modes with dropout off: model.eval() with batch norm layers alone in train()",
        )


def data_differ(e: Evidence) -> Said:
    """The evaluation data are not like the training data."""
    # The first layer shows the data themselves; deeper ones what the network makes of the difference.
    for name, (shift, error) in e.data_shift.items():
        if shift > max(SHIFT, SURE * error):
            yield (
                name,
                f"the evaluation data lie {shift:.2f} standard deviations (+- {error:.2f}) from the loader's: other "
                "preprocessing, augmentation or another source",
                "use one preprocessing; if the data are meant to differ, recalibrate on unlabelled evaluation data",
            )
            return
