"""BN436, BN437: batch norm that normalises with the batch in eval mode too, and graphs that keep train mode."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

from batchnorm.diagnosis.source.code_words import Said
from batchnorm.diagnosis.source.contents import YES
from batchnorm.diagnosis.source.facts import Facts, called, said
from batchnorm.diagnosis.source.names import FLAX, KERAS, last
from batchnorm.diagnosis.source.rules.forwards import FORWARDS
from batchnorm.diagnosis.source.syntax import spelled
from batchnorm.diagnosis.source.trace import EVAL, TRAIN, Event
from batchnorm.diagnosis.source.values import Const, External, Form

FUNCTIONS = ("torch.nn.functional.batch_norm", "torch.batch_norm")
TF = re.compile(r"(^|\.)(layers\.batch_normalization|layers\.batch_norm|slim\.batch_norm)$")
MODES = re.compile(r"train|eval|infer|test|determinist")
ADVERSARIES = re.compile(r"disc|critic|adversar|gan|generator", re.IGNORECASE)
INFERS = re.compile(r"^test$|(^|_)(predict|infer\w*|evaluate|evaluation|validate|validation|serve|demo)(_|$)")
TRAINS = re.compile(r"(^|[._])(is_)?train(ing)?$")
SAVED = ("save", "export")
SWITCH = {"training": 5, "is_training": -1}  # what says that it trains, and its place in torch's function


def ignores_eval(facts: Facts) -> Iterator[Said]:
    """BN436: `F.batch_norm(x, self.running_mean, ..., True)` in a forward, or `self.bn.train()` there."""
    for event in facts.of("outside"):
        keywords, args = event.data["keywords"], event.data["args"]
        torch = event.data["name"] in FUNCTIONS
        if (not torch and not TF.search(event.data["name"])) or _asks(event) or facts.uses(event.function, "cond"):
            continue
        given = [keywords.get(w, args[at] if torch and 0 <= at < len(args) else None) for w, at in SWITCH.items()]
        if Const(True) not in given:
            continue
        at = 3 if event.data["name"] == "torch.batch_norm" else 1
        running = keywords.get("running_mean", args[at] if torch and len(args) > at else None)
        if torch and not _own(running):
            continue
        yield said(
            event,
            f"{spelled(event.node, 40)} is told that it trains in eval mode too: eval() does nothing, each output "
            "depends on its batch, and evaluation moves the running statistics",
            "training=self.training" if torch else "training=is_training, False at evaluation",
            sure=torch,
        )
    for event in facts.set_to(TRAIN, "mode"):
        owner = event.function.owner
        if owner is None or not owner.is_module or event.function.name not in FORWARDS:
            continue
        part = event.obj
        if part is None or part.parent is not owner.self_obj or not facts.is_layer(part) or _asks(event):
            continue
        yield said(
            event,
            f"{part.path} is put in train mode in every forward: eval() on the model does not reach its batch norm",
            "leave the mode to model.train() and model.eval()",
        )
    yield from _flax(facts)
    yield from _keras(facts)
    yield from _inverted(facts)


def _asks(event: Event) -> bool:
    """Whether it is under a condition: on the mode, or on an option."""
    return bool(event.data["tests"]) or bool(event.data["returned"])


def _own(value: object) -> bool:
    """Whether a tensor is the layer's own buffer, not a copy that is made for the call."""
    return isinstance(value, Form) and value.live and all(a.kind == "statistic" for a in value.terms)


def _flax(facts: Facts) -> Iterator[Said]:
    """`nn.BatchNorm(use_running_average=False)` of linen, whatever the mode."""
    for event in facts.of("layer"):
        name, owner = event.data["name"], event.function.owner
        if not FLAX.match(name) or "nnx" in name or owner is None or _asks_mode(event):
            continue
        first = (event.data["args"][:1] or [None])[0]
        if event.data["keywords"].get("use_running_average", first) != Const(False):
            continue
        yield said(
            event,
            f"use_running_average=False is a constant: {owner.name} normalises with the batch in inference too, and "
            "never uses batch_stats",
            "use_running_average=not train",
            sure=not ADVERSARIES.search(owner.name),
        )


def _keras(facts: Facts) -> Iterator[Said]:
    """`BatchNormalization()(x, training=True)`, and `model(x, training=True)` in a function that predicts."""
    for event in facts.of("forward"):
        given = [k.value for k in event.node.keywords if k.arg == "training" and isinstance(k.value, ast.Constant)]
        if not any(v.value is True for v in given) or _asks_mode(event) or event.function.name.startswith("test_"):
            continue
        layer = any(o.kind == "external" and KERAS.match(o.info[0]) for o in facts.aliases(event.obj))
        if not layer and not (INFERS.search(event.function.name) and _of_keras(facts, event)):
            continue
        yield said(
            event,
            "training=True is a constant: "
            + ("the layer" if layer else called(event))
            + " normalises with the batch in inference too, and each call moves the moving statistics",
            "training=training" if layer else "training=False",
            sure=layer,
        )


def _inverted(facts: Facts) -> Iterator[Said]:
    """`training=not self.training`, and `use_running_average=train` in Flax."""
    for event in facts.of("outside", "layer", "forward"):
        name = event.data.get("name", "")
        for word in event.node.keywords:
            value = word.value.operand if isinstance(word.value, ast.UnaryOp) else word.value
            if not isinstance(value, ast.Name | ast.Attribute) or not TRAINS.search(spelled(value)):
                continue
            negated = isinstance(word.value, ast.UnaryOp) and isinstance(word.value.op, ast.Not)
            flax = word.arg == "use_running_average" and not negated and FLAX.match(name)
            keras = any(o.kind == "external" and KERAS.match(o.info[0]) for o in facts.aliases(event.obj))
            if flax or (word.arg == "training" and negated and (keras or name in FUNCTIONS)):
                yield said(
                    event,
                    f"{word.arg}={spelled(word.value)} is the wrong way round: training uses the running statistics, "
                    "and evaluation the batch",
                    f"{word.arg}={spelled(value)}" if negated else f"{word.arg}=not {spelled(value)}",
                )


def _of_keras(facts: Facts, event: Event) -> bool:
    """Whether a function that makes no steps calls a Keras model, of files that have batch norm."""
    text = event.function.module.text
    return "GradientTape" not in ast.unparse(event.function.node) and "BatchNormalization" in text


def _asks_mode(event: Event) -> bool:
    """Whether a test around asks for the mode."""
    return any(MODES.search(ast.unparse(t.node).lower()) for t in (*event.data["tests"], *event.data["returned"]))


def traced_in_train(facts: Facts) -> Iterator[Said]:
    """BN437: a trace or an export of a model in train mode."""
    for event in facts.of("export"):
        name, call = event.data["name"], spelled(event.node).split("(")[0]
        for c in event.contexts:
            asked = event.data["keywords"].get("training")
            trains = isinstance(asked, External) and last(asked.name) == "TRAINING"
            if facts.has(c.obj) != YES or c.layers is not None or not (c.mode.value == TRAIN or trains):
                continue
            if name == "torch.onnx.export" and isinstance(asked, External) and last(asked.name) == "EVAL":
                continue
            kept = facts.uses(event.function, *SAVED) or name.startswith("torch.onnx")
            if name == "torch.jit.script" and (not kept or _evaluated_later(facts, event)):
                continue
            if not kept and name != "torch.jit.trace" and (not c.loaded or facts.steps(event.function.module)):
                continue
            onnx = name == "torch.onnx.export" and not trains  # older ones put the model in eval themselves
            yield said(
                event,
                f"{call} of a model in train mode: what is exported normalises with each batch"
                + ("; older exporters put it in eval themselves" if onnx else ""),
                "model.eval() before" + (", training=torch.onnx.TrainingMode.EVAL" if trains else ""),
                sure=trains or (not onnx and (c.loaded or c.mode.node is not None)),
            )
            break


def _evaluated_later(facts: Facts, event: Event) -> bool:
    """Whether a function puts something in eval after a call: a scripted model keeps a mode that can be set."""
    return any(e.function is event.function and e.line > event.line for e in facts.set_to(EVAL, "mode"))
