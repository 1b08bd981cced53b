"""Churn: noise added before a step, so that errors made earlier are forgotten."""

import math
from dataclasses import dataclass

from sdjax.core.short import short
from sdjax.diffusion.bounds import as_float, check_number
from sdjax.diffusion.noise import Level
from sdjax.diffusion.spacing import Schedule
from sdjax.diffusion.table import Linear, Tape


@dataclass(frozen=True)
class Churn:
    """The noise added before each step; Karras et al. 2022, arXiv:2206.00364, algorithm 2.

    Attributes:
      s_churn: strength, shared among the steps of the whole run: one of N raises the noise from ve to (1 + min(s_churn
        / N, sqrt(2) - 1)) ve. 0 for none.
      s_tmin, s_tmax: noise (variance-exploding) between which this is done.
      s_noise: factor on the added noise; at other values than 1 the latents no longer hold the noise that the network
        is told.
    """

    s_churn: float
    s_tmin: float
    s_tmax: float
    s_noise: float

    def __post_init__(self) -> None:
        check_number("s_churn", self.s_churn, 0.0)
        check_number("s_noise", self.s_noise, 0.0)
        if not 0.0 <= as_float(self.s_tmin) <= as_float(self.s_tmax):
            given = f"{short(self.s_tmin)} and {short(self.s_tmax)}"
            raise ValueError(f"s_tmin and s_tmax must be numbers 0 <= s_tmin <= s_tmax, not {given}")

    def add(self, tape: Tape, schedule: Schedule, x: Linear, here: Level) -> tuple[Linear, Level]:
        """x, variance-exploding, and its level, both with the noise of one step added."""
        gamma = min(self.s_churn / schedule.whole, math.sqrt(2.0) - 1.0)
        if gamma == 0.0 or not self.s_tmin <= here.ve <= self.s_tmax:
            return x, here
        scaled(tape, self.s_noise)
        noisier = schedule.level(here.ve * (1.0 + gamma))
        return x + self.s_noise * math.sqrt(noisier.ve**2 - here.ve**2) * tape.draw(), noisier


def scaled(tape: Tape, s_noise: float) -> float:
    """`s_noise`, >= 0, after telling the tape that noise of another variance than the level's comes in."""
    s_noise = check_number("s_noise", s_noise, 0.0)
    if s_noise != 1.0:
        tape.inexact = tape.inexact or f"s_noise {s_noise:g} scales the noise away from its level"
    return s_noise
