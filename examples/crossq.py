"""Union batches as in CrossQ: a critic without a target network learns values from images, in one forward or in two.

python examples/crossq.py [--quick]
"""

# %%
import torch
from torch import Tensor, nn

import batchnorm
from example_tools import DIGITS, bar, network, quick, show

# %% [markdown]
# A state is an image of a digit. From digit d the next state is an image of d + 1, or, from 9, the end; reaching the
# end pays 1. So the value of d is GAMMA to the power of 9 - d, and the error of a learned critic is known. Most
# transitions in the data start low, so states and next states are distributed differently, as in any replay buffer.

# %%
GAMMA = 0.8
MEMBERS = [(DIGITS.train_y == label).nonzero()[:, 0] for label in range(10)]


def transitions(steps: int, size: int = 64) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Images, next images (the end is black), rewards."""
    generator = torch.Generator().manual_seed(0)
    weights, out = 0.8 ** torch.arange(10.0), []

    def image(label: int) -> Tensor:
        pick = torch.randint(len(MEMBERS[label]), (), generator=generator)
        return DIGITS.train_x[MEMBERS[label][pick]]

    for _ in range(steps):
        now = torch.multinomial(weights, size, True, generator=generator).tolist()
        then = torch.stack([image(d + 1) if d < 9 else torch.zeros(1, 8, 8) for d in now])
        out.append((torch.stack([image(d) for d in now]), then, torch.tensor([float(d == 9) for d in now])))
    return out


def critic() -> nn.Module:
    """The network with one output; the paper adds renorm after 100,000 steps, which these few do not need."""
    model = network()
    model[-1] = nn.Linear(32, 1)
    return batchnorm.convert(model, estimator=batchnorm.layers.EMA(0.99, debias=True))


def learn(data: list[tuple[Tensor, Tensor, Tensor]], together: bool, about: str) -> nn.Module:
    """Temporal differences; the bootstrap value comes from the critic itself, no target network."""
    model = critic().train()
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3, betas=(0.5, 0.999))
    for step in bar(range(len(data)), about):
        now, then, reward = data[step]
        if together:
            q, q_next = batchnorm.models.union(model, now, then)
        else:
            q, q_next = model(now), model(then)
        target = torch.where(reward > 0, reward, GAMMA * q_next.detach()[:, 0])
        optimizer.zero_grad()
        (q[:, 0] - target).square().mean().backward()
        optimizer.step()
    return model


# %%
@torch.no_grad()
def off(model: nn.Module) -> float:
    """Root mean square error of the values of held-out images, in eval mode."""
    value = GAMMA ** (9.0 - DIGITS.test_y)
    return float((model.eval()(DIGITS.test_x)[:, 0] - value).square().mean().sqrt())


def run(quick: bool = False) -> dict[str, float]:
    """The error of the values: two forwards against one union forward."""
    data = transitions(60 if quick else 600)
    two = learn(data, together=False, about="two forwards")
    one = learn(data, together=True, about="one union forward")
    rows = {"two forwards, each normalised by itself": off(two), "one forward over the union": off(one)}
    value = GAMMA ** (9.0 - DIGITS.test_y)
    rows["guessing the mean value"] = float((value - value.mean()).square().mean().sqrt())
    show("Error of the learned values", rows, "root mean square")
    counted = {"two forwards": int(two[1].num_batches_tracked), "union": int(one[1].num_batches_tracked)}
    show("Updates of the running statistics", {name: float(count) for name, count in counted.items()}, "updates")
    apart, union, guess = rows.values()
    return {"apart": apart, "union": union, "guess": guess, "updates apart": counted["two forwards"],
            "updates union": counted["union"], "steps": len(data)}  # fmt: skip


# %%
if __name__ == "__main__":
    run(quick())
