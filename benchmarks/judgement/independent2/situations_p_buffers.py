"""Broken: buffers that lag, are lost, damaged, written by something else or restored wrongly."""
from base import *
SITUATIONS, situation = registry()
B = "broken"


def vis(R, dom=None, net=None, **k):
    """A small vision job: data and net drawn."""
    dom = dom or C(R, "garments", "shapes"); d = dict(garments=garments, shapes=shapes, digits=digits)[dom](R, **k.pop("data", {})); net = net or C(R, VGG, PreRes, Dense)
    J = Job(R, d, lambda **b: net(d[0].shape[1], d[4], **b), **k); J.info = dict(dom=dom, net=net.__name__); return J
def sig(R, dom=None, net=None, **k):
    dom = dom or C(R, "beats", "motion"); d = dict(beats=beats, motion=motion)[dom](R, **k.pop("data", {})); net = net or C(R, PreRes, VGG, Branches)
    if net is PreRes: k.setdefault("blocks", 3)
    J = Job(R, d, lambda **b: net(d[0].shape[1], d[4], nd=1, **b), **k); J.info = dict(dom=dom, net=net.__name__); return J
def tab(R, dom="table", net=None, **k):
    d = dict(table=mixed_table, baskets=baskets)[dom](R, **k.pop("data", {})); net = net or C(R, ResMLP, mlp); k.setdefault("steps", I(R, 300, 420) if dom == "table" else I(R, 200, 280)); k.setdefault("w", I(R, 32, 56))
    J = Job(R, d, lambda **b: net(d[0].shape[1], d[4], **b), **k); J.info = dict(dom=dom, net=net.__name__); return J
def pts(R, **k): d = clouds(R, **k.pop("data", {})); k.setdefault("w", I(R, 16, 28)); return Job(R, d, lambda **b: PointNet(2, d[4], **b), **k)


def damaged(J, R, f, levels, notes, need=.06, oracle="restore", **k):
    g = copy.deepcopy(J.model).eval(); fix = restore(g); J.model, lv = worsen(J, R, f, levels, lambda m, l: fix(m), need); return J.out(f"{notes} (level {lv})", oracle=fix if oracle == "restore" else oracle, **k)


# ---- momentum
@situation("pointnet_lag_tiny_momentum", B, "lag", blind="inputs")
def _(R): J = pts(R, mom=LU(R, .001, .004), steps=I(R, 80, 130)); J.fit(); return J.out("point cloud net, a momentum of some thousandths for about a hundred steps", oracle="recal")
@situation("depthwise_layers_momentum_zero", B, "momentum_zero")
def _(R):
    J = vis(R, "shapes", Mobile)
    for m in J.model.modules():
        if isinstance(m, MB): m.f[1][1].momentum = 0.0
    J.fit(); return J.out("a per-layer setting gave the batch norms after depthwise convolutions momentum 0; the others are fine", oracle="recal")
@situation("keras_momentum_heavy_tails", B, "momentum_convention")
def _(R): J = tab(R, mom=C(R, .99, .995, .98), bs=I(R, 10, 16), data=dict(heavy=U(R, .15, .3))); J.fit(); return J.out("decay copied as momentum (0.98-0.995): buffers hold the last small batch of heavy-tailed columns", oracle="recal")
@situation("cumulative_average_since_start", B, "cumulative_average")
def _(R): J = vis(R, C(R, "garments", "shapes"), C(R, Mobile, VGG), mom="cum", steps=I(R, 35, 55), lr=U(R, .012, .02)); J.fit(); return J.out("momentum=None from the first step on: the average gives the first, wild steps the same weight as the last", oracle="recal")
@situation("power_law_momentum", B, "momentum_schedule")
def _(R):
    p = U(R, 1.5, 2.0); J = sig(R, net=PreRes, blocks=3); L = bns(J.model)
    def after(i):
        for b in L: b.momentum = (i + 2.0) ** -p
    J.fit(after=after, decay=False); return J.out(f"momentum follows t**-{p:.2f}, which sums to a constant: buffers stop early in training", oracle="recal", info=dict(p=round(p, 2)))


# ---- other data, other preprocessing
@situation("calibrated_with_bgr", B, "stats_other_preprocessing")
def _(R):
    d = list(garments(R, rgb=True)); g, o = f32(R.permutation([.4, 1.0, 3.0]))[None, :, None, None], f32(R.permutation([-2.0, 0.1, 2.2]) * U(R, .9, 1.4))[None, :, None, None]
    for i in (0, 2): d[i] = d[i] * g + o
    J = Job(R, d, lambda **b: VGG(3, d[4], **b)); J.good(); J.model = recal(J.model, [(a.flip(1), y) for a, y in J.loader()]); return J.out("the calibration loader read images as BGR, training and evaluation as RGB", oracle="recal")
@situation("statistics_of_other_patients", B, "stats_other_data")
def _(R):
    J = sig(R, "beats"); J.good(); o = beats(R, 800, 10, k=J.k, ch=J.x.shape[1])[0] * -U(R, 1.0, 1.8) + U(R, -.5, .5); J.model = recal(J.model, [(o, None)]); return J.out("statistics come from another group of patients with the leads the other way round", oracle="recal")
@situation("table_calibrated_without_log", B, "stats_other_preprocessing")
def _(R):
    J = tab(R, "baskets"); J.good(); q = U(R, .3, 1.0); J.model = recal(J.model, [(a + q * (torch.expm1(a) - a), y) for a, y in J.loader()]); return J.out("update_bn ran on (partly) raw counts, the model gets log1p counts", oracle="recal")


# ---- weights put back, buffers not
@situation("lr_range_test_leftovers", B, "restored_weights")
def _(R):
    J = vis(R, net=C(R, VGG, Mobile)); J.good(); keep = [p.data.clone() for p in J.model.parameters()]; top = LU(R, .5, 3); n = I(R, 25, 40); o = torch.optim.SGD(J.model.parameters(), 1e-4); J.model.train()
    for i in range(n):
        o.param_groups[0]["lr"] = 1e-4 * (top / 1e-4) ** (i / n); j = torch.as_tensor(R.integers(len(J.x), size=J.bs)); o.zero_grad(); l = ce(J.model(J.x[j]), J.y[j]); l.backward(); o.step()
    for p, q in zip(J.model.parameters(), keep): p.data.copy_(q)
    return J.out("a learning rate range test ran the model into divergence; parameters were put back, buffers not", oracle="recal")
@situation("early_stopping_best_parameters_only", B, "restored_weights")
def _(R):
    J = sig(R, lr=LU(R, .006, .012), steps=I(R, 45, 70)); J.fit(tail=10); keep = [p.data.clone() for p in J.model.parameters()]; J.fit(steps=I(R, 120, 200), decay=False, lr=J.lr * U(R, 1.5, 2.5), wd=U(R, 1, 3))
    for p, q in zip(J.model.parameters(), keep): p.data.copy_(q)
    return J.out("early stopping restored the parameters of the best epoch; the buffers are those of the last epoch", oracle="recal")
@situation("meta_learning_clones", B, "buffers_not_written_back", blind="inputs")
def _(R):
    J = pts(R); m = J.model; o = torch.optim.Adam(m.parameters(), J.lr); inner = LU(R, .005, .03)
    for i in range(J.steps):
        o.param_groups[0]["lr"] = J.lr * (1 - .95 * i / J.steps); c = copy.deepcopy(m).train(); j, q = [torch.as_tensor(R.integers(len(J.x), size=J.bs)) for _ in range(2)]
        g = torch.autograd.grad(ce(c(J.x[j]), J.y[j]), list(c.parameters()))
        with torch.no_grad():
            for p, d in zip(c.parameters(), g): p.sub_(inner * d)
        g = torch.autograd.grad(ce(c(J.x[q]), J.y[q]), list(c.parameters()))
        for p, d in zip(m.parameters(), g): p.grad = d
        o.step()
    return J.out("first-order meta-learning on deep copies: parameters get the clones' gradients, the clones' buffers are discarded", oracle="recal")


# ---- checkpoints and conversions
@situation("variance_key_renamed", B, "partial_checkpoint")
def _(R):
    J = vis(R, "garments", Dense); J.good(); sd = {k: v for k, v in J.model.state_dict().items() if not k.endswith("running_var")}; J.new().load_state_dict(sd, strict=False); return J.out("running_var has another name in the checkpoint (moving_variance) and was skipped; running_mean was loaded", oracle="recal")
@situation("darknet_field_order", B, "swapped_buffers")
def _(R):
    J = vis(R, net=C(R, VGG, PreRes)); J.good(); n = len(bns(J.model))
    def f(m, q):
        for b in bns(m)[-q:]: a = b.running_mean.clone(); b.running_mean.copy_(b.running_var); b.running_var.copy_(a)
    return damaged(J, R, f, [1, 2, 3, n], "a weight file reader took mean and variance in the wrong order in the last layers (some variances are negative)", oracle="recal")
@situation("concatenation_order", B, "misaligned_buffers", blind="nothing")
def _(R):
    J = vis(R, "garments", Branches, w=I(R, 6, 9)); J.good(); w = J.kw["w"]
    def f(m, q):
        for b in bns(m)[-q:]:
            for v in (b.running_mean, b.running_var): v.copy_(v.roll(w * C(R, 1, 2)))
    return damaged(J, R, f, [1, 2, 2], "branches are concatenated in another order than the stored statistics have", oracle="recal")
@situation("exported_variance_transformed", B, "variance_convention")
def _(R):
    J = C(R, tab, sig)(R); J.good()
    def f(m, q):
        for b in bns(m): v = b.running_var; v.copy_({"log1p": torch.log1p(v), "square": v ** 2, "unit": v / v.mean()}[q])
    return damaged(J, R, f, ["log1p", "unit", "square"], "the exporter wrote log1p, square or relative variances")
@situation("conv_bias_dropped", B, "mean_convention")
def _(R):
    s = U(R, .6, 1.6); J = vis(R, net=VGG)
    for c in convs(J.model)[:-1]: nn.init.normal_(c.bias, 0, s)
    J.good()
    with torch.no_grad():
        for c in convs(J.model)[:-1]: c.bias.zero_()
    return J.out("a converter dropped the biases of convolutions before batch norm as redundant; running_mean contains them", oracle="recal")
@situation("folded_but_kept", B, "folded_twice")
def _(R):
    J = vis(R, net=C(R, VGG, Mobile)); J.good(); L = [m for m in J.model.modules() if isinstance(m, nn.Sequential) and len(m) > 1 and isinstance(m[1], BN)]; n = len(L)
    g = copy.deepcopy(J.model).eval(); q = I(R, max(1, n // 2), n)
    with torch.no_grad():
        for s in [L[i] for i in R.permutation(n)[:q]]:
            c, b = s[0], s[1]; k = b.weight / (b.running_var + b.eps).sqrt(); c.weight.mul_(k.reshape(-1, 1, 1, 1)); bias = b.bias - b.running_mean * k
            if c.bias is None: c.bias = nn.Parameter(bias)
            else: c.bias.copy_(c.bias * k + bias)
    return J.out(f"batch norm was folded into {q} of {n} convolutions, but the layers stayed in the graph with their statistics", oracle="recal")


# ---- damage
@situation("empty_sequence_nan", B, "nan_batch")
def _(R):
    d = words(R); w = I(R, 20, 30)
    class Net(nn.Module):
        def __init__(s, **bn): super().__init__(); s.emb = nn.Embedding(d[5], 12); s.body = cbn(12, w, 5, nd=1, **bn); s.head = nn.Sequential(nn.Linear(w, w), nn.BatchNorm1d(w, **bn), nn.ReLU(), nn.Linear(w, d[4]))
        def forward(s, x): h = s.body(s.emb(x).transpose(1, 2)); k = (x != 0).float()[:, None]; return s.head((h * k).sum(2) / k.sum(2))
    J = Job(R, d, Net, steps=260); J.good(); x = J.x[:J.bs].clone(); x[I(R, 0, J.bs - 1)] = 0; passes(J.model, [x]); return J.out("an empty sequence (0/0 in the masked mean) passed in train mode; only the head's buffers are NaN, the optimiser skipped the step", oracle="recal")
@situation("sensor_outage_at_end", B, "constant_batch", blind="inputs")
def _(R):
    J = sig(R, "motion", C(R, VGG, Mobile), mom=U(R, .15, .35)); J.good(); n = I(R, 1, 2); c = torch.as_tensor(R.permutation(3)[:n]); v = U(R, -1, 1); xs = [J.x[torch.as_tensor(R.integers(len(J.x), size=J.bs))].clone() for _ in range(I(R, 10, 18))]
    for x in xs: x[:, c] = v
    passes(J.model, xs); return J.out(f"{n} of 3 sensors stood still during the last batches", oracle="recal")
@situation("one_unscaled_image_batch", B, "outlier_batch")
def _(R):
    J = vis(R, "digits", C(R, VGG, Dense), steps=200); J.good(); g = LU(R, 20, 255); passes(J.model, [J.x[:J.bs] * g] * I(R, 1, 2)); return J.out(f"a batch or two of 0..255 images (x {g:.0f}) passed at the end, with clipped gradients", oracle="recal")
@situation("bf16_buffers_stagnate", B, "half_precision")
def _(R):
    J = vis(R, net=C(R, VGG, PreRes), mom=LU(R, .002, .005), steps=I(R, 190, 230)); L = bns(J.model)
    def after(i):
        for b in L: b.running_mean.copy_(b.running_mean.bfloat16().float()); b.running_var.copy_(b.running_var.bfloat16().float())
    J.fit(after=after); return J.out("buffers kept in bfloat16 during training: increments below half a unit in the last place are lost", oracle="recal")
@situation("int8_buffers", B, "quantised_buffers")
def _(R):
    J = tab(R); J.good()
    def f(m, bits):
        for b in bns(m):
            for v in (b.running_mean, b.running_var): s = v.abs().max() / (2 ** (bits - 1) - 1); v.copy_((v / s).round() * s)
    return damaged(J, R, f, [8, 7, 6, 5, 4, 3], "buffers quantised with one scale per layer: small variances become 0", oracle="recal")
@situation("large_eps_lost", B, "eps_changed")
def _(R):
    e = U(R, .5, 3); J = sig(R, net=C(R, VGG, Branches), eps=e); J.good()
    def f(m, q):
        for b in bns(m): b.eps = q
    return damaged(J, R, f, [e * .1, 1e-2, 1e-3, 1e-5], f"trained with eps {e:.2g}, the export wrote the framework's default", oracle="restore")
@situation("privacy_noise_on_buffers", B, "noised_buffers", blind="nothing")
def _(R):
    J = vis(R, "garments"); J.good(); N = [(torch.randn_like(b.running_mean), torch.randn_like(b.running_var)) for b in bns(J.model)]
    def f(m, q):
        for b, (n, v) in zip(bns(m), N): b.running_mean += q * n * b.running_var.mean().sqrt(); b.running_var.add_(q * v * b.running_var.mean()).clamp_(min=.02 * float(b.running_var.mean().abs()))
    return damaged(J, R, f, [.1, .2, .3, .4, .6, .8, 1.2], "noise was added to the buffers on release, for privacy", oracle="recal")
@situation("sanitised_buffers", B, "clipped_buffers")
def _(R):
    J = tab(R, data=dict(cats=0)); J.good()
    def f(m, q):
        for b in bns(m): b.running_mean.clamp_(-q, q); b.running_var.clamp_(1 / (50 * q), q)
    return damaged(J, R, f, [4., 3., 2., 1., .5], "a guard against overflow clamps all stored tensors to a small range", oracle="recal")
@situation("tracking_switched_off_in_training", B, "tracking_switched_off")
def _(R):
    J = C(R, vis, pts)(R)
    for b in bns(J.model): b.track_running_stats = False
    J.good()
    for b in bns(J.model): b.track_running_stats = True
    return J.out("track_running_stats was set to False during training and to True again for deployment: the buffers exist and never moved", oracle="recal")
@situation("checkpoint_buffers_averaged_with_defaults", B, "merged_buffers")
def _(R):
    J = vis(R, net=C(R, VGG, PreRes)); J.good(); q = U(R, .3, .5)
    def f(m, q):
        for b in bns(m): b.running_mean.mul_(1 - q); b.running_var.mul_(1 - q).add_(q)
    return damaged(J, R, f, [.3, .4, .5, .6, .75, .9], "replicas' buffers were averaged, and some replicas had never seen a batch (0 and 1)", oracle="recal")
SITUATIONS, SPARE = split(SITUATIONS)
