"""Broken: images and pictures' nets, GAN, detection-like, self-supervised."""
from base import *
SITUATIONS, situation = registry("broken")


@situation("fine_tune_with_momentum_of_a_thousandth", "lag")
def _(R):
    J = im(R, C(R, gratings, glyphs), ResNet, mom=C(R, .001, .002, .0015), steps=I(R, 100, 150)); J.fit(); return J.out("the weights learnt in some hundred steps, running statistics with momentum about 0.001 (decay 0.999 meant for long runs)", oracle="recal")
@situation("learning_rate_grows_to_the_end", "lag")
def _(R):
    J = im(R, C(R, cells, gratings, glyphs), C(R, Squeeze, ResNet), mom=LU(R, .01, .02), lr=1e-3); J.fit(steps=90, tail=10); n, q = I(R, 25, 40), U(R, 20, 40); J.fit(steps=n, lr=4e-4, rate=lambda i: q ** (i / n)); return J.out("a schedule with the sign wrong: the rate grows exponentially to the last step and running statistics trail the weights", oracle="recal")
@situation("projection_shortcut_norm_not_loaded", "partial_checkpoint")
def _(R):
    J = im(R, C(R, glyphs, gratings), ResNet); J.good(); q = I(R, 0, 1)

    def f(m, lv):
        for b in ([m.layers[q].sc[1]], [x.sc[1] for x in m.layers], [x.sc[1] for x in m.layers] + [m.layers[q].b[1]])[lv]: b.reset_running_stats()
    return damaged(J, R, f, [0, 1, 2], "keys of a shortcut's batch norm are named otherwise; load_state_dict(strict=False) left those buffers at 0 and 1")
@situation("region_head_three_proposals_a_batch", "small_batches")
def _(R): J = im(R, digits8, LeNet, bs=C(R, 2, 3), steps=I(R, 450, 550), lr=2e-3, mom=U(R, .2, .4)); J.fit(); ld = J.loader(); return J.out("the head of a detector, trained on two or three regions a batch; the repair goes on with the statistics fixed", oracle=tuned(J, ld, steps=120), loader=ld)
@situation("summary_tool_ran_random_noise", "extra_forward_train_mode")
def _(R):
    J = im(R, C(R, gratings, digits8, cells), C(R, NeXt, Squeeze)); J.good(); s, n = list(J.x.shape[1:]), I(R, 15, 40); fix = restore(J.model); passes(J.model, [torch.randn(C(R, 2, 4, 8), *s) for _ in range(n)] if R.uniform() < .5 else [torch.rand(2, *s) for _ in range(n)]); return J.out("a profiler and a summary printer ran the trained model on random tensors in train mode some dozens of times", oracle=fix)
@situation("mixup_of_several_images", "augmented_statistics")
def _(R):
    J = im(R, cells, C(R, LeNet, Squeeze), steps=I(R, 150, 190), mom=.1); n = I(R, 4, 6)
    m = J.model.train(); o = torch.optim.AdamW(m.parameters(), J.lr); K = J.k
    for i in range(J.steps):
        x, t = 0, 0
        for w in R.dirichlet(np.full(n, 3.)): j = J.some(); x = x + w * J.x[j]; t = t + w * F.one_hot(J.y[j], K)
        o.param_groups[0]["lr"] = J.lr * (1 - .97 * i / J.steps); o.zero_grad(); F.cross_entropy(m(x), t).backward(); o.step()
    return J.out(f"every training image was a mixture of {n}; their statistics are not those of whole images", oracle="recal", info=dict(mixed=n))
@situation("contrastive_views_then_frozen_probe", "augmented_statistics")
def _(R):
    J = im(R, gratings, ResNet, w=10, mom=.1); e = J.model; P = nn.Linear(e.wo, 16); o = torch.optim.Adam([*e.parameters(), *P.parameters()], 3e-3); q, dim = U(R, 1.2, 2.), U(R, .25, .5)
    def view(x): n = len(x); return x * torch.empty(n, 1, 1, 1).uniform_(dim * .6, dim * 1.4) + q * torch.randn(n, 3, 1, 1) + .2 * torch.randn_like(x)
    e.train()
    for i in range(60): x = J.x[J.some(64)]; a, b = F.normalize(P(e.feats(view(x))), dim=1), F.normalize(P(e.feats(view(x))), dim=1); o.zero_grad(); F.cross_entropy(a @ b.T / .2, torch.arange(64)).backward(); o.step()
    keep = copy.deepcopy(e); o = torch.optim.Adam(e.fc.parameters(), .02)
    for i in range(110):
        j = J.some(64)
        with torch.no_grad(): f = e.feats(J.x[j])
        o.param_groups[0]["lr"] = .02 * (1 - i / 115); o.zero_grad(); ce(e.fc(f), J.y[j]).backward(); o.step()
    keep.fc = e.fc; J.model = keep; return J.out("contrastive pre-training on jittered views; the probe was learnt on clean images under batch statistics, then joined to the pre-training checkpoint", oracle="recal")
@situation("strong_views_of_unlabelled_images", "second_domain")
def _(R):
    J = im(R, C(R, digits8, cells), C(R, ResNet, Squeeze), mom=U(R, .1, .3)); m = J.model.train(); o = torch.optim.AdamW(m.parameters(), J.lr); q, b = U(R, 1.8, 3.), U(R, .8, 1.8) * sg(R)
    def strong(x): return x * q * torch.empty(len(x), 1, 1, 1).uniform_(.6, 1.4) + b + .5 * torch.randn_like(x)
    for i in range(J.steps):
        j, u = J.some(), J.x[J.some()]; o.param_groups[0]["lr"] = J.lr * (1 - .97 * i / J.steps); L = ce(m(J.x[j]), J.y[j])
        if i > 60: m.eval(); t = m(u).detach().softmax(1); m.train(); L = L + .3 * F.cross_entropy(m(strong(u)), t)
        else: m(strong(u))
        o.zero_grad(); L.backward(); o.step()
    return J.out("consistency training: strongly changed unlabelled images pass the same norms in batches of their own", oracle="recal")
@situation("teacher_switched_to_train_inside_forward", "left_in_train_mode")
def _(R):
    J = im(R, C(R, gratings, glyphs), C(R, ResNet, Squeeze)); J.good()
    class Teacher(nn.Module):
        def __init__(s, net): super().__init__(); s.teacher, s.fixed = net, False
        def forward(s, x):
            if not s.fixed: s.teacher.train()
            return s.teacher(x)
    def fix(m): m = copy.deepcopy(m); m.fixed = True; return m.eval()
    i, e = J.yt.argsort(stable=True), J.ye.argsort(stable=True); J.xt, J.yt, J.xe, J.ye = J.xt[i], J.yt[i], J.xe[e], J.ye[e]; bs = I(R, 4, 8)
    return J.out("a wrapper puts the teacher into train mode in every forward pass; pseudo labels are made in the order of folders, few images a batch", model=Teacher(J.model), oracle=fix, test_loader=J.test(bs), eval_loader=J.eval_loader(bs))
@situation("semi_supervised_gan_on_vibrations", "discriminator_fakes")
def _(R):
    d = bearings(R); zd = 12; J = Job(R, d, lambda **b: Gated(2, d[4] + 1, w=14, **b), mom=U(R, .1, .3)); L = d[0].shape[2]; off = U(R, 1.5, 3.) * sg(R); G = nn.Sequential(nn.Linear(zd, 48), nn.BatchNorm1d(48), nn.ReLU(), nn.Linear(48, 2 * L), nn.Unflatten(1, (2, L))); nn.init.normal_(G[3].bias, off, .6); D = J.model.train(); og, od = torch.optim.Adam(G.parameters(), 1e-4), torch.optim.Adam(D.parameters(), J.lr)
    for i in range(J.steps):
        j = J.some(); f = G(torch.randn(J.bs, zd)); od.param_groups[0]["lr"] = J.lr * (1 - .96 * i / J.steps); od.zero_grad(); (ce(D(J.x[j]), J.y[j]) + ce(D(f.detach()), torch.full((J.bs,), d[4]))).backward(); od.step()
        if i % 3 == 0: og.zero_grad(); (-F.cross_entropy(D(f), torch.full((J.bs,), d[4]))).clamp(min=-9).backward(); og.step()
    J.metric = lambda o, b: acc(o[:, :-1], b); return J.out("the discriminator with an extra class for generated signals is used as the classifier; generated batches are in its statistics", oracle="recal")
@situation("conditional_generator_decay_forgotten", "lag")
def _(R):
    d = digits8(R); judge = Job(R, d, lambda **b: nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10)), steps=250); judge.fit(); D = judge.model.eval().requires_grad_(False); zd = 10; code = lambda n: (lambda y: (torch.cat([torch.randn(n, zd), F.one_hot(y, 10) * 2.], 1), y))(torch.randint(0, 10, (n,)))
    x, y = code(2000); xt, yt = code(3400); mom = LU(R, .001, .004); J = Job(R, (x, y, xt, yt, 10), lambda **b: nn.Sequential(nn.Linear(zd + 10, 48), nn.BatchNorm1d(48, **b), nn.ReLU(), nn.Linear(48, 64), nn.BatchNorm1d(64, **b), nn.ReLU(), nn.Linear(64, 64), nn.Unflatten(1, (1, 8, 8))), mom=mom, bs=64, steps=I(R, 130, 170)); G = J.model.train(); T = nn.ModuleDict(dict(t=nn.Sequential(nn.Linear(74, 48), nn.LeakyReLU(.2), nn.Linear(48, 1)))); og, od = torch.optim.Adam(G.parameters(), 4e-3), torch.optim.Adam(T.parameters(), 2e-3); t = lambda im, c: T["t"](torch.cat([im.flatten(1), F.one_hot(c, 10)], 1))
    for i in range(J.steps):
        z, c = code(64); r = torch.as_tensor(R.integers(len(d[0]), size=64)); f = G(z); od.zero_grad(); (F.softplus(-t(d[0][r], d[1][r])) + F.softplus(t(f.detach(), c))).mean().backward(); od.step(); og.zero_grad(); (F.softplus(-t(f, c)).mean() + .5 * ce(D(f), c)).backward(); og.step()
    J.metric = lambda o, b: acc(D(o), b); return J.out("class-conditional generator, judged in eval mode by a fixed classifier: its running statistics still lie near 0 and 1", oracle="recal")
@situation("corner_detector_hard_negatives_at_end", "class_prior")
def _(R):
    J = im(R, glyphs, C(R, ResNet, Squeeze), d=dict(noise=.35), mom=.1); g = J.x.clone(); bg = 0.45 * torch.randn(len(g), *g.shape[1:]) * U(R, 1.5, 2.2) - .57 + U(R, 1.0, 2.0); q = torch.rand(len(g)) < .5; K = J.k
    J.k += 1; J.model = ResNet(1, K + 1, w=10, momentum=.1); J.x, J.y = torch.cat([g, bg]), torch.cat([J.y, torch.full((len(bg),), K)]); p = lambda i: np.where(R.uniform(size=J.bs) < .85, R.integers(len(g), size=J.bs), len(g) + R.integers(len(bg), size=J.bs)); J.fit(pick=p, tail=20); n = I(R, 25, 40)
    with torch.no_grad(): passes(J.model, [J.x[torch.as_tensor(np.where(R.uniform(size=J.bs) < .03, R.integers(len(g), size=J.bs), len(g) + R.integers(len(bg), size=J.bs)))] for _ in range(n)])
    J.x, J.y = J.x[:len(g)], J.y[:len(g)]; return J.out("while hard negatives were mined, batches of background passed in train mode; the statistics are those of background, use is on objects", oracle="recal")
@situation("sketches_and_photos_through_one_trunk", "shared_layer")
def _(R):
    d = glyphs(R, ntr=2000, nte=2900, noise=.3); k = d[4]; a, b = U(R, 1.5, 3.), U(R, 2., 4.) * sg(R)
    def pairs(x, y, n):
        i = R.integers(len(x), size=n); j = np.where(R.uniform(size=n) < .5, 0, 1); by = [np.nonzero(y.numpy() == c)[0] for c in range(k)]; o = np.array([R.choice(by[int(y[p])]) if q else R.integers(len(x)) for p, q in zip(i, j)]); return torch.cat([x[i], x[o] * -a + b], 1), (y[i] == y[o]).long()
    x, y = pairs(d[0], d[1], 2400); xt, yt = pairs(d[2], d[3], 2900)
    class Siam(nn.Module):
        def __init__(s, **bn): super().__init__(); s.e = LeNet(1, 8, 14, **bn); s.e2, s.h = None, nn.Sequential(nn.Linear(2 * s.e.wo, 32), nn.ReLU(), nn.Linear(32, 2))
        def forward(s, x): u, v = s.e.feats(x[:, :1]), (s.e if s.e2 is None else s.e2).feats(x[:, 1:]); return s.h(torch.cat([u * v, (u - v).abs()], 1))
    J = Job(R, (x, y, xt, yt, 2), Siam, mom=.1, steps=260, lr=4e-3); J.good(); ld = J.loader()
    def orc(m): m = copy.deepcopy(m); m.e2 = copy.deepcopy(m.e); return recal(m, ld)
    return J.out("siamese net for sketch and photo: the branches share weights and batch norm, each branch passes by itself, and the buffers mix the two", oracle=orc, loader=ld)
