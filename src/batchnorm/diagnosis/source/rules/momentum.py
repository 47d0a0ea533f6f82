"""BN403, BN404, BN407, BN416, BN417, BN425: numbers given to a layer."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from typing import NamedTuple

from batchnorm.diagnosis.source.code_words import Said
from batchnorm.diagnosis.source.facts import Facts, said
from batchnorm.diagnosis.source.fixes import Edit
from batchnorm.diagnosis.source.names import FLAX, KERAS, OTHER_LAYERS, is_torch_layer, last
from batchnorm.diagnosis.source.syntax import reads, spelled, words
from batchnorm.diagnosis.source.trace import EVAL, TRAIN, Event
from batchnorm.diagnosis.source.values import Const

FREEZE = "batchnorm.freeze(model)"
LARGE, CERTAIN = 0.5, 0.9  # a torch momentum that looks like another framework's, and one that can hardly be meant
SMALL, CERTAIN_SMALL = 0.5, 0.2  # the same in Keras and Flax
LARGEST_EPS = 0.05  # an eps beyond is no eps
ARGUED = re.compile(r"#.*\bmomentum\b.*\b(prefer|rather than|instead of|on purpose|intended|deliberate)", re.IGNORECASE)


class Numbers(NamedTuple):
    """A layer's literal numbers, and the expressions they come from."""

    event: Event
    call: ast.Call
    framework: str
    momentum: list[float]
    eps: list[float]
    eps_node: ast.expr | None


def layers(facts: Facts) -> Iterator[Numbers]:
    """Every construction of a batch norm layer."""
    for event in facts.of("layer"):
        call, name = event.node, event.data["name"]
        torch = is_torch_layer(name) or last(name) in OTHER_LAYERS
        framework = "Keras" if KERAS.match(name) else "Flax" if FLAX.match(name) else "torch" if torch else ""
        subclass = event.data["subclass"]
        if not framework or (subclass is not None and subclass.method("__init__") is not None):
            continue
        args, keywords = event.data["args"], event.data["keywords"]
        tracked = keywords.get("track_running_stats", args[4] if len(args) > 4 else None) != Const(False)
        starred = any(isinstance(a, ast.Starred) for a in call.args)

        at = {"torch": 2, "Keras": 1, "Flax": -1}[framework]
        second = framework == "torch" and len(call.args) > 1 and not starred
        momentum = keywords.get("momentum", args[at] if 0 <= at < len(args) and not starred else None)
        eps = keywords.get("eps", args[1] if second else None)
        eps_node = call.args[1] if second else None
        numbers = facts.numbers(momentum) if tracked else []
        yield Numbers(event, call, framework, numbers, facts.numbers(eps), eps_node)


def torch_momentum(facts: Facts) -> Iterator[Said]:
    """BN403: a momentum of 0.5 or more in torch; 1, which few-shot code means, is a note."""
    for layer in layers(facts):
        if _argued(layer) or _still(facts):
            continue
        if layer.framework == "torch" and 1.0 in layer.momentum:
            yield said(
                layer.event,
                "momentum=1 keeps the statistics of the last batch alone, and eval mode normalises with those",
                "momentum=0.1; or track_running_stats=False where every batch is to be normalised by itself",
                sure=False,
            )
            continue
        for value in {v for v in layer.momentum if LARGE <= v < 1} if layer.framework == "torch" else ():
            yield said(
                layer.event,
                f"momentum={value:g} is the weight of the NEW batch in torch: the running statistics are nearly those "
                f"of the last batch. Keras or Flax mean the weight of the old value, which would be {1 - value:g} here",
                f"momentum={1 - value:g}",
                sure=value >= CERTAIN,
            )
            break
    for event in facts.of("attribute"):
        if event.data["name"] == "momentum" and event.obj is not None and event.obj.kind == "batch norm":
            for value in {v for v in facts.numbers(event.data["value"]) if CERTAIN <= v < 1}:
                yield said(
                    event, f"momentum={value:g} is the weight of the NEW batch in torch", f"{1 - value:g}", sure=False
                )


def _argued(layer: Numbers) -> bool:
    """Whether a comment of the file says why the momentum is not the usual one."""
    return bool(ARGUED.search(layer.event.function.module.text))


def _still(facts: Facts) -> bool:
    """Whether batch norm layers are put in eval, and nothing puts a model in train mode: momentum has no effect."""
    return any(facts.set_to(EVAL, "layer mode")) and not any(facts.set_to(TRAIN, "mode", "layer mode"))


def other_momentum(facts: Facts) -> Iterator[Said]:
    """BN404: a momentum of 0.5 or less in Keras or Flax."""
    for layer in layers(facts):
        other = layer.framework in ("Keras", "Flax") and not _argued(layer)
        for value in {v for v in layer.momentum if 0 <= v <= SMALL} if other else ():
            yield said(
                layer.event,
                f"momentum={value:g} is the weight of the OLD value in {layer.framework}: the moving statistics are "
                "nearly those of the last "
                f"batch. Torch means the weight of the new batch, which would be {1 - value:g} here",
                f"momentum={1 - value:g}",
                sure=value <= CERTAIN_SMALL,
            )
            break


def momentum_outside(facts: Facts) -> Iterator[Said]:
    """BN416: a momentum below 0 or above 1."""
    for layer in layers(facts):
        for value in {v for v in layer.momentum if not 0 <= v <= 1}:
            yield said(
                layer.event,
                f"momentum={value:g} is accepted silently, but must be in [0, 1]: the old value weighs {1 - value:g}, "
                "and the statistics swing past the data or away from it",
                "momentum=0.1, and batchnorm.recalibrate(model, loader) for what is trained already",
            )
            break


def eps_not_positive(facts: Facts) -> Iterator[Said]:
    """BN425: an eps of 0 or below."""
    for layer in layers(facts):
        for value in [v for v in layer.eps if v <= 0][:1] if layer.framework == "torch" else ():
            why = "is refused from torch 2.13 on, and gives NaN before"
            yield said(
                layer.event,
                f"eps={value:g} {why}" if value < 0 else f"eps=0 in training {why} where a channel is constant",
                "eps=1e-5",
                value < 0,
            )


def eps_for_momentum(facts: Facts) -> Iterator[Said]:
    """BN417: a momentum in the place of eps."""
    for layer in layers(facts):
        node = layer.eps_node
        if node is None or layer.framework != "torch":
            continue
        named = any("momentum" in word.lower() or word.lower() in ("mom", "bn_mom", "bnmom") for word in words(node))
        large = [v for v in layer.eps if v >= LARGEST_EPS]
        first = layer.call.args[0] if layer.call.args else node
        twice = node is not first and ast.dump(node) == ast.dump(first)
        if not large and not named and not twice:
            continue
        value = large[0] if large else (layer.eps[0] if layer.eps else None)
        meant = None if value is None else value if value < LARGE else 1 - value
        shown = spelled(node)
        # From 1 on it is no momentum of either convention: often the number of channels, given twice.
        no_momentum = twice or (value is not None and value >= 1)
        instead = "" if no_momentum else ", not momentum"
        written = shown if meant is None else f"{meant:g}"
        second = "" if len(layer.call.args) <= 2 and not layer.momentum else ", and momentum is given too"
        yield said(
            layer.event,
            f"the second argument is eps{instead}: eps={shown} is added to every variance, which flattens channels "
            f"with small variance, and momentum stays {layer.momentum[0] if layer.momentum else 0.1:g}{second}",
            "leave the second argument out" if no_momentum else f"momentum={written}",
            edit=None if second or no_momentum else _renamed(layer.call, node, written),
        )


def _renamed(call: ast.Call, node: ast.expr, value: str) -> Edit | None:
    if len(call.args) != 2 or any(k.arg in ("momentum", "eps") for k in call.keywords) or node.end_lineno is None:
        return None
    return Edit(node.lineno, node.col_offset, node.end_lineno, node.end_col_offset or 0, f"momentum={value}")


def frozen_by_momentum(facts: Facts) -> Iterator[Said]:
    """BN407: momentum 0, not put back."""
    message = (
        "momentum 0 stops the update, but train mode still normalises with the batch: the network is not trained with "
        "the statistics that inference uses"
    )
    for layer in layers(facts):
        if layer.framework == "torch" and 0.0 in layer.momentum:
            here = any(k.arg == "momentum" and isinstance(k.value, ast.Constant) for k in layer.call.keywords)
            if here or not any(layer.momentum):  # of several numbers, 0 may be for layers that are left out
                yield said(layer.event, message, FREEZE, sure=here or not layer.event.data["tests"])
    for event in facts.of("attribute"):
        if event.data["name"] != "momentum" or event.obj is None or event.obj.kind not in ("batch norm",):
            continue
        if facts.numbers(event.data["value"]) != [0.0]:
            continue
        beside = (e for e in facts.of("attribute") if e is not event and e.function.module is event.function.module)
        others = [e for e in beside if e.obj is not None and e.obj.kind in ("batch norm", "layer")]
        others = [e for e in others if "momentum" in e.data["name"]]
        restored = any(e.data["name"] != "momentum" or facts.numbers(e.data["value"]) != [0.0] for e in others)
        if not restored and not reads(event.function.node, "momentum"):
            yield said(event, message, FREEZE, sure=False)
