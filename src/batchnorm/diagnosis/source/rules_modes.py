"""Rules on train and eval mode: what is frozen how, and forwards in the wrong mode."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from batchnorm.diagnosis.source.rules_statistics import Said
from batchnorm.diagnosis.source.syntax import (
    Source,
    dotted,
    is_eval,
    is_train,
    keyword,
    method,
    number,
    without_gradients,
)

FREEZE = "batchnorm.freeze(model)"


def _layer_blocks(source: Source) -> Iterator[tuple[ast.If, str]]:
    """`if isinstance(m, BatchNorm...)`, and the name m."""
    for node in ast.walk(source.tree):
        if not isinstance(node, ast.If):
            continue
        for test in ast.walk(node.test):
            is_instance = isinstance(test, ast.Call) and dotted(test.func) == "isinstance" and len(test.args) == 2
            if is_instance and isinstance(test.args[0], ast.Name):  # pyright: ignore
                classes = {n.id for n in ast.walk(test.args[1]) if isinstance(n, ast.Name)}  # pyright: ignore
                classes |= {n.attr for n in ast.walk(test.args[1]) if isinstance(n, ast.Attribute)}  # pyright: ignore
                if any("BatchNorm" in c or c == "_NormBase" for c in classes):
                    yield node, test.args[0].id  # pyright: ignore


def _in(block: ast.If) -> Iterator[ast.AST]:
    for statement in block.body:
        yield from ast.walk(statement)


def _puts_in_eval(block: ast.If, name: str) -> bool:
    return any(is_eval(n) and dotted(method(n)[1] or n) == name for n in _in(block))


def freezes_by_requires_grad(source: Source) -> Iterator[Said]:
    """requires_grad = False on a batch norm layer, which is trained on in train mode."""
    if not source.mentions("isinstance"):
        return
    if any(_puts_in_eval(block, name) for block, name in _layer_blocks(source)):
        return
    if source.mentions("track_running_stats", "FrozenBatchNorm", "freeze_batch_norm", "freeze_bn", "batchnorm.freeze"):
        return
    trains = any(is_train(call) for call in source.calls)
    for block, name in _layer_blocks(source):
        for node in _in(block):
            if _stops_gradient(node, name):
                yield Said(
                    node,
                    "requires_grad = False stops weight and bias, not the running statistics: they move in every "
                    "forward in train mode",
                    FREEZE,
                    sure=trains,
                )
                break


def _stops_gradient(node: ast.AST, name: str) -> bool:
    if isinstance(node, ast.Call) and method(node)[0] == "requires_grad_":
        off = keyword(node, "requires_grad", 0)
        owner = dotted(method(node)[1] or node)
        return isinstance(off, ast.Constant) and off.value is False and owner.split(".")[0] == name
    if not (isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant) and node.value.value is False):
        return False
    target = node.targets[0]
    if not (isinstance(target, ast.Attribute) and target.attr == "requires_grad"):
        return False
    return dotted(target).split(".")[0] in (name, "p", "param", "parameter")


def freezes_by_momentum(source: Source) -> Iterator[Said]:
    """Momentum 0, where it is not put back."""
    message = (
        "momentum 0 stops the update, but train mode still normalises with the batch: the network is not trained with "
        "the statistics that inference uses"
    )
    for call in source.calls:
        if source.is_torch_layer(call.func) and number(keyword(call, "momentum", 2)) == 0:
            yield Said(call, message, FREEZE)
    for block, name in _layer_blocks(source):
        if source.mentions("backup_momentum", "old_momentum", "saved_momentum"):
            return
        for node in _in(block):
            zero = isinstance(node, ast.Assign) and number(node.value) == 0
            if zero and dotted(node.targets[0]) == f"{name}.momentum":  # pyright: ignore
                kept = any(
                    isinstance(n, ast.Attribute) and n.attr == "momentum" and isinstance(n.ctx, ast.Load)
                    for n in ast.walk(source.function(block))
                )
                if not kept:
                    yield Said(node, message, FREEZE)


def eval_before_train(source: Source) -> Iterator[Said]:
    """Layers put in eval, and the model in train mode afterwards."""
    frozen: dict[tuple[ast.AST, str], int] = {}
    where: dict[tuple[ast.AST, str], ast.AST] = {}
    for block, name in _layer_blocks(source):
        if not _puts_in_eval(block, name):
            continue
        for loop in source.inside(block, ast.For):
            verb, owner = method(loop.iter)  # pyright: ignore[reportAttributeAccessIssue]
            if verb in ("modules", "named_modules", "children") and owner is not None and dotted(owner):
                key = (source.function(block), dotted(owner))
                if frozen.get(key, 0) <= block.lineno:
                    frozen[key], where[key] = block.lineno, block
                break
    for (scope, owner), line in frozen.items():
        for call in source.calls:
            on = method(call)[1]
            later = is_train(call) and on is not None and dotted(on) == owner and call.lineno > line
            if later and source.function(call) is scope:
                yield Said(
                    where[scope, owner],
                    f"batch norm layers are put in eval, and {owner}.train() in line {call.lineno} undoes it",
                    FREEZE + ", which survives train()",
                )
                break


def evaluates_in_train(source: Source) -> Iterator[Said]:
    """A file that trains a model with batch norm and runs it under no_grad, without eval() anywhere."""
    if source.mentions(".eval(", "train(False)", "train(mode=False)", ".train(mode", "evaluating("):
        return
    if not source.mentions("BatchNorm", "torchvision.models", "resnet") or not source.mentions(".backward("):
        return
    trained = {dotted(call.func) for call in source.calls if not without_gradients(source, call)}
    for call in source.calls:
        name = dotted(call.func)
        known = name in ("model", "net", "network", "self.model", "self.net") and name in trained
        if known and without_gradients(source, call) and not _cumulating(source, call):
            yield Said(
                call,
                f"{name}(...) is evaluated under no_grad, and nothing in the file calls eval(): batch norm uses "
                "the batch and moves the statistics",
                f"{name}.eval() before, {name}.train() after",
                sure=False,
            )
            return


def _cumulating(source: Source, node: ast.AST) -> bool:
    """In a function that re-estimates statistics on purpose."""
    scope = source.function(node)
    segment = ast.get_source_segment(source.text, scope) if scope is not source.tree else source.text
    words = ("momentum", "reset_running_stats", "update_bn", "running_mean", "recalibrat", "bn_stats", "precise")
    return segment is not None and any(word in segment for word in words)


def train_forward_without_gradients(source: Source) -> Iterator[Said]:
    """`model.train()`, then `with no_grad(): model(x)`."""
    if not source.mentions("no_grad", "inference_mode") or not any(is_train(call) for call in source.calls):
        return
    for call in source.calls:
        name = dotted(call.func)
        if not name or not without_gradients(source, call) or _cumulating(source, call):
            continue
        scope = source.function(call)
        modes = [
            (c.lineno, is_train(c), c)
            for c in source.calls
            if (is_train(c) or is_eval(c))
            and dotted(method(c)[1] or c) == name
            and source.function(c) is scope
            and c.lineno < call.lineno
        ]
        last = max(modes, key=lambda item: item[0], default=None)
        if last is not None and last[1] and _straight(source, last[2], call):
            yield Said(
                call,
                f"{name} is in train mode (line {last[0]}) in a forward under no_grad: it moves the running "
                "statistics, if it has any",
                f"with batchnorm.pause({name}): ..., or {name}.eval()",
                sure=source.mentions("BatchNorm", "batch_norm", "resnet", "ResNet", "torchvision.models"),
            )


def _straight(source: Source, first: ast.AST, second: ast.AST) -> bool:
    """Whether the first always runs before the second: whatever branch or loop is around it holds the second too."""
    branches = (ast.If, ast.Try, ast.ExceptHandler, ast.For, ast.While)
    around = set(source.inside(second, branches))
    return all(outer in around for outer in source.inside(first, branches))


def summary_in_train(source: Source) -> Iterator[Said]:
    """Torchsummary runs a forward in whatever mode the model is in: a new model's is train."""
    for call in source.calls:
        if source.full(call.func) in ("torchsummary.summary", "torchsummaryX.summary", "thop.profile") and call.args:
            name = dotted(call.args[0])
            evaluated = any(is_eval(c) and dotted(method(c)[1] or c) in (name, "") for c in source.calls)
            if not evaluated and name:
                yield Said(
                    call,
                    f"a summary runs {name} forward in train mode on random data: it moves the running statistics",
                    f"{name}.eval() before, or with batchnorm.pause({name}): ...",
                    sure=source.mentions("BatchNorm"),
                )


def missing_update_bn(source: Source) -> Iterator[Said]:
    """An AveragedModel that is evaluated without update_bn."""
    if source.mentions("update_bn", "use_buffers", "recalibrate", "bn_update"):
        return
    for node in ast.walk(source.tree):
        made = isinstance(node, ast.Assign) and isinstance(node.value, ast.Call) and len(node.targets) == 1
        if not made or not source.full(node.value.func).endswith("swa_utils.AveragedModel"):  # pyright: ignore
            continue
        name = dotted(node.targets[0])  # pyright: ignore
        updated = any(method(c)[0] == "update_parameters" for c in source.calls)
        used = any(dotted(c.func) == name or (is_eval(c) and dotted(method(c)[1] or c) == name) for c in source.calls)
        if updated and used:
            yield Said(
                node,
                f"{name} is evaluated with averaged weights and the statistics of its first copy: update_bn is missing",
                f"batchnorm.recalibrate({name}, loader)",
                sure=source.mentions("BatchNorm"),
            )


def update_bn_with_dropout(source: Source) -> Iterator[Said]:
    """update_bn switches dropout on and overwrites frozen layers."""
    calls = [c for c in source.calls if source.full(c.func).endswith("swa_utils.update_bn")]
    if not calls:
        return
    dropout = any(source.full(c.func).startswith("torch.nn.Dropout") for c in source.calls)
    frozen = any(_puts_in_eval(block, name) for block, name in _layer_blocks(source))
    for call in calls if dropout or frozen else []:
        what = "switches dropout on while it measures" if dropout else "resets layers that were frozen by eval()"
        yield Said(call, f"update_bn {what}", "batchnorm.recalibrate(model, loader)", sure=False)


NAMES = ("bn", ".bn", "bn.", "_bn", ".bn.", "batchnorm", "batch_norm")


def matches_names(source: Source) -> Iterator[Said]:
    """'bn' in name, over the modules or parameters of any model."""
    for node in ast.walk(source.tree):
        text, subject = _looked_for(node)
        if text not in NAMES or subject is None:
            continue
        for loop in source.inside(node, (ast.For, ast.comprehension, ast.ListComp, ast.GeneratorExp, ast.SetComp)):
            heads = [loop] if isinstance(loop, (ast.For, ast.comprehension)) else loop.generators  # pyright: ignore
            found = [h for h in heads if _walks_model(h, subject)]
            if found:
                yield Said(
                    node,
                    f"batch norm layers are told by {text!r} in their names: torchvision's downsample.1, "
                    "Sequential's 1 and the like are missed",
                    "isinstance(module, torch.nn.modules.batchnorm._BatchNorm) over model.modules()",
                    sure=False,
                )
                break


def _looked_for(node: ast.AST) -> tuple[str | None, str | None]:
    if isinstance(node, ast.Compare) and len(node.ops) == 1 and isinstance(node.ops[0], (ast.In, ast.NotIn)):
        left, right = node.left, node.comparators[0]
        if isinstance(left, ast.Constant) and isinstance(left.value, str):
            owner = method(right)[1] if method(right)[0] == "lower" else right
            return left.value, dotted(owner or right) or None
    name, owner = method(node)
    if name in ("startswith", "endswith", "find") and isinstance(node, ast.Call) and len(node.args) == 1:
        value = node.args[0]
        if isinstance(value, ast.Constant) and isinstance(value.value, str) and owner is not None:
            return value.value, dotted(owner) or None
    return None, None


def _walks_model(loop: ast.AST, subject: str) -> bool:
    names = {n.id for n in ast.walk(loop.target) if isinstance(n, ast.Name)}  # pyright: ignore
    if subject not in names:
        return False
    for call in ast.walk(loop.iter):  # pyright: ignore
        verb, owner = method(call)
        if verb in ("named_parameters", "named_modules", "named_buffers", "named_children"):
            # A class knows its own names.
            return owner is not None and not dotted(owner).startswith("self")
    return False
