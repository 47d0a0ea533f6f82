"""The rules of source code by code: what each is called, and the function that looks for it."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from batchnorm.diagnosis.findings import Rule
from batchnorm.diagnosis.findings import Said as Told
from batchnorm.diagnosis.source.code_words import Said
from batchnorm.diagnosis.source.facts import Facts
from batchnorm.diagnosis.source.rules import (
    always_batch,
    as_weights,
    averages,
    domains,
    freezing,
    gradient_penalty,
    layers,
    left_out,
    loading,
    modes,
    momentum,
    own_layers,
    parameters_alone,
    processes,
    sampling,
    small_batches,
    statistics_by_hand,
    undone,
    unmeasured,
    unset_modes,
    without_gradients,
)

Look = Callable[[Facts], Iterator[Said]]
LOOKS: dict[str, tuple[str, Look]] = {
    "BN401": ("an update by hand that changes nothing", statistics_by_hand.changes_nothing),
    "BN402": ("an update by hand after eval()", statistics_by_hand.after_eval),
    "BN403": ("momentum of Keras in torch", momentum.torch_momentum),
    "BN404": ("momentum of torch in Keras or Flax", momentum.other_momentum),
    "BN405": ("evaluation without eval()", modes.evaluates_in_train),
    "BN406": ("frozen by requires_grad", freezing.stops_weights_only),
    "BN407": ("frozen by momentum 0", momentum.frozen_by_momentum),
    "BN408": ("eval() before train()", undone.eval_before_train),
    "BN409": ("averaged weights without update_bn", averages.missing_update_bn),
    "BN410": ("update_bn with dropout or frozen layers", averages.update_bn_with_dropout),
    "BN411": ("tracking switched off after construction, in the source", layers.flipped_tracking),
    "BN412": ("a forward in train mode under no_grad or in a summary", without_gradients.moves_without_gradients),
    "BN413": ("an average of parameters() only", averages.parameters_only),
    "BN414": ("an average of the counter", averages.counter_too),
    "BN415": ("batch norm told by its name", layers.by_name),
    "BN416": ("momentum outside [0, 1], in the source", momentum.momentum_outside),
    "BN417": ("momentum in the place of eps", momentum.eps_for_momentum),
    "BN418": ("eval() that never goes back", modes.never_back),
    "BN419": ("a second network never in eval", modes.second_network),
    "BN420": ("statistics left out of a state", loading.filtered_statistics),
    "BN421": ("half precision, then training", loading.half_precision),
    "BN422": ("SyncBatchNorm after DistributedDataParallel", loading.sync_after_ddp),
    "BN423": ("evaluation on one rank", modes.on_one_rank),
    "BN424": ("checkpointing around batch norm", loading.checkpointed),
    "BN425": ("eps that is not positive", momentum.eps_not_positive),
    "BN426": ("training on batches of a few samples", small_batches.small_batches),
    "BN427": ("a gradient penalty through batch norm", gradient_penalty.through_batch_norm),
    "BN428": ("samples drawn in train mode", sampling.sampled_in_train),
    "BN429": ("a mode that is not set", unset_modes.sets_no_mode),
    "BN430": ("all of a model in train mode, a part of it trained", left_out.left_out),
    "BN431": ("a freeze that is never applied", undone.never_applied),
    "BN432": ("statistics moved like weights", as_weights.moved_as_weights),
    "BN434": ("batches of two loaders one after the other", domains.two_loaders),
    "BN435": ("batch norm that no process shares", processes.not_synchronized),
    "BN436": ("batch norm that eval() does not reach", always_batch.ignores_eval),
    "BN437": ("a graph traced in train mode", always_batch.traced_in_train),
    "BN438": ("running statistics that are no buffers", own_layers.no_buffers),
    "BN439": ("a train() that loses the mode", own_layers.train_loses_the_mode),
    "BN440": ("reset statistics in eval mode", unmeasured.reset_and_evaluated),
    "BN442": ("parameters without their statistics", parameters_alone.without_statistics),
}


def _rule(code: str, title: str, look: Look) -> Rule:
    def as_told(facts: Facts) -> Told:
        for said in look(facts):
            yield f"{said.module.path}:{getattr(said.node, 'lineno', 1)}", said.message, said.fix

    return Rule(code, title, "warning", as_told)


SOURCE_RULES: tuple[Rule, ...] = tuple(_rule(code, title, look) for code, (title, look) in LOOKS.items())
