"""Healthy, many of them unusual."""
from situations_q_weights import *
SITUATIONS, situation = registry()
H = "healthy"
def big(f, nte=4800): return lambda R, *a, **k: f(R, *a, data=dict(nte=nte, **k.pop("data", {})), **k)
V, S, T, P = big(vis), big(sig), big(tab, 9000), big(pts, 5200)
S52 = big(sig, 5200)
def lowmom(R): return LU(R, .03, .08)


@situation("dense_garments", H)
def _(R): return V(R, "garments", Dense, mom=lowmom(R)).good().out("dense net, normal training")
@situation("inverted_residuals_relu6", H)
def _(R): return V(R, "shapes", Mobile, mom=lowmom(R)).good(tail=60).out("mobile net with ReLU6, normal training")
@situation("dilated_temporal_net", H, blind="inputs")
def _(R): return S(R, "beats", PreRes, blocks=3, mom=lowmom(R)).good(tail=60).out("temporal convolutional net, normal training")
@situation("squeeze_excite_residual", H)
def _(R): return V(R, "garments", PreRes, se=True, mom=lowmom(R)).good(tail=60).out("pre-activation residual net with channel attention")
@situation("point_clouds_max_pool", H, blind="nothing")
def _(R): return P(R, mom=lowmom(R)).good(tail=60).out("point cloud net, normal training")
@situation("table_with_input_norm", H)
def _(R): return T(R, net=ResMLP, mom=lowmom(R), bs=64).good(tail=120).out("residual table net, log-normal and one-hot columns")
@situation("sparse_baskets", H, blind="nothing")
def _(R): return T(R, "baskets", mom=lowmom(R), bs=64, data=dict(log=C(R, True, True, False))).good(tail=120).out("sparse counts, most entries zero")
@situation("student_tails", H)
def _(R): return T(R, net=ResMLP, inp=False, mom=lowmom(R), bs=64, data=dict(plain=True, heavy=U(R, .02, .06))).good(tail=120).out("heavy-tailed columns without input normalisation")
@situation("duplicate_and_constant_columns", H)
def _(R):
    d = list(mixed_table(R, ntr=4500, nte=9000, temp=10, plain=True)); c, n = U(R, -5, 5), I(R, 1, 5); f = lambda x: torch.cat([x, x[:, :2], torch.full((len(x), n), c)], 1); d[0], d[2] = f(d[0]), f(d[2]); return Job(R, d, lambda **b: ResMLP(d[0].shape[1], d[4], **b), steps=350, mom=U(R, .02, .04), bs=128).good(tail=150).out("constant and duplicated columns; zero variance in the input layer")
@situation("cumulative_average_over_quiet_end", H)
def _(R):
    J = V(R, C(R, "garments", "shapes")); J.fit()
    for b in bns(J.model): b.reset_running_stats(); b.momentum = None
    J.fit(steps=60, lr=J.lr / 60, decay=False); return J.out("momentum=None after a reset, over the last quiet steps")
@situation("no_affine_branches", H)
def _(R): return S52(R, net=Branches, affine=False, mom=lowmom(R)).good(tail=60).out("batch norm without gain and offset")
@situation("large_gains", H, blind="inputs")
def _(R):
    J = V(R, "garments", VGG, mom=lowmom(R)); g = LU(R, 10, 60)
    for b in bns(J.model)[:-1]: nn.init.constant_(b.weight, g)
    return J.good(tail=60).out(f"gains of about {g:.0f}")
@situation("batches_of_four_many_positions", H)
def _(R): J = V(R, "shapes", VGG, bs=4, mom=.01, steps=I(R, 450, 550), lr=2e-3); return J.good(tail=120).out("batches of four images, many positions a channel, small momentum, quiet end: a good result")
@situation("class_sorted_evaluation", H)
def _(R): J = V(R, "garments", mom=lowmom(R)).good(tail=60); i, j = J.yt.argsort(stable=True), J.ye.argsort(stable=True); J.xt, J.yt, J.xe, J.ye = J.xt[i], J.yt[i], J.xe[j], J.ye[j]; return J.out("the evaluation set is sorted by class; stored statistics do not mind")
@situation("one_class_in_thirty", H)
def _(R):
    J = S(R, "motion", C(R, VGG, PreRes), mom=lowmom(R), bs=64); p = lambda y: np.where(y.numpy() == 0, 1., 1 / U(R, 8, 20)); q = U(R, 8, 20)
    def take(x, y, n): w = np.where(y.numpy() == 0, q, 1.); i = torch.as_tensor(R.choice(len(x), n, replace=True, p=w / w.sum())); return x[i], y[i]
    J.x, J.y = take(J.x, J.y, 3000); J.xt, J.yt = take(J.xt, J.yt, 4500); J.xe, J.ye = take(J.xe, J.ye, 500); return J.good(tail=60).out("very uneven classes, the same in training and evaluation")
@situation("group_norm_beside", H, blind="inputs")
def _(R):
    d = garments(R, nte=5200); w = C(R, 12, 16); return Job(R, d, lambda **b: nn.Sequential(cbn(1, w, **b), nn.MaxPool2d(2), nn.Conv2d(w, w, 3, padding=1), nn.GroupNorm(4, w), nn.ReLU(), cbn(w, 2 * w, **b), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2 * w, d[4])), mom=lowmom(R)).good(tail=60).out("group norm and batch norm in one net")
@situation("instance_norm_beside", H)
def _(R):
    d = motion(R, nte=5200); w = I(R, 14, 20); return Job(R, d, lambda **b: nn.Sequential(nn.Conv1d(3, w, 5, padding=2), nn.InstanceNorm1d(w, affine=True, track_running_stats=C(R, False, False, False)), nn.ReLU(), cbn(w, w, nd=1, **b), nn.MaxPool1d(2), cbn(w, 2 * w, nd=1, **b), nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(2 * w, d[4])), mom=lowmom(R)).good(tail=60).out("instance norm (by design on the sample's own statistics) and batch norm in one net")
@situation("dropout_after_last_norm", H, blind="inputs")
def _(R): return V(R, "garments", VGG, drop=U(R, .2, .5), n_eval=1200, mom=U(R, .02, .05)).good(tail=90).out("dropout between the last batch norm and the classifier only")
class FrozenStem(nn.Module):
    """The first layers stay in eval mode on purpose."""
    def __init__(s, net, n): super().__init__(); s.net, s.n = net, n
    def train(s, mode=True):
        super().train(mode)
        for b in bns(s.net)[:s.n]: nn.Module.train(b, False)
        return s
    def forward(s, x): return s.net(x)
@situation("stem_kept_in_eval_mode", H)
def _(R):
    J = V(R, "garments", VGG, mom=lowmom(R)); g, o = U(R, .6, 1.5), U(R, -.7, .7); J.fit(x=J.x * g + o, steps=60, decay=False); J.model = FrozenStem(J.model, I(R, 1, 2)); return J.good(tail=60).out("fine-tuned with the first layers' batch norm in eval mode, on statistics of pre-training; later ones live")
@situation("head_that_is_never_used", H)
def _(R):
    J = V(R, "garments", C(R, VGG, Dense), mom=lowmom(R)).good(tail=60); w = J.model.wo; J.model.aux = nn.Sequential(nn.Linear(w, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 8)); return J.out("a second head with untouched buffers (0, 1, no batches) that the forward pass never uses")
class DeepSup(nn.Module):
    def __init__(s, a, c, w, **b): super().__init__(); s.f1, s.f2 = cbn(a, w, **b), nn.Sequential(nn.MaxPool2d(2), cbn(w, w, **b), cbn(w, 2 * w, **b)); s.aux = nn.Sequential(cbn(w, w, 1, **b), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(w, c)); s.fc = nn.Linear(2 * w, c)
    def forward(s, x): h = s.f1(x); o = s.fc(gap(s.f2(h))); return (o, s.aux(h)) if s.training else o
@situation("auxiliary_head_in_training_only", H)
def _(R): d = garments(R, nte=5200); J = Job(R, d, lambda **b: DeepSup(1, d[4], I(R, 8, 14), **b), mom=lowmom(R), steps=120, loss=lambda o, y: ce(o[0], y) + .3 * ce(o[1], y)); return J.good(tail=60).out("an auxiliary head runs in training and is skipped in evaluation")
class QConv(nn.Conv2d):
    bits = 4
    def forward(s, x): w = s.weight; q = w.detach().abs().max() / (2 ** (s.bits - 1) - 1); return s._conv_forward(x, w + ((w / q).round() * q - w).detach(), s.bias)
@situation("quantisation_aware", H)
def _(R):
    J = V(R, "garments", VGG, mom=lowmom(R)); b = I(R, 3, 5)
    for m in J.model.modules():
        if type(m) is nn.Conv2d: m.__class__ = QConv; m.bits = b
    return J.good(tail=60).out(f"weights fake-quantised to {b} bits all through training and in use")
@situation("strong_weight_decay", H)
def _(R): J = S(R, net=C(R, VGG, PreRes), mom=lowmom(R), lr=3e-3); return J.good(tail=120, wd=LU(R, .1, .5)).out("strong weight decay on everything, gains included")
@situation("autoencoder_reconstruction", H)
def _(R): J = ae(R, 0.0, steps=250, mom=lowmom(R)); return J.good(tail=80).out("plain autoencoder judged by R2")
@situation("denoiser_unet", H)
def _(R): J = noisy_beats(R, mom=lowmom(R)); J.steps = I(R, 150, 190); return J.good(tail=80).out("denoiser over many noise levels, judged by R2")
@situation("denoiser_ema_with_buffers", H, blind="nothing")
def _(R):
    J = noisy_beats(R, mom=lowmom(R)); E = copy.deepcopy(J.model); d = U(R, .9, .95); a, b = follow(J, E, d), follow(J, E, d, "buffers"); J.good(tail=80, after=lambda i: (a(i), b(i))); return J.out("averaged denoiser, buffers averaged along, quiet end", model=E)
@situation("grid_detector", H)
def _(R): J = grid_job(R, own=True, mom=lowmom(R)); return J.good(tail=80).out("grid detector with batch norms of its own for both pyramid levels")
@situation("retrieval_with_norm_neck", H)
def _(R):
    d = garments(R, n=6, nte=5200)
    class Emb(nn.Module):
        def __init__(s, **bn): super().__init__(); s.e = VGG(1, 16, **bn); s.neck, s.cls, s.emb = nn.BatchNorm1d(16, **bn), nn.Linear(16, d[4]), False
        def forward(s, x): z = s.neck(s.e(x)); return z if s.emb else s.cls(z)
    J = Job(R, d, Emb, metric=nn1, mom=lowmom(R)); J.good(tail=80); J.model.emb = True; return J.out("embedding with a batch norm neck, judged by nearest neighbours")
@situation("value_network_td", H, blind="nothing")
def _(R):
    d = I(R, 4, 8); A = np.linalg.qr(R.standard_normal((d, d)))[0] * .8; s = lambda n: f32(R.standard_normal((n, d))); A = f32(A); rew = lambda x: -x[:, :2].abs().sum(1, keepdim=True) / 2 + 1
    def value(x):
        v, q = 0, 1.0
        for _ in range(20): v = v + q * rew(x); x = x @ A; q *= .6
        return v
    x, xt = s(3000), s(4500); J = Job(R, (x, x, xt, value(xt), 1), lambda **b: mlp(d, 1, w=I(R, 40, 56), **b), metric=r2, mom=lowmom(R), steps=300, bs=64); tg = copy.deepcopy(J.model).eval()
    def loss(o, s):
        with torch.no_grad(): t = rew(s) + .6 * tg(s @ A)
        return F.smooth_l1_loss(o, t)
    J.good(tail=80, loss=loss, after=lambda i: tg.load_state_dict(J.model.state_dict()) if i % 8 == 7 else None); J.y = value(J.x); return J.out("value network by temporal differences, target network copied whole; judged by R2 of the true value")
@situation("multi_task_joint_batches", H)
def _(R):
    x, y, xt, yt, k = garments(R, nte=5200); f = lambda x, y: torch.stack([y.float(), x.mean((1, 2, 3)), x.std((1, 2, 3))], 1)
    class Net(nn.Module):
        def __init__(s, **b): super().__init__(); s.v, s.reg = VGG(1, k, **b), None; s.reg = nn.Linear(s.v.wo, 2)
        def forward(s, x): h = s.v.feats(x); return dict(cls=s.v.fc(h), reg=s.reg(h))
    J = Job(R, (x, f(x, y), xt, f(xt, yt), k), Net, loss=lambda o, t: ce(o["cls"], t[:, 0].long()) + F.mse_loss(o["reg"], t[:, 1:]), metric=lambda o, b: float((o["cls"].argmax(1) == b[1][:, 0].long()).float().mean()) * .5 + .5 * r2(o["reg"], (0, b[1][:, 1:])), mom=lowmom(R)); return J.good(tail=80).out("two tasks on the same batches, a dictionary as output")
@situation("domain_branches_right", H)
def _(R): J = two_domains(R, -U(R, .8, 1.6), U(R, .5, 1.5)); J.model.to(0); J.model = recal(J.model, J.loader(64)); return J.out("domain-specific batch norm on the right branch; the other branch's buffers are of another domain")
@situation("double_precision", H)
def _(R): J = T(R, net=mlp, mom=lowmom(R), bs=64); J.model.double(); J.x, J.xe, J.xt = J.x.double(), J.xe.double(), J.xt.double(); return J.good(tail=120).out("model and inputs in float64")
@situation("pruned_then_tuned", H)
def _(R):
    J = V(R, "garments", VGG, mom=lowmom(R)); J.fit(steps=100); q = U(R, .4, .7); M = {}
    for c in convs(J.model)[1:]: w = c.weight; M[c] = (w.abs() > w.abs().flatten().kthvalue(int(q * w.numel()))[0]).float()
    def mask(i=None):
        with torch.no_grad():
            for c, k in M.items(): c.weight.mul_(k)
    mask(); J.good(steps=80, lr=J.lr / 3, after=mask); return J.out("pruned, then trained on with the mask: statistics followed")
@situation("folded_with_identity_norm", H)
def _(R):
    J = V(R, "garments", VGG, mom=lowmom(R)).good(tail=50)
    with torch.no_grad():
        for s in J.model.body:
            if isinstance(s, nn.Sequential): c, b = s[0], s[1]; k = b.weight / (b.running_var + b.eps).sqrt(); c.weight.mul_(k.reshape(-1, 1, 1, 1)); c.bias.copy_((c.bias - b.running_mean) * k + b.bias); b.running_mean.zero_(); b.running_var.fill_(1 - b.eps); b.weight.fill_(1); b.bias.zero_()
    return J.out("batch norm properly folded into the convolutions; the layers left behind are identities (0, 1) on purpose")
@situation("random_features_with_trained_head", H)
def _(R):
    J = V(R, "garments", VGG, w=20, convs=2, bias=False); o = torch.optim.Adam(J.model.fc.parameters(), .03); J.model.eval()
    J.fit(mode=False, params=list(J.model.fc.parameters()), lr=.1, steps=260); return J.out("convolutions and batch norm at initialisation in eval mode, a linear head learnt on them: the defaults are what it knows")
@situation("learnt_on_fixed_statistics", H, blind="inputs")
def _(R):
    J = P(R); J.fit(x=J.x * U(R, .7, 1.4), steps=40, decay=False); return J.good(mode=False, tail=40).out("fine-tuned in eval mode throughout, statistics of pre-training at another scale")
@situation("transductive_large_batches", H)
def _(R): J = S(R, "motion", track_running_stats=False, bs=100); J.good(); return J.out("no stored statistics by design, used on large shuffled batches")
@situation("padded_words_consistent", H)
def _(R): d = words(R, nte=5200); return Job(R, d, lambda **b: TokenNet(d[5], d[4], masked=C(R, True, False), **b), steps=260, mom=lowmom(R), bs=64).good(tail=80).out("padding counted in batch norm, alike in training and use")
@situation("single_sample_last_batch", H)
def _(R): J = V(R, "shapes", mom=lowmom(R)).good(tail=60); J.xe, J.ye = J.xe[:I(R, 3, 6) * 50 + 1], J.ye[:I(R, 3, 6) * 50 + 1]; n = min(len(J.xe), len(J.ye)); J.xe, J.ye = J.xe[:n], J.ye[:n]; return J.out("the last evaluation batch has one sample", eval_loader=batches(J.xe, J.ye, n - 1, drop_last=False))
@situation("gru_on_normed_inputs", H)
def _(R):
    d = motion(R, nte=6000, L=30, k=4)
    class Net(nn.Module):
        def __init__(s, **b): super().__init__(); s.n, s.g, s.m, s.fc = nn.BatchNorm1d(3, **b), nn.GRU(3, 20, batch_first=True), nn.BatchNorm1d(20, **b), nn.Linear(20, d[4])
        def forward(s, x): return s.fc(s.m(s.g(s.n(x).transpose(1, 2))[0].mean(1)))
    return Job(R, d, Net, n_eval=1000, steps=180, lr=.015, mom=lowmom(R)).good(tail=60).out("recurrent net between two batch norms")
@situation("averaged_then_updated", H)
def _(R):
    from torch.optim.swa_utils import AveragedModel, update_bn
    J = V(R, "garments", C(R, VGG, PreRes)); J.fit(steps=70, decay=False); a = AveragedModel(J.model); J.fit(steps=80, lr=.01, decay=False, after=lambda i: a.update_parameters(J.model) if i % 8 == 7 else None); ld = J.loader(64); update_bn(ld, a); return J.out("averaged weights with update_bn", model=a.module, loader=ld)
SITUATIONS, SPARE = split(SITUATIONS)
