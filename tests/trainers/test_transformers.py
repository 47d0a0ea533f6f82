"""Callbacks in Hugging Face's Trainer."""

import copy
import json
import os
import pickle
import warnings

import pytest
import torch
from torch import nn

import batchnorm
from batchnorm import BatchNormError
from batchnorm.interop.trainers import transformers as ours
from tests.distributed import world
from tests.trainers.networks import DATA, LABELS, close, exact, layers, received, statistics

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    hf = pytest.importorskip("transformers")
    pytest.importorskip("accelerate")
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*pin_memory.*"),
    pytest.mark.filterwarnings("ignore::batchnorm.diagnosis.BatchNormWarning"),
]


class Images(torch.utils.data.Dataset):
    def __len__(self):
        return len(DATA)

    def __getitem__(self, index):
        return {"pixel_values": DATA[index], "labels": LABELS[index]}


def resnet():
    torch.manual_seed(0)
    # Its first convolution and pooling take 6 x 6 to 2 x 2.
    config = hf.ResNetConfig(embedding_size=4, hidden_sizes=[4, 6], depths=[1, 1], layer_type="basic", num_labels=3)
    return hf.ResNetForImageClassification(config)


class Trainer(hf.Trainer):
    """Notes what every evaluation sees."""

    def evaluate(self, *args, **kwargs):
        self.seen = [*getattr(self, "seen", []), (statistics(self.model), received(self.model, call))]
        return super().evaluate(*args, **kwargs)


def call(model):
    model(DATA)


def train(model, callbacks, folder, **arguments):
    defaults = {"eval_strategy": "epoch", "save_strategy": "no", "num_train_epochs": 2}
    settings = hf.TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=20,
        per_device_eval_batch_size=48,
        learning_rate=1e-2,
        max_grad_norm=0,
        report_to=[],
        disable_tqdm=True,
        use_cpu=True,
        logging_strategy="no",
        dataloader_pin_memory=False,
        seed=3,
        **{**defaults, **arguments},
    )
    trainer = Trainer(model=model, args=settings, train_dataset=Images(), eval_dataset=Images(), callbacks=callbacks)
    trainer.train()
    return trainer


def test_evaluation_sees_exact_statistics(tmp_path):
    callback = ours.Recalibrate(until=None)
    trainer = train(resnet(), [callback], tmp_path)
    assert len(trainer.seen) == 2
    assert all(close(*pair) for pair in trainer.seen)
    assert exact(trainer.model)
    assert callback.result.samples == len(DATA)
    assert (callback.history[0].needed, callback.history[-1].needed) == (True, False)
    assert callback.history[-1].when == "end"
    plain = train(resnet(), [], tmp_path)
    assert not any(close(*pair, 0.01) for pair in plain.seen)
    for a, b in zip(trainer.model.parameters(), plain.model.parameters(), strict=True):
        assert torch.equal(a, b)


def test_in_the_middle_of_an_epoch_with_accumulated_gradients(tmp_path):
    settings = {"eval_strategy": "steps", "eval_steps": 1, "gradient_accumulation_steps": 2}
    trainer = train(resnet(), [ours.Recalibrate(until=None)], tmp_path, **settings)
    plain = train(resnet(), [], tmp_path, **settings)
    assert len(trainer.seen) == len(plain.seen) == trainer.state.global_step == 6
    assert all(close(*pair) for pair in trainer.seen)
    for a, b in zip(trainer.model.parameters(), plain.model.parameters(), strict=True):
        assert torch.equal(a, b)


def test_checkpoints_hold_exact_statistics(tmp_path):
    callback = ours.Recalibrate(until=None, at="save")
    train(resnet(), [callback], tmp_path, save_strategy="epoch", eval_strategy="no")
    for folder in tmp_path.glob("checkpoint-*"):
        assert exact(hf.ResNetForImageClassification.from_pretrained(folder))


def test_frozen_while_the_trainer_calls_train(tmp_path):
    model = resnet()
    batchnorm.recalibrate(model, DATA.split(32))
    before, modes = statistics(model), []
    model.register_forward_pre_hook(lambda m, args: modes.append(m.training))
    train(model, [ours.Freeze(affine=True)], tmp_path, eval_strategy="no")
    assert modes == [True] * 10
    assert all(torch.equal(a, b) for a, b in zip(statistics(model), before, strict=True))
    assert all((m.weight == 1).all() and not m.weight.requires_grad for m in layers(model))
    assert torch.equal(model.train()(DATA).logits, model.eval()(DATA).logits)


def test_frozen_parts_until_a_step(tmp_path):
    model = resnet()
    train(model, [ours.Freeze(["resnet.embedder"], until_step=4)], tmp_path, eval_strategy="no")
    inside = layers(model.resnet.embedder)
    assert [int(m.num_batches_tracked) for m in inside] == [6] * len(inside)
    assert {int(m.num_batches_tracked) for m in layers(model.resnet.encoder)} == {10}
    with pytest.raises(BatchNormError, match="there is no 'nowhere'"):
        train(resnet(), [ours.Freeze(["nowhere"])], tmp_path)


def test_watch_records_every_step(tmp_path):
    watch = ours.Watch(to=tmp_path / "run.jsonl", every=2)
    train(resnet(), [watch], tmp_path, eval_strategy="no")
    run = watch.report.run
    assert (run.closed, run.steps, run.forwards, run.planned) == (True, 10, 10, 10)
    lines = [json.loads(line) for line in (tmp_path / "run.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6, 8, 10]
    names = {name for name, m in resnet().named_modules() if isinstance(m, nn.BatchNorm2d)}
    assert set(lines[-1]["layers"]) == names


def _ranks(rank, ranks, folder):
    warnings.simplefilter("ignore")
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(ranks), LOCAL_RANK=str(rank), ACCELERATE_USE_CPU="true")
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT="29513")
    callback = ours.Recalibrate(until=None)
    trainer = train(resnet(), [callback], folder, num_train_epochs=1, ddp_backend="gloo")
    weights = [p.detach() for p in trainer.model.parameters()]
    return (trainer.args.world_size, callback.result.samples), statistics(trainer.model), weights


def test_two_processes_count_every_sample_once(tmp_path):
    one, other = world.run(_ranks, 2, str(tmp_path), timeout=60.0)
    assert one[0] == other[0] == (2, 96)
    assert all(torch.equal(a, b) for a, b in zip(one[1], other[1], strict=True))
    model = resnet()
    with torch.no_grad():
        for parameter, value in zip(model.parameters(), one[2], strict=True):
            parameter.copy_(value)
    assert not close(statistics(model), one[1])
    batchnorm.recalibrate(model, DATA.split(32))
    assert close(statistics(model), one[1], 1e-4)


def test_callbacks_are_the_trainers_and_can_be_copied():
    for callback in (ours.Watch(every=7), ours.Recalibrate(max_samples=9), ours.Freeze(["net"])):
        assert isinstance(callback, hf.TrainerCallback)
        for other in (copy.deepcopy(callback), pickle.loads(pickle.dumps(callback))):
            assert other.__dict__ == callback.__dict__
    with pytest.raises(BatchNormError, match="at must be some of 'evaluate', 'save', 'end'"):
        ours.Recalibrate(at="validation")
