"""Broken: sequences, tables, graphs, RL, quantised, pruned, averaged, frozen."""
from base import *
SITUATIONS, situation = registry("broken")


@situation("ddpg_target_network_parameters_only", "ema_without_buffers")
def _(R):
    ds = I(R, 4, 7); sc, of = np.exp(R.normal(0, 1.2, ds)), R.normal(0, 3, ds); W = R.standard_normal((ds, 5)); s = lambda n: (lambda z: (f32(z * sc + of), f32(np.tanh(z @ W / np.sqrt(ds) * 1.5) @ V + .2 * R.standard_normal((n, 3)))))(R.standard_normal((n, ds))); V = R.standard_normal((5, 3)); x, y = s(2600); xt, yt = s(3600)
    J = Job(R, (x, y, xt, yt, 3), lambda **b: dense(ds, 3, w=40, **b), loss=F.mse_loss, metric=r2, steps=I(R, 260, 330)); T, tau = copy.deepcopy(J.model), LU(R, .01, .03)
    def after(i):
        with torch.no_grad():
            for p, q in zip(T.parameters(), J.model.parameters()): p.lerp_(q, max(tau, 1 / (i + 2)) if i < 20 else tau)
    J.fit(after=after); return J.out("action values: the target network follows the parameters (tau), its running statistics were never set; it is the one deployed", model=T, oracle="recal")
@situation("functional_calls_with_copied_buffers", "buffers_not_written_back")
def _(R):
    J = sq(R, net=C(R, Gated, ResNet)); m = J.model.train(); P = {k: v.detach().clone().requires_grad_() for k, v in m.named_parameters()}; o = torch.optim.AdamW(P.values(), J.lr)
    for i in range(J.steps): j = J.some(); o.param_groups[0]["lr"] = J.lr * (1 - .97 * i / J.steps); B = {k: v.clone() for k, v in m.named_buffers()}; o.zero_grad(); ce(torch.func.functional_call(m, (P, B), (J.x[j],)), J.y[j]).backward(); o.step()
    m.load_state_dict(P, strict=False); return J.out("training by functional_call with a fresh copy of the buffers each step; only the parameters were loaded back", oracle="recal")
@situation("channels_sorted_by_importance", "misaligned_buffers")
def _(R):
    J = sq(R, C(R, chirps, bearings), ResNet, w=10); J.good()
    with torch.no_grad():
        for l in J.model.layers:
            (c, n), nx = l.a[:2], l.b[0]; p = c.weight.flatten(1).norm(dim=1).argsort(descending=True); nx.weight.copy_(nx.weight[:, p])
            for v in (c.weight, n.weight, n.bias): v.copy_(v[p])
    return J.out("for channel pruning the filters were sorted by norm, gains and offsets with them, the running statistics not", oracle="recal")
@situation("variance_read_as_inverse_deviation", "variance_convention")
def _(R):
    J = tb(R, C(R, claims), net=C(R, TabGLU, dense)); J.good()
    def f(m, lv):
        for b in bns(m)[-lv:]: b.running_var.copy_((b.running_var + b.eps).rsqrt())
    return damaged(J, R, f, [1, 2, 3, 4], "a converter stored the saved inverse standard deviation as the running variance")
@situation("dropout_between_convolutions_and_norms", "dropout_variance_shift")
def _(R):
    p, w = U(R, .58, .66), I(R, 20, 24); J = Job(R, digits8(R), lambda **b: nn.Sequential(cb(1, w, **b), nn.Dropout(p), cb(w, w, **b), nn.Dropout(p), nn.MaxPool2d(2), cb(w, 32, **b), nn.Dropout(p), nn.Flatten(), nn.Linear(512, 48), nn.BatchNorm1d(48, **b), nn.ReLU(), nn.Linear(48, 10)), mom=U(R, .05, .1)); J.good(); return J.out("dropout stands before each convolution and its batch norm: the stored statistics are those of dropped activations", oracle="recal")
@situation("spike_in_the_last_batches", "outlier_batch")
def _(R):
    J = tb(R, claims, mom=.1); J.good(); fix, xs = restore(J.model), []
    for n in range(I(R, 2, 3)): x = J.x[J.some()].clone(); x[R.integers(len(x)), :] *= LU(R, 60, 200); xs.append(x)
    passes(J.model, xs); return J.out("the last batches before saving held one row each in hundredfold units", oracle=fix)
@situation("float16_storage_of_amounts", "half_precision")
def _(R):
    J = tb(R, assay, net=dense, d=dict(which="wine"), w=I(R, 24, 40)); u = LU(R, 5, 40); J.x, J.xe, J.xt = J.x * u, J.xe * u, J.xt * u; J.good(); J.exact(); J.fit(steps=60, lr=2e-4, mode=False); fix = restore(J.model); J.model.half().float(); return J.out("the model was stored in 16 bits; a column's variance (amounts in small units) does not fit and became infinite", oracle=fix)
class Faint(nn.Module):
    """Input norm, then a residual net."""
    def __init__(s, ci, k, **b): super().__init__(); s.inp, s.net = nn.BatchNorm1d(ci, **b), ResNet(ci, k, nd=1, **b)
    def forward(s, x): return s.net(s.inp(x))
@situation("eps_of_other_framework_on_faint_signals", "eps_changed")
def _(R):
    a = LU(R, .004, .012); d = list(C(R, chirps, bearings)(R)); d[0], d[2] = d[0] * a, d[2] * a; J = Job(R, d, lambda **b: Faint(d[0].shape[1], d[4], eps=C(R, 1e-3, 2e-3), **b)); J.good(); fix = restore(J.model)
    for b in bns(J.model): b.eps = 1e-5
    return J.out("trained with eps 1e-3 on faint signals (variances far below eps), loaded into a net with 1e-5", oracle=fix)


@situation("stochastic_averaging_update_forgotten", "averaged_weights")
def _(R):
    J = sq(R, net=C(R, ResNet, Gated)); J.fit(steps=60, decay=False); A = torch.optim.swa_utils.AveragedModel(J.model); lr = LU(R, .02, .04); J.fit(steps=I(R, 110, 150), lr=lr, decay=False, after=lambda i: A.update_parameters(J.model) if i % 6 == 5 else None); return J.out("weights averaged along a high rate (swa_utils.AveragedModel), update_bn was not called", model=A, oracle="recal")
@situation("half_way_back_to_pretraining", "merged_weights")
def _(R):
    J = im(R, C(R, gratings, digits8), C(R, ResNet, Squeeze)); g, o = U(R, .35, .6), U(R, .6, 1.4) * sg(R); J.fit(x=J.x * g + o, steps=90, tail=15); A = copy.deepcopy(J.model); J.fit(steps=110, lr=4e-3, tail=15); a = U(R, .5, .8)
    with torch.no_grad():
        for p, q in zip(A.parameters(), J.model.parameters()): p.lerp_(q, a)
    return J.out("weights between pre-training and fine-tuning (for robustness), interpolated by named_parameters: the buffers are those of pre-training", model=A, oracle="recal")
@situation("clients_variances_averaged", "federated")
def _(R):
    d = list(C(R, chirps, bearings)(R)); n = I(R, 4, 6); o = np.linspace(-2.5, 2.5, n); v = lambda x, c: x + f32(o[c])[:, None, None]; c = R.integers(n, size=len(d[0])); d[0], d[2] = v(d[0], c), v(d[2], R.integers(n, size=len(d[2]))); J = Job(R, d, lambda **b: ResNet(d[0].shape[1], d[4], nd=1, **b)); J.good(); L = [recal(J.model, [(J.x[c == q], None)]) for q in range(n)]
    for b, *q in zip(bns(J.model), *[bns(m) for m in L]): b.running_mean.copy_(sum(e.running_mean for e in q) / n); b.running_var.copy_(sum(e.running_var for e in q) / n)
    return J.out("clients have offsets of their own and renew statistics alone; the server averages means and variances, so that between clients is lost", oracle="recal")
@situation("unimportant_gains_set_to_zero", "pruned")
def _(R):
    J = im(R, C(R, digits8, cells), C(R, Squeeze, LeNet)); J.good()
    def f(m, q):
        with torch.no_grad():
            v = torch.cat([b.weight.abs() for b in bns(m)[:-1]]); t = v.quantile(q)
            for b in bns(m)[:-1]: k = b.weight.abs() > t; b.weight.mul_(k); b.bias.mul_(k)
    return moved(J, R, f, [.1, .2, .3, .4, .5], "network slimming: channels with small gains were switched off, offset included, statistics after them kept")
@situation("weights_made_ternary", "quantised")
def _(R):
    J = sq(R, net=C(R, ResNet, Gated)); J.good()
    def f(m, q):
        with torch.no_grad():
            for c in lins(m)[1:-1]: w = c.weight; t = q * w.abs().mean(); k = w.abs() > t; w.copy_(w.sign() * k * w[k].abs().mean())
    return moved(J, R, f, [.2, .4, .7, .9, 1.1], "weights rounded to three values a layer after training, statistics kept")
@situation("update_on_fully_padded_graphs", "padding")
def _(R):
    n = I(R, 60, 100); d = graphs(R); J = Job(R, d, lambda **b: GIN(5, w=I(R, 16, 24), **b), steps=220); J.good(); p = n - d[0].shape[1]
    def pad(x): N = x.shape[1]; z = torch.zeros(len(x), n, n + 2); z[:, :N, :N] = x[..., :N]; z[:, :N, n:] = x[..., N:]; return z
    fix = recal_on(J.loader()); J.model = recal(J.model, [(pad(a[:32]), b) for a, b in J.loader(n=20)]); return J.out("statistics were renewed on graphs padded to the largest allowed size; training and use pad to the batch's largest", oracle=fix)
@situation("head_tuned_on_frozen_foreign_statistics", "stats_other_data")
def _(R):
    J = im(R, C(R, digits8, glyphs), C(R, ResNet, Squeeze), d=dict(ntr=2400)); g, o = U(R, 3, 6), U(R, 4, 8) * sg(R); J.fit(x=J.x * g + o, steps=110); J.model.fc = nn.Linear(J.model.wo, J.k); J.fit(steps=120, lr=.01, mode=False, params=J.model.fc.parameters()); ld = J.loader(); return J.out("only the classifier was tuned on frozen features, whose statistics stem from pre-training on brighter images with larger values", oracle=tuned(J, ld, steps=100, lr=.01, params=lambda m: m.fc.parameters()), loader=ld)
@situation("frozen_backbone_second_task_in_train_mode", "frozen_weights_moving_statistics")
def _(R):
    J = sq(R, bearings, C(R, Gated, ResNet)); J.good(); fix = restore(J.model); g, o = f32(np.exp(R.uniform(.3, 1., 2)))[None, :, None], f32(R.uniform(.6, 1.6, 2) * sg(R))[None, :, None]; h = nn.Linear(J.model.wo, 3); ps = list(h.parameters()); opt = torch.optim.Adam(ps, 1e-2); J.model.train().requires_grad_(False)
    for i in range(40): x = J.x[J.some()] * g + o; opt.zero_grad(); F.cross_entropy(h(J.model.feats(x)), torch.randint(0, 3, (len(x),))).backward(); opt.step()
    return J.out("the backbone's parameters were frozen and a head for another machine trained on it in train mode; the first head is judged", oracle=fix)
@situation("adapters_trained_in_eval_then_updated", "trained_with_stored_then_recalibrated")
def _(R):
    J = sq(R, net=ResNet, mom=.1); g, o = U(R, .25, .45), U(R, 1., 2.) * sg(R); J.fit(x=J.x * g + o, steps=60); J.fit(mode=False, steps=170, lr=4e-3, tail=20); fix = restore(J.model); J.model = recal(J.model, J.loader()) if R.uniform() < .5 else passes(J.model, [b[0] for b in J.loader()[:30]]); return J.out("fine-tuned for long with batch norm in eval mode on old statistics; someone then renewed them, which the weights never saw", oracle=fix)
@situation("rank_zero_of_sorted_shards", "shard_statistics")
def _(R):
    d = claims(R); J = Job(R, d, lambda **b: dense(d[0].shape[1], d[4], **b), steps=300, mom=.1); n = C(R, 3, 4, 5); J.good(); o = J.x[:, 0].argsort(descending=R.uniform() < .5); sh = o[:len(o) // n]; J.model = passes(J.model, [J.x[sh[torch.as_tensor(R.integers(len(sh), size=J.bs))]] for _ in range(50)]); return J.out("workers read shards sorted by a column; the checkpoint holds the first worker's statistics", oracle="recal")
@situation("counter_reset_before_last_small_batches", "counter_reset")
def _(R):
    J = tb(R, C(R, claims, assay), net=C(R, TabGLU, dense), mom="cum", bs=32); J.fit()
    for b in bns(J.model): b.num_batches_tracked.zero_()
    n = I(R, 3, 4); passes(J.model, [J.x[J.some(n)]]); return J.out(f"momentum=None, and num_batches_tracked was lost on resuming: the average is over one last batch of {n} rows", oracle="recal")
@situation("no_statistics_on_sequences_by_user", "no_running_statistics")
def _(R):
    J = tx(R, d=dict(full=True), track_running_stats=False); J.good(); i, e = J.yt.argsort(stable=True), J.ye.argsort(stable=True); J.xt, J.yt, J.xe, J.ye = J.xt[i], J.yt[i], J.xe[e], J.ye[e]; bs = I(R, 2, 4); ld = J.loader()
    def orc(m):
        m = copy.deepcopy(m)
        for q in bns(m): q.track_running_stats = True; q.register_buffer("running_mean", torch.zeros(q.num_features)); q.register_buffer("running_var", torch.ones(q.num_features)); q.register_buffer("num_batches_tracked", torch.tensor(0))
        return recal(m, ld)
    return J.out("batch norm without running statistics, used on a few texts of one language at a time", oracle=orc, loader=ld, test_loader=J.test(bs), eval_loader=J.eval_loader(bs))
