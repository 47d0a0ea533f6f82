"""The rules on data and notes, attribution, and the choices of statistics; the gallery has the others."""

import copy

import pytest
import torch
from torch import nn

import batchnorm
from batchnorm.diagnosis.experiments.inputs import Inputs
from batchnorm.diagnosis.experiments.padding import at_layer, padded_positions
from batchnorm.diagnosis.experiments.received import Received
from batchnorm.diagnosis.model.gather import gather

DATA = torch.randn(512, 8, generator=torch.Generator().manual_seed(0))
LOADER = DATA.split(32)


def deep(layers=6, dropout=0.0):
    torch.manual_seed(0)
    parts = []
    for _ in range(layers):
        parts += [nn.Linear(8, 8), nn.BatchNorm1d(8), nn.ReLU()]
    model = nn.Sequential(*parts, nn.Dropout(dropout), nn.Linear(8, 3))
    batchnorm.recalibrate(model, LOADER, upstream="batch")
    for m in model.modules():
        if isinstance(m, nn.BatchNorm1d):
            m.num_batches_tracked.fill_(1000)
    return model


def found(model, loader=LOADER, **options):
    return {f.code: f for f in batchnorm.diagnose(model, loader, **options).findings}


def test_dropout_in_front_of_the_head_is_another_cause():
    model = deep(dropout=0.5)
    report = batchnorm.diagnose(model, LOADER)
    assert report.ok
    assert report.verdict == "your statistics are fine: the gap has another cause"
    note = next(f for f in report.findings if f.code == "BN118")
    assert "(18)" in note.message
    assert "BN118" not in found(deep(dropout=0.0))


def test_dropout_is_not_blamed_where_statistics_are_wrong():
    model = deep(dropout=0.5)
    model[1].running_mean += 2 * model[1].running_var.sqrt()
    assert "BN118" not in found(model)
    assert "BN104" in found(model)


def test_sorted_batches_are_a_note():
    stretched = DATA * torch.tensor([6.0] + [1.0] * 7)
    model = deep(layers=1)
    batchnorm.recalibrate(model, stretched.split(32))
    report = batchnorm.diagnose(model, stretched[DATA[:, 0].argsort()].split(32))
    assert {f.code for f in report.findings} == {"BN117"}
    assert report.ok
    assert "BN117" not in found(model, stretched.split(32))


def test_two_kinds_of_batches_take_turns():
    loader = [batch + 6 * (index % 2) for index, batch in enumerate(LOADER)]
    model = nn.Sequential(nn.BatchNorm1d(8))
    batchnorm.recalibrate(model, loader)
    assert "BN116" in found(model, loader)
    assert "two groups" in found(model, loader)["BN116"].message
    assert "BN116" not in found(model, [batch + 6 * (index / 16) for index, batch in enumerate(LOADER)])


def test_one_layer_used_twice_on_alike_inputs_is_fine():
    class Siamese(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = nn.BatchNorm1d(8)

        def forward(self, x):
            a, b = x.chunk(2)
            return self.norm(a) - self.norm(b)

    model = Siamese()
    batchnorm.recalibrate(model, LOADER)
    assert "BN116" not in found(model)
    shifted = [torch.cat([b[:16], b[16:] + 4]) for b in LOADER]
    assert "BN116" in found(model, shifted)


def test_mean_far_from_zero_and_large_gain():
    model = nn.Sequential(nn.BatchNorm1d(8))
    batchnorm.recalibrate(model, LOADER)
    assert not {"BN122", "BN123"} & set(found(model))
    far = [b + 500 for b in LOADER]
    batchnorm.recalibrate(model, far)
    assert found(model, far)["BN122"].severity == "note"
    small = [b * 1e-4 for b in LOADER]
    batchnorm.recalibrate(model, small)
    with torch.no_grad():
        model[0].weight.fill_(50.0)
    assert found(model, small)["BN123"].severity == "note"


def test_channels_switched_off():
    model = deep()
    assert "BN126" not in found(model)
    with torch.no_grad():
        model[1].weight[2] = 0
        model[4].bias[1], model[4].weight[1] = 10.0, 1.0
    batchnorm.recalibrate(model, LOADER)
    report = batchnorm.diagnose(model, LOADER)
    assert [f.layer for f in report.findings if f.code == "BN126"] == ["1", "4"]
    assert report.ok


def test_a_layer_no_forward_reaches():
    model = deep()
    model[0].unused = nn.BatchNorm1d(8)
    report = batchnorm.diagnose(model, LOADER)
    assert [(f.code, f.layer) for f in report.findings] == [("BN127", "0.unused")]


def test_evaluation_data_alike_and_not():
    assert "BN121" not in found(deep(), eval_loader=torch.randn(300, 8).split(50))
    assert found(deep(), eval_loader=(torch.randn(300, 8) + 1).split(50))["BN121"].layer == "1"


def test_a_recalibrated_layer_that_is_corrupted_is_not_said_to_have_had_too_few_steps():
    model = deep()
    model[1].num_batches_tracked.fill_(16)
    model[1].running_mean += 2 * model[1].running_var.sqrt()
    assert "BN104" in found(model)
    assert "BN108" not in found(model)


def test_one_corrupted_layer_has_the_whole_share():
    model = deep()
    model[7].running_mean += 0.7 * model[7].running_var.sqrt()
    layers = batchnorm.diagnose(model, LOADER).layers
    assert layers["7"].share == pytest.approx(1.0, abs=1e-6)
    assert max(v.share for n, v in layers.items() if n != "7") < 1e-6
    assert max(layers, key=lambda n: layers[n].share) == "7"


def test_shares_are_those_of_each_layer_alone():
    """Against the definition: right statistics everywhere, one layer's stored ones put back."""
    model = deep()
    right = copy.deepcopy(model)
    for index, size in ((1, 0.5), (10, 1.0)):
        model[index].running_mean += size * model[index].running_var.sqrt()
    layers = batchnorm.diagnose(model, LOADER).layers
    damages = []
    with torch.no_grad():
        reference = right.eval()(LOADER[0])
        for index in (1, 10):
            one = copy.deepcopy(right)
            one[index].running_mean.copy_(model[index].running_mean)
            damages.append(float((one.eval()(LOADER[0]) - reference).norm() / reference.norm()))
    assert layers["1"].damage == pytest.approx(damages[0], rel=1e-3)
    assert layers["10"].damage == pytest.approx(damages[1], rel=1e-3)
    assert layers["1"].share == pytest.approx(damages[0] ** 2 / (damages[0] ** 2 + damages[1] ** 2), rel=1e-3)


def test_many_layers_are_attributed_within_one_pass_the_furthest_first():
    model = deep(layers=48)
    for index in (4, 94):
        model[index].running_mean += model[index].running_var.sqrt()
    calls = []
    model.register_forward_hook(lambda module, args, output: calls.append(len(args[0])))
    few = LOADER[:2]
    evidence = gather(model, few)
    assert sum(calls) <= 8 * 64
    measured = {n: v.share for n, v in evidence.layers.items() if v.share is not None}
    assert evidence.attributed == 2
    assert 2 <= len(measured) < 48
    assert set(sorted(measured, key=measured.get)[-2:]) <= set(measured)
    assert {"4", "94"} <= set(measured)


def test_a_poisoned_layer_takes_the_whole_share():
    model = deep()
    model[4].running_var[0] = torch.nan
    layers = batchnorm.diagnose(model, LOADER).layers
    assert layers["4"].share == 1.0
    assert sum(v.share for v in layers.values()) == 1.0


def test_the_metric_under_each_choice():
    model = deep(layers=1)
    target = model.eval()(DATA).detach().argmax(1)
    loader = list(zip(LOADER, target.split(32), strict=True))
    model[1].running_mean += 5 * model[1].running_var.sqrt()

    def accuracy(output, batch):
        return (output.argmax(1) == batch[1]).double().mean()

    report = batchnorm.diagnose(model, loader, accuracy)
    metric = report.to_dict()["metric"]
    model.eval()
    assert metric["stored"] == pytest.approx(float((model(DATA).argmax(1) == target).double().mean()))
    assert metric["recalibrated"] == pytest.approx(1.0, abs=0.01)
    assert metric["stored"] < metric["batch"] <= 1.0
    assert "recalibrated" in str(report)


def test_the_metric_of_a_generator_and_of_a_sorted_loader_is_over_all_batches():
    model = deep(layers=1)
    report = batchnorm.diagnose(model, (batch for batch in DATA.split(16)), lambda output, batch: batch.shape[0])
    assert report.evidence.samples == 512
    assert report.evidence.outcomes["stored"].batches == 32
    assert report.to_dict()["metric"]["stored"] == 16.0
    order = DATA[:, 0].argsort()
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(DATA[order]), batch_size=16)
    report = batchnorm.diagnose(model, loader, lambda output, batch: float(batch[0][:, 0].mean()))
    assert report.to_dict()["metric"]["stored"] == pytest.approx(float(DATA[:, 0].mean()), abs=1e-5)


def test_spread_of_exchangeable_batches_is_one_and_of_shifted_ones_what_it_must_be():
    generator = torch.Generator().manual_seed(0)
    for shift, expected in ((0.0, 1.0), (1.0, 33.0)):
        inputs = Inputs()
        for _ in range(400):
            inputs.start_batch()
            x = torch.randn(32, 4, generator=generator) + shift * torch.randn(1, 4, generator=generator)
            inputs.add(x, Received().add(x), torch.zeros(4), torch.ones(4))
        assert inputs.spread(torch.ones(4))[0] == pytest.approx(expected, rel=0.1)


def test_the_histogram_counts_every_value_once():
    inputs = Inputs()
    inputs.start_batch()
    x = torch.tensor([[-7.0], [0.1], [0.1], [9.0], [6.0]])
    inputs.add(x, Received().add(x), torch.zeros(1), torch.ones(1))
    assert (inputs.below, inputs.above, int(inputs.histogram.sum())) == (1, 2, 2)
    assert int(inputs.histogram[20]) == 2


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("channels_last", [False, True])
def test_padding_is_a_run_at_either_end_that_differs_between_samples(side, channels_last):
    x = torch.randn(4, 3, 10)
    assert padded_positions(x) is None
    x[0, :, 6:] = 0.25
    x[1, :, 2:] = 0.25
    x = x if side == "right" else x.flip(2)
    valid = padded_positions(x.transpose(1, 2) if channels_last else x)
    expected = torch.ones(4, 10, dtype=torch.bool)
    expected[0, 6:] = expected[1, 2:] = False
    assert torch.equal(valid, expected if side == "right" else expected.flip(1))


def test_what_is_no_padding():
    assert padded_positions(torch.zeros(4, 3, 10)) is None
    rows = torch.randn(10, 6)
    rows[3] = 0
    assert padded_positions(rows) is None
    same = torch.randn(4, 3, 10)
    same[:, :, 7:] = 0
    assert padded_positions(same) is None


def test_padding_of_tokens_and_of_images_and_where_a_layer_has_other_sizes():
    tokens = torch.randint(5, 50, (4, 12))
    tokens[0, 8:] = tokens[2, 3:] = 0
    valid = padded_positions((tokens, torch.zeros(4)))
    assert valid.sum(1).tolist() == [8, 12, 3, 12]
    images = torch.rand(4, 3, 8, 8)
    images[1, :, 5:] = 0.5
    images[2, :, :, :3] = 0.5
    assert padded_positions(images).float().mean((1, 2)).tolist() == [1.0, 0.625, 0.625, 1.0]
    halved = at_layer(valid, torch.zeros(4, 7, 6))
    assert halved.shape == (4, 1, 6)
    assert halved[:, 0].sum(1).tolist() == [4, 6, 2, 6]


def test_without_statistics_only():
    model = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8, track_running_stats=False))
    report = batchnorm.diagnose(model, LOADER)
    assert [(f.code, f.layer) for f in report.findings] == [("BN125", "1")]


def test_every_batch_of_one():
    report = batchnorm.diagnose(deep(layers=1), DATA[:3].split(1))
    assert {f.code for f in report.findings if f.severity == "error"} == {"BN128"}
    assert str(report)
    assert report.to_dict()["layers"]["1"]["fewest_values"] is None
