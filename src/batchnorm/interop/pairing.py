"""Which layer of one model is which layer of another: by a map, by name, by shape, by order; never by guessing."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping
from typing import NamedTuple

from batchnorm.errors import BatchNormError
from batchnorm.interop.weights import Layer, Weights

# Containers that frameworks put between the names a person gave.
_CONTAINERS = {"layers", "vars", "params", "modules", "module", "model", "~"}


_Names = tuple[dict[str, tuple[str, ...]], dict[str, tuple[str, ...]]]


class Pair(NamedTuple):
    """Two layers that are one, and how that is known: "map", "name", "shape" or "order"."""

    source: Layer
    target: Layer
    by: str


def pair(
    source: Weights,
    target: Weights,
    mapping: Mapping[str, str] | None = None,
    *,
    partial: bool = False,
    trust_numbers: bool = False,
) -> list[Pair]:
    """Pair the layers of two models.

    A mapping comes first. Then layers of one kind and shape are paired by name where all their
    names agree (up to separators, case and containers), or alone where the shape occurs once. The
    order in which both models define their layers counts if the whole sequences of kinds and shapes
    agree. With trust_numbers the order within one kind and shape counts too, where the names differ
    in numbers alone: then a shortcut that one model makes before the branch beside it goes unseen.

    Raises:
        BatchNormError: a mapping that names no layer or joins unequal shapes; layers that several
            partners would fit; layers without a partner (unless partial).
    """
    names = _common_names(source), _common_names(target)
    _settle_by_map(source, target, mapping or {})
    _settle_guesses(source, target)
    pairs = _mapped(source, target, mapping or {})
    pairs += _by_sequence(source, target, names, *_left(source, target, pairs))
    rest, goals = _left(source, target, pairs)
    goal_groups, unclear = _groups(target, goals), []
    for signature, members in _groups(source, rest).items():
        partners = goal_groups.get(signature, [])
        found = _pair_group(source, target, names, members, partners, trust_numbers)
        if found:
            pairs += found
        elif partners:
            unclear.append(_several(signature, members, partners))
    if unclear:
        raise BatchNormError(
            "map must say which layer is which where names and shapes do not (or trust_numbers, that the numbers in "
            f"names are the order): {'; '.join(unclear)}"
        )
    rest, goals = _left(source, target, pairs)
    if (rest or goals) and not partial:
        sides = (("source", source, rest), ("target", target, goals))
        parts = [f"{len(g)} of the {side} ({_few(w, g)})" for side, w, g in sides if g]
        raise BatchNormError(
            f"layers must pair one to one; no partner for {' and '.join(parts)}: give a map, or allow it with partial"
        )
    order = {id(layer): i for i, layer in enumerate(target.layers)}
    return sorted(pairs, key=lambda p: order[id(p.target)])


def _by_sequence(source: Weights, target: Weights, names: _Names, rest: list[Layer], goals: list[Layer]) -> list[Pair]:
    """All of the layers by position, if both formats keep the order and all kinds and shapes agree in it."""
    if not (source.ordered and target.ordered) or len(rest) != len(goals):
        return []
    if any(not _fits(source, a, target, b) for a, b in zip(rest, goals, strict=True)):
        return []
    named = _by_name(names, rest, goals)
    if named:
        return named
    places = {names[1][layer.name]: i for i, layer in enumerate(goals)}
    for i, layer in enumerate(rest):
        name = names[0][layer.name]
        # "stem" elsewhere speaks against the order; numbers may count other things as well.
        if places.get(name, i) != i and not any(word.isdigit() for word in name):
            return []
    return [Pair(a, b, "order") for a, b in zip(rest, goals, strict=True)]


def _pair_group(
    source: Weights, target: Weights, names: _Names, members: list[Layer], partners: list[Layer], trust_numbers: bool
) -> list[Pair]:
    """Layers of one kind and shape; none where nothing says which is which."""
    if len(members) != len(partners):
        return []
    named = _by_name(names, members, partners)
    if named:
        return named
    if len(members) == 1:
        return [Pair(members[0], partners[0], "shape")]
    if not trust_numbers:
        return []
    ours, theirs = _in_order(members, source.ordered), _in_order(partners, target.ordered)
    return [Pair(a, b, "order") for a, b in zip(ours or [], theirs or [], strict=False)]


def _settle_by_map(source: Weights, target: Weights, mapping: Mapping[str, str]) -> None:
    """A guessed convolution is of the kind of the layer that the map gives it."""
    for one, other, names in ((source, target, mapping), (target, source, {v: k for k, v in mapping.items()})):
        partners = {layer.name: layer for layer in other.layers}
        for i, layer in enumerate(one.layers):
            partner = partners.get(names.get(layer.name, ""))
            if layer.guessed and partner is not None and not partner.guessed:
                one.layers[i] = layer.as_kind(partner.kind)


def _settle_guesses(source: Weights, target: Weights) -> None:
    """Take a guessed convolution for a transposed one where only that has a partner."""
    for one, other in ((source, target), (target, source)):
        certain = {(x.kind, other.signature(x)) for x in other.layers if not x.guessed}
        if not any(kind == "conv_transpose" for kind, _ in certain):
            continue
        names = {tokens(x.name) for x in other.layers if x.kind == "conv_transpose" and not x.guessed}
        for i, layer in enumerate(one.layers):
            if layer.guessed and layer.kind == "conv":
                turned = layer.as_kind("conv_transpose")
                only = ("conv", one.signature(layer)) not in certain or tokens(layer.name) in names
                if only and ("conv_transpose", one.signature(turned)) in certain:
                    one.layers[i] = turned


def _mapped(source: Weights, target: Weights, mapping: Mapping[str, str]) -> list[Pair]:
    ours, theirs = ({layer.name: layer for layer in w.layers} for w in (source, target))
    pairs: list[Pair] = []
    for name, goal in mapping.items():
        for side, key, layers in (("source", name, ours), ("target", goal, theirs)):
            if key not in layers:
                raise BatchNormError(
                    f"map must name layers of the {side}; it has no {key!r}, its layers are {', '.join(layers)}"
                )
        if not _fits(source, ours[name], target, theirs[goal]):
            raise BatchNormError(
                f"map must join layers of one kind and shape; {_show(source, ours[name])} and "
                f"{_show(target, theirs[goal])} differ"
            )
        pairs.append(Pair(ours[name], theirs[goal], "map"))
    if len({id(p.target) for p in pairs}) < len(pairs):
        raise BatchNormError("map must name every target layer once; one is named twice")
    return pairs


def _by_name(names: _Names, members: list[Layer], partners: list[Layer]) -> list[Pair]:
    """Pairs of equal names if all names agree: one that does by chance (conv1 and Conv_1) proves nothing."""
    ours = {names[0][layer.name]: layer for layer in members}
    theirs = {names[1][layer.name]: layer for layer in partners}
    if len(ours) < len(members) or ours.keys() != theirs.keys():
        return []
    return [Pair(layer, theirs[name], "name") for name, layer in ours.items()]


def _common_names(weights: Weights) -> dict[str, tuple[str, ...]]:
    """Normal names without what all of a model's have in front, such as the name of the model."""
    names = {layer.name: tokens(layer.name) for layer in weights.layers}
    while len(names) > 1 and all(len(n) > 1 for n in names.values()) and len({n[0] for n in names.values()}) == 1:
        names = {name: n[1:] for name, n in names.items()}
    return names


def tokens(name: str) -> tuple[str, ...]:
    """A name as lower-case words and numbers, without separators and containers.

    Example:
        >>> tokens("layer1.0.bn1") == tokens("params/layer1/layers/0/bn1")
        True
    """
    words = re.findall(r"[a-z~]+|\d+", re.sub(r"([a-z])([A-Z])", r"\1_\2", name).lower())
    return tuple(w for w in words if w not in _CONTAINERS)


def _in_order(layers: list[Layer], ordered: bool) -> list[Layer] | None:
    """The layers in an order that means something, or None."""
    keys = [tuple(int(w) if w.isdigit() else w for w in re.findall(r"\d+|[^\d]+", layer.name)) for layer in layers]
    # "conv2d" is the one before "conv2d_1" in Keras.
    padded = [k if isinstance(k[-1], int) else (*(k[:-1]), f"{k[-1]}_", 0) for k in keys] if keys else []
    if len({tuple("#" if isinstance(w, int) else w for w in k) for k in padded}) != 1:
        return layers if ordered else None
    return [layer for _, layer in sorted(zip(padded, layers, strict=True), key=lambda z: z[0])]


def _groups(weights: Weights, layers: list[Layer]) -> dict[tuple[object, ...], list[Layer]]:
    groups: dict[tuple[object, ...], list[Layer]] = defaultdict(list)
    for layer in layers:
        groups[layer.kind, weights.signature(layer)].append(layer)
    return groups


def _fits(source: Weights, ours: Layer, target: Weights, theirs: Layer) -> bool:
    return ours.kind == theirs.kind and source.signature(ours) == target.signature(theirs)


def _left(source: Weights, target: Weights, pairs: list[Pair]) -> tuple[list[Layer], list[Layer]]:
    used = {id(p.source) for p in pairs} | {id(p.target) for p in pairs}
    return [x for x in source.layers if id(x) not in used], [x for x in target.layers if id(x) not in used]


def _several(signature: tuple[object, ...], members: list[Layer], partners: list[Layer]) -> str:
    names = [", ".join(layer.name for layer in group) for group in (members, partners)]
    return f"{signature[0]} of shape {signature[1]} is {names[0]} in the source and {names[1]} in the target"


def _show(weights: Weights, layer: Layer) -> str:
    return f"{layer.name} ({layer.kind} of shape {weights.signature(layer)})"


def _few(weights: Weights, layers: list[Layer]) -> str:
    return ", ".join(_show(weights, x) for x in layers[:5]) + (", ..." if len(layers) > 5 else "")
