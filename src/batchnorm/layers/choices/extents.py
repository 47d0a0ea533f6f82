"""Which samples share statistics: the batch, ghost groups, all ranks; and whether a mask must be given."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import torch

from batchnorm.arguments import POSITIVE, a_process_group, arguments, instance, whole, word
from batchnorm.errors import check

Update = Literal["pooled", "sequential"]


class Extent:
    """The choice "which samples share statistics?"."""

    # Whether each group meets the statistics its predecessor left.
    sequential: bool = False
    # What every forward must be given: "mask" or "weights".
    requires: str | None = None
    # The choice of sharing over processes, where this extent holds it.
    sync: Sync | None = None
    # Whether a batch may be split into groups that normalise on their own.
    splits: bool = False

    def groups(self, samples: int) -> int:
        """Into how many groups a batch of this many samples is split."""
        return 1


@dataclass(frozen=True)
class Batch(Extent):
    """All samples of the batch share statistics."""


@arguments(size=whole(1, "an integer of 1 or more samples"), update=word(Update))
@dataclass(frozen=True)
class Ghost(Extent):
    """Groups of at least `size` samples, each normalised on its own.

    Example:
        >>> import torch, batchnorm
        >>> layer = batchnorm.BatchNorm1d(3, extent=batchnorm.layers.Ghost(4))
        >>> x = torch.randn(8, 3)
        >>> plain = torch.nn.BatchNorm1d(3)
        >>> torch.allclose(layer(x), torch.cat([plain(x[:4]), plain(x[4:])]), atol=1e-6)
        True

    A batch of n samples is split into max(1, n // size) groups whose sizes differ by at most one,
    larger ones first, in the order of the batch: no remainder of one, and a batch below size is one
    group. Inference does not know about groups.

    Args:
        size: the ghost batch size; 32 when a method is named without one.
        update: "pooled" moves the running statistics once a step, by the moments of the whole
            batch, so the horizon of the average is that of plain batch norm. "sequential" moves
            them group after group as the authors' code does, each group meeting the statistics its
            predecessor left; k groups then weigh 1 - (1 - momentum)^k together.

    Raises:
        BatchNormError: size below 1, another update.

    Source: Hoffer, Hubara and Soudry, "Train longer, generalize better" (2017), algorithm 1.
    """

    size: int = 32
    update: Update = "pooled"
    splits = True
    sequential = property(lambda self: self.update == "sequential")  # pyright: ignore

    def groups(self, samples: int) -> int:
        """As many groups of at least `size` as there are."""
        return max(1, samples // self.size)


@dataclass(frozen=True)
class _Inside(Extent):
    """Another extent with something added: what is not said here is as the extent within says."""

    within: Extent = field(default_factory=Batch)

    def groups(self, samples: int) -> int:
        """As the extent within."""
        return self.within.groups(samples)

    sequential = property(lambda self: self.within.sequential)  # pyright: ignore
    sync = property(lambda self: self.within.sync)  # pyright: ignore
    splits = property(lambda self: self.within.splits)  # pyright: ignore


@arguments(within=instance(Extent, "Batch() or Ghost(size)"), group=a_process_group, timeout=POSITIVE)
@dataclass(frozen=True)
class Sync(_Inside):
    """All samples of all processes share statistics; in a single process this is the batch.

    Example:
        >>> import batchnorm
        >>> layer = batchnorm.BatchNorm1d(3, extent=batchnorm.layers.Sync())

    Works wherever `torch.distributed` does, gloo on the CPU included. Ranks may hold different
    numbers of samples, or none. Forward is one sum over ranks (two at the first batch, and where the
    mean is far from that of the batch before), backward one, each of 2 C + 5 float64 values; inference
    never waits for anybody. Nothing happens where no process group is initialised. Ranks that differ, are
    out of step or stay away are named in the error. See `docs/many-processes.md`.

    Args:
        within: `Ghost(size)` normalises groups inside each rank and shares the running statistics.
        group: a process group; None is the default one (with gloo a group of the layers' own beside it,
            whose sums do not come between those of DDP). It cannot be pickled.
        timeout: seconds after which a rank that waits for the others raises, naming layer and ranks
            (CPU tensors; on CUDA and in compiled code the process group's own timeout holds).

    Raises:
        BatchNormError: another extent within, sequential updates, a timeout that is not positive.
    """

    group: Any = field(default=None, compare=False)
    timeout: float = 300.0
    sync = property(lambda self: self)  # pyright: ignore

    def __post_init__(self) -> None:
        check(type(self.within) in (Batch, Ghost), "within", "Batch() or Ghost(size)", self.within)
        check(not self.within.sequential, "within", "without sequential updates, which follow one order", self.within)

    def size(self) -> int:
        """How many processes share statistics now."""
        distributed = torch.distributed
        started = distributed.is_available() and distributed.is_initialized()
        return distributed.get_world_size(self.group) if started else 1

    def __deepcopy__(self, memo: dict[int, Any]) -> Sync:
        return self  # frozen, and a process group cannot be copied


@arguments(within=instance(Extent, "an extent, such as batchnorm.layers.Ghost()"))
@dataclass(frozen=True)
class Masked(_Inside):
    """Samples and positions where the mask is True, within another extent; a forward without a mask is an error.

    Example:
        >>> import torch, batchnorm
        >>> layer = batchnorm.BatchNorm1d(3, extent=batchnorm.layers.Masked())
        >>> x, lengths = torch.randn(2, 3, 5), torch.tensor([5, 2])
        >>> float(layer(x, lengths=lengths)[1, :, 2:].detach().abs().sum())
        0.0

    Any layer takes `mask=`, `lengths=` or `weights=`; this extent makes forgetting it impossible.
    """

    requires: str | None = field(default="mask", init=False)


@arguments(within=instance(Extent, "an extent, such as batchnorm.layers.Ghost()"))
@dataclass(frozen=True)
class Weighted(Masked):
    """Samples count by their weights, within another extent; a forward without weights is an error.

    Example:
        >>> import torch, batchnorm
        >>> layer = batchnorm.BatchNorm1d(1, extent=batchnorm.layers.Weighted(), momentum=1.0)
        >>> _ = layer(torch.tensor([[0.0], [4.0]]), weights=torch.tensor([3.0, 1.0]))
        >>> float(layer.running_mean)
        1.0
    """

    requires: str | None = field(default="weights", init=False)
