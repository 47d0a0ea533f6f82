"""Continuing after a kill: what has been seen so far, in a file that is replaced as a whole."""

from __future__ import annotations

import glob
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from batchnorm.errors import BatchNormError
from batchnorm.files import check_writable, write_atomically

# Writing may take this share of the run.
_SHARE = 0.05


class Checkpoint:
    """The file of a run that may be killed, or no file at all.

    It holds tensors and numbers only and is read as data. identity says which run it belongs to:
    the weights, the settings, and the first batch.
    """

    def __init__(self, path: str | Path | None, identity: dict[str, Any]) -> None:
        self.path = None if path is None else Path(path)
        self.identity = identity
        self._part: dict[str, Any] = {}
        self._started = time.monotonic()
        self._written = -float("inf")
        self._cost = 0.0
        if self.path is not None:
            check_writable(self.path, "resume")
        self._saved = self._load()

    def part(self, kind: str, settings: dict[str, Any]) -> dict[str, Any]:
        """What was saved under this kind and these settings; later saves go there too."""
        self._part = {"kind": kind, "settings": settings}
        saved, self._saved = self._saved, None
        if saved is None or {"kind": saved["kind"], "settings": saved["settings"]} != self._part:
            return {}
        return saved["state"]

    def _load(self) -> dict[str, Any] | None:
        if self.path is None or not self.path.exists():
            return None
        try:
            saved = torch.load(self.path, map_location="cpu", weights_only=True)
            identity = saved["identity"]
        except Exception as error:
            raise BatchNormError(
                f"resume must be a checkpoint of recalibrate, or a path where there is none; {self.path} is neither"
            ) from error
        for name, value in self.identity.items():
            if identity.get(name) != value:
                raise BatchNormError(
                    f"resume must be a checkpoint of this run; {self.path} was made with other {name}: delete it to "
                    "start over"
                )
        return saved

    def save(self, **state: Any | Callable[[], Any]) -> None:
        """Write, unless that would take too much of the run's time; callables are asked only then."""
        if self.path is None:
            return
        now = time.monotonic()
        if now - self._written < self._cost / _SHARE:
            return
        values = {name: value() if callable(value) else value for name, value in state.items()}
        content = {"identity": self.identity, **self._part, "state": values}
        write_atomically(self.path, lambda temporary: torch.save(content, temporary))
        self._written = time.monotonic()
        self._cost = self._written - now

    def done(self) -> None:
        """The run is complete: the file has served."""
        if self.path is not None:
            self.path.unlink(missing_ok=True)
            # A kill during a write leaves a temporary file beside the path.
            for left in self.path.parent.glob(f".{glob.escape(self.path.name)}.*"):
                left.unlink(missing_ok=True)
