"""Couplings whose backward is an estimate with a memory: MABN, PowerNorm and Unified Normalization, by hand.

None takes off a mean. Forward: y = x / sqrt(q + eps) * ratio, where q is made of the batch's E[x^2] and of windows or
running values. Backward: dx = (g - psi * y) / sqrt(q + eps), where psi stands for the mean of g * y. A window is rows
and a count of how often something entered.
"""

import torch


def start(choice, state):
    """The buffers, as they start."""
    rows = {"mabn": choice.window - 1, "unified": choice.window}.get(choice.kind, 0)
    one = torch.zeros_like(state["running_mean"])
    if rows:
        for name in ("forward_window", "backward_window"):
            state[name], state[f"{name}_seen"] = one.expand(rows, -1).clone(), 0
    if choice.kind == "unified":
        state["backward_average"] = one[None].clone()
    if choice.kind == "power":
        state["backward_v"] = one[None].clone()


def pushed(state, name, value):
    """The window with a value in the oldest one's place."""
    seen, ring = state[f"{name}_seen"], state[name].clone()
    ring[seen % len(ring)] = value
    return {name: ring, f"{name}_seen": seen + 1}


def kept(state, name):
    """The rows that stay when the next value enters."""
    ring, seen = state[name], state[f"{name}_seen"]
    return [row for i, row in enumerate(ring) if i < seen and i != seen % len(ring)]


def full(choice, state, name, step):
    """Whether the window, this batch included, is full and the warm-up over."""
    return step > choice.warmup and state[f"{name}_seen"] >= choice.window - 1


def root_ratio(choice, q, running, eps):
    """Within 1 / r_max and r_max; at 1 there is nothing to clip, whatever the statistics are, as in renorm."""
    if choice.r_max == 1:
        return torch.ones_like(q)
    return ((q + eps) / (running + eps)).sqrt().clamp(1 / choice.r_max, choice.r_max)


# Forward: q, the output's ratio, the ratio of the gradient alone, and whether the window was used --------------------


def mabn(case, m, state, step, outlier):
    """The mean of the window of E[x^2]; r = sqrt(window / running) within 1 / r_max and r_max (Yan et al. 2020)."""
    c, q, used = case.coupling, m.var, False
    if c.window > 1 and full(c, state, "forward_window", step):
        used = True
        q = (m.var + state["forward_window"].sum(0)) / c.window
    late = step > c.correct_after
    return q, root_ratio(c, q, state["running_var"], case.eps) if late else 1.0, 1.0, used


def power(case, m, state, step, outlier):
    """The running E[x^2] of the past, after a warm-up with the batch's (Shen et al. 2020, algorithm 2)."""
    return (m.var, 1.0, 1.0, False) if step <= case.coupling.warmup else (state["running_var"], 1.0, 1.0, True)


def unified(case, m, state, step, outlier):
    """The geometric mean of the window; r scales the gradient alone (Yang et al. 2022)."""
    c = case.coupling
    if outlier or not full(c, state, "forward_window", step):
        return m.var, 1.0, 1.0, False
    q = (sum(row.log() for row in [*kept(state, "forward_window"), m.var]) / c.window).exp()
    return q, 1.0, root_ratio(c, q, state["running_var"], case.eps), True


def is_outlier(case, m, state, step):
    """Unified's filter: arithmetic minus geometric mean above the window's recorded variance in any channel."""
    c = case.coupling
    if c.kind != "unified" or not c.filter_outliers or c.window < 2 or not full(c, state, "forward_window", step):
        return False
    rows = pushed(state, "forward_window", m.var)["forward_window"]
    gap = rows.mean(0) - rows.log().mean(0).exp()
    return bool((gap > state["forward_window"].sqrt().var() * c.window).any())


def remembered_forward(case, m, state, outlier):
    """The batch's E[x^2] enters the window; the running one for an outlier."""
    if "forward_window" not in state:
        return {}
    return pushed(state, "forward_window", state["running_var"] if outlier else m.var)


# Backward: psi of each group, and what the memory holds after it ------------------------------------------------------


def pulled(case, state, step, own, counts, squares, outlier):
    """What stands for psi in each group, and the new memory.

    own is the batch's psi of each group `(C,)`, squares the mean of y^2, counts what the groups hold.
    """
    c = case.coupling

    def over_groups(rows):
        return sum(n * row for n, row in zip(counts, rows, strict=True)) / sum(counts)

    if c.kind == "power":
        held = (1 - c.backward_decay) * state["backward_v"][0]
        left = [psi - times_each(held, y2) for psi, y2 in zip(own, squares, strict=True)]
        new = {"backward_v": state["backward_v"] + over_groups(left)}
        return own if step <= c.warmup else [held] * len(own), new
    if c.kind == "mabn":
        if c.window == 1:
            return own, {}
        past = state["backward_window"].sum(0)
        used = [(psi + past) / c.window for psi in own] if full(c, state, "backward_window", step) else own
        return used, pushed(state, "backward_window", over_groups(own))
    if outlier:
        return own, {}
    active = full(c, state, "backward_window", step)
    past, decay = sum(kept(state, "backward_window"), torch.zeros_like(own[0])), c.backward_decay
    windowed = [(psi + past) / c.window for psi in own] if active else own
    moved = [decay * state["backward_average"][0] + (1 - decay) * row for row in windowed]
    new = pushed(state, "backward_window", over_groups(own))
    return moved if active else own, {**new, "backward_average": over_groups(moved)[None]}


def times_each(weight, x):
    return torch.where(weight == 0, 0.0, weight * x)


FORWARD = {"mabn": mabn, "power": power, "unified": unified}
