"""Arguments, batches and outputs that are objects with tensors in their attributes."""

from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import batchnorm
from batchnorm import BatchNormError
from batchnorm.models.batches import count_samples
from batchnorm.models.objects import all_tensors, private


class Named(OrderedDict):
    """As several libraries return it: no class that torch's pytree knows."""


class Plain:
    def __init__(self, **values):
        self.__dict__.update(values)


@dataclass(frozen=True, slots=True)
class Slotted:
    hidden: Any
    y: Any


class Graph:
    """A graph with its edges, which knows itself: objects may lead in circles."""

    def __init__(self, x: Tensor, graphs: int | None = None):
        self.x, self.edges, self.me = x, torch.arange(len(x)).flip(0), self
        if graphs is not None:
            self.num_graphs = graphs


class Branching(nn.Module):
    """Batch norm before a convolution, its output returned as well; the branch on a value keeps FX out."""

    def __init__(self, kind):
        super().__init__()
        self.first, self.act, self.bn = nn.Conv2d(3, 4, 1), nn.ReLU(), nn.BatchNorm2d(4)
        self.last, self.kind = nn.Conv2d(4, 5, 1), kind

    def forward(self, x):
        hidden = self.bn(self.act(self.first(x)))
        return x if x.sum() > 1e9 else self.kind(hidden=hidden, y=self.last(hidden))


@pytest.mark.parametrize("kind", [dict, Named, Plain, Slotted])
def test_an_output_inside_an_object_is_not_folded_away(kind):
    torch.manual_seed(0)
    model = Branching(kind)
    for _ in range(5):
        model(torch.randn(8, 3, 4, 4) * 3 + 1)
    x = torch.randn(2, 3, 4, 4)
    result = batchnorm.fold(model.eval(), x, timing=0)
    assert "its output goes to the output" in result.left["bn"]
    for a, b in zip(all_tensors(model(x)), all_tensors(result.model(x)), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


class OfGraphs(nn.Module):
    def __init__(self):
        super().__init__()
        self.lin, self.bn, self.head = nn.Linear(3, 8), nn.BatchNorm1d(8), nn.Linear(8, 2)
        self.writes = False

    def forward(self, graph):
        x = self.lin(graph.x)
        if self.writes:
            graph.x = x
        return self.head(self.bn(x + x[graph.edges]).relu())


def test_fold_and_fuse_take_an_example_with_objects():
    torch.manual_seed(0)
    model, graph = OfGraphs(), Graph(torch.randn(16, 3))
    before = graph.x.clone()
    model(Graph(torch.randn(16, 3)))
    model.writes = True  # an input changed in place, as some libraries do
    result = batchnorm.fold(model.eval(), (graph,), timing=0)
    assert result.exact_error < 1e-12  # which it is where the graph is float64 too
    assert not result.not_exact
    assert "add" in result.left["bn"]
    batchnorm.fuse_activations(batchnorm.convert(model), (graph,), progress=False)
    assert torch.equal(graph.x, before)
    with pytest.raises(BatchNormError, match="it was 'x', with no tensor in it"):
        batchnorm.fold(model, "x")


def test_a_private_copy_is_cast_and_keeps_its_references():
    graph = Graph(torch.randn(4, 3))
    graph.held = [{"x": graph.x}, (1, "a")]
    copied = private(graph, torch.float64)
    assert (copied.x.dtype, copied.held[0]["x"].dtype, copied.edges.dtype) == (
        torch.float64,
        torch.float64,
        torch.int64,
    )
    assert copied.me is copied
    assert graph.x.dtype == graph.held[0]["x"].dtype == torch.float32
    frozen = private(Slotted(torch.ones(2), None), torch.float64)
    assert frozen.hidden.dtype == torch.float64
    lock = Plain(x=torch.ones(1), generator=(n for n in ()))
    assert private(lock) is lock  # cannot be copied


def test_samples_of_objects_are_counted():
    assert count_samples((Graph(torch.randn(7, 3)),)) == 7
    assert count_samples({"batch": Graph(torch.randn(7, 3), graphs=2)}) == 2
    assert count_samples([None, "a", Plain(name="a")]) == 0
    assert count_samples(Slotted(None, torch.ones(3, 2))) == 3


def test_recalibrate_counts_graphs_and_stops_at_as_many_as_asked(tmp_path):
    torch.manual_seed(0)
    model = OfGraphs()
    graphs = [torch.randn(10, 3) for _ in range(10)]
    run = lambda **options: batchnorm.recalibrate(  # noqa: E731
        model, [Graph(x.clone()) for x in graphs], progress=False, **options
    )
    assert run().samples == 100
    assert (run(max_samples=30).samples, run(max_samples=31).samples) == (30, 40)


def test_a_run_on_objects_does_not_resume_on_others(tmp_path):
    torch.manual_seed(0)
    model, path = OfGraphs(), tmp_path / "run.ckpt"
    graphs = [torch.randn(10, 3) for _ in range(4)]

    class Killed(Exception):
        pass

    def dying(number):
        for x in graphs[:number]:
            yield Graph(x.clone())
        raise Killed

    with pytest.raises(BatchNormError, match="Killed"):
        batchnorm.recalibrate(model, dying(2), upstream="batch", resume=path, progress=False)
    assert path.exists()
    other = [Graph(x + 1) for x in graphs]
    with pytest.raises(BatchNormError, match="resume"):
        batchnorm.recalibrate(model, other, upstream="batch", resume=path, progress=False)


class TakesDict(nn.Module):
    def __init__(self):
        super().__init__()
        self.bn = nn.BatchNorm1d(3)

    def forward(self, inputs):
        return self.bn(inputs["data"])


def test_a_dict_goes_in_whole_where_the_model_has_no_arguments_of_these_names():
    data = torch.randn(40, 3) + 2
    for batches in ([{"data": x} for x in data.split(8)], [Named(data=x) for x in data.split(8)]):
        model = TakesDict()
        batchnorm.update_bn(batches, model)
        torch.testing.assert_close(model.bn.running_mean, data.mean(0))

    class TakesNames(nn.Sequential):
        def forward(self, data):
            return super().forward(data)

    model = TakesNames(nn.BatchNorm1d(3))
    batchnorm.update_bn([{"data": x} for x in data.split(8)], model)
    torch.testing.assert_close(model[0].running_mean, data.mean(0))


def test_a_dict_that_fits_no_way_is_named():
    model = nn.Sequential(nn.BatchNorm1d(3))
    words = r"loader must yield what the model runs on; batch 0 \(a dict of values a float32.*give forward_fn"
    with pytest.raises(BatchNormError, match=words):
        batchnorm.update_bn([{"values": torch.randn(4, 3), "more": torch.randn(4, 3)}], model)
    assert torch.equal(model[0].running_mean, torch.zeros(3))

    class TakesTwo(nn.Module):
        def __init__(self):
            super().__init__()
            self.bn = nn.BatchNorm1d(3)

        def forward(self, x, y):
            return self.bn(x + y)

    with pytest.raises(BatchNormError, match="unexpected keyword argument 'values'"):
        batchnorm.update_bn([{"values": torch.randn(4, 3)}], TakesTwo())
