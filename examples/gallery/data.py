"""What the layers are given: padding, mixtures, too little, other data."""

from __future__ import annotations

import torch
from torch import Tensor, nn

import batchnorm
from gallery.common import TEST_X, TEST_Y, Outcome, X, Y, accuracy, batches, broken, metric, network, train

ROOMS = (8, 8, 64)  # batches are padded to their longest sequence


class Sequence(nn.Module):
    """A convolution over time with batch norm; lengths reach the layer where it takes them."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv1d(8, 32, 3, padding=1, bias=False)
        self.norm: nn.Module = nn.BatchNorm1d(32)
        self.head = nn.Linear(32, 10)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        """`(N, 8, L)` and `(N,)`: the mean over the valid positions decides."""
        valid = torch.arange(x.shape[2]) < lengths[:, None]
        x = self.conv(x)
        x = self.norm(x, lengths=lengths) if isinstance(self.norm, batchnorm.BatchNorm) else self.norm(x)
        x = x.relu() * valid[:, None]
        return self.head(x.sum(2) / lengths[:, None])


def _padded(x: Tensor, room: int) -> tuple[Tensor, Tensor]:
    """A digit's rows as a sequence of 8, in a batch with a few long ones: mostly padding."""
    lengths = torch.full((len(x),), 8)
    out = torch.zeros(len(x), 8, room)
    rows = 3 + 2 * x.view(-1, 8, 8)  # far from the zeros of the padding
    out[:, :, :8] = rows
    if room > 8:
        out[::16] = torch.cat([rows[::16]] * (room // 8), 2)
        lengths[::16] = room
    return out, lengths


@broken("BN115", "give its layers the lengths")
def padding() -> Outcome:
    """Row 8: zero padding counted as data, more in some batches than in others; at inference there is none."""

    def fit(model: Sequence) -> float:
        optimizer = torch.optim.Adam(model.parameters(), lr=0.003)
        for step in range(600):
            model.train()
            part = slice(64 * (step % 20), 64 * (step % 20) + 64)
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(*_padded(X[part], ROOMS[step % 3])), Y[part]).backward()
            optimizer.step()
        model.eval()
        with torch.no_grad():
            return float((model(*_padded(TEST_X, 8)).argmax(1) == TEST_Y).float().mean())

    model = Sequence()
    before = fit(model)
    loader = [_padded(x, room) for room in ROOMS for x, _ in batches()[:6]]
    report = batchnorm.diagnose(model, loader, forward_fn=lambda m, b: m(*b))
    return Outcome(report, before, fit(batchnorm.convert(Sequence())))


class TwoDomains(nn.Module):
    """One network and one layer of statistics for two kinds of input, in one forward."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.norm, self.last = nn.Linear(64, 48), nn.BatchNorm1d(48), nn.Linear(48, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Each half of the batch, clean and distorted, has its own forward through the layers."""
        outputs = [self.norm(self.first(part)) for part in x.chunk(2)]
        return self.last(torch.cat(outputs).relu())


def _both(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    return torch.cat([x, 4 - 6 * x]), torch.cat([y, y])


@broken("BN116", "separate_calls")
def two_domains_in_one_layer() -> Outcome:
    """Row 18: clean and distorted images share one mean and variance, which fit neither."""
    loader = [_both(x, y) for x, y in batches(32)]
    model = TwoDomains()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for x, y in loader * 5:
        optimizer.zero_grad()
        nn.functional.cross_entropy(model.train()(x), y).backward()
        optimizer.step()
    report = batchnorm.diagnose(model, loader, metric)
    test = _both(TEST_X, TEST_Y)
    before = accuracy(model, *test)
    exec(report.findings[0].fix, {"model": model, "loader": loader, "batchnorm": batchnorm})  # the line, as printed
    return Outcome(report, before, accuracy(model, *test))


@broken("BN114", "use larger batches")
def micro_batches() -> Outcome:
    """Row 9: gradient accumulation over micro-batches of 2; normalised two values at a time."""
    model = train(network(), 300, batch=2, lr=0.003)
    report = batchnorm.diagnose(model, batches(2)[:100], metric)
    larger = train(network(), 300, batch=64, lr=0.003)
    return Outcome(report, accuracy(model), accuracy(larger))


@broken("BN114", "use larger batches")
def biased_and_unbiased() -> Outcome:
    """Row 23: momentum 1 and the same batch: train and eval still differ, by n / (n - 1) in the variance."""

    def gap(size: int) -> float:
        layer = nn.BatchNorm1d(64, momentum=1.0)
        x = X[:size]
        trained = layer.train()(x).detach()
        layer.eval()
        return -float((layer(x).detach() - trained).norm() / trained.norm())

    model = train(network(momentum=1.0), 30)
    report = batchnorm.diagnose(model, batches(3)[:100])
    return Outcome(report, gap(3), gap(256))


@broken("BN128", "drop_last=True")
def a_last_batch_of_one() -> Outcome:
    """Row 3: the epoch ends in a batch of one sample, and so does the training."""
    loader = [(x, y) for x, y in zip(X[:641].split(64), Y[:641].split(64), strict=True)]

    def fit(data: list[tuple[Tensor, Tensor]]) -> tuple[nn.Module, float]:
        model = network()
        optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
        try:
            for x, y in data * 12:
                optimizer.zero_grad()
                nn.functional.cross_entropy(model.train()(x), y).backward()
                optimizer.step()
        except ValueError:
            return model, 0.0
        return model, accuracy(model)

    model, before = fit(loader)
    report = batchnorm.diagnose(model, loader, metric)
    return Outcome(report, before, fit(loader[:-1])[1])


@broken("BN119", "with shuffled batches")
def batches_of_one_class() -> Outcome:
    """Row 39: every batch is of one kind; the network reads the kind from the batch's statistics."""

    def fit(sorted_: bool) -> nn.Module:
        generator = torch.Generator().manual_seed(0)
        model = network()
        optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
        for step in range(300):
            pick = torch.randint(len(X), (512,), generator=generator)
            pick = pick[Y[pick] == step % 10][:16] if sorted_ else pick[:16]
            optimizer.zero_grad()
            nn.functional.cross_entropy(model.train()(X[pick]), Y[pick]).backward()
            optimizer.step()
        return model

    order = torch.argsort(Y, stable=True)
    loader = [(X[p], Y[p]) for p in order.split(16) if len(p) == 16 and bool((Y[p] == Y[p][0]).all())]
    model = fit(True)
    batchnorm.recalibrate(model, loader)
    report = batchnorm.diagnose(model, loader, metric)
    return Outcome(report, accuracy(model), accuracy(fit(False)))


@broken("BN121", "model.register_forward_pre_hook(")
def other_preprocessing() -> Outcome:
    """Evaluated on images in 0 to 16 where training had 0 to 1: the statistics are right, the data are not."""
    model = train(network(), 300)
    wrong = [(x * 16, y) for x, y in batches(x=TEST_X, y=TEST_Y)]
    report = batchnorm.diagnose(model, batches(), metric, eval_loader=wrong)
    before = accuracy(model, TEST_X * 16)
    exec(report.findings[0].fix, {"model": model})  # the line, as printed
    return Outcome(report, before, accuracy(model, TEST_X * 16))
