"""Which layer goes where: into the maps before it, into those after it, or nowhere and why."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import nn
from torch.nn.utils import parametrize

from batchnorm.models.folding.absorb import CONVOLUTIONS, LINEAR_MAPS, TRANSPOSED, inputs, outputs, pad_values
from batchnorm.models.folding.channels import Affine
from batchnorm.models.folding.run import Calls
from batchnorm.models.graph.flow import Edge, Flow
from batchnorm.models.graph.moves import Place, follow
from batchnorm.models.modes import is_frozen


@dataclass(frozen=True)
class Fold:
    """One layer's fate: absorbed "after" or "before" the maps, an "affine" of its own, or to "keep"."""

    name: str
    kind: str
    affine: Affine | None
    maps: tuple[str, ...] = ()
    padded: tuple[str, ...] = ()
    reason: str = ""

    def watched(self, folds: list[Fold]) -> tuple[str, ...]:
        """The modules whose outputs must be what they were, with all these folds made.

        Where a map absorbed several layers, only the output of the last of them exists any more.
        """
        if self.kind == "keep":
            return ()
        names = self.maps if self.kind == "before" else (self.name,)
        if self.kind == "affine":
            return names
        last = {name: fold.name for fold in folds if fold.kind == "after" for name in fold.maps}
        if self.kind == "after":
            return _names(last[name] for name in self.maps)
        return _names(last.get(name, name) for name in self.maps)


@dataclass
class Planner:
    """Plans in the order of execution; a folded layer is transparent to those after it."""

    model: nn.Module
    flow: Flow
    calls: dict[str, Calls]
    explicit_padding: bool
    modules: dict[str, nn.Module] = field(init=False)

    def __post_init__(self) -> None:
        self.modules = dict(self.model.named_modules())

    def place(self, name: str, affine: Affine) -> Fold:
        """Where a layer goes."""
        calls = self.calls.get(name)
        reason = self._cannot_move(name, calls)
        if reason is not None or calls is None:
            return Fold(name, "keep", affine, reason=reason or "")
        after = self._into_maps_before(name, affine, calls)
        if isinstance(after, tuple):
            if affine.tail is None:
                self.flow = self.flow.without(name)
            return Fold(name, "after", affine, after)
        before = self._into_maps_after(name, affine, calls)
        if isinstance(before, tuple):
            self.flow = self.flow.without(name)
            padded = tuple(m for m in before if _zero_padding(self.modules[m]))
            return Fold(name, "before", affine, before, padded)
        return Fold(name, "affine", affine, reason=f"{after}; {before}")

    def _cannot_move(self, name: str, calls: Calls | None) -> str | None:
        if calls is None:
            return "the example never reaches it"
        if calls.extra:
            return "it is called with a mask, weights, a residual or other arguments beside its input"
        if has_hooks(self.modules[name]):
            return "it has forward hooks, which would go with it"
        return "something reads its parameters past its forward" if name in self.flow.read else None

    def _into_maps_before(self, name: str, affine: Affine, calls: Calls) -> tuple[str, ...] | str:
        edges = self.flow.into(name)
        if not edges:
            return "what feeds it is not certain"
        for edge in edges:
            reason = self._no_map(edge.source, edge.what, "its input comes from")
            if reason is not None:
                return reason
        sources = _names(edge.source for edge in edges)
        for source in sources:
            module = self.modules[source]
            for out in self.flow.out_of(source):
                if out.target != name:
                    return f"the output of {source} also goes to {out.target or out.what}"
            for edge in edges:
                if edge.source == source and not self._channels_meet(edge, module, affine, calls):
                    return f"its channels are not the output channels of {source} ({type(module).__name__})"
        if sum(self.calls[source].count for source in sources) != calls.count:
            return f"{', '.join(sources)} ran another number of times than it did"
        return sources

    def _channels_meet(self, edge: Edge, module: nn.Module, affine: Affine, calls: Calls) -> bool:
        (rank,) = self.calls[edge.source or ""].output_ranks
        if len(affine.scale) == 1 and isinstance(module, nn.Linear):
            return True
        there = follow(edge.via, Place(_axis(module, rank, outgoing=True), rank))
        fits = there is not None and not there.blocked and {there.rank} == calls.input_ranks
        same = there is not None and there.axis == affine.channel_axis % there.rank
        return fits and same and outputs(module) == len(affine.scale)

    def _into_maps_after(self, name: str, affine: Affine, calls: Calls) -> tuple[str, ...] | str:
        edges = self.flow.out_of(name)
        if affine.tail is not None:
            return f"{type(affine.tail).__name__} follows inside it"
        if not edges:
            return "what takes its output is not certain"
        for edge in edges:
            reason = self._no_map(edge.target, edge.what, "its output goes to")
            if reason is not None:
                return reason
        targets = _names(edge.target for edge in edges)
        for target in targets:
            module = self.modules[target]
            if any(edge.source != name for edge in self.flow.into(target)):
                return f"{target} has other inputs too"
            if self.calls[target].count != calls.count:
                return f"{target} ran another number of times than it did"
            for edge in edges:
                if edge.target == target and not self._channels_enter(edge, module, affine, calls):
                    return f"its channels are not the input channels of {target} ({type(module).__name__})"
            reason = self._no_constant(target, module, affine)
            if reason is not None:
                return reason
        return targets

    def _channels_enter(self, edge: Edge, module: nn.Module, affine: Affine, calls: Calls) -> bool:
        (rank,) = calls.input_ranks if len(calls.input_ranks) == 1 else (0,)
        if rank == 0:
            return False
        if len(affine.scale) == 1 and isinstance(module, nn.Linear):
            return True
        there = follow(edge.via, Place(affine.channel_axis % rank, rank))
        if there is None or {there.rank} != self.calls[edge.target or ""].input_ranks:
            return False
        whole = inputs(module) % len(affine.scale) == 0 if there.blocked else inputs(module) == len(affine.scale)
        return whole and there.axis == _axis(module, there.rank, outgoing=False)

    def _no_constant(self, target: str, module: Any, affine: Affine) -> str | None:
        """Why a constant in the input does not come out as a constant."""
        plain = parametrize.type_before_parametrizations(module)
        if plain not in LINEAR_MAPS:
            return f"{target} is a {plain.__name__}, which may pad its input"
        if isinstance(module, TRANSPOSED):
            point = all(k == 1 for k in (*module.kernel_size, *module.stride))
            padded = any(module.padding) or any(module.output_padding)
            fine = (point and not padded) or not bool(affine.shift.any())
            return None if fine else f"{target} is transposed: it adds up another number of inputs at its borders"
        if not _zero_padding(module):
            return None
        if not bool(affine.shift.any()):
            return None
        if not self.explicit_padding:
            return f"{target} pads with zeros, which are no zeros before the shift (padding='explicit' pads with those)"
        if pad_values(affine.scale, affine.shift) is None:
            return f"{target} pads with zeros, and a channel's scale is too small to make one"
        return None

    def _no_map(self, name: str | None, what: str, words: str) -> str | None:
        if name is None or not isinstance(self.modules.get(name), LINEAR_MAPS):
            return f"{words} {what if name is None else f'{name} ({type(self.modules[name]).__name__})'}"
        module = self.modules[name]
        if has_hooks(module):
            return f"{name} has forward hooks, which would see other values"
        if name in self.flow.read:
            return f"something reads the parameters of {name} past its forward"
        if name not in self.calls:
            return f"the example never reaches {name}"
        return None if len(self.calls[name].output_ranks) == 1 else f"{name} takes inputs of several ranks"


def has_hooks(module: nn.Module) -> bool:
    """Whether a module has forward hooks that are not `freeze`'s."""
    own = 1 if is_frozen(module) and module._forward_pre_hooks else 0
    return len(module._forward_pre_hooks) > own or len(module._forward_hooks) > own


def _zero_padding(module: Any) -> bool:
    if not isinstance(module, CONVOLUTIONS) or module.padding_mode != "zeros":
        return False
    return any(module._reversed_padding_repeated_twice)


def _axis(module: nn.Module, rank: int, outgoing: bool) -> int:
    """The axis of a map's channels; both sides alike."""
    return rank - 1 if isinstance(module, nn.Linear) else 1


def _names(found: Any) -> tuple[str, ...]:
    return tuple(dict.fromkeys(name for name in found if name is not None))
