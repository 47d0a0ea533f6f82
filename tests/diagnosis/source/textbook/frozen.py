# ruff: noqa: E501
"""Parts of a network that are frozen by requires_grad, in the ways that parts are named, and for a phase of training."""

STEPS = """\
import itertools
def fit(net, loader, opt):
    net.train()
    for x, y in loader:
        opt.zero_grad(); F.cross_entropy(net(x), y).backward(); opt.step()
def score(net, loader):
    net.eval()
    with torch.no_grad():
        return sum((net(x).argmax(1) == y).sum().item() for x, y in loader)
class Stages(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8))
        self.trunk = nn.Sequential(nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8))
        self.top = nn.Linear(8, 2)
    def forward(self, x):
        return self.top(self.trunk(self.stem(x)).mean((2, 3)))
"""


def frozen(lines: str, after: str = "", made: str = "Stages()") -> str:
    """A script that freezes a part of what it loads, trains and tests."""
    inside = "\n    ".join(lines.splitlines())
    return f"""{STEPS}
def main(train, test, path):
    net = {made}
    net.load_state_dict(torch.load(path))
    {inside}
    opt = optim.SGD([p for p in net.parameters() if p.requires_grad], 0.1)
    for epoch in range(9):
        fit(net, train, opt)
        print(score(net, test))
    {after or "torch.save(net.state_dict(), path)"}
main([], [], 'net.pt')
"""


def each(over: str, line: str = "p.requires_grad = False", test: str = "") -> str:
    """A loop that freezes."""
    return f"for {over}:\n    " + (f"if {test}:\n        {line}" if test else line)


FOR_A_PHASE = """
opt = optim.SGD(net.parameters(), 0.1)
for epoch in range(2):
    fit(net, train, opt)
"""
STEPWISE = """\
def play(generator, judge, loader):
    g, d = optim.Adam(generator.parameters()), optim.Adam(judge.parameters())
    generator.train(), judge.train()
    for x, _ in loader:
        LOCKED = False
        g.zero_grad(); judge(generator(x)).mean().backward(); g.step()
        LOCKED = True
        d.zero_grad(); judge(x).mean().backward(); d.step()
play(Net(), Net(), [])
"""
SEQUENCE = "nn.Sequential(Net(), nn.ReLU(), nn.Linear(10, 2))"

LIGHTNING = """\
import pytorch_lightning as pl
class Probe(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.body = Net()
        self.top = nn.Linear(10, 2)
    LOADS
    def forward(self, x):
        with torch.no_grad():
            x = self.body(x)
        return self.top(x)
    def training_step(self, batch, _):
        x, y = batch
        return F.cross_entropy(self(x), y)
    def validation_step(self, batch, _):
        x, y = batch
        self.log('loss', F.cross_entropy(self(x), y))
    def configure_optimizers(self):
        return optim.SGD(self.top.parameters(), 0.1)
pl.Trainer().fit(Probe(), [])
"""
STEPWISE_PROBE = (
    LIGHTNING.replace("LOADS", "def load(self, path):\n        self.load_state_dict(torch.load(path))")
    .replace("with torch.no_grad():\n            x = self.body(x)\n        ", "")
    .replace(
        "        x, y = batch\n        return",
        "        x, y = batch\n        with torch.no_grad():\n            x = self.body(x)\n        return",
    )
)
CHOSEN = """\
class Trunk(nn.Module):
    @classmethod
    def small(cls, width=8):
        return cls(width)
    def __init__(self, width):
        super().__init__()
        self.bn = nn.BatchNorm2d(width)
    def forward(self, x):
        return self.bn(x)
class Whole(nn.Module):
    known = {'small': Trunk.small, 'plain': Trunk.small}
    def __init__(self, kind):
        super().__init__()
        self.trunk = MADE
        self.top = nn.Conv2d(8, 2, 1)
    def forward(self, x):
        return self.top(self.trunk(x))
"""
LISTS = """\
ends, rest = [], []
for name, p in net.named_parameters():
    if SKIPPED:
        print(name)
    elif 'top' in name:
        ends.append(p)
    else:
        rest.append(p)
opt = optim.SGD([{'params': rest, 'lr': 0.01}, {'params': ends}], lr=0.1)"""
FIRST_EPOCHS = """
def main(train, test, path, still):
    net = Stages()
    net.load_state_dict(torch.load(path))
    opt = optim.SGD(net.parameters(), 0.1)
    for epoch in range(9):
        if epoch < still:
            net.stem.eval()
            net.stem.requires_grad_(False)
        else:
            net.stem.train()
            net.stem.requires_grad_(True)
        fit(net, train, opt)
        print(score(net, test))
main([], [], 'net.pt', 3)
"""


def rate_of_zero(helper: str = "") -> str:
    """A script that gives a part a learning rate of 0."""
    groups = "[{'params': net.top.parameters()}, {'params': net.stem.parameters(), 'lr': 0.0}]"
    return helper + frozen("").replace("[p for p in net.parameters() if p.requires_grad]", groups)


def last_optimizer(lines: str) -> str:
    """A script whose optimizer is made in lines."""
    return frozen(lines).replace("    opt = optim.SGD([p for p in net.parameters() if p.requires_grad], 0.1)\n", "")


STILL = """\
def still(net):
    for m in net.modules():
        if isinstance(m, nn.BatchNorm2d):
            m.eval()
"""

WRONG = {
    "BN406": [
        (frozen(each("child in list(net.children())[:2]", "child.requires_grad_(False)")), "warning"),
        (frozen(each("child in [*net.children()][:-1]", each("p in child.parameters()").replace("\n", "\n    "))), "warning"),
        (frozen(each("p in list(net.parameters())[:-2]")), "warning"),
        (frozen("last = 2\nlayers = list(net.children())\n" + each("i in range(last)", "for p in layers[i].parameters(): p.requires_grad = False")), "warning"),
        (frozen(each("part in [net.top, net.stem]", "for p in part.parameters(): p.requires_grad = False")), "warning"),
        (frozen(each("p in itertools.chain(net.top.parameters(), net.trunk.parameters())")), "warning"),
        (frozen(each("p in list(net.top.parameters()) + list(net.stem.parameters())")), "warning"),
        (frozen(each("name in ('stem', 'trunk')", "getattr(net, name).requires_grad_(False)")), "warning"),
        (frozen(each("name, p in net.named_parameters()", "p.requires_grad = True\n    p.requires_grad = name.startswith('top')")), "warning"),
        (frozen(each("name, p in net.named_parameters()", "p.requires_grad = 'top' in name")), "warning"),
        (frozen(each("name, p in net.named_parameters()", "p.requires_grad_(False if 'stem' in name else True)")), "warning"),
        (frozen(each("name, p in net.named_parameters()", "p.requires_grad = True\n    if 'stem' in name:\n        p.requires_grad = False")), "warning"),
        (frozen(each("name, p in net.named_parameters()", "break", "'top' in name") + "\n    p.requires_grad = False"), "warning"),
        (frozen(each("name, p in net.named_parameters()", "continue", "'top' in name") + "\n    p.requires_grad = False"), "warning"),
        (frozen("free = False\n" + each("name, p in net.named_parameters()", "free = True", "'top' in name") + "\n    p.requires_grad = free"), "warning"),
        (frozen("LOCK = True\nif LOCK:\n    net.stem.requires_grad_(False)"), "warning"),
        (frozen("for p in net._modules['stem'].parameters(): p.requires_grad = 0"), "warning"),
        (frozen("for p in net[0].parameters(): p.requires_grad = False", made=SEQUENCE), "warning"),
        (frozen("for p in net[:-1].parameters(): p.requires_grad = False", made=SEQUENCE), "warning"),
        (frozen("part = net._modules['0']\npart.requires_grad_(False)", made=SEQUENCE), "warning"),
        (frozen("keep = {i: str(i) for i in range(3)}\n" + each("name, p in net.named_parameters()", test="name.split('.')[0] in keep")), "note"),
        (frozen("net.stem.requires_grad_(False)" + FOR_A_PHASE + "net.stem.requires_grad_(True)"), "note"),
        (frozen("net.stem.requires_grad_(False)", "net.requires_grad_(True)"), "note"),
        (
            frozen("net = nets(kind)(2, kind)").replace("main(train, test, path)", "main(train, test, path, kind='Probe')")
            + """
class Probe(nn.Module):
    def __init__(self, classes, kind):
        super().__init__()
        self.body = Net()
        for p in self.body.parameters():
            p.requires_grad = False
        self.top = nn.Linear(10, classes)
    def forward(self, x):
        return self.top(self.body(x))
def nets(kind):
    return eval(kind)
""",
            "warning",
        ),
        (STEPWISE_PROBE, "warning"),
        (LIGHTNING.replace("LOADS", "def load(self, path):\n        self.load_state_dict(torch.load(path), strict=False)"), "warning"),
        (CHOSEN.replace("MADE", "Trunk.small()") + frozen("net.trunk.requires_grad_(False)", made="Whole('small')"), "warning"),
        (CHOSEN.replace("MADE", "self.known[kind](8)") + frozen("net.trunk.requires_grad_(False)", made="Whole('small')"), "warning"),
        (rate_of_zero(), "note"),
    ],
    "BN407": [
        (frozen("net.stem.requires_grad_(False)\nfor m in net.modules():\n    if isinstance(m, nn.BatchNorm2d):\n        m.momentum = 0.0"), "note"),
    ],
    "BN408": [(STEPS + FIRST_EPOCHS, "warning")],
    "BN430": [
        (last_optimizer("opt = optim.SGD([{'params': net.head.parameters(), 'lr': 0.1}], 0.1)").replace("self.top", "self.head"), "warning"),
        (last_optimizer(LISTS.replace("SKIPPED", "'stem.0' in name or 'stem.norm' in name")), "note"),
        (last_optimizer("opt = optim.SGD([p for n, p in net.named_parameters() if 'top' in n], 0.1)"), "warning"),
    ],
}  # fmt: skip

RIGHT = [
    last_optimizer("opt = optim.SGD([{'params': net.head.parameters()}, {'params': net.trunk.parameters()}, {'params': net.stem.parameters()}], 0.1)").replace("self.top", "self.head"),
    LIGHTNING.replace("LOADS", ""),
    LIGHTNING.replace("LOADS", "def train(self, mode=True):\n        super().train(mode); self.body.eval(); return self").replace("Probe()", "Probe.load_from_checkpoint('a')"),
    CHOSEN.replace("MADE", "Trunk.small()") + frozen("net.top.requires_grad_(False)", made="Whole('small')"),
    STEPS + FIRST_EPOCHS.replace("net.stem.eval()", "pass").replace("net.stem.requires_grad_(False)", "pass"),
    last_optimizer("if __name__ == '__main__':\n    opt = optim.SGD([p for p in net.parameters() if p.requires_grad], 0.1, 0.9)"),
    last_optimizer(LISTS.replace("SKIPPED", "not p.requires_grad")),
    last_optimizer(LISTS.replace("SKIPPED", "'top.bias' in name")),
    rate_of_zero(STILL) + "still(Net())\n",
    frozen(each("p in itertools.chain(net.top.parameters(), net.top.parameters())")),
    frozen(each("part in [net.top, net.top]", "for p in part.parameters(): p.requires_grad = False")),
    frozen("for p in net[2].parameters(): p.requires_grad = False", made=SEQUENCE),
    frozen(each("name, p in net.named_parameters()", "p.requires_grad = 'top' not in name")),
    frozen("LOCK = False\nif LOCK:\n    net.top.requires_grad_(False)"),
    STEPWISE.replace("LOCKED", "for p in judge.parameters(): p.requires_grad"),
    STEPWISE.replace("LOCKED = False", "lock(judge, False)").replace("LOCKED = True", "lock(judge, True)")
    + "def lock(net, on):\n    for p in net.parameters():\n        p.requires_grad = on\n",
    """\
class Locked:
    def __init__(self, net):
        self.net = net
        for p in net.parameters():
            p.requires_grad = False
    def __enter__(self):
        return self.net
    def __exit__(self, *_):
        for p in self.net.parameters():
            p.requires_grad = True
def main(loader):
    net = Net()
    opt = optim.SGD(net.parameters(), 0.1)
    for x, y in loader:
        net.train()
        with Locked(net):
            x = x + net(x).mean()
        opt.zero_grad(); F.cross_entropy(net(x), y).backward(); opt.step()
""",
]  # fmt: skip
