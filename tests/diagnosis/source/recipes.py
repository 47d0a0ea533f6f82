# ruff: noqa: E501
"""The tutorial's recipe, running statistics mixed with themselves, in many spellings; and sound code that looks like it."""

HEAD = """import torch
from torch import nn
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)
    def forward(self, x):
        return self.bn(self.conv(x))
"""

SPELLINGS = {
    "aliases and a tuple": """
model = Net()
model.eval()
running_mean, momentum = model.bn.running_mean, 0.1
for images in loader:
    model(images)
    running_mean = momentum * running_mean + (1 - momentum) * model.bn.running_mean
    model.bn.running_mean = running_mean
""",
    "attributes": """
model = Net()
model.eval()
model.bn.running_var = 0.9 * model.bn.running_var + 0.1 * model.bn.running_var
""",
    "copy_": """
model = Net().eval()
with torch.no_grad():
    for images in loader:
        model(images)
        new = 0.9 * model.bn.running_mean + 0.1 * model.bn.running_mean
        model.bn.running_mean.copy_(new)
""",
    "data": """
model = Net()
model.eval()
old = model.bn.running_mean.data.clone()
model.bn.running_mean.data = old * 0.9 + model.bn.running_mean.data * 0.1
""",
    "in a function, without eval": """
def update(bn, momentum):
    running_mean = bn.running_mean
    running_mean = momentum * running_mean + (1 - momentum) * bn.running_mean
    bn.running_mean = running_mean
update(Net().bn, 0.1)
""",
    "in a class": """
class Updater:
    def __init__(self, model, momentum=0.1):
        self.model, self.momentum = model, momentum
        self.running_mean = model.bn.running_mean
    def step(self, images):
        self.model(images)
        self.running_mean = self.momentum * self.running_mean + (1 - self.momentum) * self.model.bn.running_mean
        self.model.bn.running_mean = self.running_mean
""",
    "lerp": """
def update(model):
    model.eval()
    mean = model.bn.running_mean
    model.bn.running_mean.data.copy_(torch.lerp(mean, model.bn.running_mean, 0.1))
""",
    "a helper": """
def ema(old, new, m):
    return m * old + (1 - m) * new
def update(model):
    bn = model.bn
    bn.running_mean = ema(bn.running_mean, bn.running_mean, 0.9)
""",
    "over all layers": """
def update(model, momentum=0.1):
    model.eval()
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm2d):
            mean, var = layer.running_mean, layer.running_var
            layer.running_mean = (1 - momentum) * mean + momentum * layer.running_mean
            layer.running_var = (1 - momentum) * var + momentum * layer.running_var
""",
    "setattr, and the state": """
def update(model):
    state = model.state_dict()
    setattr(model.bn, "running_mean", 0.5 * getattr(model.bn, "running_mean") + 0.5 * state["bn.running_mean"])
""",
    "a weight given as an attribute": """
def update(model, cfg):
    r = model.bn.running_var
    r = cfg.momentum * r + (1.0 - cfg.momentum) * model.bn.running_var
    model.bn.running_var = r
""",
    "expanded": """
def update(bn, m):
    mean = bn.running_mean
    bn.running_mean = mean + m * (bn.running_mean - mean)
""",
}  # fmt: skip

SOUND = {
    "the batch's mean": """
def update(model, x, momentum=0.1):
    bn = model.bn
    running_mean = bn.running_mean
    running_mean = (1 - momentum) * running_mean + momentum * x.mean((0, 2, 3))
    bn.running_mean = running_mean
""",
    "another model's statistics": """
def update(ema, model, d=0.9):
    ema.bn.running_mean = d * ema.bn.running_mean + (1 - d) * model.bn.running_mean
""",
    "another layer's statistics": """
def mix(model, d=0.9):
    model.bn1.running_mean = d * model.bn1.running_mean + (1 - d) * model.bn2.running_mean
""",
    "before and after a forward in train mode": """
def smooth(model, x):
    model.train()
    old = model.bn.running_mean.clone()
    model(x)
    model.bn.running_mean.copy_(0.9 * old + 0.1 * model.bn.running_mean)
""",
    "another dtype or device": """
def move(model, device):
    model.bn.running_mean = model.bn.running_mean.to(device)
    model.bn.running_var = model.bn.running_var.float()
""",
    "scaled": """
def rescale(model, c):
    model.bn.running_mean.mul_(c)
    model.bn.running_var = model.bn.running_var * c * c
""",
    "two losses of the same kind": """
def loss(a, m):
    a = m * a + (1 - m) * a
    return a
""",
    "channels chosen": """
def prune(bn, kept):
    bn.running_mean = bn.running_mean[kept]
    bn.running_var = bn.running_var[kept]
""",
    "put back": """
def restore(model, x):
    mean, var = model.bn.running_mean.clone(), model.bn.running_var.clone()
    model.train()
    model(x)
    model.bn.running_mean.copy_(mean)
    model.bn.running_var.copy_(var)
""",
    "a layer of one's own": """
class Own(nn.Module):
    def __init__(self, c, momentum=0.1):
        super().__init__()
        self.register_buffer("running_mean", torch.zeros(c))
        self.momentum = momentum
    def forward(self, x):
        mean = x.mean(0)
        self.running_mean = (1 - self.momentum) * self.running_mean + self.momentum * mean.detach()
        return x - mean
""",
    "weights that do not add up to one": """
def decay(bn, m):
    bn.running_mean = m * bn.running_mean + m * bn.running_mean
""",
}  # fmt: skip
