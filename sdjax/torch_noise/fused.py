"""The fused multiply-add of float32: what compilers make of a product and a sum, and NumPy has no name for."""

import numpy as np

_BELOW = (1 << 29) - 1  # the bits of a float64 that a float32 has no room for
_HALF = 1 << 28


def multiply_add(a: np.ndarray, b: np.ndarray | np.float32, c: np.ndarray | np.float32) -> np.ndarray:
    """a b + c with one rounding; float32 arrays, or scalars for b and c, none so small as to be subnormal.

    A product of two float32 is exact in float64. The sum there is rounded once, and a second time to float32. Both
    together are one rounding, except where the first one lands in the middle between two float32: there its error
    says on which side of the middle the sum lies.
    """
    product, c = np.multiply(a, b, dtype=np.float64), np.asarray(c, np.float64)
    total = product + c
    middle = (total.view(np.int64) & _BELOW) == _HALF
    if middle.any():
        product, c = (np.broadcast_to(x, total.shape)[middle] for x in (product, c))
        rounded = total[middle]
        rest = rounded - product  # Knuth's two-sum: what rounding took away, exactly
        error = (product - (rounded - rest)) + (c - rest)
        total[middle] = np.where(error == 0, rounded, np.nextafter(rounded, np.copysign(np.inf, error)))
    return total.astype(np.float32)
