"""torch's Gaussian numbers on CUDA: Philox 4x32-10 [1], laid out over a tensor as torch's kernel does.

Philox is a keyed scrambling of a 128-bit counter into four 32-bit words; no state walks along, so every number can be
had alone. cuRAND [2] takes the seed as the key and counts
    counter = (offset / 4, 0, thread, 0),                                                                          (1)
32 bits each, lowest first; two words make two Gaussian numbers (Box-Muller),
    u = (x + 1/2) / 2^32,  v = 2 pi (y + 1/2) / 2^32,    s = sqrt(-2 log u),    s sin v and s cos v,               (2)
and the other two words two more. torch [3] starts a thread per element, at most `wave` of them:
    wave = 256 SMs floor(threads per SM / 256),    say 108 * 2048 on an A100, 82 * 1536 on an RTX 3090.            (3)
Thread k writes its four numbers to elements k, k + wave, k + 2 wave, k + 3 wave, and goes on with the next offset
for the next 4 wave elements. So up to one wave each element holds the first number of a thread of its own, whatever
the card; above it the numbers depend on the card. A latent of 1024 x 1024 pixels has 65 536 elements: less than the
wave of an A100, H100, RTX 3090 or 4090, more than that of a T4 (40 960) or an RTX 3060 (43 008). Every call
starts where the last one stopped: at the next offset, for a call of up to four waves.

The words are exact. Of (2) the roundings of u and v are the card's, in float32. Its log, sin and cos are approximate
instructions of its own (a sine is right to 4e-7), here they are rounded right, so that numbers differ from a card's by
up to a few 1e-6.

[1] Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3".
[2] curand_philox4x32_x.h, curand_normal.h.    [3] PyTorch, aten/src/ATen/native/cuda/DistributionTemplates.h.
"""

import math

import numpy as np

from sdjax.torch_noise.fused import multiply_add

ROUNDS = 10
MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
KEY_STEPS = (0x9E3779B9, 0xBB67AE85)
LOW, HALF = np.uint64(0xFFFFFFFF), np.uint64(32)
F = np.float32
TURN = F(2.0 * math.pi) * F(2.0**-32)


class Philox:
    """`torch.Generator("cuda").manual_seed(seed)`, for `torch.randn` in float32.

    seed: 0 .. 2^64 - 1. wave: equation 3 for a certain card; if None, that of a card with a thread for each element.
    """

    def __init__(self, seed: int, wave: int | None = None):
        self._seed, self._wave, self._offset = seed, wave, 0

    def randn(self, shape: tuple[int, ...]) -> np.ndarray:
        """The next `torch.randn(shape, generator=self, device="cuda")`: float32."""
        count = math.prod(shape)
        if not count:
            return np.zeros(shape, F)
        threads = min(count, self._wave or count)
        rounds = -(-count // (4 * threads))
        offsets = self._offset + np.arange(rounds, dtype=np.uint64)[:, None]
        x, y, z, w = words(self._seed, offsets, np.arange(threads, dtype=np.uint64))
        self._offset += rounds
        if count == threads:
            return box_muller(x, y)[0].reshape(shape)
        four = np.stack([*box_muller(x, y), *box_muller(z, w)], 1)  # [rounds, 4, threads]
        return four.reshape(-1)[:count].reshape(shape)

    def picture(self, number: int, count: int, calls: int) -> np.ndarray:
        """float32 [calls, count]: row `number` of each of the next calls `randn((b, count))`, for any b > number.

        Where `wave` is given, b is number + 1.
        """
        if self._wave is not None:
            return np.stack([self.randn((number + 1, count))[number] for _ in range(calls)])
        threads = np.arange(number * count, (number + 1) * count, dtype=np.uint64)
        offsets = self._offset + np.arange(calls, dtype=np.uint64)[:, None]
        self._offset += calls
        return np.stack([box_muller(*words(self._seed, offset, threads)[:2])[0] for offset in offsets])


def words(seed: int, offset: np.ndarray, thread: np.ndarray) -> list[np.ndarray]:
    """The four words of equation 1, each uint64 below 2^32, of the common shape of offset and thread (uint64)."""
    offset, thread = np.broadcast_arrays(offset, thread)
    return scramble([offset & LOW, offset >> HALF, thread & LOW, thread >> HALF], (seed & 0xFFFFFFFF, seed >> 32))


def scramble(counter: list[np.ndarray], key: tuple[int, int]) -> list[np.ndarray]:
    """Ten rounds of Philox 4x32. counter: four uint64 arrays below 2^32; key: two numbers below 2^32."""
    for i in range(ROUNDS):
        k0, k1 = (np.uint64(k + i * step & 0xFFFFFFFF) for k, step in zip(key, KEY_STEPS, strict=True))
        a, b = (counter[j] * np.uint64(m) for j, m in zip((0, 2), MULTIPLIERS, strict=True))
        counter = [b >> HALF ^ counter[1] ^ k0, b & LOW, a >> HALF ^ counter[3] ^ k1, a & LOW]
    return counter


def box_muller(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Equation 2: float32 (s sin v, s cos v) from words."""
    u = multiply_add(x.astype(F), F(2.0**-32), F(2.0**-33))
    v = multiply_add(y.astype(F), TURN, TURN / F(2.0)).astype(np.float64)
    s = np.sqrt(F(-2.0) * np.log(u, dtype=np.float64).astype(F))
    return s * np.sin(v).astype(F), s * np.cos(v).astype(F)
