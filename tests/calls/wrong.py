"""What people pass by mistake, by the kind of the argument: a label each, and a function that makes it anew."""

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from tests.calls import good


class Odd(nn.Module):
    """The good model, with something of its own in its forward."""

    def __init__(self, does):
        super().__init__()
        self.net, self.does = good.network(), does

    def forward(self, x):
        return self.does(self.net(x))


def _raises(*_, **__):
    raise ZeroDivisionError("of the caller's own")


def _loader_that_raises():
    yield good.x()
    raise OSError("the disk is away")


def _spent():
    return (batch for batch in [])


def _without_values():
    with torch.device("meta"):
        return good.network()


class Words:
    """Neither a number nor a tensor."""


MODEL = {
    "None": lambda: None,
    "a name": lambda: "resnet18",
    "a number": lambda: 3,
    "a class": lambda: nn.BatchNorm2d,
    "a list of modules": lambda: [good.network(), good.network()],
    "a state dict": lambda: good.network().state_dict(),
    "a tensor": good.x,
    "a function": lambda: good.network,
    "a loader": lambda: good.batches(),
}
WITHOUT_LAYERS = {
    "without batch norm": lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()),
    "traced": lambda: torch.jit.trace(good.network().eval(), good.x()),
}
WITHOUT_VALUES = {"on the meta device": _without_values}
WITHOUT_SHAPES = {"that was never run": lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.LazyBatchNorm2d())}
# Wrong where the model is run.
RUN = {
    "raises": lambda: Odd(_raises).eval(),
    "float64": lambda: good.network().double(),
    "of other channels": lambda: nn.Sequential(nn.Conv2d(5, 4, 3), nn.BatchNorm2d(4)),
}
BATCHES = {
    "None": lambda: None,
    "a number": lambda: 8,
    "a path": lambda: "data/train",
    "one tensor": good.x,
    "one numpy array": lambda: good.x().numpy(),
    "a dataset": lambda: TensorDataset(good.x(), torch.zeros(8)),
    "one dict": lambda: {"x": good.x()},
    "the model": good.network,
    "a class": lambda: DataLoader,
    "a generator function": lambda: _spent,
    "an empty list": list,
    "a spent generator": _spent,
    "numpy batches": lambda: [good.x().numpy()] * 2,
    "numpy in tuples": lambda: [(good.x().numpy(), torch.zeros(8))] * 2,
    "labels first": lambda: [(torch.zeros(8, dtype=torch.long), good.x())] * 2,
    "uint8": lambda: [good.x().to(torch.uint8)] * 2,
    "integers": lambda: [good.x().long()] * 2,
    "float64": lambda: [good.x().double()] * 2,
    "float16": lambda: [good.x().half()] * 2,
    "complex": lambda: [good.x().to(torch.complex64)] * 2,
    "wrong channels": lambda: [good.drawn(8, 5, 6, 6)] * 2,
    "wrong rank": lambda: [good.drawn(8, 3)] * 2,
    "a scalar": lambda: [torch.tensor(1.0)] * 2,
    "a later batch of wrong channels": lambda: [good.x(), good.drawn(8, 5, 6, 6)],
    "without channels axis": lambda: [good.drawn(6, 6)] * 2,
    "None in it": lambda: [None, None],
    "words in it": lambda: ["a", "b"],
    "numbers in it": lambda: [1.0, 2.0],
    "empty tuples": lambda: [(), ()],
    "nested lists": lambda: [[[1.0, 2.0], [3.0, 4.0]]] * 2,
    "dicts of other names": lambda: [{"image": good.x()}] * 2,
    "dicts of missing names": lambda: [{}] * 2,
    "raises": _loader_that_raises,
    "on the meta device": lambda: [good.x().to("meta")] * 2,
    "not finite": lambda: [torch.full((8, 3, 6, 6), float("nan"))] * 2,
    "too small images": lambda: [good.drawn(8, 3, 1, 1)] * 2,
}
FUNCTION = {
    "a name": lambda: "accuracy",
    "a number": lambda: 3,
    "a tensor": good.x,
    "a class": lambda: Words,
}
CALLED = FUNCTION | {
    "raises": lambda: _raises,
    "takes nothing": lambda: lambda: 0.0,
    "takes four": lambda: lambda a, b, c, d: 0.0,
}
METRIC = CALLED | {
    "gives None": lambda: lambda output, batch: None,
    "gives a word": lambda: lambda output, batch: "good",
    "gives many values": lambda: lambda output, batch: torch.zeros(8),
    "gives an empty tensor": lambda: lambda output, batch: torch.zeros(0),
    "gives a complex number": lambda: lambda output, batch: 1j,
    "gives a dict": lambda: lambda output, batch: {"loss": 0.5},
    "a loss module": lambda: nn.CrossEntropyLoss(),
}
FLAG = {"a word": lambda: "yes", "a number": lambda: 2, "a list": list, "a tensor": lambda: torch.tensor(True)}
NUMBER = {
    "a number as a word": lambda: "0.5",
    "a word": lambda: "much",
    "a list": lambda: [0.5],
    "a tensor of many": lambda: torch.ones(3),
    "True": lambda: True,
    "NaN": lambda: float("nan"),
    "infinity": lambda: float("inf"),
    "a negative number": lambda: -1.0,
    "complex": lambda: 1j,
}
SHARE = NUMBER | {"above 1": lambda: 2.0, "percent": lambda: 90}
WHOLE = NUMBER | {
    "half": lambda: 2.5,
    "a negative integer": lambda: -3,
    "a float": lambda: 8.0,
    "a tuple": lambda: (8,),
}
WORD = {
    "an unknown word": lambda: "nonesuch",
    "an empty word": lambda: "",
    "a number": lambda: 3,
    "None": lambda: None,
    "a list": lambda: ["total"],
    "True": lambda: True,
    "a tensor": good.x,
}
PATH = {
    "None": lambda: None,
    "a number": lambda: 3,
    "a state dict": lambda: good.network().state_dict(),
    "a model": good.network,
    "bytes": lambda: b"x.pt",
    "a list": lambda: ["x.pt"],
    "an empty word": lambda: "",
}
FILE = PATH | {
    "nothing there": lambda: good.FOLDER / "none.pt",
    "a folder": lambda: good.FOLDER,
    "empty": lambda: good.file("empty.pt", b""),
    "text": lambda: good.file("notes.pt", b"it was a good run\n"),
    "another suffix": lambda: good.file("notes.txt", b"it was a good run\n"),
    "cut off": lambda: good.file("cut.pt", good.checkpoint().read_bytes()[:300]),
    "not readable": lambda: "/proc/self/mem",
    "in a file": lambda: good.checkpoint() / "x.pt",
    "with a null byte": lambda: "a\0b.pt",
    "too long": lambda: "x" * 5000,
}
NEW_FILE = PATH | {
    "a folder": lambda: good.FOLDER,
    "in no folder": lambda: good.FOLDER / "none" / "x.html",
    "not writable": lambda: "/proc/x.html",
    "in a file": lambda: good.checkpoint() / "x.html",
    "with a null byte": lambda: str(good.FOLDER / "a\0b.html"),
    "too long": lambda: good.FOLDER / ("x" * 300),
}
DEVICE = {
    "cuda": lambda: "cuda",
    "none such": lambda: "gpu",
    "a number": lambda: 0.5,
    "a list": lambda: ["cpu"],
    "a dtype": lambda: torch.float32,
    "True": lambda: True,
}
DTYPE = {
    "a word": lambda: "float32",
    "integers": lambda: torch.int64,
    "a class": lambda: float,
    "a tensor": good.x,
}
TENSOR = {
    "None": lambda: None,
    "numpy": lambda: good.x().numpy(),
    "a list": lambda: [[1.0, 2.0], [3.0, 4.0]],
    "a number": lambda: 1.0,
    "a word": lambda: "x",
    "a tuple": lambda: (good.x(), torch.zeros(8)),
}
IMAGES = TENSOR | {
    "uint8": lambda: good.x().to(torch.uint8),
    "integers": lambda: good.x().long(),
    "booleans": lambda: good.x() > 0,
    "complex": lambda: good.x().to(torch.complex64),
    "float64": lambda: good.x().double(),
    "wrong channels": lambda: good.drawn(8, 5, 6, 6),
    "wrong rank": lambda: good.drawn(8, 3),
    "one axis": lambda: good.drawn(3),
    "a scalar": lambda: torch.tensor(1.0),
    "on the meta device": lambda: good.x().to("meta"),
    "one value per channel": lambda: good.drawn(1, 3, 1, 1),
}
EXAMPLE = {
    "None": lambda: None,
    "numpy": lambda: good.x().numpy(),
    "a number": lambda: 3,
    "a word": lambda: "x",
    "a shape": lambda: (8, 3, 6, 6),
    "an empty tuple": tuple,
    "uint8": lambda: good.x().to(torch.uint8),
    "float64": lambda: good.x().double(),
    "wrong channels": lambda: good.drawn(8, 5, 6, 6),
    "wrong rank": lambda: good.drawn(8, 3),
    "two arguments": lambda: (good.x(), good.x()),
    "another name": lambda: {"image": good.x()},
    "a loader": lambda: DataLoader(TensorDataset(good.x()), 4),
    "on the meta device": lambda: good.x().to("meta"),
}
MASK = {
    "numpy": lambda: good.x().numpy()[:, 0] > 0,
    "a list": lambda: [True, False],
    "floats": lambda: good.x()[:, 0],
    "of other samples": lambda: torch.ones(5, dtype=torch.bool),
    "of other size": lambda: torch.ones(8, 4, 5, dtype=torch.bool),
    "with the channels": lambda: torch.ones(8, 3, 6, 6, dtype=torch.bool),
    "True": lambda: True,
    "a scalar": lambda: torch.tensor(True),
}
LENGTHS = {
    "a list": lambda: [5, 2],
    "floats": lambda: torch.ones(8),
    "of other samples": lambda: torch.ones(5, dtype=torch.long),
    "a number": lambda: 3,
    "of two axes": lambda: torch.ones(8, 2, dtype=torch.long),
    "booleans": lambda: torch.ones(8, dtype=torch.bool),
}
WEIGHTS = {
    "a list": lambda: [1.0, 2.0],
    "a number": lambda: 0.5,
    "of other samples": lambda: torch.ones(5),
    "negative": lambda: -torch.ones(8),
    "NaN": lambda: torch.full((8,), float("nan")),
    "complex": lambda: torch.ones(8, dtype=torch.complex64),
    "a scalar": lambda: torch.tensor(1.0),
}
NAMES = {
    "a number": lambda: 3,
    "unknown": lambda: ["nonesuch"],
    "an unknown word": lambda: "nonesuch",
    "numbers": lambda: [1],
    "modules": lambda: [good.network()],
    "True": lambda: True,
}
STATE = {
    "None": lambda: None,
    "a model": good.network,
    "a path": lambda: "x.pt",
    "a list": lambda: [good.x()],
    "a number": lambda: 3,
    "numpy in it": lambda: {"bn.weight": good.x().numpy()},
    "a checkpoint": lambda: {"epoch": 3, "state_dict": good.network().state_dict()},
    "numbers as names": lambda: {1: good.x()},
}
ANYTHING = {
    "None": lambda: None,
    "a number": lambda: 3,
    "a word": lambda: "nonesuch",
    "a list": lambda: [1],
    "a tensor": good.x,
}
CHOICE = {
    "a word": lambda: "ghost",
    "a number": lambda: 3,
    "a class": lambda: Words,
    "an object": Words,
    "True": lambda: True,
}
GROUP = {"a word": lambda: "gloo", "a number": lambda: 3, "a list": lambda: [0, 1]}
TENSOR_LIKE = {"a word": lambda: "x", "words": lambda: ["a", "b"], "a dict": lambda: {"a": 1}, "an object": Words}
