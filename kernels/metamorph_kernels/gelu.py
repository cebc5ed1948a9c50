"""The exact GELU and its slope in Triton: z Phi(z), of the standard normal distribution Phi.

In float32 with `erf`. In bfloat16 and float16 by Phi(-t) = 2^p(t), with the polynomial p whose
error, measured in roundings of either type, is least where it is greatest: one instruction of the
slow unit and no branch, and the tail keeps its digits, which 1 + erf cancels. Value and slope, once
rounded, are within 0.6 units in the last place of the exact ones, of which rounding alone takes
0.5, for every number of both types; or within 2^-122, where float32 ends.
"""

import triton
import triton.language as tl

ROOT_HALF = tl.constexpr(0.5**0.5)
INVERSE_ROOT_TWO_PI = tl.constexpr((2 * 3.141592653589793) ** -0.5)
MINUS_HALF_LOG2_E = tl.constexpr(-0.7213475204444817)
LOG2_ROOT_TWO_PI = tl.constexpr(1.3257480647361592)
TAIL_END = tl.constexpr(15.0)  # from where Phi(-t) < 2^-149 is zero in float32
DEGREE = tl.constexpr(8)
# Of p, highest power first: fitted to log2 Phi(-t), 0 <= t <= 13.
LOG2_TAIL = tl.constexpr(
    (
        3.917103796879928e-08,
        -2.3315599264606135e-06,
        5.96345889789518e-05,
        -0.000868665287271142,
        0.008123188279569149,
        -0.05291818082332611,
        -0.4597330689430237,
        -1.150656819343567,
        -1.0000629425048828,
    )
)


@triton.jit
def distance_and_tail(z):
    """t = |z|, at most TAIL_END, and about Phi(-t)."""
    t = tl.minimum(tl.abs(z), TAIL_END, propagate_nan=tl.PropagateNan.ALL)
    power = t * LOG2_TAIL[0] + LOG2_TAIL[1]
    for place in tl.static_range(2, DEGREE + 1):
        power = power * t + LOG2_TAIL[place]
    return t, tl.exp2(power)


@triton.jit
def gelu(z, dtype: tl.constexpr):
    """GELU of float32 z, to be rounded to `dtype`."""
    if dtype == tl.float32:
        value = z * (0.5 + 0.5 * tl.erf(z * ROOT_HALF))
    else:
        t, tail = distance_and_tail(z)
        value = tl.maximum(z, 0.0) - t * tail
    return value


@triton.jit
def gelu_and_slope(z, dtype: tl.constexpr):
    """GELU of float32 z, to be rounded to `dtype`, and its derivative Phi(z) + z Phi'(z)."""
    if dtype == tl.float32:
        below = 0.5 + 0.5 * tl.erf(z * ROOT_HALF)
        value = z * below
        slope = below + z * INVERSE_ROOT_TWO_PI * tl.exp(-0.5 * z * z)
    else:
        t, tail = distance_and_tail(z)
        value = tl.maximum(z, 0.0) - t * tail
        # That of -t, from which that of t differs by one.
        slope = tail - t * tl.exp2(t * MINUS_HALF_LOG2_E * t - LOG2_ROOT_TWO_PI)
        slope = tl.where(z < 0, slope, 1 - slope)
    return value, slope
