"""Other gaps. First those whose evaluation data differ from the training data, then those with the same data."""
from base import *
SITUATIONS, situation = registry("other gap")


def change(J, f):
    """Evaluation and test inputs go through f."""
    J.xt, J.xe = f(J.xt), f(J.xe); return J
def per(x, a): return torch.as_tensor(a, dtype=torch.float32).reshape(-1, *[1] * (x.dim() - 1))


@situation("exposure_of_every_photograph", "scale/offset")
def _(R):
    J = im(R, C(R, digits8, cells), C(R, ResNet, Squeeze)); J.good(); s, o = U(R, .8, 1.2), U(R, 1.2, 2.)
    return change(J, lambda x: x * per(x, np.exp(R.normal(0, s, len(x)))) + per(x, R.normal(0, o, len(x)))).out("every evaluation image has an exposure (gain and offset) of its own; training images had one")
@situation("ink_light_on_dark", "scale/offset")
def _(R): J = im(R, C(R, glyphs, digits8), C(R, ResNet, Squeeze, LeNet)); J.good(); o = U(R, .8, 1.6); f = lambda x: o - x; return change(J, f).out("evaluation scans have ink and paper exchanged", oracle=undo(f))
@situation("contrast_lost_in_haze", "contrast")
def _(R):
    J = im(R, C(R, digits8, cells), C(R, ResNet, Squeeze), d=dict(noise=.08)); J.good(); q = U(R, .08, .14); n = U(R, .28, .36); return change(J, lambda x: x * q + n * torch.randn_like(x)).out("contrast far lower while the sensor's noise stays")
@situation("half_of_the_files_not_divided_by_255", "normalisation")
def _(R):
    J = im(R, C(R, glyphs, digits8), C(R, ResNet, Squeeze)); J.good(); p = U(R, .45, .6); lim = float(J.x.abs().max()) * 3
    def f(x): m = per(x, R.uniform(size=len(x)) < p); return x * (1 - m) + (x * 255) * m
    return change(J, f).out("a part of the evaluation files comes from a reader that gives 0 to 255", oracle=undo(lambda x: torch.where(x.abs().amax((1, 2, 3), keepdim=True) > lim, x / 255, x)))
@situation("red_and_blue_exchanged_where_colour_counts", "channels")
def _(R):
    k = I(R, 6, 8); J = im(R, gratings, C(R, ResNet, NeXt), d=dict(k=k, colour=1.2, noise=1.0)); hue = 2 * np.pi * (np.arange(k) + .5) / k; c = f32(np.stack([np.cos(hue), np.zeros(k), np.sin(hue)], 1)); amp = U(R, .3, .45)
    for x, y in ((J.x, J.y), (J.xt, J.yt), (J.xe, J.ye)): x.mul_(.15).add_(amp * c[y][:, :, None, None]).add_(.8 * torch.randn_like(x))
    J.good(); f = lambda x: x.flip(1); return change(J, f).out("evaluation images are read as BGR, and colour tells the classes apart", oracle=undo(f))
@situation("taken_from_too_near", "size")
def _(R):
    J = im(R, C(R, digits8, digits8), C(R, LeNet, ResNet)); J.good(); s, q = J.x.shape[-1], U(R, 1.8, 2.1); n = int(round(s * q)); a = (n - s) // 2; z = U(R, .2, .3)
    return change(J, lambda x: F.interpolate(x, size=n, mode="bilinear")[:, :, a:a + s, a:a + s] + z * torch.randn_like(x)).out("evaluation images were taken from nearer: objects are larger and cut off at the border")
@situation("camera_moved_during_exposure", "blur")
def _(R):
    J = im(R, gratings, C(R, ResNet, Squeeze, NeXt)); J.good(); n = C(R, 7, 9, 11); d = C(R, (1, n), (n, 1)); q = U(R, 1., 1.2)
    def f(x): c = x.shape[1]; w = torch.full((c, 1, *d), 1 / n); return F.conv2d(F.pad(x, (d[1] // 2,) * 2 + (d[0] // 2,) * 2, mode="reflect"), w, groups=c) + q * torch.randn_like(x)
    return change(J, f).out("evaluation images are smeared in one direction by motion, the sensor's noise is as before")
@situation("dead_and_hot_pixels", "noise")
def _(R):
    J = im(R, C(R, glyphs, digits8, cells), C(R, ResNet, Squeeze)); J.good(); lo, hi = float(J.x.min()), float(J.x.max()); p = U(R, .2, .3)
    def f(x): q = per(x, R.uniform(0, 2 * p, len(x))); u, v = torch.rand_like(x), torch.rand_like(x); return torch.where(u < q, torch.where(v < .5, lo, hi), x)
    return change(J, f).out("a part of the pixels of evaluation images is black or white, more in some images than in others")
@situation("cells_missing_marked_minus_999", "missing")
def _(R):
    J = tb(R, C(R, claims, assay), net=C(R, TabGLU, dense)); J.good(); p = U(R, .12, .2); mu = J.x.median(0).values
    return change(J, lambda x: torch.where(torch.rand_like(x) < p, torch.tensor(-999.), x)).out("missing entries of the evaluation table are marked by -999; there were none in training", oracle=undo(lambda x: torch.where(x == -999., mu, x)))
@situation("columns_dropped_by_the_supplier", "missing")
def _(R):
    J = tb(R, claims, net=C(R, TabGLU, dense)); J.good(); n = I(R, 2, 3); g = []
    base = evaluate(J.model, J.test())
    for c in range(J.x.shape[1]): z = J.xt.clone(); z[:, c] = J.x[:, c].mean(); g.append(base - evaluate(J.model, [(z, J.yt)]))
    cs = np.argsort(g)[::-1][:n].copy(); mu = J.x.mean(0)
    def f(x): x = x.clone(); x[:, cs] = mu[cs]; return x
    return change(J, f).out("the evaluation table comes without some columns, filled with the training mean")
@situation("laboratories_with_other_units", "units")
def _(R):
    J = tb(R, assay, net=C(R, TabGLU, dense)); J.good(); d = J.x.shape[1]; f0 = np.ones((2, d)); f0[1, R.permutation(d)[I(R, 1, 2):]] = C(R, 100., 1000.)
    return change(J, lambda x: x * f32(f0[R.integers(2, size=len(x))])).out("evaluation rows come from two laboratories, one of which reports nearly all columns in other units")
@situation("rare_classes_are_common_in_use", "prior")
def _(R):
    J = im(R, C(R, digits8, cells), C(R, ResNet, LeNet), d=dict(ntr=9000)); k = J.k; w = .45 ** np.arange(k)[R.permutation(k)]; i = torch.as_tensor(R.choice(len(J.x), 2400, replace=False, p=(w[J.y] / w[J.y].sum()))); J.x, J.y = J.x[i], J.y[i]; J.good(); return J.out("training classes fall off by half each, evaluation classes are even")
@situation("recorder_at_half_the_sampling_rate", "rate")
def _(R):
    J = sq(R, chirps, C(R, Gated, ResNet)); J.good(); L = J.x.shape[2]; return change(J, lambda x: x[:, :, ::2].contiguous()).out("evaluation signals were recorded at half the sampling rate", oracle=undo(lambda x: F.interpolate(x, size=L, mode="linear")))
@situation("scribbles_on_the_ground", "background")
def _(R):
    J = im(R, C(R, glyphs, digits8), C(R, ResNet, Squeeze)); J.good(); hi = float(J.x.quantile(.97)) if J.x.numel() < 1e7 else 2.; n = I(R, 1, 2)
    def f(x):
        s = x.shape[-1]
        for _ in range(n): L = f32(pen(R.uniform(0, s - 1, (len(x), 3, 2)), s, .8 if s > 8 else .5))[:, None]; x = torch.maximum(x, hi * 1.3 * L - 1.5 * (1 - L) + .1 * torch.randn_like(x))
        return x
    return change(J, f).out("objects were scanned alone for training, in evaluation the sheets carry other strokes too")
@situation("microphones_with_gains_of_their_own", "scale/offset")
def _(R):
    J = sq(R, net=C(R, CRNN, Gated)); J.good(); s = U(R, 1.4, 1.9); return change(J, lambda x: x * per(x, np.exp(R.normal(0, s, len(x))))).out("every evaluation recording has a gain of its own over more than a decade")
@situation("texts_cut_to_a_few_words", "length")
def _(R): J = tx(R, d=dict(lo=28)); J.good(); n = I(R, 4, 6); return change(J, lambda x: torch.cat([x[:, :n], torch.zeros_like(x[:, n:])], 1)).out("training texts have dozens of tokens, evaluation texts a handful")


# ---- the same data
@situation("big_net_small_album", "overfitting")
def _(R): J = im(R, digits8, LeNet, w=16, h=96, n_eval=400); n = I(R, 120, 200); J.x, J.y = J.x[:n], J.y[:n]; J.good(steps=220); return J.exact().out("a wide net learnt a hundred-odd images by heart; statistics are right")
@situation("annotators_of_evaluation_disagree", "labels")
def _(R):
    J = sq(R, net=C(R, Gated, ResNet)); J.good(); p = U(R, .2, .35)
    def f(y): m = torch.rand(len(y)) < p; return torch.where(m, torch.randint(0, J.k, y.shape), y)
    J.yt, J.ye = f(J.yt), f(J.ye); return J.out("a part of the labels of evaluation is wrong, those of training are right")
@situation("accuracy_above_a_confidence", "metric")
def _(R):
    J = tb(R, net=C(R, TabGLU, dense)); J.good(); q = U(R, .95, .99)
    def top(o, b): p = o.softmax(1); c, i = p.max(1); return float(((i == b[1]) & (c > q)).float().mean())
    def orc(m): return Wrap(copy.deepcopy(m), None, lambda o: o * 1e3).eval()
    J.metric = top; return J.out("the metric counts an answer only above a confidence that suits another model", oracle=orc)
@situation("classes_sorted_by_name_in_evaluation", "class order")
def _(R):
    J = im(R, C(R, glyphs, gratings), C(R, NeXt, Squeeze)); J.good(); k = J.k
    while True:
        p = torch.as_tensor(R.permutation(k))
        if (p != torch.arange(k)).sum() >= k // 2: break
    J.yt, J.ye = p[J.yt], p[J.ye]; return J.out("class numbers of the evaluation folder follow another order of names", oracle=undo(None, lambda o: o[:, torch.argsort(p)]))
@situation("functional_dropout_without_flag", "dropout")
def _(R):
    p = U(R, .6, .75)
    class Net(nn.Module):
        def __init__(s, ci, k, **b): super().__init__(); s.net, s.p = ResNet(ci, k, **b), p
        def forward(s, x): return s.net.fc(F.dropout(s.net.feats(x), s.p))
    J = im(R, C(R, glyphs, digits8, cells), Net); J.good()
    def orc(m): m = copy.deepcopy(m); m.p = 0.; return m
    return J.exact().out("F.dropout after the last layer without training=self.training", oracle=orc)
@situation("stopped_in_the_first_epoch", "under-training")
def _(R):
    J = im(R, C(R, glyphs, gratings), C(R, Squeeze, ResNet)); best = J.fit(copy.deepcopy(J.model), tail=20).eval(); J.fit(steps=I(R, 8, 14), lr=2e-3, decay=False); return J.exact().out("training was cut off after a dozen steps; statistics are exact", oracle=lambda m: copy.deepcopy(best))
