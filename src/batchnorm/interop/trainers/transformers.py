"""Callbacks of Hugging Face's Trainer: watch, recalibrate before evaluations and checkpoints, freeze."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from typing import Any, Literal, get_args

from batchnorm.arguments import a_flag, a_function, arguments, some_batches, some_names, whole
from batchnorm.diagnosis import watch
from batchnorm.diagnosis.run.sinks import a_sink
from batchnorm.interop.trainers.frozen import Frozen
from batchnorm.interop.trainers.history import History
from batchnorm.interop.trainers.lazy import Adapter
from batchnorm.interop.trainers.loaders import again
from batchnorm.interop.trainers.options import UNTIL, check_moments, check_options, everybody
from batchnorm.models import Recalibration, recalibrate

Event = Literal["evaluate", "save", "end"]


class _Callback(Adapter):
    _bases = ("transformers:TrainerCallback",)


class Watch(_Callback):
    """Watch the running statistics of a training, as `batchnorm.watch` does; the report is in `.report`.

    Example:
        >>> Trainer(model, arguments, callbacks=[Watch(to="bn.jsonl")])  # doctest: +SKIP

    Args:
        to: as in `watch`; the number of planned steps is the trainer's.
        every: as in `watch`.
        compare_processes: as in `watch`.

    Raises:
        BatchNormError: transformers is not installed.
    """

    @arguments(to=a_sink, every=whole(1), compare_processes=a_flag)
    def __init__(self, to: Any = None, *, every: int = 10, compare_processes: bool = True) -> None:
        self._options = {"to": to, "every": every, "compare_processes": compare_processes}
        self.report: Any = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Hooks on."""
        # The trainer's optimizer is accelerate's, around the one whose steps count.
        optimizer = getattr(kwargs["optimizer"], "optimizer", kwargs["optimizer"])
        steps = state.max_steps if state.max_steps > 0 else None
        self.report = watch(kwargs["model"], optimizer, steps=steps, **self._options)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """A last look, hooks off."""
        self.report.close()


class Recalibrate(_Callback):
    """Recalibrate before evaluations, before checkpoints and at the end; `.history` says what each call did.

    Example:
        >>> Trainer(model, arguments, callbacks=[Recalibrate(until=0.01)])  # doctest: +SKIP

    The data are the trainer's own, each process its share, read beside the training without
    disturbing it; the moments of several processes are merged. The statistics stay as recalibrated;
    training goes on from there. `trainer.evaluate()` outside a training has no event before it.

    Args:
        loader: batches; by default those of the training.
        at: some of "evaluate", "save" and "end".
        forward_fn: `forward_fn(model, batch)`; by default the model is called with the batch's entries.
        until: as in `recalibrate`; None reads all data, each time.
        **options: further arguments of `recalibrate`.

    Raises:
        BatchNormError: transformers is not installed, an argument that is not legal.
    """

    @arguments(loader=some_batches, forward_fn=a_function, until=UNTIL)
    def __init__(
        self,
        loader: Iterable[Any] | None = None,
        *,
        at: Collection[Event] | Event = ("evaluate", "save", "end"),
        forward_fn: Callable[[Any, Any], Any] | None = None,
        until: float | None = 0.01,
        **options: Any,
    ) -> None:
        check_options(options)
        self._loader, self._at = loader, check_moments(at, get_args(Event))
        self._options: dict[str, Any] = {"forward_fn": forward_fn, "until": until, "progress": False, **options}
        # Of the last call, with its undo().
        self.result: Recalibration | None = None
        self.history = History()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """The trainer has decided by now what follows this step."""
        self._before(state, control, kwargs)

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """And what follows this epoch."""
        self._before(state, control, kwargs)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """After the best checkpoint has been loaded, where that was asked for."""
        if "end" in self._at:
            self._run("end", kwargs)

    def _before(self, state: Any, control: Any, kwargs: dict[str, Any]) -> None:
        if (control.should_evaluate and "evaluate" in self._at) or (control.should_save and "save" in self._at):
            self._run(f"step {state.global_step}", kwargs)

    def _run(self, when: str, kwargs: dict[str, Any]) -> None:
        loader = again(kwargs["train_dataloader"]) if self._loader is None else again(self._loader)
        result = recalibrate(kwargs["model"], loader, process_group=everybody(), **self._options)
        self.result = self.history.add(when, result)


class Freeze(_Callback):
    """Freeze the batch norm layers, or those of some parts; the trainer calls `train()` at every step.

    Example:
        >>> Trainer(model, arguments, callbacks=[Freeze(["resnet.embedder"], affine=True)])  # doctest: +SKIP

    Args:
        parts: paths of modules; None for all.
        affine: stop training weight and bias too.
        until_step: let go after this many steps; None for never: the model stays frozen after the
            training, until `batchnorm.unfreeze`.

    Raises:
        BatchNormError: transformers is not installed; when training begins: no such part.
    """

    @arguments(parts=some_names, affine=a_flag, until_step=whole(0))
    def __init__(
        self, parts: Iterable[str] | None = None, *, affine: bool = False, until_step: int | None = None
    ) -> None:
        self._parts = None if parts is None else list(parts)
        self._affine, self._until_step = affine, until_step
        self._frozen: Frozen | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Freeze."""
        if self._until_step is None or state.global_step < self._until_step:
            self._frozen = Frozen(kwargs["model"], self._parts, self._affine)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Let go."""
        if self._frozen is not None and self._until_step is not None and state.global_step >= self._until_step:
            self._frozen.release()
            self._frozen = None
