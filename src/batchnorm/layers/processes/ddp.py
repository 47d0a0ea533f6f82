"""Before DistributedDataParallel talks on its own: every rank has come, or the one that stays away is named.

DDP compares its buckets before the first forward that follows a backward, broadcasts buffers before every forward
where it is told to, and waits for the sums of gradients at the end of a backward. A rank that hangs there is
reported by torch after the process group's timeout, without a name. The layers inside know better: they wait for one
another first, within their own timeout.
"""

from __future__ import annotations

from typing import Any
from weakref import WeakKeyDictionary

import torch

from batchnorm.layers.processes.group_state import active_ddp


class DDPHook:
    """A forward pre-hook of a DistributedDataParallel, with the words of the first layer in it that registered."""

    def __init__(self, ranks: Any) -> None:
        self.ranks, self.buckets_to_come = ranks, True

    def __call__(self, ddp: Any, args: Any) -> None:
        """Wait for the others where DDP is about to; on CPU tensors, where waiting has the layer's timeout."""
        ranks = self.ranks
        if torch.compiler.is_compiling() or not ranks.current(ranks.sync) or ddp.device_type != "cpu":
            return
        self.expect(ddp)
        compares = self.buckets_to_come and ranks.went_back and torch.is_grad_enabled()
        # Within Join the ranks meet before every forward, and one that is out of data ends it there.
        if (compares or ddp.will_sync_module_buffers()) and not ddp._join_config.enable:
            self.buckets_to_come = self.buckets_to_come and not compares
            ranks.enter("the forward of DistributedDataParallel")

    def expect(self, ddp: Any) -> None:
        """Check in at the end of the backward to come, if DDP will add up gradients in it."""
        # A forward without gradients, which one rank may run alone, says nothing of the backward.
        if torch.is_grad_enabled():
            self.ranks.state.backward_to_come = ddp.require_backward_grad_sync

    def __deepcopy__(self, memo: Any) -> Any:
        return _nothing  # a copied module's layers register anew

    def __reduce__(self) -> Any:
        return _nobody, ()


_known: WeakKeyDictionary[Any, DDPHook] = WeakKeyDictionary()


def watch_ddp(ranks: Any) -> None:
    """Let the DDP whose forward runs now check in with this layer's words, unless another layer does already."""
    ddp = active_ddp()
    if ddp is None or torch.compiler.is_compiling() or ddp.device_type != "cpu":
        return
    known = _known.get(ddp)
    if known is None:
        known = _known[ddp] = DDPHook(ranks)
        ddp.register_forward_pre_hook(known)
    elif not known.ranks.current(known.ranks.sync):
        known.ranks, known.buckets_to_come = ranks, True
    known.expect(ddp)


def before_ddp_sums(ranks: Any) -> None:
    """Within the first backward of a layer since the forward of a DDP: before DDP waits for its sums, check in."""
    ranks.state.backward_to_come = False
    # Callbacks run in the order they were queued, and DDP queues its own once the last gradient is there.
    torch.autograd.Variable._execution_engine.queue_callback(  # pyright: ignore
        lambda: ranks.enter("the end of the backward")
    )


def _nothing(*arguments: Any) -> None:
    return None


def _nobody() -> Any:
    return _nothing
