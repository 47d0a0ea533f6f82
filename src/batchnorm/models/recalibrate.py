"""Re-estimate population statistics at fixed weights: exact moments, all or nothing, with an error bar."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parameter import is_lazy

from batchnorm.errors import BatchNormError, check
from batchnorm.models.batches import count_samples, progress_bar, tensors
from batchnorm.models.recalibration.collect import Collected as Collected
from batchnorm.models.recalibration.collect import collecting as collecting
from batchnorm.models.recalibration.collect import rms as rms
from batchnorm.models.recalibration.exchangeable import ordered
from batchnorm.models.recalibration.fixed_point import FixedPoint, distance, estimate
from batchnorm.models.recalibration.forwards import Caller, Order, Visits
from batchnorm.models.recalibration.memory import available, frontier
from batchnorm.models.recalibration.quiet import held, restore, snapshot
from batchnorm.models.recalibration.ranks import Ranks
from batchnorm.models.recalibration.result import RecalibratedLayer as RecalibratedLayer
from batchnorm.models.recalibration.result import Recalibration as Recalibration
from batchnorm.models.recalibration.resume import Checkpoint
from batchnorm.models.recalibration.source import Held, ahead, fingerprint, in_stored_order, limited, offered
from batchnorm.models.recalibration.streaming import Stream
from batchnorm.models.recalibration.targets import Select, Target, Targets, shards, unwrapped
from batchnorm.models.recalibration.totals import FEWEST_BATCHES, Totals, errors_in_std

ForwardFn = Callable[[nn.Module, Any], Any]
_MOST_THREADS = 1024


def recalibrate(
    model: nn.Module,
    loader: Iterable[Any],
    *,
    forward_fn: ForwardFn | None = None,
    variance: str = "total",
    upstream: str = "population",
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
            meet at each layer if their activations fit in memory, else they pass once per layer.
            "batch" lets layers normalise with their batches (PreciseBN): one pass, constant memory.
        until: stop once the worst layer's standard error is below this many standard deviations,
            after 8 batches at least. Data in a recognisable order are read to the end.
        max_samples: stop after the batch that reaches this many samples.
        select: names of layers, or `select(name, layer)`; the others stay as they are.
        bank: write the statistics of this bank, in the layers that have it.
        resume: a file to continue from after a kill, with the same result to the bit; the loader must give the
            same batches again. Removed when done.
        progress: a progress bar, if stderr is a terminal.
        device: where batches go; by default where the model is.
        process_group: merge the moments of all processes of this torch.distributed group.
        apply_to: write to this copy of the model instead.
        channels_last: give images to the model in this memory format.
        autocast: run under `torch.autocast` with this dtype, such as `torch.bfloat16`.
        memory: bytes that the activations of all batches may take; by default half of what is free.

    Raises:
        BatchNormError: no batch norm layer, an empty loader, no finite batch, one value per
            channel, an argument that is not legal; nothing has changed.

    Source: Wu and Johnson, "Rethinking 'Batch' in BatchNorm" (2021), PreciseBN, for upstream="batch".
    """
    check(variance in ("total", "within"), "variance", "'total' or 'within'", repr(variance))
    check(upstream in ("population", "batch"), "upstream", "'population' or 'batch'", repr(upstream))
    check(until is None or until > 0, "until", "a positive number of standard deviations", until)
    check(max_samples is None or max_samples >= 1, "max_samples", "1 or more", max_samples)
    check(memory is None or memory > 0, "memory", "a positive number of bytes", memory)
    check(isinstance(model, nn.Module), "model", "a torch.nn.Module", type(model).__name__)
    check(isinstance(loader, Iterable), "loader", "an iterable of batches", type(loader).__name__)
    inner = unwrapped(model)
    caller = Caller(inner, forward_fn, None if device is None else torch.device(device), channels_last, autocast)
    if any(map(is_lazy, itertools.chain(inner.parameters(), inner.buffers()))):
        loader = _materialise(caller, loader)
    targets = Targets.of(inner, select, bank)
    written = targets.active if apply_to is None else _same_layers(targets, unwrapped(apply_to), select, bank)
    settings = _Settings(variance, upstream, until, max_samples, memory)
    ranks = Ranks.of(process_group)
    with held(inner, [t.layer for t in targets.active.values()]):
        for target in targets.active.values():
            if bank is not None:
                target.layer.active_bank = bank  # pyright: ignore[reportAttributeAccessIssue]
        run = _Run(caller, loader, targets.active, settings, ranks, resume, progress)
        try:
            outcome = run.population() if upstream == "population" else run.batch()
        except BaseException as error:
            ranks.fail(error)
            raise
        restore(run.before)
        result = _write(outcome, targets, written, variance, upstream, bank)
    run.checkpoint.done()
    return result


@dataclass(frozen=True)
class _Settings:
    variance: str
    upstream: str
    until: float | None
    max_samples: int | None
    memory: int | None


@dataclass
class _Outcome:
    """What a run found, before it is written."""

    totals: dict[str, Totals]
    residual: dict[str, float]
    samples: int
    batches: int
    offered: int | None
    skipped: tuple[tuple[int, str], ...]
    sorted: bool
    grouped: bool
    stored_order: bool
    converged: bool = True
    passes: int = 1


class _Run:
    """One call of `recalibrate`, with the model held still."""

    def __init__(
        self,
        caller: Caller,
        loader: Iterable[Any],
        targets: dict[str, Target],
        settings: _Settings,
        ranks: Ranks,
        resume: str | Path | None,
        shown: bool,
    ) -> None:
        self.caller, self.targets, self.settings, self.ranks = caller, targets, settings, ranks
        self.before = snapshot(t.layer for t in targets.values())
        identity: dict[str, Any] = {}
        if resume is not None:
            first, loader = peek(loader)
            whole = [*caller.model.parameters(), *caller.model.buffers()]
            identity["weights"] = fingerprint(whole, 1 << 40)
            identity["settings"] = repr((settings, list(targets)))
            identity["data"] = fingerprint(tensors(first))
        self.loader, self.shown = loader, shown
        self.checkpoint = Checkpoint(resume, identity)
        self.visits = Visits()
        self.order = Order(steady=not shards(caller.model))
        self.eps = torch.cat(
            [torch.full((t.stat("running_mean").numel(),), t.layer.eps, dtype=torch.float64) for t in targets.values()]
        )

    def batch(self) -> _Outcome:
        """Layers normalise with their batches: stream, and stop when the error bar is small enough."""
        stream = Stream.over(self.targets)
        stream.order = self.order
        stream.load(self.checkpoint.part("stream", {}))
        batches = limited(ahead(self.loader), self.settings.max_samples)
        start, code = stream.read, 0
        goal = FEWEST_BATCHES
        ended = False
        pooled = stream.totals
        with self.visits.watching(self.targets), progress_bar(self.loader, self.shown, "recalibrating") as advance:
            while not ended:
                batch = next(batches, _END)
                ended = batch is _END
                if not ended:
                    code = fingerprint(tensors(batch), 1 << 12) ^ (code << 1 & 0xFFFFFFFF)
                    advance(1)
                    if start:
                        start -= 1
                        if not start and code != stream.code:
                            raise BatchNormError("resume must meet the same batches again; the loader gave others")
                        continue
                    stream.add(self.caller, self.visits, batch, count_samples(batch))
                    stream.code = code
                    self.checkpoint.save(stream=stream.state)
                if self.settings.until is not None and (ended or stream.read >= goal):
                    # Every process comes here after the same number of batches, or when it has no more.
                    goal = max(goal + 1, goal + goal // 8)
                    if self._enough(stream, ended):
                        break
                    ended = ended and self.ranks.alone
        _close(batches)
        pooled = self.ranks.pooled(stream.totals)
        counts = self.ranks.gathered((stream.samples, stream.batches, stream.read))
        reached = self.ranks.union(list(stream.reached))
        if not any(read for _, _, read in counts):
            raise BatchNormError("loader must yield at least one batch; it was empty")
        if not any(good for _, good, _ in counts):
            raise BatchNormError(
                "loader must give finite activations in at least one batch; NaN or infinity reached layer "
                f"{stream.skipped[0].layer!r} in all {stream.read}"
            )
        flags = self.ranks.gathered((ordered(stream.totals.sketches), stream.alike.grouped()))
        found = {name: pooled.layer(where) for name, where in stream.layout.where.items() if name in reached}
        return _Outcome(
            found,
            dict.fromkeys(found, math.nan),
            sum(samples for samples, _, _ in counts),
            sum(good for _, good, _ in counts),
            self._offered(ended, stream.samples),
            tuple((s.number, s.layer) for s in stream.skipped),
            any(is_sorted for is_sorted, _ in flags),
            any(is_grouped for _, is_grouped in flags),
            in_stored_order(self.loader),
        )

    def _enough(self, stream: Stream, ended: bool) -> bool:
        states = self.ranks.gathered((ended, ordered(stream.totals.sketches)))
        if all(end for end, _ in states):
            return True
        pooled = self.ranks.pooled(stream.totals)
        worst = float(errors_in_std(pooled, self.eps, self.settings.variance).max())
        return worst <= (self.settings.until or 0) and not any(is_sorted for _, is_sorted in states)

    def population(self) -> _Outcome:
        """Layers normalise with what is stored: settle them on ever more batches until the error bar is small."""
        budget = self.settings.memory
        if budget is None:
            budget = available(self.caller.where) // 2
        data = Held(self.loader, self.settings.max_samples, budget // 2)
        until = self.settings.until
        try:
            data.read(FEWEST_BATCHES if until is not None else None)
            if not len(data):
                raise BatchNormError("loader must yield at least one batch; it was empty")
            with self.visits.watching(self.targets):
                first = next(batch for _, batch in data.replay())
                wide = frontier(self.caller, self.visits, first, self.order)
                slots = torch.get_num_threads() if self.caller.where.type == "cpu" and self.ranks.alone else 1
                solver = FixedPoint(
                    self.caller,
                    self.visits,
                    self.targets,
                    self.settings.variance,
                    self.order,
                    self.ranks,
                    self.checkpoint,
                )
                while True:
                    needed = wide * sum(data.sizes) // max(1, data.sizes[0])
                    fits = self.order.steady and needed <= budget and len(data) <= _MOST_THREADS
                    solver.slots = max(1, min(slots, len(data)))
                    settled = solver.solve(data, all(self.ranks.gathered(fits)))
                    in_order = any(self.ranks.gathered(_in_order(settled.totals)))
                    if all(self.ranks.gathered(data.exhausted)) or until is None:
                        break
                    worst = max(self._error(name, totals) for name, totals in settled.totals.items())
                    if worst <= until and not in_order:
                        break
                    grow = 1.1 * (worst / until) ** 2 if math.isfinite(worst) else 2.0
                    before = len(data)
                    data.read(None if in_order else math.ceil(before * min(max(grow, 1.25), 64.0)))
                    if not any(self.ranks.gathered(len(data) > before)):
                        break
        finally:
            data.close()
        counts = self.ranks.gathered((settled.samples, settled.batches))
        return _Outcome(
            settled.totals,
            settled.residual,
            sum(samples for samples, _ in counts),
            sum(batches for _, batches in counts),
            self._offered(data.exhausted, settled.samples),
            tuple((s.number, s.layer) for s in settled.skipped),
            in_order,
            any(self.ranks.gathered(any(alike.grouped() for alike in settled.alike))),
            in_stored_order(self.loader),
            settled.converged,
            settled.rounds,
        )

    def _error(self, name: str, totals: Totals) -> float:
        eps = torch.full_like(totals.mean, self.targets[name].layer.eps)
        return float(errors_in_std(totals, eps, self.settings.variance))

    def _offered(self, ended: bool, samples: int) -> int | None:
        here = offered(self.loader)
        if here is None and ended and self.settings.max_samples is None:
            here = samples
        everywhere = self.ranks.gathered(here)
        return None if None in everywhere else sum(everywhere)


_END = object()


def _in_order(totals: dict[str, Totals]) -> bool:
    rows = [t.sketches for t in totals.values()]
    fewest = min(map(len, rows))
    return ordered([torch.cat([row[k] for row in rows]) for k in range(fewest)])


def _close(batches: Iterator[Any]) -> None:
    close = getattr(batches, "close", None)
    if close is not None:
        close()


def peek(loader: Iterable[Any]) -> tuple[Any, Iterable[Any]]:
    """The first batch, and a loader that still gives it."""
    iterator = iter(loader)
    first = next(iterator, _END)
    if first is _END:
        raise BatchNormError("loader must yield at least one batch; it was empty")
    return first, itertools.chain([first], iterator) if iterator is loader else loader


@torch.no_grad()
def _materialise(caller: Caller, loader: Iterable[Any]) -> Iterable[Any]:
    """Give lazy layers their shapes, as the first forward of any kind would."""
    first, loader = peek(loader)
    flags = {module: module.training for module in caller.model.modules()}
    try:
        for module in flags:
            module.training = False
        caller(first)
    finally:
        for module, flag in flags.items():
            module.training = flag
    return loader


def _same_layers(targets: Targets, other: nn.Module, select: Select, bank: str | None) -> dict[str, Target]:
    """The same layers in another copy of the model."""
    theirs = Targets.of(other, select, bank).active
    for name, target in targets.active.items():
        size = target.stat("running_mean").shape
        if name not in theirs or theirs[name].stat("running_mean").shape != size:
            raise BatchNormError(f"apply_to must be a copy of the model; it has no layer {name!r} of {size[0]} channels")
    return theirs


def _write(
    outcome: _Outcome, targets: Targets, written: dict[str, Target], variance: str, upstream: str, bank: str | None
) -> Recalibration:
    """Put the statistics in place, all or none, and say what that changed."""
    layers = [written[name].layer for name in outcome.totals]
    before = snapshot(layers)
    banks = [(layer, layer.__dict__.get("active_bank")) for layer in layers]
    rows: dict[str, RecalibratedLayer] = {}
    try:
        for layer in layers if bank is not None else ():
            layer.active_bank = bank  # pyright: ignore[reportAttributeAccessIssue]
        for name, totals in outcome.totals.items():
            target = written[name]
            mean, var = estimate(target, totals, variance)
            rows[name] = _row(target, totals, variance, outcome.residual[name])
            target.finish(mean, var, outcome.batches, float(totals.count[0]))
    except BaseException:
        restore(before)
        raise
    finally:
        for layer, own in banks if bank is not None else ():
            layer.active_bank = own  # pyright: ignore[reportAttributeAccessIssue]
    return Recalibration(
        outcome.samples,
        outcome.batches,
        outcome.offered,
        upstream,
        rows,
        tuple(name for name in targets.active if name not in rows),
        targets.frozen,
        outcome.skipped,
        None if outcome.batches < FEWEST_BATCHES else not (outcome.sorted or outcome.grouped),
        outcome.sorted,
        outcome.grouped,
        outcome.converged,
        outcome.passes,
        outcome.stored_order,
        before,
    )


def _row(target: Target, totals: Totals, variance: str, residual: float) -> RecalibratedLayer:
    mean, var = estimate(target, totals, variance)
    moved = distance(target, mean, var)
    if not target.centres:
        mean, var = torch.zeros_like(mean), var + mean.square()
    old_mean, old_var = target.read()
    eps = target.layer.eps
    shift = (mean - old_mean) / (old_var.clamp_min(0) + eps).sqrt()
    ratio = ((var + eps) / (old_var.clamp_min(0) + eps)).log().mean().exp()
    of_mean, of_var = totals.standard_errors(variance)
    error = float(errors_in_std(totals, torch.full_like(mean, eps), variance))
    known = math.isfinite(error)
    return RecalibratedLayer(
        int(totals.count[0]),
        rms(shift),
        float(ratio),
        moved,
        error if known else math.nan,
        residual,
        shift,
        of_mean if known else torch.full_like(of_mean, torch.nan),
        of_var if known else torch.full_like(of_var, torch.nan),
    )
