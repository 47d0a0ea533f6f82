"""Freezes through helpers and on modules, weights that are moved for a forward, averages in lists, modes of a block."""

TRAIN = """\
def train(net, loader, opt):
    net.train()
    for x, y in loader:
        opt.zero_grad(); F.cross_entropy(net(x), y).backward(); opt.step()
"""
FREEZE = """\
class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder = Net()
        self.head = nn.Linear(10, 2)
    def forward(self, x):
        return self.head(self.encoder(x))
def main(loader, path):
    net = Two()
    net.encoder.load_state_dict(torch.load(path))
    FROZEN
    train(net, loader, optim.SGD([p for p in net.parameters() if p.requires_grad], 0.1))
"""


def frozen(line: str, helper: str = "") -> str:
    """A program that freezes an encoder in a line."""
    return TRAIN + helper + FREEZE.replace("FROZEN", line)


def searched(body: str) -> str:
    """A program with an object that moves a network's weights for a forward."""
    return (
        """\
class Search:
    def __init__(self, net):
        self.net = net
    def gradient(self, x, y, vector, r=0.01):
"""
        + body
        + """\
def main(loader):
    net = Net()
    search, opt = Search(net), optim.SGD(net.parameters(), 0.1)
    for x, y in loader:
        net.train()
        search.gradient(x, y, [torch.zeros_like(p) for p in net.parameters()])
        opt.zero_grad(); F.cross_entropy(net(x), y).backward(); opt.step()
"""
    )


def averaged(start: str, step: str, use: str = "") -> str:
    """A program that averages a network's parameters in a list."""
    return f"""\
def main(loader):
    net = Net()
    opt = optim.SGD(net.parameters(), 0.1)
    {start}
    for x, y in loader:
        net.train()
        opt.zero_grad(); F.cross_entropy(net(x), y).backward(); opt.step()
        {step}
    {use}
    torch.save(net.state_dict(), 'net.pt')
"""


ATTACK = """\
def attack(net, x, y):
    x = x.clone().requires_grad_()
    for _ in range(7):
        F.cross_entropy(net(x), y).backward()
        x = (x + 0.01 * x.grad.sign()).detach().requires_grad_()
    return x
def main(loader):
    net = Net()
    opt = optim.SGD(net.parameters(), 0.1)
    for x, y in loader:
        net.train()
        x = ATTACKED
        opt.zero_grad(); F.cross_entropy(net(x), y).backward(); opt.step()
"""

AFFINE_ALONE = """\
class Deep(nn.Module):
    def __init__(self):
        super().__init__()
        self.bn1 = nn.BatchNorm2d(3)
        for p in self.bn1.parameters():
            p.requires_grad = False
        self.conv1 = nn.Conv2d(3, 3, 1)
    def forward(self, x):
        return self.conv1(self.bn1(x))
def main(loader, args):
    net = Deep()
    opt = optim.SGD(net.parameters(), 0.1)
    for epoch in range(3):
        net.train()%s
        for x, y in loader:
            loss = F.cross_entropy(net(x), y)
            opt.zero_grad(); loss.backward(); opt.step()
"""

WRONG = {
    "BN406": [
        (
            frozen(
                "freeze(net.encoder)",
                "def freeze(part):\n    for p in part.parameters():\n        p.requires_grad = False\n",
            ),
            "warning",
        ),
        (
            frozen(
                "lock([net.encoder])", "def lock(parts):\n    for part in parts:\n        part.requires_grad_(False)\n"
            ),
            "warning",
        ),
        (frozen("net.encoder.requires_grad = False"), "warning"),
        (AFFINE_ALONE % "", "warning"),
        (frozen("net.encoder.bn.requires_grad = False"), "warning"),
        (
            """\
class Stage(nn.Module):
    def __init__(self, first):
        super().__init__()
        self.first = first
        for p in self.first.parameters():
            p.requires_grad = False
        self.second = nn.Conv2d(3, 3, 1)
    def forward(self, x):
        return self.second(self.first(x))
def main(loader):
    net = Stage(Net())
    opt = optim.SGD([p for p in net.parameters() if p.requires_grad], 0.1)
    for x, y in loader:
        opt.zero_grad(); F.cross_entropy(net(x), y).backward(); opt.step()
""",
            "warning",
        ),
    ],
    "BN412": [
        (
            searched("""\
        for p, v in zip(self.net.parameters(), vector):
            p.data.add_(v, alpha=r)
        loss = F.cross_entropy(self.net(x), y)
        for p, v in zip(self.net.parameters(), vector):
            p.data.sub_(v, alpha=r)
        return loss
"""),
            "note",
        ),
        (
            searched("""\
        with torch.no_grad():
            for p, v in zip(self.net.parameters(), vector):
                p += r * v
        loss = F.cross_entropy(self.net(x), y)
        with torch.no_grad():
            for p, v in zip(self.net.parameters(), vector):
                p -= r * v
        return loss
"""),
            "note",
        ),
        (ATTACK.replace("ATTACKED", "attack(net, x, y)"), "note"),
    ],
    "BN413": [
        (
            averaged(
                "average = [p.data.clone() for p in net.parameters()]",
                "for a, p in zip(average, net.parameters()): a.mul_(0.999).add_(p.data, alpha=0.001)",
                "for a, p in zip(average, net.parameters()): p.data.copy_(a)",
            ),
            "note",
        ),
        (
            averaged(
                "average = copy.deepcopy([p.data for p in net.parameters()])",
                "for p, a in zip(net.parameters(), average): a.mul_(0.99).add_(0.01 * p.data)",
                "for a, p in zip(average, net.parameters()): p.data.copy_(a)",
            ),
            "note",
        ),
    ],
}

RIGHT = [
    AFFINE_ALONE % "\n        print(args.freeze_bn)",  # an option says that statistics move
    frozen("freeze(net.head)", "def freeze(part):\n    for p in part.parameters():\n        p.requires_grad = False\n"),
    frozen("net.head.requires_grad = False"),
    frozen("net.encoder.name = 'frozen'"),
    searched("""\
        self.net.eval()
        for p, v in zip(self.net.parameters(), vector):
            p.data.add_(v, alpha=r)
        loss = F.cross_entropy(self.net(x), y)
        for p, v in zip(self.net.parameters(), vector):
            p.data.sub_(v, alpha=r)
        self.net.train()
        return loss
"""),
    searched("""\
        for p in self.net.parameters():
            p.data.clamp_(-r, r)
        return self.net(x).sum()
"""),
    ATTACK.replace("ATTACKED", "attack(net.eval(), x, y); net.train()"),
    """\
class Modes:
    def __init__(self, nets, train):
        self.nets, self.train = nets, train
    def __enter__(self):
        for net in self.nets:
            net.train(self.train)
    def __exit__(self, *_):
        for net in self.nets:
            net.train()
def main(loader, path):
    net = Net()
    net.load_state_dict(torch.load(path))
    with Modes([net], train=False):
        for x, y in loader:
            print((net(x).argmax(1) == y).sum().item())
""",
    """\
def features(loader):
    import torchvision
    model = torchvision.models.resnet18(weights='DEFAULT')
    model.eval()
    trunk = nn.Sequential(*list(model.children())[:-1])
    with torch.no_grad():
        return [trunk(x) for x, _ in loader]
""",
    """\
class Bound(nn.Module):
    def __init__(self, net):
        super().__init__()
        self.net = net
    def forward(self, x):
        return self.net(x).logsumexp(1)
def main(loader, test):
    net = Net()
    bound, opt = Bound(net), optim.SGD(net.parameters(), 0.1)
    for epoch in range(9):
        net.train()
        for x, y in loader:
            opt.zero_grad(); bound(x).mean().backward(); opt.step()
        net.eval()
        for x, y in test:
            print(bound(x).mean().item())
""",
    """\
import net
def run(loader, path):
    model.eval()
    for x, y in loader:
        print(both(x).argmax(1).tolist())
net = model = Net()
model.load_state_dict(torch.load('a.pt'))
both = nn.DataParallel(model)
run([], '')
""",
]
