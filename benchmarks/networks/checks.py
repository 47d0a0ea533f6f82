"""What each verb must do to a network, each number computed a second time in another way."""

from __future__ import annotations

import copy
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils import _pytree as pytree

import batchnorm
from batchnorm.interop.trainers import timm as trainers_timm
from batchnorm.models import batch_norm_layers


class Fault(Exception):
    """A number that is wrong, or a change that should not be."""


@dataclass
class Case:
    """A network with data; spent takes the seconds of a verb itself, without its checks."""

    model: nn.Module
    batches: list[Any]
    spent: list[float] = field(default_factory=list[float])

    @contextmanager
    def timed(self) -> Iterator[None]:
        begun = time.perf_counter()
        yield
        self.spent.append(time.perf_counter() - begun)


def forward(model: nn.Module, batch: Any) -> Any:
    """The model on one batch, whatever its shape."""
    if isinstance(batch, dict):
        return model(**batch)
    return model(*batch) if isinstance(batch, (tuple, list)) else model(batch)


def once(model: nn.Module, batch: Any) -> Any:
    """The same, with the same random numbers each time, and without gradients."""
    torch.manual_seed(0)
    with torch.no_grad():
        return forward(model, batch)


def double(batch: Any) -> Any:
    """The batch in float64."""

    def wide(leaf: Any) -> Any:
        return leaf.double() if isinstance(leaf, Tensor) and leaf.is_floating_point() else leaf

    return pytree.tree_map(wide, batch)


def outputs(given: Any) -> list[Tensor]:
    """The floating-point tensors of an output, of dicts and objects with attributes too."""
    if isinstance(given, dict):
        given = list(given.values())
    found = pytree.tree_leaves(given)
    return [leaf for leaf in found if isinstance(leaf, Tensor) and leaf.is_floating_point()]


def apart(a: Any, b: Any) -> float:
    """The largest difference of two outputs, each tensor relative to its largest value."""
    pairs = [(x.double(), y.double()) for x, y in zip(outputs(a), outputs(b), strict=True) if x.numel()]
    return max((float((x - y).abs().max() / x.abs().max().clamp_min(1e-30)) for x, y in pairs), default=0.0)


def demand(good: bool, words: str) -> None:
    if not good:
        raise Fault(words)


def fingerprint(model: nn.Module) -> dict[str, int]:
    """Every parameter and buffer, the not persistent ones too, every flag, every attribute, every hook."""
    found: dict[str, int] = {}
    held = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
    for name, tensor in held:
        found[name] = hash((tensor.detach().cpu().numpy().tobytes(), tensor.requires_grad, tensor.grad is None))
    for name, module in model.named_modules():
        values = {k: _shown(v) for k, v in vars(module).items() if k not in ("_parameters", "_buffers", "_modules")}
        found[f"{name}: attributes"] = hash((type(module), repr(sorted(values.items()))))
    return found


def _shown(value: Any) -> str:
    if isinstance(value, Tensor):
        return str(hash(value.detach().cpu().numpy().tobytes()))
    if isinstance(value, dict):
        return repr([(str(k), _shown(v)) for k, v in value.items()])
    if isinstance(value, (list, tuple, set)):
        return repr([_shown(v) for v in value])
    return repr(value) if isinstance(value, (int, float, str, bool, type(None))) else type(value).__name__


def converted(model: nn.Module, case: Case) -> nn.Module:
    """With this package's layers, timm's too."""
    kinds = {kind.__name__ for m in batch_norm_layers(model).values() for kind in type(m).__mro__}
    with case.timed():
        return trainers_timm.convert(model) if "BatchNormAct2d" in kinds else batchnorm.convert(model)


def stocked(model: nn.Module) -> nn.Module:
    """With the layers it had, timm's too."""
    kinds = {kind.__name__ for m in batch_norm_layers(model).values() for kind in type(m).__mro__}
    return trainers_timm.to_stock(model) if "BatchNormAct2d" in kinds else batchnorm.to_stock(model)


def step(model: nn.Module, batch: Any) -> tuple[Tensor, Tensor, Tensor]:
    """One forward and backward in train mode: outputs, gradients, and running statistics, flat in float64."""
    model.train()
    torch.manual_seed(0)
    made = outputs(forward(model, batch))
    torch.autograd.backward([y.double().square().mean() for y in made if y.requires_grad])
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    held = [b for n, b in model.named_buffers() if n.endswith(("running_mean", "running_var"))]
    return _flat(made), _flat(gradients), _flat(held)


def _flat(tensors: list[Tensor]) -> Tensor:
    return torch.cat([t.detach().double().flatten() for t in tensors] or [torch.zeros(1).double()])


def convert(model: nn.Module, case: Case) -> str:
    """Eval to the bit; a training step as close to float64 as torch's layers; and back to the bit."""
    flags = [m.training for m in model.modules()]
    mine = converted(model, case)
    demand([m.training for m in mine.modules()] == flags, "training flags were changed")
    gap = apart(once(copy.deepcopy(case.model).eval(), case.batches[0]), once(mine.eval(), case.batches[0]))
    demand(gap == 0, f"the eval output differs by {gap:.1e}")
    words = f"{len(batch_norm_layers(mine))} layers"
    return words if trains_alike(mine, case) else f"{words}, not in float64"


def trains_alike(mine: nn.Module, case: Case) -> bool:
    """Demand a training step as close to float64 as torch's layers take it; False where float64 does not run."""
    first = case.batches[0]
    theirs, own = step(copy.deepcopy(case.model), first), step(mine, first)
    wide, least = _in_double(case), 1e-5
    if wide is None:
        wide, least = theirs, 1e-3
    for what, exact, stock, found in zip(("output", "gradients", "statistics"), wide, theirs, own, strict=True):
        size = exact.norm().clamp_min(1e-30)
        off, allowed = float((found - exact).norm() / size), float((stock - exact).norm() / size)
        demand(off <= 10 * allowed + least, f"{what} of a training step are {off:.1e} off, torch's {allowed:.1e}")
    return wide is not theirs


def _in_double(case: Case) -> Any:
    try:
        return step(copy.deepcopy(case.model).double(), double(case.batches[0]))
    except Exception:
        return None


def to_stock(model: nn.Module, case: Case) -> str:
    mine = stocked(converted(model, case))
    gap = apart(once(copy.deepcopy(case.model).eval(), case.batches[0]), once(mine.eval(), case.batches[0]))
    demand(gap == 0, f"the eval output differs by {gap:.1e}")
    own = [n for n, m in batch_norm_layers(mine).items() if isinstance(m, batchnorm.BatchNorm)]
    demand(not own, f"{own[:3]} are no torch layers")
    return ""


def fuse_activations(model: nn.Module, case: Case) -> str:
    mine = converted(model, case)
    case.spent.clear()
    first, names = case.batches[0], [n for n, _ in mine.named_modules()]
    with case.timed():
        batchnorm.fuse_activations(mine, first, progress=False)
    fused = sum(layer.activation is not None for layer in batch_norm_layers(mine).values())  # pyright: ignore
    words = f"{fused} fused"
    demand([n for n, _ in mine.named_modules()] == names, "the paths of the model changed")
    for other in (mine, stocked(copy.deepcopy(mine))):
        gap = apart(once(copy.deepcopy(case.model).eval(), first), once(other.eval(), first))
        demand(gap < 1e-5, f"the eval output differs by {gap:.1e}")
    trains_alike(mine, case)
    return words


def fold(model: nn.Module, case: Case) -> str:
    """On a batch that it was not shown, in float64 where the model can."""
    first, other = case.batches[0], case.batches[-1]
    with case.timed():
        result = batchnorm.fold(model, first, timing=0)
    gap = apart(once(copy.deepcopy(case.model).eval(), other), once(result.model, other))
    demand(gap <= 1e-4, f"the folded model's output differs by {gap:.1e}")
    wide = copy.deepcopy(case.model).double().eval()
    try:
        wanted = once(wide, double(other))
    except Exception:
        wanted = None  # the network does not run in float64
    if wanted is not None:
        gap = apart(wanted, once(batchnorm.fold(wide, double(first), timing=0).model, double(other)))
        demand(gap <= 1e-9, f"folded in float64 the output differs by {gap:.1e}")
        demand(not result.not_exact, f"runs in float64, but: {result.not_exact}")
    words = f"{len(result.layers) - len(result.left)} of {len(result.layers)} folded"
    counts = [f"{name}: {reason}" for name, reason in result.left.items()]
    return "; ".join([words, *counts, *([f"float64: {result.not_exact}"] if result.not_exact else [])])


def received(model: nn.Module, batches: list[Any]) -> dict[str, tuple[Tensor, Tensor, int]]:
    """Mean, unbiased variance and count of what each layer receives at inference, all values at once in float64."""
    model = copy.deepcopy(model).eval()
    seen: dict[str, list[Tensor]] = {}

    def hook(name: str) -> Callable[..., None]:
        def note(module: nn.Module, args: Any, kwargs: Any) -> None:
            x = args[0] if args else next(iter(kwargs.values()))
            seen.setdefault(name, []).append(x.detach().double().movedim(1, 0).flatten(1))

        return note

    for name, layer in batch_norm_layers(model).items():
        layer.register_forward_pre_hook(hook(name), with_kwargs=True)
    for number, batch in enumerate(batches):
        torch.manual_seed(number)
        with torch.no_grad():
            forward(model, batch)
    rows = {name: torch.cat(parts, 1) for name, parts in seen.items()}
    return {name: (x.mean(1), x.var(1), x.shape[1]) for name, x in rows.items()}


def _distance(layer: _BatchNorm, mean: Tensor, var: Tensor) -> float:
    of_mean = (layer.running_mean.double() - mean) / (var + layer.eps).sqrt()  # pyright: ignore
    of_std = ((layer.running_var.double() + layer.eps) / (var + layer.eps)).sqrt() - 1  # pyright: ignore
    return float((of_mean.square() + of_std.square()).mean().sqrt())


def recalibrate(model: nn.Module, case: Case) -> str:
    with case.timed():
        result = batchnorm.recalibrate(model, case.batches, forward_fn=forward, progress=False)
    truth, layers = received(model, case.batches), batch_norm_layers(model)
    demand(set(truth) == set(result.layers), f"layers reached: {set(truth) ^ set(result.layers)}")
    off = {name: _distance(layers[name], mean, var) for name, (mean, var, _) in truth.items()}
    worst = max(off.values())
    words = f"residual {max(result.residual.values()):.0e}, measured {worst:.0e}, {result.forwards:.1f} forwards"
    if not result.converged:
        return f"{words}, not converged" + (f", draws {result.drawn:.0e} apart" if result.drawn else "")
    demand(worst < 1e-4, f"claims to have converged, and is {worst:.1e} standard deviations off")
    demand(result.forwards <= 3 or not result.plan, f"took {result.forwards:.1f} forwards of the data")
    changed = fingerprint(model).items() ^ fingerprint(copy.deepcopy(case.model).train(model.training)).items()
    buffers = tuple(f"{name}.{b}" for name in layers for b in ("running_mean", "running_var", "num_batches_tracked"))
    demand(all(name in buffers for name, _ in changed), f"changed {[n for n, _ in changed if n not in buffers][:3]}")
    result.undo()
    demand(same(statistics(model), statistics(case.model)), "undo() left statistics changed")
    return words


def update_bn(model: nn.Module, case: Case) -> str:
    """It calls the model with the batch or its first element: as recalibrate where that is the model's argument."""
    loader = [batch[0] if isinstance(batch, tuple) and len(batch) == 1 else batch for batch in case.batches]
    with case.timed():
        batchnorm.update_bn(loader, model)
    off = [_distance(batch_norm_layers(model)[n], m, v) for n, (m, v, _) in received(model, case.batches).items()]
    return f"measured {max(off):.0e}"


def diagnose(model: nn.Module, case: Case) -> str:
    with case.timed():
        report = batchnorm.diagnose(model, case.batches, forward_fn=forward)
    str(report)
    return ", ".join(sorted({finding.code for finding in report.findings}))


def _values(x: Tensor) -> Tensor:
    return x.detach().double().movedim(1, 0).flatten(1)


def inspect_checkpoint(model: nn.Module, case: Case) -> str:
    """Of the state, and of the model saved whole: the same layers with the same statistics."""
    layers = {n: m for n, m in batch_norm_layers(model).items() if m.running_mean is not None}
    with tempfile.TemporaryDirectory() as folder:
        for name, what in (("state", model.state_dict()), ("whole", model)):
            try:
                torch.save(what, f"{folder}/{name}.pt")
            except Exception:
                continue  # the model cannot be pickled
            with case.timed():
                report = batchnorm.inspect_checkpoint(f"{folder}/{name}.pt")
            demand(len(report.layers) == len(layers), f"{name}: {len(report.layers)} of {len(layers)} layers found")
            for path, layer in layers.items():
                if path in report.layers:
                    demand(torch.equal(report.layers[path].mean, layer.running_mean), f"{name}: mean of {path}")  # pyright: ignore
    return f"{len(layers)} layers"


def adapt(model: nn.Module, case: Case) -> str:
    with case.timed():
        result = batchnorm.adapt(model, case.batches, forward_fn=forward)
    mode = result.choice.mode
    result.undo()
    return mode


def freeze(model: nn.Module, case: Case) -> str:
    """In train mode a frozen model's output is that of its stored statistics, which stay; unfrozen they move."""
    first, held = case.batches[0], statistics(case.model)
    with case.timed():
        batchnorm.freeze(model)
    frozen, other = copy.deepcopy(model).train(), copy.deepcopy(case.model).train()
    for layer in batch_norm_layers(other).values():
        layer.eval()
    gap = apart(once(other, first), once(frozen, first))
    demand(gap == 0, f"the output of the frozen model in train mode differs by {gap:.1e}")
    demand(same(statistics(frozen), held), "frozen statistics moved")
    batchnorm.unfreeze(frozen)
    for name, layer in batch_norm_layers(frozen).items():
        left = vars(layer).keys() ^ vars(case.model.get_submodule(name)).keys()
        demand(not left, f"unfreeze() leaves {left} behind in {name}")
    once(frozen, first)
    demand(not same(statistics(frozen), held), "unfrozen statistics stay")
    batchnorm.unfreeze(model)
    return ""


def statistics(model: nn.Module) -> list[Tensor]:
    return [b for n, b in model.named_buffers() if n.endswith(("running_mean", "running_var", "num_batches_tracked"))]


def same(a: list[Tensor], b: list[Tensor]) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def pause(model: nn.Module, case: Case) -> str:
    """A training forward that leaves the statistics, and gives what it would have given."""
    first = case.batches[0]
    wanted = once(copy.deepcopy(case.model).train(), first)
    other = copy.deepcopy(model).train()
    with batchnorm.pause(other):
        got = once(other, first)
    demand(same(statistics(other), statistics(case.model)), "statistics moved within pause()")
    demand(apart(wanted, got) == 0, f"the output within pause() differs by {apart(wanted, got):.1e}")
    with case.timed(), batchnorm.pause(model):
        pass
    return ""


def accumulate(model: nn.Module, case: Case) -> str:
    """Two micro-batches move the first layer as their union does: mean of the values of both, total variance."""
    mine = converted(model, case).train()
    momenta = {n: m.momentum for n, m in batch_norm_layers(mine).items()}
    before = {n: (m.running_mean.clone(), m.running_var.clone()) for n, m in batch_norm_layers(mine).items()}  # pyright: ignore
    seen: dict[str, list[Tensor]] = {}
    layers = batch_norm_layers(mine)
    handles = [
        layer.register_forward_pre_hook(lambda _, given, name=name: seen.setdefault(name, []).append(_values(given[0])))
        for name, layer in layers.items()
    ]
    with batchnorm.accumulate(mine):
        for batch in case.batches[:2]:
            once(mine, batch)
    for handle in handles:
        handle.remove()
    for name, layer in batch_norm_layers(mine).items():
        if name not in seen or momenta[name] is None:
            continue
        x = torch.cat(seen[name], 1)
        own, gain = x.mean(1), momenta[name]
        if "recipe" in vars(layer) and len(seen[name]) == 2:
            wanted = (1 - gain) * before[name][0].double() + gain * own
            scale = x.var(1).sqrt() + 1e-3
            gap = float(((layer.running_mean.double() - wanted) / scale).abs().max())  # pyright: ignore
            demand(gap < 1e-4, f"{name} moved {gap:.1e} standard deviations past the union's mean")
    return ""


def sync_statistics(model: nn.Module, case: Case) -> str:
    before = {n: b.clone() for n, b in model.named_buffers()}
    with case.timed():
        report = batchnorm.sync_statistics(model)
    demand(report.ok, "one process differs from itself")
    for name, buffer in model.named_buffers():
        if name.endswith(("running_mean", "running_var")):
            demand(torch.allclose(buffer, before[name], rtol=1e-6, atol=1e-7), f"{name} moved")
    return ""


def watch(model: nn.Module, case: Case) -> str:
    """Three steps of SGD give the same weights with and without."""
    mine, other = copy.deepcopy(model).train(), copy.deepcopy(case.model).train()
    _descend(other, case)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        optimizer = torch.optim.SGD(mine.parameters(), 1e-3)
        with case.timed(), batchnorm.watch(mine, optimizer) as report:
            _descend(mine, case, optimizer)
    codes = sorted({finding.code for finding in report.findings})
    for (name, a), b in zip(other.state_dict().items(), mine.state_dict().values(), strict=True):
        demand(torch.equal(a.nan_to_num(), b.nan_to_num()), f"{name} differs after three watched steps")
    hooks = [len(m._forward_hooks) for m in mine.modules()]
    demand(hooks == [len(m._forward_hooks) for m in other.modules()], "hooks are left")
    with batchnorm.watch(model):
        pass
    return ", ".join(codes) + (f" ({len(told)} warnings)" if told else "")


def _descend(model: nn.Module, case: Case, optimizer: Any = None) -> None:
    optimizer = optimizer or torch.optim.SGD(model.parameters(), 1e-3)
    torch.manual_seed(0)
    for batch in case.batches[:3]:
        made = [y for y in outputs(forward(model, batch)) if y.requires_grad]
        torch.autograd.backward([(y / (1 + y.detach().abs().mean())).square().mean() for y in made])
        optimizer.step()
        optimizer.zero_grad()


def export(model: nn.Module, case: Case) -> str:
    """Where torch.export takes the network with torch's layers, it takes it with this package's."""
    args, kwargs = ((), case.batches[0]) if isinstance(case.batches[0], dict) else (case.batches[0], {})
    try:
        torch.export.export(copy.deepcopy(case.model).eval(), args, kwargs)
    except Exception as error:
        return f"torch.export does not take it with torch's layers either: {type(error).__name__}"
    mine = converted(copy.deepcopy(model), case).eval()
    case.spent.clear()
    with case.timed():
        program = torch.export.export(mine, args, kwargs)
    gap = apart(once(mine, case.batches[0]), once(program.module(), case.batches[0]))
    demand(gap < 1e-5, f"the exported output differs by {gap:.1e}")
    return ""


VERBS: dict[str, Callable[[nn.Module, Case], str]] = {
    verb.__name__: verb
    for verb in (
        convert, to_stock, fuse_activations, fold, recalibrate, update_bn, diagnose, inspect_checkpoint, adapt, freeze,
        pause, accumulate, sync_statistics, watch, export,
    )
}  # fmt: skip
