"""Weights that change after training: sampled, sliced, pruned, averaged; the statistics are put right afterwards."""

import copy

import torch
from torch import nn

import batchnorm
from gallery.common import accuracy, batches, network, train
from tests.pains.table import outcome, pain


@pain(
    19,
    "A generator's samples are noise in eval() and fine in train()",
    state="repaired",
    peer="samples in eval mode lie more than 0.5 of their norm from those in train mode",
    here="batchnorm.recalibrate(generator, (torch.randn(64, 16) for _ in range(20)))",
    thread="https://github.com/odegeasslbc/FastGAN-pytorch/issues/4",
    page="recalibrate.md",
    without="batchnorm.recalibrate",
)
def test_pain_19_generator_is_noise_in_eval():
    layers = [nn.Linear(16, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Linear(64, 64), nn.BatchNorm1d(64), nn.Tanh()]
    generator = nn.Sequential(*layers)
    for _ in range(30):
        generator(torch.randn(64, 16))
    with torch.no_grad():  # the last large steps of an adversarial game
        generator[0].weight.mul_(3).add_(0.3)
        generator[0].bias.add_(2)
    z = torch.randn(512, 16)

    def off():
        fine = copy.deepcopy(generator).train()(z)
        return float(((generator.eval()(z) - fine).norm() / fine.norm()).detach())

    assert off() > 0.5
    result = batchnorm.recalibrate(generator, (torch.randn(64, 16) for _ in range(40)))
    assert off() < 0.1
    assert result.samples == 40 * 64
    # The image no longer depends on the rest of the batch, as it does in train mode.
    assert torch.allclose(generator(z[:1]), generator(z)[:1], atol=1e-6)


@pain(
    25,
    "A subnet of a supernet scores at chance, or the ranking of subnets is noise",
    state="repaired",
    peer="shared statistics are those of no subnet: the half network is 5 points and more below what it can",
    here="result = batchnorm.recalibrate(model, loader, until=0.02); score(model); result.undo()",
    thread="https://github.com/mit-han-lab/once-for-all/issues/15",
    page="recalibrate.md",
    without="batchnorm.recalibrate",
)
def test_pain_25_subnet_of_a_supernet():
    report, before, after = outcome("subnet_of_a_supernet")
    assert report.findings[0].code == "BN104"
    assert before < after - 0.05
    assert after > 0.85
    # Candidates do not contaminate each other: the statistics go back to the bit.
    model = train(network(), 40)
    kept = {name: buffer.clone() for name, buffer in model.named_buffers()}
    result = batchnorm.recalibrate(model, batches(16), until=0.1)
    assert 0 < result.samples < 16 * len(batches(16))
    result.undo()
    assert all(torch.equal(buffer, kept[name]) for name, buffer in model.named_buffers())


@pain(
    26,
    "A pruned or quantised model collapses until batch norm is re-estimated",
    state="repaired",
    peer="weights change, the statistics stay those of the dense network",
    here="batchnorm.recalibrate(model, loader)",
    thread="https://github.com/openvinotoolkit/nncf/pull/41",
    page="recalibrate.md",
    without="batchnorm.recalibrate",
)
def test_pain_26_pruned_or_quantised():
    report, before, after = outcome("pruned")
    assert report.findings[0].code == "BN104"
    assert before < after - 0.05
    model = train(network(), 200)
    with torch.no_grad():  # two bits
        for layer in (model[0], model[3]):
            step = layer.weight.abs().max() / 1.5
            layer.weight.copy_(((layer.weight / step + 0.5).round() - 0.5) * step)
    quantised = accuracy(model)
    batchnorm.recalibrate(model, batches())
    assert accuracy(model) > quantised + 0.05


@pain(
    28,
    "Averaged-iterate and schedule-free optimisers need a batch norm pass before every evaluation",
    state="repaired",
    peer="evaluated at the averaged weights with the statistics of the last ones",
    here="result = batchnorm.recalibrate(model, loader, until=0.02); evaluate(model); result.undo()",
    thread="https://github.com/facebookresearch/schedule_free/issues/11",
    page="recalibrate.md",
    without="batchnorm.recalibrate",
)
def test_pain_28_averaged_iterates():
    report, before, after = outcome("averaged_iterates")
    assert report.findings[0].code == "BN104"
    assert before < after - 0.05
    assert after > 0.9
    # Evaluate in the middle of training: weights swapped in and out, training statistics untouched.
    model = train(network(), 60, lr=0.05)
    average = copy.deepcopy(list(model.parameters()))
    for seed in range(4):
        train(model, 15, lr=0.05, seed=seed + 1)
        with torch.no_grad():
            for mean, now in zip(average, model.parameters(), strict=True):
                mean.lerp_(now, 1 / (seed + 2))
    training = copy.deepcopy(model.state_dict())
    with torch.no_grad():
        for now, mean in zip(model.parameters(), average, strict=True):
            now.copy_(mean)
    unready = accuracy(model)
    result = batchnorm.recalibrate(model, batches(16), until=0.1)
    # How many batches are enough is read from the standard error, not "50, mostly arbitrary".
    assert 0 < result.standard_error < 0.1
    assert result.samples < 16 * len(batches(16))
    assert accuracy(model) >= unready
    result.undo()
    for name, value in model.named_buffers():
        assert torch.equal(value, training[name])
