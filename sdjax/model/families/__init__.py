"""Families: what differs between Stable Diffusion 1 and 2, SDXL with its refiner, and those to come, one object each.

Read `base` (what a family says), then `sd` and `sdxl`. A new family is one file, and one line in FAMILIES.
"""

from sdjax.config import UNetConfig
from sdjax.model.families.base import Family
from sdjax.model.families.sd import SD
from sdjax.model.families.sdxl import SDXL

FAMILIES: tuple[Family, ...] = (SDXL, SD)  # the first that takes a network's config has it


def family_of(unet: UNetConfig) -> Family:
    """The family that a U-Net of this config belongs to."""
    return next(family for family in FAMILIES if family.has(unet))
