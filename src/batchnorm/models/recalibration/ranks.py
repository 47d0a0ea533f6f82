"""The same statistics on every process: moments are merged in the order of ranks, so all get the same bits."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch.distributed as dist

from batchnorm.errors import BatchNormError
from batchnorm.layers.processes.group_state import named
from batchnorm.models.recalibration.totals import Totals


class PeerFailed(BatchNormError):
    """Another process of the group raised, or stayed away; this one changed nothing either."""


class PeerBegins(Exception):
    """Another process of the group left a batch out and begins again; so must this one."""


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
        """Everybody's value, by rank; a collective call that raises everywhere if a process has failed.

        If one begins again, the others raise `PeerBegins`.
        """
        if self.alone:
            return [value]
        received = self._exchange(("value", value))
        if any(kind == "again" for kind, _ in received) and not any(kind == "error" for kind, _ in received):
            raise PeerBegins
        for rank, (kind, content) in enumerate(received):
            if kind == "error":
                raise PeerFailed(f"process_group must succeed on every process; rank {rank} failed: {content}")
        return [content for _, content in received]

    @contextmanager
    def telling(self) -> Iterator[None]:
        """If this process raises within, the others, who wait in their next collective call, are told."""
        try:
            yield
        except PeerFailed:
            raise
        except BaseException as error:
            if not self.alone:
                self._exchange(("error", f"{type(error).__name__}: {error}"))
            raise

    def again(self) -> None:
        """Tell the others, who wait in their next collective call, that this process begins again."""
        if not self.alone:
            received = self._exchange(("again", None))
            for rank, (kind, content) in enumerate(received):
                if kind == "error":
                    raise PeerFailed(f"process_group must succeed on every process; rank {rank} failed: {content}")

    def _exchange(self, value: Any) -> list[Any]:
        values: list[Any] = [None] * dist.get_world_size(self.group)
        with named(self.group, "the next exchange of recalibrate", kind=PeerFailed):
            dist.all_gather_object(values, value, group=self.group)
        return values

    def pooled(self, totals: Totals) -> Totals:
        """What all have seen together."""
        return totals if self.alone else merged(self.gathered(totals.state()))

    def file(self, path: str | Path | None) -> Path | None:
        """This process's own file to resume from: all may be given one path."""
        if path is None or self.alone:
            return None if path is None else Path(path)
        path = Path(path)
        return path.with_name(f"{path.name}.rank{dist.get_rank(self.group)}of{dist.get_world_size(self.group)}")

    def union(self, names: list[str]) -> list[str]:
        """The names that anybody has, in the order of the ranks."""
        return list(dict.fromkeys(name for theirs in self.gathered(names) for name in theirs))


def merged(states: list[dict[str, Any]]) -> Totals:
    """What several have seen, in their order."""
    first, *others = [Totals.from_state(state) for state in states]
    for other in others:
        first.merge(other)
    return first
