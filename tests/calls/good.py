"""A small model, its data and its files: what the calls of the table are made with."""

import tempfile
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType

import torch
from torch import nn

import batchnorm

_PLACE = tempfile.TemporaryDirectory(prefix="batchnorm-calls-")
FOLDER = Path(_PLACE.name)


def network():
    """Two batch norm layers of torch's, in train mode."""
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 3), nn.BatchNorm2d(2), nn.Flatten()
    )


def ours():
    """The same with this package's layers."""
    return batchnorm.convert(network())


def drawn(*shape):
    """Numbers of a generator of their own."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def x():
    """A batch."""
    return drawn(8, 3, 6, 6)


def batches():
    """Tuples of images and labels."""
    return [(x(), torch.zeros(8, dtype=torch.long)) for _ in range(3)]


def metric(output, batch):
    """A number."""
    return output.mean()


def file(name, content):
    """A file with these bytes."""
    path = FOLDER / name
    path.write_bytes(content)
    return path


def checkpoint(name="good.pt"):
    """The state of the network in a file."""
    path = FOLDER / name
    if not path.exists():
        torch.save(network().state_dict(), path)
    return path


def source():
    """A Python file."""
    return file("train.py", b"import torch\nbn = torch.nn.BatchNorm2d(3)\n")


def libraries():
    """As much of the libraries that are not installed as the adapters inherit from, for `sys.modules`."""
    callback = type("Callback", (), {})
    act = type("BatchNormAct2d", (nn.BatchNorm2d,), {})
    held = {
        "lightning": {},
        "lightning.pytorch": {"Callback": callback},
        "transformers": {"TrainerCallback": callback},
        "timm": {},
        "timm.layers": {"BatchNormAct2d": act},
    }
    found = {}
    for name, values in held.items():
        found[name] = ModuleType(name)
        found[name].__dict__.update(values, __spec__=ModuleSpec(name, None))
    return found
