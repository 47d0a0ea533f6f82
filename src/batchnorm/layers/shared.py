"""Plain batch normalization shared over processes, natively: the vectors' arithmetic costs less than the message.

Everything here has a slower spelling in `module`, `normalise` and `ranks`, which serves whatever this
declines, sends the same messages, and is what the tests compare with. Several layers that do not wait
for one another go through together, in one message.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from batchnorm.errors import BatchNormError
from batchnorm.kernels import native, reference, shared
from batchnorm.layers import step
from batchnorm.layers.choices.couplings import BatchCoupling
from batchnorm.layers.choices.estimators import EMA, Cumulative
from batchnorm.layers.moments import Moments
from batchnorm.layers.naming import describe
from batchnorm.layers.operands import affine_of, statistics_of, usable
from batchnorm.layers.processes.ranks import FAR, ROUNDING, Ranks, sealed
from batchnorm.layers.recompute import recomputing
from batchnorm.layers.rule import Numbers, Vectors
from batchnorm.layers.step import Plan, Sharing
from batchnorm.layers.ways import way_of

if TYPE_CHECKING:
    from batchnorm.layers.module import BatchNorm


class Part:
    """One layer's part of a call: its batch, whom it shares with, and in `saved` what the forward leaves."""

    __slots__ = ("batch", "layer", "moves", "ranks", "rows", "saved", "statistics", "status", "tracks", "way")

    def __init__(self, layer: BatchNorm, ranks: Ranks, batch: shared.Arranged, way: Any, statistics: Any) -> None:
        self.layer, self.ranks, self.batch, self.way, self.statistics = layer, ranks, batch, way, statistics
        self.tracks = statistics is not None and not (layer.paused or recomputing())
        self.moves = self.tracks and not layer.accumulating and _plainly(layer)

    def pooled(self) -> Moments:
        """The moments of all ranks' values."""
        count, squares, mean, m2 = self.saved[:4]
        return Moments(count, mean, m2, squares, self.layer.recipe.policy.weights == "reliability")


def part_of(layer: BatchNorm, x: Tensor, ranks: Any, tracks: bool) -> Part | None:
    """A layer's part, or None where the slower spelling must serve; what decides is alike on every rank."""
    recipe = layer.recipe
    if type(recipe.coupling) is not BatchCoupling or recipe.extent.splits or type(ranks) is not Ranks:
        return None
    if recipe.policy.too_few == "population":
        return None
    if not (native.enabled() and native.unwatched() and native.plain(x) and x.dim() >= 2 and x.shape[1]):
        return None
    way = way_of(layer, "tracks" if tracks else "alone", None)
    weight, bias = affine_of(layer)
    if way is None or not usable(weight, bias, x):
        return None
    statistics = statistics_of(layer, x) if tracks else None
    if tracks and statistics is None:
        return None
    return Part(layer, ranks, shared.Arranged(x), way, statistics)


def _plainly(layer: BatchNorm) -> bool:
    """Whether the native step of the statistics has the bits of the estimator's own, which other ranks may run."""
    estimator: Any = layer.recipe.estimator
    if type(estimator) not in (EMA, Cumulative) or estimator.sigma or estimator.total:
        return False
    # A schedule, or a power of the decay, may differ in the last bit.
    numbers = layer.momentum is None or type(layer.momentum) in (float, int)
    return numbers and not getattr(estimator, "debias", False)


def forward(parts: list[Part]) -> list[Tensor]:
    """The layers' outputs before activation, from one message of all."""
    _pool(parts)
    flat: list[Any] = []
    for part in parts:
        flat += [part.batch.x, *affine_of(part.layer)]
    outputs = Shared.apply(parts, *flat) if torch.is_grad_enabled() else _outputs(parts, flat)
    for part in parts:
        _after(part)
    return list(outputs)  # pyright: ignore[reportArgumentType]


def _pool(parts: list[Part]) -> None:
    sent: list[Tensor] = []
    tags: list[float] = []
    shifts: list[Tensor] = []
    for part in parts:
        ranks, channels = part.ranks, part.batch.channels
        ranks.begin("forward")
        known = torch.zeros(channels, dtype=torch.float64, device="cpu") if ranks.shift is None else ranks.shift
        # Copies, which move with the sums: after a sum that failed the shift is what it was.
        shifts.append(known.to(torch.float64, copy=True).reshape(channels))
        tags.append(ranks.tag("forward"))
        message, part.rows = shared.message(part.batch, shifts[-1], tags[-1])
        sent.append(message)
    again: list[Part] = []
    received = _cross(parts, sent, "forward")
    for part, sums, tag, shift in zip(parts, received, tags, shifts, strict=True):
        part.saved, status = shared.moments(sums, tag, FAR, ROUNDING, shift)
        if status & shared.OUT_OF_STEP:
            raise part.ranks.out_of_step("forward")
        if part.ranks.shift is None or status & shared.FAR:
            again.append(part)
    if again:
        _pool_again(again)
    for part, shift in zip(parts, shifts, strict=True):
        part.ranks.shift = shift


def _pool_again(parts: list[Part]) -> None:
    """A second message, about the mean that is known now: where the first was about another shift."""
    tags = [part.ranks.tag("forward", again=True) for part in parts]
    sent = []
    for part, tag in zip(parts, tags, strict=True):
        count, squares, mean, m2 = part.rows
        away = torch.where(count > 0, mean - part.saved[2], 0.0)
        about = torch.stack((m2 + count * away.square(), torch.zeros_like(m2)))
        sent.append(sealed(about, torch.stack((count[0], squares[0])), tag))
    for part, received, tag in zip(parts, _cross(parts, sent, "forward"), tags, strict=True):
        part.ranks.check(received[-3:], tag, "forward")
        part.saved[3] = received[: part.batch.channels]


def _cross(parts: list[Part], sent: list[Tensor], direction: str) -> list[Tensor]:
    """Each layer's sum over ranks, from one message."""
    ranks = parts[0].ranks
    here = ", ".join(part.ranks.here(direction) for part in parts)
    if len(sent) == 1:
        ranks.send(sent[0], here)
        return sent
    whole = torch.cat(sent)
    ranks.send(whole, here)
    return list(whole.split([len(message) for message in sent]))


def _outputs(parts: list[Part], flat: list[Any]) -> tuple[Tensor, ...]:
    outputs = []
    for part, weight, bias in zip(parts, flat[1::3], flat[2::3], strict=True):
        y, part.status = shared.forward(
            part.way.spec, part.batch, weight, bias, part.saved, part.statistics, part.moves
        )
        outputs.append(y)
    return tuple(outputs)


def _after(part: Part) -> None:
    """What the native call leaves to the layer: errors, and steps of the statistics that it does not know."""
    layer = part.layer
    if part.status == shared.TOO_FEW:
        raise BatchNormError(
            f"training needs at least 2 unmasked values per channel, over all ranks: {describe(layer)}"
        )
    if part.status == shared.NOT_FINITE:
        raise BatchNormError(f"batch statistics must be finite: {describe(layer)}")
    if part.tracks and not part.moves:
        layer._move(part.pooled())


class Shared(torch.autograd.Function):
    """The native forward and backward of some layers; second derivatives go through the spelled forward."""

    @staticmethod
    def forward(ctx: Any, parts: list[Part], *flat: Any) -> tuple[Tensor, ...]:
        """Keep x and the rows of channel vectors."""
        ctx.save_for_backward(*flat)
        ctx.parts = [(part.ranks, part.saved, part.layer.eps) for part in parts]
        return _outputs(parts, list(flat))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor):
        """One message with the sums of all layers, whichever of them anybody needs."""
        needs = ctx.needs_input_grad[1:]
        flat = ctx.saved_tensors
        if torch.is_grad_enabled():
            return None, *_respelled(ctx.parts, flat, needs, grads)
        steps = []
        for index, (ranks, saved, _) in enumerate(ctx.parts):
            here = slice(3 * index, 3 * index + 3)
            ranks.begin("backward")
            x, weight, bias = flat[here]
            natively = native.unwatched() and native.plain(grads[index]) and native.plain(x)
            natively = natively and x.shape == grads[index].shape and usable(weight, bias, x)
            steps.append((_Step if natively else _TorchStep)(ranks, saved, flat[here], grads[index], needs[here]))
        received = _cross(steps, [step.message for step in steps], "backward")
        return None, *(grad for step, sums in zip(steps, received, strict=True) for grad in step.gradients(sums))


class _Step:
    """One layer's backward on both sides of the sum over ranks."""

    def __init__(self, ranks: Ranks, saved: Tensor, inputs: Any, g: Tensor, needs: tuple[bool, ...]) -> None:
        x, weight, bias = inputs
        self.ranks, self.saved, self.weight, self.bias, self.wanted = ranks, saved, weight, bias, needs[0]
        self.batch, self.tag = shared.Arranged(x), ranks.tag("backward")
        self.g = native.like(g, self.batch.x)
        wants = (weight is not None and needs[1], bias is not None and needs[2])
        self.message, self.dw, self.db = shared.sums(self.batch, self.g, saved, self.tag, wants)

    def gradients(self, received: Tensor) -> tuple[Tensor | None, ...]:
        """Of x, weight and bias: these two are of this rank's samples alone, as DDP expects."""
        dx, status = shared.backward(self.batch, self.g, self.saved, received, self.tag, self.weight, self.wanted)
        if status:
            raise self.ranks.out_of_step("backward")
        return dx, _as(self.dw, self.weight), _as(self.db, self.bias)


class _TorchStep(_Step):
    """The same in torch operations, where g is no plain tensor."""

    def __init__(self, ranks: Ranks, saved: Tensor, inputs: Any, g: Tensor, needs: tuple[bool, ...]) -> None:
        self.x, weight, bias = inputs
        self.ranks, self.saved, self.weight, self.bias, self.wanted = ranks, saved, weight, bias, needs[0]
        self.g, self.tag = g, ranks.tag("backward")
        sums = reference.backward_reduce(g, self.x, saved[4][None], saved[5][None])
        self.db, self.dw = (v[0] for v in sums)
        self.message = sealed(torch.stack((self.db, self.dw)), saved.new_zeros(2), self.tag)

    def gradients(self, received: Tensor) -> tuple[Tensor | None, ...]:
        self.ranks.check(received[-3:], self.tag, "backward")
        c = self.saved.shape[1]
        invstd, share = self.saved[5], self.saved[7]
        scale = invstd if self.weight is None else invstd * self.weight.to(invstd.dtype)
        u, v = share * scale * received[:c], share * scale * received[c : 2 * c] * invstd
        rows = (self.saved[6][None], scale[None], u[None], v[None])
        dx = reference.backward_apply(self.g, self.x, *rows) if self.wanted else None
        return dx, _as(self.dw, self.weight), _as(self.db, self.bias)


def _as(grad: Tensor | None, parameter: Tensor | None) -> Tensor | None:
    return None if grad is None or parameter is None else grad.to(parameter.dtype)


def _respelled(parts: Any, flat: Any, needs: tuple[bool, ...], grads: tuple[Tensor, ...]) -> list[Tensor | None]:
    """The gradients with a graph of their own, through operations."""
    outputs: list[Tensor] = []
    for index, (ranks, _, eps) in enumerate(parts):
        sharing = Sharing(ranks=ranks, uneven=True)
        x, weight, bias = flat[3 * index : 3 * index + 3]
        plan = Plan(lambda found: (Numbers(), Vectors()), eps, uneven=True)
        outputs.append(step.spelled(x, weight, bias, plan, sharing))
    wanted = [t for t, needed in zip(flat, needs, strict=True) if t is not None and needed]
    found = iter(torch.autograd.grad(outputs, wanted, grads, create_graph=True, allow_unused=True))
    return [next(found) if t is not None and needed else None for t, needed in zip(flat, needs, strict=True)]
