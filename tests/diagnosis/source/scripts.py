# ruff: noqa: E501
"""Cases of whole scripts: modes left behind, networks beside, weights by name, states without statistics, graphs."""

HEAD = """import copy, argparse, torch, torchvision
import torch.nn.functional as F
from torch import nn, optim
from torch.utils.data import DataLoader
class Net(nn.Module):
    def __init__(self, c=3):
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, c, 3), nn.BatchNorm2d(c), nn.ReLU())
        self.head = nn.Linear(c, 10)
    def forward(self, x):
        return self.head(self.features(x).mean((2, 3)))
"""
LOADED = "net = Net()\nnet.load_state_dict(torch.load('a.pt'))\n"
LAYER = "class Norm(nn.BatchNorm2d):\n    def forward(self, x):\n"
STEP = "    for x, y in loader:\n        loss = F.cross_entropy(net(x), y)\n        optimizer.zero_grad()\n        loss.backward()\n        optimizer.step()\n"
TRAINS = "net.train()\nfor epoch in range(3):\n" + STEP
RUNNING = "self.running_mean, self.running_var, self.weight, self.bias"
BESIDE = "for x in loader:\n    with torch.no_grad():\n        t = OLD(x)\n    loss = (student(x) - t).square().mean()\n    optimizer.zero_grad()\n    loss.backward()\n    optimizer.step()\n"
STUDENT = "student = nn.Linear(3, 10)\noptimizer = optim.SGD(student.parameters(), 0.1)\n"

CASES = {
    "BN405": ([
        LOADED + "class Tester:\n    def __init__(self):\n        self.net = net\n    def scores(self, x):\n        return [self.net(v) for v in x]\ndef test(t, loader):\n    with torch.no_grad():\n        for x in loader:\n            t.scores(x)\ntest(Tester(), loader)",
        "class Few(nn.Module):\n    def __init__(self):\n        super().__init__()\n        self.net = Net()\n    def scores(self, x):\n        return self.net(x)\nclass More(Few):\n    pass\nmodel = Few() if few else More()\nmodel.load_state_dict(torch.load('a.pt'))\nfor x in loader:\n    print(model.scores(x))",
        LOADED + "net.head.eval()\nwith torch.no_grad():\n    for x in loader:\n        print(net(x))",
    ], [
        LOADED + "net.eval()\nfor x in loader:\n    print(net(x))",
        LOADED + "with torch.no_grad():\n    net(torch.FloatTensor(1, 3, 8, 8).uniform_(0, 1))",
    ]),
    "BN418": ([
        "net = Net()\noptimizer = optim.SGD(net.parameters(), 0.1)\nstep = 0\nwhile step < 9:\n" + STEP.replace("optimizer.step()\n", "optimizer.step()\n        step += 1\n        if step % 5 == 0:\n            net.eval()\n            with torch.no_grad():\n                net(test)\n"),
        "class Trainer:\n    def __init__(self):\n        self.net = Net()\n        self.optimizer = optim.SGD(self.net.parameters(), 0.1)\n    def fit(self, loader):\n        for i, x in enumerate(loader):\n            loss = self.net(x).sum()\n            self.optimizer.zero_grad()\n            loss.backward()\n            self.optimizer.step()\n            if i % 100 == 0:\n                self.test()\n    @torch.no_grad()\n    def test(self):\n        self.net.eval()\n        self.net(x)\nTrainer().fit(loader)",
    ], [
        "def test(net):\n    net.eval()\n    with torch.no_grad():\n        net(x)\nnet, ema = Net(), Net()\nother = ema if args.ema else net\noptimizer = optim.SGD(net.parameters(), 0.1)\n" + TRAINS + "    test(other)",
        "net = Net()\noptimizer = optim.SGD(net.parameters(), 0.1)\n" + TRAINS.replace("    for", "    net.train()\n    for") + "    if epoch % 2:\n        net.eval()\n        with torch.no_grad():\n            net(test)\n",
    ]),
    "BN419": ([
        "old = torchvision.models.vgg16_bn(pretrained=True).features\nfor p in old.parameters():\n    p.requires_grad = False\n" + STUDENT + BESIDE.replace("with torch.no_grad():\n        ", "if True:\n        ").replace("OLD", "old"),
        LOADED + "past = copy.deepcopy(net)\n" + STUDENT + BESIDE.replace("OLD", "past"),
        LOADED + STUDENT + "net.train()\n" + BESIDE.replace("with torch.no_grad():\n        ", "if True:\n        ").replace("OLD", "net"),
    ], [
        "class Both(nn.Module):\n    def __init__(self):\n        super().__init__()\n        self.encoder = Net()\n        self.decoder = nn.Sequential(nn.Linear(10, 3), nn.BatchNorm1d(3))\n    def forward(self, x):\n        return self.decoder(self.encoder(x))\nnet, critic = Both(), nn.Linear(3, 1)\nif args.resume:\n    net.load_state_dict(torch.load('a.pt'))\noptimizer, other = optim.SGD(net.parameters(), 0.1), optim.SGD(critic.parameters(), 0.1)\nfor x in loader:\n    loss = critic(net.decoder(net.encoder(x))).sum()\n    optimizer.zero_grad()\n    loss.backward()\n    optimizer.step()\n    other.zero_grad()\n    critic(x).sum().backward()\n    other.step()",
        LOADED + STUDENT + "net.eval()\n" + BESIDE.replace("OLD", "net"),
        "from timm.optim import create_optimizer_v2\n" + LOADED + STUDENT + "other = create_optimizer_v2(net)\nnet.train()\n" + BESIDE.replace("with torch.no_grad():\n        ", "if True:\n        ").replace("OLD", "net"),
        LOADED + STUDENT.replace("student.parameters()", "[*student.parameters(), *others(net)]") + "net.train()\n" + BESIDE.replace("with torch.no_grad():\n        ", "if True:\n        ").replace("OLD", "net"),
    ]),
    "BN420": ([
        "state = {k: v for k, v in torch.load('a.pt').items() if 'running' not in k}\nnet = Net()\nnet.load_state_dict(state, strict=False)",
        "state, new = torch.load('a.pt'), {}\nfor k, v in state.items():\n    if 'running_mean' in k or 'running_var' in k:\n        continue\n    new[k] = v\nnet = Net()\nnet.load_state_dict(new, strict=False)",
        "state = torch.load('a.pt')\nfor k in list(state):\n    if k.endswith('running_var'):\n        del state[k]\nnet = Net()\nnet.load_state_dict(state, strict=False)",
        "net = Net()\ntorch.save(dict(net.named_parameters()), 'a.pt')",
        "net = Net()\nstate = {k: v for k, v in torch.load('a.pt').items() if k in dict(net.named_parameters())}\nnet.load_state_dict(state, strict=False)",
    ], [
        "state = {k: v for k, v in torch.load('a.pt').items() if 'head' not in k}\nnet = Net()\nnet.load_state_dict(state, strict=False)",
        "net = Net()\ntorch.save(net.state_dict(), 'a.pt')",
        "state = torch.load('a.pt')\nfor k in list(state):\n    if k.endswith('running_var'):\n        del state[k]\nnet = Net()\nnet.load_state_dict(state)",
    ]),
    "BN412": ([], [
        LOADED + "net.train()\nwith torch.no_grad():\n    for x, _ in loader:\n        net(x)\nnet.eval()",
        LOADED + "net.train()\nwith torch.no_grad():\n    for x, _ in loader:\n        _ = net(x)\nnet.eval()",
    ]),
    "BN414": ([
        ("def mean(states):\n    total = copy.deepcopy(states[0])\n    for k in total.keys():\n        for s in states[1:]:\n            total[k] += s[k]\n        total[k] = torch.div(total[k], len(states))\n    return total\nmean([Net().state_dict(), Net().state_dict()])", "note"),
        "def mean(states):\n    total = copy.deepcopy(states[0])\n    for k in total.keys():\n        for s in states[1:]:\n            total[k] += s[k]\n        total[k] /= len(states)\n    return total\nmean([Net().state_dict(), Net().state_dict()])",
    ], []),
    "BN421": ([
        ("net = Net()\nif args.fp16:\n    net.half()\noptimizer = optim.SGD(net.parameters(), 0.1)\n" + TRAINS, "note"),
    ], []),
    "BN426": ([
        ("parser = argparse.ArgumentParser()\nparser.add_argument('--bs', default=1, type=int)\nsets = parser.parse_args()\nloader = DataLoader(data, sets.bs)\nnet = Net()\noptimizer = optim.SGD(net.parameters(), 0.1)\n" + TRAINS + "net.eval()", "note"),
        "class Config:\n    batch_size = 1\nconf = Config()\nloader = DataLoader(data, batch_size=conf.batch_size)\nnet = Net()\noptimizer = optim.SGD(net.parameters(), 0.1)\n" + TRAINS + "net.eval()",
    ], [
        "parser = argparse.ArgumentParser()\nparser.add_argument('--bs', type=int)\nsets = parser.parse_args()\nloader = DataLoader(data, sets.bs)\nnet = Net()\noptimizer = optim.SGD(net.parameters(), 0.1)\n" + TRAINS + "net.eval()",
    ]),
    "BN430": ([
        LOADED + "params = []\nfor name, p in net.named_parameters():\n    if 'head' in name:\n        params.append(p)\noptimizer = optim.SGD(params, 0.1)\n" + TRAINS,
        LOADED + "optimizer = optim.SGD([p for n, p in net.named_parameters() if n.startswith('head')], 0.1)\n" + TRAINS,
    ], [
        LOADED + "first, rest = [], []\nfor name, p in net.named_parameters():\n    if 'head' in name:\n        first.append(p)\n    else:\n        rest.append(p)\noptimizer = optim.SGD([{'params': first}, {'params': rest}], 0.1)\n" + TRAINS,
        LOADED + "optimizer = optim.SGD([p for n, p in net.named_parameters() if 'bias' in n], 0.1)\n" + TRAINS,
    ]),
    "BN431": ([
        ("parser = argparse.ArgumentParser()\nparser.add_argument('--freeze_bn', action='store_true')\nargs = parser.parse_args()\nnet = Net(args.freeze_bn)\noptimizer = optim.SGD(net.parameters(), 0.1)\n" + TRAINS, "note"),
    ], [
        "parser = argparse.ArgumentParser()\nparser.add_argument('--freeze_bn', action='store_true')\nargs = parser.parse_args()\nnet = Net()\noptimizer = optim.SGD(net.parameters(), 0.1)\n" + TRAINS.replace("    for", "    if args.freeze_bn:\n        freeze_bn(net)\n    for"),
    ]),
    "BN435": ([
        ("import torch.distributed as dist\nnet = Net()\ndef share(net):\n    for p in net.parameters():\n        dist.all_reduce(p.grad)\n", "note"),
    ], [
        "import torch.distributed as dist\nnet = Net()\ndef share(net):\n    for p in net.parameters():\n        dist.all_reduce(p.grad)\n    for b in net.buffers():\n        dist.broadcast(b, 0)\n",
        "import torch.distributed as dist\nnet = nn.parallel.DistributedDataParallel(Net(), device_ids=[0])",
    ]),
    "BN436": ([
        LAYER + f"        return F.batch_norm(x, {RUNNING}, True, self.momentum, self.eps)",
        LAYER + f"        return F.batch_norm(x, {RUNNING}, training=True)",
        "class Net2(nn.Module):\n    def __init__(self):\n        super().__init__()\n        self.bn = nn.BatchNorm2d(3)\n    def forward(self, x):\n        self.bn.train()\n        return self.bn(x)",
        ("import tensorflow as tf\nimport keras\ndef net(x):\n    return tf.layers.batch_normalization(x, training=True)", "note"),
    ], [
        LAYER + f"        return F.batch_norm(x, {RUNNING}, self.training, self.momentum, self.eps)",
        LAYER + f"        if self.training:\n            return F.batch_norm(x, {RUNNING}, True)\n        return F.batch_norm(x, {RUNNING})",
        LAYER + "        mean, var = self.running_mean.repeat(len(x)), self.running_var.repeat(len(x))\n        return F.batch_norm(x.flatten(0, 1)[None], mean, var, None, None, True)",
        LAYER + "        return F.batch_norm(x, None, None, self.weight, self.bias, True)",
        "import tensorflow as tf\ndef net(x, train):\n    return tf.layers.batch_normalization(x, training=train)",
    ]),
    "BN437": ([
        LOADED + "torch.jit.trace(net, torch.rand(1, 3, 8, 8)).save('a.pt')",
        LOADED + "program = torch.export.export(net, (torch.rand(1, 3, 8, 8),))",
        ("traced = torch.jit.trace(Net(), torch.rand(1, 3, 8, 8))", "note"),
    ], [
        LOADED + "net.eval()\ntorch.jit.trace(net, torch.rand(1, 3, 8, 8)).save('a.pt')",
        LOADED + "torch.onnx.export(net.eval(), torch.rand(1, 3, 8, 8), 'a.onnx')",
    ]),
}  # fmt: skip
