# ruff: noqa: E501
"""Exports in train mode, train mode as a constant, statistics that are no buffers."""

# A layer with buffers of its own; the case has its forward.
BUFFERS = """\
class FB(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(c)); self.bias = nn.Parameter(torch.zeros(c))
        self.register_buffer('running_mean', torch.zeros(c)); self.register_buffer('running_var', torch.ones(c))
    def forward(self, x):
"""

WRONG = {
    "BN436": [
        (
            BUFFERS
            + """\
        return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, True)
""",
            "warning",
        ),
        (
            BUFFERS
            + """\
        return nn.functional.batch_norm(x, running_mean=self.running_mean, running_var=self.running_var, weight=self.weight, bias=self.bias, training=True, momentum=0.1)
""",
            "warning",
        ),
        (
            BUFFERS
            + """\
        return torch.batch_norm(x, self.weight, self.bias, self.running_mean, self.running_var, True, 0.1, 1e-5, False)
""",
            "warning",
        ),
        (
            """\
class Norm(nn.BatchNorm2d):
    def forward(self, x):
        return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, training=True, momentum=self.momentum, eps=self.eps)
""",
            "warning",
        ),
        (
            """\
class Norm(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.bn = nn.BatchNorm2d(c)
    def forward(self, x, gamma):
        y = F.batch_norm(x, self.bn.running_mean, self.bn.running_var, training=True)
        return gamma * y
""",
            "warning",
        ),
        (
            """\
import flax.linen as nn
import functools, jax
class Block(nn.Module):
    @nn.compact
    def __call__(self, x, train=True):
        norm = functools.partial(nn.BatchNorm, use_running_average=False, momentum=0.9)
        return norm()(x)
""",
            "warning",
        ),
        (
            """\
import flax.linen as nn
import functools, jax
class Block(nn.Module):
    def setup(self):
        self.bn = nn.BatchNorm(use_running_average=False)
    def __call__(self, x):
        return self.bn(x)
""",
            "warning",
        ),
        (
            """\
import flax.linen as nn
import functools, jax
from flax import linen
class Net(linen.Module):
    features: int
    @linen.compact
    def __call__(self, x, training):
        x = linen.Dense(self.features)(x)
        x = linen.BatchNorm(False)(x)
        return linen.relu(x)
""",
            "warning",
        ),
        (
            """\
import tensorflow as tf
from tensorflow import keras
from tensorflow.keras import layers
def block(x):
    x = layers.Conv2D(8, 3)(x)
    return layers.BatchNormalization()(x, training=True)
""",
            "warning",
        ),
        (
            """\
import tensorflow as tf
from tensorflow import keras
from tensorflow.keras import layers
class M(keras.Model):
    def __init__(self):
        super().__init__()
        self.bn = layers.BatchNormalization()
    def call(self, x, training=None):
        return self.bn(x, training=True)
""",
            "warning",
        ),
        (
            """\
import tensorflow as tf
from tensorflow import keras
from tensorflow.keras import layers
def build():
    i = keras.Input((8,)); return keras.Model(i, layers.BatchNormalization()(i))
def predict(images):
    model = build()
    model.load_weights('w.h5')
    return model(images, training=True)
""",
            "note",
        ),
        (
            """\
class FB(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.register_buffer('running_mean', torch.zeros(c)); self.register_buffer('running_var', torch.ones(c))
    def forward(self, x):
        return F.batch_norm(x, self.running_mean, self.running_var, training=not self.training)
""",
            "warning",
        ),
        (
            """\
import flax.linen as nn
class Block(nn.Module):
    @nn.compact
    def __call__(self, x, train: bool = True):
        x = nn.Dense(8)(x)
        return nn.relu(nn.BatchNorm(use_running_average=train)(x))
""",
            "warning",
        ),
        (
            """\
from tensorflow import keras
from tensorflow.keras import layers
class M(keras.Model):
    def __init__(self):
        super().__init__()
        self.bn = layers.BatchNormalization()
    def call(self, x, training=False):
        return self.bn(x, training=not training)
""",
            "warning",
        ),
    ],
    "BN437": [
        (
            """\
def export(path):
    model = Net()
    model.load_state_dict(torch.load(path))
    x = torch.randn(1, 3, 32, 32)
    torch.jit.save(torch.jit.trace(model, x), "m.pt")
""",
            "warning",
        ),
        (
            """\
def export(path):
    model = Net()
    model.load_state_dict(torch.load(path))
    model.train()
    torch.onnx.export(model, torch.randn(1, 3, 8, 8), "m.onnx", training=torch.onnx.TrainingMode.TRAINING)
""",
            "warning",
        ),
        (
            """\
def export(path):
    model = Net()
    model.load_state_dict(torch.load(path))
    program = torch.export.export(model, (torch.randn(2, 3, 8, 8),))
    torch.export.save(program, "m.pt2")
""",
            "warning",
        ),
        (
            """\
def to_script(m, x):
    return torch.jit.trace(m, x)
def main(path):
    model = Net()
    model.load_state_dict(torch.load(path))
    to_script(model, torch.randn(1, 3, 8, 8)).save("m.pt")
""",
            "warning",
        ),
        (
            """\
def export(path):
    model = Net()
    model.load_state_dict(torch.load(path))
    scripted = torch.jit.script(model)
    scripted.save("m.pt")
""",
            "warning",
        ),
        (
            """\
from torchvision import models
def main():
    net = models.resnet18(weights="DEFAULT")
    torch.jit.trace(net, torch.rand(1, 3, 224, 224)).save("resnet.pt")
""",
            "warning",
        ),
        (
            """\
class Exporter:
    def __init__(self, path):
        self.model = Net()
        self.model.load_state_dict(torch.load(path))
    def run(self):
        traced = torch.jit.trace(self.model, torch.rand(1, 3, 8, 8))
        traced.save("m.pt")
Exporter("a").run()
""",
            "warning",
        ),
        (
            """\
def main(loader):
    net = Net()
    opt = optim.SGD(net.parameters(), 0.1)
    for e in range(3):
        net.train()
        for x, y in loader:
            loss = F.cross_entropy(net(x), y)
            opt.zero_grad(); loss.backward(); opt.step()
    torch.jit.trace(net, x).save("m.pt")
""",
            "warning",
        ),
        (
            """\
def main(path):
    model = Net()
    model.load_state_dict(torch.load(path))
    torch.onnx.export(model, torch.rand(1, 3, 8, 8), "m.onnx")
""",
            "note",
        ),
        (
            """\
def main(path):
    model = Net()
    model.load_state_dict(torch.load(path))
    model.eval()
    torch.onnx.export(model.train(), torch.rand(1, 3, 8, 8), "m.onnx", training=torch.onnx.TrainingMode.TRAINING)
""",
            "warning",
        ),
    ],
    "BN438": [
        (
            """\
class BatchNorm(nn.Module):
    def __init__(self, num_features, num_dims):
        super().__init__()
        shape = (1, num_features) if num_dims == 2 else (1, num_features, 1, 1)
        self.gamma = nn.Parameter(torch.ones(shape))
        self.beta = nn.Parameter(torch.zeros(shape))
        self.moving_mean = torch.zeros(shape)
        self.moving_var = torch.ones(shape)
    def forward(self, X):
        if self.moving_mean.device != X.device:
            self.moving_mean = self.moving_mean.to(X.device)
        return X - self.moving_mean
""",
            "warning",
        ),
        (
            """\
class Norm(nn.Module):
    def __init__(self, c, device):
        super(Norm, self).__init__()
        self.mu = torch.zeros(c).to(device)
        self.sigma = torch.ones(c).to(device)
    def forward(self, x):
        return F.batch_norm(x, self.mu, self.sigma, training=self.training)
""",
            "warning",
        ),
        (
            """\
class Norm(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.running_mean, self.eps = torch.zeros(c), 1e-5
        self.running_var = torch.ones(c, requires_grad=False).cuda()
    def forward(self, x):
        return (x - self.running_mean) / self.running_var
""",
            "warning",
        ),
    ],
}
RIGHT = [
    """\
def export(path):
    model = Net()
    model.load_state_dict(torch.load(path))
    model.eval()
    torch.jit.save(torch.jit.trace(model, torch.randn(1, 3, 32, 32)), "m.pt")
""",
    """\
def export(path):
    model = Net()
    model.load_state_dict(torch.load(path))
    torch.onnx.export(model.eval(), torch.randn(1, 3, 8, 8), "m.onnx", opset_version=17)
""",
    """\
def export(path):
    model = Net()
    model.load_state_dict(torch.load(path))
    torch.onnx.export(model, torch.randn(1, 3, 8, 8), "m.onnx", training=torch.onnx.TrainingMode.EVAL)
""",
    """\
def main(loader):
    net = torch.jit.script(Net())
    opt = optim.SGD(net.parameters(), 0.1)
    net.train()
    for x, y in loader:
        loss = F.cross_entropy(net(x), y)
        opt.zero_grad(); loss.backward(); opt.step()
""",
    """\
def main(path):
    model = Net()
    model.load_state_dict(torch.load(path))
    model = torch.compile(model)
    model.eval()
    with torch.no_grad():
        return model(torch.rand(1, 3, 8, 8))
""",
    """\
class M(nn.Module):
    def __init__(self):
        super().__init__()
        self.n = nn.GroupNorm(1, 3)
    def forward(self, x):
        return self.n(x)
def main(path):
    m = M()
    m.load_state_dict(torch.load(path))
    torch.jit.trace(m, torch.rand(1, 3, 8, 8)).save("m.pt")
""",
    """\
def export(m, x, path):
    m.eval()
    torch.jit.trace(m, x).save(path)
    m.train()
def main(loader):
    net = Net()
    opt = optim.SGD(net.parameters(), 0.1)
    for e in range(3):
        net.train()
        for x, y in loader:
            loss = F.cross_entropy(net(x), y)
            opt.zero_grad(); loss.backward(); opt.step()
        export(net, x, "m.pt")
""",
    """\
def main(path):
    model = Net()
    model.load_state_dict(torch.load(path))
    model.eval().cpu()
    s = torch.jit.script(model)
    s.save("a.pt")
""",
    """\
def export(model, x):
    torch.jit.trace(model, x).save("m.pt")
""",
    """\
def main(path):
    model = Net()
    model.load_state_dict(torch.load(path))
    scripted = torch.jit.script(model)
    scripted.eval()
    scripted.save("m.pt")
""",
    BUFFERS
    + """\
        return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, self.training or not self.track)
""",
    BUFFERS
    + """\
        return F.batch_norm(x, torch.zeros_like(self.running_mean), torch.ones_like(self.running_var), training=True, momentum=1)
""",
    BUFFERS
    + """\
        return F.batch_norm(x, None, None, self.weight, self.bias, training=True)
""",
    BUFFERS
    + """\
        if self.training:
            return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, training=True)
        return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, training=False)
""",
    BUFFERS
    + """\
        return F.instance_norm(x, self.running_mean, self.running_var, self.weight, self.bias, True)
""",
    BUFFERS
    + """\
        if not self.training:
            return x * self.weight[:, None, None]
        return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, training=True)
""",
    BUFFERS
    + """\
        return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, False)
""",
    """\
import flax.linen as nn
import functools, jax
class Block(nn.Module):
    train: bool = True
    @nn.compact
    def __call__(self, x):
        return nn.BatchNorm(use_running_average=not self.train)(x)
""",
    """\
import flax.linen as nn
import functools, jax
from flax import nnx
class Block(nnx.Module):
    def __init__(self, rngs):
        self.bn = nnx.BatchNorm(8, use_running_average=False, rngs=rngs)
""",
    """\
import flax.linen as nn
import functools, jax
class Block(nn.Module):
    @nn.compact
    def __call__(self, x, train):
        if train:
            return nn.BatchNorm(use_running_average=False, name='bn')(x)
        return nn.BatchNorm(use_running_average=True, name='bn')(x)
""",
    """\
import tensorflow as tf
from tensorflow import keras
from tensorflow.keras import layers
class M(keras.Model):
    def __init__(self):
        super().__init__()
        self.bn = layers.BatchNormalization()
        self.drop = layers.Dropout(0.5)
    def call(self, x, training=None):
        return self.drop(self.bn(x, training=training), training=True)
""",
    """\
import tensorflow as tf
from tensorflow import keras
from tensorflow.keras import layers
model = keras.Sequential([layers.BatchNormalization()])
@tf.function
def train_step(x, y):
    with tf.GradientTape() as tape:
        loss = tf.reduce_mean(model(x, training=True) - y)
    return tape.gradient(loss, model.trainable_variables)
def predict(x):
    return model(x, training=False)
""",
    """\
import tensorflow as tf
from tensorflow import keras
from tensorflow.keras import layers
class M(keras.Model):
    def __init__(self):
        super().__init__()
        self.bn = layers.BatchNormalization()
    def call(self, x, training=None):
        if training:
            return self.bn(x, training=True)
        return self.bn(x, training=False)
""",
    """\
class Norm(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.register_buffer("running_mean", torch.zeros(c))
    def forward(self, x):
        self.running_mean = 0.9 * self.running_mean + 0.1 * x.mean(0)
        return x - self.running_mean
""",
    """\
class RunningMeanStd:
    def __init__(self, shape):
        self.running_mean = torch.zeros(shape)
        self.running_var = torch.ones(shape)
""",
    """\
class Norm(nn.BatchNorm1d):
    def __init__(self, c):
        super().__init__(c)
        self.running_mean = torch.full((c,), 0.5)
""",
    """\
class Norm(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.running_mean = nn.Parameter(torch.zeros(c), requires_grad=False)
        self.running_var = nn.Buffer(torch.ones(c))
    def forward(self, x):
        return F.batch_norm(x, self.running_mean, self.running_var, training=self.training)
""",
    """\
class Meter(nn.Module):
    def __init__(self):
        super().__init__()
        self.running_mean = None
        self.total = torch.zeros(1)
    def forward(self, x):
        return x
""",
    """\
import flax.linen as nn
class Block(nn.Module):
    @nn.compact
    def __call__(self, x, train: bool = True):
        return nn.BatchNorm(use_running_average=not train)(x)
class Block2(nn.Module):
    @nn.compact
    def __call__(self, x, use_running_average):
        return nn.BatchNorm(use_running_average=use_running_average)(x)
""",
]
