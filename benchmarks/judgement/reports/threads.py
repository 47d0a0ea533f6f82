"""Twenty public reports, each with the cause and the solution that its thread gives, rebuilt in a few lines.

Written before anything was run on them. `tool` is what its author would have called: `diagnose` on the model that
misbehaves, `watch` on the training run, `inspect` on the file, `lint` on the code.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from batchnorm.models import batch_norm_layers
from judgement.reports.pieces import accuracy, batches, network, train


@dataclass
class Thread:
    """One report."""

    address: str
    cause: str
    answer: str
    tool: str
    build: Callable[[], dict[str, Any]]


THREADS: list[Thread] = []


def report(address: str, cause: str, answer: str, tool: str = "diagnose") -> Callable[[Any], Any]:
    """Enter a function in the list."""

    def enter(build: Callable[[], dict[str, Any]]) -> Callable[[], dict[str, Any]]:
        THREADS.append(Thread(address, cause, answer, tool, build))
        return build

    return enter


def told(model: nn.Module, **more: Any) -> dict[str, Any]:
    """What `diagnose` is given."""
    return {"model": model.eval(), "loader": batches(), "metric": accuracy, **more}


def fresh(model: nn.Module) -> nn.Module:
    """Statistics at 0 and 1."""
    for layer in model.modules():
        if isinstance(layer, nn.modules.batchnorm._BatchNorm):
            layer.reset_running_stats()
    return model


@report(
    "https://github.com/hiwonjoon/tf-frrn/issues/2",
    "the moving mean and variance were never updated, nor saved: evaluation uses their initial values",
    "update them in training and train again, or normalise with the batch until then",
    "inspect",
)
def never_updated() -> dict[str, Any]:
    return {"state": fresh(train(network(), batches(), 4)).state_dict()}


@report(
    "https://github.com/facebookresearch/higher/issues/55",
    "the forward goes through a functional copy of the model: the running statistics of the original never move",
    "evaluate with the batch's statistics, or update those of the original",
)
def functional_copy() -> dict[str, Any]:
    model = network().train()
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    for _ in range(6):
        for x, y in batches():
            state = {**dict(model.named_parameters()), **{k: v.clone() for k, v in model.named_buffers()}}
            optimizer.zero_grad()
            functional.cross_entropy(torch.func.functional_call(model, state, (x,)), y).backward()
            optimizer.step()
    return told(model)


@report(
    "https://github.com/kdexd/virtex/issues/16",
    "the backbone is frozen, but train() lets its statistics move while the linear head is trained",
    "eval() on the backbone",
    "watch",
)
def linear_probe() -> dict[str, Any]:
    backbone = train(network(), batches(), 4)[:-1]
    model = nn.Sequential(backbone.requires_grad_(False), nn.Linear(32, 10))
    shifted = batches(change=lambda x: 1.5 * x - 0.5)
    head = torch.optim.Adam(model[1].parameters(), 3e-3)
    return {"model": model, "optimizer": head, "run": lambda: train(model, shifted, 4, optimizer=head)}


@report(
    "https://github.com/Cadene/pretrained-models.pytorch/issues/5",
    "momentum is 0: the statistics do not move when the model is trained on other data",
    "give the layers torch's momentum of 0.1",
)
def momentum_zero() -> dict[str, Any]:
    model = train(network(), batches(), 3)
    for layer in batch_norm_layers(model).values():
        layer.momentum = 0.0
    return told(train(model, batches(change=lambda x: 2 * x + 0.5), 5)) | {
        "loader": batches(change=lambda x: 2 * x + 0.5)
    }


@report(
    "https://github.com/pytorch/vision/issues/8250",
    "momentum 0.99 was taken from TensorFlow, where it is the weight of the old value",
    "0.01 in torch",
)
def keras_momentum() -> dict[str, Any]:
    return told(train(network(momentum=0.99), batches(6), 3)) | {"loader": batches(6)}


@report(
    "https://github.com/facebookresearch/SparseConvNet/issues/190",
    "a batch of one sample has no unbiased variance: NaN in running_var",
    "batches of more than one sample",
)
def batch_of_one() -> dict[str, Any]:
    model = train(
        nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 10)), batches()
    )
    with torch.no_grad():
        row = model[:2](batches()[0][0][:1])
        model[2].running_var.mul_(0.9).add_(0.1 * row.var(0))
    return told(model)


class BiasFree(nn.BatchNorm2d):
    """Divides by the standard deviation, subtracts nothing; has running_var alone in use."""

    def forward(self, x: Tensor) -> Tensor:
        """`(N, C, H, W)`."""
        if self.training:
            variance = x.var((0, 2, 3), correction=0)
            with torch.no_grad():
                self.running_var.mul_(0.9).add_(0.1 * variance)
        else:
            variance = self.running_var
        return x / (variance + self.eps).sqrt()[:, None, None] * self.weight[:, None, None]


@report(
    "https://github.com/LabForComputationalVision/bias_free_denoising/issues/3",
    "the trainer's sync_batchnorm replaced the custom layers by synchronised batch norm; the file is loaded into the "
    "custom ones again, which subtract no mean",
    "train without the conversion, or evaluate with the layers that were trained",
)
def replaced_in_training() -> dict[str, Any]:
    trained, model = train(network(), batches(), 5), network(normalised=BiasFree)
    model.load_state_dict(trained.state_dict())
    return told(model)


@report(
    "https://github.com/ankurhanda/tf-unet/issues/3",
    "the training data are not shuffled: batches of one kind, and statistics of the last ones",
    "shuffle before each epoch",
)
def not_shuffled() -> dict[str, Any]:
    images = torch.cat([x for x, _ in batches()])
    labels = torch.cat([y for _, y in batches()])
    order = labels.argsort(stable=True)
    ordered = list(zip(images[order].split(32), labels[order].split(32), strict=True))
    return told(train(network(), ordered, 6, shuffled=False)) | {"loader": ordered}


@report(
    "https://github.com/jfzhang95/pytorch-deeplab-xception/issues/140",
    "freeze_bn() puts the layers in eval once; train() at the start of every epoch undoes it",
    "freeze again after every train()",
    "watch",
)
def unfrozen_by_train() -> dict[str, Any]:
    model = train(network(), batches(), 3)
    for layer in batch_norm_layers(model).values():
        layer.eval()
        layer.requires_grad_(False)
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], 1e-3)
    data = batches(8, lambda x: 1.3 * x)[:30]
    return {"model": model, "optimizer": optimizer, "run": lambda: train(model, data, 3, optimizer=optimizer)}


@report(
    "https://github.com/chemprop/chemprop/pull/952",
    "batch norm was frozen by requires_grad = False alone; its running statistics went on moving",
    "bn.eval() beside it",
    "watch",
)
def frozen_by_gradients() -> dict[str, Any]:
    model = train(network(), batches(), 3)
    for layer in batch_norm_layers(model).values():
        layer.requires_grad_(False)
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], 1e-3)
    data = batches(32, lambda x: 0.6 * x + 0.2)
    return {"model": model, "optimizer": optimizer, "run": lambda: train(model, data, 3, optimizer=optimizer)}


@report(
    "https://github.com/HuiZeng/Grid-Anchor-based-Image-Cropping-Pytorch/issues/2",
    "the test function calls eval() and nobody calls train() again: from the second epoch on, eval mode",
    "net.train() at the start of each epoch, or freeze batch norm from the first",
    "watch",
)
def stays_in_eval() -> dict[str, Any]:
    model = network().train()
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)

    def test(model: nn.Module) -> None:
        model.eval()
        with torch.no_grad():
            for x, _ in batches(test=True):
                model(x)

    keep = {"prepare": lambda model: model, "after_epoch": test, "optimizer": optimizer}
    return {"model": model, "optimizer": optimizer, "run": lambda: train(model, batches(), 4, **keep)}


@report(
    "https://github.com/bearpaw/pytorch-pose/issues/4",
    "training images are clamped to [0, 1] after the mean was subtracted, validation images are not",
    "clamp before the normalisation, on both sides",
)
def clamped_in_training() -> dict[str, Any]:
    model = train(network(), batches(change=lambda x: (x - 0.4).clamp(0, 1)), 6)
    return told(
        model,
        loader=batches(change=lambda x: (x - 0.4).clamp(0, 1)),
        eval_loader=batches(change=lambda x: x - 0.4, test=True),
    )


@report(
    "https://github.com/boschresearch/OASIS/issues/21",
    "an average of the weights is used; the statistics were not those of the averaged network",
    "forward passes in train mode before it is tested",
)
def averaged_weights() -> dict[str, Any]:
    model = network()
    average = copy.deepcopy(model)

    def follow(model: nn.Module) -> None:
        with torch.no_grad():
            for mine, theirs in zip(average.parameters(), model.parameters(), strict=True):
                mine.lerp_(theirs, 0.05)

    train(model, batches(), 8, after_step=follow)
    return told(average)


@report(
    "https://github.com/itijyou/ademxapp/issues/4",
    "eps was raised from 1e-5 to 1e-3 after the model had been trained",
    "1e-5 again",
)
def larger_eps() -> dict[str, Any]:
    model = train(network(), batches(change=lambda x: x * 0.01), 6)
    for layer in batch_norm_layers(model).values():
        layer.eps = 1e-3
    return told(model, loader=batches(change=lambda x: x * 0.01))


@report(
    "https://github.com/TengdaHan/DPC/issues/21",
    "track_running_stats is False: evaluation normalises with the batch it happens to be in",
    "track_running_stats=True performs better",
)
def no_statistics() -> dict[str, Any]:
    model = train(network(track_running_stats=False), batches(), 6)
    return told(model, eval_loader=batches(2, test=True))


@report(
    "https://github.com/torch/nn/issues/994",
    "the test script loads its input in another way than training did",
    "load it in the same way",
)
def other_input() -> dict[str, Any]:
    return told(train(network(), batches(), 6), eval_loader=batches(change=lambda x: x * 255, test=True))


@report(
    "https://github.com/pytorch/tutorials/issues/1624",
    "test() calls model.eval(), train() never calls model.train(): all epochs but the first train in eval mode",
    "model.train() at the start of train()",
    "lint",
)
def tutorial() -> dict[str, Any]:
    return {
        "code": """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.stack = nn.Sequential(nn.Linear(784, 512), nn.BatchNorm1d(512), nn.ReLU(), nn.Linear(512, 10))

    def forward(self, x):
        return self.stack(x.flatten(1))

net = Net()
loss_of = nn.CrossEntropyLoss()
optimizer = torch.optim.SGD(net.parameters(), lr=1e-3)

def train(loader, net, loss_of, optimizer):
    for x, y in loader:
        loss = loss_of(net(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

def test(loader, net):
    net.eval()
    right = 0
    with torch.no_grad():
        for x, y in loader:
            right += (net(x).argmax(1) == y).sum().item()
    print(right)

for epoch in range(5):
    train(train_loader, net, loss_of, optimizer)
    test(test_loader, net)
"""
    }


@report(
    "https://github.com/samet-akcay/ganomaly/issues/47",
    "the test function leaves the generator in train mode: its result depends on the order of the test data, and its "
    "statistics move",
    "netg.eval() in the test function",
    "lint",
)
def tested_in_train_mode() -> dict[str, Any]:
    return {
        "code": """
import torch
from torch import nn

class Generator(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Conv2d(3, 64, 4, 2, 1), nn.BatchNorm2d(64), nn.LeakyReLU(0.2),
                                 nn.ConvTranspose2d(64, 3, 4, 2, 1), nn.Tanh())

    def forward(self, x):
        return self.net(x)

class Anomaly:
    def __init__(self, loaders):
        self.loaders = loaders
        self.generator = Generator()
        self.optimizer = torch.optim.Adam(self.generator.parameters(), lr=2e-4)

    def train_one_epoch(self):
        self.generator.train()
        for x, _ in self.loaders["train"]:
            self.optimizer.zero_grad()
            (self.generator(x) - x).abs().mean().backward()
            self.optimizer.step()

    def test(self):
        scores = []
        with torch.no_grad():
            for x, _ in self.loaders["test"]:
                scores.append((self.generator(x) - x).square().mean((1, 2, 3)))
        return torch.cat(scores)

    def run(self, epochs):
        for _ in range(epochs):
            self.train_one_epoch()
            print(self.test().mean())
"""
    }


@report(
    "https://github.com/JiahuiYu/slimmable_networks/issues/35",
    "the statistics are reset for calibration, but the model stays in eval mode, so they stay at 0 and 1",
    "model.train() for the calibration",
)
def calibrated_in_eval() -> dict[str, Any]:
    model = fresh(train(network(), batches(), 6)).eval()
    with torch.no_grad():
        for x, _ in batches():
            model(x)
    return told(model)


@report(
    "https://github.com/pytorch/pytorch/issues/60624",
    "the buffers were assigned by hand, and running_var was given the running mean",
    "assign each its own",
)
def wrong_buffer() -> dict[str, Any]:
    model = train(network(), batches(), 6)
    model[1].running_var = model[1].running_mean.clone()
    return told(model)
