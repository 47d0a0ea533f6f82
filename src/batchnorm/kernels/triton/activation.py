"""What follows the affine output, and the gradient behind it, by the number of the activation in `kernels.calls`."""

# pyright: reportMissingImports=false, reportAttributeAccessIssue=false

import triton
import triton.language as tl

RELU = tl.constexpr(1)
LEAKY = tl.constexpr(2)
RELU6 = tl.constexpr(3)
SILU = tl.constexpr(4)
HARDSWISH = tl.constexpr(5)
GELU = tl.constexpr(6)


@triton.jit
def normal(z):
    """The normal distribution."""
    return 0.5 * (1.0 + tl.erf(z * 0.7071067811865476))


@triton.jit
def activated(z, slope, ACT: tl.constexpr):
    """The output; NaN stays NaN."""
    if ACT == RELU:
        z = tl.where(z < 0, 0.0, z)
    if ACT == LEAKY:
        z = tl.where(z > 0, z, z * slope)
    if ACT == RELU6:
        z = tl.where(z < 0, 0.0, tl.where(z > 6, 6.0, z))
    if ACT == SILU:
        z = z / (1.0 + tl.exp(-z))
    if ACT == HARDSWISH:
        z = z * tl.where(z < -3, 0.0, tl.where(z > 3, 6.0, z + 3)) / 6
    if ACT == GELU:
        z = z * normal(z)
    return z


@triton.jit
def gated(g, z, slope, ACT: tl.constexpr):
    """The gradient behind the activation, by what it was given, or returned where that tells; for NaN as torch's."""
    if ACT == RELU:
        g = tl.where(z <= 0, 0.0, g)
    if ACT == LEAKY:
        g = tl.where(z > 0, g, g * slope)
    if ACT == RELU6:
        g = tl.where((z > 0) & (z < 6), g, 0.0)
    if ACT == SILU:
        s = 1.0 / (1.0 + tl.exp(-z))
        g = g * s * (1.0 + z * (1.0 - s))
    if ACT == HARDSWISH:
        g = tl.where(z <= -3, 0.0, tl.where(z >= 3, g, g * (z / 3 + 0.5)))
    if ACT == GELU:
        g = g * (normal(z) + z * 0.3989422804014327 * tl.exp(-0.5 * z * z))
    return g
