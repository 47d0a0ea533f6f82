"""ONNX: BatchNormalization nodes, or none once folded, and the outputs of onnxruntime."""

import copy
import warnings

import pytest
import torch
from torch import nn

import batchnorm
from batchnorm.models import adapt, fold, freeze
from tests.models.test_export import OWN_ARITHMETIC, PLAIN, Net, used
from tests.sampling import slow_but

pytest.importorskip("onnxscript")
onnxruntime = pytest.importorskip("onnxruntime")


def exported(model, x, **options):
    """The ONNX program of a model, without the exporter's own deprecation warnings."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.onnx.export(model, (x,), dynamo=True, verbose=False, **options)


def run(program, x):
    session = onnxruntime.InferenceSession(program.model_proto.SerializeToString())
    return torch.from_numpy(session.run(None, {session.get_inputs()[0].name: x.numpy()})[0])


def nodes(program):
    return [node.op_type for node in program.model_proto.graph.node]


def check(model, x, normalizations, optimize=False):
    program = exported(model, x, optimize=optimize)
    with torch.no_grad():
        torch.testing.assert_close(run(program, x), model(x), rtol=1e-4, atol=1e-5)
    assert nodes(program).count("BatchNormalization") == normalizations
    return program


@pytest.mark.parametrize("method", slow_but(PLAIN, {"renorm"}))
def test_every_method_gives_batch_normalization_nodes(method):
    program = check(used(Net(method)), torch.randn(4, 3, 8, 8) + 1, 0 if method == "example-weighing" else 2)
    if method not in OWN_ARITHMETIC:
        assert nodes(program) == nodes(exported(used(Net()), torch.randn(4, 3, 8, 8), optimize=False))


@pytest.mark.slow
def test_frozen_fused_and_adapted_models_and_any_batch_size():
    x = torch.randn(4, 3, 8, 8) + 1
    net = used(Net("batchnorm"))
    check(freeze(copy.deepcopy(net)), x, 2)
    fused = copy.deepcopy(net)
    fused.bn1.activation = "leaky_relu"
    check(fused, x, 2)
    adapt(net, x.split(2), "domain")
    check(net, x, 2)
    program = exported(net, x, optimize=False, dynamic_shapes=({0: torch.export.Dim("n", min=2)},))
    more = torch.randn(9, 3, 8, 8)
    torch.testing.assert_close(run(program, more), net(more).detach(), rtol=1e-4, atol=1e-5)


def test_a_folded_model_has_no_normalization():
    x = torch.randn(4, 3, 8, 8) + 1
    check(fold(used(Net("batchnorm")), x, timing=0).model, x, 0)
    alone = fold(nn.Sequential(nn.ReLU(), batchnorm.BatchNorm2d(3)).eval(), x, timing=0).model
    assert {"Mul", "Add"} <= set(nodes(check(alone, x, 0, optimize=True))) <= {"Relu", "Mul", "Add"}
