"""Averages over clients, soups and target networks."""

# Ends a case's `average`, trains clients and averages them.
FEDERATED = """\
    return global_model
def run(loaders, test):
    g = Net()
    for r in range(10):
        clients = []
        for loader in loaders:
            c = copy.deepcopy(g)
            c.train()
            opt = optim.SGD(c.parameters(), 0.1)
            for x, y in loader:
                loss = F.cross_entropy(c(x), y)
                opt.zero_grad(); loss.backward(); opt.step()
            clients.append(c)
        average(g, clients)
    g.eval()
    with torch.no_grad():
        print(sum((g(x).argmax(1) == y).sum() for x, y in test))
"""

WRONG = {
    "BN413": [
        (
            """\
def average(global_model, clients):
    with torch.no_grad():
        for name, p in global_model.named_parameters():
            p.copy_(torch.stack([dict(c.named_parameters())[name] for c in clients]).mean(0))
"""
            + FEDERATED,
            "warning",
        ),
        (
            """\
def average(global_model, clients):
    for p in zip(global_model.parameters(), *[c.parameters() for c in clients]):
        p[0].data = torch.stack([q.data for q in p[1:]]).mean(dim=0)
"""
            + FEDERATED,
            "warning",
        ),
        (
            """\
def average(global_model, clients):
    for p in global_model.parameters():
        p.data.zero_()
    for c in clients:
        for p, q in zip(global_model.parameters(), c.parameters()):
            p.data += q.data / len(clients)
"""
            + FEDERATED,
            "warning",
        ),
        (
            """\
def average(global_model, clients):
    weights = [1 / len(clients)] * len(clients)
    for name, p in global_model.named_parameters():
        p.data = sum(w * dict(c.named_parameters())[name].data for w, c in zip(weights, clients))
"""
            + FEDERATED,
            "warning",
        ),
        (
            """\
def average(global_model, clients):
    for ps in zip(global_model.parameters(), *(c.parameters() for c in clients)):
        target, sources = ps[0], ps[1:]
        target.data.copy_(sum(s.data for s in sources) / len(sources))
"""
            + FEDERATED,
            "warning",
        ),
        (
            """\
def soup(paths, test):
    models = []
    for p in paths:
        m = Net()
        m.load_state_dict(torch.load(p))
        models.append(m)
    mean = copy.deepcopy(models[0])
    for params in zip(mean.parameters(), *(m.parameters() for m in models)):
        params[0].data.copy_(torch.stack([q.data for q in params[1:]]).mean(0))
    mean.eval()
    with torch.no_grad():
        return [mean(x) for x in test]
""",
            "warning",
        ),
        (
            """\
def average(global_model, clients):
    for name, p in global_model.named_parameters():
        total = 0
        for c in clients:
            total = total + dict(c.named_parameters())[name].data
        p.data.copy_(total / len(clients))
"""
            + FEDERATED,
            "warning",
        ),
        (
            """\
class Agent:
    def __init__(self):
        self.q = Net()
        self.target = copy.deepcopy(self.q).eval()
        self.opt = optim.Adam(self.q.parameters())
    def update(self, s, a, r, s2):
        with torch.no_grad():
            t = r + 0.99 * self.target(s2).max(1)[0]
        q = self.q(s).gather(1, a[:, None])[:, 0]
        loss = F.mse_loss(q, t)
        self.opt.zero_grad(); loss.backward(); self.opt.step()
        for p, tp in zip(self.q.parameters(), self.target.parameters()):
            tp.data.copy_(0.005 * p.data + 0.995 * tp.data)
""",
            "warning",
        ),
        (
            """\
class Agent:
    def __init__(self):
        self.q = Net()
        self.target = Net()
        self.opt = optim.Adam(self.q.parameters())
        self.target.eval()
    def update(self, s, a, r, s2):
        with torch.no_grad():
            t = r + 0.99 * self.target(s2).max(1)[0]
        q = self.q(s).gather(1, a[:, None])[:, 0]
        loss = F.mse_loss(q, t)
        self.opt.zero_grad(); loss.backward(); self.opt.step()
        for p, tp in zip(self.q.parameters(), self.target.parameters()):
            tp.data.mul_(0.99).add_(p.data, alpha=0.01)
agent = Agent()
""",
            "warning",
        ),
    ],
    "BN419": [
        (
            """\
class Agent:
    def __init__(self):
        self.q = Net()
        self.target = Net()
        self.opt = optim.Adam(self.q.parameters())
    def update(self, s, a, r, s2):
        with torch.no_grad():
            t = r + 0.99 * self.target(s2).max(1)[0]
        q = self.q(s).gather(1, a[:, None])[:, 0]
        loss = F.mse_loss(q, t)
        self.opt.zero_grad(); loss.backward(); self.opt.step()
        for p, tp in zip(self.q.parameters(), self.target.parameters()):
            tp.data.copy_(0.005 * p.data + 0.995 * tp.data)
""",
            "note",
        ),
        (
            """\
class Agent:
    def __init__(self):
        self.q = Net()
        self.target = copy.deepcopy(self.q)
        self.opt = optim.Adam(self.q.parameters())
    def update(self, s, a, r, s2):
        with torch.no_grad():
            t = r + 0.99 * self.target(s2).max(1)[0]
        q = self.q(s).gather(1, a[:, None])[:, 0]
        loss = F.mse_loss(q, t)
        self.opt.zero_grad(); loss.backward(); self.opt.step()
        for p, tp in zip(self.q.parameters(), self.target.parameters()):
            tp.data.copy_(0.005 * p.data + 0.995 * tp.data)
""",
            "note",
        ),
        (
            """\
class Agent:
    def __init__(self):
        self.q = Net()
        self.target = copy.deepcopy(self.q)
        self.opt = optim.Adam(self.q.parameters())
    def update(self, s, a, r, s2):
        with torch.no_grad():
            t = r + 0.99 * self.target(s2).max(1)[0]
        q = self.q(s).gather(1, a[:, None])[:, 0]
        loss = F.mse_loss(q, t)
        self.opt.zero_grad(); loss.backward(); self.opt.step()
        for p, tp in zip(self.q.parameters(), self.target.parameters()):
            tp.data.lerp_(p.data, 0.01)
agent = Agent()
""",
            "note",
        ),
        (
            """\
def soft_update(net, target, tau):
    for p, tp in zip(net.parameters(), target.parameters()):
        tp.data.copy_(tau * p.data + (1 - tau) * tp.data)
def main(batches):
    net, target = Net(), Net()
    target.load_state_dict(net.state_dict())
    opt = optim.Adam(net.parameters())
    for s, a, r, s2 in batches:
        with torch.no_grad():
            t = r + 0.9 * target(s2).max(1).values
        loss = F.mse_loss(net(s).gather(1, a), t)
        opt.zero_grad(); loss.backward(); opt.step()
        soft_update(net, target, 0.01)
""",
            "note",
        ),
    ],
}
RIGHT = [
    """\
def average(global_model, clients):
    with torch.no_grad():
        for name, p in global_model.named_parameters():
            p.copy_(torch.stack([dict(c.named_parameters())[name] for c in clients]).mean(0))
        for name, b in global_model.named_buffers():
            b.copy_(torch.stack([dict(c.named_buffers())[name].float() for c in clients]).mean(0))
"""
    + FEDERATED,
    """\
def average(global_model, clients):
    for name, p in global_model.named_parameters():
        p.grad = torch.stack([dict(c.named_parameters())[name].grad for c in clients]).mean(0)
"""
    + FEDERATED,
    """\
def average(global_model, clients):
    sd = global_model.state_dict()
    for k in sd:
        if sd[k].is_floating_point():
            sd[k] = torch.stack([c.state_dict()[k] for c in clients]).mean(0)
    global_model.load_state_dict(sd)
"""
    + FEDERATED,
    """\
def spread(models):
    with torch.no_grad():
        return [torch.stack([q for q in ps]).std(0) for ps in zip(*(m.parameters() for m in models))]
spread([Net(), Net()])
""",
    """\
def clip(net, limit):
    with torch.no_grad():
        for p in net.parameters():
            p.copy_(p / torch.stack([q.norm() for q in net.parameters()]).sum())
net = Net()
clip(net, 1)
net.eval()
""",
    """\
class Agent:
    def __init__(self):
        self.q = Net()
        self.target = Net().eval()
        self.opt = optim.Adam(self.q.parameters())
    def update(self, s, a, r, s2):
        with torch.no_grad():
            t = r + 0.99 * self.target(s2).max(1)[0]
        q = self.q(s).gather(1, a[:, None])[:, 0]
        loss = F.mse_loss(q, t)
        self.opt.zero_grad(); loss.backward(); self.opt.step()
        self.target.load_state_dict(self.q.state_dict()); self.target.eval()
""",
    """\
class Agent:
    def __init__(self):
        self.q = Net()
        self.target = copy.deepcopy(self.q).eval()
        self.opt = optim.Adam(self.q.parameters())
    def update(self, s, a, r, s2):
        with torch.no_grad():
            t = r + 0.99 * self.target(s2).max(1)[0]
        q = self.q(s).gather(1, a[:, None])[:, 0]
        loss = F.mse_loss(q, t)
        self.opt.zero_grad(); loss.backward(); self.opt.step()
        for p, tp in zip(self.q.parameters(), self.target.parameters()):
            tp.data.copy_(0.005 * p.data + 0.995 * tp.data)
        for b, tb in zip(self.q.buffers(), self.target.buffers()):
            tb.copy_(b)
""",
]
