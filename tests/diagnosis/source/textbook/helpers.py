"""Freezes by helpers with a flag, a list or a function of their own, by defaults and hooks; parts in eval again."""

WRONG = {
    "BN406": [
        (
            """\
class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = Net()
        self.head = nn.Linear(10, 2)
    def forward(self, x):
        return self.head(self.body(x))

def set_requires_grad(nets, requires_grad=False):
    if not isinstance(nets, list):
        nets = [nets]
    for net in nets:
        if net is not None:
            for param in net.parameters():
                param.requires_grad = requires_grad

def fit(net, loader):
    opt = optim.SGD([p for p in net.parameters() if p.requires_grad], 0.1)
    net.train()
    for x, y in loader:
        opt.zero_grad(); F.cross_entropy(net(x), y).backward(); opt.step()
net = Two()
set_requires_grad(net.body, False)
fit(net, loader)
""",
            "warning",
        ),
        (
            """\
class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = Net()
        self.head = nn.Linear(10, 2)
    def forward(self, x):
        return self.head(self.body(x))

def set_requires_grad(nets, requires_grad=False):
    if not isinstance(nets, list):
        nets = [nets]
    for net in nets:
        if net is not None:
            for param in net.parameters():
                param.requires_grad = requires_grad

def fit(net, loader):
    opt = optim.SGD([p for p in net.parameters() if p.requires_grad], 0.1)
    net.train()
    for x, y in loader:
        opt.zero_grad(); F.cross_entropy(net(x), y).backward(); opt.step()
net = Two()
set_requires_grad([net.body], False)
fit(net, loader)
""",
            "warning",
        ),
        (
            """\
class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = Net()
        self.head = nn.Linear(10, 2)
    def forward(self, x):
        return self.head(self.body(x))

def set_requires_grad(nets, requires_grad=False):
    if not isinstance(nets, list):
        nets = [nets]
    for net in nets:
        if net is not None:
            for param in net.parameters():
                param.requires_grad = requires_grad

def fit(net, loader):
    opt = optim.SGD([p for p in net.parameters() if p.requires_grad], 0.1)
    net.train()
    for x, y in loader:
        opt.zero_grad(); F.cross_entropy(net(x), y).backward(); opt.step()
net = Two()
set_requires_grad(net.body)
fit(net, loader)
""",
            "warning",
        ),
        (
            """\
class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = Net()
        self.head = nn.Linear(10, 2)
    def forward(self, x):
        return self.head(self.body(x))

def toggle(module, on):
    for p in module.parameters():
        p.requires_grad_(on)

def fit(net, loader):
    opt = optim.SGD([p for p in net.parameters() if p.requires_grad], 0.1)
    net.train()
    for x, y in loader:
        opt.zero_grad(); F.cross_entropy(net(x), y).backward(); opt.step()
net = Two()
toggle(net.body, False)
fit(net, loader)
""",
            "warning",
        ),
        (
            """\
class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = Net()
        self.head = nn.Linear(10, 2)
    def freeze(self, on=True):
        for p in self.body.parameters():
            p.requires_grad = not on
    def forward(self, x):
        return self.head(self.body(x))

def fit(net, loader):
    opt = optim.SGD([p for p in net.parameters() if p.requires_grad], 0.1)
    net.train()
    for x, y in loader:
        opt.zero_grad(); F.cross_entropy(net(x), y).backward(); opt.step()
net = Two()
net.freeze()
fit(net, loader)
""",
            "warning",
        ),
        (
            """\
class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = Net()
        self.head = nn.Linear(10, 2)
    def forward(self, x):
        return self.head(self.body(x))

def attr(m, b):
    m.trainable = b
    for p in m.parameters(): p.requires_grad = b
def apply_leaf(m, f):
    c = m if isinstance(m, (list, tuple)) else list(m.children())
    if isinstance(m, nn.Module):
        f(m)
    if len(c) > 0:
        for l in c:
            apply_leaf(l, f)
def set_trainable(l, b):
    apply_leaf(l, lambda m: attr(m, b))

def fit(net, loader):
    opt = optim.SGD([p for p in net.parameters() if p.requires_grad], 0.1)
    net.train()
    for x, y in loader:
        opt.zero_grad(); F.cross_entropy(net(x), y).backward(); opt.step()
net = Two()
set_trainable([net.body], False)
fit(net, loader)
""",
            "warning",
        ),
        (
            """\
class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = Net()
        set_requires_grad([self.body], False)
        self.head = nn.Linear(10, 2)
    def forward(self, x):
        return self.head(self.body(x))

def set_requires_grad(nets, requires_grad=False):
    if not isinstance(nets, list):
        nets = [nets]
    for net in nets:
        if net is not None:
            for param in net.parameters():
                param.requires_grad = requires_grad

def fit(net, loader):
    opt = optim.SGD([p for p in net.parameters() if p.requires_grad], 0.1)
    net.train()
    for x, y in loader:
        opt.zero_grad(); F.cross_entropy(net(x), y).backward(); opt.step()
net = Two()
fit(net, loader)
""",
            "warning",
        ),
        (
            """\
class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = Net()
        self.head = nn.Linear(10, 2)
    def forward(self, x):
        return self.head(self.body(x))
def fr(nets):
    if not isinstance(nets, list):
        nets = [nets]
    for net in nets:
        for p in net.parameters():
            p.requires_grad = False

def fit(net, loader):
    opt = optim.SGD([p for p in net.parameters() if p.requires_grad], 0.1)
    net.train()
    for x, y in loader:
        opt.zero_grad(); F.cross_entropy(net(x), y).backward(); opt.step()
net = Two()
fr([net.body])
fit(net, loader)
""",
            "warning",
        ),
        (
            """\
class Two(nn.Module):
    def __init__(self, freeze=True):
        super().__init__()
        self.body = Net()
        if freeze:
            for p in self.body.parameters():
                p.requires_grad = False
        self.head = nn.Linear(10, 2)
    def forward(self, x):
        return self.head(self.body(x))

def fit(net, loader):
    opt = optim.SGD(net.parameters(), 0.1)
    for e in range(9):
        net.train()
        for x, y in loader:
            opt.zero_grad(); F.cross_entropy(net(x), y).backward(); opt.step()
net = Two()
fit(net, [])
""",
            "warning",
        ),
        (
            """\
import pytorch_lightning as pl
class Lit(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.body = Net()
        self.body.load_state_dict(torch.load('a'))
        self.head = nn.Linear(10, 2)
        for p in self.body.parameters():
            p.requires_grad = False
    def training_step(self, batch, i):
        x, y = batch
        return F.cross_entropy(self.head(self.body(x)), y)
""",
            "warning",
        ),
    ],
}

RIGHT = [
    """\
class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = Net()
        self.head = nn.Linear(10, 2)
    def forward(self, x):
        return self.head(self.body(x))

def set_requires_grad(nets, requires_grad=False):
    if not isinstance(nets, list):
        nets = [nets]
    for net in nets:
        if net is not None:
            for param in net.parameters():
                param.requires_grad = requires_grad

def fit(net, loader):
    opt = optim.SGD([p for p in net.parameters() if p.requires_grad], 0.1)
    net.train()
    for x, y in loader:
        opt.zero_grad(); F.cross_entropy(net(x), y).backward(); opt.step()
net = Two()
set_requires_grad(net.body, True)
fit(net, loader)
""",
    """\
class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = Net()
        self.head = nn.Linear(10, 2)
    def forward(self, x):
        return self.head(self.body(x))

def set_requires_grad(nets, requires_grad=False):
    if not isinstance(nets, list):
        nets = [nets]
    for net in nets:
        if net is not None:
            for param in net.parameters():
                param.requires_grad = requires_grad

def fit(net, loader):
    opt = optim.SGD([p for p in net.parameters() if p.requires_grad], 0.1)
    net.train()
    for x, y in loader:
        opt.zero_grad(); F.cross_entropy(net(x), y).backward(); opt.step()
net = Two()
set_requires_grad(net.body, False)
set_requires_grad(net.body, True)
fit(net, loader)
""",
    """\
class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = Net()
        self.head = nn.Linear(10, 2)
    def forward(self, x):
        return self.head(self.body(x))

def set_requires_grad(nets, requires_grad=False):
    if not isinstance(nets, list):
        nets = [nets]
    for net in nets:
        if net is not None:
            for param in net.parameters():
                param.requires_grad = requires_grad

def fit(net, loader):
    opt = optim.SGD([p for p in net.parameters() if p.requires_grad], 0.1)
    net.train(); net.body.eval()
    for x, y in loader:
        opt.zero_grad(); F.cross_entropy(net(x), y).backward(); opt.step()
net = Two()
set_requires_grad(net.body, False)
fit(net, loader)
""",
    """\
class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = Net()
        self.head = nn.Linear(10, 2)
    def forward(self, x):
        return self.head(self.body(x))

def fit(net, loader):
    opt = optim.SGD([p for p in net.parameters() if p.requires_grad], 0.1)
    net.train()
    for e in range(3):
     net.train(); net.body.eval()
     for x, y in loader:
         opt.zero_grad(); F.cross_entropy(net(x), y).backward(); opt.step()
net = Two()
for p in net.body.parameters():
    p.requires_grad = False
fit(net, loader)
""",
    """\
class Two(nn.Module):
    def __init__(self, freeze=False):
        super().__init__()
        self.body = Net()
        if freeze:
            for p in self.body.parameters():
                p.requires_grad = False
        self.head = nn.Linear(10, 2)
    def forward(self, x):
        return self.head(self.body(x))

def fit(net, loader):
    opt = optim.SGD(net.parameters(), 0.1)
    for e in range(9):
        net.train()
        for x, y in loader:
            opt.zero_grad(); F.cross_entropy(net(x), y).backward(); opt.step()
net = Two()
fit(net, [])
""",
    """\
import pytorch_lightning as pl
class Lit(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.body = Net()
        self.body.load_state_dict(torch.load('a'))
        self.head = nn.Linear(10, 2)
        for p in self.body.parameters():
            p.requires_grad = False
    def training_step(self, batch, i):
        x, y = batch
        return F.cross_entropy(self.head(self.body(x)), y)
    def on_train_epoch_start(self):
        self.body.eval()
""",
    """\
def set_requires_grad(nets, flag=False):
    for net in nets if isinstance(nets, list) else [nets]:
        for p in net.parameters():
            p.requires_grad = flag

class D(Net):
    pass
def main(loader):
    g, d = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3)), D()
    og, od = optim.Adam(g.parameters()), optim.Adam(d.parameters())
    for x in loader:
        fake = g(torch.randn(8, 3))
        set_requires_grad(d, False)
        og.zero_grad(); d(fake).mean().backward(); og.step()
        set_requires_grad(d, True)
        od.zero_grad(); (d(x) - d(fake.detach())).mean().backward(); od.step()
main([])
""",
    """\
class Model:
    def __init__(self):
        self.netG, self.netD = Net(), Net()
        self.og, self.od = optim.Adam(self.netG.parameters()), optim.Adam(self.netD.parameters())
    def set_requires_grad(self, nets, requires_grad=False):
        if not isinstance(nets, list):
            nets = [nets]
        for net in nets:
            if net is not None:
                for param in net.parameters():
                    param.requires_grad = requires_grad
    def backward_D(self):
        self.loss = (self.netD(self.y) - self.netD(self.fake.detach())).mean()
        self.loss.backward()
    def backward_G(self):
        self.lg = self.netD(self.fake).mean()
        self.lg.backward()
    def optimize_parameters(self):
        self.fake = self.netG(self.x)
        self.set_requires_grad(self.netD, True)
        self.od.zero_grad(); self.backward_D(); self.od.step()
        self.set_requires_grad(self.netD, False)
        self.og.zero_grad(); self.backward_G(); self.og.step()
def main(loader):
    m = Model()
    for x, y in loader:
        m.x, m.y = x, y
        m.optimize_parameters()
main([])
""",
    """\
def toggle_grad(model, on_or_off):
    for param in model.parameters():
        param.requires_grad = on_or_off
def g_step(G, D, opt):
    toggle_grad(G, True)
    toggle_grad(D, False)
    opt.zero_grad(); D(G(torch.randn(3, 3))).mean().backward(); opt.step()
def d_step(G, D, x, opt):
    toggle_grad(G, False)
    toggle_grad(D, True)
    opt.zero_grad(); (D(G(torch.randn(3, 3)).detach()) - D(x)).mean().backward(); opt.step()
def main(loader):
    G, D = Net(), Net()
    G.train(); D.train()
    og, od = optim.Adam(G.parameters()), optim.Adam(D.parameters())
    for x in loader:
        d_step(G, D, x, od)
        g_step(G, D, og)
main([])
""",
    """\
class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = Net(); self.head = nn.Linear(10, 2)
    def freeze(self, on):
        for p in self.body.parameters():
            p.requires_grad = not on
        self.body.train(not on)
    def forward(self, x):
        return self.head(self.body(x))
net = Two()
net.freeze(False)
net.train()
opt = optim.SGD(net.parameters(), 0.1)
for x, y in loader:
    opt.zero_grad(); F.cross_entropy(net(x), y).backward(); opt.step()
""",
    """\
class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = Net(); self.head = nn.Linear(10, 2)
    def forward(self, x):
        return self.head(self.body(x))
net = Two()
for p in net.body.parameters():
    p.requires_grad = False
opt = optim.SGD(net.head.parameters(), 0.1)
def train(net, loader):
    net.train()
    for m in net.body.modules():
        if isinstance(m, nn.BatchNorm2d):
            m.eval()
    for x, y in loader:
        opt.zero_grad(); F.cross_entropy(net(x), y).backward(); opt.step()
train(net, [])
""",
    """\
class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = Net(); self.head = nn.Linear(10, 2)
    def forward(self, x):
        return self.head(self.body(x))
net = Two()
for p in net.body.parameters():
    p.requires_grad = False
opt = optim.SGD(net.head.parameters(), 0.1)
def train(net, loader):
    net.eval()
    net.head.train()
    for x, y in loader:
        opt.zero_grad(); F.cross_entropy(net(x), y).backward(); opt.step()
train(net, [])
""",
]
