# ruff: noqa: E501
"""Programs of several models: freezes without effect, averages beside the state, frozen parts, domains, processes."""

from tests.diagnosis.source.training import FIT
from tests.diagnosis.source.training import HEAD as TRAINING

HEAD = TRAINING + FIT + "net = Net()\n"

SHADOW = """
class EMA:
    def __init__(self, model, decay):
        self.model, self.decay, self.shadow = model, decay, {}
    def register(self):
        for name, param in self.model.named_parameters():
            self.shadow[name] = param.data.clone()
    def update(self):
        for name, param in self.model.named_parameters():
            if param.requires_grad:
                MIX
ema = EMA(net, 0.999)
ema.register()
ema.update()
"""
AFFINE = """
class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.bn1 = nn.BatchNorm2d(8)
        for p in self.bn1.parameters():
            p.requires_grad = False
        FORWARD
    def forward(self, x):
        return self.bn1(x)
fit(Block(), loader, optimizer)
"""
FEATURES = """
class Features(nn.Module):
    def __init__(self):
        super().__init__()
        resnet = torchvision.models.resnet18(WEIGHTS)
        self.body = nn.Sequential(*list(resnet.children())[:-1])
        self.head = nn.Linear(512, 2)
    def forward(self, x):
        with torch.no_grad():
            y = self.body(x)
        return self.head(y.flatten(1))
    EXTRA
fit(Features(), loader, optimizer)
"""
HELPER = """
class Frozen(Net):
    def __init__(self, freeze_bn=True):
        super().__init__()
        ATTRIBUTE
    def freeze_bn(self):
        for m in self.modules():
            if isinstance(m, nn.BatchNorm2d):
                m.eval()
fit(Frozen(), loader, optimizer)
"""
STATE = "a, b, c = copy.deepcopy(net), copy.deepcopy(net), copy.deepcopy(net)\nsa, sb, sc = a.state_dict(), b.state_dict(), c.state_dict()\n"
DOMAINS = """
source, target = DataLoader(one, batch_size=32), DataLoader(two, batch_size=32)
optimizer = optim.SGD(net.parameters(), 0.1)
net.train()
for BATCHES:
    optimizer.zero_grad()
    FORWARD
    optimizer.step()
"""

# code: (found, not found); a found one is a pair with its severity, "warning" where it is left out
CASES = {
    "BN406": ([
        AFFINE.replace("FORWARD", ""),
        AFFINE.replace("FORWARD", "self.bn1.weight.requires_grad = False"),
        FEATURES.replace("WEIGHTS", "pretrained=True").replace("EXTRA", ""),
        FEATURES.replace("WEIGHTS", "weights='DEFAULT'").replace("EXTRA", ""),
        FEATURES.replace("WEIGHTS", "weights='DEFAULT'").replace("[:-1]", "").replace("EXTRA", ""),
        "class Encoder(nn.Module):\n    def __init__(self):\n        super().__init__()\n        self.resnet = torchvision.models.resnet18(pretrained=True)\n    def forward(self, x):\n        return self.resnet(x)\n    def fine_tune(self, on):\n        for p in self.resnet.parameters():\n            p.requires_grad = False\n        for c in list(self.resnet.children())[5:]:\n            for p in c.parameters():\n                p.requires_grad = on\nencoder = Encoder()\nencoder.fine_tune(flag)\nfit(encoder, loader, optimizer)",
    ], [
        AFFINE.replace("FORWARD", "").replace("self.bn1.parameters()", "self.fc.parameters()").replace("nn.BatchNorm2d(8)", "nn.BatchNorm2d(8)\n        self.fc = nn.Linear(8, 8)"),
        AFFINE.replace("FORWARD", "").replace("    def forward", "    def train(self, mode=True):\n        super().train(mode)\n        self.bn1.eval()\n    def forward"),
        AFFINE.replace("for p in self.bn1.parameters():\n            p.requires_grad", "if True:\n            self.bn1.bias.requires_grad"). replace("FORWARD", ""),
        FEATURES.replace("WEIGHTS", "").replace("EXTRA", ""),
        FEATURES.replace("WEIGHTS", "pretrained=True").replace("EXTRA", "def train(self, mode=True):\n        super().train(mode)\n        self.body.eval()"),
        FEATURES.replace("WEIGHTS", "pretrained=True").replace("resnet18", "vgg16").replace("EXTRA", ""),
    ]),
    "BN408": ([
        "class Frozen(Net):\n    def train(self, mode=True):\n        for m in self.modules():\n            if isinstance(m, nn.BatchNorm2d):\n                m.eval()\n        return super().train(mode)\nfit(Frozen(), loader, optimizer)",
        "class Frozen(Net):\n    def train(self, mode=True):\n        for m in self.body:\n            if isinstance(m, nn.BatchNorm2d):\n                m.eval()\n        super(Frozen, self).train(mode)\nfit(Frozen(), loader, optimizer)",
    ], [
        "class Frozen(Net):\n    def train(self, mode=True):\n        super().train(mode)\n        for m in self.modules():\n            if isinstance(m, nn.BatchNorm2d):\n                m.eval()\n        return self\nfit(Frozen(), loader, optimizer)",
    ]),
    "BN412": ([
        ("class Probe:\n    def on_train_batch_end(self, trainer, pl_module, outputs, batch, index):\n        with torch.no_grad():\n            features = pl_module.encoder(batch[0])", "note"),
        ("class Probe:\n    @torch.no_grad()\n    def on_train_batch_end(self, trainer, pl_module, *rest):\n        self.log(pl_module(self.images))", "note"),
    ], [
        "class Probe:\n    def on_train_batch_end(self, trainer, pl_module, outputs, batch, index):\n        pl_module.eval()\n        with torch.no_grad():\n            features = pl_module(batch[0])\n        pl_module.train()",
        "class Probe:\n    def on_validation_batch_end(self, trainer, pl_module, outputs, batch, index):\n        with torch.no_grad():\n            features = pl_module(batch[0])",
    ]),
    "BN413": ([
        *((SHADOW.replace("MIX", mix), "note") for mix in (
            "self.shadow[name] = self.decay * self.shadow[name] + (1 - self.decay) * param.data",
            "new = (1.0 - self.decay) * param.data + self.decay * self.shadow[name]\n                self.shadow[name] = new.clone()",
            "self.shadow[name].mul_(self.decay).add_(param.data, alpha=1 - self.decay)",
            "self.shadow[name] -= (1 - self.decay) * (self.shadow[name] - param.data)",
            "self.shadow[name].lerp_(param.data, 1 - self.decay)",
        )),
        ("state = copy.deepcopy(net).state_dict()\nfor name, p in net.named_parameters():\n    state[name].mul_(0.9).add_(p.data, alpha=0.1)", "note"),
        "def accumulate(a, b, decay=0.999):\n    pa, pb = dict(a.named_parameters()), dict(b.named_parameters())\n    for k in pa.keys():\n        pa[k].data.mul_(decay).add_(pb[k].data, alpha=1 - decay)\naverage = Net()\naccumulate(average, net)\naverage.eval()\naverage(x)",
    ], [
        SHADOW.replace("MIX", "self.shadow[name] = 0.9 * self.shadow[name] + 0.1 * param.data").replace("    def register", "    def buffers(self):\n        return list(self.model.buffers())\n    def register"),
        "for name, p in net.named_parameters():\n    momentum[name] = 0.9 * momentum[name] + p.grad",
        "for name, p in net.named_parameters():\n    penalty += (fisher[name] * (p - old[name]) ** 2).sum()",
        "for name, p in nn.Linear(3, 3).named_parameters():\n    shadow[name] = 0.9 * shadow[name] + 0.1 * p.data",
    ]),
    "BN426": ([
        "settings = dict(batch_size=1, num_workers=2)\nfit(net, DataLoader(data, shuffle=True, **settings), optimizer)",
        "args = {'size': 1}\nfit(net, DataLoader(data, batch_size=args['size']), optimizer)",
        "batches = enumerate(DataLoader(data, batch_size=1))\nfor step in range(9):\n    _, batch = batches.next()\n    optimizer.zero_grad()\n    net(batch[0].cuda()).sum().backward()\nnet.eval()",
        "for x in DataLoader(data, batch_size=1):\n    optimizer.zero_grad()\n    net(x['image'].cuda()).sum().backward()\nnet.eval()",
    ], [
        "settings = dict(batch_size=16)\nfit(net, DataLoader(data, shuffle=True, **settings), optimizer)",
        "fit(net, DataLoader(data, **settings), optimizer)",
    ]),
    "BN428": ([
        ("from torchvision.utils import save_image\ngenerator = Net()\ndef sample(n):\n    z = torch.randn(n, 3)\n    images = generator(z)\n    save_image(images.data, 'a.png')\nfor x in loader:\n    generator(torch.randn(8, 3)).sum().backward()\n    sample(9)", "note"),
        ("generator = Net()\nfixed_z = torch.randn(64, 3)\nfor x in loader:\n    generator(torch.randn(8, 3)).sum().backward()\n    show(generator(fixed_z))", "note"),
    ], [
        "from torchvision.utils import save_image\ngenerator = Net()\nfor x in loader:\n    images = generator(torch.randn(8, 3))\n    images.sum().backward()\n    save_image(images.data, 'a.png')",
        "generator = Net()\nfixed_z = torch.randn(64, 3)\nfor x in loader:\n    generator.train()\n    generator(torch.randn(8, 3)).sum().backward()\n    generator.eval()\n    show(generator(fixed_z))",
    ]),
    "BN431": ([
        HELPER.replace("ATTRIBUTE", "self.freeze_bn = freeze_bn"),
        (HELPER.replace("ATTRIBUTE", "self.flag = freeze_bn").replace("def freeze_bn", "def fix_layers"), "note"),
        ("def set_bn_eval(m):\n    if isinstance(m, nn.BatchNorm2d):\n        m.eval()\nfit(net, loader, optimizer)", "note"),
        "parser = argparse.ArgumentParser()\nparser.add_argument('--fix_bn', action='store_true')\nargs = parser.parse_args()\nfit(net, loader, optimizer)",
        "parser = argparse.ArgumentParser()\nparser.add_argument('--freeze-bn', type=bool, default=False)\nargs = parser.parse_args()\nfit(net, loader, optimizer)",
    ], [
        HELPER.replace("ATTRIBUTE", "self.flag = freeze_bn").replace("fit(Frozen(), loader, optimizer)", "net = Frozen()\nnet.train()\nnet.freeze_bn()\nnet(x).sum().backward()"),
        "def set_bn_eval(m):\n    if isinstance(m, nn.BatchNorm2d):\n        m.eval()\nnet.train()\nnet.apply(set_bn_eval)\nnet(x).sum().backward()",
        "parser = argparse.ArgumentParser()\nparser.add_argument('--fix_bn', action='store_true')\nargs = parser.parse_args()\nif args.fix_bn:\n    freeze(net)\nfit(net, loader, optimizer)",
        "parser = argparse.ArgumentParser()\nparser.add_argument('--fix_bn', action='store_true')\nargs = parser.parse_args()\nrun(net, **vars(args))\nfit(net, loader, optimizer)",
    ]),
    "BN432": ([
        STATE + "for k in sa:\n    sa[k] = sa[k] - 0.1 * (sb[k] - sc[k])\na.load_state_dict(sa)",
        STATE + "for k in sa.keys():\n    sa[k] = sa[k] - sb[k] + (sc[k] - sb[k]) / steps\na.load_state_dict(sa)",
        STATE + "momentum = copy.deepcopy(sa)\nfor k in momentum:\n    momentum[k] = 0.9 * momentum[k] + 0.1 * (sb[k] - sc[k])\n    sa[k] = sb[k] - momentum[k]\na.load_state_dict(sa)",
        (STATE + "gradient = copy.deepcopy(sa)\nfor k in gradient:\n    gradient[k] = torch.true_divide(sb[k] - sc[k], steps)", "note"),
    ], [
        STATE + "for k in sa:\n    if 'running' in k:\n        continue\n    sa[k] = sa[k] - 0.1 * (sb[k] - sc[k])\na.load_state_dict(sa)",
        STATE + "update = {}\nfor k in sa:\n    update[k] = sa[k] - sb[k]",
        STATE + "for k in sa:\n    sa[k] = sa[k] - sb[k]\na.load_state_dict(sa)",
        "linear = nn.Linear(3, 3)\nsa, sb, sc = linear.state_dict(), copy.deepcopy(linear).state_dict(), linear.state_dict()\nfor k in sa:\n    sa[k] = sa[k] - 0.1 * (sb[k] - sc[k])",
    ]),
    "BN434": ([
        (DOMAINS.replace("BATCHES", "(x, y), (z, _) in zip(source, target)").replace("FORWARD", "(net(x).sum() + net(z).sum()).backward()"), "note"),
        (DOMAINS.replace("BATCHES", "x, y in source").replace("FORWARD", "net(x).sum().backward()\n    z, _ = next(iter(target))\n    net(z.cuda()).sum().backward()"), "note"),
    ], [
        DOMAINS.replace("BATCHES", "(x, y), (z, _) in zip(source, target)").replace("FORWARD", "net(torch.cat([x, z])).sum().backward()"),
        DOMAINS.replace("BATCHES", "x, y in source").replace("FORWARD", "(net(x).sum() + net(y).sum()).backward()"),
        DOMAINS.replace("BATCHES", "(x, y), (z, _) in zip(source, target)").replace("FORWARD", "(net(x).sum() + nn.Linear(3, 3)(z).sum()).backward()"),
    ]),
}  # fmt: skip
