"""The processes that share a layer's statistics: one sum over ranks forward, one backward, and clear failures.

The engine is `torch.distributed`. What crosses is a float64 vector of 2 C + 5 values whatever the
number of ranks: two numbers, and sums of deviations and squared deviations from a shift that is the same
everywhere because it is set from reduced values only.
"""

from __future__ import annotations

import zlib
from datetime import timedelta
from importlib.metadata import version
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from batchnorm.errors import BatchNormError
from batchnorm.layers.moments import Moments
from batchnorm.layers.naming import describe
from batchnorm.layers.processes.ddp import before_ddp_sums, watch_ddp
from batchnorm.layers.processes.group_state import named, refuse_join, state_of

# Where the squared distance of shift and mean exceeds this many variances, float64 sums lose digits
# that a second reduction about the now known mean keeps; not where the variance is mere rounding.
FAR = 1e5
ROUNDING = 1e-13


class Ranks:
    """What one layer says to its counterparts on other ranks.

    Every message of a layer has the same length and carries a tag of the layer, the direction, the
    number of the call and the layer's mode beside its sums, so ranks that are out of step are told apart at
    once instead of mixing their statistics.
    """

    def __init__(self, sync: Any, signature: dict[str, Any]) -> None:
        self.sync, self.where = sync, str(signature["layer"])
        self.state = state_of(sync.group)
        self.mode = ""
        self.shift: Tensor | None = None
        self._calls = {"forward": 0, "backward": 0, "entry": 0}
        self._channels = int(signature["channels"])
        refuse_join()
        self._number = self.state.register(signature, sync.group, sync.timeout)
        self.group = self.state.group_for(sync.group)
        watch_ddp(self)

    def __deepcopy__(self, memo: dict[int, Any]) -> None:
        return None  # a copied or pickled layer registers anew

    def __reduce__(self) -> tuple[Any, tuple[()]]:
        return _nobody, ()

    def current(self, sync: Any) -> bool:
        """Whether this is still what the layer's extent asks for, in the process group there is now."""
        return self.sync is sync and self.state is state_of(sync.group)

    @property
    def group_name(self) -> str:
        """What functional collectives call the group."""
        everyone: Any = dist.group.WORLD if self.group is None else self.group
        return everyone.group_name

    def pool(self, batch: Moments) -> Moments:
        """The moments of all ranks' values, `(C,)` or `(1, C)`; a rank may hold none."""
        return pool_together([self], [batch])[0]

    def sums(self, *vectors: Tensor) -> tuple[Tensor, ...]:
        """Two vectors of one shape, each added up over ranks, in one message: what backward sends."""
        return sums_together([self], [vectors])[0]

    @property
    def went_back(self) -> bool:
        """Whether the layer has had a backward."""
        return self._calls["backward"] > 0

    def enter(self, place: str) -> None:
        """Wait until every rank has come to a place before a collective that is not the layers' own.

        One message as long as the layer's own, so that ranks out of step are told apart here too.
        """
        self._calls["entry"] += 1
        tag = self.tag(f"entry {place}")
        flat = sealed(torch.zeros(2 * self._channels, dtype=torch.float64), torch.zeros(2, dtype=torch.float64), tag)
        self.send(flat, place)
        self.check(flat[-3:], tag, "entry")

    def begin(self, direction: str) -> None:
        """One more call of the layer, on every rank; DDP's Join is refused."""
        if direction == "forward":
            refuse_join()
        elif self.state.backward_to_come:
            before_ddp_sums(self)
        self._calls[direction] += 1

    def send(self, message: Tensor, here: str) -> None:
        """Add a message up over ranks, in place; one that does not come back in time says who stayed away."""
        with named(self.sync.group, here, "its sum"):
            work: Any = dist.all_reduce(message, group=self.group, async_op=True)
            work.wait() if message.device.type == "cuda" else work.wait(timedelta(seconds=self.sync.timeout))

    def tag(self, direction: str, again: bool = False) -> float:
        """A number of this layer, direction, call and mode; of 20 bits, so that its square adds up exactly."""
        told = f"{self._number} {direction} {self._calls[direction.split()[0]]} {self.mode} {again}"
        return float(zlib.crc32(told.encode()) & 0xFFFFF)

    def here(self, direction: str) -> str:
        """This place in words."""
        mode = f", {self.mode}" if self.mode else ""
        return f"{self.where} ({direction}, call {self._calls[direction]}{mode})"

    def out_of_step(self, direction: str) -> BatchNormError:
        """The error for a sum of messages of different places, saying where every rank is."""
        return BatchNormError(
            f"all ranks must run their layers in the same order and mode; {self.state.places(self.here(direction))}"
        )

    def check(self, told: Tensor, tag: float, direction: str) -> None:
        """Every rank sent the same tag: the tags' variance is 0 and their mean is ours."""
        if told.device.type != "cpu":
            same = (told[1] == told[0] * tag) & (told[2] == told[0] * tag**2)
            torch._assert_async(same, "ranks must run their layers in one order")
            return
        ranks, tags, squares = told.tolist()
        if tags != ranks * tag or squares != ranks * tag**2:
            raise self.out_of_step(direction)


def pool_together(ranks: list[Ranks], batches: list[Moments]) -> list[Moments]:
    """The moments of all ranks' values, of several layers in one message."""
    shifts = []
    for one, batch in zip(ranks, batches, strict=True):
        one.begin("forward")
        known = torch.zeros_like(batch.mean) if one.shift is None else one.shift.to(batch.mean).view_as(batch.mean)
        shifts.append(known)
    # Which samples count is the same in every channel: one number each.
    sent = [payload(batch, shift) for batch, shift in zip(batches, shifts, strict=True)]
    found, far = [], []
    for i, (numbers, sums) in enumerate(_cross(ranks, "forward", [(sums, numbers) for numbers, sums in sent])):
        first, second = sums
        safe = torch.where(numbers[0] > 0, numbers[0], 1.0)
        mean = shifts[i] + first / safe
        m2 = (second - first.square() / safe).clamp_min(0)
        found.append((numbers, mean, m2))
        if ranks[i].shift is None or _is_far(mean, first / safe, m2 / safe):
            far.append(i)
    if far:
        # A second message about the mean that is known now, where the first was about another shift.
        about = []
        for i in far:
            batch, mean = batches[i], found[i][1]
            away = torch.where(batch.count > 0, batch.mean - mean, 0.0)
            second = torch.stack((batch.m2 + batch.count * away.square(), torch.zeros_like(mean)))
            about.append((second, sent[i][0]))
        for i, (_, sums) in zip(far, _cross([ranks[i] for i in far], "forward", about, True), strict=True):
            found[i] = (*found[i][:2], sums[0])
    pooled = []
    for one, batch, shift, (numbers, mean, m2) in zip(ranks, batches, shifts, found, strict=True):
        one.shift = torch.where(torch.isfinite(mean), mean, shift).detach()
        n, squares = (number.expand_as(mean) for number in numbers)
        pooled.append(Moments(n, mean, m2, squares, batch.reliability))
    return pooled


def sums_together(ranks: list[Ranks], vectors: list[tuple[Tensor, ...]]) -> list[tuple[Tensor, ...]]:
    """Each layer's two vectors added up over ranks, in one message."""
    for one in ranks:
        one.begin("backward")
    sums = [torch.stack(pair) for pair in vectors]
    received = _cross(ranks, "backward", [(pair, pair.new_zeros(2)) for pair in sums])
    return [tuple(pair.unbind(0)) for _, pair in received]


def _cross(
    ranks: list[Ranks], direction: str, parts: list[tuple[Tensor, Tensor]], again: bool = False
) -> list[tuple[Tensor, Tensor]]:
    """Sums and numbers of each layer, added up over ranks in one message: numbers, then sums."""
    tags = [one.tag(direction, again) for one in ranks]
    sent = [sealed(sums, numbers, tag) for (sums, numbers), tag in zip(parts, tags, strict=True)]
    whole = sent[0] if len(sent) == 1 else torch.cat(sent)
    ranks[0].send(whole, ", ".join(one.here(direction) for one in ranks))
    found = []
    for one, (sums, _), tag, flat in zip(ranks, parts, tags, whole.split([len(s) for s in sent]), strict=True):
        one.check(flat[-3:], tag, direction)
        found.append((flat[-5:-3], flat[:-5].reshape(sums.shape)))
    return found


def _is_far(mean: Tensor, distance: Tensor, var: Tensor) -> bool:
    """Whether the shift was too far off; read where reading costs no device a wait."""
    if distance.device.type != "cpu":
        return False
    limit = FAR * var + (ROUNDING * mean).square()
    return bool(((distance.square() > limit) & torch.isfinite(distance)).any())


def sealed(sums: Tensor, numbers: Tensor, tag: float) -> Tensor:
    """A message: sums, numbers, and 1, tag and its square."""
    return torch.cat((sums.reshape(-1), numbers, numbers.new_tensor([1.0, tag, tag**2])))


def payload(batch: Moments, shift: Tensor) -> tuple[Tensor, Tensor]:
    """Count and sum of squared weights, and per channel the sums of deviations from the shift and of their squares."""
    present = batch.count > 0
    away = torch.where(present, batch.mean - shift, 0.0)
    squares = batch.count if batch.count_squared is None else batch.count_squared
    second = torch.where(present, batch.m2, 0.0) + batch.count * away.square()
    numbers = torch.stack((batch.count.reshape(-1)[0], squares.reshape(-1)[0]))
    return numbers, torch.stack((batch.count * away, second))


def partners(layer: Any, sync: Any) -> Ranks:
    """The processes that a layer shares statistics with by this choice, registered once."""
    ranks = layer.__dict__.get("_partners")
    if ranks is None or not ranks.current(sync):
        mean = layer.running_mean
        signature = {
            "layer": describe(layer),
            "channels": layer.num_features,
            "dtype": str(mean.dtype if mean is not None else layer.weight.dtype),
            "choices": repr(layer.recipe),
            "momentum": repr(layer.momentum),
            "eps": layer.eps,
            "version": version("batchnorm"),
        }
        ranks = layer.__dict__["_partners"] = Ranks(sync, signature)
    paused, bank = "paused" if layer.paused else "", layer.active_bank
    ranks.mode = paused if bank is None else f"{paused} bank {bank}".strip()
    return ranks


def _nobody() -> None:
    return None
