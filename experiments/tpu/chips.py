"""The chips that programs are compiled for, and what they could do at most."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Chip:
    """One TPU chip.

    Attributes:
      topologies: libtpu's name of a slice with so many chips, by their number. The smallest slice has 4, of which 1 is
        used alone.
      peak: bfloat16 operations a second. bandwidth: bytes a second, of its memory. memory: bytes of it.
      clock: cycles a second. Not published; it is what makes of the peak the operations that the compiler's own cost
        model counts at most in a cycle: 2^17, 2^19 and 2^18.
    """

    topologies: dict[int, str]
    peak: float
    bandwidth: float
    memory: int
    clock: float


# Peak, bandwidth and memory: Google Cloud's documentation of TPU v5e, v6e and v5p ("System architecture").
CHIPS = {
    "v5e": Chip({1: "v5e:2x2", 4: "v5e:2x2", 8: "v5e:2x4"}, 197e12, 819e9, 16 * 2**30, 1.5e9),
    "v6e": Chip({1: "v6e:2x2", 4: "v6e:2x2", 8: "v6e:2x4"}, 918e12, 1640e9, 32 * 2**30, 1.75e9),
    "v5p": Chip({1: "v5p:2x2x1", 4: "v5p:2x2x1", 8: "v5p:2x2x2"}, 459e12, 2765e9, 95 * 2**30, 1.75e9),
}
