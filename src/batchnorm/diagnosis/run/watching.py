"""The verb: hooks that look at every k-th step, warn once, and report."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from batchnorm.arguments import a_flag, a_module_with_shapes, arguments, instance, whole
from batchnorm.diagnosis.findings import Finding, apply_rules
from batchnorm.diagnosis.model.layer import trains_affine
from batchnorm.diagnosis.report import Report
from batchnorm.diagnosis.run.distances import hold, moved, sampled
from batchnorm.diagnosis.run.evidence import Lag, LayerRun, Point, RunEvidence, gain, window
from batchnorm.diagnosis.run.modes import Owner, Tally, parameters_of, parent_of, parts
from batchnorm.diagnosis.run.ranks import compare_ranks, world
from batchnorm.diagnosis.run.rules import RUN_RULES
from batchnorm.diagnosis.run.sinks import a_sink, open_sink
from batchnorm.diagnosis.run.subject import RunSubject
from batchnorm.layers import BatchNorm
from batchnorm.layers.held import outside
from batchnorm.layers.recompute import recomputing
from batchnorm.models.find import tracking_layers
from batchnorm.models.modes import is_frozen
from batchnorm.models.momentum import fades_from_start, is_plain, next_momentum

FIRST = 5  # steps that are all looked at
RANKS_EVERY = 10  # looks


class BatchNormWarning(UserWarning):
    """Something that a run does to its running statistics, at the step it happened."""


@arguments(
    model=a_module_with_shapes,
    optimizer=instance(torch.optim.Optimizer, "a torch.optim.Optimizer"),
    every=whole(1),
    to=a_sink,
    steps=whole(1),
    compare_processes=a_flag,
)
def watch(
    model: nn.Module,
    optimizer: torch.optim.Optimizer | None = None,
    *,
    every: int = 10,
    to: Any = None,
    steps: int | None = None,
    compare_processes: bool = True,
) -> Watch:
    """Watch a training run's running statistics, and warn once, at the step where something goes wrong.

    Example:
        >>> import torch, batchnorm
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.BatchNorm1d(8))
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> with batchnorm.watch(model, optimizer) as report:
        ...     for _ in range(60):
        ...         model(torch.randn(64, 4)).square().mean().backward()
        ...         optimizer.step()
        ...         optimizer.zero_grad()
        >>> report.ok, report.evidence.steps
        (True, 60)

    Every forward is counted, of the model or of a part of it, with its mode and whether it has gradients;
    the layers' inputs are looked at in the first five steps and then in every `every`-th. Nothing in the
    model changes but hooks, which `close()` (or leaving the `with`) takes off.

    Args:
        model: as it is trained.
        optimizer: tells where a step ends and what it trains; without one a step ends where the same part is
            called in train mode again, and training in eval is not seen.
        every: look at one step in this many.
        to: a path for JSON lines, or a TensorBoard `SummaryWriter`.
        steps: how many are planned: too few for the momentum is then said at once.
        compare_processes: in a distributed run, gather the means of all ranks at every tenth look
            (every rank must watch).

    Returns:
        A report that grows: `.ok`, `.findings`, `.layers[name].timeline`, `.to_html(path)`.
    """
    return Watch(model, optimizer, every, to, steps, compare_processes)


class Watch(Report):
    """The report of a run that may still go on; see `watch`."""

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer | None,
        every: int,
        to: Any,
        steps: int | None,
        compare_processes: bool,
    ) -> None:
        self._modules = tracking_layers(model)
        layers = {name: _start(name, m) for name, m in self._modules.items()}
        self.run = RunEvidence(layers, planned=steps, ranks=world() if compare_processes else 1)
        super().__init__(RunSubject(self.run), [])
        self._every, self._optimizer = every, optimizer
        self._owners = {name: Owner(m, parent_of(model, name)) for name, m in self._modules.items()}
        self._tallies = {name: Tally() for name in self._modules}
        self._parts = parts(model, self._modules)
        self._write, self._end_sink = open_sink(to)
        self._looks = 0
        self._inside: list[str] = []  # parts whose forward runs
        self._call: FrameType | None = None  # that of the outermost of them
        self._counters = self._read_counters()
        self._seen: dict[str, tuple[Tensor, Tensor]] = {}
        self._held: dict[str, tuple[Tensor, Tensor]] = {}
        self._open: set[str] = set()  # parts called since the last step ended
        self._entered: set[str] = set()  # parts called with gradients, ever
        self._forwards_in_step = 0
        self._silent = self._training = self._moved_silently = False
        self._evaluated = False
        self._said: set[str] = set()
        self._handles: list[Any] = []
        for name, part in self._parts.items():
            self._handles.append(part.register_forward_pre_hook(_Hook(self._enter, name)))
            self._handles.append(part.register_forward_hook(_Hook(self._leave, name), always_call=True))
        for name, module in self._modules.items():
            self._handles.append(module.register_forward_pre_hook(_Hook(self._look_at, name)))
            self._handles.append(module.register_forward_hook(_Hook(self._finish, name)))
        if optimizer is not None:
            self._handles.append(optimizer.register_step_post_hook(_Hook(lambda *_: self._end_of_step())))

    def __enter__(self) -> Watch:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Take a last look, and the hooks off; may be called again."""
        if self.run.closed:
            return
        if self._open:
            self._end_of_step()
        for handle in self._handles:
            handle.remove()
        self.run.closed = True
        try:
            self._look(final=True)
        finally:
            self._end_sink()

    def _sampling(self) -> bool:
        step = self.run.steps + 1
        return step <= FIRST or step % self._every == 0

    def _enter(self, name: str, part: nn.Module, args: Any) -> None:
        if torch.compiler.is_compiling():
            return
        # What is entered again was left by an interrupt, which no hook sees, unless its call still runs: then it
        # calls itself, as Lightning's modules do under DDP.
        if name in self._inside and not _runs(self._call):
            del self._inside[self._inside.index(name) :]
        if not self._inside:
            self._call = sys._getframe(2)  # past the hook
        self._inside.append(name)
        if len(self._inside) > 1 or recomputing():
            return
        self._training, self._silent = part.training, not torch.is_grad_enabled()
        if self._silent:
            if not part.training:
                self._evaluation()
            return
        self._entered.add(name)
        if not part.training:
            return
        if name in self._open and self._optimizer is None:
            self._end_of_step()
        self._open.add(name)
        # Parts are called as the loop likes, a discriminator twice a step; only the model's forwards are judged.
        self._forwards_in_step += name == ""
        self.run.forwards += 1

    def _leave(self, name: str, *_: Any) -> None:
        if name in self._inside:
            last = len(self._inside) - 1 - self._inside[::-1].index(name)
            del self._inside[last:]
        if not self._inside:
            self._call = None
        if not self._inside and self._silent:
            self._silent = False
            if self._moved_silently:
                self._moved_silently = False
                self._judge()

    def _evaluation(self) -> None:
        """The first batch of an evaluation: say which layers' statistics lag now."""
        if self._evaluated or not self.run.steps:
            return
        self._evaluated = True
        self.run.evaluations += 1
        for layer in self.run.layers.values():
            if layer.lagging:
                layer.lags.append(Lag(self.run.steps, layer.drift, layer.standard_error))
        self._judge()

    def _look_at(self, name: str, module: _BatchNorm, args: tuple[Any, ...]) -> None:
        if torch.compiler.is_compiling() or getattr(module, "paused", False):
            return
        layer, tally = self.run.layers[name], self._tallies[name]
        if not module.training:
            if torch.is_grad_enabled() and not recomputing() and not is_frozen(module):
                trains = _requires_grad(args) or trains_affine(module) is True
                tally.eval += 1
                tally.stored += trains
                tally.whole += trains and bool(self._inside) and not self._training
            return
        if not module.track_running_stats:
            # batchnorm.pause switches it off for a while; only what stays off is said.
            layer.untracked = layer.untracked or (bool(self._inside) and self._training and not _paused(module))
            return
        if is_frozen(module):
            return
        if recomputing():
            layer.recomputed += 1
            return
        layer.calls += 1
        silent = self._silent if self._inside else not torch.is_grad_enabled()
        if silent:
            # update_bn and the like average on purpose, with momentum None.
            momentum: Any = module.momentum
            moves = momentum is not None and (callable(momentum) or momentum > 0)
            layer.silent_calls += moves
            self._moved_silently = self._moved_silently or moves
            layer.silent_in_eval += moves and bool(self._inside) and not self._training
            return
        tally.batch += 1
        if self._sampling() and name not in self._seen:
            if isinstance(module, BatchNorm) or module.momentum == 0:
                if args:
                    self._seen[name] = sampled(module, args[0].detach())
            else:
                self._held[name] = hold(module)

    def _finish(self, name: str, module: _BatchNorm, *_: Any) -> None:
        held = self._held.pop(name, None)
        if held is not None and not torch.compiler.is_compiling():
            self._seen[name] = moved(module, *held)

    def _end_of_step(self) -> None:
        sampling = self._sampling()
        self.run.steps += 1
        count = self._forwards_in_step
        self._forwards_in_step, self._evaluated = 0, False
        self._open.clear()
        for name, tally in self._tallies.items():
            self.run.layers[name].end_step(self.run.steps, tally)
            tally.clear()
        if self._optimizer is not None:
            self._inside.clear()
            self._call = None
            before = self.run.forwards_a_step
            self.run.forwards_a_step = float(count) if before is None else before + (count - before) / self.run.steps
        if sampling:
            self._look()

    @torch.no_grad()
    def _look(self, final: bool = False) -> None:
        """Read counters and finiteness of all layers at once, add points, judge."""
        self._looks += 1
        counters, old = self._read_counters(), self._counters
        self._counters = counters
        finite = torch.stack([_finite(m) for m in self._modules.values()]).tolist()
        points = {}
        self._own()
        for index, (name, module) in enumerate(self._modules.items()):
            layer = self.run.layers[name]
            layer.momentum, layer.finite = next_momentum(module), layer.finite and bool(finite[index])
            layer.frozen, layer.trains_affine = is_frozen(module), trains_affine(module)
            layer.updates += max(counters[name] - old[name], 0)
            skipped = getattr(module, "num_batches_skipped", None)
            layer.skipped = 0 if skipped is None else int(skipped)
            if name in self._seen:
                layer.look(*(value.double().cpu() for value in self._seen[name]))
                weight = gain(module)
                size = window(weight, counters[name])
                numbers = (layer.drift, layer.variance_log_ratio, weight, size, counters[name], layer.skipped)
                points[name] = Point(self.run.steps, *numbers)
                layer.note(points[name])
        self._seen, self._held = {}, {}
        if self.run.ranks > 1 and (self._looks == 1 or self._looks % RANKS_EVERY == 0) and not final:
            compare_ranks(self._modules, self.run)
        if points:
            self._write(self.run.steps, points)
        self._judge()

    def _own(self) -> None:
        """Which layers the optimizer trains; of the others in a part that it trains, which nothing else does."""
        if self._optimizer is None:
            return
        held = parameters_of(self._optimizer)
        trained = [n for n in self._entered if any(id(p) in held for p in self._parts[n].parameters())]
        for name, owner in self._owners.items():
            layer = self.run.layers[name]
            layer.learns = owner.trained_by(held)
            inside = any(part == "" or name.startswith(f"{part}.") for part in trained)
            layer.still = not layer.learns and inside and not owner.changed()

    def _judge(self) -> None:
        self._findings = apply_rules(RUN_RULES, self.run)
        for finding in self._findings:
            self._say(finding)

    def _say(self, finding: Finding) -> None:
        # Once a code: the report lists all layers.
        if finding.code in self._said or finding.severity == "note":
            return
        self._said.add(finding.code)
        where = f" in layer {finding.layer!r}" if finding.layer else ""
        text = f"{finding.code}{where}, step {self.run.steps}: {finding.message}. Fix: {finding.fix}"
        warnings.warn(text, BatchNormWarning, stacklevel=2)

    def _read_counters(self) -> dict[str, int]:
        tensors = [m.num_batches_tracked for m in self._modules.values()]
        if any(t is None for t in tensors):
            return {n: 0 if t is None else int(t) for n, t in zip(self._modules, tensors, strict=True)}
        return dict(zip(self._modules, torch.stack(tensors).tolist(), strict=True))  # pyright: ignore


class _Hook:
    """A hook that knows its module's name; a copy of the model shares it, a file has one that does nothing."""

    def __init__(self, method: Callable[..., None], *name: str) -> None:
        self.method, self.name = method, name

    def __call__(self, *given: Any) -> None:
        self.method(*self.name, *given)

    def __deepcopy__(self, memo: Any) -> _Hook:
        return self

    def __reduce__(self) -> Any:
        # Of the standard library, so that the file loads where this package is not.
        return getattr, (nullcontext(), "__exit__")


def _requires_grad(args: tuple[Any, ...]) -> bool:
    return bool(args) and isinstance(args[0], Tensor) and args[0].requires_grad


def _start(name: str, module: _BatchNorm) -> LayerRun:
    mean, var = module.running_mean, module.running_var
    layer = LayerRun(name, next_momentum(module), is_frozen(module), trains_affine(module))
    layer.fades, layer.plain = fades_from_start(module), is_plain(module)
    layer.started_initial = bool((mean == 0).all() and (var == 1).all())  # pyright: ignore
    return layer


def _runs(call: FrameType | None) -> bool:
    """Whether a call is one of those that led here."""
    frame = sys._getframe(1)
    while frame is not None and frame is not call:
        frame = frame.f_back
    return frame is not None


def _paused(module: _BatchNorm) -> bool:
    return not {"paused", "track_running_stats"}.isdisjoint(outside(module))


def _finite(module: _BatchNorm) -> Tensor:
    return torch.isfinite(module.running_mean).all() & torch.isfinite(module.running_var).all()  # pyright: ignore
