"""The processes that share statistics: they agree before the first sum, and one that differs or stays away is named.

What is said here goes through the store of `torch.distributed`, never through a collective: a rank that registers
while another already sums cannot be paired with it.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any
from weakref import WeakKeyDictionary

import torch
import torch.distributed as dist

from batchnorm.errors import BatchNormError

# How long ranks that found a fault wait for the others' word on it.
_GRACE = 2.0


class ProcessGroupState:
    """The members of one process group, seen from one of them."""

    def __init__(self, group: Any) -> None:
        self.name = _default(group).group_name
        self.rank, self.members = dist.get_rank(), dist.get_process_group_ranks(_default(group))
        # Both are the same on every rank that is in step.
        self.layers, self.messages = 0, 0
        # Whether a DistributedDataParallel will add up gradients at the end of the next backward.
        self.backward_to_come = False
        self._own: Any = None

    def group_for(self, asked: Any) -> Any:
        """The group to send in: a private one beside the default group, where DDP's sums would come between."""
        return self._own if asked is None and self._own is not None else asked

    def register(self, signature: dict[str, Any], asked: Any, timeout: float) -> int:
        """Wait for the same layer on every rank and compare; the number of this layer among all registered."""
        number, self.layers = self.layers, self.layers + 1
        if dist.get_backend(asked) in ("fake", "mpi"):  # these have no store to talk through
            return number
        first, key = number == 0, f"batchnorm/{self.name}/registration/{number}/"
        # A group of one's own is named after the groups there are: every rank must count the same.
        mine = {**signature, "_groups": len(dist.distributed_c10d._world.pg_names)}
        trouble, alone = self._compare(key, mine, timeout)
        if trouble:
            raise BatchNormError(trouble)
        if first and asked is None and not alone and dist.get_backend() == "gloo":
            self._own = dist.new_group(self.members, timedelta(seconds=timeout), "gloo", use_local_synchronization=True)
        return number

    def _compare(self, key: str, mine: dict[str, Any], timeout: float) -> tuple[str, bool]:
        store, leader, wait = _store(), self.members[0], timedelta(seconds=timeout)
        told = {name: _plain(value) for name, value in mine.items()}
        store.set(f"{key}{self.rank}", json.dumps(told))
        try:
            store.wait([f"{key}{leader}"], wait)
            other = json.loads(store.get(f"{key}{leader}"))
            differ = [n for n in told if told[n] != other.get(n) and not n.startswith("_")]
            if differ:
                what = "; ".join(f"{name}: {told[name]} here, {other.get(name)} there" for name in differ)
                told_so = f"rank {self.rank} must have the same layer at this place as rank {leader}: {what}"
                store.set(f"{key}trouble", told_so)
            if told["_groups"] != other["_groups"]:
                store.set(f"{key}alone", "")
            if store.add(f"{key}arrived", 1) >= len(self.members):
                store.set(f"{key}done", "")
            store.wait([f"{key}done"], wait)
        except RuntimeError as error:
            missing = self.silent(key)
            raise BatchNormError(
                f"every rank must reach {told['layer']} within {timeout:g} s; rank {self.rank} waited "
                f"for the others{_named(missing)} ({_first_line(error)})"
            ) from error
        trouble = store.get(f"{key}trouble").decode() if store.check([f"{key}trouble"]) else ""
        return trouble, store.check([f"{key}alone"])

    def silent(self, key: str) -> list[int]:
        """The members that left no word under this key; none where the store is gone with rank 0."""
        try:
            store = _store()
            return [other for other in self.members if not store.check([f"{key}{other}"])]
        except Exception:
            return []

    def missing(self) -> list[int]:
        """After a sum that did not come: each that waits leaves a word and looks for those of the others."""
        told = self._say("waiting", "")
        return [] if told is None else [other for other in self.members if other not in told]

    def places(self, here: str) -> str:
        """After a sum that mixed different things: where each rank is."""
        told = self._say("place", here) or {self.rank: here}
        return "; ".join(f"rank {rank} is at {place}" for rank, place in sorted(told.items()))

    def _key(self, kind: str) -> str:
        return f"batchnorm/{self.name}/{kind}/{self.messages}/"

    def _say(self, kind: str, word: str) -> dict[int, str] | None:
        """Leave a word and look for the others' until all have spoken or the grace is over; None where nobody can tell.

        Whoever keeps the store may leave before this rank has waited long enough: then what was seen last holds.
        """
        found: dict[int, str] | None = None
        with suppress(Exception):  # the store lives in rank 0's process and may be gone with it
            store, key = _store(), self._key(kind)
            store.set(f"{key}{self.rank}", word)
            end = time.monotonic() + _GRACE
            while True:
                now = {self.rank: word}
                for other in self.members:
                    if other != self.rank and store.check([f"{key}{other}"]):
                        now[other] = store.get(f"{key}{other}").decode()
                found = now
                if len(now) == len(self.members) or time.monotonic() > end:
                    break
                time.sleep(0.05)
        return found


_states: WeakKeyDictionary[Any, ProcessGroupState] = WeakKeyDictionary()


def state_of(group: Any) -> ProcessGroupState:
    """The state of a process group; a group made anew after `destroy_process_group` is another one."""
    home = _default(group)
    if home not in _states:
        _states[home] = ProcessGroupState(group)
    return _states[home]


def _default(group: Any) -> Any:
    return dist.group.WORLD if group is None else group


def _store() -> Any:
    # Private, and wrapped here once.
    return dist.distributed_c10d._get_default_store()


def _plain(value: Any) -> Any:
    """Without the addresses that the repr of functions and groups carries: they differ in every process."""
    return re.sub(r" at 0x[0-9a-f]+", "", value) if isinstance(value, str) else value


def _named(ranks: list[int]) -> str:
    return f"; rank {', '.join(map(str, ranks))} did not come" if ranks else ""


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [""])[0][:120]


@contextmanager
def named(group: Any, here: str, what: str = "the others", kind: Any = BatchNormError) -> Iterator[None]:
    """Around a collective: where it fails, the error says which ranks stayed away from where."""
    state = state_of(group)
    state.messages += 1
    start = time.monotonic()
    try:
        yield
    except RuntimeError as error:
        raise kind(
            f"every rank must reach {here}; rank {state.rank} waited {time.monotonic() - start:.0f} s for {what}"
            f"{_named(state.missing())} ({_first_line(error)})"
        ) from error


def active_ddp() -> Any:
    """The DistributedDataParallel whose forward runs now, or None."""
    # Private: kept for compilers.
    return getattr(torch.nn.parallel.DistributedDataParallel, "_active_ddp_module", None)


def refuse_join() -> None:
    """Refuse DDP's Join where a rank that is out of data answers DDP's collectives, and none of a layer's."""
    ddp = active_ddp()
    if ddp is not None and ddp._join_config.enable and not ddp._join_config.throw_on_early_termination:
        raise BatchNormError(
            "DistributedDataParallel.join must be given throw_on_early_termination=True where statistics are shared "
            "over ranks: a rank that has run out of data answers DDP's collectives and not the layers'; or let it "
            "pass empty batches"
        )
