"""Ultralytics' models: found, measured, fused by either; a real trainer's averaged weights recalibrated."""

import copy
import warnings

import pytest
import torch
from PIL import Image

import batchnorm
from batchnorm.interop.trainers.ultralytics import Recalibrate
from tests.trainers.networks import exact, layers

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    pytest.importorskip("cv2")
    ultralytics = pytest.importorskip("ultralytics")
    tasks = pytest.importorskip("ultralytics.nn.tasks")
    from ultralytics.utils.torch_utils import ModelEMA

IMAGES = torch.rand(32, 3, 32, 32, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    model = tasks.ClassificationModel("yolo11n-cls.yaml", nc=3, verbose=False)
    batchnorm.recalibrate(model, IMAGES.split(8))
    return model.eval()


def test_recalibrated_and_diagnosed(model):
    assert len(layers(model)) == 39
    assert exact(model, lambda m: m(IMAGES))
    report = batchnorm.diagnose(model, list(IMAGES.split(16)), attribution=False)
    assert len(report.layers) == 39
    assert max(layer.drift for layer in report.layers.values()) < 1
    spoilt = copy.deepcopy(model)
    layers(spoilt)[3].running_mean.add_(5 * layers(spoilt)[3].running_var.sqrt())
    name = next(name for name, m in spoilt.named_modules() if m is layers(spoilt)[3])
    assert batchnorm.diagnose(spoilt, list(IMAGES.split(16)), attribution=False).layers[name].drift > 4


@pytest.mark.parametrize("method", [None, "debiased"])
def test_fused_by_either(model, method):
    subject = copy.deepcopy(model)
    if method is not None:
        batchnorm.convert(subject, method)
    expected = model(IMAGES)[0]
    folding = batchnorm.fold(subject, IMAGES)
    assert not folding.left
    assert not layers(folding.model)
    assert torch.allclose(folding.model(IMAGES)[0], expected, atol=1e-4)
    fused = subject.fuse(verbose=False)
    assert not layers(fused)
    assert torch.allclose(fused(IMAGES)[0], expected, atol=1e-4)


def test_a_detector():
    model = tasks.DetectionModel("yolo11n.yaml", nc=3, verbose=False)
    images = torch.rand(4, 3, 64, 64)
    assert len(batchnorm.recalibrate(model, images.split(2)).layers) == 81
    assert exact(model, lambda m: m(images))


def test_preprocessing_that_writes_into_the_batch():
    class Trainer:
        """As the detection trainer, whose images are bytes."""

        def preprocess_batch(self, batch):
            batch["img"] = batch["img"].float() / 255
            return batch

    model, trainer = tasks.ClassificationModel("yolo11n-cls.yaml", nc=3, verbose=False), Trainer()
    trainer.ema = ModelEMA(model)
    trainer.train_loader = [{"img": (IMAGES * 255).round().byte()}]
    Recalibrate(until=None)(trainer)
    assert exact(trainer.ema.ema, lambda m: m((IMAGES * 255).round() / 255))


@pytest.mark.filterwarnings("ignore")
def test_the_trainers_average(tmp_path):
    for kind in ("train", "val"):
        for label in ("a", "b"):
            folder = tmp_path / "data" / kind / label
            folder.mkdir(parents=True)
            for index in range(8):
                value = 60 + 15 * index + (40 if label == "b" else 0)
                Image.new("RGB", (32, 32), (value, 255 - value, index * 20)).save(folder / f"{index}.png")
    own, fixed, seen = Recalibrate(until=None), Recalibrate([{"img": IMAGES, "cls": IMAGES}], until=None), []
    yolo = ultralytics.YOLO("yolo11n-cls.yaml")
    yolo.add_callback("on_train_epoch_end", own)
    yolo.add_callback("on_train_epoch_end", fixed)
    # After validation, before the model is saved.
    yolo.add_callback("on_fit_epoch_end", lambda trainer: seen.append(exact(trainer.ema.ema, lambda m: m(IMAGES))))
    arguments = {"imgsz": 32, "epochs": 2, "batch": 8, "workers": 0, "device": "cpu", "plots": False, "verbose": False}
    yolo.train(data=str(tmp_path / "data"), project=str(tmp_path / "runs"), **arguments)
    assert own.result.samples == 16
    assert seen[:2] == [True, True]
