# ruff: noqa: E501
"""Training scripts: what a rule finds in them, in five spellings or more, and what it must not mistake for it."""

HEAD = """import copy, argparse, torch, torchvision
from torch import nn, optim
from torch.utils.data import DataLoader
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU())
        self.fc = nn.Linear(8, 2)
    def forward(self, x):
        return self.fc(self.body(x).mean((2, 3)))
"""
FIT = """
def fit(net, loader, optimizer):
    for epoch in range(9):
        net.train()
        for x, y in loader:
            optimizer.zero_grad()
            net(x).sum().backward()
            optimizer.step()
    net.eval()
"""
PENALTY = """
def penalty(critic, real, fake):
    mixed = (real + fake).requires_grad_(True)
    out = critic(mixed)
    g = torch.autograd.grad(outputs=out, inputs=mixed, grad_outputs=torch.ones_like(out), create_graph=True)[0]
    return ((g.norm(2, 1) - 1) ** 2).mean()
"""
SMALL = "loader = DataLoader(data, batch_size=1, shuffle=True)\n"
RESNET = "model = torchvision.models.resnet18(pretrained=True)\n"
BACKBONE = """
class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.backbone = torchvision.models.resnet50(pretrained=True)
        {}
        self.head = nn.Linear(1000, 10)
    {}
    def forward(self, x):
        return self.head(self.backbone(x))
model = Model().cuda()
fit(model, loader, optimizer)
"""

# code: (found, not found); a found one is a pair with its severity, "warning" where it is left out
CASES = {
    "BN405": ([
        "net = Net()\nnet.load_state_dict(torch.load('a.pt'))\nfor x, y in test_loader:\n    right += (net(x).argmax(1) == y).sum()",
        "net = Net()\nnet.load_state_dict(torch.load('a.pt'))\ndef predict(image):\n    return net(image).argmax(1)\npredict(x)",
        "def load(net, path):\n    net.load_state_dict(torch.load(path))\nnet = Net().cuda()\nload(net, 'a.pt')\nprint(net(image.unsqueeze(0))[0])",
        "net = torchvision.models.resnet50(pretrained=True)\nfor x in loader:\n    features.append(net(x.cuda()).data)",
        "class Agent:\n    def __init__(self):\n        self.actor = Net()\n        self.optimizer = optim.Adam(self.actor.parameters())\n    def act(self, s):\n        with torch.no_grad():\n            return self.actor(s)\n    def learn(self, s):\n        self.actor(s).sum().backward()\n        self.optimizer.step()\nagent = Agent()\nagent.act(s)\nagent.learn(s)",
    ], [
        "net = Net()\nnet.load_state_dict(torch.load('a.pt'))\nnet.eval()\nfor x in loader:\n    net(x)",
        "net = Net()\nnet.load_state_dict(torch.load('a.pt'))\nnet(torch.randn(1, 3, 8, 8))",
        "net = Net()\nnet.load_state_dict(torch.load('a.pt'))\nfor x in loader:\n    net(x).sum().backward()\n    optimizer.step()",
        "net = Net()\nnet(x)",
        "def build(pretrained=False):\n    net = Net()\n    if pretrained:\n        net.load_state_dict(torch.load('a.pt'))\n    return net\nnet = build()\nnet(x)",
        "net = Net()\nnet.load_state_dict(torch.load('a.pt'))\nnet = net.train(False)\nprint(net(x))",
    ]),
    "BN406": ([
        FIT + BACKBONE.format("for p in self.backbone.parameters():\n            p.requires_grad = False", "pass"),
        FIT + BACKBONE.format("self.freeze()", "def freeze(self):\n        for name, p in self.backbone.named_parameters():\n            p.requires_grad = False"),
        FIT + RESNET + "for child in list(model.children())[:7]:\n    pass\nfor at, child in enumerate(model.children()):\n    if at < 7:\n        for p in child.parameters():\n            p.requires_grad = False\nfit(model, loader, optimizer)",
        RESNET + "for p in model.parameters():\n    p.requires_grad = False\nmodel.fc = nn.Linear(512, 2)\nfor x, y in loader:\n    model(x).sum().backward()\n    optimizer.step()",
        RESNET + "for p in model.parameters():\n    p.requires_grad = False\nmodel.fc = nn.Linear(512, 2)\ndef train(model):\n    for phase in ('train', 'val'):\n        if phase == 'train':\n            model.train()\n        else:\n            model.eval()\n        for x, y in loaders[phase]:\n            with torch.set_grad_enabled(phase == 'train'):\n                loss = model(x).sum()\n                if phase == 'train':\n                    loss.backward()\ntrain(model)",
        "def freeze(net, on):\n    if on:\n        for p in net.parameters():\n            p.requires_grad = False\ndef build(name, on):\n    net = None\n    if name == 'resnet':\n        net = torchvision.models.resnet18(pretrained=True)\n        freeze(net, on)\n        net.fc = nn.Linear(512, 2)\n    return net\n" + FIT + "fit(build('resnet', True), loader, optimizer)",
    ], [
        FIT + BACKBONE.format("for p in self.backbone.parameters():\n            p.requires_grad = False", "def train(self, mode=True):\n        super().train(mode)\n        self.backbone.eval()\n        return self"),
        "target = Net()\nonline = Net()\nfor p in target.parameters():\n    p.requires_grad = False\nfor t, o in zip(target.parameters(), online.parameters()):\n    t.data = 0.99 * t.data + 0.01 * o.data\ntarget.train()\nfor x in loader:\n    (online(x) - target(x)).sum().backward()",
        RESNET + "for m in model.children():\n    if isinstance(m, nn.Conv2d):\n        for p in m.parameters():\n            p.requires_grad = False\nmodel.fc = nn.Linear(512, 2)\nmodel.train()\nfor x in loader:\n    model(x).sum().backward()",
        RESNET + "for p in model.parameters():\n    p.requires_grad = False\nmodel.fc = nn.Linear(512, 2)\nmodel.eval()\nfor x in loader:\n    model(x).sum().backward()",
        FIT + BACKBONE.replace("resnet50", "vgg16").format("for p in self.backbone.parameters():\n            p.requires_grad = False", "pass"),
        "def make(c, bn=False):\n    parts = [nn.Conv2d(3, c, 3)]\n    if bn:\n        parts += [nn.BatchNorm2d(c)]\n    return nn.Sequential(*parts)\n" + FIT + BACKBONE.replace("torchvision.models.resnet50(pretrained=True)", "make(8, bn=False)").format("for p in self.backbone.parameters():\n            p.requires_grad = False", "pass"),
    ]),
    "BN408": ([
        FIT + BACKBONE.format("self.backbone.eval()", "pass"),
        FIT + "class Frozen(nn.Module):\n    def __init__(self, freeze=True):\n        super().__init__()\n        self.bn = nn.BatchNorm2d(3)\n        if freeze:\n            self.freeze()\n    def freeze(self):\n        for m in self.modules():\n            if isinstance(m, nn.BatchNorm2d):\n                m.eval()\n    def forward(self, x):\n        return self.bn(x)\nfit(Frozen(), loader, optimizer)",
        "class Trainer:\n    def __init__(self):\n        self.model = Net()\n        for m in self.model.modules():\n            if isinstance(m, nn.BatchNorm2d):\n                m.eval()\n    def epoch(self):\n        self.model.train()\n        for x in loader:\n            self.model(x).sum().backward()\ntrainer = Trainer()\ntrainer.epoch()",
        "def freeze(m):\n    if isinstance(m, nn.BatchNorm2d):\n        m.eval()\ndef validate(net):\n    net.eval()\n    with torch.no_grad():\n        net(x)\n    net.train()\ndef main():\n    net = Net()\n    net.train()\n    net.apply(freeze)\n    for epoch in range(9):\n        for x in loader:\n            net(x).sum().backward()\n        validate(net)\nmain()",
        FIT + "def build():\n    net = torchvision.models.resnet18()\n    for m in net.modules():\n        if isinstance(m, nn.BatchNorm2d):\n            m.eval()\n    return net\nfit(build(), loader, optimizer)",
    ], [
        FIT + BACKBONE.format("self.backbone.eval()", "def train(self, mode=True):\n        super().train(mode)\n        self.backbone.eval()\n        return self"),
        FIT + BACKBONE.replace("resnet50", "vgg16").format("self.backbone.eval()", "pass"),
        BACKBONE.format("self.backbone.eval()", "pass").replace("fit(model, loader, optimizer)", "model.train()\nmodel.backbone.eval()\nfor x in loader:\n    model(x).sum().backward()"),
        "net = Net()\nnet.body.eval()\nkept = net.body(x)\nnet.train()\nfor x in loader:\n    net(x).sum().backward()",
        FIT + "class Frozen(nn.Module):\n    def __init__(self):\n        super().__init__()\n        self.bn = nn.BatchNorm2d(3)\n        self.freeze()\n    def train(self, mode=True):\n        super().train(mode)\n        self.freeze()\n    def freeze(self):\n        for m in self.modules():\n            if isinstance(m, nn.BatchNorm2d):\n                m.eval()\n    def forward(self, x):\n        return self.bn(x)\nfit(Frozen(), loader, optimizer)",
    ]),
    "BN413": ([
        "def merge(net, others):\n    for p in net.parameters():\n        p.data.zero_()\n    for other in others:\n        for a, b in zip(net.parameters(), other.parameters()):\n            a.data += b.data / len(others)\nmean = Net()\nmerge(mean, [Net(), Net()])\nmean.eval()\nmean(x)",
    ], []),
    "BN426": ([
        FIT + SMALL + "fit(Net(), loader, optimizer)",
        FIT + "fit(Net(), DataLoader(data, shuffle=True), optimizer)",
        (FIT + "parser = argparse.ArgumentParser()\nparser.add_argument('--batch-size', type=int, default=1)\nargs = parser.parse_args()\nfit(Net(), DataLoader(data, args.batch_size), optimizer)", "note"),
        (FIT + "def loaders(size):\n    return DataLoader(data, batch_size=size)\ntest = loaders(64)\nfit(Net(), loaders(1), optimizer)", "note"),
        "class Trainer:\n    def __init__(self):\n        self.net = Net()\n        self.loader = DataLoader(data, batch_size=1)\n    def run(self):\n        self.net.train()\n        for at, batch in enumerate(self.loader):\n            self.net(batch['image'].cuda()).sum().backward()\n        self.net.eval()\ntrainer = Trainer()\ntrainer.run()",
        (FIT + SMALL.replace("=1", "=4") + "fit(Net(), loader, optimizer)", "note"),
        (FIT.replace("    net.eval()\n", "") + SMALL + "fit(Net(), loader, optimizer)", "note"),
    ], [
        FIT + SMALL.replace("=1", "=5") + "fit(Net(), loader, optimizer)",
        FIT + SMALL + "fit(nn.Sequential(nn.Conv2d(3, 8, 3), nn.InstanceNorm2d(8)), loader, optimizer)",
        FIT + "fit(Net(), DataLoader(data, batch_sampler=sampler), optimizer)",
        FIT + "fit(Net(), DataLoader(data, batch_size=1, collate_fn=pack), optimizer)",
        FIT + "fit(Net(), DataLoader(data, batch_size=size), optimizer)",
        FIT.replace("net(x)", "net(x[0])") + SMALL + "fit(Net(), loader, optimizer)",
        FIT.replace("net(x)", "net(x.view(-1, 3, 8, 8))") + SMALL + "fit(Net(), loader, optimizer)",
        SMALL + "net = Net()\nnet.eval()\nfor x, y in loader:\n    net(x).sum().backward()",
        SMALL + "net = Net()\nnet.train()\nfor m in net.modules():\n    if isinstance(m, nn.BatchNorm2d):\n        m.eval()\nfor x, y in loader:\n    net(x).sum().backward()",
    ]),
    "BN427": ([
        PENALTY + "penalty(Net(), x, y).backward()",
        PENALTY + "critic = Net()\ncritic.train()\nfor x in loader:\n    (10 * penalty(critic, x, y)).backward()",
        "class Gan:\n    def __init__(self):\n        self.critic = Net()\n    def penalty(self, x):\n        score = self.critic(x).view(-1)\n        return torch.autograd.grad(score, x, torch.ones_like(score), True, create_graph=True)[0].norm()",
        "from torch import autograd\ncritic = nn.Sequential(nn.Conv2d(3, 1, 3), nn.BatchNorm2d(1))\nx.requires_grad_()\nautograd.grad(critic(x).sum(), x, create_graph=True)[0].square().sum().backward()",
        "critic = Net()\ny, classes = critic(x)\ngrads = torch.autograd.grad(outputs=[y.sum()], inputs=[x], create_graph=True)\n(grads[0].norm(2, 1) - 1).pow(2).mean().backward()",
    ], [
        PENALTY.replace(", create_graph=True", "") + "penalty(Net().eval(), x, y)",
        PENALTY + "penalty(Net().eval(), x, y)",
        PENALTY + "penalty(nn.Sequential(nn.Conv2d(3, 1, 3), nn.LayerNorm(8)), x, y)",
        "net = Net()\nloss = net(x).sum()\ntorch.autograd.grad(loss, net.parameters(), create_graph=True)",
        "net = Net()\nweights = [p for p in net.parameters()]\nloss = net(x).sum()\ntorch.autograd.grad(loss, weights, create_graph=True)",
        "class Critic(nn.Module):\n    def __init__(self, plain=False):\n        super().__init__()\n        self.f = nn.Sequential(nn.Conv2d(3, 8, 3), nn.LayerNorm(8) if plain else nn.BatchNorm2d(8))\n    def forward(self, x):\n        return self.f(x)\n" + PENALTY + "penalty(Critic(settings), x, y)",
    ]),
    "BN428": ([
        "G = Net()\nG.load_state_dict(torch.load('g.pt'))\nwith torch.no_grad():\n    images = G(noise)",
        "netG = Net().cuda()\nnetG.load_state_dict(torch.load('g.pt'))\nimages = netG(z)",
        "def sample(generator, z):\n    with torch.no_grad():\n        return generator(z)\ngenerator = Net()\ngenerator.load_state_dict(torch.load('g.pt')['G'])\nsample(generator, z)",
        "generator = Net()\ngenerator.load_state_dict(torch.load('g.pt'))\nfor real in loader:\n    fakes.append(generator(real))",
        ("G = Net()\nfor x in loader:\n    G(x).sum().backward()\n    with torch.no_grad():\n        save(G(fixed_noise))", "note"),
        ("class Gan:\n    def __init__(self):\n        self.netG = Net()\n    def step(self):\n        self.netG(z).sum().backward()\n    @torch.no_grad()\n    def show(self):\n        return self.netG(self.fixed)\ngan = Gan()\ngan.step()\ngan.show()", "note"),
    ], [
        "G = Net()\nG.load_state_dict(torch.load('g.pt'))\nG.eval()\nwith torch.no_grad():\n    images = G(noise)",
        "G = Net()\nfor x in loader:\n    G(x).sum().backward()\n    G.eval()\n    with torch.no_grad():\n        save(G(fixed_noise))\n    G.train()",
        "G = nn.Sequential(nn.Linear(8, 8), nn.InstanceNorm1d(8))\nG.load_state_dict(torch.load('g.pt'))\nwith torch.no_grad():\n    images = G(noise)",
        "G = Net()\nfor x in loader:\n    fake = G(noise)\n    D(fake).sum().backward()",
        "def measure(G):\n    for m in G.modules():\n        if isinstance(m, nn.BatchNorm2d):\n            m.reset_running_stats()\n    with torch.no_grad():\n        for z in noises:\n            G(z)\nmeasure(Net())",
    ]),
    "BN429": ([
        "net = Net()\nnet.eval",
        "net = Net()\nnet.train\nx = 1",
        "net = Net()\nnet.training = False",
        "def main():\n    net = nn.DataParallel(Net())\n    net.module.eval\nmain()",
        "model = torchvision.models.resnet18()\nmodel.layer1.training = True",
        "class Trainer:\n    def __init__(self):\n        self.net = Net()\n    def test(self):\n        self.net.eval\n        return 1",
    ], [
        "net = Net()\nnet.eval()",
        "net = Net()\nswitch = net.eval\nswitch()",
        "net = Net()\nfor m in net.modules():\n    m.training = False",
        "net = Net()\nnet.training",
        "class Trainer:\n    def start(self):\n        self.training = True",
        "import pandas\nframe = pandas.DataFrame()\nframe.eval",
        "bn = nn.BatchNorm2d(3)\nbn.training = False",
        "net = Net()\nnet.training = False\nnet.eval()",
    ]),
    "BN430": ([
        RESNET + "model.fc = nn.Linear(512, 2)\noptimizer = optim.Adam(model.fc.parameters())\n" + FIT + "fit(model, loader, optimizer)",
        RESNET + "optimizer = torch.optim.SGD(model.fc.parameters(), lr=0.1)\n" + FIT + "fit(model, loader, optimizer)",
        "model = torchvision.models.densenet121(pretrained=True)\nmodel.classifier = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 2))\ndef run(model):\n    optimizer = optim.Adam(model.classifier.parameters(), lr=0.1)\n    for x, y in loader:\n        optimizer.zero_grad()\n        model(x).sum().backward()\n        optimizer.step()\nrun(model)",
        "net = Net()\nnet.load_state_dict(torch.load('a.pt'))\noptimizer = optim.AdamW(net.fc.parameters())\n" + FIT + "fit(net, loader, optimizer)",
        RESNET + "model.fc = nn.Linear(512, 2)\nmodel = model.cuda()\nmodel.train()\noptimizer = optim.SGD(params=model.fc.parameters(), lr=0.1)\nfor epoch in range(3):\n    for x, y in loader:\n        model(x).sum().backward()\n        optimizer.step()",
    ], [
        RESNET + "model.fc = nn.Linear(512, 2)\noptimizer = optim.Adam(model.parameters())\n" + FIT + "fit(model, loader, optimizer)",
        RESNET + "head = optim.Adam(model.fc.parameters())\nrest = optim.Adam(others)\n" + FIT + "fit(model, loader, head)",
        RESNET + "optimizer = optim.Adam(model.fc.parameters())\nmodel.eval()\nfor x, y in loader:\n    model(x).sum().backward()",
        RESNET.replace("resnet18", "vgg16") + "optimizer = optim.Adam(model.classifier.parameters())\n" + FIT + "fit(model, loader, optimizer)",
        "model = Net()\noptimizer = optim.Adam(model.fc.parameters())\n" + FIT + "fit(model, loader, optimizer)",
        RESNET + "optimizer = optim.Adam(model.fc.parameters())\noptimizer.add_param_group({'params': model.layer4.parameters()})\n" + FIT + "fit(model, loader, optimizer)",
    ]),
}  # fmt: skip
