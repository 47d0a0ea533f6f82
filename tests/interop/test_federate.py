"""Clients' states averaged: each entry by what it is, variances with what lies between the clients."""

import numpy as np
import pytest
import torch
from torch import nn

from batchnorm import BatchNormError
from batchnorm.interop import average, merge, rules


class Residual(nn.Module):
    """Named so that no batch norm has 'bn' in its name, and one convolution has."""

    def __init__(self):
        super().__init__()
        self.subnet = nn.Conv2d(2, 3, 1)
        self.downsample = nn.Sequential(nn.Conv2d(2, 3, 1), nn.BatchNorm2d(3))
        self.register_buffer("table", torch.arange(3))


def client(seed):
    torch.manual_seed(seed)
    net = Residual()
    with torch.no_grad():
        for name, tensor in net.state_dict().items():
            if tensor.is_floating_point():
                tensor.copy_(torch.rand_like(tensor) + 0.1)
            elif name.endswith("tracked"):
                tensor.fill_(seed * 10)
    return net.state_dict()


NORM = [f"downsample.1.{n}" for n in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")]


def test_pooled_statistics_are_those_of_all_data_at_once():
    """Clients of different sizes and means; every client's running statistics are those of its data."""
    rng = np.random.default_rng(0)
    data = [torch.from_numpy(rng.normal(m, s, (n, 4))) for m, s, n in ((0, 1, 40), (5, 2, 100), (-3, 0.5, 7))]
    states = []
    for x in data:
        layer = nn.BatchNorm1d(4, dtype=torch.float64)
        layer.running_mean.copy_(x.mean(0))
        layer.running_var.copy_(x.var(0, correction=0))
        states.append(layer.state_dict())
    pooled = average(states, [len(x) for x in data])
    everything = torch.cat(data)
    torch.testing.assert_close(pooled["running_mean"], everything.mean(0), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(pooled["running_var"], everything.var(0, correction=0), rtol=1e-12, atol=1e-12)
    alone = sum(len(x) * x.var(0, correction=0) for x in data) / len(everything)
    assert (alone < 0.4 * pooled["running_var"]).all()


def test_weights_by_counts_counter_the_largest_integers_as_they_are():
    a, b, c = client(1), client(2), client(3)
    result = average([a, b, c], [1, 3, 0])
    torch.testing.assert_close(result["subnet.weight"], 0.25 * a["subnet.weight"] + 0.75 * b["subnet.weight"])
    assert result["downsample.1.num_batches_tracked"].dtype == torch.int64
    assert int(result["downsample.1.num_batches_tracked"]) == 20
    assert result["table"].tolist() == [0, 1, 2]
    Residual().load_state_dict(result)


def test_one_client_is_what_it_was_to_the_bit():
    a = client(1)
    torch.testing.assert_close(average([a], [17]), dict(a), rtol=0, atol=0)


def test_batch_norm_is_found_by_its_keys_and_stays_local():
    a, b = client(1), client(2)
    local = average([a, b], [1, 1], batch_norm="local")
    assert set(a) - set(local) == set(NORM)
    assert "subnet.weight" in local
    statistics = average([a, b], [1, 1], batch_norm="local_statistics")
    assert set(a) - set(statistics) == set(NORM[2:])
    mine = merge(a, local)
    Residual().load_state_dict(mine)
    assert all(torch.equal(mine[key], a[key]) for key in NORM)
    assert torch.equal(mine["subnet.weight"], local["subnet.weight"])
    assert {r.entry for r in rules(a, "local") if r.rule == "local"} == set(NORM)


def test_a_rule_of_one_s_own():
    a, b = client(1), client(2)
    result = average([a, b], [1, 1], names={"subnet.bias": "local", "table": "same"})
    assert "subnet.bias" not in result


def test_half_precision_is_averaged_wide():
    ones = [{"w": torch.full((1,), v, dtype=torch.float16)} for v in (60000.0, 60000.0, 60000.0)]
    assert average(ones, [1, 1, 1])["w"].tolist() == [60000.0]


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda a, b: average([], []), "states must be of at least one client"),
        (lambda a, b: average([a, b], [1]), "counts must be one for each of the 2 clients"),
        (lambda a, b: average([a, b], [0, 0]), "counts must be 0 or more and not all 0"),
        (lambda a, b: average([a, b], [1, -1]), r"counts\[1\] must be 0 or more"),
        (lambda a, b: average([a, b], [1, float("nan")]), r"counts\[1\] must be 0 or more"),
        (lambda a, b: average([a, {}], [1, 1]), "client 1 differs in"),
        (lambda a, b: average([a, {**b, "table": torch.zeros(4)}], [1, 1]), r"'table' of client 1 is \(4,\)"),
        (lambda a, b: average([a, {**b, "table": b["table"] + 1}], [1, 1]), "entry 'table' must be the same"),
        (lambda a, b: average([a, b], [1, 1], batch_norm="mine"), "batch_norm must be 'share', 'local' or"),
        (lambda a, b: average([a, b], [1, 1], names={"x": "mean"}), "names must be entries of the states; it was x"),
        (lambda a, b: average([a, b], [1, 1], names={"table": "sum"}), r"names\['table'\] must be one of mean"),
        (lambda a, b: average([a, b], [1, 1], names={"table": "mean"}), "must be of real or complex numbers"),
        (lambda a, b: average([a, {**b, NORM[3]: b[NORM[3]] / 0}], [1, 1]), "finite statistics; .* of client 1"),
        (lambda a, b: merge(a, {"x": torch.zeros(1)}), "shared must hold entries of the client; 'x'"),
    ],
)
def test_one_sentence_for_what_cannot_be_averaged(call, sentence):
    with pytest.raises(BatchNormError, match=sentence):
        call(client(1), client(2))
