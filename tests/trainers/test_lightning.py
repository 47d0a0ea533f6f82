"""Callbacks in Lightning's Trainer."""

import copy
import json
import logging
import os
import pickle
import warnings

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import batchnorm
from batchnorm import BatchNormError
from batchnorm.interop.trainers import lightning as ours
from tests.distributed import world
from tests.trainers.networks import DATA, LABELS, close, exact, layers, network, received, statistics

pl = pytest.importorskip("lightning.pytorch")
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*:UserWarning:lightning.*"),
    pytest.mark.filterwarnings("ignore:.*:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*:FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*:batchnorm.diagnosis.BatchNormWarning"),
    pytest.mark.filterwarnings("ignore:.*does not have many workers.*"),
]


class Module(pl.LightningModule):
    def __init__(self, norm=nn.BatchNorm2d, lr=0.05):
        super().__init__()
        self.net, self.lr, self.seen = network(norm), lr, []

    def forward(self, x):
        return self.net(x)

    def training_step(self, batch, index):
        return nn.functional.cross_entropy(self(batch[0]), batch[1])

    def validation_step(self, batch, index):
        # What validation sees, on all data at once.
        self(batch[0])
        if index == 0:
            parameters = [p.detach().clone() for p in self.parameters()]
            self.seen.append((statistics(self), received(self.net, lambda m: m(DATA)), parameters))

    def configure_optimizers(self):
        return torch.optim.SGD((p for p in self.parameters() if p.requires_grad), self.lr)


def loader(shuffle=True):
    generator = torch.Generator().manual_seed(2)
    return DataLoader(TensorDataset(DATA, LABELS), batch_size=20, shuffle=shuffle, generator=generator)


def fit(module, callbacks, epochs=2, **options):
    options = {"logger": False, "enable_checkpointing": False, "num_sanity_val_steps": 1, **options}
    trainer = pl.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        devices=1,
        callbacks=callbacks,
        enable_progress_bar=False,
        enable_model_summary=False,
        **options,
    )
    torch.manual_seed(5)
    trainer.fit(module, loader(), DataLoader(TensorDataset(DATA, LABELS), batch_size=48))
    return module


def test_validation_sees_exact_statistics():
    callback = ours.Recalibrate(until=None)
    module = fit(Module(), [callback])
    # The last call finds what the one before it did; the rescue is in the history.
    first, _, end = callback.history
    assert (first.needed, end.needed) == (True, False)
    assert first.when.startswith("validation, step ")
    assert end.when == "end"
    assert str(callback.history).endswith("end: nothing needed doing (96 samples)")
    sanity, *seen = module.seen
    assert len(seen) == 2
    assert not close(sanity[0], sanity[1])
    assert all(close(stored, wanted) for stored, wanted, _ in seen)
    assert exact(module.net)
    plain = fit(Module(), [])
    assert not any(close(stored, wanted, 0.01) for stored, wanted, _ in plain.seen)


def test_training_itself_is_not_disturbed():
    recalibrated, plain = fit(Module(), [ours.Recalibrate(until=None)]), fit(Module(), [])
    for a, b in zip(recalibrated.parameters(), plain.parameters(), strict=True):
        assert torch.equal(a, b)


def test_in_the_middle_of_an_epoch():
    recalibrated = fit(Module(), [ours.Recalibrate(until=None)], val_check_interval=2)
    plain = fit(Module(), [], val_check_interval=2)
    assert len(recalibrated.seen) == 5
    assert all(close(stored, wanted) for stored, wanted, _ in recalibrated.seen[1:])
    assert all(torch.equal(a, b) for a, b in zip(recalibrated.parameters(), plain.parameters(), strict=True))


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("use_buffers", [True, False])
def test_averaged_weights_get_their_own_statistics(first, use_buffers):
    from lightning.pytorch.callbacks import EMAWeightAveraging

    average, recalibrate = EMAWeightAveraging(decay=0.9, use_buffers=use_buffers), ours.Recalibrate(until=None)
    module = fit(Module(), [recalibrate, average] if first else [average, recalibrate])
    assert all(close(stored, wanted) for stored, wanted, _ in module.seen[1:])
    # It is the average that validation saw and that the fit ends with.
    trained = fit(Module(), [])
    assert not torch.allclose(module.seen[-1][2][0], trained.seen[-1][2][0], atol=1e-4)
    assert exact(module.net)
    assert close(statistics(average._average_model), received(average._average_model.module.net, lambda m: m(DATA)))
    without = fit(Module(), [EMAWeightAveraging(decay=0.9, use_buffers=use_buffers)])
    assert not exact(without.net)


def test_stochastic_weight_averaging():
    from lightning.pytorch.callbacks import StochasticWeightAveraging

    def average():
        return StochasticWeightAveraging(swa_lrs=0.05, swa_epoch_start=1)

    assert exact(fit(Module(), [average(), ours.Recalibrate(until=None, at="end")], epochs=3).net)
    # Its own extra epoch averages the moments of batches that normalise each layer by themselves.
    assert not exact(fit(Module(), [average()], epochs=3).net)


def test_watch_records_every_step(tmp_path):
    watch = ours.Watch(to=tmp_path / "run.jsonl", every=2)
    module = fit(Module(), [watch])
    assert watch.report.run.closed
    assert (watch.report.run.steps, watch.report.run.forwards) == (10, 10)
    assert list(watch.report.layers) == ["net.1", "net.4"]
    lines = [json.loads(line) for line in (tmp_path / "run.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6, 8, 10]
    assert lines[-1]["layers"]["net.1"]["updates"] == 10
    assert not any(m._forward_pre_hooks or m._forward_hooks for m in module.modules())


def test_watch_speaks_to_the_loggers(tmp_path):
    from lightning.pytorch.loggers import CSVLogger

    logger = CSVLogger(tmp_path, flush_logs_every_n_steps=1)
    watch = ours.Watch(to="logger", part="net", every=5)
    fit(Module(), [watch], logger=logger, log_every_n_steps=1)
    text = (tmp_path / "lightning_logs" / "version_0" / "metrics.csv").read_text()
    assert "batchnorm/1/drift" in text.splitlines()[0]
    with pytest.raises(BatchNormError, match="only where the trainer has a logger"):
        fit(Module(), [ours.Watch(to="logger")])


class Backbone(Module):
    def __init__(self):
        super().__init__()
        self.backbone, self.head = self.net[:6], self.net[6:]
        del self.net
        self.calls = []

    def forward(self, x):
        y = self.backbone(x)
        if self.training and torch.is_grad_enabled():
            self.calls.append(all(m.training for m in layers(self)))
        return self.head(y)

    def validation_step(self, batch, index):
        self(batch[0])


@pytest.mark.parametrize("first", [True, False])
def test_frozen_through_finetuning(first):
    from lightning.pytorch.callbacks import BackboneFinetuning

    module = Backbone()
    batchnorm.recalibrate(module, DATA.split(32))
    before, weights = statistics(module), [m.weight.clone() for m in layers(module)]
    convolution = module.backbone[0].weight.detach().clone()
    freeze, tune = ours.Freeze(["backbone"], affine=True), BackboneFinetuning(1, train_bn=True, verbose=False)
    fit(module, [freeze, tune] if first else [tune, freeze], epochs=3)
    # The trainer has called train() on everything, and the callback has unfrozen the backbone.
    assert all(module.calls)
    assert len(module.calls) == 15
    assert all(torch.equal(a, b) for a, b in zip(statistics(module), before, strict=True))
    assert all(torch.equal(m.weight, w) for m, w in zip(layers(module), weights, strict=True))
    assert not torch.equal(module.backbone[0].weight, convolution)
    x = DATA[:5]
    assert torch.equal(module.train()(x), module.eval()(x))
    alone = Backbone()
    batchnorm.recalibrate(alone, DATA.split(32))
    fit(alone, [BackboneFinetuning(1, train_bn=True, verbose=False)], epochs=3)
    assert not torch.equal(statistics(alone)[0], before[0])


def test_frozen_statistics_outlive_the_reset_of_weight_averaging():
    from lightning.pytorch.callbacks import StochasticWeightAveraging

    for order in (0, 1):
        module = Module()
        batchnorm.recalibrate(module, DATA.split(32))
        before = statistics(module)
        callbacks = [ours.Freeze(), StochasticWeightAveraging(swa_lrs=0.05, swa_epoch_start=1)]
        fit(module, callbacks[::-1] if order else callbacks, epochs=2)
        assert all(torch.equal(a, b) for a, b in zip(statistics(module), before, strict=True))


def test_frozen_until_an_epoch():
    module = Module()
    before = statistics(module)
    fit(module, [ours.Freeze(until_epoch=1)], epochs=1)
    assert all(torch.equal(a, b) for a, b in zip(statistics(module), before, strict=True))
    module = Module()
    fit(module, [ours.Freeze(until_epoch=1)], epochs=2)
    assert [int(m.num_batches_tracked) for m in layers(module)] == [5, 5]


def test_this_packages_layers_and_mixed_precision():
    module = Module()
    batchnorm.convert(module, "debiased")
    fit(module, [ours.Recalibrate(until=None), ours.Watch()], precision="bf16-mixed")
    half = copy.deepcopy(module.net)

    def under_autocast(model):
        with torch.autocast("cpu", torch.bfloat16):
            model(DATA)

    assert close(statistics(module.net), received(half, under_autocast), 2e-3)


def _ranks(rank, ranks):
    from lightning.pytorch.plugins.environments import LightningEnvironment

    warnings.simplefilter("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    os.environ.update(LOCAL_RANK=str(rank), NODE_RANK="0", MASTER_ADDR="127.0.0.1", MASTER_PORT="29512")
    callback, watch, module = ours.Recalibrate(until=None), ours.Watch(), Module()
    options = {"accelerator": "cpu", "devices": ranks, "strategy": "ddp", "plugins": [LightningEnvironment()]}
    trainer = pl.Trainer(
        max_epochs=1,
        callbacks=[callback, watch],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        **options,
    )
    data = TensorDataset(DATA[:95], LABELS[:95])
    trainer.fit(module, DataLoader(data, batch_size=8, shuffle=True), DataLoader(data, batch_size=19))
    counted = (trainer.world_size, watch.report.run.steps, watch.report.run.forwards, callback.result.samples)
    return counted, statistics(module), [p.detach().clone() for p in module.parameters()]


def test_two_processes_count_every_sample_once():
    one, other = world.run(_ranks, 2, timeout=60.0)
    assert one[0] == other[0] == (2, 6, 6, 95)
    assert all(torch.equal(a, b) for a, b in zip(one[1], other[1], strict=True))
    module = Module()
    with torch.no_grad():
        for parameter, value in zip(module.parameters(), one[2], strict=True):
            parameter.copy_(value)
    batchnorm.recalibrate(module, DATA[:95].split(19))
    assert close(statistics(module), one[1], 1e-5)


def test_bad_arguments():
    class NoForward(Module):
        forward = nn.Module.forward

        def training_step(self, batch, index):
            return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

        def validation_step(self, batch, index):
            pass

    with pytest.raises(BatchNormError, match="NoForward has no forward"):
        fit(NoForward(), [ours.Recalibrate()])
    fit(NoForward(), [ours.Recalibrate(until=None, forward_fn=lambda module, batch: module.net(batch[0]))])
    with pytest.raises(BatchNormError, match="not 'momentum'"):
        ours.Recalibrate(momentum=0.1)
    with pytest.raises(BatchNormError, match="at must be some of 'validation', 'end'; it was 'test'"):
        ours.Recalibrate(at="test")
    with pytest.raises(BatchNormError, match="there is no 'nowhere'"):
        fit(Module(), [ours.Freeze(["nowhere"])])


def test_callbacks_are_lightnings_and_can_be_copied():
    for callback in (ours.Watch(every=7), ours.Recalibrate(max_samples=9), ours.Freeze(["net"])):
        assert isinstance(callback, pl.Callback)
        for other in (copy.deepcopy(callback), pickle.loads(pickle.dumps(callback))):
            assert type(other) is type(callback)
            assert other.__dict__ == callback.__dict__


def test_a_dict_that_the_module_does_not_take_is_told_what_to_give():
    class Dicts(Module):
        def training_step(self, batch, index):
            return nn.functional.cross_entropy(self(batch["image"]), batch["label"])

        validation_step = training_step

    data = DataLoader([{"image": x, "label": y} for x, y in zip(DATA, LABELS, strict=True)], batch_size=20)
    options = {"logger": False, "enable_checkpointing": False, "max_epochs": 1, "accelerator": "cpu"}
    words = (
        r"loader must yield what the model runs on.*give forward_fn, as lambda model, batch: model\(batch\['image'\]\)"
    )
    with pytest.raises(BatchNormError, match=words):
        pl.Trainer(callbacks=[ours.Recalibrate()], **options).fit(Dicts(), data, data)
    given = ours.Recalibrate(forward_fn=lambda model, batch: model(batch["image"]), until=None)
    pl.Trainer(callbacks=[given], **options).fit(Dicts(), data, data)
    assert given.result.samples == len(DATA)


def test_watch_names_a_part_that_is_not_there():
    with pytest.raises(BatchNormError, match="part must be a path of a module of the model; there is no 'nett'"):
        fit(Module(), [ours.Watch(part="nett")])
