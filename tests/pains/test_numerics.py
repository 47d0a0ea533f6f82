"""Numbers: NaN, half precision, biased and unbiased, cancellation, other devices."""

import pytest
import torch
from torch import nn
from torch.nn import functional

import batchnorm
import batchnorm.kernels
from gallery.common import X, accuracy, batches, network, train
from tests.pains.table import outcome, pain


@pain(
    16,
    "After one batch with NaN or Inf, eval mode gives NaN permanently, while training looks normal",
    state="prevented",
    peer="running mean and variance are still NaN after 300 clean batches; outputs in train mode are fine",
    here="batchnorm.convert(model)",
    thread="https://github.com/pytorch/pytorch/issues/1206",
    page="findings.md#bn102",
    without=("batchnorm.convert", "batchnorm.diagnose", "batchnorm.recalibrate"),
)
def test_pain_16_one_bad_batch():
    bad = X[:64].clone()
    bad[3, 5] = torch.nan
    stock, ours = network(), batchnorm.convert(network())
    for model in (stock, ours):
        train(model, 20)
        model(bad)
        train(model, 300, seed=1)
    assert torch.isfinite(stock.train()(X[:64])).all()
    assert stock[1].running_mean.isnan().any()
    assert stock.eval()(X[:1]).isnan().all()
    assert accuracy(ours) > 0.9
    assert int(ours[1].num_batches_skipped) == 1
    first = batchnorm.diagnose(stock, batches()).findings[:1]
    assert [(f.code, f.layer) for f in first] == [("BN102", "1")]
    batchnorm.recalibrate(stock, batches())
    assert accuracy(stock) > 0.9


@pain(
    22,
    "Half-precision statistics overflow, or stop moving",
    state="prevented",
    peer=".half(): variance inf at a standard deviation of 400; bfloat16 and momentum 0.001: 3000 steps, no move",
    here="batchnorm.convert(model).bfloat16()",
    thread="https://github.com/apple/coreai-torch/pull/54",
    page="findings.md#bn105",
    without=("batchnorm.BatchNorm1d", "gallery.files.inspect_checkpoint"),
)
def test_pain_22_half_precision_statistics():
    wide = 400 * torch.randn(64, 2)
    target = 12 + torch.tensor([[-1.0], [1.0]])
    for kind in (nn.BatchNorm1d, batchnorm.BatchNorm1d):
        half, slow = kind(2, momentum=1.0).half(), kind(1, momentum=0.001).bfloat16()
        half(wide.half())
        slow.running_mean.fill_(10.0)
        for _ in range(3000 if kind is nn.BatchNorm1d else 300):
            slow(target.bfloat16())
        if kind is nn.BatchNorm1d:
            assert half.running_var.isinf().all()
            assert (half.eval()(wide.half()) == half.bias).all()  # every output is the same
            assert slow.running_mean == 10
        else:
            assert torch.allclose(half.running_var.float(), wide.half().float().var(0), rtol=1e-3)
            assert abs(slow.running_mean - (12 - 2 * 0.999**300)) < 1e-3
            assert slow.running_mean.dtype == half.running_var.dtype == torch.float32
    report, before, after = outcome("float16_overflow")
    assert report.findings
    assert report.findings[0].code == "BN202"
    assert before < after - 0.05


@pain(
    23,
    "train() and eval() differ even with momentum 1 and one batch; re-implementations disagree with torch",
    state="prevented",
    peer="normalises with the biased variance and stores the unbiased one: a factor sqrt(n / (n - 1)), 1.41 at n = 2",
    here="batchnorm.BatchNorm2d(64, estimator=batchnorm.layers.EMA(0.9, correction=0))",
    thread="https://github.com/pytorch/pytorch/issues/1410",
    page="choices.md",
    without="batchnorm.BatchNorm1d",
)
def test_pain_23_biased_and_unbiased():
    x = torch.tensor([[1.0], [3.0]])
    stock = nn.BatchNorm1d(1, momentum=1.0, eps=1e-12)
    ours = batchnorm.BatchNorm1d(1, momentum=1.0, eps=1e-12, estimator=batchnorm.layers.EMA(correction=0))
    trained = stock(x)
    assert torch.allclose(trained / stock.eval()(x), torch.tensor(2.0).sqrt())
    assert torch.allclose(ours(x), trained)
    assert torch.allclose(ours.eval()(x), trained)
    report, before, after = outcome("biased_and_unbiased")
    assert report.findings[0].code == "BN114"
    assert before < after - 0.05


@pain(
    35,
    "The variance comes out negative, NaN or far too large where the mean is large",
    state="prevented",
    peer="channels_last on the CPU, mean 1e5: outputs off by 0.3; E[x^2] - E[x]^2 (Flax): below 0, or above 100",
    here="batchnorm.convert(model)",
    thread="https://github.com/google/flax/issues/1491",
    page="numerics.md",
    without=("batchnorm.BatchNorm2d", "batchnorm.recalibrate"),
)
def test_pain_35_large_mean():
    x = (torch.randn(32, 16, 28, 28) + 1e5).contiguous(memory_format=torch.channels_last)
    wide = x.double()
    exact = functional.batch_norm(wide, None, None, training=True)
    stock, ours = nn.BatchNorm2d(16, momentum=1.0), batchnorm.BatchNorm2d(16, momentum=1.0)
    assert (stock(x) - exact).abs().max() > 0.01
    assert (ours(x) - exact).abs().max() < 1e-4
    assert torch.allclose(ours.running_var.double(), wide.var((0, 2, 3)), rtol=1e-5)
    naive = x.square().mean((0, 2, 3)) - x.mean((0, 2, 3)).square()
    assert ((naive < 0) | (naive > 100)).any()
    plain = nn.Sequential(nn.BatchNorm2d(16))
    batchnorm.recalibrate(plain, x.split(8))  # merged in float64
    assert torch.allclose(plain[0].running_var.double(), wide.var((0, 2, 3)), rtol=1e-5)
    report, before, after = outcome("naive_variance")
    assert report.findings[0].code == "BN103"
    assert before != before or before < after - 0.05


def _naive(x, mean, var, weight, bias, training, momentum, eps):
    """As in many ports: one pass, squares in float32."""
    if training:
        axes = (0, 2, 3)
        m = x.mean(axes)
        v = (x.square().mean(axes) - m.square()).clamp_min(0)
        mean.lerp_(m.detach(), momentum)
        var.lerp_(v.detach() * 3136 / 3135, momentum)
    else:
        m, v = mean, var
    scale = weight / (v + eps).sqrt()
    return (x - m[:, None, None]) * scale[:, None, None] + bias[:, None, None]


def _biased(x, mean, var, weight, bias, training, momentum, eps):
    y = functional.batch_norm(x, mean, var.clone(), weight, bias, training, momentum, eps)
    if training:
        var.lerp_(x.detach().var((0, 2, 3), correction=0), momentum)
    return y


def _batch_in_eval(x, mean, var, weight, bias, training, momentum, eps):
    stored = (mean, var) if training else (None, None)
    return functional.batch_norm(x, *stored, weight, bias, True, momentum, eps)


@pain(
    50,
    "Batch norm is wrong on another backend (XLA, ROCm, XPU, a port)",
    state="diagnosed",
    peer="nothing in torch compares a device's batch norm with the definition",
    here='print(batchnorm.kernels.verify("xpu"))',
    thread="https://github.com/pytorch/xla/issues/3361",
    page="numerics.md",
    without="batchnorm.kernels.verify",
    limit="XLA, ROCm and XPU devices were not run; three wrong ports on the CPU were",
)
def test_pain_50_backend_parity():
    right = batchnorm.kernels.verify("cpu")
    assert right.ok, str(right)
    assert len(right.checks) == 48
    words = r"dtypes\[0\] must be a floating-point dtype, such as torch\.float32; it was torch\.int32"
    with pytest.raises(batchnorm.BatchNormError, match=words):
        batchnorm.kernels.verify("cpu", dtypes=(torch.int32,))
    ports = {"naive": _naive, "biased": _biased, "batch": _batch_in_eval}
    wrong = {name: batchnorm.kernels.verify("cpu", port).failed for name, port in ports.items()}
    assert {(row.mode, row.mean) for row in wrong["naive"]} == {("train", 1e4)}
    assert {(row.mode, row.what) for row in wrong["biased"]} == {("train", "running variance")}
    assert {row.mode for row in wrong["batch"]} == {"eval"}

    def ours(x, mean, var, weight, bias, training, momentum, eps):
        layer = batchnorm.BatchNorm2d(x.shape[1], eps, momentum).train(training)
        buffers = {"weight": weight, "bias": bias, "running_mean": mean, "running_var": var}
        return torch.func.functional_call(layer, buffers, (x,))

    try:
        for backend in ("reference", None):
            batchnorm.kernels.use(backend)
            assert batchnorm.kernels.verify("cpu", ours).ok
    finally:
        batchnorm.kernels.use()
