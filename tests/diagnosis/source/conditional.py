"""Programs whose branches, filters and wrappers decide what is frozen, loaded and evaluated."""

from tests.diagnosis.source.training import FIT
from tests.diagnosis.source.training import HEAD as TRAINING

HEAD = TRAINING + FIT + "net = torchvision.models.resnet50(weights='DEFAULT')\nnet.fc = nn.Linear(2048, 10)\n"

NAMED = "for k, p in net.named_parameters():\n    BODY\nfit(net, loader, optimizer)"
FREEZE = ":\n        p.requires_grad = False"
FROZEN = """
if args.weights == 'freeze':
    net.requires_grad_(False)
    net.fc.requires_grad_(True)
for epoch in range(9):
    MODE
    for x, y in loader:
        optimizer.zero_grad()
        net(x).sum().backward()
"""
HELPER = """
def freeze(model, on=True):
    if on:
        model.requires_grad_(False)
        model.fc.requires_grad_(True)
CALL
fit(net, loader, optimizer)
"""
LOADER = """
def get(mode='train'):
    if mode == 'train':
        loader = DataLoader(data, batch_size=ONE)
    elif mode == 'test':
        loader = DataLoader(data, batch_size=OTHER)
    return loader
fit(net, CALL, optimizer)
"""
WRAP = """
class Wrap(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner, self.last = inner, LAST
    def forward(self, x):
        return self.last(self.inner(2 * x - 1))
def load():
    model = torchvision.models.resnet50(weights='DEFAULT')
    return MADE
model = load()
with torch.no_grad():
    for x in loader:
        features.append(model(x))
"""

# code: (found, not found); a found one is a pair with its severity, "warning" where it is left out
CASES = {
    "BN405": ([
        WRAP.replace("LAST", "nn.Flatten()").replace("MADE", "Wrap(model).cuda()"),
        WRAP.replace("LAST", "nn.BatchNorm1d(1000)").replace("MADE", "Wrap(model.eval()).cuda()"),
        WRAP.replace("LAST", "nn.Flatten()").replace("MADE", "nn.Sequential(model.eval(), nn.BatchNorm1d(1000))"),
    ], [
        WRAP.replace("LAST", "nn.Flatten()").replace("MADE", "Wrap(model.eval()).cuda()"),
        WRAP.replace("LAST", "nn.Flatten()").replace("MADE", "nn.DataParallel(Wrap(inner=model.eval()))"),
        WRAP.replace("LAST", "nn.Flatten()").replace("MADE", "nn.Sequential(model.eval(), nn.Flatten())"),
    ]),
    "BN406": ([
        NAMED.replace("BODY", "if 'fc' not in k" + FREEZE),
        NAMED.replace("BODY", "if 'fc' in k:\n        continue\n    p.requires_grad = False"),
        NAMED.replace("BODY", "if k.startswith('layer1')" + FREEZE),
        (NAMED.replace("BODY", "if args.tune:\n        groups.append(p)\n    else" + FREEZE), "note"),
        (NAMED.replace("BODY", "if k not in trainable" + FREEZE), "note"),
        (FROZEN.replace("MODE", "if args.test:\n        net.eval()\n    else:\n        net.train()"), "note"),
        HELPER.replace("CALL", "freeze(net)"),
        (HELPER.replace("CALL", "freeze(net, args.freeze)"), "note"),
        (HELPER.replace("CALL", "if args.freeze:\n    freeze(net)"), "note"),
    ], [
        NAMED.replace("BODY", "if args.lr > 0:\n        groups.append(p)\n    else" + FREEZE),
        NAMED.replace("BODY", "if 'fc' in k" + FREEZE),
        NAMED.replace("BODY", "if k.__contains__('fc') or k.find('head') != -1" + FREEZE),
        NAMED.replace("BODY", "if 'fc' not in k:\n        continue\n    p.requires_grad = False"),
        FROZEN.replace("MODE", "if args.weights == 'finetune':\n        net.train()\n    else:\n        net.eval()"),
        FROZEN.replace("MODE", "net.train()\n    if args.weights == 'freeze':\n        net.eval()"),
        HELPER.replace("CALL", "freeze(net, False)"),
    ]),
    "BN426": ([
        LOADER.replace("ONE", "1").replace("OTHER", "32").replace("CALL", "get('train')"),
        LOADER.replace("ONE", "1").replace("OTHER", "32").replace("CALL", "get()"),
        "fit(net, DataLoader(data, batch_size=32), optimizer)\nfit(net, DataLoader(data, batch_size=1), optimizer)",
    ], [
        LOADER.replace("ONE", "32").replace("OTHER", "1").replace("CALL", "get('train')"),
        LOADER.replace("ONE", "args.size").replace("OTHER", "1").replace("CALL", "get(args.mode)"),
        "size = args.size\nif args.test:\n    size = 1\nfit(net, DataLoader(data, batch_size=size), optimizer)",
    ]),
}  # fmt: skip
