"""A training loader's data for a second reader, while the training loop is in the middle of the first."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterable
from typing import Any

from torch.utils.data import BatchSampler, DataLoader, DistributedSampler, IterableDataset

from batchnorm.arguments import arguments, some_batches
from batchnorm.errors import BatchNormError


@arguments(loader=some_batches)
def again(loader: Iterable[Any]) -> Iterable[Any]:
    """The batches of a `DataLoader` from another one; what iterates in its own way, as it is.

    Example:
        >>> import torch
        >>> from torch.utils.data import DataLoader
        >>> loader = DataLoader(range(5), batch_size=2, shuffle=True, generator=torch.Generator().manual_seed(0))
        >>> another = again(loader)
        >>> [len(batch) for batch in another], sorted(torch.cat(list(another)).tolist())
        ([2, 2, 1], [0, 1, 2, 3, 4])

    Reading it moves no sampler, generator or worker of the first. It gives the same batches each
    time. Of a loader that is divided among processes it gives this process's share, without the
    samples that are repeated to make the shares equal.

    Raises:
        BatchNormError: a sampler that cannot be copied.
    """
    if not isinstance(loader, DataLoader) or _reads_its_own_way(loader):
        return loader
    common: dict[str, Any] = {
        "collate_fn": loader.collate_fn,
        "num_workers": loader.num_workers,
        "worker_init_fn": loader.worker_init_fn,
        "multiprocessing_context": loader.multiprocessing_context,
    }
    dataset = loader.dataset
    if isinstance(dataset, IterableDataset):
        return DataLoader(dataset, batch_size=loader.batch_size, drop_last=loader.drop_last, **common)
    try:
        sampler: Any = copy.deepcopy(loader.batch_sampler or loader.sampler, {id(dataset): dataset})
    except Exception as error:
        raise BatchNormError(
            f"loader must have a sampler that can be copied, to read the data beside the training; "
            f"{type(loader.sampler).__name__} cannot: give a loader of its own"
        ) from error
    # Read once: some samplers draw anew at each reading, and a recalibration may need several.
    if loader.batch_sampler is None:
        return DataLoader(dataset, batch_size=None, sampler=_listed(sampler, loader), **common)
    return DataLoader(dataset, batch_sampler=_listed(_share(sampler), loader), **common)


def _reads_its_own_way(loader: DataLoader[Any]) -> bool:
    """Whether the class does more to its batches than a DataLoader does (neighbour sampling of graphs).

    What accelerate and ultralytics add is the bookkeeping of their training loops.
    """
    library = type(loader).__module__.partition(".")[0]
    return type(loader).__iter__ is not DataLoader.__iter__ and library not in ("accelerate", "ultralytics")


def _share(sampler: Any) -> Any:
    """This process's batches, each sample once."""
    if hasattr(sampler, "even_batches"):  # of accelerate
        sampler.even_batches = False
    inner = getattr(sampler, "sampler", None)
    if type(sampler) is BatchSampler and isinstance(inner, DistributedSampler) and not inner.drop_last:
        own = len(range(inner.rank, len(inner.dataset), inner.num_replicas))  # pyright: ignore[reportArgumentType]
        return BatchSampler(list(inner)[:own], sampler.batch_size, sampler.drop_last)
    return sampler


def _listed(sampler: Any, loader: DataLoader[Any]) -> Any:
    """What a sampler gives in one reading of the loader: ultralytics' goes on for ever, its loader has a length."""
    try:
        return list(itertools.islice(iter(sampler), len(loader)))
    except TypeError:
        return sampler
