"""Stable Diffusion 1.x and 2.x (Rombach et al. 2022): the usual case in everything."""

from sdjax.model.families.base import Family

SD = Family("sd")
