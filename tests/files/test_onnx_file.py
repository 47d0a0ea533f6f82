"""ONNX files are inspected as checkpoints are."""

import pytest
import torch

import batchnorm

onnx = pytest.importorskip("onnx")


def write(path, names, var):
    """A graph of one BatchNormalization node."""
    values = (torch.ones(3), torch.zeros(3), torch.arange(3.0), torch.tensor(var))
    tensors = [onnx.numpy_helper.from_array(v.numpy(), n) for v, n in zip(values, names, strict=True)]
    node = onnx.helper.make_node("BatchNormalization", ["x", *names], ["y"], name="norm_7", epsilon=1e-3)
    ends = [onnx.helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, ["n", 3]) for n in ("x", "y")]
    onnx.save(onnx.helper.make_model(onnx.helper.make_graph([node], "g", ends[:1], ends[1:], tensors)), path)


@pytest.mark.parametrize(
    ("names", "layer"),
    [
        (["net.bn.weight", "net.bn.bias", "net.bn.running_mean", "net.bn.running_var"], "net.bn"),
        (["w", "b", "m", "v"], "norm_7"),
        (["w.1", "b.2", "m.3", "v.4"], "norm_7"),
    ],
)
def test_batch_norm_nodes_are_read_and_judged(tmp_path, names, layer):
    write(tmp_path / "a.onnx", names, [1.0, 0.0, -2.0])
    report = batchnorm.inspect_checkpoint(tmp_path / "a.onnx")
    assert report.layers[layer].mean.tolist() == [0, 1, 2]
    assert report.layers[layer].var.tolist() == [1, 0, -2]
    found = {finding.code: finding for finding in report.findings}
    assert {"BN203", "BN204"} <= set(found)
    assert "export it again" in found["BN203"].fix


def test_two_exports_are_compared_and_another_file_is_refused(tmp_path):
    for name, var in (("a.onnx", [1.0, 2.0, 3.0]), ("b.onnx", [1.0, 2.0, 4.0])):
        write(tmp_path / name, ["w", "b", "m", "v"], var)
    codes = {f.code for f in batchnorm.inspect_checkpoint(tmp_path / "a.onnx", tmp_path / "b.onnx").findings}
    assert "BN223" in codes
    (tmp_path / "c.onnx").write_bytes(b"\xff" * 40)
    with pytest.raises(batchnorm.BatchNormError, match=r"c\.onnx"):
        batchnorm.inspect_checkpoint(tmp_path / "c.onnx")
