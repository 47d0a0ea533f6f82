"""Too little in a batch, and batches whose samples inform each other."""

import pytest
import torch
from torch import nn
from torch.func import jacrev

import batchnorm
from gallery.common import TEST_X, X, Y, batches, metric, network, train
from tests.pains.table import outcome, pain


@pain(
    3,
    "ValueError: Expected more than 1 value per channel when training",
    state="prevented",
    peer="raises in the middle of an epoch, at a last batch of one sample or a 1 x 1 map, and counts that batch",
    here='batchnorm.convert(model, policy=batchnorm.layers.Policy(too_few="population"))',
    thread="https://github.com/pytorch/pytorch/issues/13223",
    page="findings.md#bn128",
    without=("batchnorm.convert", "batchnorm.diagnose"),
    fails_with=ValueError,
)
def test_pain_03_one_value_per_channel():
    loader = list(zip(X[:129].split(64), Y[:129].split(64), strict=True))
    model = train(network(), 20)
    with pytest.raises(ValueError, match="Expected more than 1 value per channel"):
        model.train()(loader[-1][0])
    assert int(model[1].num_batches_tracked) == 21  # and the refused batch was counted
    with pytest.raises(ValueError, match="more than 1 value"):
        nn.BatchNorm2d(3)(torch.randn(1, 3, 1, 1))
    first = batchnorm.diagnose(model, loader, metric).findings[:1]
    assert [f.code for f in first] == ["BN128"]
    batchnorm.convert(model, policy=batchnorm.layers.Policy(too_few="population"))
    before = {name: value.clone() for name, value in model.named_buffers()}
    y = model.train()(loader[-1][0])
    assert torch.allclose(y, model.eval()(loader[-1][0]), atol=1e-5)  # as inference would normalise it
    assert all(torch.equal(value, before[name]) for name, value in model.named_buffers())
    y.sum().backward()


@pain(
    9,
    "Gradient accumulation does not reproduce the big batch",
    state="prevented",
    peer="the statistics move once a micro-batch: the counter says 3, and the last piece of 2 weighs as much as 5",
    here="with batchnorm.accumulate(model): ...",
    thread="https://github.com/pytorch/pytorch/issues/46516",
    page="accumulate.md",
    without="batchnorm.accumulate",
    limit="each micro-batch is still normalised by itself; `renorm=True` draws it towards the running statistics",
)
def test_pain_09_gradient_accumulation():
    x = torch.arange(24.0).reshape(12, 2).square()
    pieces = x.split(5)  # 5, 5 and 2
    whole, stock = nn.BatchNorm1d(2), nn.BatchNorm1d(2)
    whole(x)
    for piece in pieces:
        stock(piece)
    assert int(stock.num_batches_tracked) == 3
    alike = sum(0.1 * 0.9**age * piece.mean(0) for age, piece in enumerate(reversed(pieces)))
    assert torch.allclose(stock.running_mean, alike, rtol=1e-5)
    assert (stock.running_mean - whole.running_mean).abs().max() > 10
    ours = batchnorm.BatchNorm1d(2)
    with batchnorm.accumulate(ours):
        for piece in pieces:
            ours(piece)
    assert torch.allclose(ours.running_mean, whole.running_mean, rtol=1e-6)
    assert torch.allclose(ours.running_var, whole.running_var, rtol=1e-6)
    assert int(ours.num_batches_tracked) == 1
    # What is left: each piece is still normalised by itself; renorm draws it towards the running statistics.
    settled = batchnorm.BatchNorm1d(2)
    for _ in range(200):
        settled(torch.randn(64, 2))
    x = torch.randn(8, 2)
    with batchnorm.accumulate(settled):
        alone = torch.cat([settled(piece) for piece in x.split(2)])
    with batchnorm.accumulate(settled, renorm=True):
        corrected = torch.cat([settled(piece) for piece in x.split(2)])
    truth = settled.eval()(x)
    assert (corrected - truth).abs().mean() < (alone - truth).abs().mean() / 2


@pain(
    39,
    "Inference with the batch's statistics as a work-around: a result depends on the batch it is in",
    state="diagnosed",
    peer="a layer without running statistics gives one image another output in another batch",
    here="print(batchnorm.diagnose(model, loader, metric))",
    thread="https://github.com/uci-cbcl/UFold/issues/18",
    page="findings.md#bn125",
    without="batchnorm.diagnose",
)
def test_pain_39_results_depend_on_the_batch():
    torch.manual_seed(0)
    norm = nn.BatchNorm1d(48, track_running_stats=False)
    model = train(nn.Sequential(nn.Linear(64, 48), norm, nn.ReLU(), nn.Linear(48, 10)), 100).eval()
    assert (model(TEST_X[:64])[0] - model(TEST_X[:32])[0]).abs().max() > 0.05
    report = batchnorm.diagnose(model, batches(), metric)
    assert [f.code for f in report.findings if f.severity != "note"][:1] == ["BN125"]
    # Whether the stored or the batch's statistics are the better choice is measured.
    report, before, after = outcome("batches_of_one_class")
    assert report.findings[0].code == "BN119"
    assert before < after - 0.05
    measured = report.to_dict()["metric"]
    assert measured["batch"] > measured["recalibrated"] + 0.1


@pain(
    42,
    "Ghost batch norm: the batch must be divisible, and the left-over chunk may be one sample",
    state="prevented",
    peer="splitting by hand into 16, 16 and 1 raises at the 1; Keras 3 has no virtual_batch_size",
    here="batchnorm.convert(model, extent=batchnorm.layers.Ghost(16))",
    thread="https://github.com/keras-team/keras/issues/15790",
    page="methods/ghost.md",
    without="batchnorm.BatchNorm1d",
    fails_with=ValueError,
)
def test_pain_42_ghost_batches():
    x = torch.randn(33, 3) + 4
    by_hand = nn.BatchNorm1d(3)
    with pytest.raises(ValueError, match="more than 1 value"):
        torch.cat([by_hand(chunk) for chunk in x.split(16)])
    ghost = batchnorm.BatchNorm1d(3, extent=batchnorm.layers.Ghost(16))
    y = ghost(x)
    parts = [(chunk - chunk.mean(0)) / (chunk.var(0, correction=0) + 1e-5).sqrt() for chunk in x.split([17, 16])]
    assert torch.allclose(y, torch.cat(parts), atol=1e-5)
    # Moved once, by the whole batch; at inference no size is asked for.
    assert torch.allclose(ghost.running_mean, 0.1 * x.mean(0), atol=1e-6)
    assert torch.allclose(ghost.eval()(x[:1]), ghost(x)[:1], atol=1e-6)


@pain(
    47,
    "An empty batch makes running_mean NaN",
    state="prevented",
    peer="statistics stay since, but the counter grows: with momentum=None the next batch weighs half as much",
    here="batchnorm.convert(model)",
    thread="https://github.com/pytorch/pytorch/issues/12013",
    page="deviations.md",
    without="batchnorm.convert",
)
def test_pain_47_empty_batch():
    x = torch.full((4, 2), 6.0) + torch.randn(4, 2)
    stock = nn.BatchNorm1d(2, momentum=None)
    model = batchnorm.convert(nn.Sequential(nn.BatchNorm1d(2, momentum=None)))
    for layer in (stock, model):
        layer(torch.empty(0, 2))
        layer(x)
    assert int(stock.num_batches_tracked) == 2
    assert torch.allclose(stock.running_mean, x.mean(0) / 2)
    assert int(model[0].num_batches_tracked) == 1
    assert torch.allclose(model[0].running_mean, x.mean(0))


@pain(
    52,
    "Information leaks between the samples of a batch in contrastive pretraining",
    state="prevented",
    peer="every output depends on every other input of the batch, the query's own key included",
    here="batchnorm.convert(encoder, extent=batchnorm.layers.Ghost(4)); y = encoder(x[order])[order.argsort()]",
    thread="https://github.com/facebookresearch/moco/issues/137",
    page="methods/ghost.md",
    without="batchnorm.BatchNorm1d",
    limit="inside a group samples still inform each other; the shuffle is a line in the training loop",
)
def test_pain_52_samples_inform_each_other():
    queries = torch.randn(8, 3, dtype=torch.float64)
    both = torch.cat([queries, queries + 0.1 * torch.randn(8, 3, dtype=torch.float64)])

    def informed(layer, order):
        """Which samples' inputs move which samples' outputs."""
        slopes = jacrev(lambda x: layer(x[order])[order.argsort()])(both)
        return slopes.abs().amax((1, 3)) > 1e-12

    with batchnorm.pause(nn.BatchNorm1d(3, dtype=torch.float64)) as stock:
        assert informed(stock, torch.arange(16)).all()
    ghost = batchnorm.BatchNorm1d(3, extent=batchnorm.layers.Ghost(4), dtype=torch.float64)
    order = torch.cat([torch.arange(8), 8 + torch.arange(8).roll(4)])  # a key goes with other queries' keys
    with batchnorm.pause(ghost):
        told = informed(ghost, order)
    assert (told.sum(1) == 4).all()
    assert not told[torch.arange(8), 8 + torch.arange(8)].any()
    # What remains is inside a group; frozen layers tell nothing.
    batchnorm.freeze(ghost)
    assert torch.equal(informed(ghost, order), torch.eye(16, dtype=torch.bool))
