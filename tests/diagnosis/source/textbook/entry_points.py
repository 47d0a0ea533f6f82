"""Networks that objects hold, in methods that no program calls: sampled, tested, or trained by a trainer."""

GAN = """\
class Synthesizer:
    def __init__(self, z):
        self.z = z
        self.generator = Net()
        self.critic = Net()
    def fit(self, loader):
        g, d = optim.Adam(self.generator.parameters()), optim.Adam(self.critic.parameters())
        for x in loader:
            d.zero_grad(); (-self.critic(x).mean()).backward(); d.step()
            g.zero_grad(); (-self.critic(self.generator(torch.randn(8, self.z))).mean()).backward(); g.step()
"""
MODEL = """\
class Classifier:
    def __init__(self):
        self.net = Net()
        self.opt = optim.SGD(self.net.parameters(), 0.1)
    def fit(self, loader):
        for x, y in loader:
            self.opt.zero_grad(); F.cross_entropy(self.net(x), y).backward(); self.opt.step()
"""
TRAINER = """\
import pytorch_lightning as pl
class Module(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.net = Net()
"""

WRONG = {
    "BN428": [
        (
            GAN
            + """\
    def sample(self, n):
        out = []
        for _ in range(n // 8):
            noise = torch.randn(8, self.z)
            out.append(self.generator(noise).detach().numpy())
        return out
""",
            "warning",
        ),
        (
            GAN
            + """\
    def generate(self, n):
        return self.generator(torch.randn(n, self.z)).detach().cpu().numpy()
""",
            "warning",
        ),
        (
            GAN.replace("self.generator", "self._gen")
            + """\
    def sample(self, z):
        fake = self._gen(z)
        return fake.data.numpy()
""",
            "warning",
        ),
    ],
    "BN405": [
        (
            MODEL
            + """\
    def predict(self, x):
        return self.net(x).detach().numpy()
""",
            "warning",
        ),
        (
            MODEL
            + """\
    @torch.no_grad()
    def predict(self, x):
        return self.net(x).argmax(1)
""",
            "warning",
        ),
        (
            MODEL
            + """\
    def test(self, loader):
        right = 0
        for x, y in loader:
            right += (self.net(x).argmax(1) == y).sum().item()
        return right
""",
            "warning",
        ),
        (
            MODEL
            + """\
    def load(self, path):
        self.net.load_state_dict(torch.load(path))
    def infer(self, image):
        logits = self.net(image[None])
        return logits.softmax(1).tolist()
""",
            "warning",
        ),
        (
            MODEL.replace("self.net = Net()", "self.net = nn.DataParallel(Net())")
            + """\
    def evaluate(self, loader):
        scores = []
        for x, _ in loader:
            scores.append(self.net(x).detach())
        return torch.cat(scores)
""",
            "warning",
        ),
        (
            """\
def test(site, path):
    net = Net()
    net.load_state_dict(torch.load(path))
    net.train()
    for x in site:
        print(net(x).cpu().detach().numpy())
""",
            "warning",
        ),
        (
            """\
class Factory:
    @staticmethod
    def build(name):
        if name == 'small':
            return Net(8)
        elif name == 'large':
            return Net(64)
class Trainer:
    def __init__(self, name):
        self.net = nn.DataParallel(Factory.build(name).cuda())
        self.opt = optim.SGD(self.net.parameters(), 0.1)
    def train(self, loader):
        for x, y in loader:
            self.opt.zero_grad(); F.cross_entropy(self.net(x), y).backward(); self.opt.step()
    def predict(self, loader):
        for x, _ in loader:
            print(self.net(x).argmax(1).tolist())
""",
            "warning",
        ),
    ],
    "BN434": [
        (
            TRAINER
            + """\
    def training_step(self, batch, at):
        (x_source, y), (x_target, _) = batch
        loss = F.cross_entropy(self.net(x_source), y)
        return loss + self.net(x_target).softmax(1).pow(2).mean()
""",
            "note",
        ),
    ],
}

RIGHT = [
    """\
x = torch.randn(2, 3, 8, 8)
def test():
    net = Net()
    net.load_state_dict(torch.load('net.pt'))
    print(net(x).detach().shape)
""",
    GAN
    + """\
    def sample(self, n):
        self.generator.eval()
        return self.generator(torch.randn(n, self.z)).detach().numpy()
""",
    GAN
    + """\
    def freeze(self):
        for net in (self.generator, self.critic):
            net.eval()
    def sample(self, n):
        return self.generator(torch.randn(n, self.z)).detach().numpy()
""",
    MODEL
    + """\
    def predict(self, x):
        self.net.train(False)
        return self.net(x).detach().numpy()
""",
    MODEL
    + """\
    def set_mode(self, train):
        self.net.train() if train else self.net.eval()
    def predict(self, x):
        return self.net(x).detach().numpy()
""",
    MODEL
    + """\
def serve(path):
    model = Classifier()
    model.net.load_state_dict(torch.load(path))
    model.net.eval()
    return model.predict
Classifier.predict = lambda self, x: self.net(x).detach().numpy()
""",
    """\
class Tester:
    def __init__(self, net):
        self.net = net
    def predict(self, x):
        return self.net(x).detach().numpy()
""",
    """\
class TestNet:
    def setup_method(self):
        self.net = Net()
        self.opt = optim.SGD(self.net.parameters(), 0.1)
    def test_shape(self):
        assert self.net(torch.rand(2, 3, 8, 8)).detach().shape == (2, 10)
""",
    MODEL
    + """\
    def loss(self, x, y):
        return F.cross_entropy(self.net(x), y)
""",
    TRAINER
    + """\
    def training_step(self, batch, at):
        x, y = batch
        return F.cross_entropy(self.net(x), y)
    def predict_step(self, batch, at):
        return self.net(batch).detach()
""",
    TRAINER
    + """\
    def training_step(self, batch, at):
        (x_source, y), (x_target, _) = batch
        out = self.net(torch.cat([x_source, x_target]))
        return F.cross_entropy(out[: len(y)], y)
""",
]
