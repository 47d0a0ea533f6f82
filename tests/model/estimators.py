"""How running statistics move: each rule as its paper or framework writes it, on plain tensors and Python numbers.

`choice` is the estimator of a case: kind, momentum (a number, a function of the step, or None for 1 / step),
correction, total, sigma, debias, size. `state` holds the buffers by the names of a state_dict.
"""

import torch

from tests.model.groups import times


def start(choice, state, trained):
    """The buffers beside mean and variance, as they start."""
    if choice.kind == "pooled":
        state["pooled_count"] = 0.0
    if choice.kind == "window":
        k = choice.size
        state["window_mean"] = state["running_mean"].expand(k, -1).clone()
        state["window_var"] = state["running_var"].expand(k, -1).clone()
        state["window_count"], state["window_seen"] = [0.0] * k, k if trained else 0
    if choice.kind == "ema" and choice.debias and callable(choice.momentum):
        state["initial_weight"] = 0.0 if trained else 1.0


def momentum_at(choice, step):
    return (
        choice.momentum(torch.tensor(float(step), dtype=torch.float64))
        if callable(choice.momentum)
        else choice.momentum
    )


def paused(choice):
    return not callable(choice.momentum) and choice.momentum == 0


def gain(choice, state, n, step):
    """The weight of a batch of n values in the new mean."""
    if choice.kind == "pooled":
        return 0.0 if paused(choice) else n / (state["pooled_count"] + n)
    if choice.kind == "window":
        if paused(choice):
            return 0.0
        weights = window_weights(choice, state, n)
        return weights[state["window_seen"] % choice.size] / sum(weights)
    a = momentum_at(choice, step)
    if a is None:
        return 1 / step
    a = float(a)
    if choice.debias:
        before = state["initial_weight"] if "initial_weight" in state else (1 - a) ** (step - 1)
        # 1 - before * (1 - a), where neither difference takes the last digits of a small gain.
        return a / (1 - before + before * a) if a > 0 else 0.0
    return a


def window_weights(choice, state, n):
    """Of every row, the batch in the oldest one's place; filled rows of unknown size weigh what the batch weighs."""
    seen, weights = state["window_seen"], []
    for row, count in enumerate(state["window_count"]):
        here = n if row == seen % choice.size or count == 0 else count
        weights.append(0.0 if row > seen else here if choice.total else 1.0)
    return weights


def window_average(rows, weights, total, correction):
    """Mean and variance of the rows (mean, var) that have a weight."""
    rows = [(weight, mean, var) for weight, (mean, var) in zip(weights, rows, strict=True) if weight > 0]
    count = sum(weight for weight, _, _ in rows)
    mean = sum(weight * mean for weight, mean, _ in rows) / count
    if not total:
        return mean, sum(weight * var for weight, _, var in rows) / count
    spread = sum(weight * (var + (m - mean) ** 2) for weight, m, var in rows)
    return mean, spread / (count - correction if count > correction else 1.0)


def rest(choice, state, n):
    """What the batch joins: the running statistics, or the window without its oldest batch."""
    if choice.kind != "window":
        return state["running_mean"], state["running_var"]
    weights, slot = window_weights(choice, state, n), state["window_seen"] % choice.size
    weights[slot] = 0.0
    if not any(weights):
        return state["running_mean"], state["running_var"]
    rows = zip(state["window_mean"], state["window_var"], strict=True)
    return window_average(list(rows), weights, choice.total, 0)


def moved(choice, state, batch, step, eps, reliability):
    """The buffers after a batch; nothing is written."""
    mean, var, a = state["running_mean"], state["running_var"], gain(choice, state, batch.n, step)
    own = batch.corrected(choice.correction, reliability)
    if choice.kind == "pooled":
        return pooled_moved(choice, state, batch, a)
    if choice.kind == "window":
        return window_moved(choice, state, batch, own) if not paused(choice) else {}
    new = {"running_mean": times(1 - a, mean) + times(a, batch.mean)}
    if "initial_weight" in state and momentum_at(choice, step) is not None:
        new["initial_weight"] = state["initial_weight"] * (1 - float(momentum_at(choice, step)))
    if choice.sigma:
        sigma = times(1 - a, (var + eps).sqrt()) + times(a, (own + eps).sqrt())
        return {**new, "running_var": (sigma**2 - eps).clamp_min(0)}
    new["running_var"] = times(1 - a, var) + times(a, own)
    if choice.total:
        new["running_var"] = new["running_var"] + times(a * (1 - a), (batch.mean - mean) ** 2)
    return new


def pooled_moved(choice, state, batch, a):
    """The exact moments of everything seen."""
    if paused(choice):
        return {}
    seen, c = state["pooled_count"], choice.correction
    count, far = seen + batch.n, batch.mean - state["running_mean"]
    squares = times(max(seen - c, 0.0), state["running_var"]) + batch.n * batch.var + times(seen * a, far**2)
    return {
        "running_mean": times(1 - a, state["running_mean"]) + a * batch.mean,
        "running_var": squares / (count - c) if count > c else torch.full_like(squares, torch.nan),
        "pooled_count": count,
    }


def window_moved(choice, state, batch, own):
    """The window with the batch in the oldest one's place, and its average."""
    slot = state["window_seen"] % choice.size
    weights = window_weights(choice, state, batch.n)
    means, variances, counts = (state[f"window_{name}"] for name in ("mean", "var", "count"))
    means, variances, counts = means.clone(), variances.clone(), list(counts)
    means[slot], variances[slot], counts[slot] = batch.mean, batch.var if choice.total else own, batch.n
    mean, var = window_average(list(zip(means, variances, strict=True)), weights, choice.total, choice.correction)
    rings = {"window_mean": means, "window_var": variances, "window_count": counts}
    return {"running_mean": mean, "running_var": var, **rings, "window_seen": state["window_seen"] + 1}
