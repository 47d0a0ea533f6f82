"""Random sequences of what programs do to a layer, each step compared with `truth`."""

from __future__ import annotations

import copy
import os
import pickle
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from torch.optim.swa_utils import AveragedModel
from torch.utils.checkpoint import checkpoint

import batchnorm
from batchnorm import models
from tests.state_machine.pair import CHANNELS, KINDS, Pair, build
from tests.state_machine.truth import UNCENTRED, Stats, Truth

# Steps that would find a fault which is known and not mended yet; a line goes when its fault does.
KNOWN_FAULTS: frozenset[str] = frozenset()
MOST_CONTEXTS, MOST_PAIRS = 4, 3

seeds = st.integers(0, 9999)
# Nearly always the first of a list: a step that follows another should meet the same layer.
which = st.sampled_from([0, 0, 0, 0, 1, 2])
seldom = st.sampled_from([False, False, False, True])


class Machine(RuleBasedStateMachine):
    """The rules. One rule is one kind of step, so that forwards and backwards are not crowded out."""

    method = "batchnorm"

    def __init__(self) -> None:
        super().__init__()
        self.pairs: list[Pair] = []

    @initialize(kind=st.sampled_from(sorted(KINDS)), wide=st.booleans(), lazy=seldom)
    def begin(self, kind: str, wide: bool, lazy: bool) -> None:
        dtype = torch.float64 if wide else torch.float32
        self.pairs = [Pair(build(self.method, kind, dtype, lazy), Truth(self.method, CHANNELS), kind, dtype, not wide)]

    def pick(self, index: int) -> Pair:
        """A pair; a copy is the newest."""
        return self.pairs[-1 - index % len(self.pairs)]

    def add(self, pair: Pair) -> None:
        """A copy joins, in the place of the oldest where there are enough."""
        if len(self.pairs) == MOST_PAIRS:
            self.pairs.pop(0).end_all()
        self.pairs.append(pair)

    def teardown(self) -> None:
        for pair in self.pairs:
            pair.end_all()

    @invariant()
    def all_is_as_it_must_be(self) -> None:
        for pair in self.pairs:
            pair.check()
            if "buffers that stock code meets" not in KNOWN_FAULTS:
                assert {name for name, _ in pair.layer.named_buffers()} == pair.names(parameters=False)

    # Forward and backward -----------------------------------------------------------------------------------

    @rule(index=which, seed=seeds, other_thread=seldom)
    def train_step(self, index: int, seed: int, other_thread: bool) -> None:
        """A forward and its backward."""
        pair = self.pick(index)
        x = pair.batch(seed).requires_grad_()

        def step() -> None:
            pair.backward(pair.forward(x), seed)

        _on_thread(step) if other_thread else step()

    @rule(index=which, seed=seeds)
    def forward(self, index: int, seed: int) -> None:
        """A forward whose backward may come later."""
        pair = self.pick(index)
        pair.pending = [*pair.pending, pair.forward(pair.batch(seed).requires_grad_())][-3:]

    @rule(index=which, position=which, seed=seeds, other_thread=seldom)
    def backward(self, index: int, position: int, seed: int, other_thread: bool) -> None:
        """The backward of a forward from before, in any order."""
        pair = self.pick(index)
        if pair.pending:
            p = pair.pending.pop(-1 - position % len(pair.pending))
            _on_thread(lambda: pair.backward(p, seed)) if other_thread else pair.backward(p, seed)

    @rule(
        index=which,
        seed=seeds,
        what=st.sampled_from(["no_grad", "inference_mode", "nan", "inf", "empty", "too few", "another width"]),
    )
    def unusual_forward(self, index: int, seed: int, what: str) -> None:
        """A forward without gradients, or of data that are no ordinary batch."""
        pair = self.pick(index)
        if what == "no_grad":
            with torch.no_grad():
                pair.forward(pair.batch(seed))
        elif what == "inference_mode":
            with torch.inference_mode():
                pair.forward(pair.batch(seed))
        elif what in ("nan", "inf"):
            self._not_finite(pair, seed, what)
        elif what == "empty":
            if pair.truth.mask is None:
                x = pair.batch(seed, size=0)
                assert pair.layer(x).shape == x.shape
        elif what == "too few":
            alone = pair.kind == "(N, C)" and pair.truth.mask is None and pair.truth.method not in UNCENTRED
            if alone and pair.truth.training and not pair.truth.frozen:
                _refused(lambda: pair.layer(pair.batch(seed, size=1)), "more than 1 value")
        elif "input of another width" not in KNOWN_FAULTS:
            x, axis = pair.batch(seed), KINDS[pair.kind][2].get("channel_axis", 1)
            _refused(lambda: pair.layer(x.narrow(axis, 0, 2)))
            _refused(lambda: pair.layer(torch.cat((x, x), axis)))

    def _not_finite(self, pair: Pair, seed: int, what: str) -> None:
        if pair.truth.method == "power" and "NaN in a batch of power" in KNOWN_FAULTS:
            return
        p = pair.forward(pair.batch(seed, what).requires_grad_())
        if seed % 2:
            # Whatever comes back, nothing of it may stay in a memory.
            g = torch.ones_like(p.y)
            torch.autograd.grad(p.y, p.x, g)
            pair.truth.backward(p.done, pair.plain(g))

    @rule(index=which, seed=seeds, reentrant=st.booleans(), between=st.booleans())
    def checkpointed(self, index: int, seed: int, reentrant: bool, between: bool) -> None:
        """A forward that backward runs again, with another forward in between or not."""
        pair = self.pick(index)
        x = pair.batch(seed).requires_grad_()
        p = pair.forward(x, lambda x: checkpoint(pair.layer, x, use_reentrant=reentrant))
        if between:
            pair.forward(pair.batch(seed + 1))
        if not reentrant:
            pair.backward(p, seed)
            return
        g, before = pair.gradient(p.y, seed), [parameter.grad for parameter in p.parameters]
        p.y.backward(g)  # reentrant checkpoints refuse autograd.grad
        pair.agree(x.grad, pair.truth.backward(p.done, pair.plain(g))[0], "gradient", of_gradients=True)
        for parameter, grad in zip(p.parameters, before, strict=True):
            parameter.grad = grad

    @rule(index=which, seed=seeds)
    def forward_in_a_gradient_hook(self, index: int, seed: int) -> None:
        """A forward of its own that runs while a backward does."""
        if "forward in a gradient hook" in KNOWN_FAULTS:
            return
        pair = self.pick(index)
        x = torch.ones(2, requires_grad=True)
        y = x * 2
        y.register_hook(lambda _: pair.forward(pair.batch(seed)) and None)
        torch.autograd.grad(y.sum(), x)

    @rule(seed=seeds)
    def forward_of_all_at_once(self, seed: int) -> None:
        """Each layer on a thread of its own."""
        inputs = [pair.batch(seed + i) for i, pair in enumerate(self.pairs)]
        outputs: list[Any] = [None] * len(inputs)

        def call(i: int) -> None:
            outputs[i] = self.pairs[i].layer(inputs[i])

        threads = [threading.Thread(target=call, args=(i,)) for i in range(len(inputs))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for pair, x, y in zip(self.pairs, inputs, outputs, strict=True):
            pair.agree(y, pair.truth.forward(pair.plain(x)).y, "output")

    # Switches and contexts ----------------------------------------------------------------------------------

    @rule(index=which, to=st.sampled_from(["train", "train", "eval", "frozen", "unfrozen", "reset"]))
    def switch(self, index: int, to: str) -> None:
        """A mode that stays."""
        pair = self.pick(index)
        if to in ("train", "eval"):
            pair.layer.train(to == "train")
            pair.truth.training = to == "train"
        elif to == "reset":
            pair.layer.reset_running_stats()
            pair.truth.reset()
        else:
            (batchnorm.freeze if to == "frozen" else batchnorm.unfreeze)(pair.layer)
            pair.truth.frozen = to == "frozen"

    @rule(index=which, value=st.sampled_from([0.0, 0.3, 0.1, None]))
    def set_momentum(self, index: int, value: float | None) -> None:
        """As schedulers, SAM and update_bn do; a schedule and a pool have no number to set."""
        pair = self.pick(index)
        if pair.truth.method != "diminishing" and not (pair.truth.method in ("pooled", "window") and value is None):
            pair.layer.momentum = pair.truth.momentum = value

    @rule(
        index=which,
        context=st.sampled_from(["pause", "accumulate", "bank", "masked", "mode"]),
        seed=seeds,
        inference=seldom,
    )
    def enter(self, index: int, context: str, seed: int, inference: bool) -> None:
        """Open a `with` block."""
        pair = self.pick(index)
        inference = inference and "bank under inference mode" not in KNOWN_FAULTS
        if len(pair.contexts) < MOST_CONTEXTS:
            getattr(self, f"_enter_{context}")(pair, seed, inference)

    @rule(index=which, well=st.sampled_from([True, True, False]))
    def leave(self, index: int, well: bool) -> None:
        """Close the innermost block, or throw through it."""
        pair = self.pick(index)
        if pair.contexts:
            pair.end(well)

    def _enter_pause(self, pair: Pair, seed: int, inference: bool) -> None:
        truth = pair.truth

        def leave(_: bool) -> None:
            truth.paused -= 1

        pair.enter("pause", batchnorm.pause(pair.layer), leave)
        truth.paused += 1

    def _enter_accumulate(self, pair: Pair, seed: int, inference: bool) -> None:
        truth = pair.truth
        if truth.accumulating or truth.method in UNCENTRED:
            _refused(lambda: batchnorm.accumulate(pair.layer).__enter__(), "accumulate")
            return
        renorm = seed % 3 == 0 and truth.method != "ghost"
        pair.enter("accumulate", batchnorm.accumulate(pair.layer, renorm=renorm), truth.land)
        truth.accumulating, truth.renorm, truth.pending = True, renorm, None

    def _enter_bank(self, pair: Pair, seed: int, inference: bool) -> None:
        truth, name, own_affine = pair.truth, "ab"[seed % 2], seed % 3 == 0
        if truth.accumulating:
            _refused(lambda: batchnorm.bank(pair.layer, name).__enter__(), "before accumulate")
            return
        before = truth.bank
        with torch.inference_mode(inference):
            context = batchnorm.bank(pair.layer, name, own_affine=own_affine)
            pair.enter("bank", context, lambda _: setattr(truth, "bank", before))
        truth.make_bank(name, own_affine)
        truth.bank = name

    def _enter_masked(self, pair: Pair, seed: int, inference: bool) -> None:
        truth = pair.truth
        if truth.method == "ghost":  # a mask may leave a group with one value
            return
        random = np.random.default_rng(seed)
        mask = random.random(int(random.integers(2, 6))) < 0.6
        mask[:2] = True
        before = truth.mask
        pair.enter(
            "masked", batchnorm.masked(pair.layer, torch.from_numpy(mask)), lambda _: setattr(truth, "mask", before)
        )
        truth.mask = mask

    def _enter_mode(self, pair: Pair, seed: int, inference: bool) -> None:
        before, outer = pair.truth.training, pair.outer_training

        def leave(_: bool) -> None:
            pair.truth.training, pair.outer_training = before, outer

        pair.enter("mode", models.mode(pair.layer, seed % 2 == 0), leave)
        pair.truth.training = seed % 2 == 0
        pair.outer_training = before if outer is None else outer

    # Copies, and where tensors lie --------------------------------------------------------------------------

    @rule(index=which, how=st.sampled_from(["deepcopy", "pickle", "average", "to_stock", "meta", "to_empty"]))
    def copies(self, index: int, how: str) -> None:
        """Another layer with the same state, which goes its own way."""
        pair = self.pick(index)
        if how in ("meta", "to_empty"):
            if "meta device" not in KNOWN_FAULTS:
                self._through_meta(pair, how)
        elif pair.contexts and "copy inside a context" in KNOWN_FAULTS:
            return
        elif how == "to_stock":
            self._to_stock(pair)
        elif how == "deepcopy":
            self.add(pair.twin(copy.deepcopy(pair.layer)))
        elif how == "pickle":
            self.add(pair.twin(pickle.loads(pickle.dumps(pair.layer))))
        else:
            self.add(pair.twin(AveragedModel(pair.layer).module))

    def _to_stock(self, pair: Pair) -> None:
        if pair.kind == "(N, H, W, C)":  # torch has no such layer
            return
        twin = pair.twin(copy.deepcopy(pair.layer))
        stock = batchnorm.to_stock(twin.layer).eval()
        assert type(stock).__module__.startswith("torch.nn")
        twin.truth.training = False
        x = twin.batch(1)
        twin.agree(stock(x), twin.truth.forward(twin.plain(x)).y, "output as torch's layer")

    def _through_meta(self, pair: Pair, how: str) -> None:
        state = _cloned(pair.layer.state_dict())
        if how == "meta":
            with torch.device("meta"):
                layer = build(pair.truth.method, pair.kind, pair.dtype)
            layer.load_state_dict(state, assign=True)
        else:
            layer = build(pair.truth.method, pair.kind, pair.dtype).to("meta").to_empty(device="cpu")
            layer.load_state_dict(state)
        twin = pair.twin(layer.to("cpu"))
        twin.truth.training, twin.truth.frozen, twin.truth.skipped = True, False, 0
        layer.momentum = pair.layer.momentum
        self.add(twin)

    @rule(index=which, how=st.sampled_from(["share_memory", "set_", "data", "resize_", "rebound", "assign", "to"]))
    def move_memory(self, index: int, how: str) -> None:
        """The same values somewhere else, maybe between a forward and its backward."""
        pair = self.pick(index)
        if pair.pending and "memory moved before backward" in KNOWN_FAULTS:
            return
        if how == "share_memory":
            pair.layer.share_memory()
        elif how == "to":
            pair.layer.to("cpu")
        elif how == "assign":
            pair.layer.load_state_dict(_cloned(pair.layer.state_dict()), assign=True)
        else:
            for name, buffer in list(pair.layer.named_buffers()):
                _move(pair.layer, name, buffer, how)
            for parameter in pair.layer.parameters():
                parameter.data = parameter.detach().clone()

    @rule(index=which, to=st.sampled_from(["float32", "float64", "half and back"]))
    def change_dtype(self, index: int, to: str) -> None:
        """A cast; statistics are never narrower than float32 and keep every digit."""
        pair = self.pick(index)
        pair.pending = []
        if to != "half and back":
            pair.dtype = getattr(torch, to)
            pair.loose = pair.loose or to == "float32"
            pair.layer.to(pair.dtype)
            return
        before = pair.layer.running_mean.float(), pair.layer.running_var.float()
        pair.layer.half()
        assert torch.equal(pair.layer.running_mean, before[0])
        assert torch.equal(pair.layer.running_var, before[1])
        pair.layer.to(pair.dtype)
        pair.loose = True
        for stats in (pair.truth.own, *pair.truth.banks.values()):
            if stats.weight is not None:
                stats.weight, stats.bias = (v.astype(np.float16).astype(float) for v in (stats.weight, stats.bias))

    @rule(index=which, seed=seeds)
    def change_weights(self, index: int, seed: int) -> None:
        """As an optimizer does."""
        pair = self.pick(index)
        pair.pending = []
        owner = pair.truth.affine[0]
        prefix = f"bank_{pair.truth.bank}_" if owner is not pair.truth.own else ""
        # Values that half precision holds too.
        owner.weight, owner.bias = np.random.default_rng(seed).integers(-8, 9, (2, CHANNELS)) / 4
        for name in ("weight", "bias"):
            with torch.no_grad():
                getattr(pair.layer, prefix + name).copy_(torch.from_numpy(getattr(owner, name)))

    @rule(index=which, do=st.sampled_from(["save", "load", "assign"]))
    def checkpoint_file(self, index: int, do: str) -> None:
        """A state is kept, or comes back."""
        pair = self.pick(index)
        if do == "save":
            pair.saved = _cloned(pair.layer.state_dict()), copy.deepcopy(pair.truth)
        elif pair.saved is not None:
            state, then = pair.saved
            if pair.truth.banks.keys() - then.banks.keys() and "bank assigned from a state without it" in KNOWN_FAULTS:
                do = "load"
            pair.pending = []
            pair.layer.load_state_dict(_cloned(state), assign=do == "assign")
            pair.dtype = pair.layer.weight.dtype
            _load(pair.truth, then)


class FullMachine(Machine):
    """Also the steps that take long: compiled layers and forked processes."""

    @rule(index=which, seed=seeds, backend=st.sampled_from(["eager", "aot_eager"]))
    def compiled(self, index: int, seed: int, backend: str) -> None:
        """A forward and a backward through torch.compile; it takes a second, so not every time."""
        if seed % 10:
            return
        pair = self.pick(index)
        torch.compiler.reset()
        compiled = torch.compile(pair.layer, fullgraph=True, backend=backend)
        pair.backward(pair.forward(pair.batch(seed).requires_grad_(), compiled), seed)

    @rule(index=which, seed=seeds)
    def forked(self, index: int, seed: int) -> None:
        """A forward and a backward in a child process, of which the parent's layer learns nothing."""
        pair = self.pick(index)
        if any(buffer.is_shared() for buffer in pair.layer.buffers()):
            return  # what the child learns lands in the memory of both
        child = os.fork()
        if child == 0:
            code = 1
            try:
                pair.backward(pair.forward(pair.batch(seed).requires_grad_()), seed)
                code = 0
            finally:
                os._exit(code)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def _cloned(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in state.items()}


def _move(layer: Any, name: str, buffer: torch.Tensor, how: str) -> None:
    if how == "set_":
        buffer.set_(buffer.clone())
    elif how == "data":
        buffer.data = buffer.clone()
    elif how == "rebound":
        setattr(layer, name, buffer.clone())
    elif not buffer.is_shared():
        shape = buffer.shape
        buffer.resize_(4096).resize_(shape)


def _load(now: Truth, then: Truth) -> None:
    """What a strict load does: a bank that the state lacks starts again from the layer's own statistics."""
    _put(now.own, then.own)
    for name, stats in then.banks.items():
        _put(now.banks.setdefault(name, stats), stats)
    for name in now.banks.keys() - then.banks.keys():
        own_affine = now.banks[name].weight is not None
        _put(now.banks[name], then.own)
        if not own_affine:
            now.banks[name].weight = now.banks[name].bias = None


def _put(now: Stats, then: Stats) -> None:
    now.__dict__.update(copy.deepcopy(then).__dict__)


def _on_thread(call: Callable[[], Any]) -> None:
    """Run a call on a thread of its own; its exception is raised here."""
    errors: list[BaseException] = []

    def run() -> None:
        try:
            call()
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    if errors:
        raise errors[0]


def _refused(call: Callable[[], Any], part: str | None = None) -> None:
    """The call raises an error with these words, and changes nothing (which the invariant sees)."""
    with pytest.raises((ValueError, RuntimeError), match=part):
        call()
