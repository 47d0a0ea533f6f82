"""Small batches: groups of 8 from one class, and two samples a step; what helps and what does not.

python examples/small_batches.py [--quick]
"""

# %%
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional

import batchnorm
from batchnorm.layers import EMA, MABN, Ghost, Renorm
from example_tools import DIGITS, bar, error, loader, network, quick, show

# %% [markdown]
# In the first part each group of 8 samples normalises on its own, and a group holds one class, as the samples of one
# process, scene or speaker do. What they have in common is normalised away in training, and not at inference.
# In the second part a step has two samples, shuffled.


# %%
def grouped(steps: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches of 8 groups of 8, each group from one class."""
    generator = torch.Generator().manual_seed(0)
    members = [(DIGITS.train_y == label).nonzero()[:, 0] for label in range(10)]
    for _ in range(steps):
        labels = torch.randint(10, (8,), generator=generator)
        parts = [members[c][torch.randint(len(members[c]), (8,), generator=generator)] for c in labels]
        pick = torch.cat(parts)
        yield DIGITS.train_x[pick], DIGITS.train_y[pick]


def pairs(steps: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Two samples a step."""
    generator = torch.Generator().manual_seed(0)
    for _ in range(steps):
        pick = torch.randint(len(DIGITS.train_x), (2,), generator=generator)
        yield DIGITS.train_x[pick], DIGITS.train_y[pick]


def fit(model: nn.Module, data: Iterator[tuple[Tensor, Tensor]], steps: int, rate: float, about: str,
        freeze_at: int | None = None) -> nn.Module:  # fmt: skip
    """Adam, its rate falling to zero."""
    optimizer = torch.optim.Adam(model.train().parameters(), lr=rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for step in bar(range(steps), about):
        if step == freeze_at:
            batchnorm.freeze(model)
        x, y = next(data)
        optimizer.zero_grad()
        functional.cross_entropy(model(x), y).backward()
        optimizer.step()
        schedule.step()
    return model


# %%
def run(quick: bool = False) -> dict[str, float]:
    """Percent wrong of each remedy."""
    steps = 60 if quick else 500

    def in_groups(name: str, estimator: EMA, freeze_at: int | None = None, **choices: Renorm) -> nn.Module:
        model = batchnorm.convert(network(), extent=Ghost(8), estimator=estimator, **choices)
        return fit(model, grouped(steps), steps, 1e-2, name, freeze_at)

    plain = in_groups("batchnorm", EMA(0.9))
    rows = {"batchnorm": error(plain)}
    batchnorm.recalibrate(plain, loader(), progress=False)
    rows["batchnorm, recalibrated"] = error(plain)
    rows["renorm"] = error(in_groups("renorm", EMA(0.9, sigma=True, correction=0), coupling=Renorm()))
    rows["frozen for the last fifth"] = error(in_groups("frozen", EMA(0.9), steps * 4 // 5))
    show("Groups of 8 from one class", rows)

    steps = 100 if quick else 1000
    few = {"batchnorm": error(fit(network(), pairs(steps), steps, 2e-3, "pairs, batchnorm"))}
    coupling = MABN(warmup=steps // 10, correct_after=steps // 4)
    model = batchnorm.convert(network(), "mabn", coupling=coupling, estimator=EMA(0.9, correction=0))
    model = batchnorm.models.center_weights(model)
    few["mabn"] = error(fit(model, pairs(steps), steps, 2e-3, "pairs, mabn"))
    show("Two samples a step", few)
    return {**rows, **{f"pairs, {name}": value for name, value in few.items()}}


# %%
if __name__ == "__main__":
    run(quick())
