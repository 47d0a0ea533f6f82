"""Evaluation inputs that differ from the training inputs, and ones that do not: what is said, and whether it is right.

    PYTHONPATH=src:benchmarks python -m judgement.run --module judgement.differing [--seeds 5]

Photographs in colour, tables, signals and tokens, each with networks of another form than in the other modules. `words`
of a situation is what the message must hold; the alike ones are trained with augmentation.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from judgement.situation import Kinds, recalibrated_on
from judgement.tasks import Task, accuracy, batches, train

DIFFERENT, ALIKE = Kinds("broken"), Kinds("healthy")
WORDS: dict[str, tuple[str, ...]] = {}
Change = Callable[[Tensor], Tensor]


@functools.cache
def _photographs() -> Tensor:
    from sklearn.datasets import load_sample_images

    images = [torch.tensor(image).permute(2, 0, 1).float() for image in load_sample_images().images]
    return torch.stack([functional.avg_pool2d(image, 2) for image in images])


def photographs(seed: int, size: int = 20) -> Task:
    """Patches of two photographs, 0 to 1; the class is which quarter of which."""
    g = torch.Generator().manual_seed(seed)
    whole = _photographs() / 255
    height, width = whole.shape[2:]
    count = 2600
    y = torch.randint(6, (count,), generator=g)
    top = (torch.rand(count, generator=g) * (height - size)).long()
    left = (((y // 2) + torch.rand(count, generator=g)) / 3 * (width - size)).long()
    x = torch.stack([whole[c, :, a : a + size, b : b + size] for c, a, b in zip(y % 2, top, left, strict=True)])
    return Task(x[:1200], y[:1200], x[1200:1600], y[1200:1600], x[1600:], y[1600:], lambda: _residual(6))


class _Residual(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.a, self.b = (nn.Conv2d(width, width, 3, padding=1, bias=False) for _ in range(2))
        self.n, self.m = nn.BatchNorm2d(width), nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        return (x + self.m(self.b(self.n(self.a(x)).relu()))).relu()


def _residual(classes: int, width: int = 12) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, width, 3, stride=2, padding=1), nn.BatchNorm2d(width), nn.ReLU(), _Residual(width),
        nn.MaxPool2d(2), _Residual(width), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, classes),
    )  # fmt: skip


def table(seed: int) -> Task:
    """Columns of an office: age, income, height in cm, counts, shares; the class follows a random rule."""
    g = torch.Generator().manual_seed(seed)
    z = torch.randn(5200, 10, generator=g) @ (torch.eye(10) + 0.25 * torch.randn(10, 10, generator=g))
    score = (z @ torch.randn(10, 20, generator=g)).tanh() @ torch.randn(20, 3, generator=g)
    x = z * torch.tensor([12, 1, 9, 2, 0.1, 5, 1, 1, 30, 0.5]) + torch.tensor([40, 0, 170, 5, 0.4, 0, 2, 0, 60, 1])
    x[:, 1], x[:, 3] = (0.5 * z[:, 1]).exp() * 30, x[:, 3].round().clamp_min(0)
    network = lambda: nn.Sequential(  # noqa: E731
        nn.BatchNorm1d(10), nn.Linear(10, 64), nn.BatchNorm1d(64), nn.GELU(), nn.Linear(64, 32), nn.BatchNorm1d(32),
        nn.GELU(), nn.Linear(32, 3),
    )  # fmt: skip
    y = (score - score.mean(0)).argmax(1)
    return Task(x[:2000], y[:2000], x[2000:2600], y[2000:2600], x[2600:], y[2600:], network)


def accelerations(seed: int, length: int = 64) -> Task:
    """Three axes, gravity on one; the class is the cadence and its harmonics."""
    g = torch.Generator().manual_seed(seed)
    y = torch.randint(4, (2600,), generator=g)
    t = torch.arange(length) / length
    cadence = 3 * 1.6 ** y[:, None, None] * (1 + 0.05 * torch.randn(2600, 1, 1, generator=g))
    phase = 6.28 * torch.rand(2600, 3, 1, generator=g)
    x = (6.28 * cadence * t + phase).sin() + 0.5 * (12.57 * cadence * t + 2 * phase).sin()
    x = x * torch.tensor([1.0, 0.6, 1.4])[:, None] + torch.tensor([0.0, 9.8, 0.0])[:, None]
    x = x + 0.4 * torch.randn(x.shape, generator=g)
    network = lambda: nn.Sequential(  # noqa: E731
        nn.Conv1d(3, 16, 7, padding=3), nn.BatchNorm1d(16), nn.SiLU(), nn.MaxPool1d(2), nn.Conv1d(16, 24, 5, padding=2),
        nn.BatchNorm1d(24), nn.SiLU(), nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(24, 4),
    )  # fmt: skip
    return Task(x[:1200], y[:1200], x[1200:1600], y[1200:1600], x[1600:], y[1600:], network)


class _Words(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table, self.conv = nn.Embedding(120, 16), nn.Conv1d(16, 24, 3, padding=1)
        self.norm, self.out = nn.BatchNorm1d(24), nn.Linear(24, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.norm(self.conv(self.table(x).transpose(1, 2))).relu().mean(2))


def tokens(seed: int, length: int = 32) -> Task:
    """Words of a long-tailed vocabulary, padded behind with 0; each class has favourites."""
    g = torch.Generator().manual_seed(seed)
    weight = 1 / torch.arange(1, 100).float()
    favourites = torch.rand(4, 99, generator=g).pow(3) * 4 + 0.2
    y = torch.randint(4, (2600,), generator=g)
    x = torch.multinomial(weight * favourites[y], length, replacement=True, generator=g) + 1
    ends = torch.randint(length // 2, length + 1, (2600, 1), generator=g)
    x = torch.where(torch.arange(length) < ends, x, 0)
    return Task(x[:1200], y[:1200], x[1200:1600], y[1200:1600], x[1600:], y[1600:], _Words)


def _given(model: nn.Module, task: Task, change: Change, training: Change | None = None) -> dict[str, Any]:
    loader = batches(task.x if training is None else training(task.x), task.y, 64)
    evaluation = batches(change(task.eval_x), task.eval_y, 100)
    return {"model": model, "loader": loader, "metric": accuracy, "eval_loader": evaluation,
            "test_loader": batches(change(task.test_x), task.test_y, 200), "oracle": None}  # fmt: skip


def _different(
    maker: Callable[[int], Task], name: str, change: Change, *words: str, start: Change | None = None
) -> None:
    def build(seed: int) -> dict[str, Any]:
        task = maker(seed)
        if start is not None:
            task.x, task.eval_x, task.test_x = start(task.x), start(task.eval_x), start(task.test_x)
        model = train(task.network(), task, steps=300, settle=60, seed=seed)
        return _given(model, task, change)

    build.__name__, WORDS[name] = name, words
    DIFFERENT.add("BN121", "BN131")(build)


def _alike(maker: Callable[[int], Task], name: str, augment: Change, few: int | None = None) -> None:
    def build(seed: int) -> dict[str, Any]:
        task = maker(seed)
        if few is not None:
            task.x, task.y = task.x[:few], task.y[:few]
        model = train(task.network(), task, steps=300, settle=100, seed=seed, change=augment)
        return {
            **_given(model, task, lambda x: x, augment),
            "oracle": recalibrated_on(batches(augment(task.x), task.y)),
        }

    build.__name__ = name
    ALIKE.add()(build)


def _resized(x: Tensor, size: int) -> Tensor:
    return functional.interpolate(x, size=size, mode="bilinear", align_corners=False)


def _resampled(x: Tensor, rate: float) -> Tensor:
    longer = functional.interpolate(x, scale_factor=rate, mode="linear", align_corners=False)
    return torch.cat([longer] * 3, 2)[..., : x.shape[2]] if rate < 1 else longer[..., : x.shape[2]]


def _columns(x: Tensor, change: dict[int, Change]) -> Tensor:
    return torch.stack([change.get(i, lambda v: v)(x[:, i]) for i in range(x.shape[1])], 1)


MEAN, STD = torch.tensor([0.485, 0.456, 0.406])[:, None, None], torch.tensor([0.229, 0.224, 0.225])[:, None, None]
normal: Change = lambda x: (x - MEAN) / STD  # noqa: E731

_different(photographs, "bytes_instead_of_units", lambda x: x * 255, "bytes")
_different(photographs, "units_instead_of_bytes", lambda x: x / 255, "bytes", start=lambda x: x * 255)
_different(photographs, "mean_and_deviation_left_out", lambda x: x * STD + MEAN, "deviation", start=normal)
_different(photographs, "normalised_twice", normal, "x -", start=normal)
_different(photographs, "blue_first", lambda x: x.flip(1), "order", start=normal)
_different(photographs, "low_contrast", lambda x: 0.5 + 0.2 * (x - 0.5), " x +")
_different(photographs, "dark_gamma", lambda x: x**3, "curve")
_different(photographs, "thumbnails_enlarged", lambda x: _resized(_resized(x, 3), 20), "resized")
_different(photographs, "sensor_noise", lambda x: x + 0.25 * torch.randn_like(x), "noise")
_different(photographs, "larger_images", lambda x: _resized(x, 60), "60 x 60")
_different(photographs, "turned_by_a_quarter", lambda x: x.rot90(1, (2, 3)), "turned by")
_different(table, "inches_and_thousands", lambda x: _columns(x, {2: lambda v: v / 2.54, 1: lambda v: v * 1000}),
           "column 1", "column 2")  # fmt: skip
_different(table, "one_column_in_logarithms", lambda x: _columns(x, {1: lambda v: (v + 1).log()}), "column 1")
_different(table, "standardised_at_evaluation", lambda x: (x - x.mean(0)) / x.std(0), "column 0")
_different(accelerations, "half_the_sample_rate", lambda x: _resampled(x, 0.5), "rate")
_different(accelerations, "gravity_removed", lambda x: x - torch.tensor([0.0, 9.8, 0.0])[:, None], "channel 1")
_different(accelerations, "in_g_instead_of_metres", lambda x: x / 9.8, "0.1 x")
_different(accelerations, "short_and_padded", lambda x: functional.pad(x[..., :24], (0, 40)), "padding")
_different(tokens, "other_numbers_for_words", lambda x: torch.where(x > 0, 100 - x, 0), "tokens")


def _crop(x: Tensor) -> Tensor:
    a, b = torch.randint(0, 5, (2,)).tolist()
    return functional.pad(x, (2, 2, 2, 2))[..., a : a + x.shape[2], b : b + x.shape[3]]


def _by_sample(one: Change) -> Change:
    return lambda x: torch.stack([one(row[None])[0] for row in x])


def _cutout(x: Tensor) -> Tensor:
    a, b = torch.randint(0, x.shape[2] - 7, (2,)).tolist()
    x = x.clone()
    x[..., a : a + 8, b : b + 8] = 0
    return x


def _mixup(x: Tensor) -> Tensor:
    part = 0.7 + 0.3 * torch.rand(len(x), *[1] * (x.dim() - 1))
    return part * x + (1 - part) * x[torch.randperm(len(x))]


def padded_in_front(seed: int) -> dict[str, Any]:
    """A difference that does no harm: the network takes the mean over positions."""
    task = tokens(seed)
    model = train(task.network(), task, steps=300, settle=60, seed=seed)
    return _given(model, task, lambda x: torch.stack([row.roll(int((row == 0).sum())) for row in x]))


ALIKE.add()(padded_in_front)
_alike(photographs, "photographs_alike", lambda x: x)
_alike(photographs, "crops_and_flips", lambda x: _by_sample(_crop)(x if torch.rand(()) < 0.5 else x.flip(3)))
_alike(photographs, "cutouts_overfitted", _by_sample(_cutout), few=150)
_alike(photographs, "mixup_overfitted", _mixup, few=150)
_alike(photographs, "training_noise_overfitted", lambda x: x + 0.1 * torch.randn_like(x), few=150)
_alike(photographs, "brightness_jitter", lambda x: x * (0.6 + 0.8 * torch.rand(len(x), 1, 1, 1)))
_alike(table, "table_overfitted", lambda x: x, few=200)
_alike(accelerations, "jittered_signals", lambda x: x + 0.3 * torch.randn_like(x), few=150)
_alike(tokens, "words_overfitted", lambda x: x, few=200)
_alike(tokens, "words_dropped_in_training", lambda x: torch.where((torch.rand(x.shape) < 0.1) & (x > 0), 101, x))

SITUATIONS = [*DIFFERENT, *ALIKE]
