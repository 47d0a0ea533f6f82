"""Detect and fix lag: `watch` says it while training; estimators compared at the same weights.

python examples/lag.py [--quick]
"""

# %%
import batchnorm
from batchnorm.layers import EMA, Cumulative, Window
from example_tools import CONSOLE, error, loader, network, quick, show, train

# %% [markdown]
# Batch norm normalises with the batch in training, so the estimator changes no weight: after the same steps all
# these networks are the same to the bit, and only what they stored differs.

# %%
ESTIMATORS = {
    "EMA, gain 0.01": EMA(0.99),
    "debiased, gain 0.01": EMA(0.99, debias=True),
    "EMA, gain 0.1": EMA(0.9),
    "debiased, gain 0.1": EMA(0.9, debias=True),
    "cumulative": Cumulative(),
    "window of 10": Window(10),
}


def run(quick: bool = False) -> dict[str, float]:
    """Percent wrong after 40 steps, by estimator."""
    steps = 20 if quick else 40
    model = network(momentum=0.01)
    with batchnorm.watch(model, steps=steps) as watched:
        train(model, steps, about="watched")
    codes = [finding.code for finding in watched.findings]
    CONSOLE.print(f"watch: {watched.findings[0].code}: {watched.findings[0].message}.")

    rows = {}
    for name, estimator in ESTIMATORS.items():
        model = train(batchnorm.convert(network(), estimator=estimator), steps, about=name)
        rows[name] = error(model)
    batchnorm.recalibrate(model, loader(), progress=False)
    rows["recalibrated"] = error(model)
    show(f"After {steps} steps, the same weights in every row", rows)
    return {**rows, "warned": float("BN308" in codes)}


# %%
if __name__ == "__main__":
    run(quick())
