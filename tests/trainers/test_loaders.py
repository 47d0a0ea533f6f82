"""A second reader of a training loader."""

import itertools
import threading

import pytest
import torch
from torch.utils.data import BatchSampler, DataLoader, DistributedSampler, IterableDataset, RandomSampler, Sampler

from batchnorm import BatchNormError, recalibrate
from batchnorm.interop.trainers.loaders import again


def shuffled(seed=0):
    return DataLoader(range(10), batch_size=3, shuffle=True, generator=torch.Generator().manual_seed(seed))


def lists(loader):
    return [batch.tolist() for batch in loader]


def test_the_first_reader_is_not_disturbed():
    alone = shuffled()
    undisturbed = [lists(alone) for _ in range(2)]
    loader = shuffled()
    first = []
    for batch in loader:
        first.append(batch.tolist())
        assert sorted(itertools.chain(*lists(again(loader)))) == list(range(10))
    assert [first, lists(loader)] == undisturbed


def test_it_gives_the_same_batches_each_time():
    another = again(shuffled())
    assert lists(another) == lists(another)


@pytest.mark.parametrize("size", [10, 9, 2])
def test_the_shares_of_processes_hold_each_sample_once(size):
    shares = []
    for rank in range(4):
        sampler = DistributedSampler(range(size), num_replicas=4, rank=rank, shuffle=True, seed=1)
        shares += lists(again(DataLoader(range(size), batch_size=2, sampler=sampler)))
    assert sorted(itertools.chain(*shares)) == list(range(size))


def test_samplers_without_an_end_are_read_as_often_as_the_loader_says():
    class Endless(BatchSampler):
        def __iter__(self):
            while True:
                yield from super().__iter__()

    loader = DataLoader(range(10), batch_sampler=Endless(RandomSampler(range(10)), 4, False))
    assert sorted(itertools.chain(*lists(again(loader)))) == list(range(10))


def test_streams_and_other_iterables():
    class Stream(IterableDataset):
        def __iter__(self):
            return iter(range(7))

    assert lists(again(DataLoader(Stream(), batch_size=3))) == [[0, 1, 2], [3, 4, 5], [6]]
    assert [int(x) for x in again(DataLoader(range(3), batch_size=None))] == [0, 1, 2]

    class Doubled(DataLoader):
        def __iter__(self):
            return (2 * batch for batch in super().__iter__())

    assert lists(again(Doubled(range(4), batch_size=2))) == [[0, 2], [4, 6]]
    batches = [torch.zeros(2)]
    assert again(batches) is batches


def test_a_sampler_that_cannot_be_copied():
    class Held(Sampler):
        def __init__(self):
            self.lock = threading.Lock()

        def __iter__(self):
            return iter([0])

        def __len__(self):
            return 1

    with pytest.raises(BatchNormError, match="Held cannot: give a loader of its own"):
        again(DataLoader(range(3), sampler=Held()))


def test_a_second_reader_knows_how_many_samples_there_are_and_their_order():
    data = torch.randn(160, 3)
    random = BatchSampler(RandomSampler(data), 8, False)
    for loader, stored in (
        (DataLoader(data, batch_size=8), True),
        (DataLoader(data, batch_size=8, shuffle=True), False),
        (DataLoader(data, batch_sampler=random), False),
    ):
        model = torch.nn.BatchNorm1d(3)
        result = recalibrate(model, again(loader), max_samples=80)
        assert (result.samples, result.offered, result.in_stored_order) == (80, 160, stored)
        assert recalibrate(model, loader, max_samples=80).in_stored_order is stored
