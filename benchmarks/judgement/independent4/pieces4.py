"""Shared pieces of the fourth corpus: data, nets, training, repairs. A situation draws everything from R and torch's (forked) generator."""
import copy, math, zlib
import numpy as np, torch, torch.nn as nn, torch.nn.functional as F
from torch.utils.data import DataLoader, TensorDataset

BN = nn.modules.batchnorm._BatchNorm


class Situation:
    """`code` for broken ones, `differs` for gaps; `inputs_differ` says whether the evaluation inputs are unlike training's."""

    def __init__(self, name, kind, code, fn, differs=None, inputs_differ=False):
        self.name, self.kind, self.code, self.fn, self.differs, self.inputs_differ = name, kind, code, fn, differs, inputs_differ

    def make(self, seed):
        h = zlib.crc32(f"judgement4/{self.name}/{seed}".encode())
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(h)
            return self.fn(np.random.default_rng(h))

    def __repr__(self):
        return f"<{self.kind}: {self.name} ({self.code or self.differs})>"


def registry(kind):
    S = []

    def situation(name, word=None, inputs_differ=False):
        def enter(fn):
            S.append(Situation(name, kind, word if kind == "broken" else None, fn, word if kind == "other gap" else None, inputs_differ))
            return fn
        return enter
    return S, situation


# ---------------------------------------------------------------- draws
def U(R, a, b): return float(R.uniform(a, b))
def LU(R, a, b): return float(np.exp(R.uniform(np.log(a), np.log(b))))
def I(R, a, b): return int(R.integers(a, b + 1))
def C(R, *xs): return xs[int(R.integers(len(xs)))]
def sign(R): return C(R, -1, 1)
def f32(a): return torch.as_tensor(np.ascontiguousarray(a), dtype=torch.float32)
def i64(a): return torch.as_tensor(np.ascontiguousarray(a), dtype=torch.long)
def col(v, x): return torch.as_tensor(v, dtype=x.dtype).reshape(-1, *[1] * (x.dim() - 1))


# ---------------------------------------------------------------- data: x, y, xt, yt, k
_real = {}


def fabrics(R, ntr=2000, nte=3000, size=12, k=None, ch=3, noise=None, amp=1.0):
    """Woven patterns: every class has a smooth coloured pattern, cut anywhere (rolled), in noise."""
    k = k or I(R, 6, 8); noise = noise or U(R, 1.5, 1.9)
    T = F.interpolate(torch.as_tensor(R.standard_normal((k, ch, 5, 5)), dtype=torch.float32), size=size, mode="bicubic").numpy(); T /= T.std((1, 2, 3), keepdims=True)

    def part(n):
        y = R.integers(k, size=n); a, b = R.integers(-3, 4, (2, n)); v = np.arange(size)
        x = T[y][np.arange(n)[:, None, None, None], np.arange(ch)[None, :, None, None], ((v + a[:, None]) % size)[:, None, :, None], ((v + b[:, None]) % size)[:, None, None, :]]
        return f32(amp * x * np.exp(R.normal(0, .2, (n, 1, 1, 1))) + noise * R.standard_normal(x.shape) + .3), i64(y)
    return (*part(ntr), *part(nte), k)


def signs(R, ntr=2000, nte=3000, size=14, k=6, noise=.8):
    """Road signs: disc, box, triangle, ring, cross, bar, in some colour before a ground of another, three channels."""
    v, u = np.meshgrid(np.arange(size), np.arange(size), indexing="ij")

    def part(n):
        y = R.integers(k, size=n); c = size / 2 - .5 + R.uniform(-1.5, 1.5, (2, n, 1, 1)); r = R.uniform(3.4, 5.2, (n, 1, 1)); a, b = u - c[0], v - c[1]; d = np.sqrt(a * a + b * b); q = np.maximum(abs(a), abs(b))
        m = np.stack([d < r, q < r * .9, (b < r * .8) & (b > -r + 1.7 * abs(a)), (d < r) & (d > r * .55), (q < r) & (np.minimum(abs(a), abs(b)) < 1.3), (q < r) & (abs(b) < 1.6)], 1)[np.arange(n), y][:, None]
        x = np.where(m, R.uniform(.2, 1.6, (n, 3, 1, 1)), R.uniform(-1, .1, (n, 3, 1, 1))); return f32(x + noise * R.standard_normal(x.shape)), i64(y)
    return (*part(ntr), *part(nte), k)


def handwriting(R, ntr=2000, nte=3000, noise=.3, size=10):
    """scikit-learn's digits (real), put anywhere on a slightly larger sheet; test digits are of other originals."""
    from sklearn.datasets import load_digits
    if "d" not in _real: _real["d"] = load_digits(return_X_y=True)
    X, t = _real["d"]; p = R.permutation(len(t))

    def part(ids, n):
        i = ids[R.integers(len(ids), size=n)]; out = np.zeros((n, size, size)); a, b = R.integers(0, size - 7, (2, n))
        for j in range(n): out[j, a[j]:a[j] + 8, b[j]:b[j] + 8] = X[i[j]].reshape(8, 8) / 16
        return f32((out + noise * R.standard_normal(out.shape) - .2) / .35)[:, None], i64(t[i])
    return (*part(p[:1200], ntr), *part(p[1200:], nte), 10)


def heartbeats(R, ntr=2000, nte=3200, L=64, k=None, noise=None, ch=2):
    """Electrodes: every class has a wave form of its own, starting anywhere, over a resting level."""
    k = k or I(R, 5, 7); noise = noise or U(R, 1.2, 1.6); T = F.interpolate(torch.as_tensor(R.standard_normal((k, ch, 11)), dtype=torch.float32), size=L, mode="linear").numpy(); T /= T.std((1, 2), keepdims=True); rest = R.normal(0, .6, (ch, 1))

    def part(n):
        y = R.integers(k, size=n); s = R.integers(0, L, n); x = T[y][np.arange(n)[:, None, None], np.arange(ch)[None, :, None], ((np.arange(L) + s[:, None]) % L)[:, None]]
        return f32(x * np.exp(R.normal(0, .2, (n, 1, 1))) + rest + noise * R.standard_normal(x.shape)), i64(y)
    return (*part(ntr), *part(nte), k)


def wearables(R, ntr=2000, nte=3200, L=60, k=None, noise=1.1):
    """Accelerometer on a wrist: gaits differ in cadence and in how the three axes share it; gravity lies on the axes."""
    k = k or I(R, 5, 7); f = np.linspace(1.5, 6, k)[R.permutation(k)]; A = R.normal(0, 1, (k, 3, 2)); grav = R.normal(0, 1.2, 3); t = np.arange(L) / L

    def part(n):
        y = R.integers(k, size=n); w = 2 * np.pi * (f[y] * np.exp(R.normal(0, .06, n)))[:, None] * t + R.uniform(0, 6.3, (n, 1)); s = np.stack([np.sin(w), np.sin(2 * w + 1)], 2)
        x = np.einsum("nlh,nch->ncl", s, A[y]) * np.exp(R.normal(0, .25, (n, 1, 1))) + grav[:, None]; return f32(x + noise * R.standard_normal(x.shape)), i64(y)
    return (*part(ntr), *part(nte), k)


def loans(R, ntr=2600, nte=4000, d=None, k=None, soft=.15, scale=True):
    """Table of amounts, ages, counts and ratios; labels from a random two-layer rule."""
    d = d or I(R, 8, 12); k = k or I(R, 3, 4); kind = R.integers(4, size=d); sc, of = np.exp(R.normal(0, 1., d)), R.normal(0, 1, d); W, V = R.standard_normal((d, 10)) / math.sqrt(d) * 1.6, R.standard_normal((10, k)); z0 = R.standard_normal((4000, d)); bias = (np.tanh(z0 @ W) @ V).mean(0)

    def part(n):
        z = R.standard_normal((n, d)); s = np.tanh(z @ W) @ V - bias + soft * R.gumbel(size=(n, k)); x = np.where(kind == 0, z, np.where(kind == 1, np.exp(.7 * z), np.where(kind == 2, np.round(z * 3), np.tanh(z)))); return f32(x * sc + of if scale else x), i64(s.argmax(1))
    return (*part(ntr), *part(nte), k)


def topics(R, ntr=2000, nte=3200, V=60, k=None, L=32, own=.2):
    """Short texts: a part of the words is of the topic, the rest is common."""
    k = k or I(R, 5, 7); P = R.dirichlet(np.full(V, .25), k); common = R.dirichlet(np.full(V, .6)); cum, cc = P.cumsum(1), common.cumsum()

    def part(n):
        y = R.integers(k, size=n); u = R.uniform(size=(n, L)); t = (u[:, :, None] > cum[y][:, None]).sum(2); c = np.searchsorted(cc, u); x = np.where(R.uniform(size=(n, L)) < own, t, c).clip(0, V - 1); return i64(x), i64(y)
    return (*part(ntr), *part(nte), k, V)


def clouds(R, ntr=1800, nte=2800, P=40, noise=.1):
    """Point clouds (n, 3, points): ball, box, tube, cone, ring, slab; turned about the vertical, sizes vary."""
    def part(n):
        y = R.integers(6, size=n); g = R.standard_normal((n, 3, P)); g /= np.linalg.norm(g, axis=1, keepdims=True); t, h = R.uniform(0, 6.283, (n, P)), R.uniform(-1, 1, (n, P)); c, s = np.cos(t), np.sin(t); q = R.uniform(-1, 1, (n, 3, P)); q /= abs(q).max(1, keepdims=True); r = (1 - h) / 2; b = R.uniform(0, 6.283, (n, P)); w = 1 + .35 * np.cos(b); fl = R.uniform(-1, 1, (n, 3, P)); fl[:, 2] *= .1
        x = np.stack([g, q, np.stack([c, s, h], 1), np.stack([r * c, r * s, h], 1), np.stack([w * c, w * s, .35 * np.sin(b)], 1), fl], 1)[np.arange(n), y] * np.exp(R.normal(0, .15, (n, 3, 1)))
        a = R.uniform(0, 6.283, n); rot = np.zeros((n, 3, 3)); rot[:, 0, 0] = rot[:, 1, 1] = np.cos(a); rot[:, 0, 1] = -np.sin(a); rot[:, 1, 0] = np.sin(a); rot[:, 2, 2] = 1
        return f32(np.einsum("nij,njp->nip", rot, x) + noise * R.standard_normal(x.shape)), i64(y)
    return (*part(ntr), *part(nte), 6)


def networks(R, ntr=1800, nte=2800, N=14, flip=.04, lo=None):
    """Adjacency (n, N, N): random, two groups, two sides, core and rim, neighbours on a ring."""
    i = np.arange(N)

    def part(n):
        y = R.integers(5, size=n); h = i < N // 2; same = h[:, None] == h; ring = np.minimum((i[:, None] - i) % N, (i - i[:, None]) % N); core = i < 4
        Pm = np.stack([np.full((N, N), .3), np.where(same, .6, .04), np.where(same, .02, .55), np.where(core[:, None] & core, .95, np.where(core[:, None] | core, .5, .04)), np.where(ring <= 2, .85, .02)])
        A = np.triu(R.uniform(size=(n, N, N)) < np.clip(Pm[y], flip, 1 - flip), 1).astype(np.float32); A = A + A.transpose(0, 2, 1); p = np.argsort(R.uniform(size=(n, N)), 1); return f32(A[np.arange(n)[:, None, None], p[:, :, None], p[:, None]]), i64(y)
    return (*part(ntr), *part(nte), 5)


def pendulum(R, n, energy=1.0, policy=1.0, drag=None):
    """States of a driven pendulum and the discounted return that follows under a fixed controller."""
    rng = R; th, om, m, goal = rng.normal(0, energy, n), rng.normal(0, 2.5 * energy, n), rng.uniform(.5, 2, n), rng.normal(0, energy, n)
    x = np.stack([np.cos(th), np.sin(th), th, om * 8, m * 5 + 10, goal * 3], 1); v, d = np.zeros(n), 1.
    for _ in range(15):
        a = np.clip(-policy * (3 * (th - goal) + om), -2, 2); v += d * -((th - goal) ** 2 + .1 * om ** 2 + .02 * a ** 2); om = om + .12 * (a / m - 2 * np.sin(th)); th = th + .12 * om; d *= .85
    return f32(x), f32(-np.log1p(-v))


# ---------------------------------------------------------------- nets
def cv(nd): return (nn.Conv1d, nn.Conv2d, nn.Conv3d)[nd - 1]
def bn(nd): return (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)[nd - 1]
def mean(x): return x.flatten(2).mean(2)


class VGG(nn.Module):
    """Convolution, batch norm, ReLU, pooling, three times."""
    def __init__(self, ci, k, w=10, nd=2, bias=False, drop=0., act=nn.ReLU, norm=None, n=3, **b):
        super().__init__(); L = []; norm = norm or bn(nd)
        for j in range(n):
            co = w * (1 if j == 0 else 2); L += [cv(nd)(ci, co, 3, padding=1, bias=bias), norm(co, **b), act()]; ci = co
            if j < 2: L.append((nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d)[nd - 1](2))
        self.body, self.drop, self.fc, self.wo = nn.Sequential(*L), nn.Dropout(drop), nn.Linear(ci, k), ci
    def feats(self, x): return mean(self.body(x))
    def forward(self, x): return self.fc(self.drop(self.feats(x)))


class PreAct(nn.Module):
    """Residual net, batch norm before the activation and before the convolution."""
    def __init__(self, ci, k, w=12, nd=2, n=3, drop=0., **b):
        super().__init__(); self.stem = cv(nd)(ci, w, 3, 2, 1, bias=False); self.blocks = nn.ModuleList(nn.Sequential(bn(nd)(w, **b), nn.ReLU(), cv(nd)(w, w, 3, 1, 1, bias=False), bn(nd)(w, **b), nn.ReLU(), cv(nd)(w, w, 3, 1, 1, bias=False)) for _ in range(n - 1)); self.last, self.drop, self.fc, self.wo = bn(nd)(w, **b), nn.Dropout(drop), nn.Linear(w, k), w
    def feats(self, x):
        x = self.stem(x)
        for q in self.blocks: x = x + q(x)
        return mean(torch.relu(self.last(x)))
    def forward(self, x): return self.fc(self.drop(self.feats(x)))


class Mobile(nn.Module):
    """Inverted residuals with depthwise convolutions, ReLU6, linear bottlenecks."""
    def __init__(self, ci, k, w=10, nd=2, n=2, **b):
        super().__init__(); c, m = cv(nd), bn(nd); self.stem = nn.Sequential(c(ci, w, 3, 2, 1, bias=False), m(w, **b), nn.ReLU6()); self.blocks = nn.ModuleList(nn.Sequential(c(w, 3 * w, 1, bias=False), m(3 * w, **b), nn.ReLU6(), c(3 * w, 3 * w, 3, 1, 1, groups=3 * w, bias=False), m(3 * w, **b), nn.ReLU6(), c(3 * w, w, 1, bias=False), m(w, **b)) for _ in range(n)); self.head = nn.Sequential(c(w, 3 * w, 1, bias=False), m(3 * w, **b), nn.ReLU6()); self.fc, self.wo = nn.Linear(3 * w, k), 3 * w
    def feats(self, x):
        x = self.stem(x)
        for q in self.blocks: x = x + q(x)
        return mean(self.head(x))
    def forward(self, x): return self.fc(self.feats(x))


class TCN(nn.Module):
    """Dilated convolutions along time with residuals."""
    def __init__(self, ci, k, w=16, n=3, drop=0., **b):
        super().__init__(); self.inp = nn.Conv1d(ci, w, 1); self.l = nn.ModuleList(nn.Sequential(nn.Conv1d(w, w, 3, padding=2 ** j, dilation=2 ** j), nn.BatchNorm1d(w, **b), nn.ReLU(), nn.Dropout(drop)) for j in range(n)); self.fc, self.wo = nn.Linear(w, k), w
    def feats(self, x):
        x = self.inp(x)
        for q in self.l: x = x + q(x)
        return mean(x)
    def forward(self, x): return self.fc(self.feats(x))


class MLP(nn.Sequential):
    def __init__(self, d, k, w=48, n=2, act=nn.ReLU, inp=True, drop=0., first=None, **b):
        L, c = ([nn.BatchNorm1d(d, **b)] if inp else []), d
        for _ in range(n):
            if first: L.append(first())
            L += [nn.Linear(c, w), nn.BatchNorm1d(w, **b), act()]; L += [nn.Dropout(drop)] if drop else []; c = w
        super().__init__(*L, nn.Linear(c, k))


class TextCNN(nn.Module):
    def __init__(self, V, k, w=24, e=12, **b): super().__init__(); self.emb, self.a, self.na, self.b, self.nb, self.fc = nn.Embedding(V, e), nn.Conv1d(e, w, 3, padding=1), nn.BatchNorm1d(w, **b), nn.Conv1d(w, w, 3, padding=1), nn.BatchNorm1d(w, **b), nn.Linear(w, k)
    def forward(self, x): h = torch.relu(self.na(self.a(self.emb(x).transpose(1, 2)))); return self.fc(torch.relu(self.nb(self.b(h))).mean(2))


class PointNet(nn.Module):
    def __init__(self, k=6, w=24, drop=0., **b): super().__init__(); self.l = nn.Sequential(nn.Conv1d(3, w, 1), nn.BatchNorm1d(w, **b), nn.ReLU(), nn.Conv1d(w, 2 * w, 1), nn.BatchNorm1d(2 * w, **b), nn.ReLU()); self.h = nn.Sequential(nn.Linear(2 * w, w), nn.BatchNorm1d(w, **b), nn.ReLU(), nn.Dropout(drop), nn.Linear(w, k))
    def forward(self, x): return self.h(self.l(x).amax(2))


class GCN(nn.Module):
    """Sum over neighbours, batch norm over all nodes; drops edges in training where asked."""
    def __init__(self, k=5, w=20, n=2, edges=0., **b): super().__init__(); self.p = edges; self.l = nn.ModuleList(nn.Linear(1 if j == 0 else w, w) for j in range(n)); self.s = nn.ModuleList(nn.Linear(1 if j == 0 else w, w) for j in range(n)); self.n = nn.ModuleList(nn.BatchNorm1d(w, **b) for _ in range(n)); self.fc = nn.Linear(2 * w, k)
    def forward(self, A):
        if self.training and self.p: m = torch.triu((torch.rand_like(A) > self.p).float(), 1); A = A * (m + m.transpose(1, 2))
        h = A.sum(2, keepdim=True) / 4
        for l, s, n in zip(self.l, self.s, self.n): h = torch.relu(n((l(A @ h) + s(h)).transpose(1, 2)).transpose(1, 2))
        return self.fc(torch.cat([h.mean(1), h.amax(1)], 1))


def norms(m): return [q for q in m.modules() if isinstance(q, BN)]
def layers(m): return [q for q in m.modules() if isinstance(q, (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear))]


# ---------------------------------------------------------------- metrics
def acc(o, b): return float((o.argmax(1) == b[1]).float().mean()) if not torch.isnan(o).any() else 0.
def r2(o, b): y = b[1]; return float(1 - ((o - y) ** 2).mean() / ((y - y.mean(0)) ** 2).mean())


@torch.no_grad()
def evaluate(model, loader, metric=acc):
    m = copy.deepcopy(model).eval(); v = np.nan_to_num(np.array([metric(m(b[0]), b) for b in loader], float), nan=0., posinf=0., neginf=0.); return float(v.mean())


# ---------------------------------------------------------------- statistics
def cut(x, y, bs, R=None, drop_last=True):
    p = torch.as_tensor(R.permutation(len(x))) if R is not None else torch.arange(len(x)); return [(x[p[i:i + bs]], y[p[i:i + bs]]) for i in range(0, len(x) - (bs - 1 if drop_last else 0), bs)]


@torch.no_grad()
def renew(model, loader, bs=256, pooled=True):
    """Copy with statistics taken anew: momentum=None over the inputs, all else in eval mode."""
    m = copy.deepcopy(model).eval(); L = [q for q in norms(m) if q.running_mean is not None]; keep = [q.momentum for q in L]
    for q in L: q.reset_running_stats(); q.momentum = None; q.training = True
    xs = [b[0] for b in loader]
    if pooled: x = torch.cat(xs); p = torch.randperm(len(x), generator=torch.Generator().manual_seed(0)); xs = [x[j] for j in p.split(bs) if len(j) > bs // 2 or len(p) < bs]
    for x in xs: m(x)
    for q, k in zip(L, keep): q.momentum = k; q.training = False
    return m


@torch.no_grad()
def renew_in_turn(model, loader):
    """Copy with statistics taken layer by layer: each layer's while all before it already use theirs as in eval mode."""
    m = copy.deepcopy(model).eval()
    for q in [q for q in norms(m) if q.running_mean is not None]:
        k = q.momentum; q.reset_running_stats(); q.momentum = None; q.training = True
        for b in loader: m(b[0])
        q.momentum = k; q.training = False
    return m


def renewed_on(loader, **k): return lambda m: renew(m, loader, **k)


def buffers_of(good):
    good = copy.deepcopy(good)

    def f(model):
        m = copy.deepcopy(model)
        for a, b in zip(norms(m), norms(good)): a.running_mean.copy_(b.running_mean); a.running_var.copy_(b.running_var)
        return m.eval()
    return f


@torch.no_grad()
def feed(model, xs):
    model.train()
    for x in xs: model(x)
    return model


# ---------------------------------------------------------------- a script
class Script:
    """Data, a net, and how a user trains it."""

    def __init__(self, R, data, net, bs=None, mom=None, steps=None, lr=None, loss=F.cross_entropy, metric=acc, n_eval=500, opt=torch.optim.Adam, **kw):
        self.R, self.loss, self.metric, self.opt, self.info = R, loss, metric, opt, {}; x, y, xt, yt, self.k = data[:5]; self.x, self.y, self.xe, self.ye, self.xt, self.yt = x, y, xt[:n_eval], yt[:n_eval], xt[n_eval:], yt[n_eval:]
        self.bs = bs or C(R, 32, 48, 64); self.mom = C(R, .1, .1, U(R, .04, .15)) if mom is None else mom; self.steps = steps or I(R, 140, 190); self.lr = lr or LU(R, 3e-3, 7e-3); self.make = lambda: net(**kw, momentum=self.mom); self.model = self.make()

    def draw(self, n=None): return torch.as_tensor(self.R.integers(len(self.x), size=n or self.bs))

    def fit(self, model=None, steps=None, lr=None, loss=None, aug=None, pick=None, after=None, params=None, mode=True, flat=False, wd=0., tail=0, x=None, y=None, bs=None):
        m, steps, lr, loss = model or self.model, steps or self.steps, lr or self.lr, loss or self.loss; x, y = (self.x, self.y) if x is None else (x, y); o = self.opt(list(params or m.parameters()), lr, **(dict(weight_decay=wd) if wd else {}))
        if callable(mode): mode(m)
        else: m.train(mode)
        for i in range(steps + tail):
            j = torch.as_tensor(self.R.integers(len(x), size=bs or self.bs) if pick is None else pick(i)); o.param_groups[0]["lr"] = lr if flat else lr * max(.02, .5 + .5 * math.cos(math.pi * min(1, i / steps))); o.zero_grad(); loss(m(x[j] if aug is None else aug(x[j])), y[j]).backward(); o.step()
            if after: after(i)
        return m

    def good(self, **k): k.setdefault("tail", 45); self.fit(**k); return self
    def loader(self, bs=None): return cut(self.x, self.y, bs or self.bs, self.R)
    def held(self, bs=None): return cut(self.xe, self.ye, bs or 100, drop_last=False)
    def test(self, bs=250): return cut(self.xt, self.yt, bs, drop_last=False)

    def out(self, notes, model=None, oracle=None, **k):
        d = dict(model=(model or self.model).eval(), metric=self.metric, notes=notes); info = k.pop("info", {}); d.update(k); asked = set(k)
        for n, f in (("loader", self.loader), ("eval_loader", self.held), ("test_loader", self.test)):
            if n not in asked: d[n] = f()
        d["oracle"] = renewed_on(d["loader"]) if oracle == "renew" else oracle
        if self.R.uniform() < .4 and "loader" not in asked: d["loader"] = DataLoader(TensorDataset(self.x, self.y), self.bs, shuffle=True, drop_last=True)
        if self.R.uniform() < .4 and "eval_loader" not in asked: d["eval_loader"] = DataLoader(TensorDataset(self.xe, self.ye), 100)
        d["params"] = dict(bs=self.bs, steps=self.steps, lr=round(self.lr, 5), momentum=self.mom, **self.info, **info); return d


def harder(J, f, levels, fix, need=.08):
    """f(copy, level), at growing levels, until fix would gain `need`; the changed copy becomes the model."""
    test = J.test()
    for lv in levels:
        m = copy.deepcopy(J.model).eval(); m = f(m, lv) or m
        if evaluate(fix(m), test, J.metric) - evaluate(m, test, J.metric) > need: break
    J.info["level"] = lv if isinstance(lv, (int, float)) else str(lv); J.model = m; return J


def vision(R, data=None, net=None, d=None, n=None, **k):
    data = data or C(R, fabrics, signs, handwriting); t = data(R, **(d or {})); net = net or C(R, VGG, PreAct, Mobile); J = Script(R, t, lambda **b: net(t[0].shape[1], t[4], **(n or {}), **b), **k); J.info = dict(data=data.__name__, net=net.__name__); return J
def series(R, data=None, net=None, d=None, n=None, **k):
    data = data or C(R, heartbeats, wearables); t = data(R, **(d or {})); net = net or C(R, VGG, PreAct, TCN); more = {} if net is TCN else dict(nd=1); J = Script(R, t, lambda **b: net(t[0].shape[1], t[4], **more, **(n or {}), **b), **k); J.info = dict(data=data.__name__, net=net.__name__); return J
def table(R, d=None, n=None, **k): t = loans(R, **(d or {})); k.setdefault("steps", I(R, 240, 320)); J = Script(R, t, lambda **b: MLP(t[0].shape[1], t[4], **(n or {}), **b), **k); J.info = dict(data="loans", net="MLP"); return J
def text(R, d=None, **k): t = topics(R, **(d or {})); J = Script(R, t, lambda **b: TextCNN(t[5], t[4], **b), **k); J.info = dict(data="topics"); return J
