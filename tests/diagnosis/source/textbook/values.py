"""Models in dicts, lists, closures and objects; forwards for values alone; parameters loaded without statistics."""

WRONG = {
    "BN405": [
        (
            """\
class Agent:
    def __init__(self):
        self.net = Net()
        self.opt = optim.Adam(self.net.parameters())
    def act(self, state):
        return self.net(state)
    def learn(self, batch):
        x, y = batch
        loss = F.mse_loss(self.net(x), y)
        self.opt.zero_grad(); loss.backward(); self.opt.step()
def play(env, agent):
    s = env.reset()
    while True:
        a = agent.act(s).argmax(1).item()
        s, r, done = env.step(a)
        if done: return r
def main(env):
    agent = Agent()
    for e in range(100):
        agent.learn(env.batch())
        print(play(env, agent))
main(None)
""",
            "warning",
        ),
        (
            """\
def embeddings(model, loader, device):
    out = []
    for x in loader:
        out.append(model.embed(x.to(device)))
    return torch.cat(out).cpu().numpy()
class M(Net):
    def embed(self, x):
        return self.forward(x)
def epoch(model, loader, opt):
    model.train()
    for x in loader:
        loss = model(x).sum(); loss.backward(); opt.step(); opt.zero_grad()
model = M()
opt = optim.Adam(model.parameters())
for e in range(10):
    epoch(model, [], opt)
print(embeddings(model, [], 'cpu'))
""",
            "note",
        ),
        (
            """\
import pytorch_lightning as pl
class Lit(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.net = Net()
    def forward(self, x):
        return self.net(x)
model = Lit.load_from_checkpoint('a.ckpt')
with torch.no_grad():
    for x in DataLoader(data):
        print(model(x))
""",
            "warning",
        ),
    ],
    "BN412": [
        (
            """\
net = Net()
opt = optim.SGD(net.parameters(), 0.1)

def train(loader):
    net.train()
    for x, y in loader:
        out = net(x)
        loss = F.cross_entropy(out, y)
        opt.zero_grad(); loss.backward(); opt.step()
        clean = net(x.detach())
        print((clean.max(1)[1] == y).sum().item())
train([])
""",
            "note",
        ),
        (
            """\
class Learner(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = Net()
        self.opt = optim.SGD(self.net.parameters(), 0.1)
    def observe(self, x, y):
        self.net.train()
        loss = F.cross_entropy(self.net(x), y)
        self.opt.zero_grad(); loss.backward(); self.opt.step()
        mean = self.net(self.memory).data.clone().mean(0)
        self.means[y] = mean
def main(loader):
    learner = Learner()
    for x, y in loader:
        learner.observe(x, y)
main([])
""",
            "note",
        ),
        (
            """\
def pgd(model, x, y, bneval=False):
    if bneval:
        model.eval()
    d = torch.zeros_like(x).uniform_(-1, 1)
    for _ in range(7):
        d.requires_grad_()
        loss = F.cross_entropy(model(x + d), y)
        g, = torch.autograd.grad(loss, [d])
        d = (d + g.sign()).detach()
    if bneval:
        model.train()
    return x + d
def train(model, loader, opt):
    model.train()
    for x, y in loader:
        x = pgd(model, x, y)
        opt.zero_grad(); F.cross_entropy(model(x), y).backward(); opt.step()
net = Net()
train(net, [], optim.SGD(net.parameters(), 0.1))
""",
            "note",
        ),
    ],
    "BN413": [
        (
            """\
class EMA:
    def __init__(self, model):
        self.shadow = {k: v.clone().detach() for k, v in model.state_dict().items()}
        self.names = [k for k, _ in model.named_parameters()]
    def update(self, model):
        state = model.state_dict()
        for n in self.names:
            self.shadow[n].copy_(0.9 * self.shadow[n] + 0.1 * state[n])
    def apply(self, model):
        model.load_state_dict(self.shadow)
def main(loader):
    net = Net(); ema = EMA(net); opt = optim.SGD(net.parameters(), 0.1)
    for x, y in loader:
        opt.zero_grad(); F.cross_entropy(net(x), y).backward(); opt.step(); ema.update(net)
    ema.apply(net)
main([])
""",
            "note",
        ),
        (
            """\
def aggregate(glob, clients):
    with torch.no_grad():
        for p, *qs in zip(glob.parameters(), *[c.parameters() for c in clients]):
            p.copy_(torch.stack([q for q in qs]).mean(0))
def local(net, loader):
    net.train(); opt = optim.SGD(net.parameters(), 0.1)
    for x, y in loader:
        opt.zero_grad(); F.cross_entropy(net(x), y).backward(); opt.step()
def main(loaders):
    glob = Net()
    for r in range(10):
        clients = [copy.deepcopy(glob) for _ in loaders]
        for c, l in zip(clients, loaders): local(c, l)
        aggregate(glob, clients)
    glob.eval()
    for x, y in loaders[0]: print(glob(x))
main([])
""",
            "warning",
        ),
    ],
    "BN418": [
        (
            """\
def test(net, loader):
    net.eval()
    with torch.no_grad():
        for x, y in loader: print(net(x).argmax(1))
def main(train, test_loader):
    glob = Net()
    net_local_list = []
    for u in range(3):
        net_local_list.append(copy.deepcopy(glob))
    for u, net in enumerate(net_local_list):
        opt = optim.SGD(net.parameters(), 0.1)
        for e in range(3):
            for x, y in train:
                net.zero_grad(); loss = F.cross_entropy(net(x), y); loss.backward(); opt.step()
            test(net, test_loader)
main([], [])
""",
            "warning",
        ),
        (
            """\
class Trainer:
    def __init__(self):
        self.models = {'enc': Net(), 'dec': nn.Linear(10, 3)}
        self.opt = optim.Adam(list(self.models['enc'].parameters()) + list(self.models['dec'].parameters()))
    def train(self, loader):
        for e in range(5):
            for x, y in loader:
                loss = F.mse_loss(self.models['dec'](self.models['enc'](x)), y)
                self.opt.zero_grad(); loss.backward(); self.opt.step()
            self.val(loader)
    def val(self, loader):
        for m in self.models.values():
            m.eval()
        with torch.no_grad():
            for x, y in loader:
                print(F.mse_loss(self.models['dec'](self.models['enc'](x)), y))
Trainer().train([])
""",
            "warning",
        ),
        (
            """\
def main(loader):
    net = Net()
    opt = optim.SGD(net.parameters(), 0.1)
    def step(x, y):
        opt.zero_grad(); F.cross_entropy(net(x), y).backward(); opt.step()
    def check(x):
        net.eval()
        with torch.no_grad():
            return net(x).argmax(1)
    for e in range(9):
        for x, y in loader:
            step(x, y)
        check(x)
main([])
""",
            "warning",
        ),
    ],
    "BN419": [
        (
            """\
def local(net, loader):
    anchor = copy.deepcopy(net)
    for p in anchor.parameters():
        p.requires_grad = False
    net.train()
    opt = optim.SGD(net.parameters(), 0.1)
    for x, y in loader:
        loss = F.cross_entropy(net(x), y) + F.mse_loss(net(x), anchor(x))
        opt.zero_grad(); loss.backward(); opt.step()
net = Net()
net.load_state_dict(torch.load('a'))
local(net, [])
""",
            "warning",
        ),
    ],
    "BN439": [
        (
            """\
class M(Net):
    def train(self, mode=True):
        super().train(mode=True)
        print('on')
net = M()
net.eval()
print(net(x))
""",
            "warning",
        ),
    ],
    "BN442": [
        (
            """\
def load(net, path):
    saved = torch.load(path)
    for name, p in net.named_parameters():
        if name in saved:
            p.data.copy_(saved[name])
def main():
    net = Net()
    load(net, 'a.pt')
    net.eval()
    for x in DataLoader(data): print(net(x))
main()
""",
            "warning",
        ),
        (
            """\
def load(net, path):
    saved = torch.load(path)
    if saved.keys() == net.state_dict().keys():
        net.load_state_dict(saved)
        return
    for name, p in net.named_parameters():
        if name in saved:
            p.data.copy_(saved[name])
def main():
    net = Net()
    load(net, 'a.pt')
    net.eval()
    for x in DataLoader(data): print(net(x))
main()
""",
            "warning",
        ),
        (
            """\
def load(net, path):
    saved = torch.load(path)
    own = dict(net.named_parameters())
    for name, v in saved.items():
        if name in own:
            own[name].data.copy_(v)
def main():
    net = Net()
    load(net, 'a.pt')
    net.eval()
    for x in DataLoader(data): print(net(x))
main()
""",
            "warning",
        ),
    ],
}

RIGHT = [
    """\
def test(net, loader):
    net.eval()
    with torch.no_grad():
        for x, y in loader: print(net(x).argmax(1))
def main(train, test_loader):
    glob = Net()
    net_local_list = []
    for u in range(3):
        net_local_list.append(copy.deepcopy(glob))
    for u, net in enumerate(net_local_list):
        opt = optim.SGD(net.parameters(), 0.1)
        for e in range(3):
            net.train()
            for x, y in train:
                net.zero_grad(); loss = F.cross_entropy(net(x), y); loss.backward(); opt.step()
            test(net, test_loader)
main([], [])
""",
    """\
class Trainer:
    def __init__(self):
        self.models = {'enc': Net(), 'dec': nn.Linear(10, 3)}
        self.opt = optim.Adam(list(self.models['enc'].parameters()) + list(self.models['dec'].parameters()))
    def train(self, loader):
        for e in range(5):
            for m in self.models.values():
                m.train()
            for x, y in loader:
                loss = F.mse_loss(self.models['dec'](self.models['enc'](x)), y)
                self.opt.zero_grad(); loss.backward(); self.opt.step()
            self.val(loader)
    def val(self, loader):
        for m in self.models.values():
            m.eval()
        with torch.no_grad():
            for x, y in loader:
                print(F.mse_loss(self.models['dec'](self.models['enc'](x)), y))
Trainer().train([])
""",
    """\
def main(loader):
    net = Net()
    opt = optim.SGD(net.parameters(), 0.1)
    def step(x, y):
        opt.zero_grad(); F.cross_entropy(net(x), y).backward(); opt.step()
    def check(x):
        net.eval()
        with torch.no_grad():
            return net(x).argmax(1)
    for e in range(9):
        net.train()
        for x, y in loader:
            step(x, y)
        check(x)
main([])
""",
    """\
class Agent:
    def __init__(self):
        self.net = Net()
        self.opt = optim.Adam(self.net.parameters())
    def act(self, state):
        self.net.eval()
        out = self.net(state)
        self.net.train()
        return out
    def learn(self, batch):
        x, y = batch
        loss = F.mse_loss(self.net(x), y)
        self.opt.zero_grad(); loss.backward(); self.opt.step()
def play(env, agent):
    s = env.reset()
    while True:
        a = agent.act(s).argmax(1).item()
        s, r, done = env.step(a)
        if done: return r
def main(env):
    agent = Agent()
    for e in range(100):
        agent.learn(env.batch())
        print(play(env, agent))
main(None)
""",
    """\
class Agent:
    def __init__(self):
        self.net = Net()
        self.opt = optim.Adam(self.net.parameters())
    def act(self, state):
        return self.net(state)
    def learn(self, batch):
        x, y = batch
        loss = F.mse_loss(self.act(x), y)
        self.opt.zero_grad(); loss.backward(); self.opt.step()
def play(env, agent):
    s = env.reset()
    while True:
        a = agent.act(s).argmax(1).item()
        s, r, done = env.step(a)
        if done: return r
def main(env):
    agent = Agent()
    for e in range(100):
        agent.learn(env.batch())
        print(play(env, agent))
main(None)
""",
    """\
def embeddings(model, loader, device):
    model.eval()
    out = []
    for x in loader:
        out.append(model.embed(x.to(device)))
    return torch.cat(out).cpu().numpy()
class M(Net):
    def embed(self, x):
        return self.forward(x)
def epoch(model, loader, opt):
    model.train()
    for x in loader:
        loss = model(x).sum(); loss.backward(); opt.step(); opt.zero_grad()
model = M()
opt = optim.Adam(model.parameters())
for e in range(10):
    epoch(model, [], opt)
print(embeddings(model, [], 'cpu'))
""",
    """\
net = Net()
opt = optim.SGD(net.parameters(), 0.1)

def train(loader):
    net.train()
    for x, y in loader:
        out = net(x)
        loss = F.cross_entropy(out, y)
        opt.zero_grad(); loss.backward(); opt.step()
        print((out.max(1)[1] == y).sum().item())
train([])
""",
    """\
class Learner(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = Net()
        self.opt = optim.SGD(self.net.parameters(), 0.1)
    def observe(self, x, y):
        self.net.train()
        loss = F.cross_entropy(self.net(x), y)
        self.opt.zero_grad(); loss.backward(); self.opt.step()
        self.net.eval()
        mean = self.net(self.memory).data.clone().mean(0)
        self.means[y] = mean
def main(loader):
    learner = Learner()
    for x, y in loader:
        learner.observe(x, y)
main([])
""",
    """\
def pgd(model, x, y, bneval=False):
    if bneval:
        model.eval()
    d = torch.zeros_like(x).uniform_(-1, 1)
    for _ in range(7):
        d.requires_grad_()
        loss = F.cross_entropy(model(x + d), y)
        g, = torch.autograd.grad(loss, [d])
        d = (d + g.sign()).detach()
    if bneval:
        model.train()
    return x + d
def train(model, loader, opt):
    model.train()
    for x, y in loader:
        x = pgd(model, x, y, bneval=True)
        opt.zero_grad(); F.cross_entropy(model(x), y).backward(); opt.step()
net = Net()
train(net, [], optim.SGD(net.parameters(), 0.1))
""",
    """\
def load(net, path):
    saved = torch.load(path)
    for name, p in net.named_parameters():
        if name in saved:
            p.data.copy_(saved[name])
    for name, b in net.named_buffers():
        b.data.copy_(saved[name])
def main():
    net = Net()
    load(net, 'a.pt')
    net.eval()
    for x in DataLoader(data): print(net(x))
main()
""",
    """\
def load(net, path):
    saved = torch.load(path)
    own = net.state_dict()
    for name, v in saved.items():
        if name in own:
            own[name].copy_(v)
def main():
    net = Net()
    load(net, 'a.pt')
    net.eval()
    for x in DataLoader(data): print(net(x))
main()
""",
    """\
import pytorch_lightning as pl
class Lit(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.net = Net()
    def forward(self, x):
        return self.net(x)
model = Lit.load_from_checkpoint('a.ckpt')
model.eval()
with torch.no_grad():
    for x in DataLoader(data):
        print(model(x))
""",
    """\
class M(Net):
    def train(self, mode=True):
        super().train(mode=mode)
        print('on')
net = M()
net.eval()
print(net(x))
""",
    """\
def local(net, loader):
    anchor = copy.deepcopy(net)
    for p in anchor.parameters():
        p.requires_grad = False
    anchor.eval()
    net.train()
    opt = optim.SGD(net.parameters(), 0.1)
    for x, y in loader:
        loss = F.cross_entropy(net(x), y) + F.mse_loss(net(x), anchor(x))
        opt.zero_grad(); loss.backward(); opt.step()
net = Net()
net.load_state_dict(torch.load('a'))
local(net, [])
""",
    """\
net = Net(); opt = optim.SGD(net.parameters(), 0.1)
def accuracy(net, x, y):
    net.eval()
    a = (net(x).argmax(1) == y).float().mean().item()
    net.train()
    return a
for x, y in loader:
    opt.zero_grad(); F.cross_entropy(net(x), y).backward(); opt.step()
    print(accuracy(net, x, y))
""",
    """\
net = Net(); opt = optim.SGD(net.parameters(), 0.1)
class Loss:
    def __call__(self, out, y):
        return F.cross_entropy(out, y)
crit = Loss()
def update(loss):
    opt.zero_grad(); loss.backward(); opt.step()
def train(loader):
    net.train()
    for x, y in loader:
        a = net(x)
        b = net(x.flip(3))
        losses = {'a': crit(a, y), 'b': crit(b, y)}
        total = sum(losses.values())
        update(total)
train([])
""",
    """\
net = Net(); opt = optim.SGD(net.parameters(), 0.1)
def train(loader):
    net.train()
    for xs, y in loader:
        outs = []
        for x in xs:
            outs.append(net(x))
        final = net(xs[0])
        loss = F.cross_entropy(torch.stack(outs).mean(0), y) + F.mse_loss(final, y)
        opt.zero_grad(); loss.backward(); opt.step()
train([])
""",
    """\
class Model:
    def __init__(self):
        self.net = Net(); self.opt = optim.Adam(self.net.parameters())
    def predict(self, x):
        return self.net(x)
    def fit(self, loader):
        self.net.train()
        for x, y in loader:
            self.opt.zero_grad(); F.cross_entropy(self.net(x), y).backward(); self.opt.step()
m = Model()
m.fit([])
m.net.eval()
print(m.predict(x).argmax(1))
""",
    """\
class M(Net):
    def embed(self, x):
        return self.forward(x)
net = M(); opt = optim.SGD(net.parameters(), 0.1)
def epoch(net, loader):
    net.train()
    for x, y in loader:
        z = net.embed(x)
        loss = F.mse_loss(z, y)
        opt.zero_grad(); loss.backward(); opt.step()
epoch(net, [])
""",
    """\
import pytorch_lightning as pl
class Lit(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.net = Net()
    def forward(self, x):
        return self.net(x)
    def training_step(self, b, i):
        return F.cross_entropy(self(b[0]), b[1])
    def validation_step(self, b, i):
        self.log('a', F.cross_entropy(self(b[0]), b[1]))
model = Lit.load_from_checkpoint('a.ckpt')
model.freeze()
print(model(torch.load('x')))
""",
]
