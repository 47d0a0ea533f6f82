"""Everything that is measured on a model held still: one pass over the data a condition, and what each of them did."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from batchnorm.diagnosis.experiments.attribution import attribute
from batchnorm.diagnosis.experiments.conditions import (
    Layers,
    Statistics,
    by_batch,
    modes,
    same_random,
    swapped,
    write,
)
from batchnorm.diagnosis.experiments.data import Data
from batchnorm.diagnosis.experiments.outcome import Outcome
from batchnorm.diagnosis.experiments.padding import at_layer, padded_positions
from batchnorm.diagnosis.experiments.received import Received
from batchnorm.diagnosis.experiments.sample import Sample
from batchnorm.diagnosis.experiments.scores import Scorer, agreement, labels
from batchnorm.errors import BatchNormError, UserCodeError
from batchnorm.models.batches import call, count_samples
from batchnorm.models.find import batch_norm_layers
from batchnorm.models.outputs import first_output
from batchnorm.models.recalibration.memory import available
from batchnorm.models.recalibration.recalibrating import recalibrate
from batchnorm.models.receiving import on_input
from batchnorm.models.receiving import received as received_by
from batchnorm.models.state import preserved

REST_BATCHES = 4  # at least, that are run with everything but batch norm in train mode
REST_SAMPLES = 1024
Hook = Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], None]


@dataclass
class Laboratory:
    """A model held still, its layers, and the data."""

    model: nn.Module
    layers: Layers
    active: Layers
    forward_fn: Callable[..., Any] | None
    scorer: Scorer | None
    advance: Callable[[int], None] = lambda steps: None
    valid: dict[int, Tensor] = field(default_factory=dict)
    widest: int = 0
    # Layers that a forward put in train mode where it was to run in eval.
    switched: set[nn.Module] = field(default_factory=set)

    def run(
        self,
        data: Data,
        condition: str,
        within: AbstractContextManager[Any] | None = None,
        received: dict[str, Received] | None = None,
        **how: Any,
    ) -> Outcome:
        """One pass in eval mode, within a context, with what layers receive if that is asked for; how: see `_pass`."""

        def look(name: str, x: Tensor, weight: Tensor | None) -> None:
            received[name].add(x, weight)  # pyright: ignore[reportOptionalSubscript]
            self.widest = max(self.widest, x.numel() // max(x.shape[0], 1) * 4)

        seen = {name: self.layers[name] for name in received or ()}
        with modes(self.model, False) as switched, within or ExitStack(), self.hooks(seen, look):
            outcome = self._pass(data, condition, **how)
        self.switched |= switched
        return outcome

    def _pass(
        self,
        data: Data,
        condition: str,
        sample: Sample | None = None,
        every: int = 1,
        before: Callable[[int], None] = lambda index: None,
    ) -> Outcome:
        """Score all batches, or one of every so many; before is called ahead of each, sample takes note of them."""
        outcome = self._begin(condition)
        for index, batch in data:
            if data.batches > 1 and index % every:
                continue
            before(index)
            output = self.forward(data, batch, index)
            if sample is not None:
                sample.add(batch, first_output(output))
            self._take(outcome, output, batch, index)
        return outcome

    def forward(self, data: Data, batch: Any, number: int) -> Any:
        """One forward, counted.

        Raises:
            BatchNormError: the model gave nothing, and as `call`.
        """
        data.forwarded += count_samples(batch)
        self.advance(1)
        output = call(self.model, batch, self.forward_fn, number=number, loader=data.name)
        # Where nothing is to be measured by it, a forward_fn may keep its output.
        if output is None and (self.forward_fn is None or self.scorer is not None):
            who = "model" if self.forward_fn is None else "forward_fn"
            raise BatchNormError(f"{who} must return the model's output; at batch {number} of {data.name} it gave None")
        return output

    def _begin(self, condition: str) -> Outcome:
        """A new pass under a condition, with nothing taken yet."""
        if self.scorer is not None:
            self.scorer.start()
        return Outcome(condition)

    def _take(self, outcome: Outcome, output: Any, batch: Any, number: int) -> None:
        """Score one batch's output and keep both."""
        if self.scorer is None and outcome.condition == "stored" and not outcome.batches:
            # Nobody gave a metric, but the loader gives classes.
            self.scorer = None if labels(output, batch) is None else Scorer(agreement, given=False)
        units = None if self.scorer is None else self.scorer.score(outcome.condition, output, batch, number)
        outcome.take(number, output, count_samples(batch), units)

    def hooks(self, layers: Layers, look: Callable[[str, Tensor, Tensor | None], None]) -> ExitStack:
        """Tell look the name, the input and the weights of its positions, whenever one of these layers is called."""
        stack = ExitStack()

        def hook(name: str) -> Hook:
            def see(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
                # Plain: some subclasses (MONAI's) keep books about slices, and refuse those taken of them.
                with torch._C.DisableTorchFunctionSubclass():
                    x, weight = received_by(module, args, kwargs)  # pyright: ignore[reportArgumentType]
                    look(name, x, weight)

            return see

        for name, layer in layers.items():
            stack.callback(on_input(layer, hook(name)).remove)
        return stack

    def batch(self, data: Data, evidence: dict[str, Any]) -> Outcome:
        """A pass in which layers normalise with their batch (evidence by name: a `LayerEvidence`)."""
        outcome = self._begin("batch")
        valid: Tensor | None = None

        def look(name: str, x: Tensor, weight: Tensor | None) -> None:
            layer = evidence[name]
            if layer.inputs.is_single(x):
                return
            call = len(layer.inputs.means[-1])
            if layer.in_eval.calls > data.batches:
                layer.by_call += [Received() for _ in range(call + 1 - len(layer.by_call))]
                layer.by_call[call].add(x, weight)
            layer.inputs.add(x, layer.collected.add(x, weight), layer.mean, layer.scale)
            if valid is not None and weight is None:
                here = at_layer(valid, x)
                if here is not None:
                    layer.without_padding.add(x, here)

        with by_batch(self.model, self.active), self.hooks(self.active, look):
            for index, batch in data:
                for layer in evidence.values():
                    layer.inputs.start_batch()
                valid = padded_positions(batch)
                if valid is not None:
                    self.valid[index] = valid
                try:
                    output = self.forward(data, batch, index)
                except ValueError:
                    if all(layer.inputs.single is None for layer in evidence.values()):
                        raise
                    continue
                self._take(outcome, output, batch, index)
        return outcome

    def recalibrated(
        self, data: Data, chosen: Callable[[int], bool] = lambda index: True
    ) -> tuple[Statistics | None, str]:
        """The statistics that `recalibrate` gives, undone; and the call that was made, or why there is none."""
        if not self.active:
            return None, "every layer is frozen" if self.layers else "no layer has running statistics"
        # All batches wait at each layer; where they do not fit they pass once per layer, which costs too much here.
        room = available(next(iter(self.active.values())).running_mean.device) // 4  # pyright: ignore
        upstream = "population" if 3 * self.widest * max(data.samples, 1) <= room else "batch"
        try:
            result = recalibrate(
                self.model, data.as_loader(chosen), forward_fn=self.forward_fn, upstream=upstream, progress=False
            )
        except (BatchNormError, ValueError, RuntimeError) as error:
            return None, str(error)
        found = {
            name: (m.running_mean.detach().clone(), m.running_var.detach().clone())  # pyright: ignore
            for name, m in self.active.items()
        }
        result.undo()
        return found, "" if upstream == "population" else ', upstream="batch"'

    def rest_in_train(self, data: Data, stored: Outcome) -> Outcome | None:
        """A pass with everything but batch norm in train mode; None where that leaves the first batch's output.

        Without a metric a few batches do.
        """
        outcome = self._begin("rest")
        # Vectors of spectral norm, queues and counters move in train mode.
        norms = batch_norm_layers(self.model).values()
        with preserved(self.model), same_random(self.model), modes(self.model, True, but=norms):
            for index, batch in data:
                output = self.forward(data, batch, index)
                try:
                    self._take(outcome, output, batch, index)
                except UserCodeError:
                    return None  # in train mode the model returns what the metric does not take, as a second head
                if outcome.distance(stored) in (None, 0.0):
                    return None
                if self.scorer is None and outcome.batches >= REST_BATCHES:
                    break
        return outcome

    def rest_received(self, data: Data, evidence: dict[str, Any]) -> None:
        """What the layers receive with everything else in train mode, from some samples."""

        def look(name: str, x: Tensor, weight: Tensor | None) -> None:
            if x.numel() != x.shape[1]:
                evidence[name].with_rest_in_train.add(x, weight)

        seen = 0
        rest = by_batch(self.model, self.active, rest=True)
        with preserved(self.model), same_random(self.model), rest, self.hooks(self.active, look):
            for index, batch in data:
                if index >= REST_BATCHES and seen >= REST_SAMPLES:
                    return
                seen += count_samples(batch)
                try:
                    self.forward(data, batch, index)
                except ValueError:
                    continue

    def damage(
        self, data: Data, right: Statistics, stored: Statistics, order: list[str]
    ) -> tuple[dict[str, float], int]:
        """Attribution within one pass's worth of forwards."""
        _, batch = next(iter(data))
        found, used = attribute(self.model, self.active, right, stored, order, batch, self.forward_fn, data.samples)
        data.forwarded += used * (len(found) + 1)
        return found, used

    def by_call(self, data: Data, statistics: dict[str, list[tuple[Tensor, Tensor]]]) -> Outcome:
        """Every call of a layer in one forward with statistics of its own, the last ones for any further call."""
        count = dict.fromkeys(statistics, 0)

        def put(name: str, x: Tensor, weight: Tensor | None) -> None:
            pairs = statistics[name]
            write(self.active[name], *pairs[min(count[name], len(pairs) - 1)])
            count[name] += 1

        first = {name: pairs[0] for name, pairs in statistics.items()}
        with swapped(self.active, first), self.hooks({name: self.active[name] for name in statistics}, put):
            return self.run(data, "by_call", before=lambda index: count.update(dict.fromkeys(count, 0)))

    def normalised(self, data: Data, layers: Layers) -> Statistics:
        """What layers, frozen or not, receive where those before them have their batch's statistics; put back."""
        received = {name: Received() for name in layers}
        now = {name: (m.running_mean, m.running_var) for name, m in layers.items()}

        def look(name: str, x: Tensor, weight: Tensor | None) -> None:
            one = Received()
            one.add(x, weight)
            received[name].add(x, weight)
            if one.values is not None:
                write(layers[name], one.values.mean, one.values.var(0))

        with swapped(layers, now), self.hooks(layers, look):  # pyright: ignore
            self.run(data, "normalised", every=2)
        return {name: pair for name, one in received.items() if (pair := one.pair) is not None}

    def served(self, data: Data) -> Outcome | None:
        """A pass as `model.eval()` leaves the model; None where a batch is refused in train mode."""
        with preserved(self.model):
            self.model.eval()
            try:
                return self._pass(data, "served")
            except ValueError:
                return None
