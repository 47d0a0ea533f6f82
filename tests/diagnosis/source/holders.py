# ruff: noqa: E501
"""What holds a model: a base class, add_module, an inner function, another object, an option, a parameter group."""

from tests.diagnosis.source.training import FIT
from tests.diagnosis.source.training import HEAD as TRAINING

HEAD = TRAINING
STEP = "loss = net(x).sum()\n        optimizer.zero_grad()\n        loss.backward()\n        optimizer.step()\n"
STEPS = "net.train()\nfor epoch in range(9):\n    for x, y in loader:\n        " + STEP + "net.eval()\n"
ALL = "for p in net.parameters():\n    p.requires_grad = False\n"
BASE = """
class Base:
    def run(self):
        for epoch in range(9):
            self.model.train()
            for x in self.train_loader:
                self.step(x)
            self.test()
    def test(self):
        MODE
        with torch.no_grad():
            for x in self.test_loader:
                self.scores.append(self.model(x).mean())
class Trainer(Base):
    def __init__(self):
        self.model = Net()
        self.optimizer = optim.Adam(self.model.parameters())
    def step(self, x):
        loss = self.model(x).sum()
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
Trainer().run()
"""
SERVER = """
class Server:
    def aggregate(self, users):
        for user in users:
            for a, b in zip(self.model.parameters(), user.model.parameters()):
                a.data = a.data + b.data.clone() * 0.5
            BUFFERS
class User:
    def __init__(self, model):
        self.model = copy.deepcopy(model)
class Average(Server):
    def __init__(self):
        self.model = Net()
    def run(self):
        self.aggregate([User(self.model) for i in range(3)])
        self.model.eval()
        self.model(x)
Average().run()
"""
BUFFERS = "for a, b in zip(self.model.buffers(), user.model.buffers()):\n                a.copy_(b)"
GROUPS = "groups = []\nnet = Net()\nfor k, v in net.named_parameters():\n    groups.append({'params': v} if 'fc' in k else {'params': v, 'lr': RATE})\noptimizer = optim.SGD(groups, lr=0.1)\n"
ATTACK = """
class Attack:
    def __init__(self, model):
        self.model = model
    def perturb(self, x):
        MODE
        x = x.detach().requires_grad_()
        loss = self.model(x).sum()
        loss.backward()
        return x + x.grad.sign()
net = Net()
attack = Attack(net)
optimizer = optim.SGD(net.parameters(), 0.1)
def train():
    for x, y in loader:
        net.train()
        moved = attack.perturb(x)
        net.train()
        optimizer.zero_grad()
        net(moved).sum().backward()
        optimizer.step()
    net.eval()
train()
"""
TWO = """
class Trainer:
    def __init__(self):
        self.net, self.average = Net(), Net()
        self.optimizer = optim.SGD(self.net.parameters(), 0.1)
    def train(self):
        self.net.train()
        for x in loader:
            loss = self.net(x).sum()
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            self.test()
    @torch.no_grad()
    def test(self):
        net = self.average if self.other else self.net
        net.eval()
        for x in loader:
            print(net(x))
        BACK
Trainer().train()
"""
FLAG = """
def run(loader, net, training=True, optimizer=None):
    for x, y in loader:
        if not training:
            with torch.no_grad():
                out = net(x)
        else:
            out = net(x)
        loss = out.sum()
        if training:
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
net = Net()
optimizer = optim.SGD(net.parameters(), 0.1)
for epoch in range(9):
    net.train()
    run(loader, net, True, optimizer)
    net.eval()
    run(loader, net, False)
"""
OPTION = "parser = argparse.ArgumentParser()\nparser.add_argument('--fix_bn', action='store_true')\nargs = parser.parse_args()\nnet = Net()\noptimizer = optim.SGD(net.parameters(), 0.1)\nnet.train()\nfor x in loader:\n    BODY\n    loss = net(x).sum()\n    loss.backward()\n    optimizer.step()\nnet.eval()\n"
INNER = """
class Deep(nn.Module):
    def __init__(self):
        super().__init__()
        body = nn.Sequential()
        def add(i):
            body.add_module('conv%d' % i, nn.Conv2d(3, 3, 3))
            body.add_module('norm%d' % i, nn.NORM)
        add(0)
        add(1)
        self.body = body
        self.head = nn.Linear(2, 2)
    def forward(self, x):
        return self.head(self.body(x))
net = Deep()
for p in net.body.parameters():
    p.requires_grad = False
optimizer = optim.SGD(net.head.parameters(), 0.1)
"""
CHECKPOINT = "from torch.utils.checkpoint import checkpoint\nclass Layer(nn.Module):\n    def __init__(self):\n        super().__init__()\n        self.add_module('norm', nn.NORM)\n    def forward(self, x):\n        return checkpoint(self.norm, x)"
NAMES = "class Named(nn.Module):\n    def __init__(self):\n        super().__init__()\n        self.body = nn.Sequential()\n        self.body.add_module('NAME', nn.BatchNorm2d(3))\nnet = Named()\nfor name, p in net.named_parameters():\n    if 'norm' in name:\n        p.data.fill_(1)"
THAW = "for p in net.fc.parameters():\n    p.requires_grad = True\noptimizer = optim.SGD(net.fc.parameters(), 0.1)\n"

# code: (found, not found); a found one is a pair with its severity, "warning" where it is left out
CASES = {
    "BN405": ([BASE.replace("MODE", "pass")], [BASE.replace("MODE", "self.model.eval()")]),
    "BN406": ([
        "net = Net()\nnet.load_state_dict(torch.load('a.pt'))\n" + ALL + THAW + STEPS,
        "held = {}\nheld['model'] = Net()\nnet = held['model']\n" + ALL + THAW + STEPS,
        (GROUPS.replace("RATE", "0.0") + STEPS, "note"),
        "net = Net()\nfor p in net.body.parameters():\n    p.requires_grad = False\noptimizer = optim.SGD(net.fc.parameters(), 0.1)\n" + STEPS.replace("net(x)", "nn.parallel.data_parallel(net, x)"),
        INNER.replace("NORM", "BatchNorm2d(3)") + STEPS,
    ], [
        "net = Net()\n" + ALL + THAW + STEPS.replace("net.train()", "net.eval()"),
        GROUPS.replace("RATE", "0.01") + STEPS,
        INNER.replace("NORM", "GroupNorm(3, 3)") + STEPS,
        FIT + "def main(args):\n    net = Net()\n    optimizer = optim.SGD(net.parameters(), 0.1)\n    if not args.supervised:\n        for p in net.body.parameters():\n            p.requires_grad = False\n    if args.supervised:\n        fit(net, loader, optimizer)\nmain(args)",
    ]),
    "BN412": ([(ATTACK.replace("MODE", "pass"), "note")], [ATTACK.replace("MODE", "self.model.eval()"), FLAG]),
    "BN413": ([SERVER.replace("BUFFERS", "pass")], [SERVER.replace("BUFFERS", BUFFERS)]),
    "BN415": ([(NAMES.replace("NAME", "bn"), "note")], [NAMES.replace("NAME", "norm0")]),
    "BN418": ([TWO.replace("net = self.average if self.other else self.net", "net = self.net").replace("BACK", "pass")], [
        TWO.replace("BACK", "if not self.other:\n            net.train()"),
    ]),
    "BN424": ([CHECKPOINT.replace("NORM", "BatchNorm2d(3)")], [CHECKPOINT.replace("NORM", "GroupNorm(3, 3)")]),
    "BN431": ([(OPTION.replace("BODY", "print(args.fix_bn)"), "note")], [OPTION.replace("BODY", "if args.fix_bn:\n        net.eval()")]),
}  # fmt: skip
