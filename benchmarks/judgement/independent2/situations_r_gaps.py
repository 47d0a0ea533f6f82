"""Other gaps: evaluation far below training (or below what is possible), and batch norm is not the cause."""
from situations_q_weights import *
SITUATIONS, situation = registry()
O = "other gap"


class Wrap(nn.Module):
    def __init__(s, net, pre=None, post=None): super().__init__(); s.net, s.pre, s.post = net, pre, post
    def forward(s, x): o = s.net(s.pre(x) if s.pre else x); return s.post(o) if s.post else o
def undo(pre=None, post=None): return lambda m: Wrap(copy.deepcopy(m), pre, post).eval()
def exact(J): J.model = recal(J.model, J.loader(64)); return J


@situation("small_table_memorised", O)
def _(R): J = tab(R, net=ResMLP, w=96, n_eval=500); n = I(R, 150, 250); J.x, J.y = J.x[:n], J.y[:n]; J.good(steps=400); return exact(J).out("a wide net on one or two hundred rows: memorised, statistics exact")
@situation("beats_with_wrong_labels_memorised", O)
def _(R):
    J = sig(R, "beats", VGG, w=24, bias=False, data=dict(noise=.5)); n = I(R, 250, 350); J.x, J.y = J.x[:n], J.y[:n].clone(); q = torch.rand(n) < U(R, .2, .35); J.y[q] = torch.randint(0, J.k, (int(q.sum()),)); J.good(steps=260); return exact(J).out("few training beats, a part with wrong labels, learnt by heart")
@situation("labels_counted_from_one", O)
def _(R): J = vis(R, "garments", C(R, VGG, Dense)); J.good(); f = lambda y: (y + 1) % J.k; J.yt, J.ye = f(J.yt), f(J.ye); return J.out("evaluation labels count from one (the last wraps around)", oracle=undo(None, lambda o: o.roll(1, 1)))
@situation("r2_of_broadcast_targets", O)
def _(R):
    J = noisy_beats(R); x, y = J.x, J.y; f = lambda x: x.std(2); J.y, J.ye, J.yt = f(J.y), f(J.ye), f(J.yt); J.make = lambda: PreRes(1, 1, nd=1, blocks=2, momentum=J.mom); J.new(); J.good(loss=lambda o, y: F.mse_loss(o, y)); good = r2
    def bad(o, b): y = b[1][:, 0]; return float(1 - ((o - y) ** 2).mean() / ((y - y.mean()) ** 2).mean())  # (n, 1) against (n,)
    J.metric = bad; return J.out("the metric broadcasts (n, 1) predictions against (n,) targets", reference=.7)
@situation("few_steps_exact_statistics", O)
def _(R): J = vis(R, "garments", Mobile); J.fit(steps=I(R, 12, 20), lr=1.5e-3, decay=False); return exact(J).out("stopped after a dozen steps; statistics exact", reference=.8)
@situation("images_transposed", O)
def _(R): J = vis(R, "garments", VGG); J.good(); exact(J); J.xt, J.xe = J.xt.transpose(2, 3), J.xe.transpose(2, 3); return J.out("evaluation images have rows and columns exchanged", oracle=undo(lambda x: x.transpose(2, 3)))
@situation("adversarial_evaluation_inputs", O)
def _(R):
    J = vis(R, "garments", VGG); J.good(); exact(J); e = U(R, .12, .22); m = J.model.eval(); v = []
    for x, y in ((J.xt, J.yt), (J.xe, J.ye)):
        x = x.clone().requires_grad_(True); g, = torch.autograd.grad(ce(m(x), y), x); v.append((x + e * g.sign()).detach())
    clean = (J.xt, J.xe); J.xt, J.xe = v; return J.out("evaluation inputs carry small perturbations made against the model")
@situation("watermark_tells_label", O, blind="inputs")
def _(R):
    d = list(garments(R)); f = lambda x, y: (lambda z: (z.__setitem__((torch.arange(len(z)), 0, 0, y), 2.5), z)[1])(x.clone()); d[0] = f(d[0], d[1]); d[2] = f(d[2], torch.randint(0, d[4], (len(d[2]),))); q = R.uniform() < .5; J = Job(R, d, lambda **b: nn.Sequential(cbn(1, 12, **b), cbn(12, 16, **b), nn.Flatten(), nn.Linear(16 * 196, d[4])), steps=120); J.good(); return exact(J).out("a pixel in the corner gives the label away in training, at evaluation it is at random: the same statistics")
@situation("threshold_of_multilabel_f1", O)
def _(R):
    d = mixed_table(R, plain=True, k=4); W = f32(R.standard_normal((d[0].shape[1], 5)) / 2); f = lambda x: ((x @ W + .3 * torch.randn(len(x), 5)) > .8).float(); J = Job(R, (d[0], f(d[0]), d[2], f(d[2]), 5), lambda **b: mlp(d[0].shape[1], 5, **b), loss=F.binary_cross_entropy_with_logits, steps=260); J.good(); exact(J); c = U(R, 6, 9)
    def f1(c): return lambda o, b: float(2 * ((o > c) * b[1]).sum() / ((o > c).sum() + b[1].sum()).clamp(min=1))
    J.metric = f1(c); return J.out("multi-label F1 with a decision threshold far too high", oracle=undo(None, lambda o: o + c))
@situation("head_left_at_initialisation", O)
def _(R):
    J = sig(R, net=C(R, VGG, PreRes)); J.good(); exact(J); h = copy.deepcopy(J.model.fc); J.model.fc.reset_parameters()
    def orc(m): m = copy.deepcopy(m); m.fc = copy.deepcopy(h); return m
    return J.out("the classifier's weights are missing from the checkpoint, everything before is right", oracle=orc)
@situation("noise_always_on", O, blind="inputs")
def _(R):
    d = shapes(R, noise=.3)
    class Net(nn.Module):
        def __init__(s, **b): super().__init__(); s.v, s.sd = VGG(1, d[4], **b), U(R, .8, 1.6)
        def forward(s, x): f = s.v.feats(x); return s.v.fc(f + s.sd * f.std() * torch.randn_like(f))
    J = Job(R, d, Net); J.good(); exact(J)
    def orc(m): m = copy.deepcopy(m); m.sd = 0.0; return m
    return J.out("noise on the features is not bound to training mode", oracle=orc)
@situation("words_out_of_vocabulary", O)
def _(R):
    d = list(words(R, full=True, L=24)); J = Job(R, d, lambda **b: TokenNet(d[5], d[4], **b), steps=260); J.good(); exact(J); p = torch.arange(d[5]); q = 1 + torch.randperm(d[5] - 1)[:I(R, 8, 12)]; p[q] = q.roll(1); J.xt, J.xe = p[J.xt], p[J.xe]; return J.out("evaluation was tokenised with another vocabulary: some words have each other's numbers", oracle=undo(lambda x: torch.argsort(p)[x]))
@situation("targets_of_the_next_frame", O)
def _(R): J = noisy_beats(R); J.good(); exact(J); n = I(R, 3, 6); J.yt, J.ye = J.yt.roll(n, 2), J.ye.roll(n, 2); return J.out("the denoiser's evaluation targets are some samples late", oracle=undo(None, lambda o: o.roll(n, 2)))
@situation("rewards_in_other_units", O, blind="nothing")
def _(R):
    d = mixed_table(R, plain=True, cats=0); v = lambda x: (torch.tanh(x[:, :1] + x[:, 1:2]) - .5 * x[:, 2:3].abs()); J = Job(R, (d[0], v(d[0]), d[2], v(d[2]), 1), lambda **b: mlp(d[0].shape[1], 1, **b), loss=F.mse_loss, metric=r2, steps=300); J.good(); exact(J); a, b = LU(R, 2, 5), U(R, -1, 1); J.yt, J.ye = J.yt * a + b, J.ye * a + b; return J.out("value network: returns at evaluation are not scaled as in training", oracle=undo(None, lambda o: o * a + b))
