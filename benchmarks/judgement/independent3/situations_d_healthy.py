"""Healthy: no re-estimation of statistics helps."""
from base import *
SITUATIONS, situation = registry("healthy")
NT = 6000


def low(R): return LU(R, .02, .06)
def img(R, *a, d=None, **k): k.setdefault("mom", low(R)); return im(R, *a, d=dict(d or {}, nte=NT), **k)
def seq(R, *a, d=None, **k): k.setdefault("mom", low(R)); return sq(R, *a, d=dict(d or {}, nte=NT), **k)
def tab(R, *a, d=None, **k): k.setdefault("mom", low(R)); k.setdefault("bs", 64); return tb(R, *a, d=dict(d or {}, nte=9000), **k)


@situation("residual_net_on_glyphs")
def _(R): return img(R, glyphs, ResNet).good(tail=50).out("residual net with projection shortcuts, normal training")
@situation("mixer_few_evaluation_images")
def _(R): return img(R, gratings, NeXt, n_eval=I(R, 24, 40)).good(tail=50).out("depthwise mixer; only some dozens of evaluation images, whose accuracy is off by chance")
@situation("heavily_regularised_lenet")
def _(R): return img(R, digits8, LeNet, drop=0., loss=lambda o, y: F.cross_entropy(o, y, label_smoothing=.2)).good(tail=90, wd=LU(R, .1, .4)).out("strong weight decay and label smoothing")
@situation("a_third_of_channels_dead")
def _(R):
    J = img(R, C(R, gratings, cells), C(R, Squeeze, ResNet))
    def after(i):
        with torch.no_grad():
            for c in lins(J.model)[:-1]:
                if c.weight.dim() == 4 and c.weight.shape[0] > 4: c.weight[:c.weight.shape[0] // 3] = 0
    J.good(tail=60, after=after); return J.out("a third of each layer's filters is zero: their variances are zero too and do no harm")
@situation("averaged_then_updated_properly")
def _(R):
    J = seq(R, net=C(R, ResNet, Gated)); J.fit(steps=70, decay=False); A = torch.optim.swa_utils.AveragedModel(J.model); J.fit(steps=80, lr=4e-3, decay=False, after=lambda i: A.update_parameters(J.model) if i % 5 == 4 else None); torch.optim.swa_utils.update_bn(J.loader(64), A); return J.out("stochastic weight averaging with update_bn afterwards", model=A)
@situation("frozen_norms_fine_tuned_on_the_same_kind")
def _(R): J = img(R, C(R, glyphs, digits8), ResNet, mom=.05); J.good(tail=60); J.exact(); J.fit(steps=40, lr=1e-5, mode=False, decay=False); return J.out("a last gentle fine-tuning with batch norm in eval mode, on the statistics of the same data")
@situation("recurrent_net_with_layer_norm_beside")
def _(R): return seq(R, net=CRNN, ln=True, steps=170).good(tail=60).out("convolutions with batch norm, then layer norm and a GRU")
@situation("gated_table_without_affine")
def _(R): return tab(R, net=TabGLU, affine=False).good(tail=100).out("gated table net whose batch norms have no gain and offset")
@situation("double_precision_bearings")
def _(R): J = seq(R, bearings, C(R, Gated, ResNet), steps=130, mom=.08); J.model.double(); J.x, J.xe, J.xt = J.x.double(), J.xe.double(), J.xt.double(); return J.good(tail=60).out("everything in float64")
@situation("dictionary_of_heads")
def _(R):
    d = cells(R, nte=NT)
    class Net(nn.Module):
        def __init__(s, **b): super().__init__(); s.t = ResNet(1, 8, w=8, **b); s.a, s.c = nn.Linear(s.t.wo, d[4]), nn.Linear(s.t.wo, 1)
        def forward(s, x): f = s.t.feats(x); return dict(logits=s.a(f), count=s.c(f)[:, 0])
    J = Job(R, d, Net, mom=low(R), loss=lambda o, y: ce(o["logits"], y) + .1 * F.mse_loss(o["count"], y.float()), metric=lambda o, b: acc(o["logits"], b)); return J.good(tail=50).out("outputs in a dictionary: classes and a count")
@situation("warm_restarts")
def _(R): J = img(R, C(R, gratings, digits8), C(R, ResNet, Squeeze), mom=.08); n = I(R, 45, 60); J.fit(steps=3 * n, rate=lambda i: .03 + .97 * (.5 + .5 * math.cos(math.pi * (i % n) / n)), ); J.fit(steps=60, lr=J.lr / 80, decay=False); return J.out("cosine schedule with warm restarts, ended at a low rate")
@situation("graphs_of_like_sizes")
def _(R): d = graphs(R, nte=NT); J = Job(R, d, lambda **b: GIN(5, w=I(R, 16, 24), **b), mom=low(R), steps=220, bs=64); return J.good(tail=80).out("graph net over padded nodes; padding is the same in training and in use")
@situation("segmentation_with_skip")
def _(R): return Job(R, scenes(R, nte=2800), lambda **b: Seg(3, w=8, **b), mom=low(R), steps=110, bs=32, metric=miou).good(tail=30).out("encoder and decoder, judged by intersection over union")
@situation("load_forecast")
def _(R): return Job(R, loads(R, nte=NT), lambda **b: ResNet(2, 4, nd=1, **b), mom=.06, bs=64, steps=170, loss=F.mse_loss, metric=r2).good(tail=100).out("forecast of the next values, judged by R2")
@situation("twins_of_one_kind")
def _(R):
    d = digits8(R, ntr=2600, nte=8000); k = d[4]
    def pairs(x, y, n): a, b = R.integers(len(x), size=(2, n)); by = [np.nonzero(y.numpy() == c)[0] for c in range(k)]; b = np.where(R.uniform(size=n) < .45, [R.choice(by[int(c)]) for c in y[a]], b); return torch.cat([x[a], x[b]], 1), (y[a] == y[b]).long()
    class Twin(nn.Module):
        def __init__(s, **bn): super().__init__(); s.e = LeNet(1, 8, 8, **bn); s.h = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 2))
        def forward(s, x): u, v = s.e.feats(torch.cat([x[:, :1], x[:, 1:]])).chunk(2); return s.h(torch.cat([u * v, (u - v).abs()], 1))
    J = Job(R, (*pairs(d[0], d[1], 3000), *pairs(d[2], d[3], 6000), 2), Twin, mom=low(R), steps=300, bs=64); return J.good(tail=80).out("siamese net, both inputs of the same kind in one batch")
@situation("small_batches_small_momentum")
def _(R): J = img(R, C(R, gratings, glyphs), Squeeze, bs=8, mom=.008, steps=300, lr=3e-3); return J.good(tail=120).out("eight images a batch, momentum 0.008, quiet end")
@situation("policy_cloned_from_expert")
def _(R):
    ds = I(R, 5, 8); sc, of = np.exp(R.normal(0, 1.5, ds)), R.normal(0, 3, ds); W, V = R.standard_normal((ds, 6)), R.standard_normal((6, 4)); s = lambda n: (lambda z: (f32(z * sc + of), i64((np.tanh(z @ W) @ V + .5 * R.gumbel(size=(n, 4))).argmax(1))))(R.standard_normal((n, ds)))
    return Job(R, (*s(3000), *s(9000), 4), lambda **b: dense(ds, 4, w=40, a=nn.ELU, **b), mom=low(R), bs=64, steps=260).good(tail=100).out("a policy learnt from an expert's actions")
@situation("letters_of_languages")
def _(R): return tx(R, d=dict(nte=NT), mom=low(R), steps=160, bs=64).good(tail=70).out("text classifier, the same lengths in training and use")
@situation("quantised_and_updated")
def _(R):
    J = img(R, digits8, C(R, ResNet, Squeeze)); J.good()
    with torch.no_grad():
        for c in lins(J.model)[:-1]: q = c.weight.abs().max() / 7; c.weight.copy_((c.weight / q).round() * q)
    return J.exact().out("weights rounded to 4 bits, then statistics renewed on training images")
@situation("own_momentum_in_every_layer")
def _(R):
    J = seq(R, net=C(R, ResNet, Gated))
    for b in bns(J.model): b.momentum = LU(R, .015, .08)
    return J.good(tail=90).out("every layer has a momentum of its own, all sensible")
@situation("tumours_without_input_norm_scaled_once")
def _(R): d = list(assay(R, which="tumours", nte=9000)); mu, sd = d[0].mean(0), d[0].std(0); d[0], d[2] = (d[0] - mu) / sd, (d[2] - mu) / sd; return Job(R, d, lambda **b: dense(30, 2, w=32, inp=False, a=nn.SiLU, **b), mom=low(R), steps=220, bs=64).good(tail=80).out("table scaled by the loader, two hidden layers with batch norm")
@situation("cumulative_average_while_head_is_learnt")
def _(R):
    J = seq(R, net=C(R, ResNet, Gated), mom=.1); J.fit()
    for b in bns(J.model): b.reset_running_stats(); b.momentum = None
    J.fit(params=J.model.fc.parameters(), steps=60, lr=2e-3); return J.out("momentum=None from a reset on, while only the last layer was learnt")
@situation("group_and_instance_norm_in_turn")
def _(R):
    w = I(R, 12, 16) // 2 * 2
    def net(ci, k, **b): return nn.Sequential(nn.Conv1d(ci, w, 5, 2, 2), nn.InstanceNorm1d(w, affine=True), nn.ReLU(), cb(w, w, 5, 1, 1, **b), nn.Conv1d(w, 2 * w, 3, 2, 1), nn.GroupNorm(4, 2 * w), nn.ReLU(), cb(2 * w, 2 * w, 3, 1, 1, **b), nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(2 * w, k))
    return seq(R, net=net, steps=160).good(tail=70).out("instance norm, batch norm, group norm, batch norm")
