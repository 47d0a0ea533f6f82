"""Shared pieces of this corpus: data, nets, training, repairs. A situation draws everything from R and torch's (forked) generator."""
import copy, math, pathlib, zlib
import numpy as np, torch, torch.nn as nn, torch.nn.functional as F

HERE = pathlib.Path(__file__).parent
BN = nn.modules.batchnorm._BatchNorm


class Situation:
    def __init__(self, name, kind, code, fn, blind=False):
        self.name, self.kind, self.code, self.fn, self.blind = name, kind, code, fn, blind

    def make(self, seed):
        h = zlib.crc32(f"judgement2/{self.name}/{seed}".encode())
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(h)
            d = self.fn(np.random.default_rng(h))
        if self.blind:  # the user gives no metric ("inputs": unlabelled evaluation inputs are there; "nothing": no evaluation loader either)
            d["judge_metric"], d["metric"] = d["metric"], None
            if self.blind == "nothing":
                d["eval_loader"] = None
        return d

    def __repr__(self):
        return f"<{self.kind}: {self.name} ({self.code})>"


# held back (SPARE in each module): near others or near the first corpus; averaged_then_updated (healthy) was not verified in time
HELD_BACK = set("""keras_momentum_heavy_tails power_law_momentum statistics_of_other_patients table_calibrated_without_log variance_key_renamed
one_unscaled_image_batch exported_variance_transformed residual_blocks_removed max_norm_at_export continual_last_task quantisation_calibration_of_one_class
set_regression_batches_of_two no_statistics_tracks_of_one_object hospital_zero_statistics fog_at_evaluation sampling_rate_gain_at_evaluation
early_stopping_best_parameters_only checkpoint_buffers_averaged_with_defaults privacy_noise_on_buffers tracking_switched_off_in_training averaged_then_updated""".split())


def split(S): return [s for s in S if s.name not in HELD_BACK], [s for s in S if s.name in HELD_BACK]


def registry():
    S = []

    def situation(name, kind, code=None, blind=False):
        def deco(fn):
            S.append(Situation(name, kind, code, fn, blind)); return fn
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


def _fm():
    if "fm" not in _cache:
        z = np.load(HERE / "data/fmnist14.npz"); _cache["fm"] = {k: z[k] for k in z.files}
    return _cache["fm"]


def garments(R, ntr=2600, nte=3600, n=None, rgb=False):
    """Some of Fashion-MNIST's classes, 14 x 14; rgb: tinted garments on a tinted ground."""
    z = _fm(); n = n or I(R, 5, 8); cl = np.sort(R.choice(10, n, replace=False)); mp = np.full(10, -1); mp[cl] = np.arange(n)

    def part(x, y, m):
        i = np.nonzero(mp[y] >= 0)[0]; i = R.permutation(i)[:m]; v = x[i].astype(np.float32)[:, None] / 255
        if rgb:
            a, b = R.uniform(.5, 1.2, (len(i), 3, 1, 1)), R.uniform(0, .5, (len(i), 3, 1, 1)); v = v * a + (1 - v) * b
        return f32((v - .35) / .35), i64(mp[y[i]])
    return (*part(z["xtr"], z["ytr"], ntr), *part(z["xte"], z["yte"], nte), n)


def digits(R, ntr=2600, nte=3600, size=10, noise=.12):
    from sklearn.datasets import load_digits
    if "dg" not in _cache: _cache["dg"] = load_digits(return_X_y=True)
    X, y = _cache["dg"]; p = R.permutation(len(y))

    def part(ids, n):
        k = ids[R.integers(len(ids), size=n)]; im = X[k].reshape(-1, 8, 8) / 16; out = np.zeros((n, size, size)); m = size - 7; sh = R.integers(m * m, size=n)
        for q in range(m * m):
            j = np.nonzero(sh == q)[0]; a, b = divmod(q, m); out[j, a:a + 8, b:b + 8] = im[j]
        out = out * np.exp(R.normal(0, .15, (n, 1, 1))) + noise * R.standard_normal(out.shape)
        return f32(out * 2 - .6)[:, None], i64(y[k])
    return (*part(p[:1250], ntr), *part(p[1250:], nte), 10)


def shapes(R, ntr=2600, nte=3600, size=12, k=None, ch=1, noise=None, gain=None):
    """Discs, rings, squares, crosses, diamonds and bars, at random places, in noise."""
    k = k or I(R, 4, 6); noise = noise or U(R, .3, .5); order = R.permutation(6)[:k]; mix = R.uniform(.5, 1.2, ch); u, v = np.meshgrid(np.arange(size), np.arange(size))

    def part(n):
        y = R.integers(k, size=n); a, b = R.uniform(4, size - 5, (2, n, 1, 1)); r = R.uniform(2.4, 4.0, (n, 1, 1)); p, q = np.abs(u - a), np.abs(v - b); d = np.sqrt(p * p + q * q)
        M = [d < r, (d < r + .4) & (d > r - 1.2), (np.maximum(p, q) < r * .85), ((p < .8) | (q < .8)) & (np.maximum(p, q) < r), (p + q < r * 1.1), (q < 1) & (p < r + 1)]
        m = np.stack([M[o] for o in order])[y, np.arange(n)]
        return f32(m[:, None] * mix[None, :, None, None] * 1.6 * np.exp(R.normal(0, .15, (n, 1, 1, 1))) + noise * R.standard_normal((n, ch, size, size)) - .3), i64(y)
    return (*part(ntr), *part(nte), k)


def beats(R, ntr=2600, nte=3600, L=64, k=None, ch=None, noise=None):
    """Heart-beat-like pulses: classes differ in the form of three bumps; drifting base line."""
    k = k or I(R, 4, 6); ch = ch or I(R, 1, 2); noise = noise or U(R, .35, .55); tt = np.arange(L)[None]; amp = R.uniform(-1.5, 2, (k, 3)); pos = np.array([-9, 0, 10]) + R.uniform(-4, 4, (k, 3)); wd = R.uniform(1, 4, (k, 3)); lead = R.uniform(.5, 1.2, (k, ch))

    def part(n):
        y = R.integers(k, size=n); c = R.uniform(24, L - 24, (n, 1)); s = 0
        for j in range(3): s = s + amp[y, j][:, None] * np.exp(-.5 * ((tt - c - pos[y, j][:, None]) / wd[y, j][:, None]) ** 2)
        s = s * np.exp(R.normal(0, .15, (n, 1))) + .3 * np.sin(tt * R.uniform(.02, .08, (n, 1)) + R.uniform(0, 6.3, (n, 1)))
        return f32(s[:, None] * lead[y][:, :, None] + noise * R.standard_normal((n, ch, L))), i64(y)
    return (*part(ntr), *part(nte), k)


def motion(R, ntr=2600, nte=3600, L=60, k=None, sensors=3):
    """Inertial sensors: coloured noise, classes differ in spectrum and axis; a gravity offset."""
    k = k or I(R, 4, 6); f = np.fft.rfftfreq(L); f0 = np.linspace(.06, .4, k)[R.permutation(k)]; w = U(R, .03, .05); axis = R.uniform(.3, 1, (k, sensors)); g = R.normal(0, .6, sensors)

    def part(n):
        y = R.integers(k, size=n); z = np.fft.rfft(R.standard_normal((n, sensors, L))); H = np.exp(-.5 * ((f[None] - f0[y][:, None]) / w) ** 2) * 2.2
        s = np.fft.irfft(z * H[:, None], L) * axis[y][:, :, None] + .7 * R.standard_normal((n, sensors, L)) + (g + .2 * R.standard_normal((n, sensors)))[:, :, None]
        return f32(s), i64(y)
    return (*part(ntr), *part(nte), k)


def mixed_table(R, ntr=3500, nte=4500, d=None, k=None, cats=None, heavy=0.0, temp=6.0, plain=False):
    """Gaussian, log-normal and one-hot columns; the label is drawn from a random network's output."""
    d = d or I(R, 8, 16); k = k or I(R, 3, 5); cats = I(R, 2, 5) if cats is None else cats; A = R.standard_normal((d, d)) / np.sqrt(d) + np.eye(d); log = R.uniform(size=d) < (.0 if plain else .35)
    sc, of = (np.ones(d), np.zeros(d)) if plain else (np.exp(R.normal(0, 1.2, d)), R.normal(0, 1.5, d)); W1 = R.standard_normal((d + cats, 14)) / np.sqrt(d) * 1.3; b1 = R.normal(0, .5, 14); W2 = R.standard_normal((14, k)); pc = R.dirichlet(np.full(max(cats, 1), 2.0)); probe = R.standard_normal((2000, d)) @ A; mu0 = None

    def part(n, mu=None):
        z = R.standard_normal((n, d)) @ A; o = np.eye(max(cats, 1))[R.choice(max(cats, 1), n, p=pc)][:, :cats]; q = np.tanh(np.concatenate([z, o * 1.5], 1) @ W1 + b1) @ W2; mu = q.mean(0) if mu is None else mu
        y = ((q - mu) * temp / q.std() + R.gumbel(size=q.shape)).argmax(1); x = np.where(log, np.exp(np.clip(z, -4, 4)), z)
        if heavy: x = x + heavy * R.standard_t(1.6, x.shape)
        return f32(np.concatenate([x * sc + of, o], 1)), i64(y), mu
    x, y, mu = part(ntr); xt, yt, _ = part(nte, mu)
    return x, y, xt, yt, k


def baskets(R, ntr=3000, nte=4500, V=None, k=None, log=True):
    """Sparse counts of V items, classes differ in their rates."""
    V = V or I(R, 40, 80); k = k or I(R, 4, 6); base = R.gamma(.4, .5, V); r = base * np.exp(R.normal(0, .9, (k, V)))

    def part(n):
        y = R.integers(k, size=n); c = R.poisson(r[y] * np.exp(R.normal(0, .3, (n, 1)))); return f32(np.log1p(c) if log else c), i64(y)
    return (*part(ntr), *part(nte), k)


def clouds(R, ntr=2400, nte=3200, N=32, k=None):
    """Point clouds in the plane, (n, 2, N): ring, disc, square's edge, line, two heaps, cross."""
    k = k or I(R, 4, 6); order = R.permutation(6)[:k]; nz = U(R, .1, .16)

    def part(n):
        y = R.integers(k, size=n); a, b = R.uniform(0, 2 * np.pi, (n, N)), R.uniform(0, 1, (n, N)); e, s = R.integers(4, size=(n, N)), 2 * b - 1; h = R.integers(2, size=(n, N)) * 2 - 1
        P = [(np.cos(a), np.sin(a)), (np.sqrt(b) * np.cos(a), np.sqrt(b) * np.sin(a)), (np.where(e < 2, s, e * 2 - 5.0), np.where(e < 2, e * 2 - 1.0, s)), (s * 1.3, 0 * s), (h * .8 + .25 * np.cos(a), .25 * np.sin(a)), (np.where(h > 0, s, 0) * 1.2, np.where(h > 0, 0, s) * 1.2)]
        X = np.stack([np.stack(P[o], 1) for o in order])[y, np.arange(n)]; th = R.uniform(0, 2 * np.pi, n); c, q = np.cos(th)[:, None], np.sin(th)[:, None]
        X = np.stack([c * X[:, 0] - q * X[:, 1], q * X[:, 0] + c * X[:, 1]], 1) * np.exp(R.normal(0, .1, (n, 1, 1))) + nz * R.standard_normal((n, 2, N)) + R.normal(0, .15, (n, 2, 1))
        return f32(X), i64(y)
    return (*part(ntr), *part(nte), k)


def words(R, ntr=3000, nte=3600, L=40, V=None, k=None, short=10, full=False):
    """Token sequences (0 pads on the right): the class is an ordered pair of words with up to two others between."""
    V = V or I(R, 16, 26); k = k or I(R, 3, 5); key = np.stack([R.permutation(V - 1)[:2] + 1 for _ in range(k)])

    def part(n):
        y = R.integers(k, size=n); x = R.integers(1, V, (n, L)); ln = np.full(n, L) if full else np.clip((R.gamma(1.2, 7, n) + short), short, L).astype(int); i = np.arange(n)
        for _ in range(2):
            p = (R.uniform(size=n) * (ln - 4)).astype(int); g = R.integers(1, 4, n); x[i, p] = key[y, 0]; x[i, p + g] = key[y, 1]
        x[np.arange(L)[None] >= ln[:, None]] = 0
        return i64(x), i64(y)
    return (*part(ntr), *part(nte), k, V)


# ---------------------------------------------------------------- nets
ACT = dict(relu=nn.ReLU, relu6=nn.ReLU6, gelu=nn.GELU, hswish=nn.Hardswish, leaky=lambda: nn.LeakyReLU(.2), mish=nn.Mish, silu=nn.SiLU)
def cbn(ci, co, k=3, s=1, d=1, g=1, a="relu", nd=2, bias=False, **bn):
    Cv, B = (nn.Conv2d, nn.BatchNorm2d) if nd == 2 else (nn.Conv1d, nn.BatchNorm1d)
    L = [Cv(ci, co, k, s, (k // 2) * d, d, g, bias=bias), B(co, **bn)]
    return nn.Sequential(*L, *([ACT[a]()] if a else []))
def gap(x): return x.flatten(2).mean(2)


class VGG(nn.Module):
    def __init__(s, ci, k, w=10, a="relu", nd=2, convs=4, bias=True, drop=0., **bn):
        super().__init__(); P = nn.MaxPool2d if nd == 2 else nn.MaxPool1d; L, c = [], ci
        for i in range(convs):
            o = w * (2 if i >= 2 else 1); L.append(cbn(c, o, a=a, nd=nd, bias=bias, **bn)); c = o
            if i in (0, 2): L.append(P(2))
        s.body, s.drop, s.fc, s.wo = nn.Sequential(*L), nn.Dropout(drop), nn.Linear(c, k), c
    def feats(s, x): return gap(s.body(x))
    def forward(s, x): return s.fc(s.drop(s.feats(x)))


class PreBlock(nn.Module):
    def __init__(s, c, d=1, nd=2, se=False, **bn):
        super().__init__(); Cv, B = (nn.Conv2d, nn.BatchNorm2d) if nd == 2 else (nn.Conv1d, nn.BatchNorm1d)
        s.n1, s.c1, s.n2, s.c2 = B(c, **bn), Cv(c, c, 3, padding=d, dilation=d, bias=False), B(c, **bn), Cv(c, c, 3, padding=d, dilation=d, bias=False); s.on = True
        s.se = nn.Sequential(nn.Linear(c, 4), nn.ReLU(), nn.Linear(4, c), nn.Sigmoid()) if se else None
    def forward(s, x):
        h = s.c2(torch.relu(s.n2(s.c1(torch.relu(s.n1(x))))))
        if s.se is not None: h = h * s.se(gap(h)).reshape(*h.shape[:2], *[1] * (h.dim() - 2))
        return x + h


class PreRes(nn.Module):
    """Pre-activation residual net; with nd=1 and dilations a temporal convolutional net."""
    def __init__(s, ci, k, w=12, blocks=2, nd=2, stride=2, se=False, **bn):
        super().__init__(); Cv, B = (nn.Conv2d, nn.BatchNorm2d) if nd == 2 else (nn.Conv1d, nn.BatchNorm1d)
        s.stem = Cv(ci, w, 3, stride=stride, padding=1, bias=False); s.blocks = nn.Sequential(*[PreBlock(w, 1 if nd == 2 else 2 ** i, nd, se, **bn) for i in range(blocks)]); s.norm = B(w, **bn); s.fc, s.wo = nn.Linear(w, k), w
    def feats(s, x): return gap(torch.relu(s.norm(s.blocks(s.stem(x)))))
    def forward(s, x): return s.fc(s.feats(x))


class MB(nn.Module):
    def __init__(s, c, o, e=3, st=1, nd=2, a="relu6", **bn):
        super().__init__(); s.f = nn.Sequential(cbn(c, c * e, 1, a=a, nd=nd, **bn), cbn(c * e, c * e, 3, st, g=c * e, a=a, nd=nd, **bn), cbn(c * e, o, 1, a=None, nd=nd, **bn)); s.res = c == o and st == 1
    def forward(s, x): return x + s.f(x) if s.res else s.f(x)


class Mobile(nn.Module):
    def __init__(s, ci, k, w=8, nd=2, a="relu6", **bn):
        super().__init__(); s.f = nn.Sequential(cbn(ci, w, 3, 1, a=a, nd=nd, **bn), MB(w, w + 4, st=2, nd=nd, a=a, **bn), MB(w + 4, w + 4, nd=nd, a=a, **bn), cbn(w + 4, 3 * w, 1, a=a, nd=nd, **bn)); s.fc, s.wo = nn.Linear(3 * w, k), 3 * w
    def feats(s, x): return gap(s.f(x))
    def forward(s, x): return s.fc(s.feats(x))


class Dense(nn.Module):
    def __init__(s, ci, k, g=6, n=3, **bn):
        super().__init__(); s.stem = nn.Conv2d(ci, 2 * g, 3, 2, 1, bias=False); s.norms, s.convs = nn.ModuleList(), nn.ModuleList(); c = 2 * g
        for _ in range(n): s.norms.append(nn.BatchNorm2d(c, **bn)); s.convs.append(nn.Conv2d(c, g, 3, padding=1, bias=False)); c += g
        s.last, s.fc, s.wo = nn.BatchNorm2d(c, **bn), nn.Linear(c, k), c
    def feats(s, x):
        h = s.stem(x)
        for b, q in zip(s.norms, s.convs): h = torch.cat([h, q(torch.relu(b(h)))], 1)
        return gap(torch.relu(s.last(h)))
    def forward(s, x): return s.fc(s.feats(x))


class Branches(nn.Module):
    """Three parallel convolutions, concatenated, then one batch norm over all."""
    def __init__(s, ci, k, w=6, nd=2, **bn):
        super().__init__(); Cv, B, P = (nn.Conv2d, nn.BatchNorm2d, nn.MaxPool2d) if nd == 2 else (nn.Conv1d, nn.BatchNorm1d, nn.MaxPool1d); m = lambda c: nn.ModuleList([Cv(c, w, q, padding=q // 2, bias=False) for q in (1, 3, 5)])
        s.a, s.na, s.b, s.nb, s.pool, s.fc, s.wo = m(ci), B(3 * w, **bn), m(3 * w), B(3 * w, **bn), P(2), nn.Linear(3 * w, k), 3 * w
    def feats(s, x):
        h = s.pool(torch.relu(s.na(torch.cat([q(x) for q in s.a], 1)))); return gap(torch.relu(s.nb(torch.cat([q(h) for q in s.b], 1))))
    def forward(s, x): return s.fc(s.feats(x))


class PointNet(nn.Module):
    def __init__(s, ci, k, w=24, **bn):
        super().__init__(); s.pt = nn.Sequential(cbn(ci, w, 1, nd=1, **bn), cbn(w, w, 1, nd=1, **bn), cbn(w, 2 * w, 1, nd=1, **bn)); s.head = nn.Sequential(nn.Linear(2 * w, w), nn.BatchNorm1d(w, **bn), nn.ReLU(), nn.Linear(w, k))
    def forward(s, x): return s.head(s.pt(x).amax(2))


class ResMLP(nn.Module):
    def __init__(s, d, k, w=40, blocks=2, inp=True, a="relu", drop=0., **bn):
        super().__init__(); s.inp = nn.BatchNorm1d(d, **bn) if inp else nn.Identity(); s.lin = nn.Linear(d, w)
        s.blocks = nn.ModuleList([nn.Sequential(nn.BatchNorm1d(w, **bn), nn.Linear(w, 2 * w), ACT[a](), nn.Dropout(drop), nn.Linear(2 * w, w)) for _ in range(blocks)]); s.norm, s.fc = nn.BatchNorm1d(w, **bn), nn.Linear(w, k)
    def feats(s, x):
        h = s.lin(s.inp(x))
        for b in s.blocks: h = h + b(h)
        return torch.relu(s.norm(h))
    def forward(s, x): return s.fc(s.feats(x))


def mlp(d, k, w=40, n=2, a="gelu", inp=True, drop=0., **bn):
    L, c = [nn.BatchNorm1d(d, **bn)] if inp else [], d
    for _ in range(n): L += [nn.Linear(c, w), nn.BatchNorm1d(w, **bn), ACT[a]()] + ([nn.Dropout(drop)] if drop else []); c = w
    return nn.Sequential(*L, nn.Linear(c, k))


class TokenNet(nn.Module):
    def __init__(s, V, k, w=24, e=12, pad0=True, masked=True, **bn):
        super().__init__(); s.emb = nn.Embedding(V, e, padding_idx=0 if pad0 else None); s.body = nn.Sequential(cbn(e, w, 5, nd=1, **bn), cbn(w, w, 3, nd=1, **bn)); s.fc, s.masked = nn.Linear(w, k), masked
    def forward(s, x):
        h = s.body(s.emb(x).transpose(1, 2)); m = (x != 0).float()[:, None]
        return s.fc((h * m).sum(2) / m.sum(2)) if s.masked else s.fc(h.amax(2))


def bns(m): return [x for x in m.modules() if isinstance(x, BN)]
def tracked(m): return [x for x in bns(m) if x.running_mean is not None]
def convs(m): return [x for x in m.modules() if isinstance(x, (nn.Conv1d, nn.Conv2d, nn.Linear))]


# ---------------------------------------------------------------- metrics
def acc(o, b): return float((o.argmax(1) == b[1]).float().mean())
def r2(o, b): y = b[1]; return float(1 - ((o - y) ** 2).mean() / ((y - y.mean(0)) ** 2).mean())
def ce(o, y): return F.cross_entropy(o, y)
def nn1(o, b):
    """Nearest neighbour within the batch has the same label."""
    z = F.normalize(o, dim=1); S = z @ z.T; S.fill_diagonal_(-9); return float((b[1][S.argmax(1)] == b[1]).float().mean())


@torch.no_grad()
def evaluate(model, loader, metric=acc):
    """The model as given, in eval(), on a copy, batch by batch, in order."""
    m = copy.deepcopy(model).eval(); v = np.nan_to_num(np.array([metric(m(b[0]), b) for b in loader], float), nan=0.0, posinf=0.0, neginf=0.0)
    return float(v.mean())


# ---------------------------------------------------------------- loaders, statistics
def batches(x, y, bs, R=None, n=None, drop_last=True):
    p = torch.as_tensor(R.permutation(len(x))) if R is not None else torch.arange(len(x)); out = [(x[p[i:i + bs]], y[p[i:i + bs]]) for i in range(0, len(x) - (bs - 1 if drop_last else 0), bs)]
    return out[:n] if n else out


@torch.no_grad()
def recal(model, loader, bs=256, as_is=False):
    """Copy with statistics re-estimated (cumulative mean) on the inputs of loader; everything else in eval."""
    m = copy.deepcopy(model).eval(); L = tracked(m); mom = [b.momentum for b in L]
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
    def __init__(s, R, data, net=None, bs=None, mom=None, steps=None, lr=None, loss=ce, metric=acc, n_eval=500, **kw):
        s.R, s.loss, s.metric = R, loss, metric; x, y, xt, yt, s.k = data[:5]; s.x, s.y, s.xe, s.ye, s.xt, s.yt = x, y, xt[:n_eval], yt[:n_eval], xt[n_eval:], yt[n_eval:]
        s.bs = bs or C(R, 32, 40, 50, 64); s.mom = mom if mom is not None else LU(R, .05, .2); s.steps = steps or I(R, 130, 190); s.lr = lr or LU(R, 3e-3, 7e-3); s.kw = dict(kw, momentum=None if mom == "cum" else s.mom)
        if net is not None: s.make = lambda: net(**s.kw); s.new()
        s.info = {}

    def new(s): s.model = s.make(); return s.model

    def fit(s, model=None, x=None, y=None, steps=None, lr=None, bs=None, loss=None, mode=True, aug=None, pick=None, after=None, decay=True, params=None, wd=0., opt="adam", tail=0):
        """pick(step) gives indices; after(step) is called after each; tail: further steps at 1/40 of the rate."""
        m = s.model if model is None else model; x, y = s.x if x is None else x, s.y if y is None else y; steps, lr, bs, loss = steps or s.steps, lr or s.lr, bs or s.bs, loss or s.loss
        ps = list(params if params is not None else m.parameters()); o = torch.optim.AdamW(ps, lr, weight_decay=wd) if opt == "adam" else torch.optim.SGD(ps, lr, momentum=.9, weight_decay=wd)
        if mode is not None: m.train(mode)
        perm, pos = torch.as_tensor(s.R.permutation(len(x))), 0
        for i in range(steps + tail):
            if pick is not None: j = torch.as_tensor(pick(i))
            else:
                if pos + bs > len(x): perm, pos = torch.as_tensor(s.R.permutation(len(x))), 0
                j = perm[pos:pos + bs]; pos += bs
            o.param_groups[0]["lr"] = lr * (.025 + .975 * (.5 + .5 * math.cos(math.pi * min(1., i / steps)))) if decay else lr
            xb = x[j] if aug is None else aug(x[j]); o.zero_grad(); loss(m(xb), y[j]).backward(); o.step()
            if after is not None: after(i)
        return m

    def good(s, **k):
        """Normal training with a quiet end."""
        k.setdefault("tail", 35); s.fit(**k); return s

    def loader(s, bs=None, n=None): return batches(s.x, s.y, bs or s.bs, s.R, n)
    def test(s, bs=250): return batches(s.xt, s.yt, bs, drop_last=False)
    def eval_loader(s, bs=None): return batches(s.xe, s.ye, bs or s.bs, drop_last=False)

    def out(s, notes, model=None, oracle=None, **k):
        d = dict(model=(s.model if model is None else model).eval(), loader=None, eval_loader=None, metric=s.metric, oracle=oracle, test_loader=None, notes=notes)
        info = k.pop("info", {}); d.update(k)
        for n, f in (("loader", s.loader), ("eval_loader", s.eval_loader), ("test_loader", s.test)):
            if n not in k: d[n] = f()
        if s.R.uniform() < .35 and type(s.x) is torch.Tensor:  # torch DataLoaders instead of lists of batches
            from torch.utils.data import DataLoader, TensorDataset
            if "loader" not in k: d["loader"] = DataLoader(TensorDataset(s.x, s.y), s.bs, shuffle=True, drop_last=True)
            if "eval_loader" not in k: d["eval_loader"] = DataLoader(TensorDataset(s.xe, s.ye), s.bs)
        if oracle == "recal": d["oracle"] = recal_on(d["loader"])
        if oracle == "recal_eval": d["oracle"] = recal_on(d["eval_loader"])
        d["params"] = dict(bs=s.bs, steps=s.steps, lr=round(s.lr, 5), **s.kw, **s.info, **info)
        return d


def tuned(J, loader, steps=150, lr=1e-3, bs=64):
    """Oracle: pooled statistics, then a short training with the statistics fixed."""
    def f(model):
        m = recal(model, loader); R, J.R = J.R, np.random.default_rng(0)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0); J.fit(m, steps=steps, lr=lr, bs=bs, mode=False)
        J.R = R
        return m.eval()
    return f


def worsen(J, R, apply, levels, fix, need=.05, test=None):
    """apply(copy, level) at increasing levels, from a random start, until fix(copy, level) would gain need."""
    for lv in levels[I(R, 0, len(levels) // 2):]:
        m = copy.deepcopy(J.model).eval(); m = apply(m, lv) or m; te = test(lv) if test else J.test()
        if evaluate(fix(m, lv), te, J.metric) - evaluate(m, te, J.metric) > need: break
    J.info["level"] = lv if isinstance(lv, (int, float)) else str(lv)
    return m, lv
