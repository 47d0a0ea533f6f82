"""Wrong calls as users make them. Type checkers read this file; nothing runs it."""

import torch
from torch import Tensor, nn

import batchnorm
from batchnorm.interop.trainers import lightning, transformers
from batchnorm.layers import EMA, Ghost, Mixture, Policy, Renorm, Sync

model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
loader = [torch.randn(8, 3)]

# Names that do not exist.
batchnorm.recalibrat(model, loader)  # mistake
batchnorm.nope  # mistake
batchnorm.layers.Renormalise()  # mistake
batchnorm.kernels.uses("reference")  # mistake
batchnorm.import_module("torch")  # mistake
from batchnorm import Any  # mistake
from batchnorm.models import convert_all  # mistake

# Words that are none.
batchnorm.convert(model, "renormalise")  # mistake
batchnorm.convert(model, "Debiased")  # mistake
batchnorm.convert(model, custom="skip")  # mistake
batchnorm.BatchNorm2d(8, method="gohst")  # mistake
batchnorm.BatchNorm2d(8, activation="tanh")  # mistake
batchnorm.LazyBatchNorm2d(method="sink")  # mistake
batchnorm.BatchNorm2d(8, momentum="auto")  # mistake
batchnorm.adapt(model, loader, "batches")  # mistake
batchnorm.adapt(model, loader, if_sorted="raise")  # mistake
batchnorm.adapt(model, loader, outputs="logits")  # mistake
batchnorm.recalibrate(model, loader, upstream="batches")  # mistake
batchnorm.recalibrate(model, loader, variance="unbiased")  # mistake
batchnorm.fold(model, loader[0], rest="leave")  # mistake
batchnorm.fold(model, loader[0], padding="zeros")  # mistake
Policy(too_few="skip")  # mistake
Policy(nonfinite="ignore")  # mistake
Policy(weights="precision")  # mistake
Ghost(16, update="pool")  # mistake
Mixture(weight=0.1, per="sample")  # mistake
Renorm(schedule="linear")  # mistake
EMA(correction=2)  # mistake
batchnorm.interop.rescale_variance(1.0, 8, "biased", "unbiassed")  # mistake
batchnorm.interop.state_from({}, "detectron")  # mistake
batchnorm.interop.variance_from([1.0], "stddev")  # mistake
batchnorm.interop.rules({}, "keep")  # mistake
batchnorm.kernels.use("cuda")  # mistake
lightning.Recalibrate(at="test")  # mistake
transformers.Recalibrate(at=["epoch"])  # mistake

# Misspelt keywords.
batchnorm.recalibrate(model, loader, up_stream="batch")  # mistake
batchnorm.convert(model, inferance=Mixture(weight=0.1))  # mistake
batchnorm.BatchNorm2d(8, estimater=EMA(0.9))  # mistake
batchnorm.freeze(model, afine=True)  # mistake
batchnorm.diagnose(model, loader, metrics=None)  # mistake
EMA(debiased=True)  # mistake

# The wrong kind of thing.
batchnorm.recalibrate(loader, model)  # mistake
batchnorm.recalibrate(model, None)  # mistake
batchnorm.diagnose(model, None)  # mistake
batchnorm.diagnose(model, loader, "accuracy")  # mistake
batchnorm.freeze([model])  # mistake
batchnorm.pause(model.state_dict())  # mistake
batchnorm.BatchNorm2d("8")  # mistake
batchnorm.BatchNorm2d(8, momentum=[0.1])  # mistake
batchnorm.BatchNorm2d(8, estimator=Sync())  # mistake
batchnorm.BatchNorm2d(8, extent=32)  # mistake
batchnorm.convert(model, policy="skip")  # mistake
batchnorm.inspect_checkpoint(model.state_dict())  # mistake
batchnorm.lint(3)  # mistake
batchnorm.watch(model, every="10")  # mistake
batchnorm.bank(model, 3)  # mistake
batchnorm.forward_together(model, 3)  # mistake
batchnorm.masked(model, lengths=[5, 4])  # mistake

# A result used as something else.
tensor: Tensor = batchnorm.recalibrate(model, loader)  # mistake
flag: bool = batchnorm.diagnose(model, loader)  # mistake
linear: nn.Linear = batchnorm.freeze(model)  # mistake
block: nn.ModuleList = batchnorm.convert(model, "debiased")  # mistake
layer: nn.BatchNorm2d = batchnorm.to_stock(model)  # mistake
batchnorm.recalibrate(model, loader).drift  # mistake
batchnorm.fold(model, loader[0])(loader[0])  # mistake
batchnorm.methods()["gohst"]  # mistake
batchnorm.adapt(model, loader).reset()  # mistake
with batchnorm.pause(model) as paused:
    still: nn.Linear = paused  # mistake
