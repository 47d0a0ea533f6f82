"""Mistakes of which one link is not known: in code that nothing runs, argued for, without effect; and rebound names."""

MAIN = """
def main(loader):
    model = Net()
    optimizer = optim.SGD(model.parameters(), 0.1)
    for x, y in loader:
        F.cross_entropy(model(x), y).backward()
        optimizer.step()

if __name__ == "__main__":
    main(DataLoader([], 8, drop_last=True))
"""
LAYERS = """
def still(m):
    if isinstance(m, nn.BatchNorm2d):
        m.eval()
"""
WRONG = {
    "BN401": [
        ("def f(model):\n    model.bn.running_mean = model.bn.running_mean\n", "warning"),
        (
            "def f(model):\n    s = model.state_dict()\n    s['bn.running_mean'].copy_(model.bn.running_mean)\n",
            "warning",
        ),
    ],
    "BN403": [
        ("# momentum as it is in the paper\nbn = nn.BatchNorm2d(8, momentum=0.9)\n", "warning"),
    ],
    "BN407": [
        (
            "class Block(nn.Module):\n    def __init__(self, c):\n        self.bn = nn.BatchNorm2d(c, momentum=0)\n",
            "warning",
        ),
        (
            """\
class Block(nn.Module):
    def __init__(self, c, use, momentum):
        self.bn = None
        if use:
            self.bn = nn.BatchNorm2d(c, momentum=momentum)
block = Block(8, False, 0)
""",
            "note",
        ),
    ],
}
RIGHT = [
    "# a momentum of 0.95 is preferred here\nbn = nn.BatchNorm2d(8, momentum=0.95)\n",
    "# momentum should be large rather than 0.1\nbn = nn.BatchNorm2d(8, momentum=0.9)\n",
    "bn = nn.BatchNorm2d(8, momentum=0.9)\n" + LAYERS + "Net().apply(still)\n",
    "class Unused(nn.Module):\n    def __init__(self):\n        self.bn = nn.BatchNorm2d(8, momentum=0.9)\n" + MAIN,
    """\
def convert(old):
    new = {}
    new['bn.running_mean'] = old.modules[1].running_mean
    new['bn.running_var'] = old.modules[1].running_var
    torch.save(new, 'new.pt')
""",
    """\
import collections
old = torch.load('old.pt')
for _ in range(2):
    new = collections.OrderedDict()
    new['bn.running_mean'] = old.bn.running_mean
    new['bn.running_mean'] = old.bn.running_mean
torch.save(new, 'new.pt')
""",
    """\
def convert(old, names):
    new = {}
    for name in names:
        new[name + '.running_mean'] = old.bn.running_mean
    return new
""",
]
