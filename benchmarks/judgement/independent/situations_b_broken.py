"""Broken: batches, padding, merged / pruned / quantised weights, modes, shards, shifts at evaluation."""
from base import *
SITUATIONS, situation = registry()
B = "broken"


def gain_escalate(T, R, apply, levels, fix, test=None, need=0.045):
    if not hasattr(T, "xe"): T.split_eval()
    for lv in levels[I(R, 0, len(levels) // 2):]:
        m = copy.deepcopy(T.model); m = apply(m, lv) or m; te = test(lv) if test else T.test()
        if evaluate(fix(m, lv), te) - evaluate(m, te) > need: break
    return m, lv


def tuned(T, steps=150, lr=1e-3, bs=64):
    """Oracle: pooled statistics, then brief training with the statistics fixed."""
    def f(model):
        m = recal(model, T.loader_used)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            fit(m, T.x, T.y, np.random.default_rng(0), bs=bs, steps=steps, lr=lr, mode=False)
        return m.eval()
    return f


# ---- small and sorted batches
@situation("batch_of_two_tabular", B, "small_batches")
def _(R):
    T = Task(R, "tabular", bs=2, steps=I(R, 1200, 1800), depth=I(R, 3, 4)); T.lr = 1.5e-3; T.fit(); T.loader_used = T.loader(n=600)
    return T.out("trained with batches of two: batch normalisation in training differs in nature from evaluation", oracle=tuned(T), loader=T.loader_used)


@situation("batch_of_four_noisy_stats", B, "small_batches")
def _(R):
    T = Task(R, "tabular", bs=C(R, 3, 4), mom=U(R, 0.6, 0.9), steps=I(R, 800, 1000), depth=I(R, 4, 5), data=dict(sep=2.3)); T.lr = 1.5e-3; T.fit(); T.loader_used = T.loader(n=500)
    return T.out("batches of 3-4 and a momentum of 0.6-0.9: buffers are an average over a few samples", oracle="recal", loader=T.loader_used)


@situation("small_batch_gap_features_1x1", B, "small_batches")
def _(R):
    T = Task(R, "signals", bs=2, steps=I(R, 500, 700), mom=0.1, depth=3, style="plain")
    m = T.model; c = m.head.in_features; w = I(R, 32, 64)
    m.head = nn.Sequential(nn.Linear(c, w), nn.BatchNorm1d(w, momentum=U(R, .1, .3)), nn.ReLU(), nn.Linear(w, w), nn.BatchNorm1d(w, momentum=.2), nn.ReLU(), nn.Linear(w, T.k))
    T.lr = 1.5e-3; T.fit(); T.loader_used = T.loader(n=500)
    return T.out("batches of two with batch norm on pooled vectors in the head", oracle=tuned(T), loader=T.loader_used)


@situation("sorted_last_pass", B, "class_sorted")
def _(R):
    T = Task(R, C(R, "fmnist", "digits"), mom=U(R, .08, .3)); T.fit(); T.split_eval(); i = torch.argsort(T.y, stable=True)
    L = batches(T.x[i], T.y[i], T.bs)
    T.model.train()
    with torch.no_grad():
        for a, _ in L: T.model(a)
    return T.out("a pass over the class-sorted data set in train mode (feature extraction) came last: buffers are those of the last class", oracle="recal", loader=L)


@situation("sorted_update_bn_first_batches", B, "class_sorted")
def _(R):
    T = Task(R, C(R, "fmnist", "digits")); T.fit(); T.split_eval(); i = torch.argsort(T.y, stable=True)
    L = batches(T.x[i], T.y[i], T.bs); n = I(R, 2, 5); T.model = recal(T.model, L[:n], as_is=True)
    return T.out(f"update_bn over the first {n} batches of a class-sorted loader: statistics of one class", oracle="recal", loader=L)


@situation("pk_sampler_two_classes", B, "class_sorted")
def _(R):
    T = Task(R, "fmnist", bs=32, mom=U(R, .1, .3)); idx = [torch.nonzero(T.y == c)[:, 0].numpy() for c in range(10)]
    T.split_eval()
    sampler = lambda s: np.concatenate([idx[c][R.integers(len(idx[c]), size=16)] for c in R.choice(10, 2, replace=False)])
    T.fit(sampler=sampler); T.loader_used = [(T.x[j], T.y[j]) for j in (torch.as_tensor(sampler(0)) for _ in range(60))]
    return T.out("P x K sampler with two classes a batch: batch statistics tell the classes, the buffers those of recent classes", oracle=tuned(T, 120, 2e-3), loader=T.loader_used)


# ---- weights moved without the statistics
@situation("swa_without_update_bn", B, "averaged_weights")
def _(R):
    from torch.optim.swa_utils import AveragedModel
    T = Task(R, C(R, "fmnist", "digits"), depth=4, style=C(R, "plain", "post", "dw")); T.fit(steps=40, decay=False)
    sw = AveragedModel(T.model); lr = LU(R, .01, .025)
    T.fit(steps=I(R, 150, 220), lr=lr, decay=False, after=lambda s: sw.update_parameters(T.model) if s % 12 == 11 else None)
    return T.out("stochastic weight averaging (torch AveragedModel), update_bn not called", model=sw.module, oracle="recal")


@situation("ema_teacher_without_buffers", B, "ema_without_buffers")
def _(R):
    T = Task(R, "digits"); E = copy.deepcopy(T.model); d = U(R, .9, .97)
    def after(s):
        with torch.no_grad():
            for p, q in zip(E.parameters(), T.model.parameters()): p.lerp_(q, 1 - d)
    T.fit(after=after)
    return T.out("mean-teacher: exponential average of parameters only; the teacher's buffers are those of initialisation", model=E, oracle="recal")


@situation("ema_teacher_early_buffers", B, "ema_without_buffers")
def _(R):
    T = Task(R, "textures", depth=4); T.fit(steps=I(R, 5, 15), decay=False); E = copy.deepcopy(T.model); d = U(R, .9, .97)
    def after(s):
        with torch.no_grad():
            for p, q in zip(E.parameters(), T.model.parameters()): p.lerp_(q, 1 - d)
    T.fit(after=after)
    return T.out("teacher copied a few steps into training, then only its parameters follow", model=E, oracle="recal")


@situation("model_soup_base_buffers", B, "merged_weights")
def _(R):
    T = Task(R, C(R, "fmnist", "digits"), depth=4, style=C(R, "plain", "post"), steps=110); T.fit(steps=I(R, 25, 40), decay=False); base = T.model; ms = []
    for _ in range(2):
        m = copy.deepcopy(base); T.fit(m, lr=LU(R, .008, .015)); ms.append(m)
    E = copy.deepcopy(base); w = U(R, .4, .6)
    with torch.no_grad():
        for p, q, r in zip(E.parameters(), ms[0].parameters(), ms[1].parameters()): p.copy_(torch.lerp(q, r, w))
    return T.out("parameters of two fine-tuned models merged into the base checkpoint, whose buffers were kept", model=E, oracle="recal")


@situation("federated_average", B, "federated")
def _(R):
    T = Task(R, "fmnist", bs=32, depth=3, style=C(R, "plain", "dw", "post")); T.split_eval(); n = I(R, 4, 5); o = R.permutation(np.linspace(-1, 1, n)) * U(R, 2.5, 4); g = np.exp(R.uniform(-.3, .3, n))
    sc = lambda x, c: x * f32(g)[c][:, None, None, None] + f32(o)[c][:, None, None, None]
    c = R.integers(n, size=len(T.x)); T.x = sc(T.x, t(c)); T.xt = sc(T.xt, t(R.integers(n, size=len(T.xt)))); T.xe = sc(T.xe, t(R.integers(n, size=len(T.xe))))
    own = [np.nonzero(c == r)[0] for r in range(n)]
    for r in range(I(R, 7, 9)):
        ms = []
        for q in range(n):
            m = copy.deepcopy(T.model); T.fit(m, steps=8, lr=3e-3, decay=False, sampler=lambda s: own[q][R.integers(len(own[q]), size=32)]); ms.append(m)
        with torch.no_grad():
            for k, v in T.model.state_dict().items():
                if v.is_floating_point(): v.copy_(sum(m.state_dict()[k] for m in ms) / n)
    T.loader_used = T.loader(64)
    return T.out("federated averaging over clients whose inputs differ in offset and gain: every client normalised by its own batches, the averaged variances miss the spread between clients", oracle=tuned(T, 100, 2e-3), loader=T.loader_used)


@situation("federated_one_clients_buffers", B, "federated")
def _(R):
    T = Task(R, "signals", bs=32); T.split_eval(); n = 4; gs = np.exp(R.uniform(-.5, 1.2, n)); bs_ = R.uniform(-1.5, 1.5, n)
    site = R.integers(n, size=len(T.x)); sc = lambda x, s: x * f32(gs)[s][:, None, None] + f32(bs_)[s][:, None, None]
    T.x = sc(T.x, t(site)); T.xt = sc(T.xt, t(R.integers(n, size=len(T.xt)))); T.xe = sc(T.xe, t(R.integers(n, size=len(T.xe))))
    T.fit()
    g = int(np.argmax(np.abs(np.log(gs)) + np.abs(bs_))); own = torch.as_tensor(site == g); own = T.x[own]
    T.model = recal(T.model, [(own, None)])
    return T.out("FedBN-like client kept local batch norm buffers (one site's gain and offset); the global model is judged on all sites", oracle="recal")


def prune(m, q):
    with torch.no_grad():
        for x in m.modules():
            if isinstance(x, (nn.Conv2d, nn.Conv1d, nn.Linear)) and x.weight[0].numel() > 9:
                w = x.weight; w[w.abs() <= w.abs().flatten().kthvalue(max(1, int(q * w.numel())))[0]] = 0


def quant(m, b):
    with torch.no_grad():
        for x in m.modules():
            if isinstance(x, (nn.Conv2d, nn.Conv1d, nn.Linear)):
                w = x.weight; s = w.abs().max() / (2 ** (b - 1) - 1 if b > 1.5 else 1)
                if b < 2: w.copy_(torch.sign(w) * (w.abs() > .7 * w.abs().mean()) * w.abs().mean())
                else: w.copy_((w / s).round() * s)


def moved(R, dom, f, levels, notes, **k):
    T = Task(R, dom, **k); T.fit(); ld = T.loader()
    m, lv = gain_escalate(T, R, f, levels, lambda m, lv: recal(m, ld))
    d = T.out(f"{notes} (level {lv})", model=m, oracle="recal", loader=ld); d["params"]["level"] = lv
    return d
PR = [.4, .5, .55, .6, .65, .7, .75, .8, .85, .9]
@situation("pruned_fmnist", B, "pruned")
def _(R): return moved(R, "fmnist", prune, PR, "magnitude pruning without recalibration", depth=4)
@situation("pruned_tabular", B, "pruned")
def _(R): return moved(R, "tabular", prune, PR, "magnitude pruning without recalibration", depth=4, style="plain")
@situation("quantised_digits", B, "quantised")
def _(R): return moved(R, "digits", quant, [4, 3, 2, 1], "weights rounded to few bits without recalibration", depth=4)
@situation("quantised_signals", B, "quantised")
def _(R): return moved(R, "signals", quant, [4, 3, 2, 1], "weights rounded to few bits without recalibration", depth=4, style=C(R, "plain", "dw", "res"))


@situation("channels_zeroed_filter_pruning", B, "pruned")
def _(R):
    def f(m, q):
        with torch.no_grad():
            for blk in m.features:
                if isinstance(blk, Block):
                    w = blk.conv.weight.flatten(1).norm(dim=1); k = torch.argsort(w)[:int(q * len(w))]
                    blk.conv.weight[k] = 0
    return moved(R, "textures", f, [.2, .3, .4, .5, .6, .7], "whole filters set to zero, their (and the next layers') statistics kept", style="plain", depth=4)


# ---- padding
class SeqNet(nn.Module):
    def __init__(s, V, k, w, depth, emb=16, masked=True, **bn):
        super().__init__(); s.emb = nn.Embedding(V, emb, padding_idx=0); L = []; c = emb
        for _ in range(depth): L += [nn.Conv1d(c, w, 3, padding=1), nn.BatchNorm1d(w, **bn), nn.ReLU()]; c = w
        s.body, s.head, s.masked = nn.Sequential(*L), nn.Linear(w, k), masked
    def forward(s, x):
        h = s.body(s.emb(x).transpose(1, 2)); k = (x != 0).float()[:, None]
        return s.head((h * k).sum(2) / k.sum(2).clamp(min=1) if s.masked else h.mean(2))


def seqs(R, n, k, L, V, side="right", long_tail=True, key=None):
    y = R.integers(k, size=n); ln = np.clip((R.pareto(1.5, n) * 6 + 8) if long_tail else R.integers(8, L, n), 8, L).astype(int)
    x = np.zeros((n, L), np.int64)
    for i in range(n):
        s = R.integers(1, V, ln[i]); j = int(R.integers(0, ln[i] - 3)); s[j:j + 2] = key[y[i]]
        if R.uniform() < .5:
            j = int(R.integers(0, ln[i] - 3)); s[j:j + 2] = key[y[i]]
        if side == "right": x[i, :ln[i]] = s
        else: x[i, L - ln[i]:] = s
    return t(x), t(y).long(), ln


class SeqTask(Task):
    def __init__(s, R, side="right", mom=None, L=None, depth=2):
        s.R, s.dom, s.k, s.L = R, "tokens_" + side, I(R, 3, 5), L or I(R, 36, 48); V = I(R, 14, 24)
        key = np.stack([R.permutation(V - 1)[:2] + 1 for _ in range(s.k)])
        s.x, s.y, s.ln = seqs(R, 4000, s.k, s.L, V, side, key=key); s.xt, s.yt, s.lnt = seqs(R, 3500, s.k, s.L, V, side, key=key)
        s.bs, s.mom, s.steps, s.lr, s.metric = C(R, 32, 64), mom or LU(R, .05, .2), I(R, 280, 380), LU(R, 4e-3, 8e-3), acc
        s.net = dict(momentum=s.mom, w=I(R, 24, 40), depth=depth, emb=I(R, 12, 20)); s.model = SeqNet(V, s.k, **s.net); s.side = side
    def trim(s, x):
        n = int((x != 0).sum(1).max()); return x[:, :n] if s.side == "right" else x[:, s.L - n:]
    def bucket(s, x, y, ln, bs):
        i = torch.as_tensor(np.argsort(ln + s.R.uniform(0, 1, len(ln)))); b = [(s.trim(x[j]), y[j]) for j in i.split(bs) if len(j) == bs]
        return [b[q] for q in s.R.permutation(len(b))]


def seq_fit(T, bl):
    o = torch.optim.Adam(T.model.parameters(), T.lr); T.model.train()
    for s in range(T.steps):
        x, y = bl[int(T.R.integers(len(bl)))]; o.param_groups[0]["lr"] = T.lr * (1 - .95 * s / T.steps)
        o.zero_grad(); ce(T.model(x), y).backward(); o.step()


def padded(R, side):
    T = SeqTask(R, side, mom=U(R, .15, .3)); e = T.model.emb; T.model.emb = nn.Embedding(e.num_embeddings, e.embedding_dim); T.model.emb.weight.data[0] *= U(R, 1.5, 2.5); T.split_eval(); T.lnt = T.lnt[500:]
    bl = T.bucket(T.x, T.y, T.ln, T.bs); seq_fit(T, bl); extra = I(R, 5 * T.L, 9 * T.L)
    z = torch.zeros(32, extra, dtype=torch.long)
    T.model.train()
    with torch.no_grad():
        for a, _ in batches(T.x, T.y, 32, R)[:I(R, 20, 30)]: T.model(torch.cat([a, z], 1) if side == "right" else torch.cat([z, a], 1))
    return T.out(f"trained on length-bucketed batches; a last pass in train mode padded every sequence ({side}) to a long fixed length, padding counted in the statistics", oracle=recal_on(bl, as_is=True), loader=bl)
@situation("padding_right_fixed_length_pass", B, "padding")
def _(R): return padded(R, "right")
@situation("padding_left_fixed_length_pass", B, "padding")
def _(R): return padded(R, "left")


@situation("letterboxed_images_canvas", B, "padding")
def _(R):
    T = Task(R, "fmnist", head="gap"); T.split_eval(); m = T.model
    class Crop(nn.Module):
        """Pools only over the 14 x 14 content at the top left."""
        def __init__(s, net): super().__init__(); s.net = net
        def forward(s, x):
            h = s.net.features(x); return s.net.head(s.net.drop(h[:, :, :3, :3].flatten(2).mean(2)))
    T.model = Crop(m); pv = U(R, -1.0, 1.5); T.fit(); c = I(R, 28, 40); T.model.train()
    for b in bns(T.model): b.momentum = max(b.momentum, .1)
    with torch.no_grad():
        for a, _ in batches(T.x, T.y, 64, R)[:30]: T.model(F.pad(a, (0, c - 14, 0, c - 14), value=pv))
    return T.out("statistics updated on images pasted in a large constant canvas (collated with padding), 2-D padding counted", oracle="recal")


# ---- dropout, augmentation
@situation("dropout_before_bn", B, "dropout_variance_shift")
def _(R):
    T = Task(R, "tabular", drop=U(R, .7, .8), depth=5, width=I(R, 64, 96), style="plain", steps=I(R, 600, 700), data=dict(sep=2.3)); T.fit()
    return T.out("heavy dropout before each linear layer and its batch norm: the stored variance includes dropout noise", oracle="recal")


@situation("dropout_before_bn_regression", B, "dropout_variance_shift")
def _(R):
    from special import friedman
    s = friedman(R, drop=U(R, .65, .78), style="plain"); return s.out("dropout before batch norm in a regression net: variance shift scales the output", oracle="recal")


@situation("statistics_under_augmentation", B, "augmented_statistics")
def _(R):
    T = Task(R, "fmnist", mom=.1); s = U(R, .8, 1.5); g = U(R, .5, 1)
    T.fit(steps=T.steps); T.split_eval()
    aug = lambda x: x * torch.exp(g * torch.randn(len(x), 1, 1, 1)) + s * torch.randn_like(x)
    T.model = recal(T.model, [(aug(a), b) for a, b in T.loader()])
    return T.out("update_bn run over the loader with a much stronger augmentation (noise, contrast) than evaluation's", oracle="recal")


# ---- modes
class KeepBN(nn.Module):
    def __init__(s, net): super().__init__(); s.net = net
    def train(s, mode=True):
        super().train(mode)
        for b in bns(s): nn.Module.train(b, True)
        return s
    def forward(s, x): return s.net(x)


def unwrap(ld):
    def f(m): return recal(m.net, ld)
    return f


@situation("left_in_train_small_eval_batches", B, "left_in_train_mode")
def _(R):
    T = Task(R, "tabular"); T.fit(); T.split_eval(); ld = T.loader(); b = C(R, 2, 3, 4)
    return T.out("train() is overridden so that batch norm stays in train mode; served with batches of 2-4", model=KeepBN(T.model), oracle=unwrap(ld), loader=ld, test_loader=T.test(b), eval_loader=T.eval_loader(b))


@situation("left_in_train_sorted_eval", B, "left_in_train_mode")
def _(R):
    T = Task(R, "fmnist"); T.fit(); T.split_eval(); ld = T.loader(); i = torch.argsort(T.yt); j = torch.argsort(T.ye)
    return T.out("batch norm stays in train mode at evaluation and the evaluation set is sorted by class", model=KeepBN(T.model), oracle=unwrap(ld), loader=ld, test_loader=batches(T.xt[i], T.yt[i], 50), eval_loader=batches(T.xe[j], T.ye[j], 50))


@situation("no_tracking_served_singly", B, "no_running_statistics")
def _(R):
    T = Task(R, C(R, "textures", "signals"), track_running_stats=False, style="plain"); T.fit(); T.split_eval(); ld = T.loader(); b = C(R, 1, 2); n = 2000
    def orc(m):
        m = copy.deepcopy(m)
        for x in bns(m):
            x.track_running_stats = True
            x.register_buffer("running_mean", torch.zeros(x.num_features)); x.register_buffer("running_var", torch.ones(x.num_features)); x.register_buffer("num_batches_tracked", torch.tensor(0))
        return recal(m, ld)
    i = torch.argsort(T.yt[:n], stable=True)
    return T.out("track_running_stats=False, evaluated one or two (sorted) samples at a time", oracle=orc, loader=ld, test_loader=batches(T.xt[i], T.yt[i], b), eval_loader=T.eval_loader(b))


# ---- shards
@situation("ddp_rank0_buffers", B, "shard_statistics")
def _(R):
    T = Task(R, "fmnist", bs=24, steps=110); T.split_eval(); n = 3; g = R.permutation(np.array([1.0, U(R, .3, .5), U(R, 1.8, 2.5)])); o = R.permutation(np.array([0, U(R, -1.5, -.8), U(R, 1, 2)]))
    site = R.integers(n, size=len(T.x)); sc = lambda x, s: x * f32(g)[s][:, None, None, None] + f32(o)[s][:, None, None, None]
    T.x = sc(T.x, t(site)); T.xt = sc(T.xt, t(R.integers(n, size=len(T.xt)))); T.xe = sc(T.xe, t(R.integers(n, size=len(T.xe))))
    own = [np.nonzero(site == r)[0] for r in range(n)]; m = T.model.train(); opt = torch.optim.Adam(m.parameters(), T.lr)
    for s in range(T.steps):
        opt.param_groups[0]["lr"] = T.lr * (1 - .95 * s / T.steps); opt.zero_grad()
        for r in range(n):
            for b in bns(m): b.momentum = T.mom if r == 0 else 0.0
            i = torch.as_tensor(own[r][R.integers(len(own[r]), size=T.bs)]); (ce(m(T.x[i]), T.y[i]) / n).backward()
        opt.step()
    for b in bns(m): b.momentum = T.mom
    T.loader_used = T.loader(64)
    return T.out("data-parallel training, the data sharded by site; only rank 0's buffers are saved", oracle=tuned(T, 120, 2e-3), loader=T.loader_used)


# ---- evaluation inputs
def shifted(R, dom, f, levels, notes, data={}, **k):
    T = Task(R, dom, data=data, **k); T.fit(); T.split_eval(); T.split_eval(); x0, e0 = T.xt, T.xe
    tl = lambda lv: batches(f(x0, lv), T.yt, 250, drop_last=False)
    m, lv = gain_escalate(T, R, lambda m, lv: m, levels, lambda m, lv: recal(m, [(f(e0, lv), None)]), tl)
    T.xt, T.xe = f(x0, lv), f(e0, lv); el = T.eval_loader(64)
    d = T.out(f"evaluation inputs: {notes} (level {lv})", model=m, oracle=recal_on(el), eval_loader=el); d["params"]["level"] = str(lv)
    return d
@situation("eval_scaled_fmnist", B, "eval_scaled")
def _(R):
    s = C(R, -1, 1); return shifted(R, "fmnist", lambda x, v: x * (1 + v) + s * .5 * v if s > 0 else x / (1 + v) - .3 * v, [.3, .5, .8, 1.2, 2, 3], "another gain and offset than in training")
@situation("eval_not_normalised_tabular", B, "eval_scaled")
def _(R):
    g = torch.exp(torch.randn(1, 20) * .5); o = torch.randn(1, 20)
    return shifted(R, "tabular", lambda x, v: x * (1 + (g - 1) * v) + o * v * .6, [.4, .6, .8, 1, 1.5, 2], "columns standardised with other constants than in training", data=dict(d=20, scale=False))
@situation("eval_inverted_digits", B, "eval_inverted")
def _(R):
    T = Task(R, C(R, "digits", "fmnist")); T.fit(); T.split_eval(); w = U(R, 2.0, 3.0); inv = lambda x: w - x; T.xt, T.xe = inv(T.xt), inv(T.xe)
    class Pre(nn.Module):
        def __init__(s, net): super().__init__(); s.net = net
        def forward(s, x): return s.net(w - x)
    return T.out("evaluation images are inverted (black on white); statistics help little, the repaired copy inverts its input back", oracle=lambda m: Pre(copy.deepcopy(m)).eval(), eval_loader=T.eval_loader(64))
@situation("eval_blurred_textures", B, "eval_blurred")
def _(R):
    def blur(x, v):
        k = torch.tensor([v, 1, v]) / (1 + 2 * v); w = (k[:, None] * k[None])[None, None].expand(x.shape[1], 1, 3, 3); return F.conv2d(F.pad(x, (1,) * 4, mode="replicate"), w, groups=x.shape[1])
    return shifted(R, "textures", lambda x, v: blur(blur(blur(x, min(v, 1)), min(v, 1)), min(v, 1)) if v > .5 else blur(x, v), [.3, .5, .7, 1.0, 1.5], "blurred images", data=dict(noise=1.5))
@situation("eval_noisy_fmnist", B, "eval_noisy")
def _(R):
    n = {}
    def f(x, v):
        if len(x) not in n: n[len(x)] = torch.randn(x.shape)
        return x + v * n[len(x)]
    return shifted(R, "fmnist", f, [.3, .5, .7, 1.0, 1.4], "additive noise")
@situation("eval_larger_size", B, "eval_other_size")
def _(R): return shifted(R, "digits", lambda x, v: F.interpolate(x, size=v, mode="bilinear", align_corners=False), [16, 18, 20, 22, 24, 28], "resized to a larger input size than in training", data=dict(size=12), depth=3)
@situation("eval_drift_signals", B, "eval_sensor_drift")
def _(R):
    a = I(R, 0, 1)
    return shifted(R, "signals", lambda x, v: x + v * torch.linspace(-1 if a else 0, 1.5, x.shape[-1]), [.5, .8, 1.2, 1.8, 2.5, 4], "sensor drift added (a ramp)")


@situation("class_prior_of_statistics", B, "class_prior")
def _(R):
    T = Task(R, C(R, "digits", "fmnist")); T.fit(); T.split_eval(); c = R.choice(10, 1)
    p = np.where(np.isin(T.y.numpy(), c), U(R, 60, 150), 1.0); i = torch.as_tensor(R.choice(len(T.x), 3000, p=p / p.sum())); L = batches(T.x[i], T.y[i], 64)
    T.model = recal(T.model, L)
    ld = T.loader()
    return T.out("trained with a balanced sampler; update_bn used the raw, strongly imbalanced stream; evaluation is balanced", oracle=recal_on(T.eval_loader(64)), loader=L, eval_loader=T.eval_loader(64))


# ---- trained with stored statistics (traps) and frozen backbones
def stored(R, how):
    T = Task(R, C(R, "fmnist", "digits"), style=C(R, "plain", "dw", "post"), depth=3); T.split_eval(); g, o = U(R, 2.5, 4.0) ** C(R, -1, 1, 1), U(R, 1.5, 3.0) * C(R, -1, 1)
    T.fit(steps=I(R, 10, 20), x=T.x * g + o, decay=False); T.fit(steps=int(T.steps * 1.2), mode=False); good = copy.deepcopy(T.model).eval(); m = T.model
    if how == "reset":
        for b in bns(m): b.reset_running_stats()
    elif how == "recal": m = T.model = recal(m, T.loader())
    else:
        m.train()
        with torch.no_grad():
            for a, _ in T.loader(64)[:I(R, 20, 40)]: m(a)
    return T, good, m
@situation("stored_then_recalibrated", B, "trained_with_stored_then_recalibrated")
def _(R):
    T, good, m = stored(R, "recal")
    return T.out("fine-tuned with the stored statistics of pre-training (BN in eval), then recalibrated on the target data, which the weights do not expect", model=m, oracle=restore(good))
@situation("stored_then_reset", B, "trained_with_stored_then_reset")
def _(R):
    T, good, m = stored(R, "reset")
    return T.out("fine-tuned with stored statistics, then reset_running_stats was called; only the original buffers help", model=m, oracle=restore(good))
@situation("stored_then_train_mode_passes", B, "trained_with_stored_then_recalibrated")
def _(R):
    T, good, m = stored(R, "train")
    return T.out("fine-tuned with frozen statistics, then some passes in train mode moved the buffers", model=m, oracle=restore(good))
@situation("eval_mode_from_scratch_then_recalibrated", B, "trained_with_stored_then_recalibrated")
def _(R):
    T = Task(R, C(R, "tabular", "signals"), style="plain", **{}); T.split_eval(); T.x, T.xe, T.xt = [v * 1.0 for v in (T.x, T.xe, T.xt)]
    T.fit(mode=False, steps=int(T.steps * 1.3)); good = copy.deepcopy(T.model).eval(); T.model = recal(T.model, T.loader())
    return T.out("never called train(): learnt with statistics 0 and 1 throughout, then somebody recalibrated", oracle=restore(good))


@situation("frozen_backbone_statistics_moved", B, "frozen_weights_moving_statistics")
def _(R):
    T = Task(R, "fmnist", mom=U(R, .05, .2)); T.fit(); T.split_eval(); m = T.model; g, o = U(R, 1.5, 2.5), U(R, .8, 1.5)
    for p in m.parameters(): p.requires_grad_(False)
    h2 = nn.Linear(m.head.in_features, 10); op = torch.optim.Adam(h2.parameters(), 5e-3); m.train()
    for s in range(60):
        i = torch.as_tensor(R.integers(0, len(T.x), 64)); op.zero_grad(); ce(h2(m.feats(-g * T.x[i] + o)), T.y[i]).backward(); op.step()
    return T.out("requires_grad=False on the backbone but train() during training of a second head on other data: the first task's statistics moved", oracle="recal")


# ---- shared layers
@situation("bn_shared_over_depth", B, "shared_layer")
def _(R):
    n = I(R, 4, 6); q = U(R, 2.5, 3.5); T = Task(R, "tabular", width=I(R, 40, 64), depth=1); w = T.net["width"]
    class Rec(nn.Module):
        def __init__(s): super().__init__(); s.inp = nn.Linear(T.x.shape[1], w); s.bn0 = nn.BatchNorm1d(w); s.lin = nn.Linear(w, w); s.bn = nn.BatchNorm1d(w, momentum=T.mom); s.out = nn.Linear(w, T.k); s.n = n
        def forward(s, x):
            h = torch.relu(s.bn0(s.inp(x)))
            for _ in range(s.n): h = torch.relu(h + s.bn(s.lin(h)) * q)
            return s.out(h)
    class Unrolled(nn.Module):
        def __init__(s, m): super().__init__(); s.m = copy.deepcopy(m); s.bs = nn.ModuleList(copy.deepcopy(m.bn) for _ in range(m.n))
        def forward(s, x):
            m = s.m; h = torch.relu(m.bn0(m.inp(x)))
            for b in s.bs: h = torch.relu(h + b(m.lin(h)) * q)
            return m.out(h)
    T.model = Rec(); T.fit(); ld = T.loader()
    return T.out("one batch norm layer applied several times in a forward pass (recurrent weights); its buffers mix the steps", oracle=lambda m: recal(Unrolled(m), ld), loader=ld)
