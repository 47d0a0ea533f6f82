"""Broken models whose cause is known."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional

import batchnorm
from judgement.situation import Kinds, recalibrated_on
from judgement.tasks import (
    Task,
    accuracy,
    batches,
    copied,
    digits,
    follow,
    mlp,
    norms,
    prune,
    quantise,
    signals,
    tabular,
    train,
)  # fmt: skip

SITUATIONS = Kinds("broken")
add = SITUATIONS.add


def given(model: nn.Module, task: Task, **more: Any) -> dict[str, Any]:
    loader = task.loader()
    base = {"model": model, "loader": loader, "metric": accuracy, "oracle": recalibrated_on(loader)}
    return {**base, "test_loader": task.test(), **more}


def _each(seed: int) -> Task:
    """Another domain for every seed."""
    makers = (digits, lambda s: digits(s, images=True), tabular, signals)
    return makers[seed % len(makers)](seed)


@add("BN101")
def buffers_not_copied(seed):
    task = _each(seed)
    model = train(task.network(), task, seed=seed)
    port = task.network()
    port.load_state_dict(dict(model.named_parameters()), strict=False)
    return given(port, task)


@add("BN101")
def average_of_parameters_only(seed):
    task = _each(seed + 1)
    model = task.network()
    teacher = copied(model)
    train(model, task, seed=seed, each=lambda m, s: follow(teacher, m, 0.95))
    return given(teacher, task)


@add("BN101", "BN108", "BN104")
def target_network(seed):
    task = tabular(seed)
    model = task.network()
    target = copied(model)
    train(target, task, steps=5, settle=0, seed=seed)
    train(model, task, seed=seed, each=lambda m, s: follow(target, m, 0.98))
    return given(target, task)


@add("BN102")
def one_bad_batch(seed):
    task = _each(seed)
    model = train(task.network(), task, steps=150, seed=seed)
    with torch.no_grad():
        bad = task.x[:64].clone()
        bad[3, ...] = torch.nan
        model.train()(bad)
    return given(train(model, task, steps=50, seed=seed + 1), task)


@add("BN102")
def overflow_in_half(seed):
    task = tabular(seed)
    model = train(task.network(), task, seed=seed, change=lambda x: x * 300)
    for layer in norms(model):
        layer.running_var.copy_((layer.running_var * 40).half().float())
    loader = batches(task.x * 300, task.y)
    return given(model, task, loader=loader, oracle=recalibrated_on(loader),
                 test_loader=batches(task.test_x * 300, task.test_y, 200))  # fmt: skip


@add("BN103")
def negative_variance(seed):
    task = digits(seed)
    model = train(task.network(), task, seed=seed)
    layer = norms(model)[seed % 2]
    layer.running_var[:3] = -layer.running_var[:3]
    return given(model, task)


@add("BN104")
def late_large_steps(seed):
    task = digits(seed)
    model = train(task.network(momentum=0.02), task, steps=400, seed=seed)
    return given(train(model, task, steps=25, settle=0, lr=0.15, seed=seed + 1), task)


@add("BN104")
def pruned_weights(seed):
    task = (digits(seed), digits(seed, images=True), signals(seed))[seed % 3]
    return given(prune(train(task.network(), task, seed=seed), (0.8, 0.55, 0.7)[seed % 3]), task)


@add("BN104", "BN132")
def three_bits(seed):
    task = (digits(seed, images=True), signals(seed))[seed % 2]
    return given(quantise(train(task.network(), task, seed=seed), 2), task)


@add("BN104")
def averaged_weights(seed):
    task = digits(seed)
    model = train(task.network(), task, steps=60, lr=0.1, settle=0, seed=seed)
    average = torch.optim.swa_utils.AveragedModel(model)
    for round_ in range(10):
        train(model, task, steps=30, lr=0.1, settle=0, seed=seed + round_)
        average.update_parameters(model)
    return given(average, task)


@add("BN104")
def merged_networks(seed):
    task = digits(seed)
    start = train(task.network(), task, steps=30, settle=0, lr=0.003, seed=seed)
    halves = [Task(task.x[i::2], task.y[i::2], *([task.x[:0]] * 4), task.network) for i in (0, 1)]
    a, b = (train(copied(start), half, steps=400, lr=0.03, seed=seed + i) for i, half in enumerate(halves))
    with torch.no_grad():
        for p, q in zip(a.parameters(), b.parameters(), strict=True):
            p.lerp_(q, 0.5)
        for p, q in zip(norms(a), norms(b), strict=True):
            p.running_mean.lerp_(q.running_mean, 0.5)
            p.running_var.lerp_(q.running_var, 0.5)
    return given(a, task)


@add("BN104")
def one_layer_off(seed):
    task = _each(seed)
    model = train(task.network(), task, seed=seed)
    layer = norms(model)[seed % 2]
    g = torch.Generator().manual_seed(seed)
    sign = torch.randint(2, (layer.num_features,), generator=g) * 2 - 1
    layer.running_mean += 2 * sign * layer.running_var.sqrt()
    return given(model, task)


@add("BN132", "BN104")
def many_small_errors(seed):
    task = digits(seed)
    model = train(task.network(depth=8, width=32), task, steps=400, seed=seed)
    g = torch.Generator().manual_seed(seed)
    for layer in norms(model):
        direction = torch.randn(layer.num_features, generator=g)
        layer.running_mean += 0.35 * direction / direction.square().mean().sqrt() * layer.running_var.sqrt()
    return given(model, task)


@add("BN104", "BN112")
def summary_in_train_mode(seed):
    task = _each(seed)
    model = train(task.network(), task, seed=seed)
    with torch.no_grad():
        for _ in range(20):
            model.train()(torch.randn(4, *task.x.shape[1:]) * 5)
    return given(model, task)


@add("BN104")
def subnetwork(seed):
    task = digits(seed)
    model = train(task.network(width=64), task, seed=seed)
    with torch.no_grad():
        model[0].weight[24:] = 0
        model[0].bias[24:] = 0
        norms(model)[0].weight[24:] = 0
        norms(model)[0].bias[24:] = 0
    return given(model, task)


@add("BN107")
def momentum_zero(seed):
    task = _each(seed)
    return given(train(task.network(momentum=0.0), task, seed=seed), task)


@add("BN108")
def too_few_steps(seed):
    task = _each(seed)
    return given(train(task.network(momentum=0.01), task, steps=40, settle=0, seed=seed), task)


@add("BN108")
def momentum_schedule(seed):
    task = _each(seed)
    model = task.network(momentum=0.02)

    def lower(m: nn.Module, step: int) -> None:
        for layer in norms(m):
            layer.momentum = 0.02 * 0.97**step

    return given(train(model, task, steps=150, settle=50, seed=seed, each=lower), task)


@add("BN112")
def momentum_of_keras(seed):
    task = (digits(seed), tabular(seed))[seed % 2]
    model = train(task.network(momentum=0.99), task, seed=seed)
    with torch.no_grad():
        model.train()(task.x[task.y == 1][:24])
    return given(model, task)


@add("BN129")
def momentum_of_two(seed):
    task = digits(seed)
    return given(train(task.network(momentum=1.9), task, steps=60, settle=0, seed=seed), task)


@add("BN113")
def tracking_switched_off(seed):
    task = digits(seed)
    model = train(task.network(), task, steps=100, seed=seed)
    for layer in norms(model):
        layer.track_running_stats = False
    other = Task(task.x * 2 + 1, (task.y + 3) % 10, task.eval_x, task.eval_y, task.test_x * 2 + 1,
                 (task.test_y + 3) % 10, task.network)  # fmt: skip

    def oracle(m: nn.Module) -> nn.Module:
        for layer in norms(m):
            layer.track_running_stats = True
        return recalibrated_on(other.loader())(m)

    return given(train(model, other, steps=200, seed=seed), other, oracle=oracle)


@add("BN120")
def collected_with_dropout(seed):
    task = digits(seed)
    model = train(task.network(first=0.85), task, steps=400, seed=seed)
    torch.optim.swa_utils.update_bn(task.loader(), model)
    return given(model, task)


@add("BN114")
def micro_batches(seed):
    task = digits(seed)
    model = train(task.network(), task, steps=600, size=2, lr=0.003, settle=0, seed=seed)
    return given(model, task, loader=task.loader(2)[:250], oracle=None)


@add("BN116")
def two_domains(seed):
    task = digits(seed)

    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.norm, self.last = nn.Linear(64, 48), nn.BatchNorm1d(48), nn.Linear(48, 10)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.last(torch.cat([self.norm(self.first(part)) for part in x.chunk(2)]).relu())

    def both(x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.cat([x, 4 - 6 * x]), torch.cat([y, y])

    model = Shared()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    loader = [both(x, y) for x, y in task.loader(32)]
    for x, y in loader * 6:
        optimizer.zero_grad()
        functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    return given(model, task, loader=loader, oracle=None, test_loader=[both(x, y) for x, y in task.test(50)])


@add("BN119")
def one_class_a_batch(seed):
    task = digits(seed)
    model = task.network()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    g = torch.Generator().manual_seed(seed)
    for step in range(300):
        pick = torch.randint(len(task.x), (512,), generator=g)
        pick = pick[task.y[pick] == step % 10][:16]
        optimizer.zero_grad()
        functional.cross_entropy(model.train()(task.x[pick]), task.y[pick]).backward()
        optimizer.step()
    order = torch.argsort(task.y, stable=True)
    loader = [
        (task.x[p], task.y[p]) for p in order.split(16) if len(p) == 16 and bool((task.y[p] == task.y[p][0]).all())
    ]
    batchnorm.recalibrate(model, loader, progress=False)
    return given(model, task, loader=loader, oracle=None)


@add("BN115")
def padding(seed):
    g = torch.Generator().manual_seed(seed)
    samples = 1600
    y = torch.randint(4, (samples,), generator=g)
    pattern = torch.randn(4, 6, generator=g)
    rooms = (8, 16, 64)

    def sequence(y: torch.Tensor, room: int) -> torch.Tensor:
        x = torch.zeros(len(y), 6, room)
        lengths = torch.randint(6, 9, (len(y),), generator=g)
        lengths[::16] = room
        noise = torch.randn(len(y), 6, room, generator=g)
        real = torch.arange(room) < lengths[:, None]
        return torch.where(real[:, None], 3 + 2 * pattern[y][:, :, None] + 1.5 * noise, x)

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm, self.head = nn.Conv1d(6, 24, 3, padding=1), nn.BatchNorm1d(24), nn.Linear(24, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            real = (x != 0).any(1, keepdim=True)
            h = self.norm(self.conv(x)).relu() * real
            return self.head(h.sum(2) / real.sum(2))

    loader = [(sequence(part, rooms[i % 3]), part) for i, part in enumerate(y[:800].split(32))]
    model = Net()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.003)
    for x, part in loader * 8:
        optimizer.zero_grad()
        functional.cross_entropy(model.train()(x), part).backward()
        optimizer.step()
    test = [(sequence(part, 8), part) for part in y[800:].split(100)]
    return {"model": model, "loader": loader, "metric": accuracy, "oracle": None, "test_loader": test}


def _evaluation(change, name: str, images: bool = True) -> None:
    def build(seed: int) -> dict[str, Any]:
        task = digits(seed, images=images) if images else tabular(seed)
        model = train(task.network(), task, seed=seed)
        evaluation = batches(change(task.eval_x), task.eval_y, 100)
        test = batches(change(task.test_x), task.test_y, 200)
        return given(model, task, eval_loader=evaluation, test_loader=test, oracle=recalibrated_on(evaluation))

    build.__name__ = name
    add("BN121")(build)


def _blur(x: torch.Tensor) -> torch.Tensor:
    return functional.avg_pool2d(functional.pad(x, (1, 1, 1, 1), mode="replicate"), 3, 1)


_evaluation(lambda x: x / 16, "evaluation_not_scaled")
_evaluation(lambda x: x * 3 - 1, "evaluation_with_more_contrast")
_evaluation(_blur, "evaluation_blurred")
_evaluation(lambda x: x + 0.4 * x.std() * 2 * torch.randn_like(x), "evaluation_noisy")
_evaluation(lambda x: x.max() - x, "evaluation_inverted")
_evaluation(lambda x: (x / x.max()).clamp_min(0) ** 3 * x.max(), "evaluation_with_gamma")
_evaluation(lambda x: (x - 0.5) / 0.25, "evaluation_normalised_otherwise")
_evaluation(lambda x: x * 0.03, "evaluation_features_scaled", images=False)


@add("BN104", "BN108", "BN101")
def generator_of_a_gan(seed):
    """A generator with lagging statistics; without a metric."""
    g = torch.Generator().manual_seed(seed)
    model = mlp(16, 64, width=64, momentum=0.01)
    real = digits(seed).x
    critic = nn.Sequential(nn.Linear(64, 64), nn.LeakyReLU(0.2), nn.Linear(64, 1))
    one, two = (torch.optim.Adam(m.parameters(), lr=0.003) for m in (model, critic))
    for _ in range(120):
        z = torch.randn(64, 16, generator=g)
        fake = model(z)
        pick = torch.randint(len(real), (64,), generator=g)
        two.zero_grad()
        (functional.softplus(critic(fake.detach())).mean() + functional.softplus(-critic(real[pick])).mean()).backward()
        two.step()
        one.zero_grad()
        functional.softplus(-critic(model(z))).mean().backward()
        one.step()
    noise = [torch.randn(64, 16, generator=g) for _ in range(20)]
    return {"model": model, "loader": noise, "metric": None, "oracle": None, "test_loader": noise}


@add("BN109", "BN104")
def frozen_by_requires_grad(seed):
    """Features frozen by requires_grad, statistics moved by other data; judged on the first task."""
    task = digits(seed)
    model = train(task.network(), task, seed=seed)
    head = copied(model[-1])
    for p in model[:-1].parameters():
        p.requires_grad_(False)
    other = Task(task.x * 2 + 1, (task.y + 3) % 10, task.eval_x, task.eval_y, task.test_x, task.test_y, task.network)
    train(model, other, steps=100, seed=seed)
    model[-1] = head
    return given(model, task)
