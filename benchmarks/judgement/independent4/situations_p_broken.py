"""Broken: images, clouds, films, GAN, detection-like, fine-tuning, merged and changed weights."""
from pieces4 import *
from torch.optim.swa_utils import AveragedModel, update_bn
SITUATIONS, situation = registry("broken")


@situation("lr_range_test_puts_parameters_back", "restored_weights")
def _(R):
    J = vision(R, C(R, fabrics, signs)); J.good(); good = copy.deepcopy(J.model); keep = {n: p.detach().clone() for n, p in J.model.named_parameters()}; n, top = I(R, 50, 80), LU(R, 5., 30.)
    o = torch.optim.SGD(J.model.parameters(), 1e-5, momentum=.9); J.model.train()
    for i in range(n): o.param_groups[0]["lr"] = 1e-5 * (top / 1e-5) ** (i / n); j = J.draw(); o.zero_grad(); J.loss(J.model(J.x[j]), J.y[j]).backward(); o.step()
    with torch.no_grad():
        for name, p in J.model.named_parameters(): p.copy_(keep[name])
    return J.out("a learning rate finder ran up to divergence on the trained net; it put the parameters back, not the buffers", oracle=buffers_of(good), info=dict(top=top))


@situation("soup_of_three_fine_tunings", "merged_weights")
def _(R):
    J = vision(R, C(R, fabrics, signs), C(R, VGG, PreAct)); J.good(steps=90, tail=0); start = copy.deepcopy(J.model.state_dict()); fix = renewed_on(J.loader())
    def f(m, lv):
        parts = []
        for _ in range(3): m.load_state_dict(start); J.fit(m, steps=I(R, 60, 90), lr=lv * LU(R, .7, 1.4), tail=10); parts.append(copy.deepcopy(m.state_dict()))
        m.load_state_dict({n: sum(p[n] for p in parts) / 3 if start[n].is_floating_point() else start[n] for n in start}); return m.eval()
    J = harder(J, f, [.01, .02, .035, .06], fix); return J.out("the state dicts of three fine-tunings from one start were averaged, buffers and all", oracle="renew")


@situation("update_bn_on_bytes", "stats_other_preprocessing")
def _(R):
    J = vision(R, C(R, handwriting, signs)); J.fit(steps=100, flat=True, lr=3e-3); A = AveragedModel(J.model); J.fit(steps=70, flat=True, lr=3e-3, after=lambda i: A.update_parameters(J.model) if i % 5 == 4 else None); m, s = .45, .25; update_bn([((x * s + m).clamp(0, 1) * 255,) for x, _ in J.loader()], A)
    return J.out("images are normalised inside the training loop; update_bn after weight averaging got the loader, which yields 0 to 255", model=A, oracle="renew")


@situation("backbone_frozen_by_momentum_zero", "momentum_zero")
def _(R):
    k = I(R, 6, 8); J = vision(R, fabrics, C(R, VGG, PreAct, Mobile), d=dict(k=k)); J.fit(); start = J.model; d = signs(R) if R.uniform() < .5 else fabrics(R, k=k, amp=U(R, 1.2, 1.6)); u, w, v = C(R, U(R, .35, .5), U(R, 1.8, 2.5)), U(R, .5, .8), sign(R)
    for more in (1, 2, 3):  # the new camera's pictures lie further and further off
        x, q = [z * u + v * w * more + .5 * u * torch.randn_like(z) for z in (d[0], d[2])]; J.x, J.y, J.k, J.xe, J.ye, J.xt, J.yt = x, d[1], d[4], q[:500], d[3][:500], q[500:], d[3][500:]; J.model = copy.deepcopy(start); J.model.fc = nn.Linear(J.model.wo, J.k)
        for b in norms(J.model): b.momentum = 0.
        J.fit(steps=140, lr=3e-3, tail=30)
        if evaluate(renew(J.model, J.loader()), J.test()) - evaluate(J.model, J.test()) > .08: break
    return J.out("to freeze the norms of a pre-trained backbone their momentum was set to 0, and all of it was fine-tuned in train mode on other pictures", oracle="renew")


@situation("averaged_generator_has_parameters_only", "ema_without_buffers")
def _(R):
    d = handwriting(R, size=8); judge = Script(R, d, lambda **b: nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10)), steps=250); judge.fit(); D = judge.model.eval().requires_grad_(False); zd = 8
    def code(n): y = torch.randint(0, 10, (n,)); return torch.cat([torch.randn(n, zd), 2. * F.one_hot(y, 10)], 1), y
    J = Script(R, (*code(2000), *code(3000), 10), lambda **b: nn.Sequential(nn.Linear(zd + 10, 64), nn.BatchNorm1d(64, **b), nn.ReLU(), nn.Linear(64, 64), nn.BatchNorm1d(64, **b), nn.ReLU(), nn.Linear(64, 64), nn.Unflatten(1, (1, 8, 8))), bs=64, mom=.1, steps=I(R, 170, 210)); G = J.model.train(); T = nn.Sequential(nn.Linear(74, 64), nn.LeakyReLU(.2), nn.Linear(64, 1)); A, q = copy.deepcopy(G), C(R, .95, .9); og, od = torch.optim.Adam(G.parameters(), 3e-3), torch.optim.Adam(T.parameters(), 2e-3)
    def crit(i, c): return T(torch.cat([i.flatten(1), F.one_hot(c, 10)], 1))
    for i in range(J.steps):
        z, c = code(64); r = torch.as_tensor(R.integers(len(d[0]), size=64)); f = G(z); od.zero_grad(); (F.softplus(-crit(d[0][r], d[1][r])) + F.softplus(crit(f.detach(), c))).mean().backward(); od.step(); og.zero_grad(); (F.softplus(-crit(f, c)).mean() + .5 * F.cross_entropy(D(f), c)).backward(); og.step()
        with torch.no_grad():
            for a, b in zip(A.parameters(), G.parameters()): a.lerp_(b, 1 - q)
    J.metric = lambda o, b: acc(D(o), b); return J.out("samples come from the averaged generator (g_ema), which follows the parameters; its buffers are those of the day it was made", model=A, oracle="renew")


@situation("few_shot_norm_kept_in_production", "left_in_train_mode")
def _(R):
    class Transductive(nn.BatchNorm2d):
        """Statistics of the batch at hand, always: usual in few-shot episodes."""
        transductive = True
        def forward(self, x):
            if self.training or not self.transductive: return super().forward(x)
            return F.batch_norm(x, None, None, self.weight, self.bias, True, 0., self.eps)
    J = vision(R, C(R, fabrics, handwriting), VGG, n=dict(norm=Transductive)); J.good()
    def fix(m):
        m = copy.deepcopy(m)
        for q in norms(m): q.transductive = False
        return m.eval()
    i, e = J.yt.argsort(stable=True), J.ye.argsort(stable=True); J.xt, J.yt, J.xe, J.ye = J.xt[i], J.yt[i], J.xe[e], J.ye[e]; n = I(R, 4, 10)
    return J.out("norms made for few-shot episodes, which normalise by the batch even in eval mode, serve single classes a few at a time", oracle=fix, eval_loader=J.held(n), test_loader=J.test(n), info=dict(n=n))


@situation("test_time_adaptation_not_reset", "stats_other_data")
def _(R):
    J = vision(R, C(R, fabrics, signs)); J.good(); g, o, s = U(R, .35, .55), U(R, .8, 1.6) * sign(R), U(R, .2, .4); P = [p for b in norms(J.model) for p in b.parameters()]; opt = torch.optim.Adam(P, 1e-3); J.model.train()
    for i in range(I(R, 30, 50)): x = J.x[J.draw()] * g + o; p = J.model(x + s * torch.randn_like(x)).log_softmax(1); opt.zero_grad(); (-(p.exp() * p).sum(1).mean()).backward(); opt.step()
    return J.out("entropy minimisation (Tent) adapted the norms to a night's stream; by day the model is used without a reset", oracle="renew")


@situation("validation_by_folder_without_eval", "extra_forward_train_mode")
def _(R):
    J = vision(R, C(R, fabrics, signs), mom=U(R, .1, .2)); c = 1.2 * torch.as_tensor(R.standard_normal((J.k, J.x.shape[1], 1, 1))).float(); J.x, J.xe, J.xt = J.x + c[J.y], J.xe + c[J.ye], J.xt + c[J.yt]; a = 1.3; J.x, J.xe, J.xt = [q + a * torch.randn_like(q) for q in (J.x, J.xe, J.xt)]; J.good(); good = buffers_of(J.model); i = J.ye.argsort(stable=True); feed(J.model, [J.xe[i][a:a + 16] for a in range(0, 500, 16)]); return J.out("the validation loop forgot eval(): no gradients, but photographs class by class as the folders lie, and classes differ in colour", oracle=good)


@situation("pyramid_head_with_one_norm", "shared_layer")
def _(R):
    d = signs(R, size=16, noise=U(R, .4, .5), ntr=1800, nte=2700)
    class Detector(nn.Module):
        """Three levels, each summed over its window; one head for all levels, as in RetinaNet."""
        def __init__(self, w=12, **b): super().__init__(); self.stem = nn.Conv2d(3, w, 3, padding=1); self.a, self.b = nn.Conv2d(w, w, 3, padding=1), nn.Conv2d(w, w, 3, padding=1); self.n = nn.ModuleList([nn.BatchNorm2d(w, **b), nn.BatchNorm2d(w, **b)]); self.each, self.fc = None, nn.Linear(3 * w, 6)
        def forward(self, x):
            h, o = torch.relu(self.stem(x)), []
            for i in range(3):
                z = F.avg_pool2d(h, 2 ** i) * 4 ** i; n = self.n if self.each is None else self.each[i]; o.append(mean(torch.relu(n[1](self.b(torch.relu(n[0](self.a(z))))))))
            return self.fc(torch.cat(o, 1))
    J = Script(R, d, Detector, steps=I(R, 190, 230), mom=.1, bs=48, lr=8e-3); J.good(); ld = J.loader()
    def fix(m): m = copy.deepcopy(m); m.each = nn.ModuleList(copy.deepcopy(m.n) for _ in range(3)); return renew(m, ld)
    return J.out("one head of two convolutions, each with one batch norm, runs over three levels of a pyramid in turn, whose features differ in size; the buffers mix them", oracle=fix, loader=ld)


@situation("kernels_inflated_for_films", "weights_rescaled")
def _(R):
    d = fabrics(R, ch=1, size=10, noise=.9); J = Script(R, d, lambda **b: VGG(1, d[4], w=8, **b)); J.good(); T = 4
    def film(x): return x[:, :, None] + .2 * torch.randn(len(x), 1, T, *x.shape[2:])
    V = VGG(1, d[4], w=8, nd=3); V.body[3], V.body[7] = nn.MaxPool3d((1, 2, 2)), nn.MaxPool3d((1, 2, 2)); src, dst = layers(J.model), layers(V)
    with torch.no_grad():
        for a, b in zip(src, dst): b.weight.copy_(a.weight if a.weight.dim() == 2 else a.weight[:, :, None].expand_as(b.weight)); b.bias.copy_(a.bias) if a.bias is not None else None
        for a, b in zip(norms(J.model), norms(V)): b.load_state_dict(a.state_dict())
    J.x, J.xe, J.xt = film(J.x), film(J.xe), film(J.xt); return J.out("an image net made to a film net: kernels were repeated three times along time and not divided by three", model=V, oracle="renew")


@situation("clouds_calibrated_on_the_first_files", "class_prior")
def _(R):
    d = clouds(R); J = Script(R, d, PointNet, steps=I(R, 190, 240), lr=5e-3); J.fit(steps=J.steps - 60, flat=True); A = AveragedModel(J.model); J.fit(steps=60, lr=2e-3, flat=True, after=lambda i: A.update_parameters(J.model) if i % 4 == 3 else None); i = J.y.argsort(stable=True)[:32 * I(R, 5, 9)]; update_bn([(J.x[j],) for j in i.split(32)], A)
    return J.out("after weight averaging, statistics were renewed on the first hundreds of files of a folder sorted by class", model=A, oracle="renew")
