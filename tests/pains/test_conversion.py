"""States and files that go from one framework, version or adapter to another."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

import batchnorm
import batchnorm.interop
from gallery.common import TEST_X, TEST_Y, X, Y, accuracy, batches, metric, network, train
from tests.pains.table import outcome, pain


@pain(
    7,
    "A ported model drifts after fine-tuning: momentum means the opposite, eps differs",
    state="prevented",
    peer="0.99 is accepted silently: the statistics are 99 % the last batch's; eps 1e-5 in the place of 1e-3",
    here='batchnorm.interop.translate("a.keras", model)',
    thread="https://github.com/Cadene/pretrained-models.pytorch/issues/44",
    page="interop.md",
    without=("batchnorm.interop.translate", "batchnorm.diagnose"),
)
def test_pain_07_momentum_and_eps_of_another_framework():
    stock = nn.BatchNorm1d(64, momentum=0.99)
    for part in (X[:64], X[64:128], X[Y == 1][:24]):
        stock(part)
    assert (stock.running_mean - X[Y == 1][:24].mean(0)).abs().max() < 0.01
    model = train(network(momentum=0.99), 20)
    found = batchnorm.diagnose(model, batches(), metric).findings
    assert "BN112" in {f.code for f in found}
    # Statistics with variances near eps, where the wrong one shows.
    rng = np.random.default_rng(0)
    mean, var = rng.normal(size=4).astype(np.float32), np.full(4, 1e-3, np.float32)
    theirs = {
        "params": {"bn": {"scale": np.ones(4, np.float32), "bias": np.zeros(4, np.float32)}},
        "batch_stats": {"bn": {"mean": mean, "var": var}},
    }
    x = torch.from_numpy(rng.normal(size=(8, 4)).astype(np.float32))
    expected = (x - torch.from_numpy(mean)) / (2e-3) ** 0.5
    net = nn.Sequential(nn.BatchNorm1d(4))
    net[0].running_mean.copy_(torch.from_numpy(mean))
    net[0].running_var.copy_(torch.from_numpy(var))
    assert (net.eval()(x) / expected - 1).abs().min() > 0.4
    batchnorm.interop.translate(theirs, net, eps=1e-3, momentum=batchnorm.interop.torch_momentum(0.99))
    assert torch.allclose(net.eval()(x), expected, rtol=1e-5)
    assert net[0].eps == 1e-3
    assert abs(net[0].momentum - 0.01) < 1e-12


@pain(
    15,
    "Missing key num_batches_tracked, or its shape is [1]",
    state="prevented",
    peer="a strict load refuses a file of the present version without counters",
    here="batchnorm.convert(model).load_state_dict(state)",
    thread="https://github.com/pytorch/pytorch/issues/8430",
    page="findings.md#bn213",
    without=("batchnorm.convert", "batchnorm.inspect_checkpoint"),
    fails_with=RuntimeError,
)
def test_pain_15_counters_missing(tmp_path):
    model = train(network(), 60)
    state = model.state_dict()
    for key in [k for k in state if k.endswith("num_batches_tracked")]:
        del state[key]
    with pytest.raises(RuntimeError, match="Missing key"):
        network(seed=1).load_state_dict(state)
    torch.save(state, tmp_path / "old.pt")
    found = batchnorm.inspect_checkpoint(tmp_path / "old.pt").findings
    assert [f.code for f in found if f.code == "BN213"] == ["BN213", "BN213"]
    loaded = batchnorm.convert(network(seed=1))
    loaded.load_state_dict(copy.copy(state))
    assert torch.equal(loaded.eval()(X[:64]), batchnorm.convert(copy.deepcopy(model)).eval()(X[:64]))
    assert int(loaded[1].num_batches_tracked) == 0
    flat = {k: v.reshape(1) if k.endswith("tracked") else v for k, v in model.state_dict().items()}
    loaded.load_state_dict(flat)
    assert int(loaded[1].num_batches_tracked) == 60
    # Where a gain goes by the counter, 0 would wipe the statistics at the next step: refused, with the key.
    with pytest.raises(RuntimeError, match="num_batches_tracked"):
        batchnorm.convert(network(seed=1), "cumulative").load_state_dict(copy.copy(state))


@pain(
    40,
    "A fine-tuned adapter model differs after reload: only what requires gradients was saved",
    state="diagnosed",
    peer="load_state_dict(strict=False) takes the adapter's file and keeps the base model's statistics",
    here='print(batchnorm.inspect_checkpoint("tuned.pt", "adapter.pt"))',
    thread="https://github.com/huggingface/peft/issues/1732",
    page="findings.md#bn221",
    without="gallery.files.inspect_checkpoint",
)
def test_pain_40_adapter_without_buffers():
    report, before, after = outcome("adapter_without_buffers")
    assert [(f.code, f.layer) for f in report.findings if f.severity == "error"] == [("BN221", "1"), ("BN221", "4")]
    assert before < 0.6
    assert after > 0.9
    base = train(network(), 100)
    tuned = train(copy.deepcopy(base), 100, x=2 - 2 * X)
    parameters = {name: value for name, value in tuned.state_dict().items() if name in dict(tuned.named_parameters())}
    missing = base.load_state_dict(parameters, strict=False).missing_keys
    assert len(missing) == 4
    assert accuracy(base, 2 - 2 * TEST_X, TEST_Y) < accuracy(tuned, 2 - 2 * TEST_X, TEST_Y) - 0.1


@pain(
    49,
    "JAX: statistics of replicas or a vmapped axis are the user's to merge",
    state="repaired",
    peer="a plain mean over replicas (Flax's recipe) loses the variance between them: 1 where the data have 5",
    here="batchnorm.interop.average([states_of_replica_a, states_of_replica_b], counts)",
    thread="https://github.com/google/flax/issues/902",
    page="interop.md",
    without="batchnorm.interop.average",
    limit="training in JAX stays in JAX: statistics are merged between frameworks, not inside a jitted step",
)
def test_pain_49_statistics_of_replicas():
    rng = np.random.default_rng(0)
    replicas = [rng.normal(mean, 1, (500, 3)) for mean in (-2.0, 2.0)]
    whole = np.concatenate(replicas)

    def variables(x):
        ones = {"scale": np.ones(3, np.float32), "bias": np.zeros(3, np.float32)}
        mean, var = x.mean(0).astype(np.float32), x.var(0).astype(np.float32)
        return {"params": {"bn": ones}, "batch_stats": {"bn": {"mean": mean, "var": var}}}

    parts = [variables(x) for x in replicas]
    plain = np.mean([part["batch_stats"]["bn"]["var"] for part in parts], 0)
    assert plain.max() < 1.2
    assert whole.var(0).min() > 4.5
    states = [batchnorm.interop.translate(part, "torch", eps=1e-5).target for part in parts]
    pooled = batchnorm.interop.average(states, [500, 500])
    back = batchnorm.interop.translate(pooled, parts[0], eps=1e-5).target
    np.testing.assert_allclose(back["batch_stats"]["bn"]["mean"], whole.mean(0), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(back["batch_stats"]["bn"]["var"], whole.var(0), rtol=1e-5)
    # And the array-level core: moments of any arrays, merged without loss.
    merged = batchnorm.layers.Moments.of(torch.from_numpy(replicas[0])).merge(
        batchnorm.layers.Moments.of(torch.from_numpy(replicas[1]))
    )
    np.testing.assert_allclose(merged.var(0).numpy(), whole.var(0), rtol=1e-12)
