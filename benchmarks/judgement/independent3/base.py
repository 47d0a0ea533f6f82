"""Shared pieces of this corpus: data, nets, training, repairs. A situation draws everything from R and torch's (forked) generator."""
import copy, math, zlib
import numpy as np, torch, torch.nn as nn, torch.nn.functional as F

BN = nn.modules.batchnorm._BatchNorm


class Situation:
    def __init__(s, name, kind, code, fn, differs=None): s.name, s.kind, s.code, s.fn, s.differs = name, kind, code, fn, differs

    def make(s, seed):
        h = zlib.crc32(f"judgement3/{s.name}/{seed}".encode())
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(h); return s.fn(np.random.default_rng(h))

    def __repr__(s): return f"<{s.kind}: {s.name} ({s.code or s.differs})>"


def registry(kind):
    """A list, and a decorator that adds to it: @situation(name, code) or, for other gaps, @situation(name, differs)."""
    S = []
    def situation(name, word=None):
        def deco(fn):
            S.append(Situation(name, kind, word if kind == "broken" else None, fn, word if kind == "other gap" else None)); return fn
        return deco
    return S, situation


# ---------------------------------------------------------------- draws
def U(R, a, b): return float(R.uniform(a, b))
def LU(R, a, b): return float(np.exp(R.uniform(np.log(a), np.log(b))))
def I(R, a, b): return int(R.integers(a, b + 1))
def C(R, *xs): return xs[int(R.integers(len(xs)))]
def sg(R): return C(R, -1, 1)
def f32(a): return torch.as_tensor(np.ascontiguousarray(a), dtype=torch.float32)
def i64(a): return torch.as_tensor(np.ascontiguousarray(a), dtype=torch.long)


# ---------------------------------------------------------------- data: each gives x, y, xt, yt, k
_cache = {}


def both(part, ntr, nte): return (*part(ntr), *part(nte))


def pen(P, size, width):
    """Polylines through P (n, points, 2) drawn with a soft pen: (n, size, size)."""
    v, u = np.meshgrid(np.arange(size), np.arange(size), indexing="ij"); q = np.stack([u, v], -1).reshape(1, -1, 2).astype(np.float32); best = None; P = P.astype(np.float32)
    for a, b in zip(P.transpose(1, 0, 2)[:-1], P.transpose(1, 0, 2)[1:]):
        d = (b - a)[:, None]; t = np.clip(((q - a[:, None]) * d).sum(-1, keepdims=True) / ((d * d).sum(-1, keepdims=True) + 1e-6), 0, 1); e = ((q - a[:, None] - t * d) ** 2).sum(-1); best = e if best is None else np.minimum(best, e)
    return np.exp(-best / (2 * width ** 2)).reshape(-1, size, size)


def glyphs(R, ntr=2200, nte=3200, size=14, k=None, noise=.45, jitter=.75, points=4):
    """Strokes of a pen: every class is a polyline of its own; values from 0 to about 1 before the usual normalisation."""
    k = k or I(R, 6, 9); K = R.uniform(2, size - 3, (60, points, 2)); keep = [K[0]]
    for c in K[1:]:  # classes that are unlike each other
        if len(keep) < k and all(((pen(c[None], size, 1.) - pen(o[None], size, 1.)) ** 2).sum() > 13 for o in keep): keep.append(c)
    K = np.stack(keep); k = len(K)

    def part(n):
        y = R.integers(k, size=n); P = K[y] + jitter * R.standard_normal((n, points, 2)) + R.uniform(-1, 1, (n, 1, 2))
        im = pen(P, size, .9) * np.exp(R.normal(0, .15, (n, 1, 1))) + noise * R.standard_normal((n, size, size)); return f32((im - .2) / .35)[:, None], i64(y)
    return (*both(part, ntr, nte), k)


def gratings(R, ntr=2200, nte=3200, size=12, k=None, ch=3, noise=None, colour=.5, amp=1.):
    """Coloured stripes: classes differ in direction, spacing and (weakly) colour."""
    k = k or I(R, 6, 8); noise = noise or U(R, .9, 1.2); th = np.arange(k) * np.pi / k + R.uniform(0, np.pi); fr = R.uniform(.12, .3, k); col = 1 + colour * R.standard_normal((k, ch)); v, u = np.meshgrid(np.arange(size), np.arange(size), indexing="ij")

    def part(n):
        y = R.integers(k, size=n); t = (th[y] + R.normal(0, .1, n))[:, None, None]; f = (fr[y] * np.exp(R.normal(0, .06, n)))[:, None, None]
        w = amp * np.sin(2 * np.pi * f * (u * np.cos(t) + v * np.sin(t)) + R.uniform(0, 6.3, (n, 1, 1))) * np.exp(R.normal(0, .2, (n, 1, 1)))
        return f32(w[:, None] * col[y][:, :, None, None] + noise * R.standard_normal((n, ch, size, size))), i64(y)
    return (*both(part, ntr, nte), k)


def cells(R, ntr=2200, nte=3200, size=14, k=5, noise=.25):
    """Microscope: one to k bright cells to be counted."""
    v, u = np.meshgrid(np.arange(size), np.arange(size), indexing="ij")

    def part(n):
        y = R.integers(k, size=n); im = np.zeros((n, size, size), np.float32); g = (np.arange(16) // 4, np.arange(16) % 4); place = np.argsort(R.uniform(size=(n, 16)), 1)
        for j in range(k):
            on = (j <= y)[:, None, None]; cx = 1.6 + 3.5 * g[0][place[:, j]] + R.uniform(-.5, .5, n); cy = 1.6 + 3.5 * g[1][place[:, j]] + R.uniform(-.5, .5, n)
            im += on * np.exp(-((u - cx[:, None, None]) ** 2 + (v - cy[:, None, None]) ** 2) / 1.6) * R.uniform(.8, 1.2, (n, 1, 1))
        return f32(im + noise * R.standard_normal(im.shape))[:, None] * 2 - .5, i64(y)
    return (*both(part, ntr, nte), k)


def digits8(R, ntr=2400, nte=3400, noise=.15, size=8):
    """scikit-learn's handwritten digits, 8 x 8; test images are of other originals; moved by up to a pixel, in noise."""
    from sklearn.datasets import load_digits
    if "dg" not in _cache: _cache["dg"] = load_digits(return_X_y=True)
    X, y = _cache["dg"]; p = R.permutation(len(y))

    def part(ids, n):
        i = ids[R.integers(len(ids), size=n)]; im = np.pad(X[i].reshape(-1, 8, 8) / 16, ((0, 0), (1, 1), (1, 1))); a, b = R.integers(0, 3, (2, n)); out = np.zeros((n, 8, 8))
        for q in range(9):
            j = np.nonzero(a * 3 + b == q)[0]; out[j] = im[j, q // 3:q // 3 + 8, q % 3:q % 3 + 8]
        return f32(((out + noise * R.standard_normal(out.shape)) - .3) / .4)[:, None], i64(y[i])
    return (*part(p[:1200], ntr), *part(p[1200:], nte), 10)


def chirps(R, ntr=2200, nte=3400, L=64, k=None, noise=None, ch=1):
    """Tones whose pitch glides: classes differ in first pitch and glide."""
    k = k or I(R, 5, 7); noise = noise or U(R, .5, .75); f0 = np.linspace(.05, .2, k)[R.permutation(k)]; sl = np.linspace(-1, 1.2, k)[R.permutation(k)]; t = np.arange(L)[None]; g = R.uniform(.5, 1.3, (k, ch))

    def part(n):
        y = R.integers(k, size=n); f = (f0[y] * np.exp(R.normal(0, .04, n)))[:, None]; w = np.sin(2 * np.pi * (f * t * (1 + .5 * (sl[y][:, None] + .1 * R.standard_normal((n, 1))) * t / L)) + R.uniform(0, 6.3, (n, 1))) * np.exp(R.normal(0, .2, (n, 1)))
        return f32(w[:, None] * g[y][:, :, None] + noise * R.standard_normal((n, ch, L))), i64(y)
    return (*both(part, ntr, nte), k)


def bearings(R, ntr=2200, nte=3400, L=72, k=None, noise=None):
    """Vibration of a machine: knocks that ring, classes differ in the period and the ringing; two sensors."""
    k = k or I(R, 5, 7); noise = noise or U(R, .35, .5); per = np.linspace(9, 24, k)[R.permutation(k)]; fr = R.uniform(.12, .38, k); lead = R.uniform(.4, 1.3, (k, 2)); t = np.arange(L)[None, :]

    def part(n):
        y = R.integers(k, size=n); p = per[y][:, None] * np.exp(R.normal(0, .03, (n, 1))); ph = np.mod(t - R.uniform(0, 1, (n, 1)) * p, p); w = np.exp(-ph / 4) * np.cos(2 * np.pi * fr[y][:, None] * ph) * np.exp(R.normal(0, .2, (n, 1))) * 2
        return f32(w[:, None] * lead[y][:, :, None] + noise * R.standard_normal((n, 2, L)) + np.array([.5, -.2])[:, None]), i64(y)
    return (*both(part, ntr, nte), k)


def claims(R, ntr=3000, nte=4500, d=None, k=None, depth=4, soft=.12, raw=False):
    """Table with columns of other scales (amounts, ages, counts, shares); the label comes from a soft random tree."""
    d = d or I(R, 9, 14); k = k or I(R, 3, 5); kinds = R.integers(4, size=d); kinds[:4] = range(4); sc = np.exp(R.normal(0, 2.5 if raw else 1, d)); off = R.normal(0, 1, d) * sc; W = R.standard_normal((d, depth)) * (R.uniform(size=(d, depth)) < .45); leaf = np.argsort(R.uniform(size=2 ** depth)) % k

    def part(n):
        z = R.standard_normal((n, d)); z[:, 1:] += .4 * z[:, :-1]; bits = (z @ W / (np.linalg.norm(W, axis=0) + 1e-9) + soft * R.standard_normal((n, depth)) > 0).astype(int); y = leaf[(bits * 2 ** np.arange(depth)).sum(1)]
        x = np.where(kinds == 0, z, np.where(kinds == 1, np.exp(.8 * z), np.where(kinds == 2, np.floor(np.exp(z) * 2), 1 / (1 + np.exp(-2 * z))))); return f32(x * sc + off), i64(y)
    return (*both(part, ntr, nte), k)


def assay(R, ntr=2000, nte=4200, which=None, spread=None):
    """Samples drawn around scikit-learn's wine or breast cancer classes (their means and covariances, widened); columns in their real units, which are far apart."""
    from sklearn.datasets import load_breast_cancer, load_wine
    which = which or C(R, "wine", "tumours"); X, t = (load_wine if which == "wine" else load_breast_cancer)(return_X_y=True); k = int(t.max()) + 1; spread = spread or U(R, 1.5, 1.9); mu, A = [], []
    for c in range(k): q = X[t == c]; mu.append(q.mean(0)); A.append(np.linalg.cholesky(np.cov(q.T) + np.diag(q.var(0) * .02 + 1e-12)))
    mu, A = np.stack(mu), np.stack(A)

    def part(n): y = R.integers(k, size=n); return f32(mu[y] + spread * np.einsum("nij,nj->ni", A[y], R.standard_normal((n, X.shape[1])))), i64(y)
    return (*both(part, ntr, nte), k)


def loads(R, ntr=2600, nte=4000, L=48, ch=2, ahead=4, noise=.25):
    """Electric load: seasons of two periods and slow changes; the next values of the first channel are to be foretold."""
    p = np.array([12., 30.]) * np.exp(R.normal(0, .15, 2)); mix = R.uniform(.5, 1.2, (ch, 2)); T = np.arange(L + ahead)[None]

    def part(n):
        s = np.stack([np.sin(2 * np.pi * T / q + R.uniform(0, 6.3, (n, 1))) * np.exp(R.normal(0, .35, (n, 1))) for q in p], 2); lev = R.normal(0, .6, (n, 1, 1)); x = (s @ mix.T + lev).transpose(0, 2, 1) + noise * R.standard_normal((n, ch, L + ahead))
        return f32(x[:, :, :L]), f32(x[:, 0, L:])
    return (*both(part, ntr, nte), ahead)


def letters(R, ntr=2400, nte=3400, V=None, k=None, lo=12, L=40, sharp=1.3, full=False):
    """Token sequences from class-wise Markov chains (languages), padded with 0 on the right: (x, y), and V."""
    V = V or I(R, 14, 22); k = k or I(R, 4, 6); T = np.exp(sharp * R.standard_normal((k, V, V))); T /= T.sum(2, keepdims=True); cum = T.cumsum(2)

    def part(n):
        y = R.integers(k, size=n); x = np.zeros((n, L), np.int64); s = R.integers(V, size=n)
        for i in range(L): s = np.minimum((R.uniform(size=(n, 1)) > cum[y, s]).sum(1), V - 1); x[:, i] = s + 1
        ln = np.full(n, L) if full else R.integers(lo, L + 1, n); x[np.arange(L)[None] >= ln[:, None]] = 0; return i64(x), i64(y)
    return (*both(part, ntr, nte), k, V + 1)


def graphs(R, ntr=2000, nte=3200, N=14, pad=None, flip=.04):
    """Small graphs (n, N, N + 2): adjacency, the node's degree and a mark of real nodes; classes ring, star, tree, two clusters, random."""
    pad = pad or N

    def part(n):
        y = R.integers(5, size=n); x = np.zeros((n, pad, pad + 2), np.float32)
        for i in range(n):
            m = R.integers(N - 5, N + 1); A = np.zeros((m, m)); a = np.arange(m)
            if y[i] == 0: A[a, (a + 1) % m] = 1
            elif y[i] == 1: A[0, 1:] = 1
            elif y[i] == 2: A[a[1:], (a[1:] - 1) // 2] = 1
            elif y[i] == 3: h = m // 2; A[:h, :h] = R.uniform(size=(h, h)) < .5; A[h:, h:] = R.uniform(size=(m - h, m - h)) < .5; A[0, h] = 1
            else: A[:] = R.uniform(size=(m, m)) < .22
            A = np.maximum(A, A.T); f = np.triu(R.uniform(size=(m, m)) < flip, 1); A = np.abs(A - (f + f.T)); np.fill_diagonal(A, 0); p = R.permutation(m); x[i, :m, :m] = A[p][:, p]; x[i, :m, pad] = x[i, :m, :m].sum(1); x[i, :m, pad + 1] = 1
        return f32(x), i64(y)
    return (*both(part, ntr, nte), 5)


def scenes(R, ntr=1600, nte=2600, size=16, noise=.22, context=False):
    """Segmentation: discs and boxes on a ground; target (n, size, size) with 0 ground, 1 disc, 2 box (context: exchanged where the ground is bright)."""
    v, u = np.meshgrid(np.arange(size), np.arange(size), indexing="ij")

    def part(n):
        x, y = np.zeros((n, size, size), np.float32), np.zeros((n, size, size), np.int64)
        for c in (1, 2, 1, 2):
            a, b = R.uniform(2, size - 3, (2, n, 1, 1)); r = R.uniform(1.8, 3.4, (n, 1, 1)); on = R.uniform(size=(n, 1, 1)) < .7
            m = on & (((u - a) ** 2 + (v - b) ** 2 < r * r) if c == 1 else (np.maximum(abs(u - a), abs(v - b)) < r * .9)); y[m] = c; x = np.where(m, R.uniform(.7, 1.3, (n, 1, 1)), x)
        if context: lev = R.uniform(-.6, .6, (n, 1, 1)); x = x + lev; y = np.where((lev > 0) & (y > 0), 3 - y, y)
        return f32(x + noise * R.standard_normal(x.shape))[:, None] * 1.5 - .4, i64(y)
    return (*both(part, ntr, nte), 3)


# ---------------------------------------------------------------- nets
def conv(nd): return nn.Conv2d if nd == 2 else nn.Conv1d
def norm(nd): return nn.BatchNorm2d if nd == 2 else nn.BatchNorm1d
def gap(x): return x.flatten(2).mean(2)
def cb(ci, co, k=3, s=1, nd=2, a=nn.ReLU, g=1, bias=False, **b): return nn.Sequential(conv(nd)(ci, co, k, s, k // 2, groups=g, bias=bias), norm(nd)(co, **b), *([a()] if a else []))


class Basic(nn.Module):
    def __init__(s, i, o, st=1, nd=2, **b): super().__init__(); s.a, s.b = cb(i, o, 3, st, nd, **b), cb(o, o, 3, 1, nd, None, **b); s.sc = cb(i, o, 1, st, nd, None, **b) if st > 1 or i != o else nn.Identity()
    def forward(s, x): return torch.relu(s.b(s.a(x)) + s.sc(x))


class ResNet(nn.Module):
    """Post-activation residual net with projection shortcuts."""
    def __init__(s, ci, k, w=10, nd=2, drop=0., **b): super().__init__(); s.stem, s.layers, s.drop, s.fc, s.wo = cb(ci, w, 3, 1, nd, **b), nn.Sequential(Basic(w, w, 2, nd, **b), Basic(w, 2 * w, 2, nd, **b)), nn.Dropout(drop), nn.Linear(2 * w, k), 2 * w
    def feats(s, x): return gap(s.layers(s.stem(x)))
    def forward(s, x): return s.fc(s.drop(s.feats(x)))


class NeXt(nn.Module):
    """Patch stem, then depthwise mixing and pointwise layers (ConvMixer), GELU before batch norm."""
    def __init__(s, ci, k, w=20, nd=2, depth=2, patch=2, **b):
        super().__init__(); n = lambda: norm(nd)(w, **b); s.stem = nn.Sequential(conv(nd)(ci, w, patch, patch), nn.GELU(), n()); s.dw = nn.ModuleList([nn.Sequential(conv(nd)(w, w, 5, 1, 2, groups=w), nn.GELU(), n()) for _ in range(depth)]); s.pw = nn.ModuleList([nn.Sequential(conv(nd)(w, w, 1), nn.GELU(), n()) for _ in range(depth)]); s.fc, s.wo = nn.Linear(w, k), w
    def feats(s, x):
        x = s.stem(x)
        for d, p in zip(s.dw, s.pw): x = p(x + d(x))
        return gap(x)
    def forward(s, x): return s.fc(s.feats(x))


class Fire(nn.Module):
    def __init__(s, i, q, o, nd=2, **b): super().__init__(); s.q, s.a, s.b = cb(i, q, 1, 1, nd, **b), cb(q, o // 2, 1, 1, nd, **b), cb(q, o // 2, 3, 1, nd, **b)
    def forward(s, x): h = s.q(x); return torch.cat([s.a(h), s.b(h)], 1)


class Squeeze(nn.Module):
    """SqueezeNet-like with batch norm."""
    def __init__(s, ci, k, w=16, nd=2, **b): super().__init__(); P = nn.MaxPool2d if nd == 2 else nn.MaxPool1d; s.body = nn.Sequential(cb(ci, w, 3, 1, nd, **b), P(2), Fire(w, w // 2, 2 * w, nd, **b), P(2), Fire(2 * w, w // 2, 2 * w, nd, **b)); s.fc, s.wo = nn.Linear(2 * w, k), 2 * w
    def feats(s, x): return gap(s.body(x))
    def forward(s, x): return s.fc(s.feats(x))


class LeNet(nn.Module):
    """Two convolutions and two dense layers, batch norm after each but the last, dense over all positions."""
    def __init__(s, ci, k, size, w=8, h=32, drop=0., **b): super().__init__(); s.c = nn.Sequential(cb(ci, w, 3, **b), nn.MaxPool2d(2), cb(w, 2 * w, 3, **b), nn.MaxPool2d(2), nn.Flatten()); s.drop, s.l, s.n, s.fc, s.wo = nn.Dropout(drop), nn.Linear(2 * w * (size // 4) ** 2, h), nn.BatchNorm1d(h, **b), nn.Linear(h, k), h
    def feats(s, x): return torch.relu(s.n(s.l(s.drop(s.c(x)))))
    def forward(s, x): return s.fc(s.feats(x))


class Gated(nn.Module):
    """1-D gated convolutions (GLU); batch norm before the gate."""
    def __init__(s, ci, k, w=12, n=3, **b): super().__init__(); s.l = nn.ModuleList([cb(ci if i == 0 else w, 2 * w, 5, 2 if i else 1, 1, None, **b) for i in range(n)]); s.fc, s.wo = nn.Linear(w, k), w
    def feats(s, x):
        for l in s.l: x = F.glu(l(x), 1)
        return gap(x)
    def forward(s, x): return s.fc(s.feats(x))


class CRNN(nn.Module):
    """Convolutions with batch norm, then a GRU."""
    def __init__(s, ci, k, w=12, ln=False, **b): super().__init__(); s.c = nn.Sequential(cb(ci, w, 5, 2, 1, **b), cb(w, w, 5, 2, 1, **b)); s.ln, s.g, s.fc = nn.LayerNorm(w) if ln else nn.Identity(), nn.GRU(w, w, batch_first=True), nn.Linear(w, k)
    def forward(s, x): return s.fc(s.g(s.ln(s.c(x).transpose(1, 2)))[0].mean(1))


class TabGLU(nn.Module):
    """TabNet's feature transformer: input norm, then linear, batch norm, gate, halved residuals."""
    def __init__(s, d, k, w=32, n=3, inp=True, **b): super().__init__(); s.inp = nn.BatchNorm1d(d, **b) if inp else nn.Identity(); s.l = nn.ModuleList([nn.Linear(d if i == 0 else w, 2 * w, bias=False) for i in range(n)]); s.n = nn.ModuleList([nn.BatchNorm1d(2 * w, **b) for _ in range(n)]); s.fc, s.wo = nn.Linear(w, k), w
    def feats(s, x):
        h = s.inp(x)
        for i, (l, n) in enumerate(zip(s.l, s.n)): g = F.glu(n(l(h)), 1); h = g if i == 0 else (h + g) * .7071
        return h
    def forward(s, x): return s.fc(s.feats(x))


def dense(d, k, w=40, n=2, a=nn.ReLU, inp=True, drop=0., pre=False, **b):
    """Plain perceptron; pre: dropout before batch norm (else after the activation)."""
    L, c = [nn.BatchNorm1d(d, **b)] if inp else [], d
    for _ in range(n): L += [nn.Linear(c, w)] + ([a(), nn.Dropout(drop), nn.BatchNorm1d(w, **b)] if pre else [nn.BatchNorm1d(w, **b), a()] + ([nn.Dropout(drop)] if drop else [])); c = w
    return nn.Sequential(*L, nn.Linear(c, k))


class Letters(nn.Module):
    def __init__(s, V, k, w=20, e=10, **b): super().__init__(); s.emb, s.c, s.fc = nn.Embedding(V, e, padding_idx=0), nn.Sequential(cb(e, w, 3, 1, 1, **b), cb(w, w, 3, 1, 1, **b)), nn.Linear(w, k)
    def forward(s, x): m = (x != 0).float()[:, None]; return s.fc((s.c(s.emb(x).transpose(1, 2)) * m).sum(2) / m.sum(2))


class NodeNorm(nn.BatchNorm1d):
    """Batch norm over nodes (n, N, c) as people write it: over all rows, padded ones too."""
    def forward(s, x): return super().forward(x.reshape(-1, x.shape[-1])).reshape(x.shape)


class GIN(nn.Module):
    def __init__(s, k, w=20, n=2, **b): super().__init__(); s.l1, s.l2 = nn.ModuleList([nn.Linear(2 if i == 0 else w, w) for i in range(n)]), nn.ModuleList([nn.Linear(w, w) for _ in range(n)]); s.n1, s.n2 = nn.ModuleList([NodeNorm(w, **b) for _ in range(n)]), nn.ModuleList([NodeNorm(w, **b) for _ in range(n)]); s.fc = nn.Linear(2 * w, k)
    def forward(s, x):
        A, h = x[..., :x.shape[1]], x[..., x.shape[1]:]; m = h[..., 1:2]
        for a, b, p, q in zip(s.l1, s.l2, s.n1, s.n2): h = torch.relu(q(b(torch.relu(p(a(h + A @ h)))))) * m
        return s.fc(torch.cat([h.sum(1) / m.sum(1), h.amax(1)], 1))


class Seg(nn.Module):
    """Encoder and decoder with a skip; image pooling branch (as in DeepLab) if pool."""
    def __init__(s, k, w=10, pool=False, **b): super().__init__(); s.a, s.b, s.p, s.d, s.o = cb(1, w, **b), cb(w, 2 * w, 3, 2, **b), cb(2 * w, w, 1, **b) if pool else None, cb(3 * w + (w if pool else 0), w, **b), nn.Conv2d(w, k, 1)
    def forward(s, x):
        a = s.a(x); h = s.b(a); L = [a, F.interpolate(h, scale_factor=2)]
        if s.p is not None: L.append(s.p(F.adaptive_avg_pool2d(h, 1)).expand(-1, -1, *a.shape[2:]))
        return s.o(s.d(torch.cat(L, 1)))


def bns(m): return [x for x in m.modules() if isinstance(x, BN)]
def tracked(m): return [x for x in bns(m) if x.running_mean is not None]
def lins(m): return [x for x in m.modules() if isinstance(x, (nn.Conv1d, nn.Conv2d, nn.Linear))]


class Wrap(nn.Module):
    def __init__(s, net, pre=None, post=None): super().__init__(); s.net, s.pre, s.post = net, pre, post
    def forward(s, x): o = s.net(s.pre(x) if s.pre else x); return s.post(o) if s.post else o
def undo(pre=None, post=None): return lambda m: Wrap(copy.deepcopy(m), pre, post).eval()


# ---------------------------------------------------------------- metrics
def acc(o, b): return float((o.argmax(1) == b[1]).float().mean())
def r2(o, b): y = b[1]; return float(1 - ((o - y) ** 2).mean() / ((y - y.mean(0)) ** 2).mean())
def miou(o, b):
    """Mean intersection over union of the classes that are there."""
    p, y = o.argmax(1), b[1]; v = [((p == c) & (y == c)).sum() / ((p == c) | (y == c)).sum() for c in range(o.shape[1]) if (y == c).any()]; return float(sum(v) / len(v))
def ce(o, y): return F.cross_entropy(o, y)


@torch.no_grad()
def evaluate(model, loader, metric=acc):
    """The model as given, in eval(), on a copy, batch by batch, in order."""
    m = copy.deepcopy(model).eval(); v = np.nan_to_num(np.array([metric(m(b[0]), b) for b in loader], float), nan=0.0, posinf=0.0, neginf=0.0); return float(v.mean())


# ---------------------------------------------------------------- loaders, statistics
def batches(x, y, bs, R=None, n=None, drop_last=True):
    p = torch.as_tensor(R.permutation(len(x))) if R is not None else torch.arange(len(x)); out = [(x[p[i:i + bs]], y[p[i:i + bs]]) for i in range(0, len(x) - (bs - 1 if drop_last else 0), bs)]; return out[:n] if n else out


@torch.no_grad()
def recal(model, loader, bs=256, as_is=False, layers=None):
    """Copy with statistics re-estimated (cumulative mean) on the inputs of loader; everything else in eval."""
    m = copy.deepcopy(model).eval(); L = tracked(m); L = L if layers is None else [L[i] for i in layers]; mom = [b.momentum for b in L]
    for b in L: b.reset_running_stats(); b.momentum = None; nn.Module.train(b, True)
    xs = [b[0] for b in loader]
    if not as_is:
        try:
            x = torch.cat(xs); p = torch.randperm(len(x), generator=torch.Generator().manual_seed(0)); xs = [x[q] for q in p.split(bs) if len(q) > bs // 2 or len(p) < bs]
        except RuntimeError: pass
    for x in xs: m(x)
    for b, q in zip(L, mom): b.momentum = q; nn.Module.train(b, False)
    return m


def recal_on(loader, **k): return lambda m: recal(m, loader, **k)


def restore(good):
    """Copy of the model with buffers and eps of its batch norm layers as in good."""
    good = copy.deepcopy(good)
    def f(model):
        m = copy.deepcopy(model)
        for a, b in zip(bns(m), bns(good)):
            a.eps = b.eps
            if a.running_mean is not None and b.running_mean is not None: a.running_mean.copy_(b.running_mean); a.running_var.copy_(b.running_var)
        return m
    return f


@torch.no_grad()
def passes(model, xs):
    """Forward passes in train mode, nothing else."""
    model.train()
    for x in xs: model(x)
    return model


# ---------------------------------------------------------------- a task with its net
class Job:
    def __init__(s, R, data, net, bs=None, mom=None, steps=None, lr=None, loss=ce, metric=acc, n_eval=400, **kw):
        s.R, s.loss, s.metric, s.info = R, loss, metric, {}; x, y, xt, yt, s.k = data[:5]; s.x, s.y, s.xe, s.ye, s.xt, s.yt = x, y, xt[:n_eval], yt[:n_eval], xt[n_eval:], yt[n_eval:]
        s.bs = bs or C(R, 32, 48, 64); s.mom = LU(R, .05, .15) if mom is None else mom; s.steps = steps or I(R, 130, 180); s.lr = lr or LU(R, 3e-3, 7e-3); s.kw = dict(kw, momentum=None if mom == "cum" else s.mom); s.make = lambda: net(**s.kw); s.model = s.make()

    def fit(s, model=None, x=None, y=None, steps=None, lr=None, bs=None, loss=None, mode=True, aug=None, pick=None, after=None, decay=True, params=None, wd=0., tail=0, rate=None):
        """pick(step) gives indices; after(step) is called after each; rate(step) multiplies lr; tail: further steps at 1/40 of the rate."""
        m = s.model if model is None else model; x, y = s.x if x is None else x, s.y if y is None else y; steps, lr, bs, loss = steps or s.steps, lr or s.lr, bs or s.bs, loss or s.loss; o = torch.optim.AdamW(list(m.parameters() if params is None else params), lr, weight_decay=wd); perm, pos = torch.as_tensor(s.R.permutation(len(x))), 0
        if mode is not None: m.train(mode)
        for i in range(steps + tail):
            if pick is not None: j = torch.as_tensor(pick(i))
            else:
                if pos + bs > len(x): perm, pos = torch.as_tensor(s.R.permutation(len(x))), 0
                j = perm[pos:pos + bs]; pos += bs
            o.param_groups[0]["lr"] = lr * (rate(i) if rate else (.025 + .975 * (.5 + .5 * math.cos(math.pi * min(1., i / steps)))) if decay else 1.); xb = x[j] if aug is None else aug(x[j]); o.zero_grad(); loss(m(xb), y[j]).backward(); o.step()
            if after is not None: after(i)
        return m

    def good(s, **k): k.setdefault("tail", 35); s.fit(**k); return s  # normal training with a quiet end
    def exact(s): s.model = recal(s.model, s.loader()); return s
    def some(s, n=None): return torch.as_tensor(s.R.integers(len(s.x), size=n or s.bs))
    def loader(s, bs=None, n=None): return batches(s.x, s.y, bs or s.bs, s.R, n)
    def test(s, bs=250): return batches(s.xt, s.yt, bs, drop_last=False)
    def eval_loader(s, bs=None): return batches(s.xe, s.ye, bs or s.bs, drop_last=False)

    def out(s, notes, model=None, oracle=None, **k):
        d = dict(model=(s.model if model is None else model).eval(), loader=None, eval_loader=None, metric=s.metric, oracle=oracle, test_loader=None, notes=notes); info = k.pop("info", {}); d.update(k)
        for n, f in (("loader", s.loader), ("eval_loader", s.eval_loader), ("test_loader", s.test)):
            if n not in k: d[n] = f()
        if s.R.uniform() < .4:  # torch DataLoaders instead of lists of batches
            from torch.utils.data import DataLoader, TensorDataset
            if "loader" not in k: d["loader"] = DataLoader(TensorDataset(s.x, s.y), s.bs, shuffle=True, drop_last=True)
            if "eval_loader" not in k: d["eval_loader"] = DataLoader(TensorDataset(s.xe, s.ye), s.bs)
        if oracle == "recal": d["oracle"] = recal_on(d["loader"])
        d["params"] = dict(bs=s.bs, steps=s.steps, lr=round(s.lr, 5), **s.kw, **s.info, **info); return d


def tuned(J, loader, steps=150, lr=1e-3, bs=64, params=None):
    """Oracle: pooled statistics, then a short training with the statistics fixed."""
    def f(model):
        m = recal(model, loader); R, J.R = J.R, np.random.default_rng(0)
        with torch.random.fork_rng(devices=[]): torch.manual_seed(0); J.fit(m, steps=steps, lr=lr, bs=bs, mode=False, params=params(m) if params else None)
        J.R = R; return m.eval()
    return f


def worsen(J, R, f, levels, fix, need=.05):
    """f(copy, level) at increasing levels, from a random start, until fix(copy) would gain need."""
    for lv in levels[I(R, 0, len(levels) // 2):]:
        m = copy.deepcopy(J.model).eval(); m = f(m, lv) or m
        if evaluate(fix(m), J.test(), J.metric) - evaluate(m, J.test(), J.metric) > need: break
    J.info["level"] = lv if isinstance(lv, (int, float)) else str(lv); return m


def damaged(J, R, f, levels, notes, need=.06, **k):
    """The buffers of a good model are damaged; the repair puts them back."""
    fix = restore(J.model); J.model = worsen(J, R, f, levels, fix, need); return J.out(notes, oracle=fix, **k)


def moved(J, R, f, levels, notes, need=.05, **k):
    """The weights of a good model are changed; the repair re-estimates the statistics."""
    ld = J.loader(); J.model = worsen(J, R, f, levels, recal_on(ld), need); return J.out(notes, oracle="recal", loader=ld, **k)


# ---------------------------------------------------------------- jobs by kind of data
def im(R, data=None, net=None, d=None, **k):
    f = data or C(R, glyphs, gratings, digits8, cells); d = f(R, **(d or {})); net = net or C(R, ResNet, NeXt, Squeeze); x = d[0]; more = dict(size=x.shape[-1]) if net is LeNet else {}; J = Job(R, d, lambda **b: net(x.shape[1], d[4], **more, **b), **k); J.info = dict(data=f.__name__, net=net.__name__); return J
def sq(R, data=None, net=None, d=None, **k):
    f = data or C(R, chirps, bearings); d = f(R, **(d or {})); net = net or C(R, Gated, ResNet, CRNN); more = dict(nd=1) if net in (ResNet, NeXt, Squeeze) else {}; J = Job(R, d, lambda **b: net(d[0].shape[1], d[4], **more, **b), **k); J.info = dict(data=f.__name__, net=net.__name__); return J
def tb(R, data=None, net=None, d=None, **k):
    f = data or C(R, claims, assay); d = f(R, **(d or {})); net = net or C(R, TabGLU, dense); k.setdefault("steps", I(R, 260, 360)); J = Job(R, d, lambda **b: net(d[0].shape[1], d[4], **b), **k); J.info = dict(data=f.__name__, net=net.__name__); return J
def tx(R, d=None, **k): d = letters(R, **(d or {})); return Job(R, d, lambda **b: Letters(d[5], d[4], **b), **k)
