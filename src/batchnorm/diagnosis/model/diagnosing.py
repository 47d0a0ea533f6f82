"""The verb: gather evidence, apply the rules, judge, report."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from torch import nn

from batchnorm.arguments import a_flag, a_function, a_module_with_shapes, arguments, some_batches
from batchnorm.diagnosis import rules
from batchnorm.diagnosis.model.gather import gather
from batchnorm.diagnosis.model.judge import judge
from batchnorm.diagnosis.model.subject import ModelSubject
from batchnorm.diagnosis.report import Report


@arguments(
    model=a_module_with_shapes,
    loader=some_batches,
    metric=a_function,
    forward_fn=a_function,
    eval_loader=some_batches,
    attribution=a_flag,
    higher_is_better=a_flag,
    progress=a_flag,
)
def diagnose(
    model: nn.Module,
    loader: Iterable[Any],
    metric: Callable[[Any, Any], Any] | None = None,
    *,
    forward_fn: Callable[[nn.Module, Any], Any] | None = None,
    eval_loader: Iterable[Any] | None = None,
    attribution: bool = True,
    budget: int | str | None = None,
    higher_is_better: bool | None = None,
    progress: bool = True,
) -> Report:
    """Say what is wrong with a model's batch norm, in which layer, and what fixes it.

    Example:
        >>> import torch, batchnorm
        >>> model = torch.nn.Sequential(torch.nn.BatchNorm1d(3))
        >>> data = torch.randn(200, 3) + 2
        >>> report = batchnorm.diagnose(model, data.split(50))
        >>> report.ok, report.findings[0].code
        (False, 'BN101')

    The same batches are run with the stored statistics, with the batch's and with exact ones, recalibrated
    and put back; one training step on the first batch is watched and rolled back. A finding above a
    note rests on harm that was measured so: by the metric, sample by sample, or without one by a change of
    the output beyond what sampling does. A fix is printed with what it did. Each layer's stored statistics are
    put, alone, into the network with exact ones: its share of the change of the output. At most 8 forward
    passes over the data, however many layers. The model is left as it was.

    Args:
        model: read only; found inside DDP and compiled modules too.
        loader: batches as in training: their size matters. See `recalibrate` for their forms.
        metric: `metric(output, batch)` gives a number, an accuracy or a loss. Where that of a batch is the mean
            over its samples, samples are compared, else batches.
        forward_fn: `forward_fn(model, batch)` where calling the model is not enough.
        eval_loader: evaluation data: whether they differ from the loader's, and how, and what the statistics
            do there.
        attribution: one more pass for the layers' shares, on as many samples of the first batch as that allows.
        budget: how much to spend: a number of samples, or a time such as "30 s". By default all data.
        higher_is_better: which way the metric goes; by default learnt from outputs held against other samples.
        progress: a progress bar, if stderr is a terminal.

    Returns:
        A report: print it, or use `.ok`, `.findings`, `.layers[name].drift`, `.to_html(path)`.

    Raises:
        BatchNormError: no batch norm layer, a sharded model, an empty loader, an argument that is not legal.
    """
    evidence = gather(model, loader, forward_fn, metric, eval_loader, attribution, budget, higher_is_better, progress)
    return Report(ModelSubject(evidence), judge(evidence, rules.MODEL))
