"""What can be seen in checkpoint files alone, and in source code alone."""

from __future__ import annotations

import copy
import tempfile
from pathlib import Path

import torch
from torch import nn

import batchnorm
from batchnorm.diagnosis import inspect_checkpoint, lint
from gallery.common import TEST_X, TEST_Y, Outcome, X, Y, accuracy, batches, broken, network, norms, train


def _written(**states: dict[str, torch.Tensor]) -> dict[str, Path]:
    folder = Path(tempfile.mkdtemp(prefix="batchnorm-gallery-"))
    for name, state in states.items():
        torch.save(state, folder / f"{name}.pt")
    return {name: folder / f"{name}.pt" for name in states}


@broken("BN221", "save the buffers too")
def adapter_without_buffers() -> Outcome:
    """Row 40: only what requires gradients was saved after fine-tuning; the statistics moved too."""
    base = train(network(), 200)
    tuned = train(copy.deepcopy(base), 200, x=2 - 2 * X, y=Y)
    adapter = {k: v for k, v in tuned.state_dict().items() if k in dict(tuned.named_parameters())}
    paths = _written(tuned=tuned.state_dict(), adapter=adapter)
    report = inspect_checkpoint(paths["tuned"], paths["adapter"])
    test = (2 - 2 * TEST_X, TEST_Y)
    loaded = copy.deepcopy(base)
    loaded.load_state_dict(adapter, strict=False)
    before = accuracy(loaded, *test)
    loaded.load_state_dict({**adapter, **dict(tuned.named_buffers())})
    return Outcome(report, before, accuracy(loaded, *test))


@broken("BN222", "batchnorm.recalibrate(model, loader)")
def polyak_target() -> Outcome:
    """Row 29: a target network follows parameters(); two of its checkpoints show weights that moved alone."""
    online = train(network(), 20)
    target = copy.deepcopy(online)
    earlier = copy.deepcopy(target.state_dict())

    def follow(model: nn.Module) -> None:
        with torch.no_grad():
            for a, b in zip(target.parameters(), model.parameters(), strict=True):
                a.lerp_(b, 0.05)

    train(online, 300, each=follow)
    paths = _written(earlier=earlier, later=target.state_dict())
    report = inspect_checkpoint(paths["earlier"], paths["later"])
    before = accuracy(target)
    batchnorm.recalibrate(target, batches())
    return Outcome(report, before, accuracy(target))


@broken("BN213", "state[name] = torch.tensor(0) before a strict load")
def counters_missing() -> Outcome:
    """Row 15: a checkpoint without num_batches_tracked; a strict load refuses it."""
    model = train(network(), 200)
    state = model.state_dict()
    for key in [k for k in state if k.endswith("num_batches_tracked")]:
        del state[key]
    path = _written(old=state)["old"]
    report = inspect_checkpoint(path)
    loaded = network(seed=1)

    def load(state: dict[str, torch.Tensor]) -> float:
        try:
            loaded.load_state_dict(state)
        except RuntimeError:
            return 0.0
        return accuracy(loaded)

    fixed = torch.load(path, weights_only=True)
    before = load(fixed)
    for layer in report.layers:
        fixed[f"{layer}.num_batches_tracked"] = torch.tensor(0)
    return Outcome(report, before, load(fixed))


@broken("BN212", "copy the counter, and average the rest")
def averaged_counter() -> Outcome:
    """Row 21: two state dicts averaged, counters too; in float64 it runs, and the counter is no integer."""
    a, b = (train(network(seed=0), steps, seed=0).state_dict() for steps in (200, 301))
    average = {k: (a[k].double() + b[k].double()) / 2 for k in a}
    report = inspect_checkpoint(_written(average=average)["average"])
    right = {k: average[k].float() if a[k].is_floating_point() else b[k] for k in a}

    def counts(state: dict[str, torch.Tensor]) -> float:
        """1 where counters are whole numbers of batches, as the average of steps needs them."""
        return float(all(not v.is_floating_point() for k, v in state.items() if k.endswith("num_batches_tracked")))

    model = network()
    model.load_state_dict(right)
    return Outcome(report, counts(average), counts(right) * accuracy(model))


@broken("BN202", "recalibrate")
def float16_overflow() -> Outcome:
    """Row 22: activations with a variance beyond 65504, saved in half precision: infinity."""
    scaled = X * 3000
    model = train(nn.Sequential(nn.BatchNorm1d(64), *network()), 200, x=scaled)
    halved = {k: v.half() if v.is_floating_point() else v for k, v in model.state_dict().items()}
    report = inspect_checkpoint(_written(half=halved)["half"])
    loaded = nn.Sequential(nn.BatchNorm1d(64), *network())
    loaded.load_state_dict(halved)
    test = (TEST_X * 3000, TEST_Y)
    before = accuracy(loaded, *test)
    batchnorm.recalibrate(loaded, batches(x=scaled))
    return Outcome(report, before, accuracy(loaded, *test))


BY_HAND = """
model.eval()
for x, _ in loader:
    h = model[0](x)
    bn.running_mean = m * bn.running_mean + (1 - m) * bn.running_mean
    bn.running_var = m * bn.running_var + (1 - m) * bn.running_var
"""


@broken("BN401", "batchnorm.recalibrate(model, loader)")
def updated_by_hand() -> Outcome:
    """Row 46: statistics 'updated' in a loop that mixes each value with itself; the source alone shows it."""
    model = train(network(momentum=0.01), 40)
    path = Path(tempfile.mkdtemp(prefix="batchnorm-gallery-")) / "update.py"
    path.write_text(BY_HAND)
    report = lint(path)
    with torch.no_grad():
        for bn in norms(model):
            exec(BY_HAND, {"model": model, "loader": batches(), "bn": bn, "m": 0.9})
    before = accuracy(model)
    batchnorm.recalibrate(model, batches())
    return Outcome(report, before, accuracy(model))
