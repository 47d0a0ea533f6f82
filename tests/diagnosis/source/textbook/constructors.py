"""Constructors that probe a shape, teachers of trainers, single samples."""

# A network without running statistics that serves; the case says how.
SERVES = """\
class Enc(nn.Module):
    def __init__(self):
        super().__init__()
        self.bn = nn.BatchNorm2d(8, track_running_stats=False)
        self.conv = nn.Conv2d(3, 8, 3)
    def forward(self, x):
        return self.bn(self.conv(x))
def serve(path, image):
    m = Enc()
    m.load_state_dict(torch.load(path))
    m.eval()
    with torch.no_grad():
"""

WRONG = {
    "BN408": [
        (
            """\
import pytorch_lightning as pl
class Lit(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.student = Net()
        self.teacher = Net()
        self.teacher.load_state_dict(torch.load('t.pt'))
        self.teacher.eval()
    def training_step(self, batch, i):
        x, y = batch
        with torch.no_grad():
            t = self.teacher(x)
        return F.mse_loss(self.student(x), t)
    def configure_optimizers(self):
        return optim.Adam(self.student.parameters())
""",
            "note",
        ),
        (
            """\
import pytorch_lightning as pl
class Lit(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.student = Net()
        self.teacher = Net()
        self.teacher.load_state_dict(torch.load('t.pt'))
        self.teacher = self.teacher.eval().requires_grad_(False)
    def training_step(self, batch, i):
        x, y = batch
        with torch.no_grad():
            t = self.teacher(x)
        return F.mse_loss(self.student(x), t)
    def configure_optimizers(self):
        return optim.Adam(self.student.parameters())
""",
            "note",
        ),
        (
            """\
import pytorch_lightning as pl
class Lit(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.student = Net()
        self.teacher = Net()
        self.teacher.load_state_dict(torch.load('t.pt'))
        self.freeze_teacher()
    def training_step(self, batch, i):
        x, y = batch
        with torch.no_grad():
            t = self.teacher(x)
        return F.mse_loss(self.student(x), t)
    def configure_optimizers(self):
        return optim.Adam(self.student.parameters())
    def freeze_teacher(self):
        self.teacher.eval()
        for p in self.teacher.parameters():
            p.requires_grad = False
""",
            "note",
        ),
    ],
    "BN412": [
        (
            """\
class Q(nn.Module):
    def __init__(self, shape):
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU())
        with torch.no_grad():
            n = self.features(torch.zeros(1, *shape)).numel()
        self.fc = nn.Linear(n, 4)
    def forward(self, x):
        return self.fc(self.features(x).flatten(1))
""",
            "note",
        ),
        (
            """\
class Q(nn.Module):
    def __init__(self, shape):
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU())
        n = self.conv_out(shape)
        self.fc = nn.Linear(n, 4)
    def forward(self, x):
        return self.fc(self.features(x).flatten(1))
    def conv_out(self, shape):
        return self.features(torch.zeros(1, *shape)).view(1, -1).size(1)
""",
            "note",
        ),
        (
            """\
class Q(nn.Module):
    def __init__(self, shape):
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU())
        x = torch.rand(2, *shape)
        n = self.features(x).flatten(1).shape[1]
        self.fc = nn.Linear(n, 4)
    def forward(self, x):
        return self.fc(self.features(x).flatten(1))
""",
            "note",
        ),
    ],
}
RIGHT = [
    """\
import pytorch_lightning as pl
class Lit(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.student = Net()
        self.teacher = Net()
        self.teacher.load_state_dict(torch.load('t.pt'))
        self.teacher.eval()
    def training_step(self, batch, i):
        x, y = batch
        with torch.no_grad():
            t = self.teacher(x)
        return F.mse_loss(self.student(x), t)
    def configure_optimizers(self):
        return optim.Adam(self.student.parameters())
    def on_train_epoch_start(self):
        self.teacher.eval()
""",
    """\
import pytorch_lightning as pl
class Lit(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.student = Net()
        self.teacher = Net()
        self.teacher.load_state_dict(torch.load('t.pt'))
        self.teacher.eval()
    def training_step(self, batch, i):
        x, y = batch
        with torch.no_grad():
            t = self.teacher(x)
        return F.mse_loss(self.student(x), t)
    def configure_optimizers(self):
        return optim.Adam(self.student.parameters())
    def train(self, mode=True):
        super().train(mode)
        self.teacher.eval()
        return self
""",
    """\
class Q(nn.Module):
    def __init__(self, shape):
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU())
        self.features.eval()
        with torch.no_grad():
            n = self.features(torch.zeros(1, *shape)).numel()
        self.features.train()
        self.fc = nn.Linear(n, 4)
    def forward(self, x):
        return self.fc(self.features(x).flatten(1))
""",
    """\
class Q(nn.Module):
    def __init__(self, shape):
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, 8, 3), nn.GroupNorm(1, 8), nn.ReLU())
        with torch.no_grad():
            n = self.features(torch.zeros(1, *shape)).numel()
        self.fc = nn.Linear(n, 4)
    def forward(self, x):
        return self.fc(self.features(x).flatten(1))
""",
    """\
class Q(nn.Module):
    def __init__(self, shape):
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU())
        with torch.no_grad():
            n = self.features[0](torch.zeros(1, *shape)).numel()
        self.fc = nn.Linear(n, 4)
    def forward(self, x):
        return self.fc(self.features(x).flatten(1))
""",
    SERVES
    + """\
        return m(image)
""",
    SERVES.replace(", track_running_stats=False", "") + "        return m(image.unsqueeze(0))\n",
    SERVES.replace("BatchNorm2d", "InstanceNorm2d") + "        return m(image.unsqueeze(0))\n",
    SERVES
    + """\
        return m(image.unsqueeze(1))
""",
]
