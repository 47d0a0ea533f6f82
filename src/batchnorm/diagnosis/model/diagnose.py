"""The verb: gather evidence, apply the rules, report."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from torch import nn

from batchnorm.diagnosis.findings import apply_rules
from batchnorm.diagnosis.model.evidence import gather
from batchnorm.diagnosis.model.rules import MODEL_RULES
from batchnorm.diagnosis.model.subject import ModelSubject
from batchnorm.diagnosis.report import Report


def diagnose(
    model: nn.Module,
    loader: Iterable[Any],
    metric: Callable[[Any, Any], Any] | None = None,
    *,
    forward_fn: Callable[[nn.Module, Any], Any] | None = None,
    eval_loader: Iterable[Any] | None = None,
    attribution: bool = True,
) -> Report:
    """Say what is wrong with a model's batch norm, in which layer, and what fixes it.

    Example:
        >>> import torch, batchnorm
        >>> model = torch.nn.Sequential(torch.nn.BatchNorm1d(3))
        >>> data = torch.randn(200, 3) + 2
        >>> report = batchnorm.diagnose(model, data.split(50))
        >>> report.ok, report.findings[0].code
        (False, 'BN101')

    Every batch is run without moving anything, normalised by batch, by stored and by fresh
    statistics; one training step on the first batch is watched and rolled back. Each layer's stored
    statistics are put, alone, into the network with fresh ones: its share of the change of the
    output. The model is left as it was.

    Args:
        model: read only.
        loader: batches as in training: their size matters. See `recalibrate` for their forms.
        metric: `metric(output, batch)` gives a number, an accuracy or a loss: the report shows it
            under each choice of statistics, on all batches of a list and the first 16 of a loader.
        forward_fn: `forward_fn(model, batch)` where calling the model is not enough.
        eval_loader: evaluation data, to see whether they differ from the loader's.
        attribution: one more forward a layer, or by halves where there are more than 64.

    Returns:
        A report: print it, or use `.ok`, `.findings`, `.layers[name].drift`, `.to_html(path)`.

    Raises:
        BatchNormError: no batch norm layer, or an empty loader.
    """
    evidence = gather(model, loader, forward_fn, metric, eval_loader, attribution)
    return Report(ModelSubject(evidence), apply_rules(MODEL_RULES, evidence))
