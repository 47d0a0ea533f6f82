"""Training over processes with shared statistics; it may be killed at any time and goes on where it was.

    export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1
    python -m torch.distributed.run --standalone --nproc-per-node 2 --max-restarts 3 examples/distributed/train.py

Statistics, gradients and weights are those of one process on the whole batch, on any number of processes. A rank
that raises, dies or hangs ends the others with a message that names the layer and the rank; torchrun then starts
all of them again from the last checkpoint. A batch that is not finite is left out on every rank.
(Without the variable a restarted gloo group of torch 2.13 finds the addresses of the attempt before it.)
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import batchnorm
from batchnorm.files import write_atomically

BATCH, FEATURES, CLASSES = 12, 8, 3
Part = tuple[Tensor, Tensor]


def build(timeout: float) -> nn.Module:
    """A small network whose statistics are shared over ranks; the same weights everywhere."""
    torch.manual_seed(0)
    hidden = [nn.Linear(FEATURES, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 12), nn.BatchNorm1d(12), nn.ReLU()]
    net = nn.Sequential(*hidden, nn.Linear(12, CLASSES)).double()
    return batchnorm.convert(net, extent=batchnorm.layers.Sync(timeout=timeout))


def batch(step: int) -> Part:
    """The whole batch of a step: three clouds, far from zero."""
    generator = torch.Generator().manual_seed(step)
    target = torch.randint(0, CLASSES, (BATCH,), generator=generator)
    noise = torch.randn(BATCH, FEATURES, dtype=torch.float64, generator=generator)
    return noise + 10 + target[:, None] * torch.linspace(-1, 1, FEATURES, dtype=torch.float64), target


def shard(whole: Part, rank: int, ranks: int) -> Part:
    """This rank's samples: parts of unequal sizes."""
    cuts = [round(BATCH * (r / ranks) ** 0.7) for r in range(ranks + 1)]
    return whole[0][cuts[rank] : cuts[rank + 1]], whole[1][cuts[rank] : cuts[rank + 1]]


def train(
    folder: Path,
    steps: int = 24,
    save_every: int = 4,
    timeout: float = 60.0,
    model: nn.Module | None = None,
    disturb: Callable[[int, Part], Part] | None = None,
    write: Callable[[object, Path], None] = torch.save,
) -> dict[str, Tensor]:
    """Train from the last checkpoint in folder to the end; the state of the model, alike on every rank.

    Args:
        folder: where `checkpoint.pt` is.
        steps: of the whole training.
        save_every: steps between checkpoints.
        timeout: seconds a rank waits for another.
        model: trained in the place of `build`'s.
        disturb: what a benchmark of faults does to a rank's part of a step.
        write: how a checkpoint is written to a path.
    """
    alone = not dist.is_initialized()
    rank, ranks = (0, 1) if alone else (dist.get_rank(), dist.get_world_size())
    net = build(timeout) if model is None else model
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9)
    path, start = folder / "checkpoint.pt", 0
    if path.exists():
        held = torch.load(path, weights_only=True)
        net.load_state_dict(held["model"])
        optimizer.load_state_dict(held["optimizer"])
        start = held["step"]
    # Shared statistics are the same on every rank: no buffer to broadcast (broadcast_buffers in older torch).
    called = net if alone else DistributedDataParallel(net, forward_sync_buffers=False)
    for step in range(start, steps):
        part = shard(batch(step), rank, ranks)
        x, target = part if disturb is None else disturb(step, part)
        # DDP averages gradients over ranks; times their number it is the sum over all samples.
        loss = nn.functional.cross_entropy(called(x), target, reduction="sum") / BATCH * ranks
        optimizer.zero_grad()
        loss.backward()
        # Gradients are the same on every rank here, and so is the decision.
        if all(bool(p.grad.isfinite().all()) for p in net.parameters() if p.grad is not None):
            optimizer.step()
        elif rank == 0:
            print(f"step {step}: gradients are not finite; the batch is left out", flush=True)
        if (step + 1) % save_every == 0 and rank == 0:
            state = {"model": net.state_dict(), "optimizer": optimizer.state_dict(), "step": step + 1}
            write_atomically(path, lambda temporary, state=state: write(state, temporary))
    return net.state_dict()


def main() -> None:
    """What torchrun starts on every rank."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path("run"))
    parser.add_argument("--steps", type=int, default=24)
    parser.add_argument("--timeout", type=float, default=60.0)
    options = parser.parse_args()
    options.folder.mkdir(exist_ok=True)
    dist.init_process_group("gloo")
    state = train(options.folder, options.steps, timeout=options.timeout)
    if dist.get_rank() == 0:
        print(f"step {options.steps}: running mean {state['1.running_mean'][:3].tolist()}")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
