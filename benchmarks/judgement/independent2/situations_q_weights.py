"""Broken: weights moved without the statistics; other batches in the same layers."""
from situations_p_buffers import *
SITUATIONS, situation = registry()
B = "broken"


def moved(J, R, f, levels, notes, need=.05, **k):
    ld = J.loader(); J.model, lv = worsen(J, R, f, levels, lambda m, l: recal(m, ld), need); return J.out(f"{notes} (level {lv})", oracle="recal", loader=ld, **k)


@situation("tail_average_including_buffers", B, "averaged_weights")
def _(R):
    J = vis(R, C(R, "garments", "shapes"), net=Mobile); J.fit(steps=50, decay=False); E = copy.deepcopy(J.model); n = [1]; lr = LU(R, .025, .045)
    def after(i):
        if i % 10 == 9:
            n[0] += 1
            with torch.no_grad():
                for p, q in zip(E.state_dict().values(), J.model.state_dict().values()): p.lerp_(q, 1 / n[0]) if p.is_floating_point() else p.copy_(q)
    J.fit(steps=I(R, 140, 190), lr=lr, decay=False, after=after); return J.out("weights of many checkpoints at a high rate averaged, their buffers too: averaged statistics are not those of averaged weights", model=E, oracle="recal")


class UNet1(nn.Module):
    def __init__(s, ch=1, w=12, **bn): super().__init__(); c = lambda a, b: cbn(a, b, 5, nd=1, a="silu", **bn); s.a, s.b, s.c, s.o = c(ch, w), c(w, 2 * w), c(3 * w, w), nn.Conv1d(w, ch, 3, padding=1); s.dn, s.up = nn.AvgPool1d(2), nn.Upsample(scale_factor=2)
    def forward(s, x): a = s.a(x); return s.o(s.c(torch.cat([a, s.up(s.b(s.dn(a)))], 1)))


def noisy_beats(R, **k):
    """Clean pulses to be found in noise of many levels (a diffusion-like denoiser)."""
    x, y, xt, yt, _ = beats(R, 2600, 3600, ch=1, noise=1e-3); n = lambda c: c + torch.randn_like(c) * torch.exp(torch.empty(len(c), 1, 1).uniform_(-1.5, .2)); J = Job(R, (n(x), x, n(xt), xt, 1), lambda **b: UNet1(**b), loss=F.mse_loss, metric=r2, w=I(R, 8, 14), **k); J.steps = k.get("steps", I(R, 130, 190)); return J
def follow(J, E, d, what="parameters"):
    def after(i):
        with torch.no_grad():
            for p, q in zip(getattr(E, what)(), getattr(J.model, what)()): p.lerp_(q, 1 - d) if p.is_floating_point() else p.copy_(q)
    return after
@situation("diffusion_denoiser_ema", B, "ema_without_buffers")
def _(R): J = noisy_beats(R); J.fit(steps=I(R, 3, 8), decay=False); E = copy.deepcopy(J.model); J.fit(after=follow(J, E, U(R, .9, .97))); return J.out("the averaged denoiser follows the parameters, its buffers are of the first steps; judged by R2", model=E, oracle="recal")


@situation("task_vector_scaled", B, "merged_weights", blind="inputs")
def _(R):
    J = vis(R, "garments", C(R, VGG, PreRes)); J.fit(x=-J.x, steps=60, decay=False); b = [p.data.clone() for p in J.model.parameters()]; J.good()
    def f(m, q):
        with torch.no_grad():
            for p, o in zip(m.parameters(), b): p.add_(q * (p - o))
    return moved(J, R, f, [.3, .5, .7, 1., 1.5, 2.], "task arithmetic: the fine-tuning step was scaled up, the buffers belong to the plain step")
@situation("fedavg_parameters_only", B, "federated")
def _(R):
    J = sig(R, "motion", C(R, PreRes, VGG)); n = I(R, 3, 5); own = np.array_split(R.permutation(len(J.x)), n)
    for r in range(I(R, 7, 9)):
        ms = []
        for q in range(n): m = copy.deepcopy(J.model); J.fit(m, steps=7, lr=4e-3, decay=False, pick=lambda s: R.choice(own[q], 40)); ms.append(m)
        with torch.no_grad():
            for ps in zip(J.model.parameters(), *[m.parameters() for m in ms]): ps[0].copy_(sum(ps[1:]) / n)
    return J.out("federated averaging sends trainable parameters only; the server's buffers are those of initialisation", oracle="recal")


@situation("n_of_m_pruning", B, "pruned")
def _(R):
    J = vis(R, "garments", C(R, Dense, Branches)); J.good()
    def f(m, nm):
        with torch.no_grad():
            for c in convs(m)[1:-1]:
                w = c.weight; v = w.flatten(); g = v[:len(v) // nm[1] * nm[1]].reshape(-1, nm[1]); k = g.abs().argsort(1)[:, :nm[1] - nm[0]]; g.scatter_(1, k, 0.); v[:g.numel()] = g.flatten()
    return moved(J, R, f, [(2, 4), (1, 3), (1, 4), (1, 5), (1, 6), (1, 8)], "n of m weights kept in every group (structured sparsity) without new statistics")
@situation("low_rank_factorised", B, "low_rank", blind="nothing")
def _(R):
    J = tab(R, net=mlp, n=3, a=C(R, "relu", "gelu"), w=I(R, 48, 64)) if R.uniform() < .5 else vis(R, "garments", VGG, bias=False); J.good()
    def f(m, q):
        with torch.no_grad():
            for c in convs(m)[1:-1]:
                u, s, v = torch.linalg.svd(c.weight.flatten(1), full_matrices=False); r = max(1, int(q * len(s))); c.weight.copy_(((u[:, :r] * s[:r]) @ v[:r]).reshape(c.weight.shape))
    return moved(J, R, f, [.5, .4, .3, .2, .15, .1, .05], "weights replaced by a truncated singular value decomposition")
@situation("weight_codebook", B, "quantised")
def _(R):
    J = vis(R, C(R, "garments", "digits"), C(R, VGG, Mobile)); J.good()
    def f(m, k):
        with torch.no_grad():
            for c in convs(m)[:-1]:
                w = c.weight.flatten(); q = torch.quantile(w, (torch.arange(k) + .5) / k); c.weight.copy_(q[(w[:, None] - q).abs().argmin(1)].reshape(c.weight.shape))
    return moved(J, R, f, [16, 12, 8, 6, 5, 4, 3, 2], "weights shared through a codebook of a few values a layer")
@situation("residual_blocks_removed", B, "layers_removed")
def _(R):
    J = vis(R, C(R, "garments", "shapes"), PreRes, blocks=4, stride=2); J.good(); order = R.permutation(4)
    def f(m, q):
        m.blocks = nn.Sequential(*[b for i, b in enumerate(m.blocks) if i not in order[:q]])
    return moved(J, R, f, [1, 2, 3, 4], "residual blocks were removed for speed, later layers keep their statistics", need=.06)
@situation("pooling_replaced", B, "layer_replaced")
def _(R):
    J = vis(R, C(R, "garments", "shapes"), VGG); J.good()
    def f(m, q):
        for i, x in enumerate(m.body):
            if isinstance(x, nn.MaxPool2d) and (q == "both" or i == {"first": 1, "second": 4}[q]): m.body[i] = nn.AvgPool2d(2)
    return moved(J, R, f, ["first", "second", "both"], "max pooling was replaced by average pooling for an accelerator, statistics kept")
@situation("max_norm_at_export", B, "weights_rescaled")
def _(R):
    J = sig(R, net=C(R, VGG, Branches)) if R.uniform() < .5 else vis(R, "garments", C(R, VGG, Branches)); J.good()
    def f(m, q):
        with torch.no_grad():
            for c in convs(m)[:-1]: n = c.weight.flatten(1).norm(dim=1); k = (q * n.median() / n).clamp(max=1); c.weight.mul_(k.reshape(-1, *[1] * (c.weight.dim() - 1)))
    return moved(J, R, f, [.8, .65, .5, .4, .3, .2], "a max-norm constraint was applied to filters at export: their scale fell, running statistics did not")


class Slim(nn.Module):
    """Slimmable net: only the first part of every layer's channels is on."""
    def __init__(s, ci, k, w=16, **bn): super().__init__(); s.L, s.fc, s.frac = nn.ModuleList([cbn(ci, w, **bn), cbn(w, w, **bn), cbn(w, w, **bn)]), nn.Linear(w, k), 1.0
    def forward(s, x):
        for i, l in enumerate(s.L):
            x = l(x); m = (torch.arange(x.shape[1]) < int(s.frac * x.shape[1])).float(); x = x * m[None, :, None, None]; x = F.max_pool2d(x, 2) if i < 2 else x
        return s.fc(gap(x))
@situation("slimmable_shared_statistics", B, "slimmable_widths")
def _(R):
    J = vis(R, "garments", Slim, w=C(R, 16, 20), steps=I(R, 80, 110)); m = J.model.train(); o = torch.optim.Adam(m.parameters(), J.lr); fr = C(R, (1., .25), (1., .5, .25), (1., .2))
    for i in range(J.steps):
        o.param_groups[0]["lr"] = J.lr * (1 - .95 * i / J.steps); j = torch.as_tensor(R.integers(len(J.x), size=J.bs)); o.zero_grad()
        for q in fr: m.frac = q; ce(m(J.x[j]), J.y[j]).backward()
        o.step()
    m.frac = C(R, 1.0, fr[-1]); return J.out(f"one net trained at widths {fr} with common batch norms, used at {m.frac}", oracle="recal", info=dict(widths=str(fr), used=m.frac))


# ---- other batches in the same layers
@situation("acgan_discriminator", B, "discriminator_fakes")
def _(R):
    d = digits(R, size=8); zd = I(R, 8, 16); sat = U(R, 1.0, 2.5); G = nn.Sequential(nn.Linear(zd + 10, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Linear(64, 64), nn.Tanh(), nn.Unflatten(1, (1, 8, 8))); J = Job(R, d, lambda **b: VGG(1, 11, w=12, convs=3, a="leaky", **b), steps=I(R, 110, 150), lr=4e-3, mom=U(R, .1, .3)); D = J.model.train(); nn.init.normal_(G[3].bias, sat, .5); og, od = torch.optim.Adam(G.parameters(), LU(R, 2e-5, 1e-4), betas=(.5, .99)), torch.optim.Adam(D.parameters(), J.lr, betas=(.5, .99)); fake = lambda: (lambda c: (G(torch.cat([torch.randn(J.bs, zd), F.one_hot(c, 10).float()], 1)), c))(torch.randint(10, (J.bs,)))
    for i in range(J.steps):
        od.param_groups[0]["lr"] = J.lr * (1 - .95 * i / J.steps); j = torch.as_tensor(R.integers(len(J.x), size=J.bs)); f, c = fake(); od.zero_grad(); (ce(D(J.x[j]), J.y[j]) + .5 * ce(D(f.detach()), torch.full((J.bs,), 10))).backward(); od.step(); f, c = fake(); og.zero_grad(); ce(D(f), c).backward(); og.step()
    J.metric = lambda o, b: acc(o[:, :10], b); return J.out("class-conditional GAN's discriminator (10 classes and 'generated') used as a classifier: two of three training batches were generated, by a generator that is behind and saturated", oracle="recal")
@situation("multi_task_alternating", B, "second_domain")
def _(R):
    a, b = garments(R), digits(R, size=14); go = (U(R, 1.5, 3), U(R, .5, 1.5) * sg(R))
    class Two(nn.Module):
        def __init__(s, **bn): super().__init__(); s.trunk = VGG(1, 1, w=10, **bn); s.ha, s.hb, s.task = nn.Linear(s.trunk.wo, a[4]), nn.Linear(s.trunk.wo, 10), "a"
        def forward(s, x): f = s.trunk.feats(x); return s.ha(f) if s.task == "a" else s.hb(f)
    J = Job(R, a, Two, mom=U(R, .05, .2)); m = J.model.train(); o = torch.optim.Adam(m.parameters(), J.lr)
    for i in range(J.steps):
        for t, D in (("a", a), ("b", b)):
            m.task = t; j = torch.as_tensor(R.integers(len(D[0]), size=J.bs)); x = D[0][j]; x = x if t == "a" else x * go[0] + go[1]; o.param_groups[0]["lr"] = J.lr * (1 - .95 * i / J.steps); o.zero_grad(); ce(m(x), D[1][j]).backward(); o.step()
    m.task = "a"; return J.out("two tasks on unlike images in turn through one trunk; the buffers mix both, judged on the first", oracle="recal")
@situation("continual_last_task", B, "sequential_tasks")
def _(R):
    d = motion(R); J = Job(R, d, lambda **b: PreRes(3, d[4], nd=1, blocks=3, **b), mom=U(R, .1, .2)); J.good(); g, o = f32(np.exp(R.uniform(-.8, .8, 3)))[None, :, None], f32(R.uniform(.8, 2, 3) * R.choice([-1, 1], 3))[None, :, None]
    J.fit(x=J.x * g + o, steps=I(R, 40, 70), lr=LU(R, 1e-5, 5e-5), decay=False); return J.out("later task (sensor mounted otherwise) trained with a strong pull to the old weights: they hardly moved, the statistics did; judged on the first task", oracle="recal")


class Dom(nn.Module):
    """Domain-specific statistics with a common affine part."""
    def __init__(s, c, n, nd, **bn): super().__init__(); s.b = nn.ModuleList([(nn.BatchNorm2d if nd == 2 else nn.BatchNorm1d)(c, affine=False, **bn) for _ in range(n)]); s.g, s.h, s.i = nn.Parameter(torch.ones(c)), nn.Parameter(torch.zeros(c)), 0
    def forward(s, x): q = (1, -1) + (1,) * (x.dim() - 2); return s.b[s.i](x) * s.g.view(q) + s.h.view(q)
class DomNet(nn.Module):
    def __init__(s, ci, k, w=12, n=2, nd=2, **bn):
        super().__init__(); Cv = nn.Conv2d if nd == 2 else nn.Conv1d; P = nn.MaxPool2d if nd == 2 else nn.MaxPool1d; s.f = nn.Sequential(Cv(ci, w, 3, padding=1), Dom(w, n, nd, **bn), nn.ReLU(), P(2), Cv(w, 2 * w, 3, padding=1), Dom(2 * w, n, nd, **bn), nn.ReLU(), P(2), Cv(2 * w, 2 * w, 3, padding=1), Dom(2 * w, n, nd, **bn), nn.ReLU()); s.fc = nn.Linear(2 * w, k)
    def to(s, i):
        for m in s.modules():
            if isinstance(m, Dom): m.i = i
        return s
    def forward(s, x): return s.fc(gap(s.f(x)))
def two_domains(R, g, o):
    J = vis(R, "garments", DomNet); m = J.model.train(); opt = torch.optim.Adam(m.parameters(), J.lr); n = J.steps + 30
    for i in range(n):
        opt.param_groups[0]["lr"] = J.lr * (.02 + max(0, 1 - i / J.steps)); opt.zero_grad()
        for q in (0, 1): j = torch.as_tensor(R.integers(len(J.x), size=J.bs)); x = J.x[j]; ce(m.to(q)(x * g + o if q else x), J.y[j]).backward()
        opt.step()
    J.g, J.o = g, o; return J
@situation("domain_branch_mixed_up", B, "wrong_branch")
def _(R):
    J = two_domains(R, -U(R, .8, 1.6), U(R, .5, 1.5)); J.xt, J.xe = J.xt * J.g + J.o, J.xe * J.g + J.o; J.model.to(0); el = J.eval_loader(64); return J.out("domain-specific batch norm: the second domain is evaluated with the first domain's statistics", oracle=lambda m: copy.deepcopy(m).to(1), eval_loader=el)


def grid(R, n, levels=False, clutter=.3):
    """Objects of two kinds; small ones belong to a 4 x 4 grid, big ones to a 2 x 2 grid. Target: class (0 none) per cell, 16 + 4."""
    x = clutter * R.standard_normal((n, 2, 16, 16)); y = np.zeros((n, 20), np.int64); col = np.array([[1.5, .3], [.2, 1.4]])
    for i in range(n):
        for _ in range(R.integers(1, 3)): c, a, b = R.integers(2), R.integers(4), R.integers(4); dx, dy = R.integers(0, 2, 2); x[i, :, 4 * a + dx:4 * a + dx + 3, 4 * b + dy:4 * b + dy + 3] += col[c][:, None, None]; y[i, a * 4 + b] = c + 1
        if R.uniform() < .7: c, a, b = R.integers(2), R.integers(2), R.integers(2); x[i, :, 8 * a + 1:8 * a + 7, 8 * b + 1:8 * b + 7] -= col[c][:, None, None]; y[i, 16 + a * 2 + b] = c + 1
    return f32(x), i64(y)
class FCOS(nn.Module):
    def __init__(s, w=12, own=False, **bn): super().__init__(); s.c = nn.Sequential(cbn(2, w, **bn), nn.MaxPool2d(2), cbn(w, w, **bn), nn.MaxPool2d(2), cbn(w, w, **bn)); s.p4 = nn.Conv2d(w, w, 3, 2, 1); s.h = nn.ModuleList([nn.Conv2d(w, w, 1), nn.BatchNorm2d(w, **bn)]); s.h2 = nn.ModuleList([nn.BatchNorm2d(w, **bn)]) if own else None; s.o = nn.Conv2d(w, 3, 1)
    def forward(s, x):
        p = s.c(x); L = [p, s.p4(p) * 2.5 - 1]; B = [s.h[1], s.h2[0] if s.h2 is not None else s.h[1]]; return torch.cat([s.o(torch.relu(b(s.h[0](f)))).flatten(2) for f, b in zip(L, B)], 2)
def cell_f1(o, b): p, y = o.argmax(1), b[1]; tp = ((p == y) & (y > 0)).sum(); return float(2 * tp / ((p > 0).sum() + (y > 0).sum()).clamp(min=1))
def cell_loss(o, y): return F.cross_entropy(o, y, weight=torch.tensor([1., 3., 3.]))
def grid_job(R, own=False, clutter=.3, **k):
    x, y = grid(R, 4600, clutter=clutter); return Job(R, (x[:2200], y[:2200], x[2200:], y[2200:], 3), lambda **b: FCOS(own=own, **b), w=I(R, 10, 14), loss=cell_loss, metric=cell_f1, steps=I(R, 200, 240), lr=6e-3, **k)
@situation("pyramid_head_shared", B, "shared_layer")
def _(R):
    J = grid_job(R, mom=U(R, .05, .12)); J.good(); ld = J.loader()
    def orc(m): m = copy.deepcopy(m); m.h2 = nn.ModuleList([copy.deepcopy(m.h[1])]); return recal(m, ld)
    return J.out("a detector's head with one batch norm runs over two pyramid levels in turn; its buffers mix the levels", oracle=orc, loader=ld)
@situation("grid_detector_frozen_then_updated", B, "trained_with_stored_then_recalibrated")
def _(R):
    J = grid_job(R, own=True, clutter=U(R, .55, .7)); g, o = U(R, 4, 8), U(R, 2, 5) * sg(R); J.fit(x=J.x * g + o, steps=25, decay=False); J.fit(mode=False, steps=220); good = copy.deepcopy(J.model).eval(); J.model = recal(J.model, J.loader()) if R.uniform() < .5 else passes(J.model, [b[0] for b in J.loader()[:40]]); return J.out("detector fine-tuned with frozen batch norm (stored statistics of pre-training), then the buffers were updated on the target images; the weights expect the old ones", oracle=restore(good))
@situation("critic_sees_policy_actions", B, "extra_forward_train_mode")
def _(R):
    ds = I(R, 4, 7); w = I(R, 40, 56); W = R.standard_normal((ds, 2)) / np.sqrt(ds); off = U(R, 2, 4) * sg(R); smp = lambda n: (lambda s, a: (f32(np.concatenate([s, a], 1)), f32(-(a[:, :1] - np.tanh(s @ W)[:, :1]) ** 2 + .6 * a[:, 1:] * np.sin(s @ W)[:, 1:])))(R.standard_normal((n, ds)), R.uniform(-1, 1, (n, 2)))
    x, y = smp(3000); xt, yt = smp(4000); J = Job(R, (x, y, xt, yt, 1), lambda **b: mlp(ds + 2, 1, w=w, n=2, a="relu", **b), metric=r2, loss=F.mse_loss, steps=320, mom=U(R, .1, .2)); shift = f32(R.uniform(.6, 1, 2) * R.choice([-1, 1], 2))
    def after(i):
        with torch.no_grad(): s = J.x[torch.as_tensor(R.integers(3000, size=J.bs))].clone(); s[:, -2:] = shift * (1 + .02 * torch.randn(J.bs, 2)); J.model(s)
    J.fit(after=after); return J.out("actor-critic: in the policy's update the critic runs in train mode on saturated policy actions; judged by R2 on replayed pairs", oracle="recal")
@situation("distillation_moves_teacher", B, "frozen_weights_moving_statistics", blind="inputs")
def _(R):
    J = vis(R, "garments", C(R, VGG, Branches), mom=U(R, .1, .2)); J.good(); T = J.model; S = VGG(1, J.k, w=4, convs=3); o = torch.optim.Adam(S.parameters(), 3e-3); T.train(); S.train(); n, q = U(R, 1.0, 1.8), U(R, .4, .9) * sg(R)
    for i in range(40):
        x = J.x[torch.as_tensor(R.integers(len(J.x), size=J.bs))]; x = (x + x.roll(1, 0)) / 2 + n * torch.randn_like(x) + q
        with torch.no_grad(): t = T(x).softmax(1)
        o.zero_grad(); F.cross_entropy(S(x), t).backward(); o.step()
    return J.out("a trained teacher without gradients, but in train mode, was fed mixed and noisy images during distillation", oracle="recal")


class MaskIn(nn.Module):
    def __init__(s, net, p): super().__init__(); s.net, s.p, s.on = net, p, True
    def forward(s, x): return s.net(x * (torch.rand(len(x), 1, *x.shape[2:]) > s.p).float() if s.on else x)
@situation("masked_pretraining_then_probe", B, "augmented_statistics", blind="nothing")
def _(R):
    J = vis(R, "garments", VGG, w=12, bias=False); e = J.model; p = U(R, .6, .75); dec = nn.Linear(e.wo, 196); o = torch.optim.Adam([*e.parameters(), *dec.parameters()], 4e-3); e.train(); v = U(R, -2, -1)
    for i in range(90): x = J.x[torch.as_tensor(R.integers(len(J.x), size=64))]; q = (torch.rand_like(x) > p).float(); o.zero_grad(); F.mse_loss(dec(e.feats(x * q + v * (1 - q))), x.flatten(1)).backward(); o.step()
    saved = copy.deepcopy(e); op = torch.optim.Adam(e.fc.parameters(), .02); e.train()
    for i in range(120):
        j = torch.as_tensor(R.integers(len(J.x), size=64))
        with torch.no_grad(): f = e.feats(J.x[j])
        op.param_groups[0]["lr"] = .02 * (1 - i / 125); op.zero_grad(); ce(e.fc(f), J.y[j]).backward(); op.step()
    saved.fc = e.fc; J.model = saved; return J.out("linear probe learnt on whole images under batch statistics; the encoder comes from the masked pre-training checkpoint, with statistics of masked images", oracle="recal")
@situation("reid_one_camera_per_batch", B, "grouped_batches", blind="inputs")
def _(R):
    d = list(garments(R, n=7)); nc = I(R, 4, 6); g, o = np.exp(R.uniform(-.7, .7, nc + 1)), np.linspace(-1.5, 1.5, nc + 1)[R.permutation(nc + 1)] * U(R, .8, 1.3); view = lambda x, c: x * f32(g)[c].reshape(-1, 1, 1, 1) + f32(o)[c].reshape(-1, 1, 1, 1); cam = R.integers(nc, size=len(d[0])); d[0] = view(d[0], i64(cam)); d[2] = view(d[2], torch.full((len(d[2]),), nc))
    class Emb(nn.Module):
        def __init__(s, **bn): super().__init__(); s.e = VGG(1, 16, **bn); s.neck, s.cls, s.emb = nn.BatchNorm1d(16, **bn), nn.Linear(16, d[4]), False
        def forward(s, x): z = s.neck(s.e(x)); return z if s.emb else s.cls(z)
    J = Job(R, d, Emb, metric=nn1, mom=U(R, .05, .15)); own = [np.nonzero(cam == c)[0] for c in range(nc)]; J.fit(pick=lambda s: R.choice(own[s % nc], J.bs)); J.model.emb = True; el = J.eval_loader(50); return J.out("embedding net for retrieval, every training batch from one camera, so that batch statistics take the camera away; in use there is a new camera and stored statistics mix the old ones", oracle="recal_eval", eval_loader=el)


class NoisyAE(nn.Module):
    """Autoencoder with a noisy code in training (a channel), without noise in use."""
    def __init__(s, d, w, z, sd, **bn): super().__init__(); s.e, s.d, s.sd = nn.Sequential(nn.Linear(d, w), nn.BatchNorm1d(w, **bn), nn.ReLU(), nn.Linear(w, z), nn.BatchNorm1d(z, affine=False, **bn)), nn.Sequential(nn.Linear(z, w), nn.BatchNorm1d(w, **bn), nn.ReLU(), nn.Linear(w, w), nn.BatchNorm1d(w, **bn), nn.ReLU(), nn.Linear(w, d)), sd
    def forward(s, x): z = s.e(x); return s.d(z + s.sd * torch.randn_like(z) if s.training else z)
def ae(R, sd, **k): x, y, xt, yt, kk = digits(R, size=8, noise=.05); x, xt = x.flatten(1), xt.flatten(1); return Job(R, (x, x, xt, xt, 1), lambda **b: NoisyAE(64, I(R, 48, 64), I(R, 10, 16), sd, **b), loss=F.mse_loss, metric=r2, lr=4e-3, **k)
@situation("noisy_code_autoencoder", B, "dropout_variance_shift")
def _(R): J = ae(R, U(R, 1.8, 3.0), steps=350); J.good(); return J.out("noise on the code of an autoencoder in training is in the decoder's stored variances, in use there is none; judged by R2 of the reconstruction", oracle="recal")
@situation("sequence_statistics_from_singles", B, "padding")
def _(R):
    d = words(R, L=44, short=8); J = Job(R, d, lambda **b: TokenNet(d[5], d[4], pad0=False, masked=True, w=I(R, 20, 28), **b), steps=260, mom=U(R, .1, .25))
    with torch.no_grad(): J.model.emb.weight[0].mul_(U(R, 1.5, 3))
    J.good(); xs = [x[:, :int((x != 0).sum())] for x in J.x[:I(R, 40, 80)].split(1)]; passes(J.model, xs); return J.out("trained in padded batches (padding counted in batch norm); the last passes in train mode were single sequences without padding", oracle="recal")
@situation("quantisation_calibration_of_one_class", B, "class_prior", blind="nothing")
def _(R):
    J = vis(R, "garments"); J.good(); c = I(R, 0, J.k - 1); q = U(R, .9, 1); w = np.where(J.y.numpy() == c, q / float((J.y == c).sum()), (1 - q) / float((J.y != c).sum())); i = torch.as_tensor(R.choice(len(J.x), 600, p=w / w.sum())); J.model = recal(J.model, [(J.x[i], None)]); return J.out("statistics re-estimated on a calibration set that is nearly all of one class", oracle="recal")
@situation("season_ordered_stream", B, "time_ordered")
def _(R):
    d = mixed_table(R, plain=True, cats=0); n, q = d[0].shape; u = f32(R.standard_normal(q) * U(R, 2.0, 3.0)); J = Job(R, d, lambda **b: ResMLP(q, d[4], inp=True, **b), steps=380, mom=U(R, .1, .25)); s = lambda m: (torch.rand(m, 1) * 2 - 1); sn = s(n).sort(0)[0]; J.x = J.x + sn * u; J.xt, J.xe = J.xt + s(len(J.xt)) * u, J.xe + s(len(J.xe)) * u; J.good(); passes(J.model, [a[0] for a in batches(J.x, J.y, J.bs)]); return J.out("the last epoch ran over the stream in the order of time, with a seasonal drift: buffers are those of the last season, evaluation covers the year", oracle="recal")
@situation("set_regression_batches_of_two", B, "small_batches")
def _(R):
    x, _, xt, _, _ = clouds(R, 2400, 3600); f = lambda x: torch.stack([x.std(2).prod(1) * 4 - 1, x.norm(dim=1).mean(1) * 2 - 2], 1); J = Job(R, (x, f(x), xt, f(xt), 2), lambda **b: PointNet(2, 2, **b), w=20, loss=F.smooth_l1_loss, metric=r2, bs=C(R, 2, 3), steps=I(R, 600, 800), lr=2e-3, mom=U(R, .3, .6)); J.fit(); ld = J.loader(); return J.out("regression on point sets with batches of 2-3 and a momentum of 0.3-0.6", oracle=tuned(J, ld, 250, 3e-3), loader=ld)


class Stubborn(nn.Module):
    def __init__(s, net): super().__init__(); s.net = net
    def train(s, mode=True): return super().train(True)
    def forward(s, x): return s.net(x)
@situation("mc_dropout_whole_model", B, "left_in_train_mode")
def _(R):
    J = sig(R, net=VGG, drop=U(R, .05, .15)); J.good(); ld = J.loader(); i = torch.argsort(J.yt, stable=True); j = torch.argsort(J.ye, stable=True); b = I(R, 8, 16)
    return J.out("for Monte Carlo dropout the whole model always stays in train mode; requests come in runs of one class", model=Stubborn(J.model), oracle=lambda m: recal(m.net, ld), loader=ld, eval_loader=batches(J.xe[j], J.ye[j], b), test_loader=batches(J.xt[i], J.yt[i], b))
@situation("no_statistics_tracks_of_one_object", B, "no_running_statistics")
def _(R):
    J = pts(R, track_running_stats=False); J.good(); ld = J.loader(); b = I(R, 4, 10); i = torch.argsort(J.yt, stable=True); j = torch.argsort(J.ye, stable=True)
    def orc(m):
        m = copy.deepcopy(m)
        for q in bns(m): q.track_running_stats = True; q.running_mean, q.running_var, q.num_batches_tracked = torch.zeros(q.num_features), torch.ones(q.num_features), torch.tensor(0)
        return recal(m, ld)
    return J.out("track_running_stats=False; in use a batch is a track of one object", oracle=orc, loader=ld, eval_loader=batches(J.xe[j], J.ye[j], b), test_loader=batches(J.xt[i], J.yt[i], b))
@situation("hospital_zero_statistics", B, "shard_statistics")
def _(R):
    d = list(motion(R)); n = 4; g, o = np.exp(R.uniform(-.6, .6, n)), R.permutation([-1.5, -.4, .5, 1.6]) * U(R, 1.5, 2.2); f = lambda x, s: x * f32(g)[s].reshape(-1, 1, 1) + f32(o)[s].reshape(-1, 1, 1); site = R.integers(n, size=len(d[0])); d[0], d[2] = f(d[0], i64(site)), f(d[2], i64(R.integers(n, size=len(d[2])))); J = Job(R, d, lambda **b: VGG(3, d[4], nd=1, **b)); J.good(); h = int(np.argmax(np.abs(o))); passes(J.model, [J.x[torch.as_tensor(R.choice(np.nonzero(site == h)[0], 50))] for _ in range(40)]); return J.out("pooled training; then the buffers of the worker at one hospital were gathered as everyone's", oracle="recal")


# ---- evaluation inputs
def shifted(J, R, f, levels, notes, need=.05, blind=None):
    x0, e0 = J.xt, J.xe; J.model, lv = worsen(J, R, lambda m, l: m, levels, lambda m, l: recal(m, [(f(e0, l), None)]), need, lambda l: batches(f(x0, l), J.yt, 250, drop_last=False)); J.xt, J.xe = f(x0, lv), f(e0, lv); return J.out(f"evaluation inputs: {notes} (level {lv})", oracle="recal_eval", eval_loader=J.eval_loader(64))
@situation("fog_at_evaluation", B, "eval_fog")
def _(R): J = vis(R, "garments", data=dict(rgb=C(R, True, False))); J.good(); return shifted(J, R, lambda x, v: x * (1 - v) + v * 1.5, [.2, .35, .5, .65, .8], "fog (blended with a bright grey)")
@situation("gamma_at_evaluation", B, "eval_gamma", blind="inputs")
def _(R):
    J = vis(R, "garments", C(R, VGG, PreRes, Mobile)); J.good(); up = R.uniform() < .5; return shifted(J, R, lambda x, v: (((x * .35 + .35).clamp(0, 1) ** (v if up else 1 / v)) - .35) / .35, [1.5, 2, 2.5, 3, 4], "another gamma")
@situation("units_of_columns_at_evaluation", B, "eval_units")
def _(R):
    J = tab(R, data=dict(cats=0)); J.good(); d = J.x.shape[1]; n = I(R, 2, 4); c = torch.as_tensor(R.permutation(d)[:n]); m, s = J.x[:, c].mean(0), J.x[:, c].std(0); f = lambda x, v: x.index_copy(1, c, x[:, c] * 1.8 + s * v); return shifted(J, R, f, [1., 1.8, 2.5, 4., 6., 10.], f"{n} columns in other units (as Fahrenheit for Celsius)")
@situation("sampling_rate_gain_at_evaluation", B, "eval_channel_gain")
def _(R):
    J = sig(R, "motion", C(R, VGG, PreRes)); J.good(); h, o = f32(R.uniform(-1, 1, 3))[None, :, None], f32(R.normal(0, .5, 3))[None, :, None]; return shifted(J, R, lambda x, v: x * torch.exp(h * v) + o * v, [.5, .8, 1.2, 1.7, 2.3, 3], "every sensor channel has a gain and offset of its own")
SITUATIONS, SPARE = split(SITUATIONS)
