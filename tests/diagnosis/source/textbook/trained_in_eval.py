"""eval() under a condition, in a helper, before the first step; and ways back to train mode."""

WRONG = {
    "BN418": [
        (
            """\
def accuracy(m, data):
    m.eval()
    with torch.no_grad():
        return sum((m(a).argmax(1) == b).sum().item() for a, b in data)
def fit(net, train, val, epochs):
    opt = optim.Adam(net.parameters())
    for epoch in range(epochs):
        net.train()
        for i, (x, y) in enumerate(train):
            loss = F.cross_entropy(net(x), y)
            opt.zero_grad(); loss.backward(); opt.step()
            if i % 100 == 99:
                print(accuracy(net, val))
fit(Net(), None, None, 3)
""",
            "warning",
        ),
        (
            """\
def main(train, val):
    net = Net()
    opt = optim.Adam(net.parameters())
    step = 0
    while step < 1000:
        for x, y in train:
            loss = F.cross_entropy(net(x), y)
            opt.zero_grad(); loss.backward(); opt.step()
            step += 1
            if step % 10 == 0 and step > 5:
                net.eval()
                with torch.no_grad():
                    print(net(x).sum())
""",
            "warning",
        ),
        (
            """\
class Trainer:
    def __init__(self, train, val):
        self.net = Net()
        self.opt = optim.Adam(self.net.parameters())
        self.train_loader, self.val_loader = train, val
        self.step = 0
    def validate(self):
        self.net.eval()
        with torch.no_grad():
            for x, y in self.val_loader:
                print(self.net(x).argmax(1))
    def run(self):
        self.net.train()
        for x, y in self.train_loader:
            self.opt.zero_grad()
            loss = F.cross_entropy(self.net(x), y)
            loss.backward()
            self.opt.step()
            self.step += 1
            if self.step % 500 == 0:
                self.validate()
Trainer(None, None).run()
""",
            "warning",
        ),
        (
            """\
def train_epoch(net, loader, val, opt, log_every):
    for i, (x, y) in enumerate(loader):
        loss = F.cross_entropy(net(x), y)
        opt.zero_grad(); loss.backward(); opt.step()
        if i % log_every == 0:
            net.eval()
            with torch.no_grad():
                print(net(val[0]))
def main(loader, val):
    net = Net()
    opt = optim.SGD(net.parameters(), 0.1)
    for epoch in range(3):
        net.train()
        train_epoch(net, loader, val, opt, 10)
""",
            "warning",
        ),
        (
            """\
def main(train, val, args):
    net = Net()
    net.train()
    opt = optim.Adam(net.parameters())
    for epoch in range(args.epochs):
        for x, y in train:
            loss = F.cross_entropy(net(x), y)
            opt.zero_grad(); loss.backward(); opt.step()
        if (epoch + 1) % args.eval_every == 0:
            net.eval()
            for x, y in val:
                with torch.no_grad():
                    print(net(x))
""",
            "warning",
        ),
        (
            """\
def main(folds, val, args):
    for fold in folds:
        net = Net()
        net.train()
        opt = optim.Adam(net.parameters())
        for epoch in range(args.epochs):
            for i, (x, y) in enumerate(fold):
                loss = F.cross_entropy(net(x), y)
                opt.zero_grad(); loss.backward(); opt.step()
                if i % 10 == 0:
                    net.eval()
                    with torch.no_grad():
                        print(net(val))
""",
            "warning",
        ),
        (
            """\
def main(train, val, args):
    net = nn.DataParallel(Net())
    net.train()
    opt = optim.Adam(net.parameters())
    it = 0
    for x, y in train:
        loss = F.cross_entropy(net(x), y)
        opt.zero_grad(); loss.backward(); opt.step()
        it += 1
        if it % args.val_freq:
            continue
        net.train(False)
        with torch.no_grad():
            print(net(val))
""",
            "warning",
        ),
        (
            """\
def main(train, val, args):
    net = Net()
    net.train()
    opt = optim.Adam(net.parameters())
    for epoch in range(10):
        for x, y in train:
            loss = F.cross_entropy(net(x), y)
            opt.zero_grad(); loss.backward(); opt.step()
        if epoch > 3:
            net.eval()
            with torch.no_grad():
                print(net(val))
""",
            "warning",
        ),
        (
            """\
def fit(model, loader, epochs=3):
    opt = optim.SGD(model.parameters(), 0.1)
    for e in range(epochs):
        for x, y in loader:
            loss = F.cross_entropy(model(x), y)
            opt.zero_grad(); loss.backward(); opt.step()
def evaluate(model, loader):
    model.eval()
    with torch.no_grad():
        return sum((model(x).argmax(1) == y).sum().item() for x, y in loader)
def main(train, val):
    net = Net()
    print('before', evaluate(net, val))
    fit(net, train)
    print('after', evaluate(net, val))
""",
            "warning",
        ),
        (
            """\
def fit(model, loader, epochs=3):
    opt = optim.SGD(model.parameters(), 0.1)
    for e in range(epochs):
        model.train()
        for x, y in loader:
            loss = F.cross_entropy(model(x), y)
            opt.zero_grad(); loss.backward(); opt.step()
def evaluate(model, loader):
    model.eval()
    with torch.no_grad():
        return sum((model(x).argmax(1) == y).sum().item() for x, y in loader)
def main(train, val):
    net = Net()
    opt = optim.SGD(net.parameters(), 0.1)
    best = 0
    net.train()
    for e in range(30):
        for x, y in train:
            loss = F.cross_entropy(net(x), y)
            opt.zero_grad(); loss.backward(); opt.step()
        acc = evaluate(net, val)
        if acc > best:
            best = acc
            torch.save(net.state_dict(), 'best.pt')
""",
            "warning",
        ),
    ],
}
RIGHT = [
    """\
class Solver:
    def __init__(self, model, optimizer):
        self.model, self.optimizer = model, optimizer
    def train(self, loader, test):
        for epoch in range(3):
            self.model.train()
            self.run(loader)
            self.model.eval()
            self.run(test, evaluates=True)
    def run(self, loader, evaluates=False):
        for x, y in loader:
            loss = F.cross_entropy(self.model(x), y)
            if not evaluates:
                self.optimizer.zero_grad()
                loss.backward()
                self.optimizer.step()

net = Net()
Solver(net, optim.SGD(net.parameters(), 0.1)).train(DataLoader([], 8, drop_last=True), DataLoader([], 8))
""",
    """\
def main(train, val):
    net = Net()
    opt = optim.Adam(net.parameters())
    net.train()
    for i, (x, y) in enumerate(train):
        loss = F.cross_entropy(net(x), y)
        opt.zero_grad(); loss.backward(); opt.step()
        if i % 10 == 0:
            net.eval()
            with torch.no_grad():
                print(net(val))
            net.train()
""",
    """\
def main(train, val):
    net = Net()
    opt = optim.Adam(net.parameters())
    for i, (x, y) in enumerate(train):
        net.train()
        loss = F.cross_entropy(net(x), y)
        opt.zero_grad(); loss.backward(); opt.step()
        if i % 10 == 0:
            net.eval()
            with torch.no_grad():
                print(net(val))
""",
    """\
def main(train, val):
    net = Net()
    net.train()
    opt = optim.Adam(net.parameters())
    for i, (x, y) in enumerate(train):
        loss = F.cross_entropy(net(x), y)
        opt.zero_grad(); loss.backward(); opt.step()
        if i > 100:
            net.eval()
            with torch.no_grad():
                print(net(val))
            break
""",
    """\
def main(loaders):
    net = Net()
    opt = optim.Adam(net.parameters())
    for epoch in range(3):
        for phase in ('train', 'val'):
            if phase == 'train':
                net.train()
            else:
                net.eval()
            for x, y in loaders[phase]:
                with torch.set_grad_enabled(phase == 'train'):
                    loss = F.cross_entropy(net(x), y)
                    if phase == 'train':
                        opt.zero_grad(); loss.backward(); opt.step()
""",
    """\
def main(train, val, epochs):
    net = Net()
    net.train()
    opt = optim.Adam(net.parameters())
    for epoch in range(epochs):
        for x, y in train:
            loss = F.cross_entropy(net(x), y)
            opt.zero_grad(); loss.backward(); opt.step()
        if epoch == epochs - 1:
            net.eval()
            with torch.no_grad():
                print(net(val))
""",
    """\
def main(train, val, epochs):
    net = Net()
    net.train()
    opt = optim.Adam(net.parameters())
    for i, (x, y) in enumerate(train):
        loss = F.cross_entropy(net(x), y)
        opt.zero_grad(); loss.backward(); opt.step()
        if i % 100 == 0 and loss < 0.1:
            net.eval()
            return net
""",
    """\
def main(train, val):
    net = Net()
    net.train()
    opt = optim.Adam(net.parameters())
    for i, (x, y) in enumerate(train):
        loss = F.cross_entropy(net(x), y)
        opt.zero_grad(); loss.backward(); opt.step()
        if i % 10 == 0:
            shown = copy.deepcopy(net)
            shown.eval()
            with torch.no_grad():
                print(shown(val))
""",
    """\
import contextlib
@contextlib.contextmanager
def evaluating(m):
    was = m.training
    try:
        m.eval()
        yield m
    finally:
        if was:
            m.train()
def main(train, val):
    net = Net()
    net.train()
    opt = optim.Adam(net.parameters())
    for i, (x, y) in enumerate(train):
        loss = F.cross_entropy(net(x), y)
        opt.zero_grad(); loss.backward(); opt.step()
        if i % 10 == 0:
            with evaluating(net), torch.no_grad():
                print(net(val))
""",
    """\
def main(train, val):
    net = Net()
    opt = optim.Adam(net.parameters())
    for i, (x, y) in enumerate(train):
        if i % 10 == 0:
            net.eval()
            with torch.no_grad():
                print(net(val))
        else:
            net.train()
            loss = F.cross_entropy(net(x), y)
            opt.zero_grad(); loss.backward(); opt.step()
""",
    """\
def accuracy(m, data):
    m.eval()
    with torch.no_grad():
        n = sum((m(a).argmax(1) == b).sum().item() for a, b in data)
    m.train()
    return n
def main(train, val):
    net = Net()
    net.train()
    opt = optim.Adam(net.parameters())
    for i, (x, y) in enumerate(train):
        loss = F.cross_entropy(net(x), y)
        opt.zero_grad(); loss.backward(); opt.step()
        if i % 10 == 0:
            print(accuracy(net, val))
""",
    """\
def fit(model, loader, epochs=3):
    opt = optim.SGD(model.parameters(), 0.1)
    for e in range(epochs):
        model.train()
        for x, y in loader:
            loss = F.cross_entropy(model(x), y)
            opt.zero_grad(); loss.backward(); opt.step()
def mc_predict(model, x, n=20):
    model.eval()
    for m in model.modules():
        if isinstance(m, nn.Dropout):
            m.train()
    with torch.no_grad():
        return torch.stack([model(x) for _ in range(n)]).mean(0)
def main(loader, x):
    net = Net()
    fit(net, loader)
    print(mc_predict(net, x))
""",
    """\
def fit(model, loader, epochs=3):
    opt = optim.SGD(model.parameters(), 0.1)
    for e in range(epochs):
        model.train()
        for x, y in loader:
            loss = F.cross_entropy(model(x), y)
            opt.zero_grad(); loss.backward(); opt.step()
def evaluate(model, loader):
    model.eval()
    with torch.no_grad():
        return sum((model(x).argmax(1) == y).sum().item() for x, y in loader)
def main(train, val):
    net = Net()
    print('before', evaluate(net, val))
    fit(net, train)
    print('after', evaluate(net, val))
""",
    """\
import torchvision
def main(loader):
    net = torchvision.models.resnet18(weights='DEFAULT')
    net.eval()  # small batches: keep the statistics
    opt = optim.SGD(net.parameters(), 0.001)
    for x, y in loader:
        loss = F.cross_entropy(net(x), y)
        opt.zero_grad(); loss.backward(); opt.step()
""",
    """\
def evaluate(model, loader):
    model.eval()
    with torch.no_grad():
        return sum((model(x).argmax(1) == y).sum().item() for x, y in loader)
def main(train, val):
    net = Net()
    opt = optim.SGD(net.parameters(), 0.1)
    for step, (x, y) in enumerate(train):
        net.train()
        loss = F.cross_entropy(net(x), y)
        opt.zero_grad(); loss.backward(); opt.step()
        if step % 100 == 0 and step:
            print(evaluate(net, val))
""",
    """\
def fit(model, loader, epochs=3):
    opt = optim.SGD(model.parameters(), 0.1)
    for e in range(epochs):
        model.train()
        for x, y in loader:
            loss = F.cross_entropy(model(x), y)
            opt.zero_grad(); loss.backward(); opt.step()
import contextlib
@contextlib.contextmanager
def eval_mode(net):
    before = net.training
    net.train(False)
    yield net
    net.train(before)
def main(a, b):
    net = Net(); fit(net, a)
    with eval_mode(net), torch.no_grad():
        print([net(x) for x, _ in b])
    fit(net, a)
""",
]
