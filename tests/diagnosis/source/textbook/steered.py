"""Statistics that a program steers, modes of containers and of a model with a fit() of its own, other norms."""

OWN_FIT = """\
class Tabular(Net):
    def fit(self, loader, test, optimizer):
        MODEL
        for epoch in range(3):
            for step, (x, y) in enumerate(loader):
                loss = F.cross_entropy(model(x), y)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                if step % 100 == 0:
                    self.check(test, model)
                    BACK

    def check(self, test, model):
        model.eval()
        with torch.no_grad():
            for x, y in test:
                print((model(x) - y).abs().mean())

net = Tabular()
net.fit(DataLoader([], 8, drop_last=True), DataLoader([], 8), optim.SGD(net.parameters(), 0.1))
"""

# Evaluates the parts of a network that a container holds.
PARTS = """\
body, head = Net(), nn.Sequential(nn.BatchNorm1d(10), nn.Linear(10, 2))
body.load_state_dict(torch.load("body.pt"))
head.load_state_dict(torch.load("head.pt"))
model = nn.Sequential(body, head)
MODE

def accuracy(loader, body, head):
    with torch.no_grad():
        for x, y in loader:
            print((head(body(x)).argmax(1) == y).float().mean())

accuracy(DataLoader([], 8), body, head)
"""

FEATURES = """\
import torchvision
if small:
    net = torchvision.models.resnet18()
else:
    net = torchvision.models.resnet50()
net.load_state_dict(torch.load("net.pt"))
net = nn.Sequential(*list(net.children())[:-1])
MODE
features = []
for x, y in DataLoader([], 8):
    with torch.no_grad():
        features.append(net(x).cpu())
torch.save(features, "features.pt")
"""

STYLE = """\
class Block(nn.Module):
    def __init__(self, c, norm_layer=nn.BatchNorm2d):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(c, c, 3), norm_layer(c))
    def forward(self, x):
        return self.body(x)

class Style(nn.Module):
    def __init__(self, norm_layer=NORM):
        super().__init__()
        block = Block
        self.body = nn.Sequential(block(3, norm_layer), block(3, norm_layer))
    def forward(self, x):
        return self.body(x)

net = Style()
net.load_state_dict(torch.load("style.pt"))
with torch.no_grad():
    for x in DataLoader([], 8):
        print(net(x).mean())
"""

GUESSES = """\
STEER

def train(loader, net, optimizer):
    net.train()
    for x, y in loader:
        with torch.no_grad():
            QUIET
            guess = net(y).softmax(1)
        loss = F.cross_entropy(net(x), guess)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    net.eval()

model = Net()
train(DataLoader([], 8, drop_last=True), model, optim.SGD(model.parameters(), 0.1))
"""

KEYS = """\
def load(net):
    state, new = torch.load("moco.pt"), {}
    for key in state.keys():
        if 'encoder_k' in key and 'running_' not in key:
            new[key.replace('encoder_k.', '')] = state[key]
        OTHER
    net.load_state_dict(new, strict=False)
load(Net())
"""

ATTACK = """\
class Attack(nn.Module):
    def __init__(self, steps=10):
        super().__init__()
        self.steps = steps
    def forward(self, model, x, y):
        MODE
        x = x.clone().requires_grad_()
        for _ in range(self.steps):
            gradient = torch.autograd.grad(F.cross_entropy(model(x), y), [x])[0]
            x = (x + 0.01 * gradient.sign()).detach().requires_grad_()
        BACK
        return x

net, attack = Net(), Attack()
optimizer = optim.SGD(net.parameters(), 0.1)
for epoch in range(3):
    net.train()
    for x, y in DataLoader([], 8, drop_last=True):
        loss = F.cross_entropy(net(attack(net, x, y)), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
net.eval()
"""

WRONG = {
    "BN418": [
        (OWN_FIT.replace("MODEL", "model = self.train()").replace("BACK", "pass"), "warning"),
        (OWN_FIT.replace("MODEL", "model = self.train().to('cuda')").replace("BACK", "pass"), "warning"),
    ],
    "BN405": [
        (PARTS.replace("MODE", "model.train()"), "warning"),
        (FEATURES.replace("MODE", ""), "warning"),
        (STYLE.replace("NORM", "nn.BatchNorm2d"), "warning"),
    ],
    "BN412": [
        (GUESSES.replace("STEER", "").replace("QUIET", "pass"), "note"),
        (ATTACK.replace("MODE", "pass").replace("BACK", "pass"), "note"),
    ],
    "BN420": [(KEYS.replace("OTHER", "pass"), "warning")],
}

RIGHT = [
    ATTACK.replace("MODE", "model.eval()").replace("BACK", "model.train()"),
    OWN_FIT.replace("MODEL", "model = self.train()").replace("BACK", "model.train()"),
    PARTS.replace("MODE", "model.eval()"),
    PARTS.replace("MODE", "model.train()").replace(
        "    with torch", "    # Batch norm should use the statistics of these samples.\n    with torch"
    ),
    PARTS.replace("MODE", "body.eval()\nhead.eval()"),
    FEATURES.replace("MODE", "net.eval()"),
    STYLE.replace("NORM", "nn.InstanceNorm2d"),
    GUESSES.replace(
        "STEER",
        "def move(net, momentum):\n    for m in net.modules():\n        if isinstance(m, nn.BatchNorm2d):\n"
        "            m.momentum = momentum",
    )
    .replace("QUIET", "move(net, 0.0)")
    .replace("softmax(1)\n", "softmax(1)\n            move(net, 0.1)\n"),
    KEYS.replace("OTHER", "if 'encoder_q' in key and 'running_' in key:\n            new[key[10:]] = state[key]"),
    # Statistics of something else, on another device.
    """\
class Smoothing(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer('running_mean', torch.zeros(3))
    def to_device(self):
        self.running_mean = self.running_mean.cpu()
        self.running_mean = self.running_mean.cuda()
""",
    # What a step makes anew and throws away keeps no statistics.
    """\
def train(loader, other, net, optimizer):
    net.train()
    for (source, y), (target, z) in zip(loader, other):
        fast = Net()
        fast.load_state_dict(net.state_dict())
        fast(source)
        F.cross_entropy(fast(target), z).backward()
        optimizer.step()
""",
    # Layers by two ways to the same modules.
    """\
def train(loader, optimizer, net):
    for epoch in range(3):
        net.train()
        modules = net.modules() if one else net.module.modules()
        for m in modules:
            if isinstance(m, nn.BatchNorm2d):
                m.eval()
        for x, y in loader:
            F.cross_entropy(net(x), y).backward()
            optimizer.step()

model = Net()
train(DataLoader([], 8, drop_last=True), optim.SGD(model.parameters(), 0.1), model)
""",
]
