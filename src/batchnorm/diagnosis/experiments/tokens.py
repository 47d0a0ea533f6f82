"""Whether the numbers of words occur with other frequencies in the evaluation data."""

from __future__ import annotations

import torch
from torch.nn import functional

from batchnorm.diagnosis.experiments.class_shares import CLASSES, variation
from batchnorm.diagnosis.experiments.sample import Sample

WORDS = 1 << 20  # numbers beyond are no tokens


def tokens(training: Sample, evaluation: Sample) -> str:
    """Whether numbers of words occur with other frequencies, beyond what two halves of the training data show."""
    every = [*training.inputs, *evaluation.inputs]
    if not training.inputs or not evaluation.inputs or any(t.is_floating_point() or t.dim() != 2 for t in every):
        return ""
    rows = [row for t in training.inputs for row in t]
    parts = [torch.cat(v) for v in (rows[::2], rows[1::2], [row for t in evaluation.inputs for row in t])]
    if min(int(p.min()) for p in parts) < 0 or max(int(p.max()) for p in parts) > WORDS:
        return ""
    one, two, other = (torch.bincount(p) for p in parts)
    size = max(len(one), len(two))
    whole = sum(functional.pad(v, (0, size - len(v))) for v in (one, two))
    far, chance = variation(whole, other), variation(one, two)  # pyright: ignore[reportArgumentType]
    chance *= (0.25 + 0.25 * len(rows) / max(evaluation.count, 1)) ** 0.5
    limit = max(CLASSES, 2 * chance)
    if far < limit:
        return ""
    size = max(len(whole), len(other))  # pyright: ignore[reportArgumentType]
    p, q = (functional.pad(v, (0, size - len(v))).double() for v in (whole, other))  # pyright: ignore
    most = int((p / p.sum() - q / q.sum()).abs().argmax())
    others = torch.arange(size) != most
    if variation(p[others], q[others]) < limit:
        return (
            f"number {most} takes up {q[most] / q.sum():.0%} of evaluation inputs, {p[most] / p.sum():.0%} of training "
            "inputs: padding of other lengths, or unknown words"
        )
    return (
        f"tokens occur with other frequencies in evaluation inputs (total variation {far:.2f}; chance {chance:.2f}): "
        "another vocabulary, tokenizer or language"
    )
