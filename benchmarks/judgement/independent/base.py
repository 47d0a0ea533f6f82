"""Shared pieces: data, nets, training, repairs. Everything is drawn from the generator R of the situation."""
import copy, pathlib, zlib
import numpy as np, torch, torch.nn as nn, torch.nn.functional as F

HERE = pathlib.Path(__file__).parent
BN = nn.modules.batchnorm._BatchNorm


class Situation:
    def __init__(self, name, kind, code, fn):
        self.name, self.kind, self.code, self.fn = name, kind, code, fn

    def make(self, seed):
        h = zlib.crc32(f"{self.name}/{seed}".encode())
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(h)
            d = self.fn(np.random.default_rng(h))
        return d

    def __repr__(self):
        return f"<{self.kind}: {self.name} ({self.code})>"


def registry():
    S = []

    def situation(name, kind, code=None):
        def deco(fn):
            S.append(Situation(name, kind, code, fn))
            return fn
        return deco
    return S, situation


# ---------------------------------------------------------------- draws
def U(R, a, b): return float(R.uniform(a, b))
def LU(R, a, b): return float(np.exp(R.uniform(np.log(a), np.log(b))))
def I(R, a, b): return int(R.integers(a, b + 1))
def C(R, *xs): return xs[int(R.integers(len(xs)))]


# ---------------------------------------------------------------- data
_cache = {}


def _fm():
    if "fm" not in _cache:
        z = np.load(HERE / "data/fmnist14.npz")
        _cache["fm"] = {k: z[k] for k in z.files}
    return _cache["fm"]


def t(a): return torch.as_tensor(np.ascontiguousarray(a))
def f32(a): return torch.as_tensor(np.ascontiguousarray(a), dtype=torch.float32)


def fmnist(R, ntr=4000, nte=3000):
    z = _fm()
    a, b = R.permutation(len(z["ytr"]))[:ntr], R.permutation(len(z["yte"]))[:nte]
    n = lambda x: ((f32(x) / 255 - 0.286) / 0.32)[:, None]
    return n(z["xtr"][a]), t(z["ytr"][a]).long(), n(z["xte"][b]), t(z["yte"][b]).long(), 10


def digits(R, ntr=4000, nte=3000, size=12):
    from sklearn.datasets import load_digits
    if "dg" not in _cache:
        _cache["dg"] = load_digits(return_X_y=True)
    X, y = _cache["dg"]
    p = R.permutation(len(y))

    def aug(ids, n):
        k = ids[R.integers(len(ids), size=n)] if n > len(ids) else ids[:n]
        out = np.zeros((n, size, size), np.float32)
        im = X[k].reshape(-1, 8, 8) / 16
        dx, dy = R.integers(0, size - 7, n), R.integers(0, size - 7, n)
        for i in range(n):
            out[i, dy[i]:dy[i] + 8, dx[i]:dx[i] + 8] = im[i]
        out += 0.05 * R.standard_normal(out.shape)
        return (f32(out)[:, None] - 0.2) / 0.33, t(y[k]).long()
    return (*aug(p[:1200], ntr), *aug(p[1200:], nte), 10)


def textures(R, ntr=3000, nte=3000, size=14, k=6, noise=None):
    noise = U(R, 0.6, 1.0) if noise is None else noise
    ang = np.linspace(0, np.pi, k, endpoint=False)
    col = R.uniform(0.3, 1, (k, 3)); frq = R.uniform(0.8, 1.4, k)

    def g(n):
        y = R.integers(k, size=n)
        a = ang[y] + R.normal(0, 0.1, n); f = frq[y] * np.exp(R.normal(0, .05, n)); ph = R.uniform(0, 6.3, n)
        u, v = np.meshgrid(np.arange(size), np.arange(size))
        s = np.sin(f[:, None, None] * (np.cos(a)[:, None, None] * u + np.sin(a)[:, None, None] * v) + ph[:, None, None])
        x = s[:, None] * col[y][:, :, None, None] * np.exp(R.normal(0, .2, (n, 3, 1, 1))) + noise * R.standard_normal((n, 3, size, size))
        return f32(x + 0.2), t(y).long()
    return (*g(ntr), *g(nte), k)


def signals(R, ntr=3000, nte=4000, length=64, k=None, ch=None, noise=None):
    k = k or I(R, 4, 7); ch = ch or I(R, 1, 3); noise = U(R, 0.6, 1.0) if noise is None else noise
    f1 = np.linspace(0.15, 1.3, k) * U(R, 0.9, 1.1); f2 = R.permutation(f1) * 1.7
    mix = R.uniform(0.4, 1, (k, ch)); off = R.normal(0, .3, ch)

    def g(n):
        y = R.integers(k, size=n); tt = np.arange(length)
        p, q = R.uniform(0, 6.3, (2, n, 1))
        s = np.sin(f1[y][:, None] * tt + p) + 0.6 * np.sin(f2[y][:, None] * tt + q)
        x = s[:, None] * mix[y][:, :, None] * np.exp(R.normal(0, .25, (n, ch, 1))) + noise * R.standard_normal((n, ch, length)) + off[None, :, None]
        return f32(x), t(y).long()
    return (*g(ntr), *g(nte), k)


def tabular(R, ntr=4000, nte=5000, d=None, k=None, scale=True, heavy=False, binary=0, sep=None):
    """Clusters per class in a latent space, mixed into d columns of different scales and offsets."""
    d = d or I(R, 10, 30); k = k or I(R, 3, 6); q = min(d, I(R, 5, 8)); sep = sep or U(R, 2.4, 3.0)
    cl = R.standard_normal((k, 2, q)); cl *= sep / np.linalg.norm(cl, axis=2, keepdims=True) * np.sqrt(q) / 2
    W = R.standard_normal((q, d)) / np.sqrt(q)
    sc = np.exp(R.normal(0, 1.0 if scale else .1, d)); of = R.normal(0, 2.0 if scale else .1, d)
    pb = R.uniform(0.005, 0.05, max(binary, 1))

    def g(n):
        y = R.integers(k, size=n); c = R.integers(2, size=n)
        z = cl[y, c] + R.standard_normal((n, q)) * 0.8
        x = z @ W + 0.3 * R.standard_normal((n, d))
        if heavy:
            x = x + 0.1 * R.standard_t(2.0, (n, d))
        x = x * sc + of
        if binary:
            x = np.concatenate([x, (R.uniform(size=(n, binary)) < pb)], 1)
        return f32(x), t(y).long()
    return (*g(ntr), *g(nte), k)


DOM = dict(fmnist=fmnist, digits=digits, textures=textures, signals=signals, tabular=tabular)


# ---------------------------------------------------------------- nets
def act(kind): return {"relu": nn.ReLU, "silu": nn.SiLU, "leaky": lambda: nn.LeakyReLU(0.1), "elu": nn.ELU}[kind]()


class Block(nn.Module):
    def __init__(s, ci, co, nd, style, a, **bn):
        super().__init__()
        Cv, B = (nn.Conv2d, nn.BatchNorm2d) if nd == 2 else (nn.Conv1d, nn.BatchNorm1d)
        s.style = style
        if style == "dw":
            s.dw, s.bn0 = Cv(ci, ci, 3, padding=1, groups=ci, bias=False), B(ci, **bn)
            s.conv = Cv(ci, co, 1, bias=False)
        else:
            s.conv = Cv(ci, co, 3, padding=1, bias=style == "post")
        s.bn = B(co, **bn)
        if style == "res":
            s.conv2, s.bn2 = Cv(co, co, 3, padding=1, bias=False), B(co, **bn)
            s.skip = nn.Identity() if ci == co else nn.Sequential(Cv(ci, co, 1, bias=False), B(co, **bn))
        s.act = act(a)

    def forward(s, x):
        if s.style == "dw":
            x = s.act(s.bn0(s.dw(x)))
        if s.style == "post":
            return s.bn(s.act(s.conv(x)))
        h = s.act(s.bn(s.conv(x)))
        return s.act(s.bn2(s.conv2(h)) + s.skip(x)) if s.style == "res" else h


class CNN(nn.Module):
    def __init__(s, ci, k, width=12, depth=3, style="plain", nd=2, a="relu", head="gap", drop=0.0, pool_at=(0, 1), **bn):
        super().__init__()
        L, c = [], ci
        for i in range(depth):
            o = width * (2 if i >= depth // 2 and depth > 2 else 1)
            L.append(Block(c, o, nd, "plain" if i == 0 and style in ("dw", "res") else style, a, **bn))
            if i in pool_at:
                L.append(nn.MaxPool2d(2) if nd == 2 else nn.MaxPool1d(2))
            c = o
        s.features, s.drop, s.head, s.width_out = nn.Sequential(*L), nn.Dropout(drop), nn.Linear(c, k), c
        s.nd = nd

    def feats(s, x): return s.features(x).flatten(2).mean(2)
    def forward(s, x): return s.head(s.drop(s.feats(x)))


class MLP(nn.Module):
    def __init__(s, d, k, width=48, depth=2, style="plain", a="relu", drop=0.0, input_bn=False, drop_before=0.0, **bn):
        super().__init__()
        L = [nn.BatchNorm1d(d, **bn)] if input_bn else []
        c = d
        for i in range(depth):
            L.append(nn.Linear(c, width))
            if drop_before:
                L += [act(a), nn.Dropout(drop_before), nn.BatchNorm1d(width, **bn)]
            elif style == "post":
                L += [act(a), nn.BatchNorm1d(width, **bn)]
            else:
                L += [nn.BatchNorm1d(width, **bn), act(a)]
            if drop:
                L.append(nn.Dropout(drop))
            c = width
        s.body, s.head = nn.Sequential(*L), nn.Linear(c, k)

    def feats(s, x): return s.body(x)
    def forward(s, x): return s.head(s.body(x))


def bns(m): return [x for x in m.modules() if isinstance(x, BN)]
def tracked(m): return [x for x in bns(m) if x.running_mean is not None]


def acc(out, batch): return float((out.argmax(1) == batch[1]).float().mean())


def ce(out, y): return F.cross_entropy(out, y)


@torch.no_grad()
def evaluate(model, loader, metric=acc):
    """The model as given, in eval(), on a copy, batch by batch, in order."""
    m = copy.deepcopy(model).eval()
    v = [metric(m(b[0]), b) for b in loader]
    v = np.nan_to_num(np.array(v, float), nan=0.0, posinf=0.0, neginf=0.0)
    return float(v.mean())


def batches(x, y, bs, R=None, n=None, drop_last=True):
    p = torch.as_tensor(R.permutation(len(x))) if R is not None else torch.arange(len(x))
    out = [(x[p[i:i + bs]], y[p[i:i + bs]]) for i in range(0, len(x) - (bs - 1 if drop_last else 0), bs)]
    return out[:n] if n else out


@torch.no_grad()
def recal(model, loader, bs=256, as_is=False):
    """Copy with statistics re-estimated (cumulative mean) on the inputs of loader; everything else in eval."""
    m = copy.deepcopy(model).eval()
    L = tracked(m)
    mom = [b.momentum for b in L]
    for b in L:
        b.reset_running_stats(); b.momentum = None; nn.Module.train(b, True)
    xs = [b[0] for b in loader]
    if not as_is:
        try:
            x = torch.cat(xs)
            p = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
            xs = [x[q] for q in p.split(bs) if len(q) > bs // 2 or len(p) < bs]
        except RuntimeError:
            pass
    for x in xs:
        m(x)
    for b, q in zip(L, mom):
        b.momentum = q; nn.Module.train(b, False)
    return m


def recal_on(loader, **k): return lambda model: recal(model, loader, **k)


def restore(good):
    """Copy of model with the buffers of BN layers as in good."""
    def f(model):
        m = copy.deepcopy(model)
        for a, b in zip(bns(m), bns(good)):
            if a.running_mean is not None and b.running_mean is not None:
                a.running_mean.copy_(b.running_mean); a.running_var.copy_(b.running_var)
        return m
    return f


def fit(model, x, y, R, bs=64, steps=200, lr=3e-3, opt="adam", loss=ce, mode=True, aug=None, sampler=None, after=None, decay=True, params=None, wd=0.0):
    """sampler(step) -> indices; after(step) called after each step; mode True/False/None (None: leave as is)."""
    ps = list(params if params is not None else model.parameters())
    o = torch.optim.Adam(ps, lr, weight_decay=wd) if opt == "adam" else torch.optim.SGD(ps, lr, momentum=0.9, weight_decay=wd)
    if mode is not None:
        model.train(mode)
    perm, pos = torch.as_tensor(R.permutation(len(x))), 0
    for s in range(steps):
        if sampler is not None:
            i = torch.as_tensor(sampler(s))
        else:
            if pos + bs > len(x):
                perm, pos = torch.as_tensor(R.permutation(len(x))), 0
            i = perm[pos:pos + bs]; pos += bs
        xb = x[i]
        if aug is not None:
            xb = aug(xb)
        if decay:
            for g in o.param_groups:
                g["lr"] = lr * (1 - 0.95 * s / steps)
        o.zero_grad(); loss(model(xb), y[i]).backward(); o.step()
        if after is not None:
            after(s)
    return model


class Task:
    """A data set and an untrained net, drawn from R."""

    def __init__(s, R, dom, bs=None, mom=None, steps=None, data={}, **net):
        s.R, s.dom = R, dom
        s.x, s.y, s.xt, s.yt, s.k = DOM[dom](R, **data)
        s.bs = bs or (C(R, 32, 48, 64, 96) if dom == 'tabular' else C(R, 32, 40, 48, 64))
        s.mom = mom if mom is not None else LU(R, 0.05, 0.2)
        s.metric = acc
        s.net = dict(momentum=None if mom == "cum" else s.mom, **net)
        n = s.net
        if dom == "tabular":
            n.setdefault("width", I(R, 32, 80)); n.setdefault("depth", I(R, 2, 4)); n.setdefault("style", C(R, "plain", "plain", "post"))
            n.setdefault("a", C(R, "relu", "silu", "leaky"))
            if "input_bn" not in n:
                n["input_bn"] = True
            s.steps = steps or I(R, 300, 500)
            s.lr = LU(R, 2e-3, 6e-3)
        else:
            nd = 1 if dom == "signals" else 2
            n["nd"] = nd
            n.setdefault("width", I(R, 8, 14) if nd == 2 else I(R, 12, 24)); n.setdefault("depth", I(R, 3, 5))
            n.setdefault("style", C(R, "plain", "plain", "res", "dw", "post") if n["depth"] < 5 else C(R, "plain", "dw", "post"))
            n.setdefault("a", C(R, "relu", "relu", "silu", "leaky"))
            s.steps = steps or I(R, 140, 220)
            s.lr = LU(R, 3e-3, 8e-3)
        s.new()

    def new(s):
        n = dict(s.net)
        s.model = MLP(s.x.shape[1], s.k, **n) if s.dom == "tabular" else CNN(s.x.shape[1], s.k, **n)
        return s.model

    def fit(s, model=None, **k):
        a = dict(bs=s.bs, steps=s.steps, lr=s.lr); a.update(k)
        x, y = a.pop("x", s.x), a.pop("y", s.y)
        return fit(model if model is not None else s.model, x, y, s.R, **a)

    def loader(s, bs=None, n=None): return batches(s.x, s.y, bs or s.bs, s.R, n)

    def split_eval(s, n=500):
        s.xe, s.ye, s.xt, s.yt = s.xt[:n], s.yt[:n], s.xt[n:], s.yt[n:]

    def test(s, bs=250): return batches(s.xt, s.yt, bs, drop_last=False)
    def eval_loader(s, bs=None): return batches(s.xe, s.ye, bs or s.bs, drop_last=False)

    def out(s, notes, model=None, oracle=None, **k):
        if not hasattr(s, "xe"):
            s.split_eval()
        d = dict(model=model if model is not None else s.model, loader=None, eval_loader=None, metric=s.metric, oracle=oracle, test_loader=None, notes=notes,
                 params=dict(dom=s.dom, bs=s.bs, steps=s.steps, lr=round(s.lr, 5), **{a: b for a, b in s.net.items()}))
        d.update(k)
        for n, f in (("loader", s.loader), ("eval_loader", s.eval_loader), ("test_loader", s.test)):
            if n not in k:
                d[n] = f()
        if oracle == "recal":
            d["oracle"] = recal_on(d["loader"])
        d["model"].eval() if k.get("as_eval", True) else None
        d.pop("as_eval", None)
        return d


def escalate(T, model, apply, levels, R, drop=0.05, ref=None, test=None):
    """apply(copy, level) in increasing levels from a random start until the metric has dropped by drop."""
    if not hasattr(T, "xe"):
        T.split_eval()
    test = test or T.test()
    ref = evaluate(model, test, T.metric) if ref is None else ref
    for lv in levels[I(R, 0, len(levels) // 2):]:
        m = copy.deepcopy(model)
        m = apply(m, lv) or m
        if evaluate(m, test, T.metric) < ref - drop:
            break
    return m, lv
