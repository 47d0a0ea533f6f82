"""A GAN generator's statistics: its averaged weights have none of their own until they are measured.

python examples/gan.py [--quick]
"""

# %%
import copy

import torch
from torch import Tensor, nn
from torch.nn import functional

import batchnorm
from example_tools import DIGITS, bar, quick, show

# %% [markdown]
# Samples are drawn from a moving average of the generator's weights, as is usual. That average never ran forward in
# training, so what it stores is what it was built with, or a copy of what the last weights had. "Standing statistics"
# are measured by running it on noise. A generator serves as data, so nothing is stored.

# %%
NOISE, BATCH = 16, 64


def generator() -> nn.Sequential:
    """Noise to images `(N, 64)`."""

    def block(i: int, o: int) -> list[nn.Module]:
        return [nn.Linear(i, o, bias=False), nn.BatchNorm1d(o), nn.ReLU()]

    return nn.Sequential(*block(NOISE, 128), *block(128, 128), nn.Linear(128, 64), nn.Sigmoid())


def discriminator() -> nn.Sequential:
    """Without batch norm, so that images cannot inform each other."""
    return nn.Sequential(
        nn.Linear(64, 128), nn.LeakyReLU(0.2), nn.Linear(128, 128), nn.LeakyReLU(0.2), nn.Linear(128, 1)
    )


def train(steps: int, decay: float = 0.99) -> tuple[nn.Sequential, nn.Sequential]:
    """The last generator and the average of its weights."""
    torch.manual_seed(0)
    made, critic = generator(), discriminator()
    average = copy.deepcopy(made)
    optimizers = [torch.optim.Adam(m.parameters(), lr=1e-3, betas=(0.5, 0.99)) for m in (made, critic)]
    real = DIGITS.train_x.flatten(1)
    for _ in bar(range(steps), "two players"):
        x = real[torch.randint(len(real), (BATCH,))]
        fake = made(torch.randn(BATCH, NOISE))
        loss = functional.softplus(-critic(x)).mean() + functional.softplus(critic(fake.detach())).mean()
        optimizers[1].zero_grad()
        loss.backward()
        optimizers[1].step()
        optimizers[0].zero_grad()
        functional.softplus(-critic(fake)).mean().backward()
        optimizers[0].step()
        with torch.no_grad():
            for a, b in zip(average.parameters(), made.parameters(), strict=True):
                a.lerp_(b, 1 - decay)
    return made, average


# %%
@torch.no_grad()
def distance(model: nn.Module, scale: float = 1.0, train: bool = False) -> float:
    """Frechet distance between Gaussians of 4000 samples and of the held-out digits, on pixels."""
    noise = scale * torch.randn(4000, NOISE, generator=torch.Generator().manual_seed(1))
    with batchnorm.pause(model.train(train)):
        samples, real = model(noise).double(), DIGITS.test_x.flatten(1).double()
    (a, b), difference = (x.T.cov() for x in (samples, real)), samples.mean(0) - real.mean(0)
    shared = torch.linalg.eigvals(a @ b).real.clamp_min(0).sqrt().sum()
    return float(difference.square().sum() + a.trace() + b.trace() - 2 * shared)


def noise(batches: int = 40, scale: float = 1.0) -> list[Tensor]:
    """What the generator is measured on."""
    drawn = torch.Generator().manual_seed(2)
    return [scale * torch.randn(BATCH, NOISE, generator=drawn) for _ in range(batches)]


@torch.no_grad()
def seam(model: nn.Module, scale: float) -> float:
    """Root mean square difference between pixels with stored statistics and with those of a large batch."""
    z = scale * torch.randn(4000, NOISE, generator=torch.Generator().manual_seed(1))
    with batchnorm.pause(model.train()):
        wanted = model(z)
    return float((model.eval()(z) - wanted).square().mean().sqrt())


def run(quick: bool = False) -> dict[str, float]:
    """Distances of the averaged generator's samples under each choice of statistics."""
    made, average = train(100 if quick else 2000)
    rows = {"last weights, their own statistics": distance(made)}
    rows["average, never measured"] = distance(average)
    with torch.no_grad():
        for own, last in zip(average.buffers(), made.buffers(), strict=True):
            own.copy_(last)
    rows["average, statistics of the last weights"] = distance(average)
    batchnorm.recalibrate(average, noise(), progress=False)
    rows["average, standing statistics"] = distance(average)
    rows["average, statistics of the batch of 4000"] = distance(average, train=True)
    show("Samples against held-out digits", rows, "Frechet distance")

    # Truncated noise is another distribution: a bank for each level. (It takes off plain scaling, as here, again.)
    batchnorm.convert(average)
    with batchnorm.bank(average, "half"):
        pass
    batchnorm.recalibrate(average, noise(scale=0.5), bank="half", progress=False)
    truncated = {"statistics of whole noise": seam(average, 0.5)}
    with batchnorm.bank(average, "half"):
        truncated["its own bank"] = seam(average, 0.5)
    show("Noise at half its size, against statistics of a large batch", truncated, "pixel difference")
    names = ("last", "initial", "copied", "standing", "batch")
    found = dict(zip(names, rows.values(), strict=True))
    return {**found, "truncated": truncated["statistics of whole noise"], "truncated bank": truncated["its own bank"]}


# %%
if __name__ == "__main__":
    run(quick())
