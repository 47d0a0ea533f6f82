"""Random small graphs: folded equals unfolded on inputs the fold never saw, or the layer is left with a reason."""

import copy

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import batchnorm
from batchnorm.models import batch_norm_layers, fold
from tests.fuzzing import fuzz
from tests.models.test_fold import trained

# As many positions as channels: what is told apart by size alone is told apart wrongly.
SIDE = CHANNELS = 4


class Graph(nn.Module):
    """Operations in a row over a list of values of shape (N, 4, 4, 4), each from an earlier value."""

    def __init__(self, plan, branch):
        super().__init__()
        self.branch = branch
        self.parts = nn.ModuleList()
        self.rows = []
        for kind, source, other, *choice in plan:
            if kind == "again" and len(self.parts):
                self.rows.append(("module", source, other, other % len(self.parts)))
            elif kind in ("relu", "add", "transpose", "read"):
                self.rows.append((kind, source, other, None))
            elif kind != "again":
                self.parts.append(MAKERS[kind](*choice))
                self.rows.append(("module", source, other, len(self.parts) - 1))

    def forward(self, x):
        if self.branch and x.abs().sum() < 0:
            return x
        values = [x]
        for kind, source, other, part in self.rows:
            a, b = (values[-1 - index % min(len(values), 3)] for index in (source, other))
            if kind == "module":
                values.append(self.parts[part](a))
            elif kind == "relu":
                values.append(torch.relu(a))
            elif kind == "add":
                values.append(a + b)
            elif kind == "transpose":
                values.append(a.transpose(1, 3))
            else:
                held = [p for m in self.parts for p in m.parameters(recurse=False)]
                values.append(a + held[other % len(held)].sum() if held else a)
        return values[-1], values[-2 % len(values)]


def conv(size, groups, flag, word):
    return nn.Conv2d(CHANNELS, CHANNELS, size, padding=size // 2, groups=groups, bias=flag, padding_mode=word)


def transposed(size, groups, flag, word):
    return nn.ConvTranspose2d(CHANNELS, CHANNELS, size, padding=size // 2, groups=groups, bias=flag)


def linear(size, groups, flag, word):
    return nn.Linear(SIDE, SIDE, bias=flag)


def stock(size, groups, flag, word):
    return nn.BatchNorm2d(CHANNELS, affine=flag)


def ours(size, groups, flag, word):
    return batchnorm.BatchNorm2d(CHANNELS, activation="relu" if groups == 2 else None, bias=flag)


def last(size, groups, flag, word):
    return batchnorm.BatchNorm(CHANNELS, channel_axis=-1)


def identity(size, groups, flag, word):
    return nn.Dropout() if flag else nn.Identity()


MAKERS = {
    "conv": conv, "transposed": transposed, "linear": linear, "stock": stock, "ours": ours, "last": last,
    "identity": identity,
}  # fmt: skip
KINDS = (*MAKERS, "stock", "relu", "add", "transpose", "again", "read")
PADDING = st.sampled_from(["refuse", "explicit"])
ROWS = st.tuples(
    st.sampled_from(KINDS),
    st.sampled_from([0, 0, 0, 0, 1, 2]),
    st.integers(0, 5),
    st.sampled_from([1, 3]),
    st.sampled_from([1, 2, 4]),
    st.booleans(),
    st.sampled_from(["zeros", "reflect", "circular"]),
)


def check(plan, branch, padding):
    torch.manual_seed(0)
    model = trained(Graph(plan, branch))
    names = set(batch_norm_layers(model))
    if not names:
        return 0, 0
    before = copy.deepcopy(model.state_dict())
    result = fold(model, torch.randn(2, 4, 4, 4, dtype=torch.float64), padding=padding, timing=0)
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    with torch.no_grad():
        for n in (2, 5):
            x = torch.randn(n, 4, 4, 4, dtype=torch.float64)
            for was, now in zip(model(x), result.model(x), strict=True):
                scale = float(was.abs().max()) + 1e-6
                assert float((was - now).abs().max()) <= 1e-8 * scale
    assert set(result.left) <= names
    assert all(result.left.values())
    gone = names - set(result.left)
    assert not gone & set(batch_norm_layers(result.model))
    return len(gone), len(names)


@fuzz(1200)
@given(plan=st.lists(ROWS, min_size=2, max_size=9), branch=st.booleans(), padding=PADDING)
def test_folded_equals_unfolded(plan, branch, padding):
    check(plan, branch, padding)


CHAINS = st.lists(
    st.sampled_from(["conv", "stock", "ours", "last", "linear", "transposed", "identity", "relu", "again"]),
    min_size=3,
    max_size=8,
)


@fuzz(600)
@given(kinds=CHAINS, groups=st.sampled_from([1, 2, 4]), flag=st.booleans(), padding=PADDING)
def test_chains(kinds, groups, flag, padding):
    plan = [(kind, 0, index, 3, groups, flag, "zeros") for index, kind in enumerate(kinds)]
    gone, _ = check(plan, False, padding)
    alone = kinds.count("conv") == kinds.count("stock") == 1 and "again" not in kinds
    if alone and kinds.index("stock") == kinds.index("conv") + 1:
        assert gone >= 1
