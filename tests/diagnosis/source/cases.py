# ruff: noqa: E501
"""One line each: what a rule finds, with its severity, and what it must not mistake for it."""

HEAD = "import functools, torch\nimport torch.nn.functional as F\nfrom torch import nn\n"
BN = "net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8))\n"
NET = "class Net(nn.Module):\n    def __init__(self, m=0.1):\n        super().__init__()\n        self.bn = nn.BatchNorm2d(8, momentum=m)\n    def forward(self, x):\n        return self.bn(x)\n"

# code: (found, not found); a found one is a pair with its severity, "warning" where it is left out
CASES = {
    "BN402": ([
        "def f(model, bn, x):\n    model.eval()\n    model.bn.running_mean = 0.9 * model.bn.running_mean + 0.1 * x.mean(0)",
        "def f(model, x):\n    model.eval()\n    bn = model.bn\n    bn.running_var.mul_(0.9).add_(x.var(0), alpha=0.1)",
        "def f(model, x, m):\n    model.train(False)\n    mean = model.layer.bn.running_mean\n    mean = (1 - m) * mean + m * x.mean(0)\n    model.layer.bn.running_mean = mean",
        "def f(model, x):\n    model.eval()\n    for layer in model.modules():\n        if isinstance(layer, nn.BatchNorm2d):\n            layer.eval()\n            layer.running_mean.lerp_(x.mean(0), 0.1)",
    ], [
        "def f(model, x):\n    model.train()\n    model.bn.running_mean = 0.9 * model.bn.running_mean + 0.1 * x.mean(0)",
        "def f(model, x):\n    model.eval()\n    model.bn.running_var.copy_(x.var(0))",
        "def f(model, x):\n    model.eval()\n    model.bn.running_mean.mul_(0.5)",
        "def f(model, other):\n    model.eval()\n    model.bn.running_mean = 0.5 * model.bn.running_mean + 0.5 * other.bn.running_mean",
        "def f(model):\n    model.eval()\n    model.bn.running_mean.zero_()",
    ]),
    "BN403": ([
        "nn.BatchNorm2d(3, momentum=0.9)",
        "nn.BatchNorm1d(3, 1e-3, 0.99)",
        "torch.nn.SyncBatchNorm(3, momentum=0.9)",
        "BN_MOMENTUM = 0.99\nnn.BatchNorm2d(3, momentum=BN_MOMENTUM)",
        "settings = dict(a=1)\nsettings = {'eps': 1e-3, 'momentum': 0.997}\nnn.BatchNorm2d(3, **settings)",
        "norm = functools.partial(nn.BatchNorm2d, momentum=0.9)\nnorm(8)",
        "class Net(nn.Module):\n    momentum = 0.9\n    def __init__(self):\n        super().__init__()\n        self.bn = nn.BatchNorm2d(8, momentum=self.momentum)",
        NET + "Net(m=0.99)",
        "def block(c, momentum=0.95):\n    return nn.BatchNorm2d(c, momentum=momentum)\nblock(3)",
        "momentum = 1 - 0.1\nnn.BatchNorm2d(3, momentum=momentum)",
        ("nn.BatchNorm2d(3, momentum=0.6)", "note"),
        ("nn.BatchNorm2d(3, momentum=1.0)", "note"),
        ("ONE = 1\nnn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, momentum=ONE, affine=True))", "note"),
    ], [
        "nn.BatchNorm2d(3, momentum=0.1)",
        "nn.BatchNorm2d(3, momentum=1 - 0.9)",
        "nn.BatchNorm1d(3, 1e-3, 0.01)",
        "nn.BatchNorm2d(3, momentum=None)",
        "nn.BatchNorm2d(3, momentum=0.49)",
        "nn.GroupNorm(3, 3, 0.9)",
        "torch.optim.SGD([], lr=0.1, momentum=0.9)",
        "nn.BatchNorm2d(3, momentum=m)",
        "nn.BatchNorm2d(*sizes, 0.9)",
        NET + "Net(m=0.03)",
        "nn.InstanceNorm2d(3, momentum=0.9)",
    ]),
    "BN404": ([
        "from tensorflow.keras import layers\nlayers.BatchNormalization(momentum=0.1)",
        "import tensorflow as tf\ntf.keras.layers.BatchNormalization(axis=-1, momentum=0.01)",
        "from keras.layers import BatchNormalization\nBatchNormalization(-1, 0.1)",
        "from keras.layers import *\nimport keras\nkeras.layers.BatchNormalization(momentum=1 - 0.9)",
        "import flax.linen as fnn\nfnn.BatchNorm(use_running_average=False, momentum=0.1)",
        "from flax import linen\nnorm = functools.partial(linen.BatchNorm, momentum=0.1, epsilon=1e-5)\nnorm(name='a')",
        "from flax import nnx\nnnx.BatchNorm(8, momentum=0.05, rngs=rngs)",
        ("from keras import layers\nlayers.BatchNormalization(momentum=0.5)", "note"),
    ], [
        "from tensorflow.keras import layers\nlayers.BatchNormalization(momentum=0.9)",
        "from keras.layers import BatchNormalization\nBatchNormalization()",
        "import flax.linen as fnn\nfnn.BatchNorm(use_running_average=False, momentum=0.9)",
        "from keras.layers import BatchNormalization\nBatchNormalization(momentum=m)",
        "from keras.optimizers import SGD\nSGD(momentum=0.1)",
    ]),
    "BN407": ([
        "nn.BatchNorm2d(3, momentum=0)",
        "nn.BatchNorm2d(3, 1e-5, 0.0)",
        ("for m in net.modules():\n    if isinstance(m, nn.BatchNorm2d):\n        m.momentum = 0.0", "note"),
        ("def off(m):\n    if isinstance(m, (nn.BatchNorm1d, nn.BatchNorm2d)):\n        m.momentum = 0\nnet.apply(off)", "note"),
        ("FROZEN = 0.0\nfor m in net.modules():\n    if type(m) == nn.BatchNorm2d:\n        m.momentum = FROZEN", "note"),
        NET + "Net(m=0.0)",
    ], [
        "nn.BatchNorm2d(3, momentum=None)",
        "for m in net.modules():\n    if isinstance(m, nn.BatchNorm2d):\n        kept = m.momentum\n        m.momentum = 0.0",
        "def off(m):\n    if isinstance(m, nn.BatchNorm2d):\n        m.backup = m.momentum\n        m.momentum = 0",
        "torch.optim.SGD([], lr=0.1, momentum=0)",
        "def off(m):\n    if isinstance(m, nn.BatchNorm2d):\n        m.momentum = 0\ndef on(m):\n    if isinstance(m, nn.BatchNorm2d):\n        m.momentum = 0.1",
    ]),
    "BN411": ([
        "for m in net.modules():\n    if isinstance(m, nn.BatchNorm2d):\n        m.track_running_stats = False",
        "for m in net.modules():\n    m.track_running_stats = False",
        "def off(m):\n    if isinstance(m, nn.BatchNorm1d):\n        m.track_running_stats = False\nnet.apply(off)",
    ], [
        "for m in net.modules():\n    if isinstance(m, nn.BatchNorm2d):\n        m.track_running_stats = False\n        m.running_mean = None\n        m.running_var = None",
        "nn.BatchNorm2d(3, track_running_stats=False)",
        "for m in net.modules():\n    if isinstance(m, nn.BatchNorm2d):\n        m.track_running_stats = True",
        "class Own(nn.Module):\n    def __init__(self):\n        super().__init__()\n        self.track_running_stats = False",
        "def flip(m):\n    if isinstance(m, nn.BatchNorm2d):\n        m.track_running_stats = False\ndef back(m):\n    if isinstance(m, nn.BatchNorm2d):\n        m.track_running_stats = True",
    ]),
    "BN415": ([
        (BN + "for name, p in net.named_parameters():\n    if 'bn' in name:\n        p.requires_grad = False", "note"),
        ("import torchvision\nnet = torchvision.models.resnet50()\nwithout = [p for n, p in net.named_parameters() if 'bn' not in n]", "note"),
    ], [
        NET + "net = Net()\nfor name, p in net.named_parameters():\n    if 'bn' in name:\n        p.requires_grad = False",
        BN + "for name, p in net.named_parameters():\n    if 'weight' in name:\n        p.requires_grad = False",
        "for name, p in net.named_parameters():\n    if 'bn' in name:\n        p.requires_grad = False",
        "for word in words:\n    if 'bn' in word:\n        pass",
    ]),
    "BN416": ([
        "nn.BatchNorm2d(4, momentum=2)",
        "nn.BatchNorm1d(4, 1e-5, -0.1)",
        "M = 10\nnn.BatchNorm2d(4, momentum=M)",
        "nn.BatchNorm2d(4, momentum=1 - 1.9)",
    ], ["nn.BatchNorm2d(4, momentum=0.0001)", "torch.optim.SGD([], 0.1, momentum=2)"]),
    "BN425": ([
        "nn.BatchNorm2d(4, eps=-1e-5)",
        "nn.BatchNorm1d(4, -0.001)",
        "E = -1.0\nnn.BatchNorm3d(4, eps=E)",
        ("nn.BatchNorm2d(4, eps=0)", "note"),
        ("nn.BatchNorm2d(4, 0.0)", "note"),
    ], ["nn.BatchNorm2d(4, eps=1e-12)", "nn.LayerNorm(4, eps=0)", "nn.BatchNorm2d(4)"]),
    "BN417": ([
        "nn.BatchNorm2d(8, 0.8)",
        "nn.BatchNorm1d(8, 0.1)",
        "torch.nn.BatchNorm3d(8, 0.99)",
        "momentum = 0.1\nnn.BatchNorm2d(8, momentum)",
        "class Net(nn.Module):\n    def __init__(self, bn_momentum):\n        super().__init__()\n        self.bn = nn.BatchNorm2d(8, bn_momentum)",
        "class Net(nn.Module):\n    def __init__(self):\n        super().__init__()\n        self.momentum = 0.01\n        self.bn = nn.BatchNorm2d(8, self.momentum)",
        "layers = [nn.Linear(3, 8)]\nlayers.append(nn.BatchNorm1d(8, 0.8))",
        "def block(c):\n    return nn.Sequential(nn.Conv2d(c, c, 3), nn.BatchNorm2d(c, 0.5), nn.ReLU())",
        "from torch.nn import BatchNorm2d as Norm\nNorm(8, 0.9)",
        "VALUE = 0.8\nnn.BatchNorm2d(8, VALUE)",
        "def block(c, i):\n    return nn.BatchNorm2d(c * 2 ** i, c * 2 ** i)",
        "def block(c):\n    return nn.BatchNorm2d(c, c)",
    ], [
        "nn.BatchNorm2d(8, 1e-3)",
        "nn.BatchNorm2d(8, eps=1e-5)",
        "nn.BatchNorm2d(8, 1e-5, 0.1)",
        "nn.BatchNorm2d(8, momentum=0.2)",
        "nn.BatchNorm2d(8, eps)",
        "def block(c, e):\n    return nn.BatchNorm2d(c, e)",
        "def block(c):\n    return nn.InstanceNorm2d(c, c)",
        "nn.GroupNorm(8, 0.8)",
        "nn.Dropout(0.8)",
        "nn.LayerNorm(8, 0.8)",
        "class BatchNorm2d:\n    def __init__(self, c, momentum):\n        self.c = c\nBatchNorm2d(8, 0.8)",
        "nn.BatchNorm2d(8, 0.01)",
    ]),
    "BN420": ([
        BN + "state = {k: v for k, v in torch.load('a.pt').items() if 'running_mean' not in k}\nnet.load_state_dict(state, strict=False)",
        BN + "state = torch.load('a.pt')\nkept = {k: v for k, v in state.items() if not ('running_mean' in k or 'running_var' in k)}\nnet.load_state_dict(kept, strict=False)",
    ], [
        BN + "state = {k: v for k, v in torch.load('a.pt').items() if 'num_batches_tracked' not in k}\nnet.load_state_dict(state, strict=False)",
        BN + "state = {k: v for k, v in torch.load('a.pt').items() if 'fc' not in k}\nnet.load_state_dict(state, strict=False)",
        BN + "state = {k: v for k, v in torch.load('a.pt').items() if 'running_mean' in k}\nnet.load_state_dict(state, strict=False)",
        BN + "net.load_state_dict(torch.load('a.pt'), strict=False)",
    ]),
    "BN422": ([
        BN + "net = nn.parallel.DistributedDataParallel(net)\nnet = nn.SyncBatchNorm.convert_sync_batchnorm(net)",
        "from torch.nn.parallel import DistributedDataParallel as DDP\ndef f(net):\n    ddp = DDP(net.cuda(), device_ids=[0])\n    return torch.nn.SyncBatchNorm.convert_sync_batchnorm(ddp)",
        "import apex\nfrom torch.nn.parallel import DistributedDataParallel as DDP\ndef f(net):\n    net = DDP(net)\n    net = apex.parallel.convert_syncbn_model(net)\n    return net",
    ], [
        BN + "net = nn.SyncBatchNorm.convert_sync_batchnorm(net)\nnet = nn.parallel.DistributedDataParallel(net)",
        BN + "net = nn.SyncBatchNorm.convert_sync_batchnorm(net)",
        BN + "ddp = nn.parallel.DistributedDataParallel(net)\nother = nn.SyncBatchNorm.convert_sync_batchnorm(nn.BatchNorm2d(3))",
    ]),
    "BN423": ([
        BN + "net = nn.SyncBatchNorm.convert_sync_batchnorm(net)\nnet = nn.parallel.DistributedDataParallel(net)\ndef test(model):\n    model.eval()\n    with torch.no_grad():\n        model(x)\nif rank == 0:\n    test(net)",
        BN + "net = nn.SyncBatchNorm.convert_sync_batchnorm(net)\nddp = nn.parallel.DistributedDataParallel(net)\nddp.eval()\nif dist.get_rank() == 0:\n    with torch.no_grad():\n        ddp(x)",
    ], [
        BN + "net = nn.SyncBatchNorm.convert_sync_batchnorm(net)\nnet = nn.parallel.DistributedDataParallel(net)\ndef test(model):\n    model.eval()\n    with torch.no_grad():\n        model(x)\ntest(net)",
        BN + "net = nn.SyncBatchNorm.convert_sync_batchnorm(net)\nddp = nn.parallel.DistributedDataParallel(net)\nddp.eval()\nif rank == 0:\n    with torch.no_grad():\n        ddp.module(x)",
        BN + "net.eval()\nif rank == 0:\n    with torch.no_grad():\n        net(x)",
    ]),
    "BN424": ([
        "from torch.utils.checkpoint import checkpoint\n" + BN + "def f(x):\n    return checkpoint(net, x)",
        "import torch.utils.checkpoint as cp\nclass Net(nn.Module):\n    def __init__(self):\n        super().__init__()\n        self.block = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))\n    def forward(self, x):\n        return cp.checkpoint(self.block, x)",
        "from torch.utils.checkpoint import checkpoint\nclass Net(nn.Module):\n    def __init__(self):\n        super().__init__()\n        self.bn = nn.BatchNorm1d(3)\n    def inner(self, x):\n        return self.bn(x)\n    def forward(self, x):\n        return checkpoint(self.inner, x, use_reentrant=False)",
    ], [
        "from torch.utils.checkpoint import checkpoint\nnet = nn.Linear(3, 3)\ndef f(x):\n    return checkpoint(net, x)",
        "def checkpoint(net, x):\n    torch.save(net, 'a.pt')\n" + BN + "checkpoint(net, x)",
        BN + "torch.load(checkpoint)",
    ]),
}  # fmt: skip
