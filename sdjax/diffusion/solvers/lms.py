"""Linear multistep: the next slope from the polynomial through the past ones."""

import math
from collections.abc import Sequence

from sdjax.diffusion.bounds import check_whole
from sdjax.diffusion.solvers.euler import finish, slope, start
from sdjax.diffusion.spacing import Schedule
from sdjax.diffusion.table import Linear, Tape


def lms(tape: Tape, schedule: Schedule, *, order: int = 4) -> Linear:
    """Adams-Bashforth on uneven steps of noise, from k-diffusion (equation 1 of `euler`). `order`: 1 .. 4.

    The first steps are of the order that their number allows.
    """
    order = check_whole("order", order, 1, 4)
    x = start(tape, schedule)
    slopes: list[Linear] = []
    noises: list[float] = []
    for here, there in schedule.steps:
        slopes = [slope(tape, x, here), *slopes][:order]
        noises = [here.ve, *noises][:order]
        for weight, d in zip(integrals(noises, there.ve), slopes, strict=True):
            x = x + weight * d
    return finish(x, schedule)


def integrals(noises: Sequence[float], end: float) -> list[float]:
    """Integral from noises[0] to `end` of each Lagrange polynomial on up to four noises.

    By Gauss's rule of two points, which is exact for polynomials up to the third degree.
    """
    middle, half = (noises[0] + end) / 2, (end - noises[0]) / 2
    points = (middle - half / math.sqrt(3.0), middle + half / math.sqrt(3.0))
    return [half * sum(_lagrange(noises, j, at) for at in points) for j in range(len(noises))]


def _lagrange(noises: Sequence[float], j: int, at: float) -> float:
    return math.prod((at - other) / (noises[j] - other) for k, other in enumerate(noises) if k != j)
