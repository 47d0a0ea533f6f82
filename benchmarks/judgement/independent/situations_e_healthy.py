"""Healthy, many of them odd."""
from special import *
from situations_b_broken import KeepBN, SeqNet, SeqTask, seq_fit, prune, quant
SITUATIONS, situation = registry()
H = "healthy"


def ok(T, model=None, **k):
    """Train, then a short last phase at a low rate, as schedules do."""
    T.fit(model, **k); k.pop("steps", None); k.pop("decay", None); T.fit(model, **{**k, "steps": 40, "lr": k.get("lr", T.lr) / 40}); return T


def hv(R, dom, **k):
    k.setdefault("mom", LU(R, .05, .12))
    if dom == "digits": k.setdefault("steps", I(R, 240, 300)); k.setdefault("style", C(R, "plain", "post", "res")); k.setdefault("depth", 3)
    return Task(R, dom, **k)


for dom in ("fmnist", "digits", "textures", "signals", "tabular"):
    @situation(f"plain_{dom}", H)
    def _(R, dom=dom): return ok(hv(R, dom)).out("normal training")


@situation("heavy_tailed_inputs", H)
def _(R): return ok(hv(R, "tabular", bs=128, mom=LU(R, .01, .03), steps=600, data=dict(heavy=True, scale=True))).out("heavy-tailed (Student t, 2 degrees) noise in every column, small momentum and many steps")
@situation("rare_binary_features", H)
def _(R): return ok(hv(R, "tabular", bs=128, mom=LU(R, .02, .05), steps=500, data=dict(binary=I(R, 5, 15)))).out("some columns are rare binary indicators (0.5 to 5 per cent)")
@situation("constant_columns", H)
def _(R):
    T = hv(R, "tabular"); n = I(R, 1, 4); c = C(R, 0.0, 3.0); p = lambda x: torch.cat([x, torch.full((len(x), n), c)], 1); T.x, T.xt = p(T.x), p(T.xt); T.new()
    return ok(T).out("constant columns: zero variance in the input layer, harmless")
@situation("unscaled_features_wide_range", H)
def _(R):
    T = hv(R, "tabular"); s = torch.as_tensor(10 ** R.uniform(-4, 4, T.x.shape[1])).float(); T.x, T.xt = T.x * s, T.xt * s; s2 = T.x.std(0)
    for b in bns(T.model)[:1]: b.eps = 1e-12
    return ok(T).out("columns over eight orders of magnitude, normalised by an input batch norm")
@situation("momentum_none", H)
def _(R):
    T = hv(R, "signals"); T.fit()
    for b in bns(T.model): b.momentum = None; b.reset_running_stats()
    T.model.train(); T.fit(steps=60, lr=T.lr / 50)
    return T.out("momentum=None (cumulative average), reset before a last low-rate phase")
@situation("affine_false", H)
def _(R): return ok(hv(R, C(R, "fmnist", "signals"), affine=False)).out("affine=False")
@situation("no_tracking_large_batches", H)
def _(R): T = ok(hv(R, C(R, "textures", "tabular"), track_running_stats=False, bs=128)); return T.out("track_running_stats=False, evaluated in shuffled batches of 250")
@situation("eps_large", H)
def _(R): return ok(hv(R, C(R, "fmnist", "tabular"), eps=LU(R, .05, 1.0))).out("large eps, the same in training and evaluation")
@situation("high_momentum_stable_data", H)
def _(R): return ok(hv(R, "tabular", mom=U(R, .7, .9), bs=512)).out("momentum 0.7-0.9, but batches of 512 of stable data")
@situation("low_momentum_long_training", H)
def _(R): T = hv(R, "tabular", mom=LU(R, .01, .02), steps=800); return ok(T).out("momentum 0.01-0.02 with enough steps")
@situation("class_imbalanced", H)
def _(R):
    T = hv(R, C(R, "digits", "signals"), steps=240, bs=96); w = np.exp(-R.uniform(.3, .5) * np.arange(T.k)); a = R.choice(len(T.y), 4000, p=(w[T.y] / w[T.y].sum())); b = R.choice(len(T.yt), 4000, p=(w[T.yt] / w[T.yt].sum())); T.x, T.y, T.xt, T.yt = T.x[t(a)], T.y[t(a)], T.xt[t(b)], T.yt[t(b)]
    return ok(T).out("imbalanced classes, the same in training and evaluation")
@situation("tiny_eval_set", H)
def _(R): T = ok(hv(R, "textures")); n = I(R, 12, 30); T.split_eval(n); return T.out("the user's evaluation set has a dozen or two samples", eval_loader=T.eval_loader(8))
@situation("eval_singles", H)
def _(R): T = ok(hv(R, "signals")); T.split_eval(300); return T.out("evaluated one sample at a time", eval_loader=T.eval_loader(1), test_loader=T.test(1))
@situation("small_batches_recalibrated", H)
def _(R):
    T = hv(R, "tabular", bs=C(R, 8, 12), steps=900); T.fit(); T.model = recal(T.model, T.loader(256)); return T.out("small batches (8-12) in training, statistics re-estimated afterwards over large ones")
@situation("small_batches_spatial", H)
def _(R): return ok(hv(R, "fmnist", bs=C(R, 8, 12), mom=.02, steps=300, depth=3, style=C(R, "plain", "post"))).out("batches of 8-12 images, small momentum: many positions per channel")
@situation("stored_statistics_finetune", H)
def _(R):
    T = hv(R, C(R, "fmnist", "digits"), depth=3); g, o = U(R, 1.2, 2.0), U(R, -1, 1); T.fit(steps=50, x=T.x * g + o, decay=False); T.fit(mode=False, steps=T.steps); return T.out("fine-tuned with the pre-training statistics fixed; they differ from the data's and the weights expect them")
@situation("never_train_mode", H)
def _(R): T = hv(R, C(R, "tabular", "signals")); T.fit(mode=False, steps=int(T.steps * 1.4)); return T.out("train() was never called: learnt with statistics 0 and 1, consistent in evaluation")
@situation("eval_after_first_epoch", H)
def _(R):
    T = hv(R, "digits"); T.fit(steps=60, decay=False); T.fit(mode=False); return T.out("validation called eval() after the first epoch and nobody called train() again: later training used the stored statistics")
@situation("frozen_backbone_new_head", H)
def _(R):
    T = hv(R, "fmnist", depth=3, width=16, style="plain"); g, o = U(R, 1.2, 1.6), U(R, -.5, .5); n = I(R, 5, 7); q = T.y < n
    T.fit(x=T.x[q] * g + o, y=T.y[q], steps=120)
    for p in T.model.features.parameters(): p.requires_grad_(False)
    T.model.head = nn.Sequential(nn.Linear(T.model.width_out, 64), nn.ReLU(), nn.Linear(64, 10)); T.fit(mode=False, params=list(T.model.head.parameters()), steps=300, lr=.01)
    return T.out("frozen backbone in eval (statistics of another subset of classes, gain and offset), a head trained for all classes on top")
@situation("partially_frozen", H)
def _(R):
    T = hv(R, "fmnist", depth=4); T.fit(steps=120); n = I(R, 1, 3)
    fr = [b for b in bns(T.model)][:n]
    T.model.train()
    for b in fr: nn.Module.train(b, False)
    T.fit(mode=None, steps=150); T.fit(mode=None, steps=40, lr=T.lr / 40)
    return T.out("first layers' statistics frozen in the second half of training, the others live")
@situation("stochastic_depth", H)
def _(R):
    T = hv(R, "fmnist"); w = I(R, 12, 16); p = U(R, .1, .3)
    class SD(nn.Module):
        def __init__(s): super().__init__(); s.f = Block(w, w, 2, "plain", "relu", momentum=T.mom)
        def forward(s, x):
            if s.training and torch.rand(()) < p: return x
            return x + s.f(x) * (1.0 if s.training else 1 - p)
    T.model = nn.Sequential(Block(1, w, 2, "plain", "relu"), nn.MaxPool2d(2), SD(), SD(), nn.MaxPool2d(2), SD(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(w, 10)); T.fit(); T.fit(steps=40, lr=T.lr / 40); T.model = recal(T.model, T.loader())
    return T.out("stochastic depth, statistics re-estimated without it")
@situation("swa_with_update_bn", H)
def _(R):
    from torch.optim.swa_utils import AveragedModel, update_bn
    T = hv(R, C(R, "fmnist", "textures")); T.fit(steps=100, decay=False); sw = AveragedModel(T.model); T.fit(steps=100, lr=.01, decay=False, after=lambda s: sw.update_parameters(T.model) if s % 10 == 9 else None); ld = T.loader(); update_bn(ld, sw)
    return T.out("weights averaged, update_bn called", model=sw.module, loader=ld)
@situation("ema_with_buffers", H)
def _(R):
    T = hv(R, "digits"); E = copy.deepcopy(T.model)
    def after(s):
        with torch.no_grad():
            for p, q in zip(E.state_dict().values(), T.model.state_dict().values()): p.lerp_(q, .05) if p.is_floating_point() else p.copy_(q)
    T.fit(after=after); T.fit(after=after, steps=60, lr=T.lr / 40); return T.out("averaged weights and buffers", model=E)
@situation("pruned_recalibrated", H)
def _(R): T = ok(hv(R, "fmnist")); prune(T.model, U(R, .3, .6)); T.model = recal(T.model, T.loader()); return T.out("pruned, then statistics re-estimated")
@situation("quantised_recalibrated", H)
def _(R): T = ok(hv(R, "signals")); quant(T.model, C(R, 3, 4)); T.model = recal(T.model, T.loader()); return T.out("quantised weights, then statistics re-estimated")
@situation("quantised_8bit", H)
def _(R): T = ok(hv(R, "textures")); quant(T.model, C(R, 7, 8)); return T.out("weights rounded to 7-8 bits: harmless")
@situation("dead_channels", H)
def _(R):
    T = hv(R, "fmnist", style="plain")
    with torch.no_grad():
        for b in bns(T.model):
            j = torch.as_tensor(R.permutation(b.num_features)[:b.num_features // 4]); b.weight[j] = 0; b.bias[j] = 0
        T.model.features[0].conv.weight[:I(R, 1, 3)] = 0
    return ok(T).out("zeroed scales and a dead filter with zero variance")
@situation("network_slimming_masks", H)
def _(R):
    T = ok(hv(R, "textures", style="plain"))
    T.split_eval(); r = evaluate(T.model, T.test(500))
    with torch.no_grad():
        for b in bns(T.model)[1:-1]:
            j = torch.argsort(b.weight.abs())[:max(1, b.num_features // 8)]; b.weight[j] = 0; b.running_mean[j] = 0; b.running_var[j] = C(R, 0.0, 1.0)
    T.fit(steps=60, lr=T.lr / 4); T.fit(steps=40, lr=T.lr / 40); return T.out("some scales pruned to zero, their buffers cleared, then trained on")
@situation("garbage_buffers_of_unused_layer", H)
def _(R):
    T = ok(hv(R, "signals")); T.model.aux = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8)); T.model.aux[1].running_var.fill_(C(R, 1e9, float("inf"), 0.0))
    return T.out("an auxiliary head that the forward does not use has absurd buffers")
@situation("mild_augmentation", H)
def _(R): s = U(R, .05, .15); T = hv(R, "fmnist"); f = lambda x: x.roll(int(R.integers(-1, 2)), 3) + s * torch.randn_like(x); ok(T, aug=f); return T.out("mild augmentation in training, none at evaluation")
@situation("adapted_to_eval_domain", H)
def _(R):
    T = ok(hv(R, "fmnist")); g, o = U(R, 1.5, 2.5), U(R, -1.5, 1.5); T.xt = T.xt * g + o; T.split_eval(1000); T.model = recal(T.model, T.eval_loader(100)); return T.out("statistics were adapted on unlabelled data of the evaluation domain; the training loader is still of the source domain", eval_loader=T.eval_loader(100))
@situation("shards_iid_rank0", H)
def _(R):
    T = hv(R, "signals", bs=48); m = T.model.train(); opt = torch.optim.Adam(m.parameters(), T.lr); n = T.steps + 40
    for s in range(n):
        opt.param_groups[0]["lr"] = T.lr * (1 - .97 * min(1, s / T.steps)); opt.zero_grad()
        for r in range(2):
            for b in bns(m): b.momentum = T.mom if r == 0 else 0.0
            i = torch.as_tensor(R.integers(0, len(T.x), T.bs)); (ce(m(T.x[i]), T.y[i]) / 2).backward()
        opt.step()
    for b in bns(m): b.momentum = T.mom
    return T.out("data-parallel, shards alike, rank 0's buffers")
@situation("gradient_checkpointing_double_updates", H)
def _(R):
    T = hv(R, "tabular"); m = T.model.train(); o = torch.optim.Adam(m.parameters(), T.lr); from torch.utils.checkpoint import checkpoint
    for s in range(T.steps + 40):
        i = torch.as_tensor(R.integers(0, len(T.x), T.bs)); o.param_groups[0]["lr"] = T.lr * (1 - .97 * min(1, s / T.steps)); o.zero_grad(); ce(m.head(checkpoint(m.body, T.x[i], use_reentrant=False)), T.y[i]).backward(); o.step()
    return T.out("activation checkpointing updates the buffers twice a step with the same batch")
@situation("ghost_micro_batches", H)
def _(R):
    T = hv(R, "tabular", bs=96, mom=LU(R, .02, .04)); m = T.model.train(); o = torch.optim.Adam(m.parameters(), T.lr)
    for s in range(T.steps + 40):
        i = torch.as_tensor(R.integers(0, len(T.x), T.bs)); o.param_groups[0]["lr"] = T.lr * (1 - .97 * min(1, s / T.steps)); o.zero_grad()
        for j in i.split(32): (ce(m(T.x[j]), T.y[j]) / 3).backward()
        o.step()
    return T.out("gradient accumulation over micro-batches of 32")
@situation("fp16_buffers_in_range", H)
def _(R):
    T = ok(hv(R, C(R, "fmnist", "textures")))
    for b in bns(T.model): b.running_var.copy_(b.running_var.half().float()); b.running_mean.copy_(b.running_mean.half().float())
    return T.out("buffers rounded to float16 within its range: harmless")
@situation("large_activations", H)
def _(R):
    s = LU(R, 50, 5000); T = hv(R, "signals"); T.x, T.xt = T.x * s, T.xt * s; return ok(T).out("very large raw inputs; first layer's variances are huge and right")
@situation("tokens_without_padding", H)
def _(R):
    T = SeqTask(R, mom=LU(R, .05, .12)); r = [torch.randint(1, T.model.emb.num_embeddings, x.shape) for x in (T.x, T.xt)]; L = 16
    T.x, T.xt = T.x[:, :L], T.xt[:, :L]; f = lambda x, q: torch.where(x == 0, q[:, :L], x); T.x, T.xt = f(T.x, r[0]), f(T.xt, r[1]); ok(T); return T.out("sequences of one length, no padding")
@situation("tokens_padding_consistent", H)
def _(R): T = SeqTask(R, C(R, "right", "left"), mom=LU(R, .05, .1)); T.bs = 64; ok(T); return T.out("padding is counted, but the amount is the same mixture in training and evaluation")
@situation("signals_padded_consistent", H)
def _(R):
    T = hv(R, "signals", bs=96)
    def cut(x): n = R.integers(30, 64, len(x)); return x * (torch.arange(64)[None] < t(n)[:, None])[:, None]
    T.x, T.xt = cut(T.x), cut(T.xt); return ok(T).out("zero-padded signals, the same lengths in training and evaluation")
@situation("shared_bn_same_distribution", H)
def _(R):
    T = hv(R, "tabular"); d = T.x.shape[1]; w = 48
    class Two(nn.Module):
        def __init__(s): super().__init__(); s.e = nn.Sequential(nn.Linear(d, w), nn.BatchNorm1d(w, momentum=T.mom / 2), nn.ReLU()); s.h = nn.Linear(w, T.k); s.b = nn.BatchNorm1d(w, momentum=T.mom); s.m = nn.Linear(w, w)
        def forward(s, x): a = s.e(x); c = s.e(x + .01 * torch.randn_like(x)) if s.training else s.e(x); return s.h(torch.relu(s.b(s.m((a + c) / 2))))
    T.model = Two(); return ok(T).out("an encoder with batch norm called twice in a forward on alike inputs")
@situation("breast_cancer", H)
def _(R):
    from sklearn.datasets import load_breast_cancer
    X, y = load_breast_cancer(return_X_y=True); p = R.permutation(len(y)); X, y = X[p], y[p]; j = lambda a, b, n: (f32(np.tile(X[a:b], (n, 1)) + .1 * X.std(0) * R.standard_normal((n * (b - a), 30))), t(np.tile(y[a:b], n)).long())
    T = G(R, "breast_cancer"); T.metric = acc; T.x, T.y = j(0, 569, 5); T.xt, T.yt = j(0, 569, 7); q = torch.randperm(len(T.xt)); T.xt, T.yt = T.xt[q], T.yt[q]; T.bs, T.mom, T.lr, T.steps, T.k = 64, .1, 3e-3, 200, 2; T.net = dict(width=I(R, 16, 32), depth=I(R, 1, 2), momentum=T.mom, input_bn=True); T.model = MLP(30, 2, **T.net)
    return ok(T).out("real medical table with unscaled columns; training and test are different jittered copies of its rows")
@situation("wine_input_bn", H)
def _(R):
    from sklearn.datasets import load_wine
    X, y = load_wine(return_X_y=True); p = R.permutation(len(y)); X, y = X[p], y[p]; j = lambda a, b, n: (f32(np.tile(X[a:b], (n, 1)) + .15 * X.std(0) * R.standard_normal((n * (b - a), 13))), t(np.tile(y[a:b], n)).long())
    T = G(R, "wine"); T.metric = acc; T.x, T.y = j(0, 178, 12); T.xt, T.yt = j(0, 178, 20); q = torch.randperm(len(T.xt)); T.xt, T.yt = T.xt[q], T.yt[q]; T.bs, T.mom, T.lr, T.steps, T.k = 32, .1, 3e-3, 200, 3; T.net = dict(width=I(R, 16, 32), depth=1, momentum=T.mom, input_bn=True); T.model = MLP(13, 3, **T.net)
    return ok(T).out("real small table with unscaled columns; training and test are different jittered copies of its rows")
@situation("keep_bn_train_large_shuffled", H)
def _(R): T = ok(hv(R, "textures")); T.split_eval(); return T.out("batch norm stays in train mode by design (transductive), with large shuffled evaluation batches", model=KeepBN(T.model))
@situation("no_metric_no_eval", H)
def _(R): T = ok(hv(R, C(R, "signals", "tabular"))); T.split_eval(); return T.out("the user gives neither metric nor evaluation loader", metric=None, eval_loader=None, judge_metric=acc)
@situation("dataloader_object", H)
def _(R):
    from torch.utils.data import DataLoader, TensorDataset
    T = ok(hv(R, "digits")); T.split_eval(); return T.out("loaders are torch DataLoaders, the training one shuffles", loader=DataLoader(TensorDataset(T.x, T.y), T.bs, shuffle=True), eval_loader=DataLoader(TensorDataset(T.xe, T.ye), 64))
