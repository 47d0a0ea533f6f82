"""Ultralytics' trainers: the averaged weights, which are validated and saved, get statistics of their own."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from batchnorm.arguments import arguments, some_batches
from batchnorm.interop.trainers.averages import recalibrate
from batchnorm.interop.trainers.history import History
from batchnorm.interop.trainers.options import UNTIL, check_options, everybody
from batchnorm.models import Recalibration


class Recalibrate:
    """A callback for "on_train_epoch_end" that recalibrates `trainer.ema`; `.history` says what each call did.

    Example:
        >>> yolo = ultralytics.YOLO("yolo11n.yaml")  # doctest: +SKIP
        >>> yolo.add_callback("on_train_epoch_end", Recalibrate(until=0.02))  # doctest: +SKIP

    Ultralytics averages weights and statistics alike; the averaged statistics are those of other
    weights than the averaged ones.

    Args:
        loader: batches as the trainer's; by default the trainer's own, read beside the training.
        until: as in `recalibrate`; None reads all data, each time.
        **options: further arguments of `batchnorm.recalibrate`.

    Raises:
        BatchNormError: an option that `recalibrate` does not have.
    """

    @arguments(loader=some_batches, until=UNTIL)
    def __init__(self, loader: Iterable[Any] | None = None, *, until: float | None = 0.01, **options: Any) -> None:
        check_options(options)
        self._loader = loader
        self._options: dict[str, Any] = {"until": until, "progress": False, **options}
        # Of the last call, with its undo().
        self.result: Recalibration | None = None
        self.history = History()

    def __call__(self, trainer: Any) -> None:
        """Recalibrate the average, before the trainer validates it."""

        def forward(model: Any, batch: Any) -> Any:
            # A copy: detection divides the images in the dictionary by 255, and a batch may come again.
            return model(trainer.preprocess_batch(dict(batch))["img"])

        loader = trainer.train_loader if self._loader is None else self._loader
        options = {"forward_fn": forward, "process_group": everybody(), **self._options}
        epoch = len(self.history) + 1
        self.result = self.history.add(f"epoch {epoch}", recalibrate(trainer.ema, loader, **options))
