# ruff: noqa: E501
"""What a forward is for: a loss, a test, an attack, a guess; batches of two kinds; constructors that set modes."""

from tests.diagnosis.source.training import FIT
from tests.diagnosis.source.training import HEAD as TRAINING

HEAD = TRAINING + FIT + "net = Net()\noptimizer = optim.SGD(net.parameters(), 0.1)\n"
LOOP = """
for step in range(9):
    optimizer.zero_grad()
    net(x).sum().backward()
    optimizer.step()
    BODY
"""
TEST = "for images, y in test_loader:\n        OUT"
ATTACK = """
def train(net, loader):
    net.train()
    for x, y in loader:
        delta = torch.zeros_like(x).requires_grad_()
        MODE
        loss = (net(x + delta) - y).square().sum()
        loss.backward()
        grad = delta.grad.detach()
        optimizer.zero_grad()
        net.train()
        net(x + grad.sign()).sum().backward()
        optimizer.step()
train(net, loader)
"""
GUESS = """
def train(net, loader):
    net.train()
    for x, y in loader:
        BODY
        loss.backward()
        optimizer.step()
train(net, loader)
"""
FROZEN = """
class Frozen(nn.Module):
    def __init__(self, freeze=False):
        super().__init__()
        self.bn = nn.BatchNorm2d(8)
        if freeze:
            self.fix()
    def fix(self):
        for m in self.modules():
            if isinstance(m, nn.BatchNorm2d):
                m.eval()
    def forward(self, x):
        return self.bn(x)
"""
TEACHER = """
teacher = Net()
teacher.load_state_dict(torch.load('teacher.pt'))
def distill(student, teacher):
    student.train()
    MODE
    for x in loader:
        BODY
        loss.backward()
        optimizer.step()
distill(net, teacher)
"""
DECAY = "params = net.state_dict()\nfor k, v in params.items():\n    BODY\n"
PAIR = "net.train()\nfor step in range(9):\n    optimizer.zero_grad()\n    loss = net(A).sum() + net(B).sum()\n    loss.backward()\n    optimizer.step()\nnet.eval()\n"

# code: (found, not found); a found one is a pair with its severity, "warning" where it is left out
CASES = {
    "BN405": ([
        LOOP.replace("BODY", TEST.replace("OUT", "right += (net(images).argmax(1) == y).sum()")),
        LOOP.replace("BODY", TEST.replace("OUT", "losses.append(F(net(images), y).item())")),
        LOOP.replace("BODY", "for images, y in loaders.val_loader:\n        out = net(images)\n        print(out.data.max(1)[1].eq(y))"),
        "def evaluate(net, loader):\n    for x, y in loader:\n        right.append(net(x).argmax(1).cpu())\nfit(net, loader, optimizer)\nevaluate(Net(), loader)",
        "def test(net, loader):\n    hits = 0\n    for x, y in loader:\n        hits += (net(x).max(1)[1] == y).sum().item()\n    return hits\ntest(Net().cuda(), loader)",
    ], [
        LOOP.replace("BODY", "net.eval()\n    " + TEST.replace("OUT", "right += (net(images).argmax(1) == y).sum()") + "\n    net.train()"),
        LOOP.replace("BODY", "losses = []\n    " + TEST.replace("OUT", "losses.append(net(images))") + "\n    sum(losses).backward()"),
        LOOP.replace("BODY", TEST.replace("OUT", "loss = net(images).sum()\n        optimizer.minimize(loss)")),
        LOOP.replace("BODY", TEST.replace("OUT", "scaler.scale(net(images).sum()).backward()")),
        LOOP.replace("BODY", TEST.replace("OUT", "with amp.scale_loss(net(images).sum(), optimizer) as scaled:\n            scaled.backward()")),
        LOOP.replace("BODY", TEST.replace("OUT", "accelerator.backward(net(images).sum())")),
        "def descend(loss):\n    loss.backward()\n    optimizer.step()\n" + LOOP.replace("BODY", TEST.replace("OUT", "descend(net(images).sum())")),
        LOOP.replace("BODY", TEST.replace("OUT", "total = {}\n        total['a'] = net(images).sum()\n        sum(total.values()).backward()")),
        "def test(net, loader):\n    out = []\n    for x in loader:\n        out.append(net(x))\n    return out\ntorch.stack(test(net, loader)).sum().backward()",
        "class Model:\n    def __init__(self):\n        self.net = Net()\n    def test(self):\n        for x in loader:\n            self.loss = self.net(x).sum()\n    def step(self):\n        self.loss.backward()\nmodel = Model()\nmodel.test()\nmodel.step()",
        "def test(net, loader):\n    for x in loader:\n        print(net(x).sum().item())\ntest(nn.Sequential(nn.Conv2d(3, 8, 3), nn.GroupNorm(2, 8)), loader)",
        "class Shape(nn.Module):\n    def __init__(self):\n        super().__init__()\n        self.bn = nn.BatchNorm2d(3)\n        with torch.no_grad():\n            self.size = self.features(torch.zeros(1, 3, 8, 8)).numel()\n    def features(self, x):\n        return self.bn(x)\nShape()",
    ]),
    "BN412": ([
        (ATTACK.replace("MODE", "pass"), "note"),
        (ATTACK.replace("MODE", "pass").replace("loss.backward()\n        grad = delta.grad.detach()", "grad = torch.autograd.grad(loss, [delta])[0]"), "note"),
        ("def attack(net, x):\n    x_adv = x.clone().requires_grad_()\n    net(x_adv).sum().backward()\n    return x + x_adv.grad.sign()\nnet.train()\nattack(net, x)", "note"),
        (GUESS.replace("BODY", "with torch.no_grad():\n            guess = net(y)\n        loss = (net(x) - guess).square().sum()"), "note"),
        (GUESS.replace("BODY", "guess = net(y).detach()\n        loss = (net(x) - guess).square().sum()"), "note"),
        (GUESS.replace("BODY", "net(torch.zeros(1, 3, 8, 8))\n        loss = net(x).sum()"), "note"),
    ], [
        ATTACK.replace("MODE", "net.eval()"),
        ATTACK.replace("net(", "plain(").replace("MODE", "pass").replace("def train", "plain = nn.Sequential(nn.Conv2d(3, 3, 3), nn.InstanceNorm2d(3))\ndef train"),
        GUESS.replace("BODY", "out = net(x)\n        loss = (out - out.detach()).square().sum()"),
        GUESS.replace("BODY", "net.eval()\n        guess = net(y).detach()\n        net.train()\n        loss = (net(x) - guess).square().sum()"),
        GUESS.replace("BODY", "kept = copy.deepcopy(net.state_dict())\n        guess = net(y).detach()\n        net.load_state_dict(kept)\n        loss = (net(x) - guess).square().sum()"),
        GUESS.replace("BODY", "with pause(net):\n            guess = net(y).detach()\n        loss = (net(x) - guess).square().sum()"),
        GUESS.replace("BODY", "g = torch.autograd.grad(net(x).sum(), list(net.parameters()), create_graph=True)\n        loss = g[0].norm()"),
        GUESS.replace("BODY", "data = torch.zeros(4, 3, 8, 8)\n        data[0] = x\n        loss = net(data).sum()"),
        "class Shape(nn.Module):\n    def __init__(self, net):\n        super().__init__()\n        self.size = net(torch.randn(1, 3, 8, 8)).numel()\nShape(net)\nfit(net, loader, optimizer)",
        "ema_net = Net()\ndef train(net, loader):\n    net.train()\n    ema_net.train()\n    for x, y in loader:\n        target = ema_net(y).detach()\n        (net(x) - target).square().sum().backward()\n        optimizer.step()\ntrain(net, loader)",
        GUESS.replace("BODY", "for p in net.parameters():\n            norm = p.grad\n        loss = net(x).sum()"),
    ]),
    "BN408": ([
        FROZEN + "net = Frozen(True)\nfit(net, loader, optimizer)",
        FROZEN + "nets = {'a': Frozen}\nnet = nets[name](True)\nfit(net, loader, optimizer)",
        FROZEN + "class Trainer:\n    def __init__(self, net):\n        self.net = net\n    def run(self):\n        self.net.train()\n        self.net(x).sum().backward()\nTrainer(build(Frozen, options)).run()",
    ], [
        FROZEN + "net = Frozen(True)\nnet.train()\nnet.fix()\nnet(x).sum().backward()",
        FROZEN + "    def train(self, mode=True):\n        super().train(mode)\n        self.fix()\n        return self\nfit(Frozen(True), loader, optimizer)",
        FROZEN + "net = Frozen(True)\nnet.eval()\nprint(net(x))",
        FROZEN.replace("            self.fix()", "            self.p = 1") + "def step(net):\n    net.train()\n    net.fix()\n    net(x).sum().backward()\nstep(Frozen(True))",
        FROZEN + "class Other(Frozen):\n    def train(self, mode=True):\n        nn.Module.train(self, mode)\n        self.fix()\n        return self\nfit(Other(True), loader, optimizer)",
    ]),
    "BN419": ([
        TEACHER.replace("MODE", "teacher.train()").replace("BODY", "loss = (student(x) - teacher(x).detach()).square().sum()"),
        (TEACHER.replace("teacher.load_state_dict(torch.load('teacher.pt'))", "").replace("MODE", "teacher.train()").replace("BODY", "loss = (student(x) - teacher(x).detach()).square().sum()"), "note"),
    ], [
        TEACHER.replace("MODE", "teacher.eval()").replace("BODY", "loss = (student(x) - teacher(x).detach()).square().sum()"),
        TEACHER.replace("MODE", "teacher.train(False)").replace("BODY", "loss = (student(x) - teacher(x).detach()).square().sum()"),
        TEACHER.replace("optim.SGD(net", "optim.SGD(net").replace("def distill", "both = optim.SGD(teacher.parameters(), 0.1)\ndef distill").replace("MODE", "teacher.train()").replace("BODY", "loss = (student(x) - teacher(x)).square().sum()"),
        TEACHER.replace("MODE", "teacher.train()").replace("BODY", "loss = (student(x) - teacher(x).detach()).square().sum()\n        update_ema(teacher, student)"),
    ]),
    "BN432": ([
        DECAY.replace("BODY", "v.mul_(1 - 0.0005)"),
        DECAY.replace("BODY", "v *= 0.999"),
    ], [
        DECAY.replace("net.state_dict()", "dict(net.named_parameters())").replace("BODY", "v.data.mul_(0.999)"),
        DECAY.replace("BODY", "if 'weight' in k:\n        v.mul_(0.999)"),
        "linear = nn.Linear(3, 3)\n" + DECAY.replace("net.", "linear.").replace("BODY", "v.mul_(0.999)"),
        DECAY.replace("BODY", "print(k, v * 2)"),
    ]),
    "BN434": ([
        (PAIR.replace("A", "images_src").replace("B", "images_tgt"), "note"),
        (PAIR.replace("A", "x_source.cuda()").replace("B", "x_target.cuda()"), "note"),
        (PAIR.replace("A", "x=data_s").replace("B", "x=data_t"), "note"),
    ], [
        PAIR.replace("A", "images").replace("B", "images_adv"),
        PAIR.replace("A", "inputs_labeled").replace("B", "inputs_unlabeled"),
        PAIR.replace("A", "x1").replace("B", "x2"),
        PAIR.replace("A", "view_a").replace("B", "view_b"),
        PAIR.replace("A", "anchor").replace("B", "positive"),
        PAIR.replace("A", "feat_s").replace("B", "feat_t"),
        PAIR.replace("net(A).sum() + net(B).sum()", "net(torch.cat([x_source, x_target])).sum()"),
        PAIR.replace("net(A).sum() + net(B).sum()", "net(x_source).sum() + F.cross_entropy(net(x), target)"),
        PAIR.replace("A", "images_src").replace("net(B)", "other(images_tgt)"),
        PAIR.replace("net.train()", "net.load_state_dict(torch.load('a.pt'))\nnet.eval()").replace("A", "images_src").replace("B", "images_tgt"),
        "critic = nn.Sequential(nn.Conv2d(3, 8, 3), nn.InstanceNorm2d(8))\n" + PAIR.replace("net", "critic").replace("A", "images_src").replace("B", "images_tgt"),
        "G = nn.Sequential(nn.Linear(3, 3))\n" + PAIR.replace("A", "imgs").replace("B", "G(z)"),
    ]),
    "BN435": ([
        "model = nn.SyncBatchNorm.convert_sync_batchnorm(net)\nmodel = nn.DataParallel(model)",
        "import apex\nmodel = apex.parallel.convert_syncbn_model(net)\nmodel.body = torch.nn.DataParallel(model.body)",
    ], [
        "torch.distributed.init_process_group('nccl')\nmodel = nn.SyncBatchNorm.convert_sync_batchnorm(net)\nmodel = nn.DataParallel(model) if old else model",
        "model = nn.DataParallel(net)",
        "model = nn.SyncBatchNorm.convert_sync_batchnorm(net)",
    ]),
}  # fmt: skip
