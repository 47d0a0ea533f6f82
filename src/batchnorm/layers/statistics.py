"""The buffers of a layer: running statistics, what the choices remember, banks; their dtypes, loading and reset."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parameter import is_lazy

from batchnorm import kernels
from batchnorm.arguments import a_string, told
from batchnorm.errors import BatchNormError, check
from batchnorm.kernels import native, triton
from batchnorm.kernels.shapes import NARROW
from batchnorm.layers.choices import Recipe
from batchnorm.layers.choices.situation import Held, Now, Slot, State, copied, resolve
from batchnorm.layers.held import without_contexts

_STOCK = ("running_mean", "running_var", "num_batches_tracked")


class Statistics(_BatchNorm):
    """State of a batch norm layer, read and written by name; a bank's under its own prefix."""

    recipe: Recipe = Recipe()
    memory_names: tuple[str, ...] = ()
    bank_names: tuple[str, ...] = ()
    active_bank: str | None = None
    # How often other tensors took the place of the buffers' own, so that a backward finds those of its forward.
    exchanges: int = 0
    # What the momentum was when the layer was a stock one, and what `convert` made of it.
    stock_momentum: tuple[Any, Any] | None = None

    @property
    def num_batches_skipped(self) -> Tensor | None:
        """How many batches were left out because they were not finite; None where no statistics are kept.

        It is no buffer, so that stock code meets torch's three; it follows the statistics to their device.
        """
        mean = self.running_mean
        if mean is None:
            return None
        skipped: Tensor | None = self.__dict__.get("_skipped")
        if skipped is None or skipped.device != mean.device:
            with torch.inference_mode(False):
                # A meta tensor has no count to go on with.
                if skipped is None or skipped.is_meta:
                    skipped = torch.zeros((), dtype=torch.long, device=mean.device)
                skipped = skipped.to(mean.device)
            self.__dict__["_skipped"] = skipped
        return skipped

    def __getstate__(self) -> dict[str, Any]:
        state = without_contexts(self, self.__dict__)
        for name in ("accumulating", "_ready", "_pending"):
            state.pop(name, None)
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        # In 0.1.0 these were buffers.
        for name in ("num_batches_skipped", *(f"pending_{of}" for of in ("count", "count_squared", "mean", "m2"))):
            self._non_persistent_buffers_set.discard(name)
            held = self._buffers.pop(name, None)
            if held is not None and name == "num_batches_skipped":
                self.__dict__["_skipped"] = held

    def adopt(self, recipe: Recipe) -> None:
        """Take a recipe and the buffers it needs; what is there already is kept."""
        check(hasattr(recipe, "estimator"), "recipe", "a Recipe, as recipe_for(method) gives", told(recipe))
        require_names(self, type(self), recipe)
        before, self.recipe = self.recipe, recipe
        if self.running_mean is None:
            return
        same = before.estimator == recipe.estimator, before.coupling == recipe.coupling
        # Ordinary tensors, wherever they are made: an inference tensor could not be trained.
        with torch.inference_mode(False):
            self._adopt(same)

    def _adopt(self, same: tuple[bool, bool]) -> None:
        """Buffers for what estimator and coupling remember; those of the same choice as before stay."""
        self._widen()
        held, names = dict(self._buffers), self.memory_names
        for bank in (None, *self.bank_names):
            parts = self._memories(self._named(bank, "running_mean"), self._named(bank, "running_var"))
            self.memory_names = tuple(name for part in parts for name in part)
            for name in names:
                if name not in self.memory_names:
                    self._buffers.pop(_key(bank, name), None)
            for part, stays in zip(parts, same, strict=True):
                for name, value in part.items():
                    if not (stays and _key(bank, name) in self._buffers):
                        self.register_buffer(_key(bank, name), value)
        self._count_exchange(held)

    def _initial_memory(self, mean: Tensor, var: Tensor) -> dict[str, Tensor]:
        of_estimator, of_coupling = self._memories(mean, var)
        return {**of_estimator, **of_coupling}

    def _memories(self, mean: Tensor, var: Tensor) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        with torch.no_grad():
            return self.recipe.memories(mean, var, self.before)

    def abandon(self, bank: str | None = None) -> None:
        """Drop everything that a stock layer does not have; a bank's statistics become the layer's."""
        if bank is not None:
            self._copy_bank(bank)
        for name in self.memory_names:
            self._buffers.pop(name, None)
            self._non_persistent_buffers_set.discard(name)
        for owned in self.bank_names:
            self.drop_bank(owned)
        for name in list(self.__dict__):
            if name in _OWN:
                del self.__dict__[name]

    @property
    def before(self) -> Any:
        """The convolution or linear layer whose output this layer normalises, where `attach` told it."""
        held = self.__dict__.get("_before")
        return None if not held else held[0]

    def attach(self, before: nn.Module) -> None:
        """Tell the layer which convolution or linear layer makes its input, for couplings that look back.

        Example:
            >>> import torch, batchnorm
            >>> conv, norm = torch.nn.Conv2d(3, 4, 3), batchnorm.BatchNorm2d(4, method="cbn")
            >>> norm.attach(conv)
            >>> norm(conv(torch.randn(2, 3, 8, 8))).shape
            torch.Size([2, 4, 6, 6])

        Raises:
            BatchNormError: a layer without a weight whose first axis is this layer's channels.
        """
        weight = getattr(before, "weight", None)
        if not isinstance(weight, Tensor) or weight.dim() < 2 or weight.shape[0] != self.num_features:
            raise BatchNormError(
                f"before must be a convolution or linear layer with {self.num_features} outputs; it was {told(before)}"
            )
        # In a list, so that the module is not registered as a child and its parameters not counted twice.
        self.__dict__["_before"] = [before]
        self.adopt(self.recipe)

    # Banks -------------------------------------------------------------------------------------------------

    def _named(self, bank: str | None, name: str) -> Any:
        return getattr(self, _key(bank, name), None)

    def stat(self, name: str) -> Any:
        """A buffer of the active bank."""
        key = name if self.active_bank is None else _key(self.active_bank, name)
        buffers = self._buffers
        return buffers[key] if key in buffers else getattr(self, key, None)

    def affine_part(self, name: str) -> Tensor | None:
        """Weight or bias: the active bank's own where it has one."""
        own = None if self.active_bank is None else getattr(self, _key(self.active_bank, name), None)
        if own is None and name in self._parameters:
            return self._parameters[name]
        # A parametrized weight is no parameter of the layer's own.
        return getattr(self, name) if own is None else own

    def make_bank(self, bank: str, own_affine: bool) -> None:
        """Register a bank as a copy of the layer's statistics, and of weight and bias where asked."""
        a_string("bank", bank)
        for name in (*_STOCK, *self.memory_names):
            value = getattr(self, name, None)
            if value is not None and _key(bank, name) not in self._buffers:
                self.register_buffer(_key(bank, name), _ordinary(value))
        for name in ("weight", "bias"):
            value = getattr(self, name)
            if own_affine and value is not None and _key(bank, name) not in self._parameters:
                self.register_parameter(_key(bank, name), nn.Parameter(_ordinary(value), value.requires_grad))
        if bank not in self.bank_names:
            self.bank_names = (*self.bank_names, bank)

    def drop_bank(self, bank: str) -> None:
        """Forget a bank."""
        check(bank in self.bank_names, "bank", f"one of {list(self.bank_names)}", told(bank))
        for name in (*_STOCK, *self.memory_names):
            self._buffers.pop(_key(bank, name), None)
        for name in ("weight", "bias"):
            self._parameters.pop(_key(bank, name), None)
        self.bank_names = tuple(name for name in self.bank_names if name != bank)

    @torch.no_grad()
    def _copy_bank(self, bank: str) -> None:
        for name in (*_STOCK, "weight", "bias"):
            mine, theirs = getattr(self, name), self._named(bank, name)
            if mine is not None and theirs is not None:
                mine.copy_(theirs)

    # Reading and writing -----------------------------------------------------------------------------------

    def _now(self, device: torch.device, before: dict[str, Tensor] | None = None) -> Now:
        tracked, wide = self.stat("num_batches_tracked"), kernels.wide_dtype(device)
        # A number costs less than a tensor, where reading it waits for nobody.
        if native.unwatched() and (tracked is None or type(tracked) is Tensor):
            reads = device.type == "cpu" and not triton.SWITCHES["interpreted"] and (tracked is None or tracked.is_cpu)
            start = 1.0 if reads or tracked is not None else torch.ones((), dtype=wide, device=device)
            return Now(start, self.momentum, self.eps, self.recipe.estimator, before, tracked, None if reads else wide)
        step = torch.ones((), dtype=wide, device=device) if tracked is None else copied(tracked, tracked.dtype) + 1
        return Now(step.to(wide), resolve(self.momentum, step), self.eps, self.recipe.estimator, before)

    def _held(self) -> dict[str, Tensor]:
        """The buffers themselves that this forward works with."""
        return {name: self.stat(name) for name in ("running_mean", "running_var", *self.memory_names)}

    def _state(self, dtype: torch.dtype, held: dict[str, Tensor] | None = None) -> State:
        held = self._held() if held is None else held
        if not torch.compiler.is_compiling():
            return Held(held, dtype)
        memory = {name: copied(held[name], dtype) for name in self.memory_names}
        return State(copied(held["running_mean"], dtype), copied(held["running_var"], dtype), memory)

    def _write_memory(self, new: Any, ok: Tensor | None = None, held: dict[str, Tensor] | None = None) -> None:
        for name, value in new.items():
            buffer = self.stat(name) if held is None else held[name]
            if isinstance(value, Slot):
                buffer, value = buffer[value.seen % buffer.shape[0]], value.value
            if ok is not None:
                value = torch.where(ok, value, buffer)
            # In place by the cheapest call for each.
            buffer.copy_(value) if isinstance(value, Tensor) else buffer.fill_(value)

    # Dtypes, loading, reset --------------------------------------------------------------------------------

    def _widen(self) -> None:
        """Statistics are never narrower than float32, whatever cast the module."""
        for name, buffer in self._buffers.items():
            if buffer is not None and buffer.dtype in NARROW:
                self._buffers[name] = buffer.float()

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        before = dict(self._buffers)
        super()._apply(fn, recurse)
        self._count_exchange(before)
        mean, skipped = self.running_mean, self.num_batches_skipped
        if mean is not None and skipped is not None and not is_lazy(mean) and mean.is_cpu and mean.is_shared():
            skipped.share_memory_()
        for name, new in self._buffers.items():
            old = before[name]
            if old is None or new is None:
                continue
            # From the old values, where there are any: the narrow copy has lost digits already.
            kept = new if old.is_meta else old
            if new.dtype in NARROW:
                self._buffers[name] = kept.to(device=new.device, dtype=torch.float32)
            elif name.endswith("pooled_count"):
                # A count of values grows past what float32 can add to.
                self._buffers[name] = kept.to(device=new.device, dtype=kernels.wide_dtype(new.device))
        return self

    def _load_from_state_dict(self, state_dict: Any, prefix: Any, *args: Any, **kwargs: Any) -> None:
        tracked = prefix + "num_batches_tracked"
        if tracked not in state_dict and prefix + "running_var" in state_dict and not self._reads_counter():
            # Saved before torch 0.4.1, or stripped on the way: nothing but a count is lost.
            state_dict[tracked] = torch.zeros((), dtype=torch.long)
        marker = prefix + "bank_"
        for key in state_dict:
            if key.startswith(marker) and key.endswith("_running_mean"):
                bank = key[len(marker) : -len("_running_mean")]
                self.make_bank(bank, f"{marker}{bank}_weight" in state_dict or f"{marker}{bank}_bias" in state_dict)
        for bank in self.bank_names:
            # A checkpoint without this bank: it starts again from the statistics of the layer, as a new one does.
            for name in (*_STOCK, "weight", "bias", *self.memory_names):
                key = prefix + _key(bank, name)
                if key not in state_dict and self._named(bank, name) is not None and prefix + name in state_dict:
                    # A copy: with assign=True it becomes the buffer itself.
                    state_dict[key] = state_dict[prefix + name].clone()
        for bank in (None, *self.bank_names):
            at = prefix + _key(bank, "")
            missing = [name for name in self.memory_names if at + name not in state_dict]
            mean, var = state_dict.get(at + "running_mean"), state_dict.get(at + "running_var")
            if missing and mean is not None and var is not None and mean.shape == self.running_mean.shape:  # pyright: ignore
                # A stock checkpoint: what the choices remember starts from the statistics it holds.
                initial = self._initial_memory(mean, var)
                state_dict.update({at + name: initial[name] for name in missing})
        before = dict(self._buffers)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
        self._count_exchange(before)
        self._widen()

    def _count_exchange(self, before: dict[str, Tensor | None]) -> None:
        if any(self._buffers.get(name) is not old for name, old in before.items()):
            self.exchanges += 1

    def _reads_counter(self) -> bool:
        """Whether a gain, a schedule or a warm-up goes by the number of batches, so that 0 would be a lie."""
        plain = not self.recipe.estimator.counts_batches and self.recipe.coupling.is_plain
        return not (plain and isinstance(self.momentum, (float, int)))

    def reset_running_stats(self) -> None:
        """Back to mean 0, variance 1, all counters 0 and nothing remembered: of the active bank alone."""
        if self.active_bank is None:
            super().reset_running_stats()
        elif self.running_mean is not None:
            for name, value in zip(_STOCK, (0, 1, 0), strict=True):
                self.stat(name).fill_(value)
        if self.running_mean is None:
            return
        pending = self.__dict__.get("_pending")
        if pending is not None:
            for collected in (pending.count, pending.mean, pending.m2, pending.count_squared):
                collected.zero_()
        skipped = self.num_batches_skipped
        if skipped is not None:
            skipped.zero_()
        if self.memory_names:
            initial = self._initial_memory(self.stat("running_mean"), self.stat("running_var"))
            for name in self.memory_names:
                self.stat(name).copy_(initial[name])


_OWN = (
    "recipe", "memory_names", "bank_names", "active_bank", "frozen", "paused", "accumulating", "channel_axis",
    "activation", "negative_slope", "inplace", "fused_from", "exchanges", "_record", "_given", "_before", "_partners",
    "stock_momentum", "_skipped", "_ready", "_pending",
)  # fmt: skip


@torch.no_grad()
def require_names(layer: Any, kind: type[nn.Module], recipe: Recipe) -> None:
    """Refuse choices that remember under a name which a layer, or the class it is to have, has for something else."""
    mean, var = layer.running_mean, layer.running_var
    if mean is None:
        return
    if is_lazy(mean):
        mean, var = torch.zeros(1), torch.ones(1)
    # Without the layer before, whose weight may move when it is read.
    of_estimator, of_coupling = recipe.memories(mean, var, None)
    for name in {*of_estimator, *of_coupling}.difference(getattr(layer, "memory_names", ())):
        if not name.isidentifier() or name.startswith(("_", "bank_")) or hasattr(kind, name) or hasattr(layer, name):
            raise BatchNormError(
                f"choices must remember under names that {kind.__name__} has for nothing else, without a dot and with "
                f"neither '_' nor 'bank_' in front; one was {name!r}"
            )


@torch.inference_mode(False)
def _ordinary(value: Tensor) -> Tensor:
    """A copy that can be trained, also inside `inference_mode`."""
    return value.detach().clone()


def _key(bank: str | None, name: str) -> str:
    return name if bank is None else f"bank_{bank}_{name}"
