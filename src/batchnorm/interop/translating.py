"""Carry weights and batch norm state from one framework to another, each in its own conventions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from batchnorm.arguments import SHARE, a_flag, a_string, arguments, instance, number, or_mapping, whole
from batchnorm.errors import BatchNormError, check
from batchnorm.interop.flattening import Flatten, check_names, reorder, suspects
from batchnorm.interop.formats import read, target_for, write
from batchnorm.interop.notes import Notes
from batchnorm.interop.pairing import Pair, pair
from batchnorm.interop.statistics import encode, rescale_variance
from batchnorm.interop.weights import Weights

if TYPE_CHECKING:
    from batchnorm.models.tables import LayerTable


class Carried(NamedTuple):
    """A layer that was carried over, and how its partner was found: "map", "name", "shape" or "order"."""

    source: str
    target: str
    kind: str
    by: str


@dataclass(frozen=True)
class Translation:
    """What `translate` did.

    target is the object or path that now holds the weights; settings is (eps, torch's momentum) of
    each batch norm layer of the target, None where the source does not say; notes are sentences on
    what a format could not hold or what was left as it was.
    """

    target: Any = field(repr=False)
    layers: tuple[Carried, ...]
    settings: dict[str, tuple[float | None, float | None]]
    notes: tuple[str, ...]

    def __rich__(self) -> LayerTable:
        from batchnorm.models.tables import LayerTable

        header = ("source", "target", "kind", "paired by")
        return LayerTable(header, self.layers, caption="\n".join(self.notes), names=(0, 1), texts=(2, 3))

    def __str__(self) -> str:
        from batchnorm.models.tables import as_text

        return as_text(self)


@arguments(
    map=instance(Mapping, "a mapping of source layers to target layers"),
    eps=SHARE,
    momentum=SHARE,
    count=or_mapping(number("2 or more values per channel and batch", lambda v: v > 1)),
    steps=whole(0),
    partial=a_flag,
    trust_numbers=a_flag,
    repair=a_flag,
    flatten=instance(Mapping, "a mapping of linear layers to (C, H, W)"),
    key=a_string,
)
def translate(
    source: Any,
    target: Any,
    *,
    like: Any = None,
    map: Mapping[str, str] | None = None,
    eps: float | None = None,
    momentum: float | None = None,
    count: float | Mapping[str, float] | None = None,
    steps: int | None = None,
    partial: bool = False,
    trust_numbers: bool = False,
    repair: bool = False,
    flatten: Flatten | None = None,
    key: str | None = None,
) -> Translation:
    """Carry a model's weights and running statistics into another framework, in its conventions.

    Example:
        >>> import torch, batchnorm.interop
        >>> model = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.BatchNorm1d(3))
        >>> result = batchnorm.interop.translate(model, "flax")
        >>> sorted(result.target), result.target["params"]["0"]["kernel"].shape
        (['batch_stats', 'params'], (2, 3))
        >>> result.settings
        {'1': (1e-05, 0.1)}

    At inference the target computes what the source computes: its running mean, and a variance that
    is the source's as it is used. Momentum is turned round where the libraries mean the opposite
    by it, kernels are transposed, and debiased averages get a counter with which they go on.

    Torch's running variance estimates the population (divides by n - 1), the others' divide by n.
    Without `count` the number is carried as it is, so outputs agree at once, and it is off by a
    factor n / (n - 1) from what the target would have gathered itself, until its own batches have
    replaced it. With `count` it is what the target would have gathered, and outputs differ by that
    factor from the source's.

    Args:
        source: a file (.pt, .safetensors, .keras, .h5, .weights.h5, .msgpack, .npz, .onnx), a torch module
            or state dict, a Keras model, Flax linen variables, an nnx module or its pure dictionary,
            (model, state) of Equinox, (params, state) of Haiku.
        target: the same; a torch module, Keras model or nnx module is changed in place, the others
            are returned as new objects. Or "torch" or "flax" for a fresh state dict or variables, named as the source.
        like: for a file, a file or model of the target's architecture. It gives the names; needed for
            .keras, .h5 and .onnx, which hold more than weights.
        map: {layer of the source: layer of the target}, for what names, shapes and order leave open.
        eps: of the source's batch norm layers where its format does not record it.
        momentum: the same, in torch's meaning (the weight of the new batch).
        count: values per channel in a training batch (N * H * W), one number or one a target layer.
        steps: training steps behind the statistics, where the source keeps no counter. It sets torch's
            `num_batches_tracked`, and lets `count` leave out what remains of the initial variance.
        partial: leave layers without a partner as they are, with a note.
        trust_numbers: pair layers of one kind and shape in the order of the numbers in their names
            ("conv2d_3", "Conv_1"), or else in the order in which the model defines them. Compare outputs afterwards.
        repair: take out the initial variance that Equinox's mode "batch" leaves in its debiased one.
        flatten: {linear layer of the target: (C, H, W)} for each that follows a flatten of that shape, which
            Keras, Flax and Haiku do with channels last.
        key: where the state dict of the source lies in its file, if there are several: `ema`, `state_dict.model`.

    Raises:
        BatchNormError: see each argument; also tensors a target cannot hold. Nothing is changed or written.
    """
    have = read(source, key=key)
    want, path = target_for(target, like, have)
    pairs = pair(have, want, map, partial=partial, trust_numbers=trust_numbers)
    given = Given(eps, momentum, count, steps, repair, flatten or {})
    check_names(given.flatten, pairs)
    _check_counts(count, pairs)
    raw, settings, notes = dict(want.raw), {}, Notes()
    for one in pairs:
        values = _values(have, want, one, given, notes)
        for role, slot in one.target.slots.items():
            raw[slot.key] = _placed(want, one, role, values)
        if one.target.kind == "batch_norm":
            settings[one.target.name] = _settings(have, want, one, given, notes)
    notes.left(have, want, pairs)
    notes.flattened = suspects(have, want, pairs, given.flatten)
    recorded = {layer.name for layer in want.layers if layer.eps is not None}
    written = {n: (e, m) for n, (e, m) in settings.items() if n in recorded and e is not None}
    result = write(want, raw, written, path)
    rows = tuple(Carried(p.source.name, p.target.name, p.target.kind, p.by) for p in pairs)
    return Translation(result, rows, settings, notes.sentences(have, want, settings, recorded))


@dataclass(frozen=True)
class Given:
    """What the caller said about the statistics."""

    eps: float | None
    momentum: float | None
    count: float | Mapping[str, float] | None
    steps: int | None
    repair: bool
    flatten: Flatten


def _values(have: Weights, want: Weights, one: Pair, given: Given, notes: Notes) -> dict[str, Any]:
    """The tensors of a pair's target in torch's layout, defaults filled in and statistics in its conventions."""
    values = have.values(one.source, repair=given.repair)
    if one.target.name in given.flatten:
        values["weight"] = reorder(values["weight"], have, want, given.flatten[one.target.name])
    if one.target.kind != "batch_norm":
        return values
    momentum = one.source.momentum if one.source.momentum is not None else given.momentum
    steps = given.steps if given.steps is not None else int(values.get("num_batches_tracked", 0))
    values["num_batches_tracked"] = np.asarray(steps, np.int64)
    if "running_var" not in values:
        raise BatchNormError(f"source must track running statistics; layer {one.source.name!r} has none")
    values["running_var"] = np.asarray(values["running_var"], np.float64)
    if have.variance != want.variance:
        count = given.count.get(one.target.name) if isinstance(given.count, Mapping) else given.count
        if count is None:
            notes.biased.append(one.target.name)
        else:
            known = momentum is not None and steps > 0 and have.initial_variance is not None
            rest = (1 - float(momentum or 0.0)) ** steps if known else 0.0
            if (values["running_var"] < rest * (1 - 1e-3)).any():
                rest = 0.0  # recalibrated: an average that started at 1 would still hold more than this
            values["running_var"] = rescale_variance(
                values["running_var"], count, have.variance, want.variance, weight_of_start=rest
            )
    if not one.target.slots.keys() & {"running_mean", "running_var", "running_std"}:
        raise BatchNormError(f"target must track running statistics; layer {one.target.name!r} does not")
    if (values["running_var"] < 0).any():
        notes.negative.append(one.source.name)
    for role, fill in (("weight", np.ones_like), ("bias", np.zeros_like)):
        if role in one.target.slots and role not in values:
            values[role] = fill(values["running_mean"])
    decay = one.target.momentum if one.target.momentum is not None else momentum
    return encode(one.target.codec, values, None if decay is None else 1 - decay)


def _check_counts(count: float | Mapping[str, float] | None, pairs: list[Pair]) -> None:
    known = {p.target.name for p in pairs if p.target.kind == "batch_norm"}
    odd = sorted(set(count) - known) if isinstance(count, Mapping) else []
    check(not odd, "count", "one number, or one a batch norm layer of the target", f"for {', '.join(odd)}")


def _placed(want: Weights, one: Pair, role: str, values: dict[str, Any]) -> Any:
    slot, old = one.target.slots[role], want.raw[one.target.slots[role].key]
    if role == "bias" and role not in values:
        return np.zeros_like(old)
    if role not in values:
        raise BatchNormError(f"source must hold the {role} of {one.source.name!r}; its format has none for it")
    value = np.asarray(values[role])
    unplaced = [r for r in ("weight", "bias") if r in values and r not in one.target.slots]
    for other in unplaced:
        neutral = 1.0 if other == "weight" and one.target.kind == "batch_norm" else 0.0
        if (np.asarray(values[other]) != neutral).any():
            raise BatchNormError(
                f"target must have a {other} for layer {one.target.name!r}; {one.source.name!r} has one that is not "
                f"{neutral:g} everywhere"
            )
    placed = want.placed(slot, value)
    if placed.shape != old.shape:
        raise BatchNormError(
            f"source must hold {role} of {one.source.name!r} in the target's shape {old.shape}; it has {placed.shape}"
        )
    if np.isfinite(value).all() and not np.isfinite(placed).all():
        raise BatchNormError(f"target must be wide enough for {one.target.name!r}; {role} overflows {old.dtype}")
    return placed


def _settings(have: Weights, want: Weights, one: Pair, given: Given, notes: Notes) -> tuple[float | None, float | None]:
    eps = one.source.eps if one.source.eps is not None else given.eps
    momentum = one.source.momentum if one.source.momentum is not None else given.momentum
    if one.target.eps is None:
        return eps, momentum
    if eps is None:
        raise BatchNormError(
            f"eps must be given: the source does not record it for {one.source.name!r} (torch and Flax have 1e-5 by "
            "default, Keras 1e-3)"
        )
    if want.format == "equinox":
        if not np.isclose(eps, one.target.eps, rtol=1e-6, atol=0):
            raise BatchNormError(
                f"target must have been built with the source's eps {eps:g} in layer {one.target.name!r}, where "
                f"Equinox fixes it; it has {one.target.eps:g}"
            )
        if momentum is None or not np.isclose(momentum, one.target.momentum or 0.0, rtol=1e-6, atol=0):
            notes.momentum.append(one.target.name)
    elif momentum is None:
        notes.momentum.append(one.target.name)
    return eps, momentum
