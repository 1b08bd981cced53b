"""torch's Gaussian numbers on the CPU: the Mersenne Twister and two Box-Muller transforms, bit for bit.

A generator is mt19937 [1], seeded with the low 32 bits of the seed and handing out 32-bit words. A tensor of 16
numbers and more [2] is filled with uniform numbers first, one word each, u = (word mod 2^24) / 2^24; then each
block of 16 becomes Gaussian in place, number j with number j + 8:
    r = sqrt(-2 log(1 - u_j)),    theta = 2 pi u_{j+8},    x_j = r cos theta,    x_{j+8} = r sin theta.            (1)
If the size is no multiple of 16, the last 16 numbers are drawn and transformed once more, over what was there. A
smaller tensor takes its numbers one at a time, in float64, from two words each (53 bits; the first word is the high
half), u before v:
    r = sqrt(-2 log(1 - v)),    theta = 2 pi u,    x = r cos theta, and r sin theta is kept for the next.          (2)
What is kept outlives the call, and larger tensors in between.

Equation 1 is float32 and every rounding shows. On x86 processors with AVX2 (those with AVX-512 run the same code)
log, sin and cos are Cephes' polynomials [3, 4], and the compiler fused products into sums. Which ones was found by
comparing with torch 2.13.0 for Linux, and holds for each of the 2^24 values of u_j and of u_{j+8}. Where the processor
or the compiler is another (ARM, torch built for Windows) the last bits may differ: torch's portable path
(ATEN_CPU_CAPABILITY=default) gives four numbers in ten otherwise, by 2.4e-6 at most. Equation 2 leans on the C
library's log1p, sin and cos, here as there.

[1] Matsumoto and Nishimura 1998, ACM TOMACS 8(1).
[2] PyTorch, aten/src/ATen/native/cpu/DistributionTemplates.h and core/DistributionsHelper.h.
[3] Moshier, Cephes 2.2: logf.c, sinf.c.    [4] PyTorch, aten/src/ATen/native/cpu/avx_mathfun.h.
"""

import math

import numpy as np

from sdjax.core.limits import MOST_PASSED
from sdjax.torch_noise.fused import multiply_add

BLOCK = 16
F = np.float32

SQRT_HALF = F(0.70710678)
LOG = tuple(map(F, (7.0376836292e-2, -1.1514610310e-1, 1.1676998740e-1, -1.2420140846e-1, 1.4249322787e-1,
                    -1.6668057665e-1, 2.0000714765e-1, -2.4999993993e-1, 3.3333331174e-1)))  # fmt: skip
LOG_2 = (F(0.693359375), F(-2.12194440e-4))  # in two parts; the first has few bits, so that its multiples are exact
QUARTER_PI = tuple(map(F, (0.78515625, 2.4187564849853515625e-4, 3.77489497744594108e-8)))  # in three
SIN = tuple(map(F, (-1.9515295891e-4, 8.3321608736e-3, -1.6666654611e-1)))
COS = tuple(map(F, (2.443315711809948e-5, -1.388731625493765e-3, 4.166664568298827e-2)))


class Mersenne:
    """`torch.Generator("cpu").manual_seed(seed)`, for `torch.randn` in float32. seed: 0 .. 2^64 - 1."""

    def __init__(self, seed: int):
        self._bits = np.random.MT19937()
        self._words = np.random.RandomState(self._bits)  # the same seeding; its stream is frozen for ever
        self._words.seed(seed & 0xFFFFFFFF)
        self._kept: float | None = None

    def randn(self, shape: tuple[int, ...]) -> np.ndarray:
        """The next `torch.randn(shape, generator=self)`: float32."""
        count = math.prod(shape)
        if count < BLOCK:
            return np.array([self._one() for _ in range(count)], F).reshape(shape)
        x = self._uniform(count)
        whole = count // BLOCK * BLOCK
        x[:whole] = gaussian(x[:whole])
        if whole < count:
            x[-BLOCK:] = gaussian(self._uniform(BLOCK))
        return x.reshape(shape)

    def picture(self, number: int, count: int, calls: int) -> np.ndarray:
        """float32 [calls, count]: row `number` of `randn((number + 1, count))`, then `randn((count,))` after that.

        A batch takes its numbers in order, so what is before the row is passed over, in whole blocks, but for a last
        one that the end of the batch may still need. Raises ValueError where that would take minutes.
        """
        passed = max(0, min(number * count, (number + 1) * count - BLOCK)) // BLOCK * BLOCK
        if passed > MOST_PASSED:
            raise ValueError(
                f"picture {number} of a seed comes after {passed:,} numbers of torch's CPU generator, which has to go "
                f"through them; at most {MOST_PASSED:,} are: take first_image={MOST_PASSED // count} at most, or "
                "another seed"
            )
        self._bits.random_raw(passed, output=False)  # one word a number, as `_uniform` takes them; none is kept
        rest = self.randn(((number + 1) * count - passed,))
        return np.stack([rest[number * count - passed :], *(self.randn((count,)) for _ in range(calls - 1))])

    def _draw(self, count: int) -> np.ndarray:
        """uint32 [count], every value possible."""
        return self._words.randint(0, 1 << 32, count, np.uint32)

    def _uniform(self, count: int) -> np.ndarray:
        return (self._draw(count) & np.uint32(0xFFFFFF)).astype(F) * F(2.0**-24)

    def _one(self) -> float:
        """Equation 2."""
        if self._kept is not None:
            kept, self._kept = self._kept, None
            return kept
        words = [int(word) for word in self._draw(4)]
        u, v = (((high << 32 | low) & (1 << 53) - 1) * 2.0**-53 for high, low in (words[:2], words[2:]))
        r, theta = math.sqrt(-2.0 * math.log1p(-v)), 2.0 * math.pi * u
        self._kept = r * math.sin(theta)
        return r * math.cos(theta)


def gaussian(u: np.ndarray) -> np.ndarray:
    """Equation 1. u: float32 [16 n] in [0, 1), multiples of 2^-24."""
    u = u.reshape(-1, 2, BLOCK // 2)
    r = np.sqrt(F(-2.0) * log(F(1.0) - u[:, 0]))
    sin, cos = sin_cos(F(2.0 * math.pi) * u[:, 1])
    return np.stack([r * cos, r * sin], 1).reshape(-1) + F(0.0)  # torch adds its mean: no -0


def log(x: np.ndarray) -> np.ndarray:
    """Natural logarithm, of normal float32 above 0: x = 2^e (1 + m) with m in [sqrt(1/2) - 1, sqrt(2) - 1)."""
    m, e = np.frexp(x)
    low = m < SQRT_HALF
    m, e = np.where(low, m + m, m) - F(1.0), (e - low).astype(F)
    square = m * m
    y = horner(LOG, m) * m
    y = multiply_add(y, square, e * LOG_2[1]) - F(0.5) * square
    return multiply_add(e, LOG_2[0], m + y)


def sin_cos(theta: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Sine and cosine of float32 in [0, 8192): by octants, each polynomial within pi/4 of 0."""
    octant = (theta * F(4.0 / math.pi)).astype(np.int32) + 1 & ~1
    x, turns = theta, octant.astype(F)
    for part in QUARTER_PI:
        x = multiply_add(turns, -part, x)
    square = x * x
    cos = multiply_add(horner(COS, square) * square, square, F(-0.5) * square) + F(1.0)
    sin = multiply_add(horner(SIN, square) * square, x, x)
    swapped = octant & 2 != 0
    above, right = (np.where(octant + turned & 4, F(-1.0), F(1.0)) for turned in (0, 2))
    return above * np.where(swapped, cos, sin), right * np.where(swapped, sin, cos)


def horner(coefficients: tuple[np.float32, ...], x: np.ndarray) -> np.ndarray:
    """The polynomial with these coefficients, highest power first."""
    y = multiply_add(x, coefficients[0], coefficients[1])
    for c in coefficients[2:]:
        y = multiply_add(y, x, c)
    return y
