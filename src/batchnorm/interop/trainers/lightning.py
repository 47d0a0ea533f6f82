"""Callbacks of PyTorch Lightning: watch a fit, recalibrate before validation and at its end, freeze."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from typing import Any, Literal, get_args

import torch
from torch import nn
from torch.utils.data import DataLoader

from batchnorm.arguments import a_flag, a_function, a_string, arguments, some_batches, some_names, whole
from batchnorm.diagnosis import watch
from batchnorm.diagnosis.run.sinks import a_sink
from batchnorm.errors import BatchNormError, check
from batchnorm.interop.trainers.frozen import Frozen, part_of
from batchnorm.interop.trainers.history import History
from batchnorm.interop.trainers.lazy import Adapter
from batchnorm.interop.trainers.loaders import again
from batchnorm.interop.trainers.options import UNTIL, check_moments, check_options, everybody
from batchnorm.models import Recalibration, recalibrate
from batchnorm.models.batches import call

Event = Literal["validation", "end"]


class _Callback(Adapter):
    _bases = ("lightning.pytorch:Callback", "pytorch_lightning:Callback")


class Watch(_Callback):
    """Watch the running statistics of a fit, as `batchnorm.watch` does; the report is in `.report`.

    Example:
        >>> Trainer(callbacks=[Watch(to="logger")])  # doctest: +SKIP

    Args:
        to: "logger" sends the numbers to the trainer's loggers; otherwise as in `watch`.
        part: the path of the module that training calls, if it is not the LightningModule itself.
        every: as in `watch`.
        compare_processes: as in `watch`.

    Raises:
        BatchNormError: Lightning is not installed.
    """

    @arguments(part=a_string, to=a_sink, every=whole(1), compare_processes=a_flag)
    def __init__(self, to: Any = None, *, part: str = "", every: int = 10, compare_processes: bool = True) -> None:
        self._to, self._part = to, part
        self._options = {"every": every, "compare_processes": compare_processes}
        self.report: Any = None

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Hooks on."""
        to = _Loggers(trainer.loggers) if self._to == "logger" else self._to
        optimizer = trainer.optimizers[0] if trainer.optimizers else None
        self.report = watch(part_of(pl_module, self._part, "part"), optimizer, to=to, **self._options)

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """A last look, hooks off."""
        self.report.close()

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """Hooks off."""
        if self.report is not None:
            self.report.close()


class _Loggers:
    """Lightning's loggers with TensorBoard's `add_scalar`."""

    def __init__(self, loggers: Iterable[Any]) -> None:
        self._loggers = list(loggers)
        check(bool(self._loggers), "to", "'logger' only where the trainer has a logger", "'logger'")

    def add_scalar(self, tag: str, value: float, step: int) -> None:
        for logger in self._loggers:
            logger.log_metrics({tag: value}, step=step)


class Recalibrate(_Callback):
    """Recalibrate before each validation of a fit, and at its end; `.history` says what each call did.

    Example:
        >>> Trainer(callbacks=[EMAWeightAveraging(decay=0.999), Recalibrate(until=0.01)])  # doctest: +SKIP

    It is the weights that validation sees which get their statistics: with `WeightAveraging` (EMA or
    SWA) the averaged ones, wherever it stands in the list. "end" comes after the averaged weights
    have been put into the module, those of `StochasticWeightAveraging` included. Forwards run under
    the trainer's precision; several processes merge their moments. The sanity check is left out, and
    so is `trainer.validate()`. Statistics stay as recalibrated; training goes on from there.

    Args:
        loader: batches; by default those of the fit, each process its share.
        at: "validation", "end", or both.
        forward_fn: `forward_fn(module, batch)`; by default as in `recalibrate`.
        until: as in `recalibrate`; None reads all data, each time.
        **options: further arguments of `recalibrate`.

    Raises:
        BatchNormError: Lightning is not installed, an argument that is not legal; at the first
            recalibration: a module without a forward and no forward_fn, training data that are not
            one DataLoader and no loader.
    """

    @arguments(loader=some_batches, forward_fn=a_function, until=UNTIL)
    def __init__(
        self,
        loader: Iterable[Any] | None = None,
        *,
        at: Collection[Event] | Event = ("validation", "end"),
        forward_fn: Callable[[Any, Any], Any] | None = None,
        until: float | None = 0.01,
        **options: Any,
    ) -> None:
        check_options(options)
        self._loader, self._at, self._forward_fn = loader, check_moments(at, get_args(Event)), forward_fn
        self._options: dict[str, Any] = {"until": until, "progress": False, **options}
        self._of_the_fit: Any = None
        # Of the last call, with its undo().
        self.result: Recalibration | None = None
        self.history = History()

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Find the data now, since they are gone at the end."""
        self._of_the_fit = trainer.train_dataloader

    def on_validation_batch_start(
        self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Before the first batch: later than any callback that exchanges weights at the start of the epoch."""
        first = batch_idx == 0 and dataloader_idx == 0
        if first and "validation" in self._at and trainer.state.fn == "fit" and not trainer.sanity_checking:
            self._run(trainer, pl_module, f"validation, step {trainer.global_step}")

    def on_fit_end(self, trainer: Any, pl_module: Any) -> None:
        """Later than every `on_train_end`, where averaged weights are put in."""
        if "end" in self._at:
            self._run(trainer, pl_module, "end")
        self._of_the_fit = None

    def _run(self, trainer: Any, pl_module: Any, when: str) -> None:
        loader = self._of_the_fit if self._loader is None else self._loader
        if self._loader is None and not isinstance(loader, DataLoader):
            raise BatchNormError(f"loader must be given: training reads {loader!r}, not one DataLoader")
        plain = type(pl_module).forward is nn.Module.forward
        if self._forward_fn is None and plain:
            raise BatchNormError(f"forward_fn must be given: {type(pl_module).__name__} has no forward")

        def forward(module: Any, batch: Any) -> Any:
            # The fit's own way to the device, and its precision.
            batch = module.transfer_batch_to_device(batch, module.device, 0)
            with trainer.precision_plugin.forward_context():
                return call(module, batch, None) if self._forward_fn is None else self._forward_fn(module, batch)

        with torch.inference_mode(False):
            result = recalibrate(
                pl_module, again(loader), forward_fn=forward, process_group=everybody(), **self._options
            )
        self.result = self.history.add(when, result)


class Freeze(_Callback):
    """Freeze the batch norm layers, or those of some parts, for a fit or until an epoch.

    Example:
        >>> Trainer(callbacks=[BackboneFinetuning(5), Freeze(["backbone"], affine=True)])  # doctest: +SKIP

    They normalise with their stored statistics whatever `.train()` is called on, whatever
    `BaseFinetuning` unfreezes, and `StochasticWeightAveraging` resets them in vain. (By itself
    `BaseFinetuning` freezes by `track_running_stats=False`: layers then normalise with their
    batches in training, and with what they have stored in validation.)

    Args:
        parts: paths of modules; None for all.
        affine: hold weight and bias too (`requires_grad_(False)`).
        until_epoch: let go at the start of this epoch; None for never: the module stays frozen
            after the fit, until `batchnorm.unfreeze`.

    Raises:
        BatchNormError: Lightning is not installed; when the fit starts: no such part.
    """

    @arguments(parts=some_names, affine=a_flag, until_epoch=whole(0))
    def __init__(
        self, parts: Iterable[str] | None = None, *, affine: bool = False, until_epoch: int | None = None
    ) -> None:
        self._parts = None if parts is None else list(parts)
        self._affine, self._until_epoch = affine, until_epoch
        self._frozen: Frozen | None = None

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Early enough that copies of the module are frozen too."""
        if stage == "fit":
            self._frozen = Frozen(pl_module, self._parts, self._affine)

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Checkpoints have been loaded by now."""
        if self._frozen is not None:
            self._frozen.keep()

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Let go, or hold against what other callbacks did at the start of the epoch."""
        if self._frozen is None or batch_idx > 0:
            return
        if self._until_epoch is not None and trainer.current_epoch >= self._until_epoch:
            self._frozen.release()
            self._frozen = None
        else:
            self._frozen.hold()
            self._frozen.put_back()

    def on_fit_end(self, trainer: Any, pl_module: Any) -> None:
        """Whatever the end of the fit wrote."""
        if self._frozen is not None:
            self._frozen.put_back()
