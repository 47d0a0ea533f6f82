"""Overridden train(), layers frozen by constructors, reset statistics."""

# Trains a wrapper that the case defines.
FIT = """\
def fit(loader):
    m = Wrap()
    opt = optim.SGD(m.parameters(), 0.1)
    for e in range(3):
        m.train()
        for x, y in loader:
            loss = F.cross_entropy(m(x), y)
            opt.zero_grad(); loss.backward(); opt.step()
"""

WRONG = {
    "BN408": [
        (
            """\
class Wrap(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = Net()
        for m in self.body.modules():
            if isinstance(m, nn.BatchNorm2d):
                m.eval()
        self.head = nn.Linear(10, 2)
    def forward(self, x):
        return self.head(self.body(x))
"""
            + FIT,
            "warning",
        ),
        (
            """\
class Wrap(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = Net()
        self.freeze()
        self.head = nn.Linear(10, 2)
    def forward(self, x):
        return self.head(self.body(x))
    def freeze(self):
        for m in self.body.modules():
            if isinstance(m, (nn.BatchNorm2d, nn.BatchNorm1d)):
                m.eval()
                m.weight.requires_grad = False
"""
            + FIT,
            "warning",
        ),
        (
            """\
class Wrap(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = Net()
        self.body.bn.eval()
        self.head = nn.Linear(10, 2)
    def forward(self, x):
        return self.head(self.body(x))
"""
            + FIT,
            "warning",
        ),
        (
            """\
class Wrap(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = Net()
        for layer in self.body.modules():
            if "BatchNorm" in layer.__class__.__name__:
                layer.train(False)
        self.head = nn.Linear(10, 2)
    def forward(self, x):
        return self.head(self.body(x))
"""
            + FIT,
            "warning",
        ),
        (
            """\
def freeze(m):
    if isinstance(m, nn.BatchNorm2d):
        m.eval()
class Wrap(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = Net()
        self.body.apply(freeze)
        self.head = nn.Linear(10, 2)
    def forward(self, x):
        return self.head(self.body(x))
"""
            + FIT,
            "warning",
        ),
        (
            """\
def freeze_bn(net):
    for m in net.modules():
        if isinstance(m, nn.BatchNorm2d):
            m.eval()
class Wrap(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = Net()
        freeze_bn(self.body)
        self.head = nn.Linear(10, 2)
    def forward(self, x):
        return self.head(self.body(x))
"""
            + FIT,
            "warning",
        ),
    ],
    "BN439": [
        (
            """\
class Wrap(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = Net()
        self.head = nn.Sequential(nn.Linear(10, 2), nn.BatchNorm1d(2))
    def forward(self, x):
        return self.head(self.body(x))
    def train(self, mode=True):
        super().train()
        self.body.eval()
        return self
"""
            + FIT,
            "warning",
        ),
        (
            """\
class Wrap(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = Net()
        self.head = nn.Sequential(nn.Linear(10, 2), nn.BatchNorm1d(2))
    def forward(self, x):
        return self.head(self.body(x))
    def train(self, mode=True):
        super(Wrap, self).train()
        for m in self.modules():
            if isinstance(m, nn.BatchNorm2d):
                m.eval()
"""
            + FIT,
            "warning",
        ),
        (
            """\
class Wrap(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = Net()
        self.head = nn.Sequential(nn.Linear(10, 2), nn.BatchNorm1d(2))
    def forward(self, x):
        return self.head(self.body(x))
    def train(self, mode=True):
        nn.Module.train(self)
        self.body.eval()
        return self
""",
            "warning",
        ),
        (
            """\
class Wrap(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = Net()
        self.head = nn.Sequential(nn.Linear(10, 2), nn.BatchNorm1d(2))
    def forward(self, x):
        return self.head(self.body(x))
    def train(self, mode=True):
        self.body.eval()
        return self
"""
            + FIT,
            "warning",
        ),
        (
            """\
class Wrap(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = Net()
        self.head = nn.Sequential(nn.Linear(10, 2), nn.BatchNorm1d(2))
    def forward(self, x):
        return self.head(self.body(x))
    def train(self, mode=True):
        super().train(mode)
        self.body.eval()
def load(path):
    m = Wrap().eval()
    return m
""",
            "warning",
        ),
        (
            """\
class Wrap(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = Net()
        self.head = nn.Sequential(nn.Linear(10, 2), nn.BatchNorm1d(2))
    def forward(self, x):
        return self.head(self.body(x))
    def train(self, mode: bool = True):
        self.head.train()
        self.body.eval()
""",
            "note",
        ),
        (
            """\
class Wrap(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = Net()
        self.head = nn.Sequential(nn.Linear(10, 2), nn.BatchNorm1d(2))
    def forward(self, x):
        return self.head(self.body(x))
    def train(self, mode=True):
        super().train(mode)
        if mode:
            self.body.eval()
def load(path):
    m = Wrap()
    m.load_state_dict(torch.load(path))
    m = m.eval()
    return m
""",
            "warning",
        ),
    ],
    "BN440": [
        (
            """\
def main(loader, path):
    model = Net()
    model.load_state_dict(torch.load(path))
    for m in model.modules():
        if isinstance(m, nn.BatchNorm2d):
            m.reset_running_stats()
    model.eval()
    with torch.no_grad():
        for x, y in loader:
            print(model(x))
""",
            "warning",
        ),
        (
            """\
def main(loader, path):
    model = Net()
    model.load_state_dict(torch.load(path))
    model.bn.reset_running_stats()
    model.eval()
    with torch.no_grad():
        for x, y in loader:
            print(model(x))
""",
            "warning",
        ),
        (
            """\
def reset(m):
    if isinstance(m, nn.modules.batchnorm._BatchNorm):
        m.reset_running_stats()
def main(loader, path):
    model = Net()
    model.load_state_dict(torch.load(path))
    model.apply(reset)
    model.eval()
    with torch.no_grad():
        for x, y in loader:
            print(model(x))
""",
            "warning",
        ),
        (
            """\
class Runner:
    def __init__(self, path):
        self.model = Net()
        self.model.load_state_dict(torch.load(path))
    def reset(self):
        for m in self.model.modules():
            if isinstance(m, nn.BatchNorm2d):
                m.reset_running_stats()
    def test(self, loader):
        self.reset()
        self.model.eval()
        with torch.no_grad():
            return [self.model(x) for x in loader]
Runner('a').test(None)
""",
            "warning",
        ),
        (
            """\
def evaluate(net, loader):
    net.eval()
    with torch.no_grad():
        return [net(x) for x, _ in loader]
def main(loader, path):
    model = Net()
    model.load_state_dict(torch.load(path))
    for m in model.modules():
        if isinstance(m, nn.BatchNorm2d):
            m.reset_running_stats()
    return evaluate(model, loader)
""",
            "warning",
        ),
    ],
}
RIGHT = [
    """\
class Wrap(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = Net()
        for m in self.body.modules():
            if isinstance(m, nn.BatchNorm2d):
                m.eval()
        self.head = nn.Linear(10, 2)
    def forward(self, x):
        return self.head(self.body(x))
    def train(self, mode=True):
        super().train(mode)
        self.body.eval()
        return self
"""
    + FIT,
    """\
class Wrap(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = Net()
        for m in self.body.modules():
            if isinstance(m, nn.BatchNorm2d):
                m.eval()
        self.head = nn.Linear(10, 2)
    def forward(self, x):
        return self.head(self.body(x))
def fit(loader):
    m = Wrap()
    opt = optim.SGD(m.parameters(), 0.1)
    for e in range(3):
        m.train()
        m.body.eval()
        for x, y in loader:
            loss = F.cross_entropy(m(x), y)
            opt.zero_grad(); loss.backward(); opt.step()
""",
    """\
class Wrap(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = Net()
        for m in self.body.modules():
            if isinstance(m, nn.Dropout):
                m.eval()
        self.head = nn.Linear(10, 2)
    def forward(self, x):
        return self.head(self.body(x))
"""
    + FIT,
    """\
class Wrap(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = Net()
        for m in self.body.modules():
            if isinstance(m, nn.BatchNorm2d):
                m.eval()
        self.head = nn.Linear(10, 2)
    def forward(self, x):
        return self.head(self.body(x))
def fit(loader):
    m = Wrap()
    opt = optim.SGD(m.parameters(), 0.1)
    for e in range(3):
        m.head.train()
        for x, y in loader:
            loss = F.cross_entropy(m(x), y)
            opt.zero_grad(); loss.backward(); opt.step()
""",
    """\
def freeze_bn(net):
    for m in net.modules():
        if isinstance(m, nn.BatchNorm2d):
            m.eval()
class Wrap(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = Net()
        self.head = nn.Linear(10, 2)
    def forward(self, x):
        return self.head(self.body(x))
def fit(loader):
    m = Wrap()
    opt = optim.SGD(m.parameters(), 0.1)
    for e in range(3):
        m.train()
        freeze_bn(m.body)
        for x, y in loader:
            loss = F.cross_entropy(m(x), y)
            opt.zero_grad(); loss.backward(); opt.step()
""",
    """\
def main(loader, path):
    model = Net()
    model.load_state_dict(torch.load(path))
    for m in model.modules():
        if isinstance(m, nn.BatchNorm2d):
            m.reset_running_stats()
    model.train()
    with torch.no_grad():
        for x, _ in loader:
            model(x)
    model.eval()
    with torch.no_grad():
        for x, y in loader:
            print(model(x))
""",
    """\
def main(loader, path):
    model = Net()
    model.load_state_dict(torch.load(path))
    for m in model.modules():
        if isinstance(m, nn.BatchNorm2d):
            m.reset_running_stats()
    torch.optim.swa_utils.update_bn(loader, model)
    model.eval()
    with torch.no_grad():
        for x, y in loader:
            print(model(x))
""",
    """\
def main(loader, path):
    model = Net()
    model.load_state_dict(torch.load(path))
    for m in model.modules():
        if isinstance(m, nn.BatchNorm2d):
            m.reset_running_stats()
    opt = optim.SGD(model.parameters(), 0.1)
    model.train()
    for x, y in loader:
        loss = F.cross_entropy(model(x), y)
        opt.zero_grad(); loss.backward(); opt.step()
    model.eval()
    with torch.no_grad():
        for x, y in loader:
            print(model(x))
""",
    """\
def main(loader, path):
    model = Net()
    model.load_state_dict(torch.load(path))
    model.eval()
    for m in model.modules():
        if isinstance(m, nn.BatchNorm2d):
            m.reset_running_stats()
            m.train()
    with torch.no_grad():
        for x, _ in loader:
            model(x)
    model.eval()
    with torch.no_grad():
        for x, y in loader:
            print(model(x))
""",
    """\
def main(loader, path):
    model = Net()
    model.load_state_dict(torch.load(path))
    for m in model.modules():
        if isinstance(m, nn.BatchNorm2d):
            m.reset_running_stats()
    model.load_state_dict(torch.load(path))
    model.eval()
    with torch.no_grad():
        for x, y in loader:
            print(model(x))
""",
    """\
def calibrate(model, loader):
    model.train()
    with torch.no_grad():
        for x, _ in loader:
            model(x)
def main(loader, path):
    model = Net()
    model.load_state_dict(torch.load(path))
    for m in model.modules():
        if isinstance(m, nn.BatchNorm2d):
            m.reset_running_stats()
    calibrate(model, loader)
    model.eval()
    with torch.no_grad():
        for x, y in loader:
            print(model(x))
""",
    """\
class Wrap(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = Net()
        self.head = nn.Sequential(nn.Linear(10, 2), nn.BatchNorm1d(2))
    def forward(self, x):
        return self.head(self.body(x))
    def train(self, mode=True):
        super().train(mode)
        self.body.eval()
        return self
"""
    + FIT,
    """\
class Wrap(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = Net()
        self.head = nn.Sequential(nn.Linear(10, 2), nn.BatchNorm1d(2))
    def forward(self, x):
        return self.head(self.body(x))
    def train(self, mode=True):
        super().train(mode=mode)
        self.body.eval()
"""
    + FIT,
    """\
def disabled_train(self, mode=True):
    return self
class Frozen(Net):
    def train(self, mode=True):
        return self
""",
    """\
class Wrap(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = Net()
        self.head = nn.Sequential(nn.Linear(10, 2), nn.BatchNorm1d(2))
    def forward(self, x):
        return self.head(self.body(x))
    def train(self, mode=True):
        if mode:
            super().train()
            self.body.eval()
        else:
            super().eval()
        return self
""",
    """\
class Wrap(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = Net()
        self.head = nn.Sequential(nn.Linear(10, 2), nn.BatchNorm1d(2))
    def forward(self, x):
        return self.head(self.body(x))
    def train(self, mode=True):
        self.training = mode
        for m in self.children():
            m.train(mode)
        self.body.eval()
        return self
""",
    """\
class Wrap(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = Net()
        self.head = nn.Sequential(nn.Linear(10, 2), nn.BatchNorm1d(2))
    def forward(self, x):
        return self.head(self.body(x))
    def train(self, loader):
        opt = optim.SGD(self.parameters(), 0.1)
        for x, y in loader:
            loss = F.cross_entropy(self(x), y)
            opt.zero_grad(); loss.backward(); opt.step()
""",
    """\
class Trainer:
    def __init__(self):
        self.net = Net()
    def train(self, epochs=True):
        self.net.train()
""",
    """\
class Wrap(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = Net()
        self.head = nn.Sequential(nn.Linear(10, 2), nn.BatchNorm1d(2))
    def forward(self, x):
        return self.head(self.body(x))
    def train(self, mode=True):
        super().train(False)
        return self
""",
    """\
class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.g = Net()
    def train(self, mode=True):
        self.g.train(mode)
        return self
    def eval(self):
        self.g.eval()
""",
    """\
class Wrap(nn.Module):
    def __init__(self, freeze):
        super().__init__()
        self.body = Net()
        self.freeze = freeze
    def forward(self, x):
        return self.body(x)
    def train(self, mode=True):
        super().train(mode)
        if self.freeze and mode:
            for m in self.modules():
                if isinstance(m, nn.BatchNorm2d):
                    m.eval()
        return self
""",
    """\
class Wrap(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = Net()
    def forward(self, x):
        training = self.training
        if training:
            self.eval()
            x = x + self.body(x)
            self.train()
            return self.body(x)
        else:
            return self.body(x)
""",
]
