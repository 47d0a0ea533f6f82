"""PyTorch Geometric: a layer that holds torch's, and batches that are graphs."""

import copy
import warnings

import pytest
import torch
from torch import nn

import batchnorm
from batchnorm.interop.trainers.fields import Fields
from batchnorm.interop.trainers.loaders import again
from tests.trainers.networks import close, exact, layers, received, statistics

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    pyg = pytest.importorskip("torch_geometric")
    from torch_geometric.data import Batch, Data
    from torch_geometric.loader import DataLoader
    from torch_geometric.nn import GCN, BatchNorm, DiffGroupNorm, HeteroBatchNorm

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


def graphs(count=12):
    generator = torch.Generator().manual_seed(0)
    made = []
    for index in range(count):
        nodes = 4 + index % 3
        edges = torch.randint(nodes, (2, 10), generator=generator)
        x = torch.randn(nodes, 5, generator=generator) * 2 + 1
        made.append(Data(x=x, edge_index=edges, y=x.mean(1, keepdim=True)))
    return made


GRAPHS = graphs()
WHOLE = Batch.from_data_list(GRAPHS)


def network():
    torch.manual_seed(0)
    return GCN(5, 8, num_layers=3, out_channels=1, norm="batch_norm")


def call(model):
    model(WHOLE.x, WHOLE.edge_index)


def loader(shuffle=False):
    return DataLoader(GRAPHS, batch_size=5, shuffle=shuffle)


def test_layers_are_found_recalibrated_and_converted():
    model = network()
    assert any(isinstance(m, BatchNorm) for m in model.modules())
    result = batchnorm.recalibrate(model, Fields(loader(), "x", "edge_index"))
    assert list(result.layers) == ["norms.0.module", "norms.1.module"]
    assert result.samples == WHOLE.num_nodes
    assert exact(model, call)
    before = model.eval()(WHOLE.x, WHOLE.edge_index)
    batchnorm.convert(model, "renorm")
    assert all(isinstance(m, batchnorm.BatchNorm1d) for m in layers(model))
    assert torch.allclose(model(WHOLE.x, WHOLE.edge_index), before, atol=1e-5)
    batchnorm.to_stock(model)
    assert [type(m) for m in layers(model)] == [nn.BatchNorm1d] * 2
    assert torch.allclose(model(WHOLE.x, WHOLE.edge_index), before, atol=1e-5)


def test_one_node_in_training():
    layer = BatchNorm(3, allow_single_element=True)
    assert torch.allclose(batchnorm.convert(layer).train()(torch.ones(1, 3)), torch.ones(1, 3), atol=1e-4)


def test_diagnosed_and_frozen():
    model = network()
    batches = list(Fields(loader(), "x", "edge_index"))
    report = batchnorm.diagnose(model, batches, lambda output, batch: output.square().mean())
    assert set(report.layers) == {"norms.0.module", "norms.1.module"}
    assert "BN101" in {f.code for f in report.findings}
    before = statistics(batchnorm.freeze(model))
    model.train()
    call(model)
    assert all(torch.equal(a, b) for a, b in zip(statistics(model), before, strict=True))


def test_folded_into_a_linear_layer():
    from torch_geometric.nn import MLP

    torch.manual_seed(0)
    model = MLP([5, 8, 8, 1], norm="batch_norm")
    batchnorm.recalibrate(model, GRAPHS, forward_fn=lambda m, graph: m(graph.x))
    folding = batchnorm.fold(model, WHOLE.x)
    assert not layers(folding.model) or folding.left
    assert torch.allclose(folding.model(WHOLE.x), model.eval()(WHOLE.x), atol=1e-5)


def test_loaders_of_graphs():
    model = network()
    batchnorm.recalibrate(model, Fields(again(loader(shuffle=True)), "x", "edge_index"))
    assert exact(model, call)


def test_what_is_found_and_what_is_not():
    assert list(batchnorm.models.batch_norm_layers(DiffGroupNorm(4, groups=2))) == ["norm"]
    # It keeps statistics by node type and is no batch norm of torch's kind.
    assert not batchnorm.models.batch_norm_layers(HeteroBatchNorm(4, num_types=2))


def test_a_copy_keeps_what_it_has():
    model = network()
    batchnorm.recalibrate(model, Fields(loader(), "x", "edge_index"))
    assert close(statistics(copy.deepcopy(model)), received(model, call))
