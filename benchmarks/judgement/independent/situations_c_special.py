"""GAN, siamese, detection, segmentation, RL, self-supervised, denoising, regression: broken and healthy."""
from special import *
SITUATIONS, situation = registry()
B, H = "broken", "healthy"


@situation("gan_generator_lag", B, "lag")
def _(R): s = gan(R, mom=LU(R, .001, .004), steps=500); return s.out("GAN generator with a tiny momentum, sampled in eval mode", oracle="recal")
@situation("gan_ema_generator_no_buffers", B, "ema_without_buffers")
def _(R): s = gan(R, ema="params"); return s.out("averaged generator whose buffers were never copied", oracle="recal")
@situation("gan_generator_latent_scale", B, "eval_scaled")
def _(R):
    s = gan(R); q = C(R, U(R, .15, .3), U(R, 3, 5)); s.xt, s.xe = s.xt * q, s.xe * q
    return s.out("latents are drawn with another deviation at sampling than in training", oracle=recal_on(s.eval_loader()), eval_loader=s.eval_loader())


@situation("siamese_two_views_shared_bn", B, "shared_layer")
def _(R):
    g, o = U(R, 1.5, 2.5), U(R, 2.0, 4.0) * C(R, -1, 1); s = siamese(R, other_view=lambda x: o - g * x); ld = s.loader()
    return s.out("the two sides (image, inverted sketch) pass one encoder separately; its buffers mix both, so eval normalises both wrongly", oracle=lambda m: recal(Siamese2(m), ld), loader=ld)


@situation("detection_backbone_frozen_bn_conversion", B, "stats_other_data")
def _(R):
    s = detection(R, fit_now=False); g, o = U(R, 1.5, 2.5), U(R, -1.5, 1.5); s.fit(steps=60, x=s.x * g + o, loss=det_loss, decay=False); pre = copy.deepcopy(s.model); s.fit(loss=det_loss)
    for a, b in zip(bns(s.model.backbone), bns(pre.backbone)): a.running_mean.copy_(b.running_mean); a.running_var.copy_(b.running_var)
    return s.out("detector trained with batch statistics; converted to 'frozen BN' with the buffers of the pre-training checkpoint", oracle="recal")
@situation("detection_partial_checkpoint_neck", B, "partial_checkpoint")
def _(R):
    s = detection(R); [b.reset_running_stats() for b in bns(s.model.neck)]
    if R.uniform() < .5: bns(s.model.backbone)[-1].reset_running_stats()
    return s.out("neck's buffers at their defaults after a partial load", oracle="recal")
@situation("detection_brightness_at_eval", B, "eval_scaled")
def _(R):
    s = detection(R); g, o = U(R, 1.4, 2.2), U(R, .8, 1.8); s.xt, s.xe = s.xt * g + o, s.xe * g + o; el = s.eval_loader()
    return s.out("another camera gain and offset at evaluation", oracle=recal_on(el), eval_loader=el)


@situation("segmentation_blank_tiles", B, "constant_batch")
def _(R):
    s = segmentation(R, mom=U(R, .1, .3)); s.model.train(); v = U(R, 0, 1)
    with torch.no_grad():
        for _ in range(I(R, 8, 20)): s.model(torch.full((16, 3, 20, 20), v))
    return s.out("tiles without data (constant) passed in train mode before saving", oracle="recal")


@situation("dqn_target_network_buffers", B, "ema_without_buffers")
def _(R): s = dqn(R, target="params"); return s.out("policy taken from the target network, whose parameters follow the online one and whose buffers do not", model=s.tg, oracle="recal")
@situation("dqn_exploration_shift_lag", B, "lag")
def _(R): s = dqn(R, mom=LU(R, .0008, .002), narrow_first=True); return s.out("small momentum: statistics of early exploration of one corner, policy judged on all states", oracle="recal")


@situation("simclr_probe_on_batch_statistics", B, "augmented_statistics")
def _(R): s = simclr(R, "train", strength=U(R, 1.0, 1.4), dom="fmnist", bright=U(R, 1.3, 2.0) * C(R, -1, 1)); return s.out("linear probe fitted on features in train mode (clean batches), encoder reloaded with its statistics of strongly augmented views", oracle="recal")


@situation("denoiser_lag", B, "lag")
def _(R): s = denoise(R, mom=LU(R, .001, .003), steps=200); return s.out("denoising regression, momentum too small for the steps", oracle="recal")
@situation("friedman_small_batches", B, "small_batches")
def _(R): s = friedman(R, bs=C(R, 4, 6), mom=U(R, .5, .9), steps=1200); return s.out("tabular regression, batches of 4-6 and a high momentum", oracle="recal")
@situation("friedman_standardised_twice", B, "stats_other_preprocessing")
def _(R):
    s = friedman(R); m, d = s.x.mean(0), s.x.std(0); s.model = recal(s.model, [((s.x - m) / d, None)])
    return s.out("update_bn used standardised columns, training and evaluation the raw ones", oracle="recal")


# ---- healthy ones
@situation("gan_generator_eval", H)
def _(R): return gan(R).out("generator judged in eval mode after enough steps")
@situation("gan_ema_generator_with_buffers", H)
def _(R):
    s = gan(R, ema="all", mom=.1); s.model = recal(s.model, s.loader()); return s.out("averaged generator with statistics re-estimated on latents")
@situation("siamese_same_view", H)
def _(R): return siamese(R).out("siamese net, both sides from one distribution, shared batch norm")
@situation("siamese_views_together", H)
def _(R): o = U(R, .5, 1.5); return siamese(R, other_view=lambda x: o - x, together=True).out("two different views concatenated in one batch in training and evaluation, so the mixture is what the net knows")
@situation("detection_trained_well", H)
def _(R): return detection(R).out("single-object detector, normal training")
@situation("detection_frozen_bn_finetune", H)
def _(R):
    s = detection(R, fit_now=False); g, o = U(R, 1.3, 1.8), U(R, -.8, .8); s.fit(steps=100, x=s.x * g + o, loss=det_loss, decay=False); s.fit(loss=det_loss, mode=False)
    return s.out("fine-tuned with frozen pre-training statistics, which differ from the data's and are what the weights expect")
@situation("segmentation_whole_images", H)
def _(R): return segmentation(R).out("segmentation, normal training")
@situation("dqn_online", H)
def _(R): return dqn(R).out("DQN's online network")
@situation("dqn_target_with_buffers", H)
def _(R): s = dqn(R); s.model = recal(s.tg, s.loader()); return s.out("target network with statistics re-estimated")
@situation("simclr_probe_eval", H)
def _(R): return simclr(R, "eval", strength=U(R, .8, 1.3)).out("linear probe fitted on the encoder's stored statistics (of augmented views): consistent as it is")
@situation("denoiser_ok", H)
def _(R): return denoise(R).out("denoising regression, normal training")
@situation("friedman_ok", H)
def _(R): return friedman(R, mom=U(R, .03, .1)).out("tabular regression, normal training")
@situation("segmentation_foreground_patches", H)
def _(R):
    s = segmentation(R, crop=True, mom=LU(R, .03, .1)); return s.out("trained on patches centred on the foreground, applied to whole images of mostly background: the stored statistics are what the weights expect, those of whole images hurt", eval_loader=s.eval_loader(32))
