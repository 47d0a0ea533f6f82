"""The same statistics on every process: moments are merged in the order of ranks, so all get the same bits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch.distributed as dist

from batchnorm.errors import BatchNormError
from batchnorm.models.recalibration.totals import Totals


class PeerFailed(BatchNormError):
    """Another process of the group raised; this one changed nothing either."""


@dataclass(frozen=True)
class Ranks:
    """A process group, or one process alone (None)."""

    group: Any = None

    @staticmethod
    def of(process_group: Any) -> Ranks:
        """Check that the group is one that can be used."""
        if process_group is None:
            return Ranks()
        if not dist.is_available() or not dist.is_initialized():
            raise BatchNormError("process_group must belong to an initialised torch.distributed; none is")
        return Ranks(process_group)

    @property
    def alone(self) -> bool:
        """Whether there is nobody to talk to."""
        return self.group is None or dist.get_world_size(self.group) == 1

    def gathered(self, value: Any) -> list[Any]:
        """Everybody's value, by rank; a collective call that raises everywhere if a process has failed."""
        if self.alone:
            return [value]
        received = self._exchange(("value", value))
        for rank, (kind, content) in enumerate(received):
            if kind == "error":
                raise PeerFailed(f"process_group must succeed on every process; rank {rank} failed: {content}")
        return [content for _, content in received]

    def fail(self, error: BaseException) -> None:
        """Tell the others, who wait in their next collective call, that this process raises."""
        if not self.alone and not isinstance(error, PeerFailed):
            self._exchange(("error", f"{type(error).__name__}: {error}"))

    def _exchange(self, value: Any) -> list[Any]:
        values: list[Any] = [None] * dist.get_world_size(self.group)
        dist.all_gather_object(values, value, group=self.group)
        return values

    def pooled(self, totals: Totals) -> Totals:
        """What all have seen together."""
        if self.alone:
            return totals
        merged, *others = [Totals.from_state(state) for state in self.gathered(totals.state())]
        for other in others:
            merged.merge(other)
        return merged

    def union(self, names: list[str]) -> list[str]:
        """The names that anybody has, in the order of the ranks."""
        return list(dict.fromkeys(name for theirs in self.gathered(names) for name in theirs))
