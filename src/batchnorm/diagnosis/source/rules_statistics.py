"""Rules on code that touches running statistics: by hand, by momentum, by averaging."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from typing import NamedTuple

from batchnorm.diagnosis.source.syntax import Source, is_eval, is_train, keyword, method, number, same

STATISTICS = ("running_mean", "running_var", "moving_mean", "moving_variance")
IN_PLACE = ("copy_", "mul_", "add_", "lerp_", "sub_", "assign")
RECALIBRATE = "batchnorm.recalibrate(model, loader)"


class Said(NamedTuple):
    """Where, what, the fix, and whether the rule is sure of it."""

    node: ast.AST
    message: str
    fix: str
    sure: bool = True


def _statistic(node: ast.AST) -> bool:
    return isinstance(node, ast.Attribute) and (
        node.attr in STATISTICS or (node.attr == "data" and _statistic(node.value))
    )


def _writes(source: Source) -> Iterator[tuple[ast.AST, ast.AST, ast.AST]]:
    """Every write to a statistic: the statement, the target and the value."""
    if not source.mentions(*STATISTICS):
        return
    for node in ast.walk(source.tree):
        if isinstance(node, ast.Assign) and len(node.targets) == 1 and _statistic(node.targets[0]):
            yield node, node.targets[0], node.value
        elif isinstance(node, ast.AugAssign) and _statistic(node.target):
            yield node, node.target, node
        elif isinstance(node, ast.Call):
            name, target = method(node)
            if name in IN_PLACE and target is not None and node.args and _statistic(target):
                yield node, target, node.args[0]


def _plain(target: ast.AST) -> ast.AST:
    return target.value if isinstance(target, ast.Attribute) and target.attr == "data" else target


def changes_nothing(source: Source) -> Iterator[Said]:
    """A value mixed with itself."""
    for node, target, value in _writes(source):
        copying = not isinstance(node, ast.Call) or method(node)[0] in ("copy_", "assign")
        if copying and not isinstance(value, ast.AugAssign) and _mixes_with_itself(_plain(target), value):
            yield Said(
                node,
                "running statistics are mixed with themselves: m * r + (1 - m) * r is r, nothing changes",
                f"delete the line: a forward in train mode moves them, {RECALIBRATE} measures them anew",
            )


def _mixes_with_itself(target: ast.AST, value: ast.AST) -> bool:
    if same(_plain(value), target):
        return True
    if isinstance(value, ast.Call) and method(value)[0] == "lerp":
        ends = [value.func.value, *value.args[:1]] if len(value.args) == 2 else value.args[:2]  # pyright: ignore
        return len(ends) == 2 and all(same(_plain(end), target) for end in ends)
    if not (isinstance(value, ast.BinOp) and isinstance(value.op, ast.Add)):
        return False
    parts = [_coefficient(side, target) for side in (value.left, value.right)]
    if parts[0] is None or parts[1] is None:
        return False
    return _complement(parts[0], parts[1]) or _complement(parts[1], parts[0])


def _coefficient(side: ast.AST, target: ast.AST) -> ast.AST | None:
    if isinstance(side, ast.BinOp) and isinstance(side.op, ast.Mult):
        for factor, other in ((side.left, side.right), (side.right, side.left)):
            if same(_plain(other), target):
                return factor
    return None


def _complement(a: ast.AST, b: ast.AST) -> bool:
    first, second = number(a), number(b)
    if first is not None and second is not None:
        return abs(first + second - 1) < 1e-9
    return isinstance(b, ast.BinOp) and isinstance(b.op, ast.Sub) and number(b.left) == 1 and same(b.right, a)


def after_eval(source: Source) -> Iterator[Said]:
    """An update rule by hand, in a function that has called eval() and not train() since."""
    for node, target, value in _writes(source):
        mixing = isinstance(value, ast.AugAssign) or any(same(n, _plain(target)) for n in ast.walk(value))
        if not mixing or _mixes_with_itself(_plain(target), value):
            continue
        scope = source.function(node)
        modes = [
            (call.lineno, is_eval(call))
            for call in source.calls
            if (is_eval(call) or is_train(call)) and source.function(call) is scope and call.lineno < node.lineno  # pyright: ignore
        ]
        if modes and max(modes)[1]:
            yield Said(
                node,
                "running statistics are updated by hand after eval(), where nothing should move: the layer itself "
                "updates them in every forward in train mode",
                RECALIBRATE,
            )


def torch_momentum(source: Source) -> Iterator[Said]:
    """Momentum of 0.5 or more in a torch layer."""
    for call in source.calls:
        if source.is_torch_layer(call.func):
            value = number(keyword(call, "momentum", 2))
            if value is not None and 0.5 <= value < 1:
                yield Said(
                    call,
                    f"momentum={value:g} is the weight of the NEW batch in torch; a Keras or Flax value would be "
                    f"{1 - value:g} here. It hurts with small or correlated batches",
                    f"momentum={1 - value:g}",
                    sure=False,
                )


def momentum_outside(source: Source) -> Iterator[Said]:
    """Momentum below 0 or above 1 in a torch layer."""
    for call in source.calls:
        if source.is_torch_layer(call.func):
            value = number(keyword(call, "momentum", 2))
            if value is not None and not 0 <= value <= 1:
                yield Said(
                    call,
                    f"momentum={value:g} is taken without a word, but the weight of the new batch must be in [0, 1]: "
                    f"the old value weighs {1 - value:g}, and the statistics swing past the data or away from it",
                    f"momentum=0.1, and {RECALIBRATE} for what is trained already",
                )


def keras_momentum(source: Source) -> Iterator[Said]:
    """Momentum of 0.5 or less in a Keras layer."""
    for call in source.calls:
        name = source.full(call.func)
        if name.rsplit(".", 1)[-1] == "BatchNormalization" and ("keras" in name or name.startswith("tf.")):
            value = number(keyword(call, "momentum", 1))
            if value is not None and 0 < value <= 0.5:
                yield Said(
                    call,
                    f"momentum={value:g} is the weight of the OLD value in Keras; a torch value would be {1 - value:g} "
                    "here. It hurts with small or correlated batches",
                    f"momentum={1 - value:g}",
                    sure=False,
                )


def flipped_tracking(source: Source) -> Iterator[Said]:
    """track_running_stats assigned on a layer that exists."""
    for node in ast.walk(source.tree):
        if not isinstance(node, ast.Assign) or len(node.targets) != 1:
            continue
        target = node.targets[0]
        if not (isinstance(target, ast.Attribute) and target.attr == "track_running_stats"):
            continue
        own = isinstance(target.value, ast.Name) and target.value.id == "self"
        if own or not (isinstance(node.value, ast.Constant) and node.value.value is False):
            continue
        scope = source.function(node)
        without_buffers = any(
            isinstance(n, ast.Assign)
            and any(_statistic(t) for t in n.targets)
            and isinstance(n.value, ast.Constant)
            and n.value.value is None
            for n in ast.walk(scope)
        )
        if not without_buffers:
            restored = any(
                isinstance(n, ast.Assign)
                and any(isinstance(t, ast.Attribute) and t.attr == "track_running_stats" for t in n.targets)
                and n is not node
                for n in ast.walk(source.tree)
            )
            yield Said(
                node,
                "track_running_stats = False on a layer that has buffers: train mode then uses the batch and moves "
                "nothing, eval mode still uses the old buffers",
                "batchnorm.pause(model) for a while, batchnorm.freeze(model) for good",
                sure=not restored,
            )


def averages_parameters_only(source: Source) -> Iterator[Said]:
    """An average of two models' parameters(), and no buffer in sight."""
    if source.mentions("buffers", "state_dict()", "running_mean"):
        return
    for loop in ast.walk(source.tree):
        if not (isinstance(loop, ast.For) and isinstance(loop.iter, ast.Call) and len(loop.iter.args) == 2):
            continue
        if source.full(loop.iter.func) != "zip" or not all(_parameters(a) for a in loop.iter.args):
            continue
        if any(_mixing(node) for statement in loop.body for node in ast.walk(statement)):
            layers = source.mentions("BatchNorm", "resnet", "torchvision.models", "timm")
            yield Said(
                loop,
                "an average over parameters() leaves out the running statistics: the averaged model evaluates with "
                "those it started with",
                "copy the buffers too: for a, b in zip(ema.buffers(), model.buffers()): a.copy_(b)",
                sure=layers,
            )


def _parameters(node: ast.AST) -> bool:
    return method(node)[0] == "parameters"


def _mixing(node: ast.AST) -> bool:
    """p.mul_(d).add_(q), p.lerp_(q, w), p.data = d * p.data + (1 - d) * q.data."""
    name, _ = method(node)
    if name in ("lerp_",):
        return True
    if name in ("add_", "mul_") and method(node)[1] is not None and method(method(node)[1])[0] in ("mul_", "add_"):  # pyright: ignore
        return True
    value = node.value if isinstance(node, ast.Assign) else node.args[0] if name == "copy_" and node.args else None  # pyright: ignore
    mixed = isinstance(value, ast.BinOp) and isinstance(value.op, ast.Add)
    return mixed and all(isinstance(s, ast.BinOp) and isinstance(s.op, ast.Mult) for s in (value.left, value.right))  # pyright: ignore


CARES = ("num_batches_tracked", "is_floating_point", "dtype", "is_float", ".long", "int64", ".type(", ".to(", "float32")


def averages_counter(source: Source) -> Iterator[Said]:
    """Every entry of a state dict averaged, the integer counter among them."""
    if not source.mentions("state_dict"):
        return
    for loop in ast.walk(source.tree):
        if not isinstance(loop, ast.For):
            continue
        scope = source.function(loop)
        segment = ast.get_source_segment(source.text, scope) if scope is not source.tree else source.text
        if segment is None or "state_dict" not in segment or any(word in segment for word in CARES):
            continue
        names = {n.id for n in ast.walk(loop.target) if isinstance(n, ast.Name)}
        walks_keys = method(loop.iter)[0] in ("keys", "items") or isinstance(loop.iter, ast.Name)
        for statement in loop.body if walks_keys else []:
            for node in ast.walk(statement):
                if _averages(node, names):
                    yield Said(
                        node,
                        "every entry of the state dict is averaged, the integer num_batches_tracked too: torch "
                        "refuses it or truncates it",
                        "average floating entries only: if value.is_floating_point()",
                    )


def _averages(node: ast.AST, names: set[str]) -> bool:
    """sd[k] = sd[k] / n, sd[k] /= n, sd[k] = torch.div(sd[k], n), sd[k] = a * sd[k] + b * other[k]."""
    target = (
        node.targets[0] if isinstance(node, ast.Assign) else node.target if isinstance(node, ast.AugAssign) else None
    )
    keyed = isinstance(target, ast.Subscript) and isinstance(target.slice, ast.Name) and target.slice.id in names
    if not keyed:
        return False
    if isinstance(node, ast.AugAssign):
        return isinstance(node.op, ast.Div)
    value = node.value  # pyright: ignore[reportAttributeAccessIssue]
    reads = [n for n in ast.walk(value) if isinstance(n, ast.Subscript) and same(n.slice, target.slice)]  # pyright: ignore
    if not reads:
        return False
    if isinstance(value, ast.BinOp) and isinstance(value.op, ast.Div):
        return True
    weighted = isinstance(value, ast.BinOp) and isinstance(value.op, ast.Add) and len(reads) >= 2
    divides = isinstance(value, ast.Call) and method(value)[0] in ("div", "true_divide", "mean")
    return divides or (
        weighted and any(isinstance(n, ast.BinOp) and isinstance(n.op, ast.Mult) for n in ast.walk(value))
    )
