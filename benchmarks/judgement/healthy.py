"""Models that are in order, some of them strange."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional

import batchnorm
from judgement.broken import given
from judgement.situation import Kinds
from judgement.tasks import (
    Task,
    accuracy,
    batches,
    conv,
    copied,
    digits,
    mlp,
    norms,
    prune,
    quantise,
    signals,
    tabular,
    train,
)  # fmt: skip

SITUATIONS = Kinds("healthy")
add = SITUATIONS.add()


def _plain(maker: Any, name: str, **options: Any) -> None:
    def build(seed: int) -> dict[str, Any]:
        task = maker(seed)
        return given(train(task.network(**options), task, steps=300, settle=150, seed=seed), task)

    build.__name__ = name
    add(build)


_plain(digits, "digits")
_plain(lambda s: digits(s, images=True), "images")
_plain(tabular, "table")
_plain(signals, "signals")
_plain(digits, "dropout_in_front_of_the_head", dropout=0.0)
_plain(lambda s: digits(s, images=True), "images_with_dropout", dropout=0.3)
_plain(digits, "small_momentum", momentum=0.02)
_plain(digits, "without_affine", affine=False)
_plain(digits, "deep", depth=8, width=32)


@add
def with_evaluation_data(seed):
    task = (digits, lambda s: digits(s, images=True), tabular, signals)[seed % 4](seed)
    model = train(task.network(), task, steps=300, settle=150, seed=seed)
    return given(model, task, eval_loader=task.evaluation())


@add
def heavy_tails_with_evaluation_data(seed):
    task = tabular(seed, heavy=True)
    model = train(task.network(), task, settle=150, seed=seed)
    batchnorm.recalibrate(model, task.loader(), progress=False)
    return given(model, task, eval_loader=task.evaluation())


@add
def rare_binary_features(seed):
    g = torch.Generator().manual_seed(seed)
    x = (torch.rand(3000, 30, generator=g) < 0.01 + 0.05 * torch.rand(30, generator=g)).float()
    y = (x @ torch.randn(30, generator=g) > 0).long()
    task = Task(x[:1200], y[:1200], x[1200:1500], y[1200:1500], x[1500:], y[1500:], lambda **o: mlp(30, 2, **o))
    model = nn.Sequential(nn.BatchNorm1d(30), *mlp(30, 2))
    return given(train(model, task, settle=150, seed=seed), task, eval_loader=task.evaluation())


@add
def bag_of_words_with_empty_rows(seed):
    g = torch.Generator().manual_seed(seed)
    x = torch.poisson(0.2 * torch.rand(2400, 40, generator=g), generator=g)
    x[torch.rand(2400, generator=g) < 0.1] = 0
    y = (x @ torch.randn(40, generator=g) > 0).long()
    task = Task(x[:1000], y[:1000], x[1000:1300], y[1000:1300], x[1300:], y[1300:], lambda **o: mlp(40, 2, **o))
    return given(train(nn.Sequential(nn.BatchNorm1d(40), *mlp(40, 2)), task, settle=150, seed=seed), task)


@add
def recalibrated_after_few_steps(seed):
    task = digits(seed)
    model = train(task.network(momentum=0.01), task, steps=40, settle=0, seed=seed)
    batchnorm.recalibrate(model, task.loader(), progress=False)
    return given(model, task)


@add
def frozen_and_tuned(seed):
    task = digits(seed)
    model = batchnorm.freeze(train(task.network(), task, seed=seed), affine=True)
    return given(train(model, task, steps=100, seed=seed + 1), task, oracle=None)


@add
def trained_in_eval(seed):
    """A forgotten train(): the stored statistics are what it was trained with."""
    task = tabular(seed)
    model = train(task.network(), task, seed=seed, mode=lambda m: m.eval()).eval()
    return given(model, task)


@add
def norm_eval(seed):
    """Batch norm in eval in every step, as detectors do."""
    task = digits(seed)
    model = train(task.network(), task, steps=100, seed=seed)

    def mode(m: nn.Module) -> None:
        m.train()
        for layer in norms(m):
            layer.eval()

    other = Task(task.x * 2 + 1, (task.y + 3) % 10, task.eval_x, task.eval_y, task.test_x * 2 + 1,
                 (task.test_y + 3) % 10, task.network)  # fmt: skip
    return given(train(model, other, seed=seed, mode=mode).eval(), other)


@add
def averaged_with_update_bn(seed):
    task = digits(seed)
    model = train(task.network(), task, seed=seed)
    average = torch.optim.swa_utils.AveragedModel(model)
    for round_ in range(4):
        train(model, task, steps=20, settle=0, lr=1e-3, seed=seed + round_)
        average.update_parameters(model)
    torch.optim.swa_utils.update_bn(task.loader(), average)
    return given(average, task)


@add
def own_layers(seed):
    task = digits(seed, images=True)
    return given(train(batchnorm.convert(task.network()), task, settle=150, seed=seed), task)


@add
def debiased(seed):
    task = digits(seed)
    model = batchnorm.convert(train(task.network(), task, seed=seed), "debiased")
    return given(train(model, task, steps=20, settle=0, lr=1e-5, seed=seed), task)


@add
def sorted_evaluation_order(seed):
    task = digits(seed)
    order = torch.argsort(task.y, stable=True)
    model = train(task.network(), task, settle=150, seed=seed)
    return given(model, task, loader=batches(task.x[order], task.y[order]))


@add
def batches_of_sixteen(seed):
    task = digits(seed)
    return given(
        train(task.network(), task, size=16, steps=500, lr=0.003, settle=300, seed=seed), task, loader=task.loader(16)
    )


@add
def ragged_last_batch(seed):
    task = signals(seed)
    model = train(task.network(), task, settle=150, seed=seed)
    return given(model, task, loader=batches(task.x, task.y, 60, ragged=True))


@add
def pruned_and_recalibrated(seed):
    task = digits(seed, images=True)
    model = prune(train(task.network(), task, seed=seed), 0.6)
    batchnorm.recalibrate(model, task.loader(), progress=False)
    return given(model, task)


@add
def eight_bits(seed):
    task = signals(seed)
    return given(quantise(train(task.network(), task, settle=150, seed=seed), 8), task)


@add
def class_prior_differs(seed):
    """Balanced in training, skewed at evaluation."""
    task = digits(seed)
    model = train(task.network(), task, settle=150, seed=seed)

    def skewed(x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        keep = (y == seed % 10) | (torch.arange(len(y)) % 12 == 0)
        return x[keep], y[keep]

    evaluation, test = (
        batches(*skewed(task.eval_x, task.eval_y), 32, True),
        batches(*skewed(task.test_x, task.test_y), 64, True),
    )
    return given(model, task, eval_loader=evaluation, test_loader=test)


@add
def statistics_that_are_not_read(seed):
    """A bias-free batch norm of its own, which divides by the deviation alone."""

    class NoMean(nn.BatchNorm1d):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if self.training:
                var = x.var(0, correction=0)
                with torch.no_grad():
                    self.running_var.lerp_(x.var(0), 0.1)
                    self.num_batches_tracked.add_(1)
            else:
                var = self.running_var
            return x / (var + self.eps).sqrt() * self.weight

    task = digits(seed)
    model = nn.Sequential(nn.Linear(64, 48), NoMean(48), nn.ReLU(), nn.Linear(48, 10))
    return given(train(model, task, settle=150, seed=seed), task)


@add
def lost_counters(seed):
    task = digits(seed)
    model = train(task.network(depth=3), task, settle=150, seed=seed)
    for layer in norms(model)[:-1]:
        layer.num_batches_tracked.zero_()
    return given(model, task)


@add
def siamese(seed):
    task = digits(seed)

    class Twins(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = mlp(32, 16)
            self.head = nn.Linear(16, 10)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(self.body(x[:, :32]) + self.body(x[:, 32:].flip(1)))

    return given(train(Twins(), task, settle=150, seed=seed), task)


@add
def without_a_metric(seed):
    task = (digits, lambda s: digits(s, images=True), tabular, signals)[seed % 4](seed)
    return given(train(task.network(), task, steps=300, settle=200, seed=seed), task, metric=None)


@add
def autoencoder(seed):
    task = digits(seed)
    model = mlp(64, 64, width=32)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.003)
    for step in range(400):
        pick = torch.randint(len(task.x), (64,))
        if step == 300:
            optimizer.param_groups[0]["lr"] = 1e-4
        optimizer.zero_grad()
        functional.mse_loss(model(task.x[pick]), task.x[pick]).backward()
        optimizer.step()
    return given(model, task, metric=lambda o, b: -float((o - b[0]).square().mean()))


@add
def two_heads(seed):
    task = digits(seed, images=True)

    class Detector(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.size = conv(), nn.Linear(10, 4)

        def forward(self, x: torch.Tensor) -> Any:
            scores = self.body(x)
            return scores, self.size(scores)

    model = Detector()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for step in range(350):
        pick = torch.randint(len(task.x), (64,))
        if step == 250:
            optimizer.param_groups[0]["lr"] = 2e-4
        optimizer.zero_grad()
        scores, boxes = model(task.x[pick])
        (functional.cross_entropy(scores, task.y[pick]) + boxes.square().mean()).backward()
        optimizer.step()
    return given(model, task)


@add
def copied_model(seed):
    task = tabular(seed)
    return given(copied(train(task.network(), task, settle=150, seed=seed)).eval(), task)


__all__ = ["SITUATIONS", "accuracy"]
