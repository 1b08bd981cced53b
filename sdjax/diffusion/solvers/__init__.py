"""The solvers, each as the plain maths of its paper.

A solver walks over `schedule.steps`, pairs of levels (here, there). `tape.denoise(x, level)` is one network
evaluation and gives D, the predicted clean latents; x is a symbolic linear form (see `table`). x goes to the
network at the variance-preserving scale x = alpha x0 + sigma e; solvers of the k-diffusion family hold x /
alpha and multiply by alpha on the way in. To add a solver: write the function, and name it in
`samplers.SAMPLERS` with the convention of its levels.
"""

from sdjax.diffusion.solvers.ddim import ddim
from sdjax.diffusion.solvers.dpm import dpmpp_2m
from sdjax.diffusion.solvers.euler import euler
from sdjax.diffusion.solvers.pndm import pndm

__all__ = ["ddim", "dpmpp_2m", "euler", "pndm"]
