"""Broken: statistics that are stale, foreign, lost or damaged, over images, signals and tables."""
from base import *
SITUATIONS, situation = registry()
B = "broken"


def corrupt(T, R, fn, levels, notes, drop=0.05, oracle="recal", fit=True, **k):
    if fit: T.fit()
    good = copy.deepcopy(T.model).eval()
    m, lv = escalate(T, T.model, fn, levels, R, drop)
    d = T.out(f"{notes} (level {lv})", model=m, oracle=restore(good) if oracle == "restore" else oracle, **k)
    d["params"]["level"] = str(lv)
    return d


# ---- momentum
def lag(R, dom, **k):
    T = Task(R, dom, mom=LU(R, 0.001, 0.006), steps=I(R, 60, 150), **k)
    T.fit()
    return T.out("trained for few steps at a very small momentum: the running statistics are still near their initial values", oracle="recal")
@situation("lag_fmnist", B, "lag")
def _(R): return lag(R, "fmnist")
@situation("lag_signals", B, "lag")
def _(R): return lag(R, "signals")
@situation("lag_tabular", B, "lag")
def _(R): return lag(R, "tabular", input_bn=True)


@situation("fast_last_phase_lag", B, "lag")
def _(R):
    T = Task(R, "textures", mom=LU(R, 0.01, 0.03))
    T.fit()
    T.fit(steps=I(R, 10, 18), lr=LU(R, 0.015, 0.03), decay=False)
    return T.out("a warm restart of the learning rate a dozen steps before the checkpoint moved the weights; the statistics (small momentum) are those of before", oracle="recal")


@situation("momentum_zero_digits", B, "momentum_zero")
def _(R):
    T = Task(R, "digits", mom=0.0)
    T.fit()
    return T.out("momentum=0.0 in every layer: the buffers never moved from 0 and 1", oracle="recal")


@situation("momentum_zero_some_layers", B, "momentum_zero")
def _(R):
    T = Task(R, "tabular", depth=4, style="plain")
    L = bns(T.model)
    for b in L[I(R, 0, 1)::2]: b.momentum = 0.0
    T.fit()
    return T.out("momentum 0 in every second layer (a config for 'frozen' layers that kept batch statistics in training)", oracle="recal")


@situation("momentum_keras_convention", B, "momentum_convention")
def _(R):
    T = Task(R, "signals", mom=C(R, 0.99, 0.999, 0.95), bs=2, steps=I(R, 350, 450), depth=4, data=dict(noise=1.4, k=7))
    T.fit(lr=2e-3)
    return T.out("momentum 0.9-0.999 in the Keras convention, so the buffers hold the last small batch", oracle="recal")


@situation("momentum_keras_tabular", B, "momentum_convention")
def _(R):
    T = Task(R, "tabular", mom=C(R, 0.99, 0.997), bs=C(R, 8, 10, 12), depth=I(R, 3, 5), steps=I(R, 400, 600))
    T.fit()
    return T.out("momentum 0.99 in the Keras convention, with small batches", oracle="recal")


@situation("momentum_schedule_pointnet", B, "momentum_schedule")
def _(R):
    m0 = U(R, 0.1, 0.3)
    T = Task(R, C(R, "fmnist", "digits"), mom=m0, steps=I(R, 180, 260), depth=4, style=C(R, "plain", "post"))
    L = bns(T.model); q, every = U(R, 0.3, 0.5), I(R, 4, 7)
    def after(s):
        for b in L: b.momentum = m0 * q ** (s // every)
    T.fit(after=after, decay=False)
    return T.out("momentum decays by a step schedule far faster than training converges: the buffers stopped early", oracle="recal", params=dict(q=q, every=every, m0=m0, dom=T.dom))


# ---- other data
@situation("recalibrated_with_raw_pixels", B, "stats_other_preprocessing")
def _(R):
    T = Task(R, "fmnist"); T.fit(); T.split_eval()
    k = C(R, "0..1", "0..255", "x2")
    f = {"0..1": lambda x: x * 0.32 + 0.286, "0..255": lambda x: 255 * (x * 0.32 + 0.286), "x2": lambda x: x * 2 + 0.5}[k]
    T.model = recal(T.model, [(f(a), b) for a, b in T.loader()])
    return T.out(f"statistics were re-estimated over a loader with other preprocessing ({k})", oracle="recal")


@situation("stats_of_other_dataset", B, "stats_other_data")
def _(R):
    T = Task(R, "digits", data=dict(size=14)); T.fit()
    o = fmnist(R, 1000, 10)
    T.model = recal(T.model, [(o[0] * U(R, 0.8, 1.2), o[1])])
    return T.out("statistics re-estimated on another data set (clothing) than the one of the task (digits)", oracle="recal")


@situation("stats_of_gaussian_noise", B, "stats_other_data")
def _(R):
    T = Task(R, C(R, "fmnist", "digits")); T.fit()
    s = U(R, 1.0, 2.5)
    T.model = recal(T.model, [(torch.randn(256, *T.x.shape[1:]) * s, None) for _ in range(4)], as_is=True)
    return T.out("a warm-up / export run with random inputs in train mode rewrote the statistics", oracle="recal")


@situation("export_dummy_forward_train_mode", B, "extra_forward_train_mode")
def _(R):
    T = Task(R, "fmnist", mom=U(R, 0.1, 0.3)); T.fit(); T.split_eval()
    T.model.train(); n = I(R, 6, 20); c = C(R, 0.0, 1.0)
    with torch.no_grad():
        for _ in range(n): T.model(torch.full((8, 1, 14, 14), c) + 0.1 * torch.randn(8, 1, 14, 14))
    return T.out("dummy inputs (profiling, shape tests) were passed in train mode after training", oracle="recal")


@situation("validation_in_train_mode", B, "extra_forward_train_mode")
def _(R):
    T = Task(R, "textures", mom=U(R, 0.1, 0.2)); T.split_eval()
    gain, off = U(R, 0.3, 0.5), U(R, 0.8, 1.5)
    val = [a * gain + off for a, _ in batches(T.xe, T.ye, 64)]
    def after(s):
        if (s + 1) % 50 == 0 or s == T.steps - 1:
            with torch.no_grad():
                for v in val: T.model(v)
    T.fit(after=after)
    return T.out("validation (another camera: other gain and offset) was run in train mode at the end of each epoch", oracle="recal", eval_loader=T.eval_loader())


@situation("two_domains_alternating", B, "second_domain")
def _(R):
    T = Task(R, "fmnist"); T.split_eval()
    inv = U(R, 0.8, 1.0); g = U(R, 1.5, 2.5)
    o = fmnist(R, 3000, 10)
    dom2 = lambda x: -g * x + inv
    m = T.model; opt = torch.optim.Adam(m.parameters(), T.lr); m.train()
    steps = T.steps
    for s in range(steps):
        for x, y, f in ((T.x, T.y, None), (o[0], o[1], dom2)):
            i = torch.as_tensor(R.integers(0, 3000, T.bs)); xb = x[i]
            opt.param_groups[0]["lr"] = T.lr * (1 - .95 * s / steps)
            opt.zero_grad(); ce(m(f(xb) if f else xb), y[i]).backward(); opt.step()
    return T.out("multi-domain training with separate batches per domain through the same layers: buffers hold the mixture, evaluation is on the first domain", oracle="recal")


@situation("sim_then_real_short", B, "second_domain")
def _(R):
    T = Task(R, "signals", mom=LU(R, 0.01, 0.02)); T.split_eval()
    g, b = U(R, 2, 3), U(R, 1, 2)
    T.fit(x=T.x * g + b)
    T.fit(steps=I(R, 15, 30), lr=T.lr / 4)
    return T.out("pre-trained on simulated signals of another gain and offset, fine-tuned on real ones for a few steps at a small momentum: the buffers are still mostly of simulation", oracle="recal")


@situation("discriminator_fake_batches", B, "discriminator_fakes")
def _(R):
    T = Task(R, "digits"); T.split_eval(); m = T.model
    g = U(R, 0.2, 0.5); off = U(R, 1.2, 2.5) * C(R, -1, 1)
    def after(s):
        fake = torch.randn(T.bs, *T.x.shape[1:]) * g + off
        m(fake).logsumexp(1).mean().mul(0)
    T.fit(after=after)
    return T.out("semi-supervised GAN's discriminator: generated batches (noise-like) pass separately in train mode after each real batch; judged as a classifier of real images", oracle="recal")


# ---- lost buffers
@situation("functional_training_buffers_lost", B, "buffers_not_written_back")
def _(R):
    T = Task(R, "tabular"); m = T.model.train(); o = torch.optim.Adam(m.parameters(), T.lr)
    for s in range(T.steps):
        i = torch.as_tensor(R.integers(0, len(T.x), T.bs))
        bufs = {k: v.clone() for k, v in m.named_buffers()}
        o.param_groups[0]["lr"] = T.lr * (1 - .95 * s / T.steps)
        o.zero_grad(); ce(torch.func.functional_call(m, {**dict(m.named_parameters()), **bufs}, (T.x[i],)), T.y[i]).backward(); o.step()
    return T.out("trained through functional_call on cloned buffers that are never written back: statistics and the batch counter are still at their defaults", oracle="recal")


def partial(R, dom, what):
    T = Task(R, dom); T.fit(); T.split_eval()
    sd = T.model.state_dict(); T.new()
    keys = [k for k in sd if k.endswith("running_mean")]
    n = I(R, max(1, len(keys) // 3), max(1, 2 * len(keys) // 3)); drop = {keys[i] for i in R.permutation(len(keys))[:n]}
    pre = {k.rsplit(".", 1)[0] for k in drop}
    suff = {"all": ("running_mean", "running_var", "num_batches_tracked"), "var": ("running_var",)}[what]
    good = {k: v for k, v in sd.items() if not (k.rsplit(".", 1)[0] in pre and k.endswith(suff))}
    T.model.load_state_dict(good, strict=False)
    return T.out(f"checkpoint loaded with strict=False: buffers of {n} of {len(keys)} layers missing, left at default", oracle="recal")
@situation("partial_checkpoint_textures", B, "partial_checkpoint")
def _(R): return partial(R, "textures", "all")
@situation("partial_checkpoint_signals", B, "partial_checkpoint")
def _(R): return partial(R, "signals", "all")


@situation("params_only_checkpoint", B, "partial_checkpoint")
def _(R):
    T = Task(R, "fmnist"); T.fit(); ps = [p.data.clone() for p in T.model.parameters()]; T.new()
    for p, q in zip(T.model.parameters(), ps): p.data.copy_(q)
    return T.out("only named_parameters() were saved and restored, all buffers are at their defaults", oracle="recal")


def swap(m, i, j):
    L = bns(m)
    for n in ("running_mean", "running_var"):
        a, b = getattr(L[i], n), getattr(L[j], n); c = a.clone(); a.copy_(b); b.copy_(c)


@situation("swapped_layer_buffers", B, "swapped_buffers")
def _(R):
    T = Task(R, "tabular", depth=4, style="plain", input_bn=False)
    pairs = [(0, 1), (1, 2), (2, 3), (0, 2), (1, 3), (0, 3)]; pairs = [pairs[i] for i in R.permutation(6)]
    def f(m, n):
        for q in pairs[:n]: swap(m, *q)
    return corrupt(T, R, f, [1, 2, 3, 4], "buffers of equal-width layers exchanged by an off-by-one key conversion", oracle="restore")


@situation("permuted_channels_buffers", B, "misaligned_buffers")
def _(R):
    T = Task(R, "fmnist", style="plain")
    def f(m, n):
        for b in bns(m)[-n:] if n < 9 else bns(m):
            p = torch.as_tensor(R.permutation(b.num_features))
            b.running_mean.copy_(b.running_mean[p]); b.running_var.copy_(b.running_var[p])
    return corrupt(T, R, f, [1, 2, 3, 9], "channel-wise pruning tool reordered weights and affine but left the buffers in the old order", oracle="restore")


@situation("running_var_is_std", B, "variance_convention")
def _(R):
    T = Task(R, C(R, "tabular", "signals"))
    def f(m, n):
        for b in bns(m):
            b.running_var.copy_({"std": b.running_var.sqrt(), "inv": 1 / (b.running_var + b.eps), "sumsq": b.running_var + b.running_mean ** 2}[n])
    return corrupt(T, R, f, ["sumsq", "std", "inv"], "converted weights: running_var was filled with another convention (second moment, standard deviation, or inverse variance)", oracle="restore")


@situation("bias_folded_twice", B, "mean_convention")
def _(R):
    T = Task(R, "textures", style="post")
    T = Task(R, "tabular", style="plain", input_bn=False, depth=3); T.fit()
    def f(m, a):
        lin = [x for x in m.body if isinstance(x, nn.Linear)]
        with torch.no_grad():
            for l, b in zip(lin, bns(m)):
                if a == "zeroed": b.running_mean.zero_()
                elif a == "doubled": b.running_mean.mul_(2)
                else: b.running_mean.neg_()
    return corrupt(T, R, f, ["zeroed", "doubled", "negated"], "conversion lost or changed the sign of running_mean", oracle="restore", fit=False)


# ---- damage by one batch
@situation("nan_batch", B, "nan_batch")
def _(R):
    T = Task(R, "tabular"); T.fit(); T.split_eval(); T.model.train(); x = T.x[:T.bs].clone()
    x[I(R, 0, T.bs - 1), I(R, 0, x.shape[1] - 1)] = float(C(R, "nan", "inf"))
    with torch.no_grad(): T.model(x)
    return T.out("one batch with a NaN or inf value passed in train mode; the optimiser step was skipped by a guard, the buffers kept the NaN", oracle="recal")


@situation("inf_batch_one_layer_image", B, "nan_batch")
def _(R):
    T = Task(R, "fmnist"); T.fit(); T.split_eval(); b = bns(T.model)[I(R, 0, len(bns(T.model)) - 1)]
    c = torch.as_tensor(R.permutation(b.num_features)[:I(R, 1, 3)])
    b.running_var[c] = float(C(R, "inf", "nan")); b.running_mean[c] = float(C(R, "inf", "nan"))
    return T.out("an overflow in mixed precision left inf/NaN in a few channels of one layer's buffers", oracle="recal")


@situation("blank_batch_high_momentum", B, "constant_batch")
def _(R):
    T = Task(R, "textures", mom=U(R, 0.5, 0.95)); T.fit(); T.split_eval(); T.model.train()
    with torch.no_grad(): T.model(torch.full((T.bs, *T.x.shape[1:]), U(R, -0.2, 0.5)))
    return T.out("the last batch was blank (failed loads filled with a constant) at a high momentum: variances near zero", oracle="recal")


@situation("outlier_batch_tabular", B, "outlier_batch")
def _(R):
    T = Task(R, "tabular"); T.fit(); T.split_eval(); T.model.train(); s = T.model.state_dict()
    x = T.x[:T.bs].clone(); x[0] = x[0] * LU(R, 1e3, 1e5)
    with torch.no_grad(): T.model(x)
    return T.out("one corrupt record (a unit error) passed near the end of training and inflated the variances; clipped gradients kept the weights", oracle="recal")


# ---- precision
@situation("fp16_overflow_variance", B, "half_precision")
def _(R):
    s = LU(R, 400, 2000)
    T = Task(R, "signals"); T.x, T.xt = T.x * s, T.xt * s; T.split_eval(); T.fit()
    for b in bns(T.model):
        b.running_var.copy_(b.running_var.half().float()); b.running_mean.copy_(b.running_mean.half().float())
    return T.out("checkpoint saved in float16: variances above 65504 became inf", oracle="recal")


@situation("fp16_underflow_variance", B, "half_precision")
def _(R):
    s = LU(R, 2e-5, 1e-4)
    T = Task(R, "tabular", depth=2, eps=1e-12, input_bn=True, data=dict(scale=False)); T.x, T.xt = T.x * s, T.xt * s; T.split_eval(); T.fit()
    for b in bns(T.model):
        b.running_var.copy_(b.running_var.half().float()); b.running_mean.copy_(b.running_mean.half().float())
    return T.out("checkpoint saved in float16: small variances (unscaled small inputs) underflowed to zero or lost their digits", oracle="recal")


@situation("bf16_large_offset", B, "half_precision")
def _(R):
    T = Task(R, "tabular", input_bn=True, data=dict(scale=False)); off = torch.as_tensor(R.uniform(200, 900, T.x.shape[1]) * R.choice([-1, 1], T.x.shape[1])).float()
    T.x, T.xt = T.x + off, T.xt + off; T.split_eval(); T.fit()
    for b in bns(T.model): b.running_mean.copy_(b.running_mean.bfloat16().float())
    return T.out("buffers rounded to bfloat16 while inputs have large offsets (years, identifiers): means off by more than a deviation", oracle="recal")


# ---- eps, many, several
@situation("eps_changed", B, "eps_changed")
def _(R):
    T = Task(R, "fmnist"); T.x, T.xt = T.x * .05, T.xt * .05; T.split_eval(); T.fit()
    def f(m, e):
        for b in bns(m): b.eps = e
    def orc(m):
        m = copy.deepcopy(m)
        for b in bns(m): b.eps = 1e-5
        return m
    return corrupt(T, R, f, [1e-3, 1e-2, .05, .2, 1.0], "eps of the deployment framework differs from training's 1e-5 while some activations are small", oracle=orc, fit=False)


@situation("many_small_errors_deep", B, "many_small_errors")
def _(R):
    T = Task(R, "textures", depth=5, style="dw"); sg = [torch.as_tensor(R.standard_normal(b.num_features)).float() for b in bns(T.model)]
    sv = [torch.as_tensor(R.standard_normal(b.num_features)).float() for b in bns(T.model)]
    def f(m, e):
        for b, g, v in zip(bns(m), sg, sv):
            b.running_mean += e * g * b.running_var.sqrt(); b.running_var *= torch.exp(e * v)
    return corrupt(T, R, f, [.15, .2, .25, .3, .4, .5, .6, .8], "every layer's statistics are off by a small random fraction of a deviation (estimated on too few samples)", oracle="restore")


@situation("many_small_errors_mlp", B, "many_small_errors")
def _(R):
    T = Task(R, "tabular", depth=5, style="plain"); sg = [torch.as_tensor(R.standard_normal(b.num_features)).float() for b in bns(T.model)]
    def f(m, e):
        for b, g in zip(bns(m), sg): b.running_mean += e * g * b.running_var.sqrt(); b.running_var *= 1 + e
    return corrupt(T, R, f, [.15, .2, .25, .3, .4, .5, .6, .8, 1.1], "statistics of every layer estimated from a few samples only", oracle="recal")


@situation("several_causes_at_once", B, "several_causes")
def _(R):
    T = Task(R, "fmnist", mom=LU(R, .01, .02), steps=120, depth=4); T.fit(); T.split_eval(); L = bns(T.model)
    def f(m, e):
        L = bns(m); L[-1].reset_running_stats() if e > 1 else None
        L[1].running_var *= 1 + e; L[0].eps = 1e-5 * 10 ** e; L[2].running_mean += .3 * e * L[2].running_var.sqrt()
        L[0].running_var[0] = float("nan") if e == 4 else L[0].running_var[0]
    def orc(m):
        m = recal(m, ld)
        for b in bns(m): b.eps = 1e-5
        return recal(m, ld)
    ld = T.loader()
    return corrupt(T, R, f, [1, 2, 3, 4], "lag from a small momentum, a layer reset, an inflated variance and another eps together", oracle=orc, fit=False, loader=ld)
