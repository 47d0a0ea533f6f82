"""Folding, compilers, export, CUDA graphs."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils import fuse_conv_bn_eval, fuse_linear_bn_eval

import batchnorm
from tests.pains.table import pain


@pain(
    32,
    "Folding batch norm into the layer before changes accuracy, or gives NaN",
    state="prevented",
    peer="fuse_linear_bn_eval on (N, C, L) with C = L is wrong by 0.2 and more; a channel's gain is not looked at",
    here="result = batchnorm.fold(model, example); print(result)",
    thread="https://github.com/Xilinx/brevitas/issues/388",
    page="fold.md",
    without=("batchnorm.fold", "batchnorm.diagnose"),
)
def test_pain_32_folding():
    norm = nn.BatchNorm1d(4)
    norm.running_mean.copy_(torch.tensor([1.0, -1.0, 2.0, 0.0]))
    norm.running_var.copy_(torch.tensor([0.25, 1.0, 4.0, 9.0]))
    model, x = nn.Sequential(nn.Linear(4, 4), norm).eval(), torch.randn(2, 4, 4)
    theirs = fuse_linear_bn_eval(*model)
    assert (theirs(x) - model(x)).abs().max() > 0.2
    assert "its channels are not the output channels" in batchnorm.fold(model, x).left["1"]
    flat = batchnorm.fold(model, x[0])
    assert flat.layers["1"].went == "0"
    assert flat.exact_error < 1e-12
    with pytest.raises(AssertionError):
        fuse_conv_bn_eval(nn.Conv2d(3, 4, 1).eval(), nn.BatchNorm2d(4, track_running_stats=False).eval())
    bare = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4, track_running_stats=False)).eval()
    assert "it has no running statistics" in batchnorm.fold(bare, torch.randn(2, 3, 4, 4)).left["1"]
    # Before folding: a nearly dead channel whose gain would blow its weights up.
    scaled = nn.Sequential(nn.BatchNorm1d(4, eps=1e-12)).eval()
    data = torch.randn(512, 4) * torch.tensor([1.0, 1.0, 1e-5, 1.0])
    batchnorm.recalibrate(scaled, data.split(64))
    found = [f for f in batchnorm.diagnose(scaled, data.split(64)).findings if f.code == "BN123"]
    assert len(found) == 1


@pain(
    33,
    "torch.compile(fullgraph=True) fails with momentum=None",
    state="prevented",
    peer="UserError: could not guard on a data-dependent expression",
    here="batchnorm.convert(model)",
    thread="https://github.com/pytorch/pytorch/issues/194504",
    page="methods/cumulative.md",
    without="batchnorm.convert",
    fails_with=Exception,
)
def test_pain_33_cumulative_average_compiled():
    torch.compiler.reset()
    model = nn.Sequential(nn.BatchNorm1d(3, momentum=None))
    parts = (torch.randn(12, 3) + 3).split(4)
    with pytest.raises(Exception, match="data-dependent"):
        torch.compile(copy.deepcopy(model), fullgraph=True, backend="eager")(parts[0])
    torch.compiler.reset()
    compiled = torch.compile(batchnorm.convert(model), fullgraph=True, backend="eager")
    for part in parts:
        compiled(part)
    assert torch.allclose(model[0].running_mean, torch.stack([part.mean(0) for part in parts]).mean(0), atol=1e-6)
    assert int(model[0].num_batches_tracked) == 3


@pain(
    34,
    "An exported model is stuck in the mode it was exported in, and moves its statistics",
    state="prevented",
    peer="batch norm put in eval, then model.train(): the program trains it; its .eval() is not supported",
    here="torch.export.export(batchnorm.freeze(model), example)",
    thread="https://github.com/pytorch/pytorch/issues/151726",
    page="export.md",
    without=("batchnorm.freeze", "batchnorm.to_stock"),
    limit="an exported program still cannot change its mode: export one for each",
)
def test_pain_34_exported_in_train_mode():
    x = torch.randn(4, 3) + 5
    model = nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 2))
    model[0].eval()
    model.train()
    program = torch.export.export(copy.deepcopy(model), (x,)).module()
    program(x)
    assert dict(program.named_buffers())["0.running_mean"].abs().min() > 0.3
    with pytest.raises(NotImplementedError):
        program.eval()

    inferred = model.eval()(x)
    batchnorm.freeze(model)
    model.train()
    program = torch.export.export(copy.deepcopy(model), (x,)).module()
    assert torch.allclose(program(x), inferred, atol=1e-6)
    assert (dict(program.named_buffers())["0.running_mean"] == 0).all()
    # This package's layers leave as torch's own.
    ours = batchnorm.to_stock(nn.Sequential(batchnorm.BatchNorm1d(3, method="renorm")))
    assert type(ours[0]) is nn.BatchNorm1d
    graph = torch.export.export(ours.eval(), (x,)).graph
    assert [str(n.target) for n in graph.nodes if n.op == "call_function"] == ["aten.batch_norm.default"]


@pain(
    48,
    "CUDA graphs: the counter is not incremented, or memory is corrupted",
    state="prevented",
    peer="fixed: torch 2.13 adds to its counter in place too",
    here="batchnorm.convert(model)",
    thread="https://github.com/pytorch/pytorch/pull/70444",
    page="design.md",
    without="batchnorm.layers.movement.Moving._commit",
    limit="no GPU here: CUDA graphs were not run, only that every write goes to the same memory",
)
def test_pain_48_buffers_move_in_place():
    """What a captured graph replays are writes to the same memory."""
    # A sequential ghost's groups move one by one, in torch.
    one_by_one = batchnorm.BatchNorm1d(3, extent=batchnorm.layers.Ghost(4, "sequential"), momentum=0.5)
    for layer in (
        nn.BatchNorm1d(3),
        *(batchnorm.BatchNorm1d(3, method=m) for m in ("batchnorm", "debiased", "window")),
        batchnorm.BatchNorm1d(3, momentum=lambda step: 0.5),
        one_by_one,
    ):
        before = {name: (buffer, buffer.data_ptr()) for name, buffer in layer.named_buffers()}
        for step in range(1, 4):
            layer(torch.randn(8, 3) + 3)
            assert int(before["num_batches_tracked"][0]) == step
        assert before["running_mean"][0].min() > 0.5
        for name, buffer in layer.named_buffers():
            assert buffer is before[name][0]
            assert buffer.data_ptr() == before[name][1]
