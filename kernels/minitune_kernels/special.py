"""Functions that Triton has not, or that its interpreter cannot call."""

import triton
import triton.language as tl


@triton.jit
def tanh(x):
    """By its series near 0, where 1 - 2 / (1 + e^2x) would cancel the digits; within 2 units in the last place."""
    square = x * x
    series = 62.0 / 2835.0 - square * (1382.0 / 155925.0)
    series = x * (1.0 - square * (1.0 / 3.0 - square * (2.0 / 15.0 - square * (17.0 / 315.0 - square * series))))
    far = 1.0 - 2.0 / (1.0 + tl.exp2(2.8853900817779268 * tl.minimum(tl.abs(x), 20.0)))
    return tl.where(tl.abs(x) < 0.25, series, tl.where(x < 0, -far, far))
