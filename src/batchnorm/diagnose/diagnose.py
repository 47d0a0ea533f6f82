"""The verb: gather evidence, apply the rules, report."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from torch import nn

from batchnorm.diagnose.evidence import gather
from batchnorm.diagnose.report import Report
from batchnorm.diagnose.rules import apply_rules


def diagnose(
    model: nn.Module, loader: Iterable[Any], *, forward_fn: Callable[[nn.Module, Any], Any] | None = None
) -> Report:
    """Say what is wrong with a model's batch norm, in which layer, and what fixes it.

    Example:
        >>> import torch, batchnorm
        >>> model = torch.nn.Sequential(torch.nn.BatchNorm1d(3))
        >>> report = batchnorm.diagnose(model, torch.randn(200, 3).split(50))
        >>> report.ok, report.findings[0].code
        (False, 'BN101')

    Every batch is run twice without moving anything, normalised by batch and by stored statistics;
    one training step on the first batch is watched and rolled back. The model is left as it was.

    Args:
        model: read only.
        loader: batches as in training: their size matters. See `recalibrate` for their forms.
        forward_fn: `forward_fn(model, batch)` where calling the model is not enough.

    Returns:
        A report: print it, or use `.ok`, `.findings`, `.layers[name].drift`, `.to_html(path)`.

    Raises:
        BatchNormError: no batch norm layer with statistics, or an empty loader.
    """
    evidence = gather(model, loader, forward_fn)
    return Report(evidence, apply_rules(evidence))
