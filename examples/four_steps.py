"""The four steps: what a batch norm layer does to real images, each step beside the same by hand.

python examples/four_steps.py [--quick]
"""

# %%
import torch

from example_tools import DIGITS, bar, network, quick, show

# %% [markdown]
# The first batch norm layer of a network receives what the first convolution makes of a batch of digits.

# %%
STEPS = 20


def run(quick: bool = False) -> dict[str, float]:
    """Largest differences between the layer and the formulas, over some steps of training."""
    model = network()
    convolution, layer = model[0], model[1]
    worst = {"1, 2: normalised with the batch": 0.0, "3: running statistics moved": 0.0, "4: inference": 0.0}
    for step in bar(range(4 if quick else STEPS), "forwards"):
        x = convolution(DIGITS.train_x[64 * step : 64 * step + 64]).detach()
        mean_before, var_before = layer.running_mean.clone(), layer.running_var.clone()

        layer.train()
        y = layer(x)

        # 1. Measure: a mean and a variance for each channel, over samples and positions.
        mean, biased = x.mean((0, 2, 3)), x.var((0, 2, 3), correction=0)
        # 2. Normalise with them; the biased variance.
        by_hand = (x - mean[:, None, None]) / (biased + layer.eps).sqrt()[:, None, None]
        # 3. Move the running statistics; the unbiased variance. Momentum is the weight of the new batch.
        a, unbiased = layer.momentum, x.var((0, 2, 3), correction=1)
        moved_mean = (1 - a) * mean_before + a * mean
        moved_var = (1 - a) * var_before + a * unbiased
        # 4. Inference normalises with the running statistics. The batch does not matter.
        layer.eval()
        z = (x - layer.running_mean[:, None, None]) / (layer.running_var + layer.eps).sqrt()[:, None, None]

        found = (
            (y - by_hand).detach().abs().max(),
            torch.maximum((layer.running_mean - moved_mean).abs().max(), (layer.running_var - moved_var).abs().max()),
            (layer(x) - z).detach().abs().max(),
        )
        worst = {name: max(old, float(new)) for (name, old), new in zip(worst.items(), found, strict=True)}
    steps = int(layer.num_batches_tracked)
    show(f"Layer against formula, largest difference over {steps} batches", worst, "difference")
    left = (1 - layer.momentum) ** steps
    show("What is left of the initial mean 0 and variance 1", {f"(1 - momentum)^{steps}": 100 * left}, "%")
    return dict(zip(("normalise", "move", "inference", "left"), (*worst.values(), left), strict=True))


# %%
if __name__ == "__main__":
    run(quick())
