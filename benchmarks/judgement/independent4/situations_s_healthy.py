"""Healthy: nothing is wrong with the statistics, though some look odd."""
from pieces4 import *
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn, update_bn
from torch.utils.checkpoint import checkpoint
SITUATIONS, situation = registry("healthy")
NT = 5000


def low(R): return LU(R, .02, .05)


@situation("statistics_frozen_early_and_learnt_upon")
def _(R):
    J = vision(R, C(R, fabrics, signs), C(R, VGG, PreAct), d=dict(nte=NT)); J.fit(steps=30, flat=True); J.fit(steps=150, lr=4e-3, mode=False, tail=30); return J.out("batch norm was frozen after the first epoch; all the rest was learnt on the stored statistics, old as they are")


@situation("checkpointing_updates_twice")
def _(R):
    class Re(VGG):
        def feats(self, x): return mean(checkpoint(self.body, x, use_reentrant=False) if self.training else self.body(x))
    return vision(R, C(R, handwriting, fabrics), Re, d=dict(nte=NT), mom=low(R)).good(tail=60).out("gradient checkpointing runs every forward twice, so that buffers are updated twice a step")


@situation("torch_averaged_model_with_live_buffers")
def _(R):
    J = series(R, net=C(R, VGG, TCN), d=dict(nte=NT), mom=low(R)); A = AveragedModel(J.model, multi_avg_fn=get_ema_multi_avg_fn(.9), use_buffers=C(R, True, True)); J.good(tail=90, after=lambda i: A.update_parameters(J.model)); return J.out("exponential average of parameters and buffers, at the end of a quiet run", model=A)


@situation("learnt_by_heart_on_few_patients")
def _(R):
    J = series(R, heartbeats, C(R, VGG, PreAct), d=dict(ntr=I(R, 150, 220), nte=NT), n=dict(w=20), bs=32, mom=low(R), steps=200, opt=torch.optim.Adam); J.good(tail=80); return J.out("far too big a net on a few patients: all training rows right, evaluation far below")


@situation("seventy_percent_dropout_before_the_head")
def _(R): return vision(R, C(R, signs, fabrics), C(R, VGG, PreAct), n=dict(drop=U(R, .6, .75)), d=dict(nte=NT), mom=low(R), steps=200).good(tail=60).out("so much dropout after the last norm that training accuracy lies below evaluation's")


@situation("flips_and_noise_then_update_bn")
def _(R):
    J = vision(R, C(R, fabrics, handwriting), C(R, Mobile, VGG), d=dict(nte=NT)); s = U(R, .5, .9); J.fit(aug=lambda x: x * (1 + .3 * torch.randn(len(x), 1, 1, 1)) + s * torch.randn_like(x)); ld = J.loader(128); update_bn(ld, J.model); return J.out("strong augmentation in training, statistics taken at the end on clean images")


@situation("half_of_the_history_in_big_batches")
def _(R): return table(R, d=dict(ntr=4000, nte=6000), bs=1024, mom=C(R, .5, .4, .6), steps=200, lr=8e-3).good(tail=40).out("momentum of about a half looks wild, batches of 1,024 rows make it harmless")


@situation("tiny_net_for_a_sensor_node")
def _(R): return series(R, wearables, VGG, n=dict(w=3), d=dict(nte=NT), mom=low(R), bs=64, steps=200).good(tail=80).out("three channels wide: far from perfect in training and in use alike")


@situation("value_net_that_whitens_its_inputs")
def _(R):
    x, y = pendulum(R, 3000); xt, yt = pendulum(R, 6000); return Script(R, (x, y, xt, yt, 1), lambda momentum: nn.Sequential(nn.BatchNorm1d(6, momentum=None, affine=False), nn.Linear(6, 64), nn.Tanh(), nn.Linear(64, 64), nn.BatchNorm1d(64, momentum=momentum), nn.Tanh(), nn.Linear(64, 1), nn.Flatten(0)), mom=low(R), bs=128, steps=300, loss=F.mse_loss, metric=r2).good(tail=80).out("value net; a norm without gain, with momentum=None, serves as the scaler of the raw inputs")


@situation("labels_of_the_crowd")
def _(R):
    J = table(R, d=dict(ntr=4000, nte=7000), mom=low(R), bs=128); m = torch.rand(len(J.y)) < U(R, .3, .4); J.y = torch.where(m, torch.randint(0, J.k, J.y.shape), J.y); J.good(tail=80); return J.out("a third of the training labels is random: training accuracy is far below evaluation's")


@situation("triplets_of_faces_nearest_prototype")
def _(R):
    d = fabrics(R, nte=NT, noise=1.3); k = d[4]
    class Embed(nn.Module):
        """Embedding with a norm at its end (BNNeck); similarity to learnt prototypes."""
        def __init__(self, **b): super().__init__(); self.t = VGG(3, 16, **b); self.neck = nn.BatchNorm1d(16, **b); self.neck.bias.requires_grad_(False); self.p = nn.Parameter(torch.randn(k, 16))
        def forward(self, x): return 8 * F.normalize(self.neck(self.t(x)), dim=1) @ F.normalize(self.p, dim=1).T
    return Script(R, d, Embed, mom=low(R), bs=64).good(tail=60).out("embedding with a norm before the cosine, as in person re-identification")


@situation("autoencoder_of_gaits")
def _(R):
    d = wearables(R, noise=.5, nte=4000); w = 16; return Script(R, (d[0], d[0], d[2], d[2], 0), lambda **b: nn.Sequential(nn.Conv1d(3, w, 5, 2, 2), nn.BatchNorm1d(w, **b), nn.SiLU(), nn.Conv1d(w, 6, 5, 2, 2), nn.BatchNorm1d(6, **b), nn.Upsample(scale_factor=4), nn.Conv1d(6, w, 5, 1, 2), nn.BatchNorm1d(w, **b), nn.SiLU(), nn.Conv1d(w, 3, 5, 1, 2)), mom=low(R), steps=220, loss=F.mse_loss, metric=r2).good(tail=70).out("autoencoder with a narrow middle, norm on the code, judged by R2")


@situation("very_small_momentum_from_a_good_start")
def _(R):
    J = vision(R, C(R, signs, handwriting), C(R, PreAct, Mobile), d=dict(nte=NT)); J.good(); J.model = renew(J.model, J.loader())
    for b in norms(J.model): b.momentum = C(R, .001, .0005)
    J.fit(steps=80, lr=5e-5, flat=True); return J.out("fine-tuning with momentum of a thousandth, at a rate so small that nothing moves")


@situation("plain_script_without_schedule")
def _(R):
    J = C(R, lambda: series(R, net=C(R, VGG, TCN), d=dict(nte=NT), mom=.1, bs=64), lambda: vision(R, C(R, handwriting, fabrics), C(R, VGG, PreAct), d=dict(nte=NT), mom=.1, bs=64))(); J.fit(lr=2e-3, steps=260, flat=True); J.fit(lr=3e-4, steps=60, flat=True); return J.out("Adam with one drop of the rate and the default momentum, as in a first tutorial; statistics jitter a little")
