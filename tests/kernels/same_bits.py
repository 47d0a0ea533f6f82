"""Results of the native kernels as digests, to compare two builds bit by bit; run by hand.

`python tests/kernels/same_bits.py > one.txt` with each build on the path, then `diff one.txt two.txt`.
"""

import hashlib
import itertools

import torch

import batchnorm
from batchnorm import kernels
from batchnorm.layers import EMA, MABN, Ghost, PopulationCoupling, PowerNorm, Renorm, SecondMoment, UnifiedNorm, Window

KINDS = {2: batchnorm.BatchNorm1d, 3: batchnorm.BatchNorm1d, 4: batchnorm.BatchNorm2d, 5: batchnorm.BatchNorm3d}
# Planes of one and several blocks, short runs, rows, tails of every length, and outputs that are streamed.
SHAPES = [
    (2, 3), (37, 65), (300, 48), (8, 5, 7), (16, 70, 9), (64, 33, 4, 4), (6, 5, 17, 19), (9, 64, 7, 7),
    (2, 2, 400, 401), (3, 4, 3, 2, 5), (12, 64, 56, 56),
]  # fmt: skip
CHOICES = {
    "plain": {},
    "relu": {"activation": "relu"},
    "leaky": {"activation": "leaky_relu"},
    "in place": {"activation": "leaky_relu", "inplace": True},
    "no affine": {"affine": False},
    "ghost": {"extent": Ghost(2)},
    "renorm": {"coupling": Renorm()},
    "population": {"coupling": PopulationCoupling(), "estimator": EMA(0.5)},
    "detached": {"coupling": PopulationCoupling(gradient=False), "activation": "relu"},
    "second moment": {"coupling": SecondMoment()},
    "pooled": {"method": "pooled"},
    "window": {"estimator": Window(2)},
    "mabn": {"method": "mabn", "coupling": MABN(3, 1.1, 1, 1)},
    "power": {"method": "power", "coupling": PowerNorm(warmup=1)},
    "unified": {"method": "unified", "coupling": UnifiedNorm(3, 1.2, 1)},
}
GIVEN = ("", "residual", "mask", "weights", "frozen")


def digest(tensors):
    whole = hashlib.sha256()
    for t in tensors:
        whole.update(t.detach().reshape(-1).view(torch.uint8).numpy().tobytes() if t.numel() else b"")
    return whole.hexdigest()[:16]


def case(shape, last, dtype, choices, given, threads):
    """Two training steps; everything they leave."""
    torch.manual_seed(0)
    torch.set_num_threads(threads)
    layer = KINDS[len(shape)](shape[1], **choices)
    if dtype is torch.float64:
        layer.double()
    layer.frozen = given == "frozen"
    found = []
    for _ in range(2):
        x, g, residual = (torch.randn(shape, dtype=torch.float64).add(1).to(dtype) for _ in range(3))
        if last:
            x = x.movedim(1, -1).contiguous().movedim(-1, 1)
        x.requires_grad_()
        residual.requires_grad_()
        more = {}
        if given == "residual":
            more["residual"] = residual
        elif given in ("mask", "weights"):
            spread = torch.rand(shape[0], *shape[2:])
            more[given] = spread > 0.3 if given == "mask" else spread * (spread > 0.2) * 3
        y = layer(x, **more)
        y.backward(g)
        found += [y, x.grad, *([residual.grad] if given == "residual" else [])]
        found += [p.grad for p in layer.parameters()]
    return digest([*found, *layer.buffers()])


def main():
    for name in kernels.native.instruction_sets():
        kernels.use(name)
        for shape, dtype, (choice, choices), given in itertools.product(
            SHAPES, (torch.float32, torch.float64, torch.bfloat16, torch.float16), CHOICES.items(), GIVEN
        ):
            large = torch.Size(shape).numel() > 100_000
            if large and (choice not in ("plain", "relu") or given == "weights"):
                continue
            if choice == "in place" and given:
                continue
            for last, threads in ((False, 1), (len(shape) > 2, 2)):
                try:
                    found = case(shape, last, dtype, choices, given, threads)
                except batchnorm.BatchNormError as error:
                    found = str(error)[:40]
                print(name, tuple(shape), dtype, choice, given, "last" if last else "", found)


if __name__ == "__main__":
    main()
