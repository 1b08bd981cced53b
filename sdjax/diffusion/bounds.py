"""Bounds of the numbers that a caller or a file may ask for, so that a mistake is told before anything is made of it.

Noise levels lie where an image's Brownian path does (`brownian`): from 1e-6, below which float32 latents show nothing,
to 20,000, above which they hold nothing else; training goes from 0.03 to 15, and to 4,096 from zero terminal SNR.
"""

import math
from typing import Any

from sdjax.core.numbers import is_number
from sdjax.core.short import short

LEAST_NOISE, MOST_NOISE = 1e-6, 2e4
MOST_STEPS = 4096  # a plan of N steps holds N^2 weights
MOST_TIMESTEPS = 100_000  # training levels; 1000 in every Stable Diffusion
LARGEST = 1e6  # of an option that scales something


def check_number(name: str, value: Any, low: float = -LARGEST, high: float = LARGEST) -> float:
    """`value` as a float. Raises ValueError where it is no number from `low` to `high`; a bool is none."""
    number = as_float(value)
    if not low <= number <= high:
        raise ValueError(f"{name} must be a number from {low:g} to {high:g}, not {short(value)}")
    return number


def as_float(value: Any) -> float:
    """A number, or an array of one, as a float; NaN where it is none, or more than a float holds."""
    value = value.item() if getattr(value, "ndim", None) == 0 else value
    if not is_number(value):
        return math.nan
    try:
        return float(value)
    except OverflowError:
        return math.nan


def check_whole(name: str, value: Any, low: int, high: int) -> int:
    """`value` as an int. Raises ValueError where it is no whole number in low .. high."""
    number = as_float(value)
    if not low <= number <= high or number != int(number):
        raise ValueError(f"{name} must be a whole number in {low} .. {high}, not {short(value)}")
    return int(number)
