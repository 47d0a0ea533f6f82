"""Re-estimate population statistics at fixed weights: exact moments, all or nothing, with an error bar."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parameter import is_lazy

from batchnorm.arguments import (
    a_device_with_values,
    a_flag,
    a_floating_dtype,
    a_function,
    a_module_with_values,
    a_path,
    a_process_group,
    a_string,
    arguments,
    batches,
    number,
    or_function,
    some_names,
    whole,
    word,
)
from batchnorm.errors import BatchNormError
from batchnorm.models.find import batch_norm_layers
from batchnorm.models.recalibration.collect import rms as rms
from batchnorm.models.recalibration.forwards import Caller
from batchnorm.models.recalibration.ranks import Ranks
from batchnorm.models.recalibration.result import RecalibratedLayer as RecalibratedLayer
from batchnorm.models.recalibration.result import Recalibration as Recalibration
from batchnorm.models.recalibration.result import Upstream
from batchnorm.models.recalibration.run import Settings, peek
from batchnorm.models.recalibration.settling_run import SettlingRun
from batchnorm.models.recalibration.streaming_run import StreamingRun
from batchnorm.models.recalibration.targets import Select, Target, Targets, unwrapped
from batchnorm.models.recalibration.totals import Variance
from batchnorm.models.recalibration.writing import write
from batchnorm.models.state import held, restore

ForwardFn = Callable[[nn.Module, Any], Any]


@arguments(
    model=a_module_with_values,
    loader=batches,
    forward_fn=a_function,
    variance=word(Variance),
    upstream=word(Upstream),
    exact=a_flag,
    until=number("a positive number of standard deviations", lambda v: v > 0),
    max_samples=whole(1),
    select=or_function(some_names),
    bank=a_string,
    resume=a_path,
    progress=a_flag,
    device=a_device_with_values,
    process_group=a_process_group,
    apply_to=a_module_with_values,
    channels_last=a_flag,
    autocast=a_floating_dtype,
    memory=whole(1, "a positive number of bytes"),
)
def recalibrate(
    model: nn.Module,
    loader: Iterable[Any],
    *,
    forward_fn: ForwardFn | None = None,
    variance: Variance = "total",
    upstream: Upstream = "population",
    exact: bool = False,
    until: float | None = None,
    max_samples: int | None = None,
    select: Callable[[str, _BatchNorm], bool] | Iterable[str] | None = None,
    bank: str | None = None,
    resume: str | Path | None = None,
    progress: bool = True,
    device: torch.device | str | None = None,
    process_group: Any = None,
    apply_to: nn.Module | None = None,
    channels_last: bool = False,
    autocast: torch.dtype | None = None,
    memory: int | None = None,
) -> Recalibration:
    """Re-estimate the running statistics of every batch norm layer from data, weights unchanged.

    Example:
        >>> import torch, batchnorm
        >>> model = torch.nn.Sequential(torch.nn.BatchNorm1d(3))
        >>> data = torch.randn(200, 3) * 2 + 5
        >>> result = batchnorm.recalibrate(model, data.split(64))
        >>> result.samples, torch.allclose(model[0].running_mean, data.mean(0))
        (200, True)

    The model runs in eval mode without gradients (dropout is off). Moments are pooled in float64
    with counts, so ragged batches weigh what they should; layers used several times pool all uses;
    frozen layers and layers no forward reached are left alone; batches that are not finite are
    left out and named. If anything raises, or the process is interrupted, the model is exactly as
    it was, and in either case nothing but batch norm buffers changes.

    Args:
        model: changed in its batch norm buffers only; found inside `AveragedModel`, DDP and
            compiled modules too.
        loader: batches; a tensor is passed as it is, of a tuple or list the first element, a dict
            as keyword arguments. A generator serves.
        forward_fn: `forward_fn(model, batch)` for anything else; may call the model several times.
        variance: "total" (of all values, the law of total variance) or "within" (the mean of the
            batches' variances, weighted by count, as torch's EMA converges to).
        upstream: "population" settles each layer on what it receives at inference: all batches
            meet at each layer if their activations fit in memory. If not, a part of them does, spread
            over the loader where it can be indexed: never more than 3 forwards of the data. What is
            read, what standard error that leaves and what exactness costs is said before.
            "batch" lets layers normalise with their batches (PreciseBN): one pass, constant memory.
        exact: read all data, in a pass per layer where their activations do not fit in memory, and iterate
            layers used several times until they settle. A run with `resume` is exact too.
        until: stop once the worst layer's standard error is below this many standard deviations,
            after 8 batches at least. Data in a recognisable order are read to the end.
        max_samples: stop after the batch that reaches this many samples.
        select: names of layers, or `select(name, layer)`; the others stay as they are.
        bank: write the statistics of this bank, in the layers that have it.
        resume: a file to continue from after a kill, with the same result to the bit; the loader must give the
            same batches again. Removed when done. Of several processes each writes one of its own beside it.
        progress: say on stderr what part is read, if not all; a progress bar, if stderr is a terminal.
        device: where batches go; by default where the model is.
        process_group: merge the moments of all processes of this torch.distributed group; some may have no data.
        apply_to: write to this copy of the model instead.
        channels_last: give images to the model in this memory format.
        autocast: run under `torch.autocast` with this dtype, such as `torch.bfloat16`.
        memory: bytes that the activations of what is read may take; by default 512 MiB, or what 32 batches take
            if that is more, and never more than a quarter of what is free. An exact run takes half of it.

    Raises:
        BatchNormError: no batch norm layer, an empty loader, no finite batch, one value per
            channel, an argument that is not legal; nothing has changed.

    Source: Wu and Johnson, "Rethinking 'Batch' in BatchNorm" (2021), PreciseBN, for upstream="batch".
    """
    ranks = Ranks.of(process_group)
    with ranks.telling():
        inner = unwrapped(model)
        caller = Caller(inner, forward_fn, None if device is None else torch.device(device), channels_last, autocast)
        if any(map(is_lazy, itertools.chain(inner.parameters(), inner.buffers()))):
            loader = _materialise(caller, loader)
        targets = Targets.of(inner, select, bank)
        written = targets.active if apply_to is None else _same_layers(targets, unwrapped(apply_to), select, bank)
    settings = Settings(variance, upstream, until, max_samples, memory, exact or resume is not None)
    with held(inner, but=[b for t in targets.active.values() for b in t.layer.buffers(recurse=False)]):
        for target in targets.active.values():
            if bank is not None:
                target.layer.active_bank = bank  # pyright: ignore
        with ranks.telling():
            kind = SettlingRun if upstream == "population" else StreamingRun
            run = kind(caller, loader, targets.active, settings, ranks, resume, progress)
            outcome = run.outcome()
        restore(run.before)
        result = write(outcome, targets, written, variance, upstream, bank)
    run.checkpoint.done()
    return result


def fixed_point(
    model: nn.Module, loader: Iterable[Any], forward_fn: ForwardFn | None, select: Select
) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """The mean and the biased variance that each layer receives once all layers store what they receive.

    The caller holds the model (`held`), whose buffers this leaves changed.
    """
    targets = {n: replace(t, biased=True) for n, t in Targets.of(model, select, None).active.items()}
    settings = Settings("total", "population", None, None, None, verb="adapt")
    run = SettlingRun(Caller(model, forward_fn, loader="data"), loader, targets, settings, Ranks(), None, True)
    outcome = run.outcome()
    found: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
    for name, totals in outcome.totals.items():
        mean, var = totals.mean, totals.variance("total", 0)
        found[name] = (mean, var) if targets[name].centres else (torch.zeros_like(mean), var + mean.square())
    return found


def _materialise(caller: Caller, loader: Iterable[Any]) -> Iterable[Any]:
    """Give lazy layers their shapes, as the first forward of any kind would."""
    first, loader = peek(loader)
    with held(caller.model):
        caller(first, 0)
    return loader


def _same_layers(targets: Targets, other: nn.Module, select: Select, bank: str | None) -> dict[str, Target]:
    """The same layers in another copy of the model."""
    if not any(layer.running_mean is not None for layer in batch_norm_layers(other).values()):
        raise BatchNormError("apply_to must be a copy of the model; it has no batch norm layer with running statistics")
    theirs = Targets.of(other, select, bank).active
    for name, target in targets.active.items():
        size = target.stat("running_mean").shape
        if name not in theirs or theirs[name].stat("running_mean").shape != size:
            raise BatchNormError(
                f"apply_to must be a copy of the model; it has no layer {name!r} of {size[0]} channels"
            )
    return theirs
