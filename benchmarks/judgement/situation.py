"""What a situation is: a name, what kind it is, the codes that are right, and a seed that makes one of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

import batchnorm


@dataclass
class Situation:
    """One kind; every seed is a fresh case."""

    name: str
    kind: str
    build: Callable[[int], dict[str, Any]]
    code: list[str] = field(default_factory=list)

    def make(self, seed: int) -> dict[str, Any]:
        """The model as it would be given, its data, a metric, and what repairs it."""
        torch.manual_seed(seed)
        return {"eval_loader": None, "metric": None, "oracle": None, **self.build(seed)}


class Kinds(list[Situation]):
    """A list to which functions enter themselves."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind

    def add(self, *codes: str) -> Callable[[Callable[[int], dict[str, Any]]], Callable[[int], dict[str, Any]]]:
        def enter(build: Callable[[int], dict[str, Any]]) -> Callable[[int], dict[str, Any]]:
            self.append(Situation(build.__name__, self.kind, build, list(codes)))
            return build

        return enter


def recalibrated_on(loader: Any) -> Callable[[Any], Any]:
    """The repair of lagging statistics."""

    def oracle(model: Any) -> Any:
        batchnorm.recalibrate(model, loader, progress=False)
        return model

    return oracle
