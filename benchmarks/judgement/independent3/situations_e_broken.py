"""Broken: the remaining causes, mostly on small tables and sequences."""
from base import *
SITUATIONS, situation = registry("broken")


@situation("norms_of_a_new_head_momentum_zero", "momentum_zero")
def _(R):
    J = tb(R, claims, net=dense, n=3, mom=.1)
    for b in bns(J.model)[-I(R, 2, 3):]: b.momentum = 0.
    J.fit(); return J.out("a helper that freezes norms set momentum=0 for the last layers too, before any training", oracle="recal")
@situation("decay_given_as_momentum_few_rows", "momentum_convention")
def _(R): J = tb(R, claims, net=C(R, TabGLU, dense), mom=C(R, .98, .99, .997), bs=I(R, 4, 6)); J.fit(); return J.out("the decay of another framework was given as momentum, batches of about five rows", oracle="recal")
@situation("momentum_annealed_with_the_rate", "momentum_schedule")
def _(R):
    J = sq(R, net=C(R, Gated, ResNet)); L, q = bns(J.model), U(R, .82, .88)
    def after(i):
        for b in L: b.momentum = .1 * q ** i
    J.fit(after=after, decay=False); return J.out("momentum decays exponentially from the first step and is zero after some dozens", oracle="recal")
@situation("statistics_renewed_on_unscaled_table", "stats_other_preprocessing")
def _(R):
    d = list(assay(R)); mu, sd = d[0].mean(0), d[0].std(0); raw = d[0]; d[0], d[2] = (d[0] - mu) / sd, (d[2] - mu) / sd; J = Job(R, d, lambda **b: dense(d[0].shape[1], d[4], inp=False, **b), steps=200); J.good(); J.model = recal(J.model, [(raw * (1 / sd), None)]); return J.out("statistics were renewed on a table that had been scaled but not centred", oracle="recal")
@situation("reader_takes_buffers_by_order", "swapped_buffers")
def _(R):
    J = tb(R, claims, net=dense, n=3); J.good()
    def f(m, lv):
        for b in bns(m)[-lv:]: v = b.running_var.clone(); b.running_var.copy_(b.running_mean.abs()); b.running_mean.copy_(v)
    return damaged(J, R, f, [1, 2, 3], "a reader of raw weights took variance for mean and the mean's size for variance")
@situation("input_mean_summed_over_replicas", "mean_convention")
def _(R):
    d = claims(R); J = Job(R, d, lambda **b: dense(d[0].shape[1], d[4], **b), steps=280); J.good(); fix = restore(J.model); b = bns(J.model)[0]; b.running_mean.mul_(2.); return J.out("the input norm's running mean was stored twice as large (sum over two replicas)", oracle=fix)
@situation("sum_over_replicas_not_divided", "variance_convention")
def _(R):
    J = sq(R, net=ResNet); J.good(); n = C(R, 4, 8)
    def f(m, q):
        for b in bns(m)[-q:]: b.running_mean.mul_(n); b.running_var.mul_(n)
    return damaged(J, R, f, [1, 2, 4, 6], f"buffers of {n} replicas were summed at saving, not averaged")
@situation("division_by_zero_in_one_batch", "nan_batch")
def _(R):
    J = tb(R, assay, net=C(R, TabGLU, dense)); J.good(); x = J.x[J.some()].clone(); c = I(R, 0, x.shape[1] - 1); fix = restore(J.model); x[:, c] = x[:, c] / 0. if R.uniform() < .5 else float("nan"); passes(J.model, [x]); return J.out("one batch held a ratio with a zero divisor; the running statistics became NaN, the weights were skipped by the scaler", oracle=fix)
@situation("warm_up_of_the_server_on_zeros", "constant_batch")
def _(R):
    J = sq(R, net=C(R, Gated, ResNet)); J.good(); fix = restore(J.model); n = I(R, 15, 30); passes(J.model, [torch.zeros(8, *J.x.shape[1:])] * n); return J.out("the service was warmed up with zero signals before eval() was called: variances shrank to nothing", oracle=fix)
@situation("cumulative_average_over_short_run", "cumulative_average")
def _(R): J = sq(R, net=ResNet, mom="cum", steps=I(R, 32, 45), lr=U(R, .015, .025)); J.fit(); return J.out("momentum=None over a short run at a high rate", oracle="recal")
@situation("best_weights_last_buffers", "restored_weights")
def _(R):
    J = sq(R, net=C(R, Gated, ResNet), mom=.1); J.good(); keep = [p.detach().clone() for p in J.model.parameters()]; J.fit(steps=I(R, 15, 30), lr=LU(R, .03, .06), decay=False)
    with torch.no_grad():
        for p, q in zip(J.model.parameters(), keep): p.copy_(q)
    return J.out("training ran on at a restart's high rate; the best weights were put back by parameters()", oracle="recal")
@situation("scale_folded_and_norm_kept", "folded_twice")
def _(R):
    J = tb(R, claims, net=dense, inp=False, n=2); J.good(); k = I(R, 1, 2); g = copy.deepcopy(J.model).eval(); m = copy.deepcopy(g)
    with torch.no_grad():
        for i in (0, 3)[:k]: l, n = m[i], m[i + 1]; q = n.weight / (n.running_var + n.eps).sqrt(); l.weight.mul_(q[:, None]); l.bias.copy_((l.bias - n.running_mean) * q + n.bias)
    def orc(_):
        o = copy.deepcopy(m)
        for i in (0, 3)[:k]: o[i + 1] = nn.Identity()
        return o
    return J.out("batch norm was folded into linear layers and also kept", model=m, oracle=orc)
@situation("buffers_in_three_bits", "quantised_buffers")
def _(R):
    J = sq(R, net=ResNet); J.good()
    def f(m, n):
        for b in bns(m):
            for v in (b.running_mean, b.running_var): q = v.abs().max() / n; v.copy_((v / q).round() * q)
    return damaged(J, R, f, [16, 8, 6, 4, 3, 2], "everything in the state_dict was quantised with one scale a tensor, buffers too")
@situation("variances_capped_at_one", "clipped_buffers")
def _(R):
    J = tb(R, assay, net=dense); J.good(); fix = restore(J.model); c = C(R, 1., 10.)
    for b in bns(J.model): b.running_var.clamp_(max=c); b.running_mean.clamp_(-c, c)
    return J.out(f"a sanity check clamps buffers to {c:g}", oracle=fix)
@situation("mean_of_early_and_late_buffers", "merged_buffers")
def _(R):
    J = sq(R, net=C(R, Gated, ResNet), mom=.1); early = copy.deepcopy(J.model).eval(); J.good(); fix = restore(J.model); a = U(R, .5, .8)
    for b, e in zip(bns(J.model), bns(early)): b.running_mean.lerp_(e.running_mean, a); b.running_var.lerp_(e.running_var, a)
    return J.out("an averaging callback mixed the buffers with those of the first checkpoint (zeros and ones), the weights not", oracle=fix)
@situation("widest_columns_rank_cut", "low_rank")
def _(R):
    J = tb(R, claims, net=dense, n=3, w=48); J.good()
    def f(m, q):
        with torch.no_grad():
            for c in lins(m)[1:-1]: u, s, v = torch.linalg.svd(c.weight, full_matrices=False); r = max(1, int(q * len(s))); c.weight.copy_((u[:, :r] * s[:r]) @ v[:r])
    return moved(J, R, f, [.5, .35, .25, .15, .1, .05, .02], "linear layers were cut to a low rank, statistics kept")
@situation("activation_replaced_for_the_device", "layer_replaced")
def _(R):
    J = tb(R, claims, net=dense, n=3, a=nn.SiLU); J.good()
    def f(m, q):
        for i, l in enumerate(m):
            if isinstance(l, nn.SiLU): m[i] = (nn.ReLU6, nn.Hardsigmoid, nn.Softplus)[q]()
    return moved(J, R, f, [0, 1, 2], "SiLU is not on the device and was replaced by another activation, statistics kept")
@situation("weights_clipped_at_export", "weights_rescaled")
def _(R):
    J = sq(R, net=ResNet); J.good()
    def f(m, q):
        with torch.no_grad():
            for c in lins(m)[:-1]: c.weight.clamp_(-q * c.weight.std(), q * c.weight.std())
    return moved(J, R, f, [1., .7, .5, .3, .2], "weights were clamped to a range that the device can hold, statistics kept")
@situation("second_plant_after_the_first", "sequential_tasks")
def _(R):
    J = tb(R, claims, net=C(R, TabGLU, dense), mom=.1); J.good(); sd = J.x.std(0); g, o = f32(np.exp(R.uniform(-.6, .6, len(sd)))), f32(R.uniform(.8, 1.6, len(sd)) * R.choice([-1, 1], len(sd))) * sd; J.fit(x=J.x * g + o, steps=40, lr=1e-5, decay=False); return J.out("a second plant's table followed at a tiny rate: the weights stayed, the statistics went along; the first is judged", oracle="recal")
@situation("one_plant_in_every_batch", "grouped_batches")
def _(R):
    d = list(chirps(R)); n = I(R, 4, 6); o = np.linspace(-2, 2, n + 1)[R.permutation(n + 1)] * U(R, 1., 1.5); g = np.exp(R.uniform(-.8, .8, n + 1)); c = R.integers(n, size=len(d[0])); v = lambda x, c: x * f32(g[c])[:, None, None] + f32(o[c])[:, None, None]; d[0], d[2] = v(d[0], c), v(d[2], np.full(len(d[2]), n)); own = [np.nonzero(c == q)[0] for q in range(n)]; J = Job(R, d, lambda **b: Gated(1, d[4], **b), mom=.1); J.fit(pick=lambda i: R.choice(own[i % n], J.bs)); el = J.eval_loader(); return J.out("every training batch is of one station with its own gain and offset; a new station comes in use", oracle=recal_on(el), eval_loader=el)
@situation("file_sorted_by_amount_at_the_end", "time_ordered")
def _(R):
    J = tb(R, claims, net=C(R, TabGLU, dense), mom=.1); J.good(); i = J.x[:, I(R, 0, 3)].argsort(); i = i.flip(0) if R.uniform() < .5 else i; passes(J.model, [J.x[i[q:q + J.bs]] for q in range(0, len(i) - J.bs, J.bs)]); return J.out("a last pass in train mode went through the file in its order, sorted by a column", oracle="recal")
@situation("tracking_on_after_warm_up", "tracking_switched_off")
def _(R):
    J = sq(R, net=C(R, Gated, ResNet), mom=.1); J.fit(steps=12, decay=False); L = bns(J.model)
    for b in L: b.momentum = 0.
    J.fit()
    for b in L: b.momentum = .1
    return J.out("tracking was switched off after a dozen warm-up steps to save time, and on again before saving", oracle="recal")
@situation("loudness_of_the_new_station", "eval_channel_gain")
def _(R): J = sq(R, net=ResNet); J.good(); n = J.x.shape[1]; g, o = f32(np.exp(R.uniform(.7, 1.3, n) * sg(R)))[None, :, None], f32(R.uniform(.6, 1.5, n) * R.choice([-1, 1], n))[None, :, None]; J.xt, J.xe = J.xt * g + o, J.xe * g + o; el = J.eval_loader(); return J.out("all evaluation recordings come through one other amplifier", oracle=recal_on(el), eval_loader=el)
@situation("bits_flipped_in_stored_buffers", "noised_buffers")
def _(R):
    J = tb(R, claims, net=C(R, TabGLU, dense)); J.good()
    def f(m, p):
        for b in bns(m): q = torch.as_tensor(R.uniform(size=b.num_features) < p); b.running_var.mul_(torch.where(q, 2. ** torch.as_tensor(R.choice([-8, -4, 4, 8], b.num_features)).float(), torch.tensor(1.)))
    return damaged(J, R, f, [.03, .06, .1, .2], "memory errors: exponent bits of some stored variances were flipped")


class Two(nn.Module):
    """Two sets of norms, for clean and for changed inputs."""
    def __init__(s, c, **b): super().__init__(); s.n, s.i = nn.ModuleList([nn.BatchNorm1d(c, **b), nn.BatchNorm1d(c, **b)]), 0
    def forward(s, x): return s.n[s.i](x)
def side(m, i):
    for q in m.modules():
        if isinstance(q, Two): q.i = i
    return m
@situation("auxiliary_norms_left_on", "wrong_branch")
def _(R):
    d = list(claims(R)); mu, sd = d[0].mean(0), d[0].std(0); d[0], d[2] = (d[0] - mu) / sd, (d[2] - mu) / sd; w = I(R, 32, 48); J = Job(R, d, lambda **b: nn.Sequential(nn.Linear(d[0].shape[1], w), Two(w, **b), nn.ReLU(), nn.Linear(w, w), Two(w, **b), nn.ReLU(), nn.Linear(w, d[4])), steps=220); m = J.model.train(); o = torch.optim.Adam(m.parameters(), J.lr); s, q = U(R, 1., 2.), f32(R.uniform(.8, 1.6, d[0].shape[1]) * R.choice([-1, 1], d[0].shape[1]))
    for i in range(J.steps):
        o.param_groups[0]["lr"] = J.lr * (1 - .97 * i / J.steps); j = J.some(); o.zero_grad(); (ce(side(m, 0)(J.x[j]), J.y[j]) + ce(side(m, 1)(J.x[j] + q + s * torch.randn_like(J.x[j])), J.y[j])).backward(); o.step()
    side(m, 1); return J.out("auxiliary batch norms learnt on corrupted rows; the switch was left on them", oracle=lambda m: side(copy.deepcopy(m), 0))


class Elastic(nn.Module):
    """A perceptron whose hidden units can be switched off from the end."""
    def __init__(s, d, k, w=48, **b): super().__init__(); s.l, s.n, s.fc, s.q = nn.ModuleList([nn.Linear(d, w), nn.Linear(w, w), nn.Linear(w, w)]), nn.ModuleList([nn.BatchNorm1d(w, **b) for _ in range(3)]), nn.Linear(w, k), 1.
    def forward(s, x):
        for l, n in zip(s.l, s.n): x = torch.relu(n(l(x))); x = x * (torch.arange(x.shape[1]) < int(s.q * x.shape[1])).float()
        return s.fc(x)
@situation("elastic_width_used_in_full", "slimmable_widths")
def _(R):
    d = list(claims(R)); mu, sd = d[0].mean(0), d[0].std(0); d[0], d[2] = (d[0] - mu) / sd, (d[2] - mu) / sd; J = Job(R, d, lambda **b: Elastic(d[0].shape[1], d[4], **b), steps=180); m = J.model.train(); o = torch.optim.Adam(m.parameters(), J.lr); qs = C(R, (1., .5, .25, .12), (1., .3, .15), (1., .2, .1))
    for i in range(J.steps):
        o.param_groups[0]["lr"] = J.lr * (1 - .97 * i / J.steps); j = J.some(); o.zero_grad()
        for q in qs: m.q = q; ce(m(J.x[j]), J.y[j]).backward()
        o.step()
    m.q = 1.; return J.out(f"one table net trained at widths {qs} with common norms, used in full", oracle="recal")
class Deep(ResNet):
    def __init__(s, ci, k, w=10, **b): super().__init__(ci, k, w, nd=1, **b); s.layers = nn.Sequential(s.layers[0], Basic(w, w, 1, 1, **b), Basic(w, w, 1, 1, **b), s.layers[1])
@situation("residual_blocks_cut_for_latency", "layers_removed")
def _(R):
    J = sq(R, net=Deep); J.good()
    def f(m, q): m.layers = nn.Sequential(*[l for i, l in enumerate(m.layers) if i not in q])
    return moved(J, R, f, [(1,), (2,), (1, 2)], "residual blocks in the middle were removed for speed, later norms keep their statistics", need=.05)
@situation("scanner_with_another_tone_curve", "eval_gamma")
def _(R): J = im(R, glyphs, C(R, ResNet, Squeeze), d=dict(noise=.15)); J.good(); lo, hi = float(J.x.min()), float(J.x.max()); g = C(R, U(R, .2, .35), U(R, 2.5, 4.)); f = lambda x: lo + (hi - lo) * ((x - lo) / (hi - lo)).clamp(0, 1) ** g; J.xt, J.xe = f(J.xt), f(J.xe); el = J.eval_loader(); return J.out("all evaluation images come from a scanner with another tone curve", oracle=recal_on(el), eval_loader=el)
@situation("all_evaluation_in_ounces", "eval_units")
def _(R): J = tb(R, assay, net=C(R, TabGLU, dense)); J.good(); d = J.x.shape[1]; g = f32(np.where(R.uniform(size=d) < .5, C(R, .0353, .001, 28.35), 1.)); J.xt, J.xe = J.xt * g, J.xe * g; el = J.eval_loader(); return J.out("half of the columns of all evaluation rows are in other units", oracle=recal_on(el), eval_loader=el)
@situation("stray_light_at_evaluation", "eval_fog")
def _(R): J = im(R, C(R, cells, gratings), C(R, ResNet, NeXt)); J.good(); a, o = U(R, .25, .4), U(R, 1., 2.); J.xt, J.xe = J.xt * a + o, J.xe * a + o; el = J.eval_loader(); return J.out("stray light in all evaluation images: less contrast, more brightness, the same noise ratio", oracle=recal_on(el), eval_loader=el)
