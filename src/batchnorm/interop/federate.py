"""Average the state dicts of clients: each entry by the rule for what it is, batch norm by the laws of moments."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from batchnorm.arguments import NOT_NEGATIVE, a_state, arguments, instance, several_of, word
from batchnorm.errors import BatchNormError, check
from batchnorm.interop.torch_format import MOVING, is_batch_norm, key_sets

State = Mapping[str, Tensor]
Keep = Literal["share", "local", "local_statistics"]


@dataclass(frozen=True)
class Rule:
    """What becomes of one entry: "mean", "pooled" (a batch norm statistic), "counter", "same" or "local"."""

    entry: str
    rule: str
    layer: str


@arguments(state=a_state, batch_norm=word(Keep))
def rules(state: State, batch_norm: Keep = "share") -> tuple[Rule, ...]:
    """What `average` will do with each entry of a state dict.

    Example:
        >>> import torch
        >>> model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.BatchNorm1d(2))
        >>> [f"{r.entry}: {r.rule}" for r in rules(model.state_dict(), "local_statistics")][3:]
        ['1.bias: mean', '1.running_mean: local', '1.running_var: local', '1.num_batches_tracked: local']

    Args:
        state: batch norm layers are recognised by their key sets, whatever they are called.
        batch_norm: "share" all of it; keep "local" all of it (FedBN); or keep "local_statistics" and
            share weight and bias (SiloBN).

    Raises:
        BatchNormError: another word for batch_norm.
    """
    found: list[Rule] = []
    for path, leaves in key_sets(state).items():
        normal = is_batch_norm(leaves)
        for leaf, key in leaves.items():
            moving = leaf not in ("weight", "bias")
            if normal and (batch_norm == "local" or (batch_norm == "local_statistics" and moving)):
                rule = "local"
            elif normal and leaf in MOVING:
                rule = "pooled"
            elif normal and leaf == "num_batches_tracked":
                rule = "counter"
            else:
                rule = "mean" if state[key].is_floating_point() or state[key].is_complex() else "same"
            found.append(Rule(key, rule, path))
    order = {key: i for i, key in enumerate(state)}
    return tuple(sorted(found, key=lambda r: order[r.entry]))


@arguments(
    states=several_of(a_state),
    counts=several_of(NOT_NEGATIVE),
    batch_norm=word(Keep),
    names=instance(Mapping, "a mapping of entries to rules"),
)
def average(
    states: Sequence[State],
    counts: Sequence[float],
    *,
    batch_norm: Keep = "share",
    names: Mapping[str, str] | None = None,
) -> dict[str, Tensor]:
    """One state dict from several clients', weighted by their numbers of samples.

    Example:
        >>> import torch
        >>> a, b = torch.nn.BatchNorm1d(1), torch.nn.BatchNorm1d(1)
        >>> _ = b.running_mean.fill_(2.0)
        >>> average([a.state_dict(), b.state_dict()], [100, 100])["running_var"]
        tensor([2.])

    Weights are averaged with `counts`. A batch norm layer's running mean is averaged the same way
    and its running variance pooled by the law of total variance, the mean of the clients'
    variances plus the variance of their means: averaging variances alone loses the second part
    (here it would say 1). Its counter stays an integer: the largest of the clients'. Other integer
    entries must agree. Arithmetic is in float64, each entry keeps its dtype.

    With `batch_norm="local"` or "local_statistics" the entries that stay with the clients are not
    in the result; `merge` puts the rest into a client's state. A client that has none yet, one not
    seen in training, takes `average(..., batch_norm="share")`.

    Args:
        states: one a client, with the same entries.
        counts: samples of each client; 0 leaves a client out.
        batch_norm: as in `rules`.
        names: another rule for an entry, {entry: "mean", "pooled", "counter", "same" or "local"}.

    Raises:
        BatchNormError: no clients, entries or shapes that differ, counts that weigh nothing, integers that
            differ, or a variance or mean that is not finite in a client of weight.

    Source: Li et al., "FedBN" (2021), for local batch norm; the law of total variance.
    """
    weights = _weights(states, counts)
    used = [state for state, weight in zip(states, weights, strict=True) if weight > 0]
    weights = [weight for weight in weights if weight > 0]
    _check_same(states)
    result: dict[str, Tensor] = {}
    for rule in rules(states[0], batch_norm):
        how = (names or {}).get(rule.entry, rule.rule)
        check(how in _RULES, f"names[{rule.entry!r}]", f"one of {', '.join(_RULES)}", repr(how))
        if how == "local":
            continue
        prefix = f"{rule.layer}." if rule.layer else ""
        result[rule.entry] = _RULES[how](rule.entry, prefix, used, weights)
    unknown = set(names or {}) - set(states[0])
    check(not unknown, "names", "entries of the states", ", ".join(sorted(unknown)))
    return result


@arguments(client=a_state, shared=a_state)
def merge(client: State, shared: State) -> dict[str, Tensor]:
    """A client's state with the shared entries in place of its own.

    Example:
        >>> import torch
        >>> merge({"a": torch.zeros(1), "bn": torch.ones(1)}, {"a": torch.full((1,), 5.0)})
        {'a': tensor([5.]), 'bn': tensor([1.])}

    Raises:
        BatchNormError: shared entries the client does not have, or of other shapes.
    """
    for key, value in shared.items():
        if key not in client or client[key].shape != value.shape:
            raise BatchNormError(f"shared must hold entries of the client; {key!r} is none, or has another shape there")
    return {key: shared[key].to(value.dtype) if key in shared else value for key, value in client.items()}


def _mean(key: str, prefix: str, states: Sequence[State], weights: Sequence[float]) -> Tensor:
    old = states[0][key]
    if not (old.is_floating_point() or old.is_complex()):
        raise BatchNormError(f"entry {key!r} must be of real or complex numbers to be averaged; it is {old.dtype}")
    wide = torch.complex128 if old.is_complex() else torch.float64
    return torch.stack([w * s[key].to(wide) for s, w in zip(states, weights, strict=True)]).sum(0).to(old.dtype)


def _pooled(key: str, prefix: str, states: Sequence[State], weights: Sequence[float]) -> Tensor:
    for i, state in enumerate(states):
        if not bool(torch.isfinite(state[key]).all()):
            raise BatchNormError(f"states must have finite statistics; {key!r} of client {i} holds NaN or infinity")
    if key.removeprefix(prefix) != "running_var":
        return _mean(key, prefix, states, weights)
    means = [state[f"{prefix}running_mean"].double() for state in states]
    centre = torch.stack([w * m for w, m in zip(weights, means, strict=True)]).sum(0)
    parts = [w * (s[key].double() + (m - centre) ** 2) for w, m, s in zip(weights, means, states, strict=True)]
    return torch.stack(parts).sum(0).to(states[0][key].dtype)


def _counter(key: str, prefix: str, states: Sequence[State], weights: Sequence[float]) -> Tensor:
    return torch.stack([state[key] for state in states]).max(0).values


def _same(key: str, prefix: str, states: Sequence[State], weights: Sequence[float]) -> Tensor:
    if any(not torch.equal(state[key], states[0][key]) for state in states):
        raise BatchNormError(f"entry {key!r} must be the same for all clients, as integers have no mean; it differs")
    return states[0][key].clone()


_RULES: dict[str, Callable[[str, str, Sequence[State], Sequence[float]], Any]] = {
    "mean": _mean,
    "pooled": _pooled,
    "counter": _counter,
    "same": _same,
    "local": _same,
}


def _weights(states: Sequence[State], counts: Sequence[float]) -> list[float]:
    check(len(states) > 0, "states", "of at least one client", "empty")
    check(len(counts) == len(states), "counts", f"one for each of the {len(states)} clients", f"{len(counts)}")
    numbers = [float(c) for c in counts]
    legal = all(0 <= c < float("inf") for c in numbers) and sum(numbers) > 0
    check(legal, "counts", "0 or more and not all 0", list(counts))
    return [c / sum(numbers) for c in numbers]


def _check_same(states: Sequence[State]) -> None:
    for i, state in enumerate(states[1:], 1):
        if state.keys() != states[0].keys():
            odd = sorted(state.keys() ^ states[0].keys())[:3]
            raise BatchNormError(f"states must have the same entries; client {i} differs in {', '.join(odd)}")
        for key, value in state.items():
            if value.shape != states[0][key].shape:
                raise BatchNormError(
                    f"states must have the same shapes; {key!r} of client {i} is {tuple(value.shape)}, of client 0 "
                    f"{tuple(states[0][key].shape)}"
                )
