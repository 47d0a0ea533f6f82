"""BN427: a penalty on gradients with respect to the inputs, through batch norm in train mode."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from batchnorm.diagnosis.source.code_words import Said
from batchnorm.diagnosis.source.facts import Facts, called, said
from batchnorm.diagnosis.source.syntax import reads, variables
from batchnorm.diagnosis.source.trace import SWITCHED, TRAIN, Call, Event
from batchnorm.diagnosis.source.values import Const


def through_batch_norm(facts: Facts) -> Iterator[Said]:
    """BN427: `autograd.grad(D(x), x, create_graph=True)`, of a D that normalises with the batch."""
    for event in facts.of("outside"):
        given = event.data["keywords"]
        if not event.data["name"].endswith("autograd.grad") or given.get("create_graph") != Const(True):
            continue
        outputs = given.get("outputs", event.data["args"][0] if event.data["args"] else None)
        for forward in facts.forwards_of(outputs):
            names = set[str]().union(*map(_names, forward.node.args))
            fate = facts.fate(event, Call(event.node, event.function))
            if not _certain(facts, forward) or not (fate.trains or fate.leaves):
                continue
            if not _names(_inputs(event.node)) & names:
                continue
            name = called(forward)
            yield said(
                event,
                f"a penalty on the gradients of {name} with respect to its inputs runs through batch norm in train "
                f"mode (forward in line {forward.line}): the gradient of each sample depends on the whole batch, which "
                "is not what the penalty bounds",
                f"{name} with nn.GroupNorm(1, channels) or nn.InstanceNorm2d(channels, affine=True) in place of batch "
                "norm",
            )
            break


def _certain(facts: Facts, forward: Event) -> bool:
    """Whether what ran has batch norm, in train mode in some situation, or never in eval."""
    if forward.contexts:
        return any(
            c.mode.value in (TRAIN, SWITCHED)
            and (c.layers is None or c.layers.value == TRAIN)
            and facts.always_has(c.obj)
            for c in forward.contexts
        )
    return facts.always_has(forward.obj) and not facts.evaluated(forward.obj)


def _inputs(call: ast.Call) -> ast.AST | None:
    """The expression that the gradients are taken for."""
    found = next((k.value for k in call.keywords if k.arg == "inputs"), None)
    return found if found is not None else call.args[1] if len(call.args) > 1 else None


def _names(node: ast.AST | None) -> set[str]:
    """The names in an expression, none where it is a model's parameters."""
    return set() if node is None or reads(node, "parameters") else variables(node) - {"self"}
