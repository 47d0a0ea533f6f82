"""Momentum through dicts, partials, classes and configs."""

WRONG = {
    "BN403": [
        (
            """\
BN_KW = dict(momentum=0.997, eps=1e-3)
class Block(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.bn = nn.BatchNorm2d(c, **BN_KW)
    def forward(self, x):
        return self.bn(x)
""",
            "warning",
        ),
        (
            """\
NORM = {"eps": 1e-3, "momentum": 0.99}
class Block(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.bn = nn.BatchNorm2d(c, **NORM)
    def forward(self, x):
        return self.bn(x)
""",
            "warning",
        ),
        (
            """\
def norm(c):
    settings = {"eps": 1e-3}
    settings["momentum"] = 0.95
    return nn.BatchNorm2d(c, **settings)
""",
            "warning",
        ),
        (
            """\
BASE = dict(eps=1e-3)
KW = {**BASE, "momentum": 0.99}
class Block(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.bn = nn.BatchNorm2d(c, **KW)
    def forward(self, x):
        return self.bn(x)
""",
            "warning",
        ),
        (
            """\
BASE = dict(eps=1e-3)
KW = dict(BASE, momentum=0.99)
class Block(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.bn = nn.BatchNorm2d(c, **KW)
    def forward(self, x):
        return self.bn(x)
""",
            "warning",
        ),
        (
            """\
BASE = dict(eps=1e-3)
KW = BASE | dict(momentum=0.99)
class Block(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.bn = nn.BatchNorm2d(c, **KW)
    def forward(self, x):
        return self.bn(x)
""",
            "warning",
        ),
        (
            """\
import functools
KW = dict(momentum=0.99)
Norm = functools.partial(nn.BatchNorm2d, **KW)
def block(c):
    return nn.Sequential(nn.Conv2d(3, c, 3), Norm(c))
""",
            "warning",
        ),
        (
            """\
class Block(nn.Module):
    BN = dict(momentum=0.99)
    def __init__(self, c):
        super().__init__()
        self.bn = nn.BatchNorm2d(c, **self.BN)
    def forward(self, x):
        return self.bn(x)
""",
            "warning",
        ),
        (
            """\
class Config:
    bn_momentum = 0.9
    width = 3
cfg = Config()
class Block(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.bn = nn.BatchNorm2d(c, momentum=cfg.bn_momentum)
    def forward(self, x):
        return self.bn(x)
""",
            "warning",
        ),
        (
            """\
from dataclasses import dataclass
@dataclass
class Config:
    bn_momentum: float = 0.9
    width: int = 3
class Block(nn.Module):
    def __init__(self, c, cfg: Config):
        super().__init__()
        self.bn = nn.BatchNorm2d(c, momentum=cfg.bn_momentum)
    def forward(self, x):
        return self.bn(x)
net = Block(3, Config())
""",
            "warning",
        ),
        (
            """\
from types import SimpleNamespace
cfg = SimpleNamespace(bn_momentum=0.99, c=3)
class Block(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.bn = nn.BatchNorm2d(c, momentum=cfg.bn_momentum)
    def forward(self, x):
        return self.bn(x)
""",
            "warning",
        ),
        (
            """\
def norm(c, **kw):
    return nn.BatchNorm2d(c, **kw)
layers = nn.Sequential(nn.Conv2d(3, 4, 3), norm(4, momentum=0.99))
""",
            "warning",
        ),
        (
            """\
class Block(nn.Module):
    def __init__(self, c, norm_kwargs=None):
        super().__init__()
        self.bn = nn.BatchNorm2d(c, **norm_kwargs)
    def forward(self, x):
        return self.bn(x)
net = Block(3, dict(momentum=0.99))
""",
            "warning",
        ),
        (
            """\
def f(c):
    kw = dict(eps=1e-3)
    kw.update(momentum=0.99)
    return nn.BatchNorm2d(c, **kw)
""",
            "warning",
        ),
        (
            """\
CONFIG = {"bn": {"momentum": 0.99, "eps": 1e-5}, "lr": 0.1}
class Block(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.bn = nn.BatchNorm2d(c, **CONFIG["bn"])
    def forward(self, x):
        return self.bn(x)
""",
            "warning",
        ),
        (
            """\
CONFIG = {"bn_momentum": 0.99, "lr": 0.1}
class Block(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.bn = nn.BatchNorm2d(c, momentum=CONFIG["bn_momentum"])
    def forward(self, x):
        return self.bn(x)
""",
            "warning",
        ),
        (
            """\
class Block(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.kw = {"momentum": 0.99, "affine": True}
        self.bn = nn.BatchNorm2d(c, **self.kw)
    def forward(self, x):
        return self.bn(x)
""",
            "warning",
        ),
        (
            """\
CONFIG = {"bn_momentum": 0.99, "lr": 0.1}
class Block(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.bn = nn.BatchNorm2d(c, momentum=CONFIG.get("bn_momentum", 0.1))
    def forward(self, x):
        return self.bn(x)
""",
            "warning",
        ),
    ],
}
RIGHT = [
    """\
BN_KW = dict(momentum=0.003, eps=1e-3)
class Block(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.bn = nn.BatchNorm2d(c, **BN_KW)
    def forward(self, x):
        return self.bn(x)
""",
    """\
NORM = {"num_groups": 3, "num_channels": 9}
opt_kw = dict(momentum=0.9, lr=0.1)
class M(nn.Module):
    def __init__(self):
        super().__init__()
        self.n = nn.GroupNorm(**NORM)
        self.bn = nn.BatchNorm2d(3)
    def forward(self, x):
        return self.n(self.bn(x))
opt = optim.SGD(M().parameters(), **opt_kw)
""",
    """\
BASE = dict(momentum=0.99)
KW = {**BASE, "momentum": 0.1}
class Block(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.bn = nn.BatchNorm2d(c, **KW)
    def forward(self, x):
        return self.bn(x)
""",
    """\
def f(c, **kw):
    return nn.BatchNorm2d(c, **kw)
f(3, momentum=0.1)
optim.SGD(f(3).parameters(), momentum=0.9, lr=1)
""",
    """\
OPT = dict(momentum=0.9, lr=0.1)
BN = dict(momentum=0.1)
class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.bn = nn.BatchNorm2d(3, **BN)
    def forward(self, x):
        return self.bn(x)
opt = optim.SGD(Block().parameters(), **OPT)
""",
    """\
CONFIG = {"bn_momentum": 0.99}
class Block(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.bn = nn.BatchNorm2d(c, momentum=1 - CONFIG["bn_momentum"])
    def forward(self, x):
        return self.bn(x)
""",
    """\
class Block(nn.Module):
    def __init__(self, c, **kw):
        super().__init__()
        self.bn = nn.BatchNorm2d(c, **kw)
    def forward(self, x):
        return self.bn(x)
""",
    """\
class Config:
    momentum = 0.9
    bn_momentum = 0.1
cfg = Config()
opt = optim.SGD(Net().parameters(), cfg.momentum)
class Block(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.bn = nn.BatchNorm2d(c, momentum=cfg.bn_momentum)
    def forward(self, x):
        return self.bn(x)
""",
    """\
def f(c):
    kw = dict(momentum=0.1)
    return nn.BatchNorm2d(c, **kw)
def g(ps):
    kw = dict(momentum=0.9)
    return optim.SGD(ps, lr=1, **kw)
""",
    """\
BASE = dict(momentum=0.99)
KW = dict(BASE, momentum=0.01)
class Block(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.bn = nn.BatchNorm2d(c, **KW)
    def forward(self, x):
        return self.bn(x)
""",
]
