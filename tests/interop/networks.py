"""One small residual network in every framework, each built and run by the framework itself.

`make(seed)` gives it with weights and statistics of its own; `.source` is what `translate` reads,
`.fill(source, **choices)` puts translated weights into it, `.infer(x)` takes float32 (N, C, H, W).
A strided convolution is padded by one on all sides everywhere, as in torch.
"""

import numpy as np
import pytest
import torch
from torch import nn

from batchnorm.interop import translate

EPS, DECAY = 1e-3, 0.9
STAGES = ((8, 1), (16, 2))
INPUT = (4, 3, 12, 12)


def needs(*modules):
    for module in modules:
        pytest.importorskip(module, reason=f"{module} is not installed: make test-interop installs and runs this")


def drawn(name, shape, rng):
    """A value for a tensor of this name: a variance is positive, a scale about 1."""
    if name in ("var", "moving_variance", "running_var"):
        return rng.uniform(0.3, 3.0, shape).astype(np.float32)
    if name in ("scale", "gamma") or (name == "weight" and len(shape) == 1):
        return rng.normal(1.0, 0.3, shape).astype(np.float32)
    return (rng.normal(0.0, 1.0, shape) / max(1.0, np.sqrt(np.prod(shape) / max(shape, default=1)))).astype(np.float32)


def last(x):
    return np.ascontiguousarray(np.moveaxis(x, 1, -1))


class Block(nn.Module):
    def __init__(self, channels, width, stride, eps):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width, eps, 1 - DECAY)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width, eps, 1 - DECAY)
        self.short = nn.Conv2d(channels, width, 1, stride, bias=False)
        self.norm = nn.BatchNorm2d(width, eps, 1 - DECAY)

    def forward(self, x):
        y = torch.relu(self.bn1(self.conv1(x)))
        return torch.relu(self.bn2(self.conv2(y)) + self.norm(self.short(x)))


class TorchNet(nn.Module):
    def __init__(self, channels=3, classes=5, eps=EPS):
        super().__init__()
        self.stem = nn.Conv2d(channels, 8, 3, 1, 1, bias=False)
        self.first = nn.BatchNorm2d(8, eps, 1 - DECAY)
        width = 8
        for i, (out, stride) in enumerate(STAGES):
            setattr(self, f"block{i}", Block(width, out, stride, eps))
            width = out
        self.head = nn.Linear(width, classes)

    def forward(self, x):
        x = torch.relu(self.first(self.stem(x)))
        for i in range(len(STAGES)):
            x = getattr(self, f"block{i}")(x)
        return self.head(x.mean((2, 3)))


class Torch:
    def __init__(self, seed, **sizes):
        rng = np.random.default_rng(seed)
        self.net = TorchNet(**sizes).eval()
        for name, tensor in self.net.state_dict().items():
            if tensor.is_floating_point():
                tensor.copy_(torch.from_numpy(drawn(name.rpartition(".")[2], tuple(tensor.shape), rng)))
        self.source = self.net

    def fill(self, source, **choices):
        return translate(source, self.net, **choices)

    def infer(self, x):
        with torch.no_grad():
            return self.net.eval()(torch.from_numpy(x)).numpy()


def keras_net(size=12, channels=3, classes=5, named=True, eps=EPS):
    import keras

    layers = keras.layers

    def name(text):
        return text if named else None

    def norm(text):
        return layers.BatchNormalization(momentum=DECAY, epsilon=eps, name=name(text))

    def conv(x, width, kernel, stride, text):
        x = layers.ZeroPadding2D(kernel // 2)(x)
        return layers.Conv2D(width, kernel, stride, use_bias=False, name=name(text))(x)

    entry = keras.Input((size, size, channels))
    x = layers.ReLU()(norm("first")(conv(entry, 8, 3, 1, "stem")))
    for i, (width, stride) in enumerate(STAGES):
        y = layers.ReLU()(norm(f"block{i}_bn1")(conv(x, width, 3, stride, f"block{i}_conv1")))
        y = norm(f"block{i}_bn2")(conv(y, width, 3, 1, f"block{i}_conv2"))
        short = norm(f"block{i}_norm")(conv(x, width, 1, stride, f"block{i}_short"))
        x = layers.ReLU()(layers.add([y, short]))
    return keras.Model(entry, layers.Dense(classes, name=name("head"))(layers.GlobalAveragePooling2D()(x)))


def keras_run(model, x):
    import keras

    return np.asarray(keras.ops.convert_to_numpy(model(last(x), training=False)))


class Keras:
    needs = ("keras",)

    def __init__(self, seed, **sizes):
        rng = np.random.default_rng(seed)
        self.net = keras_net(**sizes)
        for variable in self.net.weights:
            variable.assign(drawn(variable.name, tuple(variable.shape), rng))
        self.source = self.net

    def fill(self, source, **choices):
        return translate(source, self.net, **choices)

    def infer(self, x):
        return keras_run(self.net, x)


def linen_net(classes=5):
    import flax.linen as linen

    def conv(width, kernel, stride, name):
        pad = kernel // 2
        return linen.Conv(width, (kernel, kernel), stride, ((pad, pad), (pad, pad)), use_bias=False, name=name)

    def norm(train, name):
        return linen.BatchNorm(not train, momentum=DECAY, epsilon=EPS, name=name)

    class LinenBlock(linen.Module):
        width: int
        stride: int

        @linen.compact
        def __call__(self, x, train):
            y = linen.relu(norm(train, "bn1")(conv(self.width, 3, self.stride, "conv1")(x)))
            y = norm(train, "bn2")(conv(self.width, 3, 1, "conv2")(y))
            return linen.relu(y + norm(train, "norm")(conv(self.width, 1, self.stride, "short")(x)))

    class LinenNet(linen.Module):
        @linen.compact
        def __call__(self, x, train=False):
            x = linen.relu(norm(train, "first")(conv(8, 3, 1, "stem")(x)))
            for i, (width, stride) in enumerate(STAGES):
                x = LinenBlock(width, stride, name=f"block{i}")(x, train)
            return linen.Dense(classes, name="head")(x.mean((1, 2)))

    return LinenNet()


class Linen:
    needs = ("jax", "flax")

    def __init__(self, seed, size=12, channels=3, classes=5):
        import jax

        rng = np.random.default_rng(seed)
        self.net = linen_net(classes)
        variables = self.net.init(jax.random.key(seed), np.zeros((1, size, size, channels), np.float32))
        self.source = jax.tree_util.tree_map_with_path(lambda p, a: drawn(p[-1].key, a.shape, rng), variables)

    def fill(self, source, **choices):
        result = translate(source, self.source, **choices)
        self.source = result.target
        return result

    def infer(self, x):
        return np.asarray(self.net.apply(self.source, last(x), False))


class Nnx:
    needs = ("jax", "flax")

    def __init__(self, seed, eps=EPS):
        from flax import nnx

        def conv(channels, width, kernel, stride):
            pad = kernel // 2
            padding = ((pad, pad), (pad, pad))
            return nnx.Conv(channels, width, (kernel, kernel), stride, padding=padding, use_bias=False, rngs=rngs)

        def norm(width):
            return nnx.BatchNorm(width, momentum=DECAY, epsilon=eps, rngs=rngs)

        class NnxBlock(nnx.Module):
            def __init__(self, channels, width, stride):
                self.conv1, self.bn1 = conv(channels, width, 3, stride), norm(width)
                self.conv2, self.bn2 = conv(width, width, 3, 1), norm(width)
                self.short, self.norm = conv(channels, width, 1, stride), norm(width)

            def __call__(self, x):
                y = self.bn2(self.conv2(nnx.relu(self.bn1(self.conv1(x)))))
                return nnx.relu(y + self.norm(self.short(x)))

        class NnxNet(nnx.Module):
            def __init__(self):
                self.stem, self.first = conv(3, 8, 3, 1), norm(8)
                width = 8
                for i, (out, stride) in enumerate(STAGES):
                    setattr(self, f"block{i}", NnxBlock(width, out, stride))
                    width = out
                self.head = nnx.Linear(width, 5, rngs=rngs)

            def __call__(self, x):
                x = nnx.relu(self.first(self.stem(x)))
                for i in range(len(STAGES)):
                    x = getattr(self, f"block{i}")(x)
                return self.head(x.mean((1, 2)))

        rngs = nnx.Rngs(seed)
        rng = np.random.default_rng(seed)
        self.net = NnxNet()
        self.net.eval()
        state = nnx.state(self.net)
        for path, leaf in nnx.to_flat_state(state):
            leaf.set_value(drawn(path[-1], leaf.get_value().shape, rng))
        nnx.update(self.net, state)
        self.source = self.net

    def fill(self, source, **choices):
        return translate(source, self.net, **choices)

    def infer(self, x):
        return np.asarray(self.net(last(x)))


class Equinox:
    needs = ("jax", "equinox")

    def __init__(self, seed, mode="batch"):
        import equinox as eqx
        import jax

        keys = iter(jax.random.split(jax.random.key(seed), 50))

        def conv(channels, width, kernel, stride):
            return eqx.nn.Conv2d(channels, width, kernel, stride, kernel // 2, use_bias=False, key=next(keys))

        def norm(width):
            return eqx.nn.BatchNorm(width, "batch", eps=EPS, momentum=DECAY, mode=mode)

        class EqxBlock(eqx.Module):
            conv1: eqx.nn.Conv2d
            bn1: eqx.nn.BatchNorm
            conv2: eqx.nn.Conv2d
            bn2: eqx.nn.BatchNorm
            short: eqx.nn.Conv2d
            norm: eqx.nn.BatchNorm

            def __init__(self, channels, width, stride):
                self.conv1, self.bn1 = conv(channels, width, 3, stride), norm(width)
                self.conv2, self.bn2 = conv(width, width, 3, 1), norm(width)
                self.short, self.norm = conv(channels, width, 1, stride), norm(width)

            def __call__(self, x, state):
                y, state = self.bn1(self.conv1(x), state)
                y, state = self.bn2(self.conv2(jax.nn.relu(y)), state)
                z, state = self.norm(self.short(x), state)
                return jax.nn.relu(y + z), state

        class EqxNet(eqx.Module):
            stem: eqx.nn.Conv2d
            first: eqx.nn.BatchNorm
            block0: EqxBlock
            block1: EqxBlock
            head: eqx.nn.Linear

            def __init__(self):
                self.stem, self.first = conv(3, 8, 3, 1), norm(8)
                self.block0, self.block1 = EqxBlock(8, 8, 1), EqxBlock(8, 16, 2)
                self.head = eqx.nn.Linear(16, 5, key=next(keys))

            def __call__(self, x, state):
                x, state = self.first(self.stem(x), state)
                x, state = self.block0(jax.nn.relu(x), state)
                x, state = self.block1(x, state)
                return self.head(x.mean((1, 2))), state

        rng = np.random.default_rng(seed)
        model, state = eqx.nn.make_with_state(EqxNet)()
        self.eqx, self.jax = eqx, jax
        self.source = (model, state)
        for _ in range(3):
            self.source = self.source[0], self.run(rng.normal(1, 2, INPUT).astype(np.float32), train=True)[1]

    def run(self, x, train):
        model = self.eqx.nn.inference_mode(self.source[0], not train)
        return self.jax.vmap(model, axis_name="batch", in_axes=(0, None), out_axes=(0, None))(x, self.source[1])

    def fill(self, source, **choices):
        result = translate(source, self.source, **choices)
        self.source = result.target
        return result

    def infer(self, x):
        return np.asarray(self.run(x, train=False)[0])


class Haiku:
    needs = ("jax", "haiku")

    def __init__(self, seed):
        import haiku as hk
        import jax

        def conv(width, kernel, stride, name):
            pad = kernel // 2
            return hk.Conv2D(width, kernel, stride, padding=[(pad, pad)] * 2, with_bias=False, name=name)

        def norm(name):
            return hk.BatchNorm(True, True, DECAY, eps=EPS, name=name)

        class HaikuBlock(hk.Module):
            def __init__(self, width, stride, name):
                super().__init__(name)
                self.width, self.stride = width, stride

            def __call__(self, x, train):
                y = jax.nn.relu(norm("bn1")(conv(self.width, 3, self.stride, "conv1")(x), train))
                y = norm("bn2")(conv(self.width, 3, 1, "conv2")(y), train)
                return jax.nn.relu(y + norm("norm")(conv(self.width, 1, self.stride, "short")(x), train))

        class HaikuNet(hk.Module):
            def __call__(self, x, train):
                x = jax.nn.relu(norm("first")(conv(8, 3, 1, "stem")(x), train))
                for i, (width, stride) in enumerate(STAGES):
                    x = HaikuBlock(width, stride, f"block{i}")(x, train)
                return hk.Linear(5, name="head")(x.mean((1, 2)))

        self.net = hk.transform_with_state(lambda x, train: HaikuNet(name="net")(x, train))
        rng = np.random.default_rng(seed)
        x = np.zeros((2, 12, 12, 3), np.float32)
        self.source = self.net.init(jax.random.key(seed), x, True)
        for _ in range(3):
            _, state = self.net.apply(*self.source, None, last(rng.normal(1, 2, INPUT).astype(np.float32)), True)
            self.source = self.source[0], state

    def fill(self, source, **choices):
        result = translate(source, self.source, **choices)
        self.source = result.target
        return result

    def infer(self, x):
        return np.asarray(self.net.apply(*self.source, None, last(x), False)[0])


NETWORKS = {"torch": Torch, "keras": Keras, "linen": Linen, "nnx": Nnx, "equinox": Equinox, "haiku": Haiku}


# Their eps can be set afterwards, so a target may start from another one.
SETTABLE = ("torch", "keras", "nnx")


def make(name, seed, **sizes):
    needs(*getattr(NETWORKS[name], "needs", ()))
    return NETWORKS[name](seed, **sizes)
