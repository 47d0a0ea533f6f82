"""A method of one's own: a coupling and an estimator, ten lines each, at the speed of the built-in ones.

python examples/own_method.py [--quick]
"""

# %%
from dataclasses import dataclass

import torch

import batchnorm
from batchnorm.layers import Coupling, Estimator, Move, Now, Numbers, State, Vectors
from example_tools import CONSOLE, DIGITS, error, network, quick, show, train

# %% [markdown]
# A coupling says which statistics normalise in training: numbers, and vectors of the population. This one mixes the
# moments of the batch with the stored ones.


# %%
@dataclass(frozen=True)
class Between(Coupling):
    """Normalise with moments between those of the batch and of the population."""

    share: float = 0.9

    def plan(self, state: State, now: Now) -> tuple[Numbers, Vectors]:
        """The batch's share of mean and variance, and of the spread between the means."""
        w = self.share
        return Numbers(mean=w, share=w, spread=1 - w), Vectors(pm=state.mean, rest=(1 - w) * state.var)


# %% [markdown]
# An estimator says how the running statistics move. Here the variance follows more slowly than the mean.


# %%
@dataclass(frozen=True)
class TwoSpeeds(Estimator):
    """A moving average whose variance moves `slower` times less."""

    momentum = 0.1
    slower: float = 4.0

    def move(self, state: State, now: Now) -> Move:
        """`gain` is the weight of the batch's mean; q and p those of the old variance and of the batch's."""
        a = now.momentum
        return Move(gain=a, q=1 - a / self.slower, p=a / self.slower)


# %%
def run(quick: bool = False) -> dict[str, float]:
    """Percent wrong with batches of four; whether every layer runs natively, and stock layers give the same."""
    steps = 40 if quick else 300
    rows = {"batchnorm, batches of 4": error(train(network(), steps, 4, 3e-3, about="batchnorm"))}
    model = batchnorm.convert(network(), coupling=Between(), estimator=TwoSpeeds())
    rows["a method of one's own"] = error(train(model, steps, 4, 3e-3, about="own"))
    served = batchnorm.backends(model.train(), DIGITS.test_x[:4])
    for name, line in served.items():
        CONSOLE.print(f"layer {name}: {line}.")
    show(f"After {steps} steps", rows)
    stock = batchnorm.to_stock(model.eval())
    with torch.no_grad():
        apart = float((stock(DIGITS.test_x) - model(DIGITS.test_x)).abs().max())
    return {
        "plain": rows["batchnorm, batches of 4"],
        "own": rows["a method of one's own"],
        "layers": len(served),
        "natively": sum(line.startswith("native:") for line in served.values()),
        "apart": apart,
    }


# %%
if __name__ == "__main__":
    run(quick())
