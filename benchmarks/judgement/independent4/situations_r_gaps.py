"""Other gaps. Eight whose evaluation inputs are unlike training's (inputs_differ), two with the same inputs."""
from pieces4 import *
SITUATIONS, situation = registry("other gap")


def change(J, f):
    J.xe, J.xt = f(J.xe), f(J.xt); return J
class Before(nn.Module):
    def __init__(self, net, f): super().__init__(); self.net, self.f = net, f
    def forward(self, x): return self.net(self.f(x))
def undo(f): return lambda m: Before(copy.deepcopy(m), f).eval()


@situation("photographs_stored_sideways", "orientation", True)
def _(R):
    J = vision(R, C(R, handwriting, fabrics), C(R, VGG, PreAct), d=dict(noise=.2) if R.uniform() < .3 else None); J.good(); k = C(R, 1, 3); f = lambda x: torch.rot90(x, k, (2, 3)); return change(J, f).out("the orientation tag of evaluation photographs is ignored: all lie on their side", oracle=undo(lambda x: torch.rot90(x, -k, (2, 3))))


@situation("wristband_worn_the_other_way", "axes", True)
def _(R):
    J = series(R, wearables, C(R, VGG, TCN), d=dict(noise=.8)); J.good(); p = torch.as_tensor([C(R, [1, 2, 0], [2, 0, 1])] * 1)[0]; s = torch.tensor([1., -1., -1.])[:, None]
    def f(x): m = col(R.uniform(size=len(x)) < .7, x); return torch.where(m > 0, (x * s)[:, p], x)
    return change(J, f).out("seven in ten evaluation wearers have the device turned: axes exchanged and two of them reversed")


@situation("words_mean_other_things_in_another_trade", "vocabulary", True)
def _(R):
    J = text(R, d=dict(own=.35)); J.good(); V, p = 60, U(R, .6, .8); m = R.permutation(V)[:int(p * V)]; to = np.arange(V); to[m] = m[np.roll(np.arange(len(m)), 1)]; to = i64(to); return change(J, lambda x: to[x]).out("evaluation texts are of another trade, where most of the words are used for other things", oracle=undo(lambda x: to.argsort()[x]))


@situation("clouds_lying_as_they_fell", "orientation", True)
def _(R):
    J = Script(R, clouds(R), PointNet, steps=220); J.good()
    def f(x): q, r = torch.linalg.qr(torch.randn(len(x), 3, 3)); return q @ x
    return change(J, f).out("training objects stand upright and are turned about the vertical; evaluation objects lie as they fell, each another way")


@situation("edges_partly_observed_in_new_networks", "missing edges", True)
def _(R):
    J = Script(R, networks(R), GCN, steps=260, lr=8e-3, bs=48); J.good()
    def f(A): q = torch.as_tensor(R.uniform(.0, .9, (len(A), 1, 1))).float(); m = torch.triu((torch.rand_like(A) > q).float(), 1); return A * (m + m.transpose(1, 2))
    return change(J, f).out("in evaluation networks a part of the edges was not observed, in each another part")


@situation("baseline_wanders_in_the_ambulance", "drift within a record", True)
def _(R):
    J = series(R, heartbeats, C(R, VGG, PreAct), d=dict(noise=1.)); J.good(); a = U(R, 3., 5.); t = torch.arange(64) / 64
    def f(x): n = len(x); return x + col(np.abs(R.normal(0, a, n)), x) * torch.sin(2 * math.pi * (col(R.uniform(.8, 3., n), x) * t + col(R.uniform(size=n), x)))
    return change(J, f).out("evaluation records wander: each lies on a slow wave of its own height")


@situation("cropped_near_in_training_whole_in_use", "resolution", True)
def _(R):
    J = vision(R, C(R, signs, handwriting), C(R, VGG, PreAct), d=dict(noise=.25)); J.good(); s = J.x.shape[-1]; z = U(R, .45, .55); m = max(4, int(round(s * z)))
    def f(x): q = F.interpolate(x, size=m, mode="bilinear", antialias=True); p = s - m; a = p // 2; return F.pad(q, (a, p - a, a, p - a), mode="replicate") + .2 * torch.randn(len(x), x.shape[1], s, s)
    return change(J, f).out("objects fill the frame in training and are half as large in evaluation images")


@situation("values_of_a_policy_never_tried", "states", True)
def _(R):
    x, y = pendulum(R, 3000, .45); xt, yt = pendulum(R, 3500, U(R, 1.3, 1.6)); J = Script(R, (x, y, xt, yt, 1), lambda **b: nn.Sequential(MLP(6, 1, **b), nn.Flatten(0)), steps=320, bs=256, loss=F.mse_loss, metric=r2, mom=.03); J.good(tail=120); return J.out("the value net is judged on states that the data's calm policy never came to")


@situation("rare_class_loss_weights_shift_the_threshold", "threshold")
def _(R):
    d = loans(R, k=2, d=10, soft=.5, nte=5000); J = Script(R, d, lambda **b: MLP(10, 2, **b), steps=280, bs=64, mom=.04); w = torch.tensor([1., U(R, 8., 14.)]); J.loss = lambda o, y: F.cross_entropy(o, y, weight=w); J.good(tail=80); J.metric = acc
    def fix(m): q = copy.deepcopy(m); q[-1].bias.data[1] -= math.log(float(w[1])); return q.eval()
    return J.out("the loss weighs one class tenfold, accuracy does not: nearly all is called positive", oracle=fix)


@situation("memorised_wrong_labels", "overfitting")
def _(R):
    J = vision(R, C(R, signs, fabrics), C(R, VGG, PreAct), n=dict(w=20), d=dict(ntr=I(R, 250, 320)), bs=32, steps=330, mom=.05); m = torch.rand(len(J.y)) < U(R, .25, .35); J.y = torch.where(m, torch.randint(0, J.k, J.y.shape), J.y); J.good(tail=60); return J.out("a big net learnt a small set with wrong labels by heart")
