# ruff: noqa: E501
"""Models with and without batch norm in ten spellings each, and what is done to them: wrong, and right.

Every rule on models is tried on every spelling: found where the model has batch norm, silent where it has none.
"""

HEAD = """import copy, functools, timm, torch, torchvision
from torch import nn
from torch.nn.parallel import DistributedDataParallel as DDP
from torch.optim.swa_utils import AveragedModel, update_bn
class Net(nn.Module):
    def __init__(self, norm_layer=nn.BatchNorm2d):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 8, 3), norm_layer(8), nn.ReLU())
        self.fc = nn.Linear(8, 2)
    def forward(self, x):
        return self.fc(self.body(x).mean((2, 3)))
"""

WITH = {
    "Sequential": "model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8))",
    "a class": "model = Net()",
    "torchvision": "model = torchvision.models.resnet18()",
    "timm": "model = timm.create_model('resnet50')",
    "a helper": "def build():\n    net = Net()\n    return net\nmodel = build().cuda()",
    "DataParallel": "model = nn.DataParallel(Net())",
    "an element of a dict": "nets = {'a': Net()}\nmodel = nets['a']",
    "two at once": "model, other = Net(), None",
    "layers in a list": "layers = [nn.Conv2d(3, 8, 3)]\nlayers.append(nn.BatchNorm2d(8))\nmodel = nn.Sequential(*layers)",
    "by an argument": "def build(depth, bn=True):\n    parts = [nn.Conv2d(3, 8, 3)]\n    if bn:\n        parts += [nn.BatchNorm2d(8)]\n    return nn.Sequential(*parts)\nmodel = build(3)",
}  # fmt: skip

WITHOUT = {
    "Sequential": "model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU())",
    "GroupNorm": "model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.GroupNorm(2, 8))",
    "a class": "class Plain(nn.Module):\n    def __init__(self):\n        super().__init__()\n        self.fc = nn.Linear(3, 2)\n    def forward(self, x):\n        return self.fc(x)\nmodel = Plain()",
    "a transformer": "model = torchvision.models.vit_b_16()",
    "vgg16": "model = torchvision.models.vgg16()",
    "convnext": "model = timm.create_model('convnext_tiny')",
    "alexnet": "model = torchvision.models.alexnet()",
    "LayerNorm": "def build():\n    return nn.Sequential(nn.Linear(3, 8), nn.LayerNorm(8))\nmodel = build()",
    "InstanceNorm": "model = nn.DataParallel(nn.Sequential(nn.Conv2d(3, 8, 3), nn.InstanceNorm2d(8)))",
    "DataParallel": "model = nn.DataParallel(nn.Linear(3, 2))",
}  # fmt: skip

# code: (wrong, right ones)
MODES = {
    "BN405": ("""
def validate(net, loader):
    with torch.no_grad():
        for x, y in loader:
            correct = (net(x).argmax(1) == y).sum()
for x, y in loader:
    model(x).sum().backward()
validate(model, loader)
""", ["""
def validate(net, loader):
    net.eval()
    with torch.no_grad():
        for x, y in loader:
            correct = (net(x).argmax(1) == y).sum()
validate(model, loader)
""", """
def prepare(net):
    net.eval()
def validate(net, loader):
    prepare(net)
    with torch.no_grad():
        net(next(loader))
validate(model, loader)
""", """
def validate(net, loader):
    with torch.no_grad():
        net(next(loader))
alias = model
alias.eval()
validate(model, loader)
""", """
@torch.no_grad()
def evaluate(net, x, training):
    net.train(training)
    return net(x)
evaluate(model, x, False)
""", """
def update_statistics(net, loader):
    for layer in net.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.reset_running_stats()
    with torch.no_grad():
        for x in loader:
            net(x)
update_statistics(model, loader)
""", """
model.train(False)
with torch.inference_mode():
    model(x)
""", """
for net in [model]:
    net.eval()
with torch.no_grad():
    model(x)
""", """
class Tester:
    def __init__(self, net):
        self.net = net
    def start(self):
        self.net.eval()
    def run(self, x):
        self.start()
        with torch.no_grad():
            return self.net(x)
Tester(model).run(x)
""", """
was = model.training
model.eval()
with torch.no_grad():
    model(x)
model.train(was)
"""]),
    "BN412": ("""
def measure(x):
    model.train()
    with torch.no_grad():
        return model(x)
""", ["""
def measure(x):
    model.train()
    y = model(x)
    model.eval()
    with torch.no_grad():
        return model(x)
""", """
def measure(x, training):
    if training:
        model.train()
    else:
        model.eval()
    with torch.no_grad():
        return model(x)
""", """
@torch.no_grad()
def standing(loader):
    model.train()
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.momentum = None
    for x in loader:
        model(x)
""", """
def measure(x):
    kept = copy.deepcopy(model.state_dict())
    model.train()
    with torch.no_grad():
        y = model(x)
    model.load_state_dict(kept)
    return y
""", """
def measure(x):
    model.train()
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.eval()
    with torch.no_grad():
        return model(x)
""", """
def step(x, optimizer):
    model.train()
    with torch.enable_grad():
        return model(x)
""", """
def measure(x):
    model.train()
    with torch.no_grad():
        features = x.mean()
    return model(x)
"""]),
    "BN418": ("""
def validate(net):
    net.eval()
    with torch.no_grad():
        net(next(loader))
def fit(optimizer):
    model.train()
    for epoch in range(9):
        for x in loader:
            optimizer.zero_grad()
            model(x).sum().backward()
            optimizer.step()
        validate(model)
fit(optimizer)
""", ["""
def validate(net):
    net.eval()
    with torch.no_grad():
        net(next(loader))
def fit(optimizer):
    for epoch in range(9):
        model.train()
        for x in loader:
            model(x).sum().backward()
        validate(model)
fit(optimizer)
""", """
def validate(net):
    net.eval()
    with torch.no_grad():
        net(next(loader))
    net.train()
def fit(optimizer):
    model.train()
    for epoch in range(9):
        model(x).sum().backward()
        validate(model)
fit(optimizer)
""", """
def validate(net):
    was = net.training
    net.eval()
    net(next(loader))
    net.train(was)
def fit(optimizer):
    model.train()
    for epoch in range(9):
        model(x).sum().backward()
        validate(model)
fit(optimizer)
""", """
def fit(optimizer):
    model.eval()
    for epoch in range(9):
        model(x).sum().backward()
fit(optimizer)
""", """
def fit(optimizer):
    model.train()
    for epoch in range(9):
        for phase in ("train", "val"):
            if phase == "train":
                model.train()
            else:
                model.eval()
            with torch.set_grad_enabled(phase == "train"):
                model(x).sum().backward()
fit(optimizer)
""", """
def fit(optimizer):
    model.train()
    for epoch in range(9):
        model(x).sum().backward()
    model.eval()
fit(optimizer)
"""]),
    "BN419": ("""
model.load_state_dict(torch.load("teacher.pt"))
student = nn.Linear(3, 2)
def distill(student, teacher, optimizer):
    student.train()
    for x in loader:
        with torch.no_grad():
            target = teacher(x)
        (student(x) - target).square().sum().backward()
        optimizer.step()
distill(student, model, optimizer)
""", ["""
model.load_state_dict(torch.load("teacher.pt"))
student = nn.Linear(3, 2)
def distill(student, teacher, optimizer):
    student.train()
    teacher.eval()
    for x in loader:
        with torch.no_grad():
            target = teacher(x)
        (student(x) - target).square().sum().backward()
distill(student, model, optimizer)
""", """
model.load_state_dict(torch.load("teacher.pt"))
model.eval()
student = nn.Linear(3, 2)
def distill(student, teacher, optimizer):
    with torch.no_grad():
        target = teacher(x)
    (student(x) - target).square().sum().backward()
distill(student, model, optimizer)
""", """
key = copy.deepcopy(model)
def step(x, optimizer):
    for k, q in zip(key.parameters(), model.parameters()):
        k.data = 0.99 * k.data + 0.01 * q.data
    with torch.no_grad():
        target = key(x)
    (model(x) - target).square().sum().backward()
step(x, optimizer)
""", """
def build_teacher(net):
    net.load_state_dict(torch.load("teacher.pt"))
    return net.eval()
teacher = build_teacher(model)
def step(student, x):
    with torch.no_grad():
        target = teacher(x)
    (student(x) - target).sum().backward()
step(nn.Linear(3, 2), x)
"""]),
    "BN413": ("""
ema = copy.deepcopy(model).eval()
def update(target, source, decay=0.99):
    for t, s in zip(target.parameters(), source.parameters()):
        t.data.mul_(decay).add_(s.data, alpha=1 - decay)
update(ema, model)
""", ["""
ema = copy.deepcopy(model).eval()
def update(target, source, decay=0.99):
    for t, s in zip(target.parameters(), source.parameters()):
        t.data.mul_(decay).add_(s.data, alpha=1 - decay)
    for t, s in zip(target.buffers(), source.buffers()):
        t.copy_(s)
update(ema, model)
""", """
ema = copy.deepcopy(model)
for t, s in zip(ema.parameters(), model.parameters()):
    t.data = 0.9 * t.data + 0.1 * s.data
ema.train()
with torch.no_grad():
    for x in loader:
        ema(x)
""", """
for t, s in zip(ema.parameters(), model.parameters()):
    t.data.copy_(s.data)
""", """
def penalty(reference):
    total = 0
    for p, q in zip(model.parameters(), reference.parameters()):
        total += (p - q).square().sum()
    return total
""", """
for p in model.parameters():
    p.data.mul_(0.9)
""", """
swa = copy.deepcopy(model)
for t, s in zip(swa.parameters(), model.parameters()):
    t.data.lerp_(s.data, 0.5)
update_bn(loader, swa)
""", """
for p, q in zip(model.parameters(), start.parameters()):
    p.grad.data.add_(q.data, alpha=0.1)
""", """
for p, c in zip(model.parameters(), control.parameters()):
    p.data -= 0.1 * c.data
"""]),
    "BN414": ("""
def average(states):
    total = copy.deepcopy(states[0])
    for key in total.keys():
        for i in range(1, len(states)):
            total[key] += states[i][key]
        total[key] /= len(states)
    return total
average([model.state_dict(), model.state_dict()])
""", ["""
def average(states):
    total = copy.deepcopy(states[0])
    for key in total.keys():
        if "num_batches_tracked" in key:
            continue
        for i in range(1, len(states)):
            total[key] += states[i][key]
        total[key] = torch.div(total[key], len(states))
    return total
average([model.state_dict(), model.state_dict()])
""", """
def average(states):
    total = copy.deepcopy(states[0])
    for key, value in total.items():
        if value.is_floating_point():
            total[key] = sum(s[key] for s in states) / len(states)
    return total
average([model.state_dict()])
""", """
state = model.state_dict()
for key in state.keys():
    state[key] = state[key].clone()
""", """
def losses(parts):
    for key in parts:
        parts[key] = parts[key] / len(loader)
    return parts
""", """
def average(states):
    out = {}
    for name, p in model.named_parameters():
        out[name] = sum(s[name] for s in states) / len(states)
    return out
""", """
state = model.state_dict()
for key in state.keys():
    if state[key].dtype == torch.float32:
        state[key] = state[key] / 3
""", """
counts = {"a": 1, "b": 2}
for key in counts.keys():
    counts[key] = counts[key] / 3
"""]),
    "BN421": ("""
model.half()
def fit(optimizer):
    model.train()
    for x in loader:
        model(x).sum().backward()
fit(optimizer)
""", ["""
model.half()
model.eval()
model(x)
""", """
model.half()
for layer in model.modules():
    if isinstance(layer, nn.BatchNorm2d):
        layer.float()
def fit(optimizer):
    model.train()
    model(x).sum().backward()
fit(optimizer)
""", """
def fit(optimizer):
    model.train()
    with torch.autocast("cuda"):
        model(x.half()).sum().backward()
fit(optimizer)
""", """
model.half()
model.float()
def fit(optimizer):
    model.train()
    model(x).sum().backward()
fit(optimizer)
""", """
x = x.half()
def fit(optimizer):
    model.train()
    model(x).sum().backward()
fit(optimizer)
"""]),
    "BN409": ("""
swa = AveragedModel(model)
for epoch in range(9):
    swa.update_parameters(model)
swa.eval()
swa(x)
""", ["""
swa = AveragedModel(model)
swa.update_parameters(model)
update_bn(loader, swa)
swa.eval()
""", """
swa = AveragedModel(model, use_buffers=True)
swa.update_parameters(model)
swa.eval()
""", """
swa = AveragedModel(model)
swa.eval()
"""]),
}  # fmt: skip

MODES["BN408"] = (
    """
def freeze(net):
    for layer in net.modules():
        if isinstance(layer, (nn.BatchNorm1d, nn.BatchNorm2d)):
            layer.eval()
def fit(net, optimizer):
    for epoch in range(9):
        net.train()
        net(x).sum().backward()
freeze(model)
fit(model, optimizer)
""",
    [
        """
def freeze(net):
    for layer in net.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.eval()
def fit(net, optimizer):
    for epoch in range(9):
        net.train()
        freeze(net)
        net(x).sum().backward()
fit(model, optimizer)
""",
        """
def freeze(layer):
    name = layer.__class__.__name__
    if name.find("BatchNorm") != -1:
        layer.eval()
for epoch in range(9):
    model.train()
    model.apply(freeze)
    model(x).sum().backward()
""",
        """
for layer in model.modules():
    if isinstance(layer, nn.BatchNorm2d):
        layer.eval()
for x in loader:
    model(x).sum().backward()
""",
        """
for layer in model.modules():
    if isinstance(layer, nn.Dropout):
        layer.eval()
model.train()
model(x).sum().backward()
""",
        """
class Frozen(nn.Module):
    def __init__(self, net):
        super().__init__()
        self.net = net
    def train(self, mode=True):
        super().train(mode)
        for layer in self.modules():
            if isinstance(layer, nn.BatchNorm2d):
                layer.eval()
        return self
frozen = Frozen(model)
frozen.train()
frozen(x).sum().backward()
""",
    ],
)
MODES["BN406"] = (
    """
for p in model.parameters():
    p.requires_grad = False
model.fc = nn.Linear(8, 2)
def fit(net, optimizer):
    net.train()
    for x in loader:
        net(x).sum().backward()
        optimizer.step()
fit(model, optimizer)
""",
    [
        """
for p in model.parameters():
    p.requires_grad = False
def fit(teacher, net, optimizer):
    net.train()
    with torch.no_grad():
        target = teacher(x)
    (net(x) - target).sum().backward()
fit(model.eval(), nn.Linear(3, 2), optimizer)
""",
        """
def toggle(net, on):
    for p in net.parameters():
        p.requires_grad = on
model.train()
toggle(model, False)
loss(model(x)).backward()
""",
        """
for p in model.parameters():
    p.requires_grad = False
for p in model.parameters():
    p.requires_grad = True
def fit(net):
    net.train()
    net(x).sum().backward()
fit(model)
""",
        """
for p in model.parameters():
    p.requires_grad = False
model.fc = nn.Linear(8, 2)
def fit(net):
    net.train()
    for layer in net.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.eval()
    net(x).sum().backward()
fit(model)
""",
        """
for p in model.parameters():
    p.requires_grad = False
model.fc = nn.Linear(8, 2)
model.eval()
def fit(net):
    net(x).sum().backward()
fit(model)
""",
    ],
)
