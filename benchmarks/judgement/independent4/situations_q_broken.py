"""Broken: signals, sequences, tables, graphs, value nets, autoencoder, federated, quantised, pruned."""
from pieces4 import *
from torch.nn.utils import prune
SITUATIONS, situation = registry("broken")


@situation("mc_dropout_over_an_unlabelled_pool", "extra_forward_train_mode")
def _(R):
    J = table(R, n=dict(drop=.1)); J.good(); good, keep = buffers_of(J.model), copy.deepcopy(J.model.state_dict()); pool, z = J.x[J.draw(600)], torch.as_tensor(R.standard_normal(J.x.shape[1])).float(); n = I(R, 8, 15)
    def f(m, lv): m.load_state_dict(keep); feed(m, [q for _ in range(n) for q in (pool * (1 + .4 * lv) + lv * z * J.x.std(0)).split(64)])
    J = harder(J, f, [.4, .7, 1., 1.5], good); return J.out("train() was called to have dropout while uncertainty was taken over a pool of another region, some dozen passes", oracle=good)


@situation("source_and_target_in_turn", "second_domain")
def _(R):
    J = series(R, net=C(R, VGG, TCN), mom=U(R, .1, .3)); m = J.model.train(); dom = nn.Linear(m.wo, 1); o = torch.optim.Adam([*m.parameters(), *dom.parameters()], J.lr); g, of = U(R, 2., 4.), U(R, 1.5, 3.) * sign(R)
    class Rev(torch.autograd.Function):
        @staticmethod
        def forward(c, x): return x.clone()
        @staticmethod
        def backward(c, d): return -.1 * d
    for i in range(J.steps):
        j, t = J.draw(), J.x[J.draw()] * g + of; o.param_groups[0]["lr"] = J.lr * (1 - .97 * i / J.steps); a = m.feats(J.x[j]); L = J.loss(m.fc(a), J.y[j]); b = m.feats(t); q = dom(Rev.apply(torch.cat([a, b])))[:, 0]; o.zero_grad(); (L + F.binary_cross_entropy_with_logits(q, torch.cat([torch.ones(len(a)), torch.zeros(len(b))]))).backward(); o.step()
    return J.out("domain adversarial training: a batch of the source, then one of the target, through the same norms; used on the source", oracle="renew")


@situation("conv_biases_dropped_on_porting", "mean_convention")
def _(R):
    J = series(R, net=VGG, n=dict(bias=True)); v = U(R, .05, .1); J.x, J.xe, J.xt = J.x * v, J.xe * v, J.xt * v; J.good()
    with torch.no_grad():
        for q in layers(J.model)[:-1]: q.bias.zero_()
    return J.out("signals in volts; the ported net has convolutions without bias, 'since batch norm follows', the stored means still hold them", oracle="renew")


@situation("momentum_teacher_with_the_online_probe", "ema_without_buffers")
def _(R):
    J = series(R, net=C(R, VGG, PreAct), d=dict(noise=1.)); m = J.model.train(); T = copy.deepcopy(m).eval(); P, Q = nn.Sequential(nn.Linear(m.wo, 32), nn.ReLU(), nn.Linear(32, 16)), nn.Linear(m.wo, 16); o = torch.optim.Adam([*m.parameters(), *P.parameters()], 3e-3); o2 = torch.optim.Adam(m.fc.parameters(), .02); q = C(R, .98, .95, .97)
    def view(x): return x * (1 + .2 * torch.randn(len(x), 1, 1)) + .3 * torch.randn_like(x)
    for i in range(J.steps):
        j = J.draw(64); a = m.feats(view(J.x[j]))
        with torch.no_grad(): t = Q(T.feats(view(J.x[j])))
        o.param_groups[0]["lr"], o2.param_groups[0]["lr"] = [v * max(.02, 1 - i / J.steps) for v in (3e-3, .02)]; o.zero_grad(); o2.zero_grad(); (2 - 2 * F.cosine_similarity(P(a), t).mean()).backward(); F.cross_entropy(m.fc(a.detach()), J.y[j]).backward(); o.step(); o2.step()
        with torch.no_grad():
            for u, v in zip(T.parameters(), m.parameters()): u.lerp_(v, 1 - q)
    T.fc = m.fc; return J.out("self-distillation (BYOL): the teacher, an average of parameters that always ran in eval mode, is kept with the probe learnt on the student", model=T, oracle="renew", info=dict(decay=q))


@situation("value_net_states_grow_with_skill", "lag")
def _(R):
    n = 6000; es = np.linspace(.1, 1.3, 12); xs, ys = zip(*[pendulum(R, n // 12, float(v)) for v in es]); x, y = torch.cat(xs), torch.cat(ys); xt, yt = [torch.cat(v) for v in zip(*[pendulum(R, 1200, float(v)) for v in es[-3:]])]; p = torch.randperm(len(xt)); xt, yt = xt[p], yt[p]
    J = Script(R, (x, y, xt, yt, 1), lambda **b: nn.Sequential(MLP(6, 1, **b), nn.Flatten(0)), mom=LU(R, .003, .008), steps=I(R, 260, 320), bs=64, loss=F.mse_loss, metric=r2); J.fit(pick=lambda i: R.integers(max(0, int((i + 20) / J.steps * n) - 1500), max(64, min(n, int((i + 40) / J.steps * n))), size=64)); J.x, J.y = x[-1500:], y[-1500:]
    return J.out("a value net learns from a replay buffer whose states spread as the policy gets better; running statistics (small momentum) are those of early days", oracle="renew")


@situation("server_aggregates_parameters_only", "federated")
def _(R):
    J = C(R, lambda: series(R, heartbeats), lambda: vision(R, net=C(R, VGG, PreAct)))(); n = I(R, 3, 5); part = np.array_split(R.permutation(len(J.x)), n); S = J.model
    for r in range(5):
        up = []
        for p in part: c = copy.deepcopy(S); J.fit(c, steps=25, lr=J.lr * (1 - r / 6), flat=True, pick=lambda i: R.choice(p, 32)); up.append(list(c.parameters()))
        with torch.no_grad():
            for q, *v in zip(S.parameters(), *up): q.copy_(sum(v) / n)
    return J.out("federated averaging over named_parameters(): the server's buffers were never touched", oracle="renew", info=dict(clients=n))


@situation("last_client_leaves_its_buffers", "shard_statistics")
def _(R):
    J = series(R, wearables, C(R, VGG, TCN)); n = 4; g, o = R.uniform(.6, 1.6, n), R.normal(0, 1., n); g[-1], o[-1] = C(R, .4, 2.5), U(R, 1.2, 2.) * sign(R); site = lambda x: (lambda s: x * col(g[s], x) + col(o[s], x))(np.arange(len(x)) % n); J.x, J.xe, J.xt = site(J.x), site(J.xe), site(J.xt); S = J.model
    for r in range(6):
        up = []
        for c in range(n): q = copy.deepcopy(S); J.fit(q, steps=25, lr=J.lr * (1 - r / 7), flat=True, pick=lambda i: R.choice(np.arange(c, len(J.x), n), 32)); up.append(q)
        with torch.no_grad():
            for s, *v in zip(S.parameters(), *[u.parameters() for u in up]): s.copy_(sum(v) / n)
        for a, b in zip(norms(S), norms(up[-1])): a.running_mean.copy_(b.running_mean); a.running_var.copy_(b.running_var)
    return J.out("four wards with recorders of their own; weights are averaged, and of the buffers those of the last client to answer win", oracle="renew")


@situation("noise_layers_ported_from_keras", "dropout_variance_shift")
def _(R):
    s = 0.
    class GaussianNoise(nn.Module):
        def forward(self, x): return x + s * x.detach().std(0) * torch.randn_like(x) if self.training else x
    J = table(R, n=dict(first=GaussianNoise, n=3), lr=5e-3, steps=320); start = J.model
    for s in (U(R, 1.3, 1.8), U(R, 2., 2.4), U(R, 2.8, 3.2), U(R, 3.6, 4.)):
        J.model = copy.deepcopy(start); J.good()
        if evaluate(renew(J.model, J.loader()), J.test()) - evaluate(J.model, J.test()) > .06: break
    return J.out("noise layers before every linear layer, at work in training only: the stored variances hold the noise", oracle="renew", info=dict(noise=s))


@situation("filters_pruned_with_torch_utils", "pruned")
def _(R):
    J = series(R, net=C(R, VGG, PreAct)); J.good(); fix = renewed_on(J.loader()); whole = C(R, True, False)
    def f(m, lv):
        for q in layers(m)[1:-1]: prune.ln_structured(q, "weight", lv, n=1, dim=1) if whole else prune.l1_unstructured(q, "weight", lv + .2); prune.remove(q, "weight")
    J = harder(J, f, [.3, .4, .5, .6], fix); return J.out("torch.nn.utils.prune on every convolution, no step of training after", oracle="renew", info=dict(whole=whole))


@situation("weights_clustered_to_few_values", "quantised")
def _(R):
    J = text(R); J.good(); fix = renewed_on(J.loader())
    def f(m, lv):
        with torch.no_grad():
            for q in (m.a, m.b):
                w = q.weight.flatten(); c = torch.linspace(float(w.min()), float(w.max()), lv)
                for _ in range(4): j = (w[:, None] - c).abs().argmin(1); c = torch.stack([w[j == i].mean() if (j == i).any() else c[i] for i in range(lv)])
                q.weight.copy_(c[j].view_as(q.weight))
    J = harder(J, f, [5, 4, 3, 2], fix); return J.out("weights of the convolutions were clustered to a handful of values for a small device", oracle="renew")


@situation("one_norm_for_all_time_steps", "shared_layer")
def _(R):
    d = list(heartbeats(R, L=64, noise=1.)); r = U(R, 4., 8.); env = torch.as_tensor(np.geomspace(1 / r, r, 64)).float(); up = C(R, True, False); env = env if up else env.flip(0); d[0], d[2] = d[0] * env, d[2] * env
    class Rec(nn.Module):
        """A recurrent cell with batch norm on its input part and its state part, eight chunks."""
        def __init__(self, w=32, **b): super().__init__(); self.i, self.h, self.ni, self.nh, self.fc, self.each = nn.Linear(16, w), nn.Linear(w, w), nn.BatchNorm1d(w, **b), nn.BatchNorm1d(w, **b), nn.Linear(w, d[4]), None
        def forward(self, x):
            h = x.new_zeros(len(x), self.h.out_features)
            for t in range(8): a, b = (self.ni, self.nh) if self.each is None else self.each[t]; z = x[:, :, t * 8:t * 8 + 8].flatten(1); h = torch.tanh(a(self.i(z)) + b(self.h(h)))
            return self.fc(h)
    J = Script(R, d, Rec, steps=300, mom=.1); J.good(); ld = J.loader()
    def fix(m): m = copy.deepcopy(m); m.each = nn.ModuleList(nn.ModuleList([copy.deepcopy(m.ni), copy.deepcopy(m.nh)]) for _ in range(8)); return renew(m, ld)
    return J.out("recurrent batch norm: one layer normalises every time step by its own batch in training, and all steps by one mixture in use", oracle=fix, loader=ld)


@situation("buffers_rounded_to_bfloat16_while_training", "half_precision")
def _(R):
    J = table(R, mom=LU(R, .008, .012), steps=460); o = J.x.std(0) * torch.as_tensor(R.choice([2., 4., 6.], J.x.shape[1]) * R.choice([-1, 1], J.x.shape[1])).float(); J.x, J.xe, J.xt = J.x + o, J.xe + o, J.xt + o
    def after(i):
        for b in norms(J.model): b.running_mean.copy_(b.running_mean.bfloat16()); b.running_var.copy_(b.running_var.bfloat16())
    J.good(after=after); return J.out("the whole model, buffers too, lives in bfloat16: small updates of the statistics are lost to rounding", oracle="renew")


@situation("edges_dropped_before_a_sum", "augmented_statistics")
def _(R):
    p = U(R, .45, .6); J = Script(R, networks(R), lambda **b: GCN(edges=p, **b), steps=260, bs=48, lr=8e-3); J.good(); return J.out("DropEdge in training with a sum over neighbours: in use all edges are there and sums are larger", oracle="renew", info=dict(dropped=p))


@situation("recalibrated_on_one_batch_of_four", "few_samples")
def _(R):
    J = table(R); J.good(); i = J.draw(5); J = harder(J, lambda m, n: renew(m, [(J.x[i[:n]],)], pooled=False), [5, 4, 3, 2], renewed_on(J.loader())); return J.out("after quantisation trials, statistics were reset and taken on one batch of a few rows", oracle="renew")


@situation("averaged_buffers_without_warm_up", "ema_buffers")
def _(R):
    J = text(R, steps=200); E, t = copy.deepcopy(J.model), [0]; q = C(R, .9995, .999, .998)
    def after(i):
        with torch.no_grad():
            d = min(q, (1 + i) / (10 + i))
            for a, b in zip(E.parameters(), J.model.parameters()): a.lerp_(b, 1 - d)
            for a, b in zip(E.buffers(), J.model.buffers()): a.lerp_(b, 1 - q) if a.is_floating_point() else a.copy_(b)
    J.good(after=after); return J.out("the averaged copy warms up for parameters, while its buffers follow with the full decay from 0 and 1", model=E, oracle="renew", info=dict(decay=q))
