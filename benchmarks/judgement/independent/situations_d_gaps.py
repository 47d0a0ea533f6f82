"""Other gaps: the evaluation (or the metric) is bad, and batch norm is not the cause."""
from special import *
SITUATIONS, situation = registry()
O = "other gap"


class Pre(nn.Module):
    def __init__(s, net, f, post=None): super().__init__(); s.net, s.f, s.post = net, f, post
    def forward(s, x):
        o = s.net(s.f(x) if s.f else x)
        return s.post(o) if s.post else o


def pre(f, post=None): return lambda m: Pre(copy.deepcopy(m), f, post).eval()


class AlwaysDrop(nn.Module):
    def __init__(s, net, p): super().__init__(); s.net, s.p = net, p
    def forward(s, x): return s.net.head(F.dropout(s.net.feats(x), s.p, True))


@situation("dropout_always_on_fmnist", O)
def _(R):
    T = Task(R, "fmnist"); T.model = AlwaysDrop(T.model, U(R, .65, .8)); T.fit()
    def orc(m): m = copy.deepcopy(m); m.p = 0.0; return m
    return T.out("F.dropout without training=self.training stays active in eval", oracle=orc)
@situation("dropout_always_on_tabular", O)
def _(R):
    T = Task(R, "tabular", data=dict(sep=2.2)); T.model = AlwaysDrop(T.model, U(R, .82, .92)); T.fit(steps=T.steps)
    def orc(m): m = copy.deepcopy(m); m.p = 0.0; return m
    return T.out("F.dropout without training=self.training stays active in eval", oracle=orc)


@situation("overfit_few_samples", O)
def _(R):
    T = Task(R, "fmnist", bs=32); n = I(R, 150, 300); T.x, T.y = T.x[:n], T.y[:n]; T.fit(); T.model = recal(T.model, T.loader())
    return T.out("a few hundred training samples memorised; statistics are exact")
@situation("overfit_noisy_labels", O)
def _(R):
    T = Task(R, "tabular", width=128, depth=3, bs=64, steps=800, data=dict(ntr=1000, sep=1.8)); q = torch.rand(len(T.y)) < U(R, .1, .25); T.y = torch.where(q, torch.randint(0, T.k, T.y.shape), T.y); T.fit(); T.model = recal(T.model, T.loader())
    return T.out("noisy training labels memorised")
@situation("eval_labels_noisy", O)
def _(R):
    T = Task(R, C(R, "signals", "textures")); T.fit(); q = torch.rand(len(T.yt)) < U(R, .08, .25); T.yt = torch.where(q, torch.randint(0, T.k, T.yt.shape), T.yt)
    return T.out("evaluation labels are partly random")
@situation("eval_class_order", O)
def _(R):
    T = Task(R, C(R, "digits", "signals")); T.fit(); a, b = R.choice(T.k, 2, replace=False); p = torch.arange(T.k); p[a], p[b] = int(b), int(a); T.yt = p[T.yt]
    return T.out("two class indices are exchanged in the evaluation set's label map", oracle=pre(None, lambda o: o[:, p]))
@situation("metric_divides_by_fixed_batch", O)
def _(R):
    T = Task(R, "textures"); T.fit(); q = I(R, 64, 96); T.metric = lambda o, b: float((o.argmax(1) == b[1]).sum()) / q; T.split_eval(); tl = T.test(int(q * U(R, .6, .85)))
    return T.out("metric divides by a fixed batch size larger than the batches", test_loader=tl, loader=T.loader(q), reference=.97)
@situation("metric_strict_confidence", O)
def _(R):
    T = Task(R, "fmnist"); T.fit(loss=lambda o, y: F.cross_entropy(o, y, label_smoothing=.3)); c = U(R, .62, .68)
    T.metric = lambda o, b: float(((o.argmax(1) == b[1]) & (o.softmax(1).max(1)[0] > c)).float().mean())
    return T.out("metric only counts predictions above a confidence that label smoothing never reaches", reference=.75)
@situation("metric_box_format", O)
def _(R):
    s = detection(R); s.xt, s.yt = s.xt, torch.cat([s.yt[:, :2] - s.yt[:, 2:4] / 2, s.yt[:, :2] + s.yt[:, 2:4] / 2, s.yt[:, 4:]], 1)
    return s.out("evaluation boxes are corners, the model gives centre and size", oracle=pre(None, lambda o: torch.cat([o[:, :2] - o[:, 2:4] / 2, o[:, :2] + o[:, 2:4] / 2, o[:, 4:]], 1)))
@situation("head_quantised", O)
def _(R):
    T = Task(R, "fmnist"); T.fit(); h = copy.deepcopy(T.model.head); T.split_eval(); r = evaluate(T.model, T.test())
    with torch.no_grad():
        for q in (.35, .5, .7, 1.0, 1.4):
            w = h.weight; s = w.abs().max() * q; T.model.head.weight.copy_((w / s).round() * s); T.model.head.bias.copy_(h.bias)
            if evaluate(T.model, T.test()) < r - .06: break
    def orc(m): m = copy.deepcopy(m); m.head = copy.deepcopy(h); return m
    return T.out("the classifier's weights, after the last batch norm, are quantised too coarsely", oracle=orc)
@situation("head_bit_errors", O)
def _(R):
    T = Task(R, "signals"); T.fit(); h = copy.deepcopy(T.model.head)
    with torch.no_grad(): T.model.head.weight.add_(torch.randn_like(h.weight) * h.weight.std() * U(R, 1.2, 2)); T.model.head.bias.add_(torch.randn_like(h.bias) * U(R, .5, 2) * 2)
    def orc(m): m = copy.deepcopy(m); m.head = copy.deepcopy(h); return m
    return T.out("noise on the classifier's weights (an overwritten head)", oracle=orc)
@situation("eval_mirrored_images", O)
def _(R):
    T = Task(R, "textures"); T.fit(); T.xt = T.xt.flip(3)
    T.split_eval(); return T.out("evaluation images are mirrored: channel statistics are the same", eval_loader=T.eval_loader())
@situation("eval_occluded_context", O)
def _(R):
    T = Task(R, "signals", depth=3, data=dict(noise=1.1)); T.fit(); q = I(R, 14, 20); T.xt = T.xt[:, :, :q].repeat(1, 1, 5)[:, :, :64]
    return T.out("evaluation clips are short and looped: information is missing")
@situation("training_stopped_early", O)
def _(R):
    T = Task(R, "fmnist", mom=.3); T.fit(steps=I(R, 12, 20), lr=1e-3); T.model = recal(T.model, T.loader())
    return T.out("stopped after some steps; statistics re-estimated", reference=.78)
@situation("learning_rate_too_high", O)
def _(R):
    T = Task(R, "textures", steps=120, style="plain"); T.fit(opt="sgd", lr=U(R, 5, 20), steps=60, decay=False); T.fit(steps=25, lr=1e-5); T.model = recal(T.model, T.loader())
    return T.out("diverged training: weights are poor, statistics exact", reference=.95)
@situation("spurious_feature", O)
def _(R):
    T = Task(R, "tabular", data=dict(sep=1.5)); f = lambda y: (F.one_hot(y, T.k).float() + .15 * torch.randn(len(y), T.k)); T.x = torch.cat([T.x, f(T.y)], 1); T.xt = torch.cat([T.xt, f(T.yt[torch.randperm(len(T.yt))])], 1); T.new(); T.fit()
    return T.out("training columns leak the label, in evaluation they are unrelated to it: same marginal distribution")
@situation("columns_permuted_at_eval", O)
def _(R):
    T = Task(R, "tabular", data=dict(scale=False), input_bn=False); d = T.x.shape[1]; m, sd = T.x.mean(0), T.x.std(0); T.x, T.xt = (T.x - m) / sd, (T.xt - m) / sd; T.fit(); p = torch.arange(d); q = torch.as_tensor(R.permutation(d)[:max(4, d // 2)]); p[q] = q.roll(1); inv = torch.argsort(p); T.xt = T.xt[:, p]
    return T.out("standardised columns are in another order at evaluation", oracle=pre(lambda x: x[:, inv]))
@situation("concept_drift", O)
def _(R):
    T = Task(R, "tabular"); T.fit(); c = T.k; q = torch.rand(len(T.yt)) < U(R, .3, .6); T.yt = torch.where(q & (T.yt < 2), 1 - T.yt, T.yt)
    return T.out("the relation between inputs and two of the classes changed; inputs are the same")
@situation("gan_mode_collapse", O)
def _(R):
    s = gan(R, steps=60, mom=.2); c = s.x.new_tensor(s.y[0].numpy()); o = torch.optim.Adam(s.model.parameters(), 3e-3); s.model.train()
    for i in range(150): o.zero_grad(); f = s.model(torch.randn(s.bs, s.x.shape[1])); ((f - c) ** 2).mean().backward(); o.step()
    s.model = recal(s.model, s.loader()); return s.out("generator collapsed on one mode", reference=.85)
@situation("dqn_action_order", O)
def _(R): s = dqn(R); p = torch.tensor([1, 0, 2, 3]); s.yt = s.yt; s.model = Pre(s.model, None, lambda o: o[:, p]); q = torch.argsort(p); return s.out("deployment swaps two actions", oracle=lambda m: copy.deepcopy(m.net))
@situation("regression_target_not_unscaled", O)
def _(R):
    s = friedman(R, mom=.05); a, b = U(R, .4, .6), U(R, .4, .8); s.yt = s.yt * a + b
    return s.out("evaluation targets are in other units than the training targets", oracle=pre(None, lambda o: o * a + b))
@situation("siamese_threshold", O)
def _(R):
    s = siamese(R); m = copy.deepcopy(s.model)
    with torch.no_grad(): s.model.b.add_(U(R, 3, 5) * C(R, -1, 1))
    return s.out("decision threshold on the similarity is set wrongly", oracle=lambda x: copy.deepcopy(m).eval())
