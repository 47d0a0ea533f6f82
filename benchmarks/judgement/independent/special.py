"""Builders of other kinds of models: GAN, siamese, detection, segmentation, RL, self-supervised, denoising, regression."""
from base import *


class G(Task):
    def __init__(s, R, dom): s.R, s.dom, s.net, s.lr, s.steps = R, dom, {}, 2e-3, 0
    def loader(s, bs=None, n=None): return batches(s.x, s.y, bs or s.bs, s.R, n)


# ---- GAN on a ring of modes
def energy(out, batch):
    y = batch[1]; d = lambda a, b: torch.cdist(a, b).mean()
    yy = d(y, y); e = 2 * d(out, y) - d(out, out) - yy
    return float(1 - e.clamp(min=0) / yy)


def gan(R, mom=None, ema=None, steps=None, d_out=None):
    """ema: None, 'params' (buffers never copied) or 'all'."""
    s = G(R, "gan"); s.metric = energy; k = I(R, 4, 8); zd = I(R, 4, 10); w = I(R, 40, 64); s.mom = mom or U(R, .05, .2); s.bs = C(R, 64, 96, 128); D = d_out or C(R, 2, 3, 6)
    A = R.standard_normal((2, D)); A /= np.linalg.norm(A, axis=1, keepdims=True); off = R.normal(0, 1, D)
    def real(n):
        a = R.integers(k, size=n) * 2 * np.pi / k; p = np.stack([np.cos(a), np.sin(a)], 1) * 2 + .15 * R.standard_normal((n, 2)); return f32(p @ A + off + .05 * R.standard_normal((n, D)))
    depth = I(R, 2, 3); L = []; c = zd
    for _ in range(depth): L += [nn.Linear(c, w), nn.BatchNorm1d(w, momentum=s.mom), nn.ReLU()]; c = w
    g = nn.Sequential(*L, nn.Linear(w, D)); d = nn.Sequential(nn.Linear(D, 64), nn.LeakyReLU(.2), nn.Linear(64, 64), nn.LeakyReLU(.2), nn.Linear(64, 1))
    og, od = torch.optim.Adam(g.parameters(), 1.5e-3, betas=(.5, .99)), torch.optim.Adam(d.parameters(), 3e-3, betas=(.5, .99))
    s.steps = steps or I(R, 450, 650); e = copy.deepcopy(g); X = real(4000)
    for i in range(s.steps):
        for o in (og, od): o.param_groups[0]["lr"] *= .997 if i > s.steps // 2 else 1
        x = X[torch.as_tensor(R.integers(4000, size=s.bs))]; f = g(torch.randn(s.bs, zd))
        od.zero_grad(); (F.softplus(-d(x)).mean() + F.softplus(d(f.detach())).mean()).backward(); od.step()
        f = g(torch.randn(s.bs, zd)); og.zero_grad(); F.softplus(-d(f)).mean().backward(); og.step()
        if ema:
            with torch.no_grad():
                for p, q in zip(e.parameters(), g.parameters()): p.lerp_(q, .03)
                if ema == "all":
                    for p, q in zip(e.buffers(), g.buffers()): p.copy_(q)
    s.model = e if ema else g; z = torch.randn(7500, zd); y = real(7500)
    s.x, s.y, s.xe, s.ye, s.xt, s.yt = z[:3000], y[:3000], z[3000:3500], y[3000:3500], z[3500:], y[3500:]
    s.net = dict(momentum=s.mom, width=w, depth=depth, modes=k)
    return s


# ---- siamese
class Siamese(nn.Module):
    def __init__(s, enc, together): super().__init__(); s.enc, s.together, s.a, s.b = enc, together, nn.Parameter(torch.tensor(5.)), nn.Parameter(torch.tensor(-2.))
    def sim(s, p, q): return s.a * F.cosine_similarity(p, q) + s.b
    def forward(s, x):
        if s.together: p, q = s.enc(torch.cat([x[:, 0], x[:, 1]])).chunk(2)
        else: p, q = s.enc(x[:, 0]), s.enc(x[:, 1])
        return s.sim(p, q)


class Siamese2(nn.Module):
    """The repaired copy: own statistics for each of the two sides."""
    def __init__(s, m): super().__init__(); s.m, s.e2 = copy.deepcopy(m), copy.deepcopy(m.enc)
    def forward(s, x): return s.m.sim(s.m.enc(x[:, 0]), s.e2(x[:, 1]))


def same(out, batch): return float(((out > 0) == (batch[1] > .5)).float().mean())


def siamese(R, other_view=None, together=False, dom=None):
    s = G(R, "siamese"); s.metric = same; dom = dom or C(R, "digits", "digits", "fmnist"); x, y, xt, yt, k = DOM[dom](R, 2500, 2500); s.bs = C(R, 48, 64); s.mom = U(R, .05, .2)
    def pairs(x, y, n):
        i = R.integers(len(x), size=n); same = R.uniform(size=n) < .5; idx = {c: np.nonzero(y.numpy() == c)[0] for c in range(k)}
        j = np.array([R.choice(idx[int(y[a])]) if q else R.integers(len(x)) for a, q in zip(i, same)])
        b = x[t(j)]; b = other_view(b) if other_view else b
        return torch.stack([x[t(i)], b], 1), (y[t(i)] == y[t(j)]).float()
    s.x, s.y = pairs(x, y, 3000); s.xt, s.yt = pairs(xt, yt, 3000); s.split_eval()
    s.net = dict(momentum=s.mom, width=I(R, 10, 14), depth=3, style=C(R, "plain", "post")); s.steps, s.lr = I(R, 180, 240), 5e-3
    s.model = Siamese(CNN(1, 24, **s.net), together)
    s.fit(loss=lambda o, y: F.binary_cross_entropy_with_logits(o, y))
    return s


# ---- detection
def iou(out, batch):
    a, b = out[:, :4], batch[1][:, :4]; lo = torch.max(a[:, :2] - a[:, 2:].abs() / 2, b[:, :2] - b[:, 2:] / 2); hi = torch.min(a[:, :2] + a[:, 2:].abs() / 2, b[:, :2] + b[:, 2:] / 2)
    it = (hi - lo).clamp(min=0).prod(1); un = a[:, 2:].abs().prod(1) + b[:, 2:].prod(1) - it
    return float((it / un.clamp(min=1e-6) * (out[:, 4:].argmax(1) == batch[1][:, 4].long())).nan_to_num(0).mean())


def scenes(R, n, size=18, k=3, clutter=.35):
    x = clutter * R.standard_normal((n, 3, size, size)); y = np.zeros((n, 5)); col = np.array([[2, .3, .3], [.3, 2, .3], [.3, .3, 2]]); m = np.zeros((n, 1, size, size))
    x += R.uniform(-.5, .5, (n, 3, 1, 1)); u, v = np.meshgrid(np.arange(size), np.arange(size))
    for i in range(n):
        w, h = R.integers(5, 11, 2); a, b = R.integers(0, size - w + 1), R.integers(0, size - h + 1); c = R.integers(k)
        x[i, :, b:b + h, a:a + w] += col[c][:, None, None]; m[i, 0, b:b + h, a:a + w] = 1
        y[i] = [(a + w / 2) / size, (b + h / 2) / size, w / size, h / size, c]
    return f32(x), f32(y), f32(m)


def det_loss(o, y): return 20 * F.smooth_l1_loss(o[:, :4], y[:, :4], beta=.05) + F.cross_entropy(o[:, 4:], y[:, 4].long())


class Det(nn.Module):
    def __init__(s, w, **bn):
        super().__init__(); B = lambda a, b: nn.Sequential(nn.Conv2d(a, b, 3, padding=1, bias=False), nn.BatchNorm2d(b, **bn), nn.ReLU())
        s.backbone = nn.Sequential(B(3, w), nn.MaxPool2d(2), B(w, w), B(w, 2 * w), nn.MaxPool2d(2)); s.neck = B(2 * w, w); s.head = nn.Sequential(nn.Flatten(), nn.Linear(w * 16, 48), nn.ReLU(), nn.Linear(48, 7))
    def forward(s, x): return s.head(s.neck(s.backbone(x)))


def detection(R, mom=None, bs=None, steps=None, fit_now=True):
    s = G(R, "detection"); s.metric = iou; x, y, _ = scenes(R, 5500); s.x, s.y, s.xe, s.ye, s.xt, s.yt = x[:2800], y[:2800], x[2800:3200], y[2800:3200], x[3200:], y[3200:]
    s.bs, s.mom, s.steps, s.lr = bs or C(R, 24, 32, 48), mom or U(R, .05, .2), steps or I(R, 220, 300), 5e-3; s.net = dict(w=I(R, 8, 12), momentum=s.mom); s.model = Det(**s.net)
    if fit_now: s.fit(loss=det_loss)
    return s


# ---- segmentation
class Seg(nn.Module):
    def __init__(s, w, depth, **bn):
        super().__init__(); L, c = [], 3
        for i in range(depth): L += [nn.Conv2d(c, w, 3, padding=1), nn.BatchNorm2d(w, **bn), nn.ReLU()]; c = w
        s.down, s.mid, s.out = nn.Sequential(*L), nn.Sequential(nn.MaxPool2d(2), nn.Conv2d(w, w, 3, padding=1), nn.BatchNorm2d(w, **bn), nn.ReLU(), nn.Upsample(scale_factor=2)), nn.Conv2d(2 * w, 1, 1)
    def forward(s, x): h = s.down(x); return s.out(torch.cat([h, s.mid(h)], 1))


def dice(out, batch): p, q = out > 0, batch[1] > .5; return float(2 * (p & q).sum() / (p.sum() + q.sum()).clamp(min=1))


def segscenes(R, n, size=20, fg=1.0, gain=.9):
    x = .8 * R.standard_normal((n, 3, size, size)); u, v = np.meshgrid(np.arange(size), np.arange(size)); m = np.zeros((n, 1, size, size)); col = np.array([.9, 1.3, .4]) * gain
    for _ in range(2):
        r = R.uniform(1.5, 3.0, n) * fg; a, b = R.uniform(2, size - 2, (2, n)); on = R.uniform(size=n) < (1 if _ == 0 else .5)
        m[:, 0] = np.maximum(m[:, 0], (((u - a[:, None, None]) ** 2 + (v - b[:, None, None]) ** 2) < r[:, None, None] ** 2) * on[:, None, None])
    return f32(x + m * col[None, :, None, None] - (1 - m) * .3), f32(m)


def segmentation(R, crop=False, mom=None, big=None, fit_now=True):
    s = G(R, "segmentation"); s.metric = dice; gain = U(R, 1.0, 1.5); x, m = segscenes(R, 2000, gain=gain); s.x, s.y = x, m; a, b = segscenes(R, 2600, gain=gain); s.xe, s.ye, s.xt, s.yt = a[:400], b[:400], a[400:], b[400:]
    if crop:  # training patches centred on the foreground, 8 x 8
        cx, cy = [], []
        for i in range(2000):
            q = torch.nonzero(m[i, 0]); q = q[int(R.integers(len(q)))]; r, c = [int(min(max(v - 4, 0), 12)) for v in q]
            cx.append(x[i, :, r:r + 8, c:c + 8]); cy.append(m[i, :, r:r + 8, c:c + 8])
        s.x, s.y = torch.stack(cx), torch.stack(cy)
    s.bs, s.mom, s.steps, s.lr = C(R, 16, 24, 32), mom or U(R, .05, .2), I(R, 140, 200), 6e-3; s.net = dict(w=I(R, 8, 12), depth=I(R, 1, 2), momentum=s.mom); s.model = Seg(**s.net)
    if fit_now: s.fit(loss=lambda o, y: F.binary_cross_entropy_with_logits(o, y))
    return s


# ---- RL: go to a goal on a plane, 4 moves; DQN
MV = torch.tensor([[1., 0], [-1, 0], [0, 1], [0, -1]]) * .15


def greedy_ok(out, batch):
    s = batch[1]; d = (s[:, :2] - s[:, 2:4]).abs().sum(1); n = (s[:, :2] + MV[out.argmax(1)] - s[:, 2:4]).abs().sum(1)
    return float((n < d).float().mean())


def dqn(R, mom=None, narrow_first=False, target="all"):
    s = G(R, "dqn"); s.metric = greedy_ok; nx = I(R, 2, 6); w = I(R, 40, 64); s.mom = mom or U(R, .05, .15); s.bs = 64; M = f32(R.standard_normal((4 + nx, 4 + nx)) * .3 + 1.5 * np.eye(4 + nx)); off = f32(R.normal(0, 1.5, 4 + nx))
    obs = lambda st, d: torch.cat([st, d], 1) @ M + off
    q = nn.Sequential(nn.Linear(4 + nx, w), nn.BatchNorm1d(w, momentum=s.mom), nn.ReLU(), nn.Linear(w, w), nn.BatchNorm1d(w, momentum=s.mom), nn.ReLU(), nn.Linear(w, 4)); tg = copy.deepcopy(q).eval()
    s.steps, s.lr = I(R, 450, 600), 3e-3; o = torch.optim.Adam(q.parameters(), s.lr); q.train(); S = []
    for i in range(s.steps):
        o.param_groups[0]["lr"] = s.lr * (1 - .95 * i / s.steps)
        st = torch.rand(s.bs, 4) * 2 - 1; d = torch.randn(s.bs, nx)
        if narrow_first and i < .55 * s.steps: st = st * .15 + .8
        a = torch.randint(4, (s.bs,)); n = torch.cat([st[:, :2] + MV[a], st[:, 2:]], 1); r = -(n[:, :2] - n[:, 2:]).abs().sum(1) * 3
        with torch.no_grad(): tq = tg(obs(n, d)).max(1)[0] if target != "online" else 0
        o.zero_grad(); F.smooth_l1_loss(q(obs(st, d)).gather(1, a[:, None])[:, 0], r * (1 - .6) + .6 * tq).backward(); o.step()
        with torch.no_grad():
            for p, v in zip(tg.parameters(), q.parameters()): p.lerp_(v, .03)
            if target == "all":
                for p, v in zip(tg.buffers(), q.buffers()): p.copy_(v)
    def smp(n): st = torch.rand(n, 4) * 2 - 1; return obs(st, torch.randn(n, nx)), st
    s.x, s.y = smp(3000); s.xe, s.ye = smp(500); s.xt, s.yt = smp(5000); s.q, s.tg = q, tg; s.model = q
    s.net = dict(momentum=s.mom, width=w)
    return s


# ---- self-supervised (SimCLR) with a linear probe
class Probe(nn.Module):
    def __init__(s, enc, k): super().__init__(); s.enc, s.probe = enc, nn.Linear(enc.width_out, k)
    def forward(s, x): return s.probe(s.enc.feats(x))


def simclr(R, probe_mode, strength=None, dom=None, bright=0.0):
    """probe_mode 'train': the probe sees features under batch statistics, the encoder is then reloaded; 'eval': stored ones."""
    dom = dom or C(R, "fmnist", "digits"); s = Task(R, dom, depth=3, width=16, style=C(R, "plain", "post", "dw"), bs=64); s.dom = "simclr_" + dom; a = strength or U(R, .8, 1.2); e = s.model; pr = nn.Linear(e.width_out, 24); o = torch.optim.Adam([*e.parameters(), *pr.parameters()], 4e-3); e.train(); s.split_eval()
    def aug(x): return (x.roll((int(R.integers(-1, 2)), int(R.integers(-1, 2))), (2, 3)) * torch.exp(.4 * a * torch.randn(len(x), 1, 1, 1)) + .7 * a * torch.randn(len(x), 1, 1, 1) + .5 * a * torch.randn_like(x) + bright)
    s.steps = 90
    for i in range(90):
        x = s.x[torch.as_tensor(R.integers(len(s.x), size=64))]; z = F.normalize(pr(e.feats(torch.cat([aug(x), aug(x)])))); S = z @ z.T / .3; S.fill_diagonal_(-1e4); o.zero_grad(); F.cross_entropy(S, torch.arange(128).roll(64)).backward(); o.step()
    saved = copy.deepcopy(e).eval(); m = Probe(e, s.k); m.train(probe_mode == "train"); op = torch.optim.Adam(m.probe.parameters(), .02)
    for i in range(120):
        j = torch.as_tensor(R.integers(len(s.x), size=64))
        with torch.no_grad(): f = e.feats(s.x[j])
        op.param_groups[0]["lr"] = .02 * (1 - i / 125); op.zero_grad(); ce(m.probe(f), s.y[j]).backward(); op.step()
    m.enc = saved; s.model = m
    return s


# ---- denoising and regression
def r2(out, batch): y = batch[1]; return float(1 - ((out - y) ** 2).mean() / ((y - y.mean(0)) ** 2).mean())


class Denoise(nn.Module):
    def __init__(s, ch, w, depth, **bn):
        super().__init__(); L, c = [], ch
        for _ in range(depth): L += [nn.Conv1d(c, w, 5, padding=2), nn.BatchNorm1d(w, **bn), nn.ReLU()]; c = w
        s.net = nn.Sequential(*L, nn.Conv1d(w, ch, 5, padding=2))
    def forward(s, x): return s.net(x)


def denoise(R, mom=None, steps=None, fit_now=True):
    s = G(R, "denoise"); s.metric = r2; ch = 1; k = 4; f = R.uniform(.15, .6, k); n = 6000; y = R.integers(k, size=n); tt = np.arange(48); clean = (np.sin(f[y][:, None] * tt + R.uniform(0, 6.3, (n, 1))) * np.exp(R.normal(0, .3, (n, 1))))[:, None]
    x = f32(clean + U(R, .5, .8) * R.standard_normal(clean.shape)); c = f32(clean); s.x, s.y, s.xe, s.ye, s.xt, s.yt = x[:3000], c[:3000], x[3000:3500], c[3000:3500], x[3500:], c[3500:]
    s.bs, s.mom, s.lr, s.steps = C(R, 32, 64), mom or U(R, .05, .2), 5e-3, steps or I(R, 220, 320); s.net = dict(w=I(R, 12, 20), depth=I(R, 2, 3), momentum=s.mom); s.model = Denoise(ch, **s.net)
    if fit_now: s.fit(loss=F.mse_loss)
    return s


def friedman(R, mom=None, bs=None, steps=None, fit_now=True, input_bn=True, **kw):
    from sklearn.datasets import make_friedman1
    s = G(R, "friedman"); s.metric = r2; X, y = make_friedman1(9000, I(R, 6, 15), noise=1.0, random_state=I(R, 0, 10 ** 6)); X = X * np.exp(R.normal(0, 1, X.shape[1])) + R.normal(0, 2, X.shape[1]); y = (y - 14.4) / 5
    x, y = f32(X), f32(y)[:, None]; s.x, s.y, s.xe, s.ye, s.xt, s.yt = x[:4000], y[:4000], x[4000:4500], y[4000:4500], x[4500:], y[4500:]
    s.bs, s.mom, s.lr, s.steps = bs or C(R, 32, 64), mom or U(R, .05, .2), 4e-3, steps or I(R, 600, 800); s.net = dict(width=I(R, 32, 64), depth=I(R, 2, 3), momentum=s.mom, input_bn=input_bn, **kw); s.model = MLP(x.shape[1], 1, **s.net)
    if fit_now: s.fit(loss=F.mse_loss)
    return s
