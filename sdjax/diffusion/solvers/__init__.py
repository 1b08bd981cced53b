"""The solvers, each as the plain maths of its paper.

A solver walks over `schedule.steps`, pairs of levels (here, there). `tape.denoise(x, level)` is one network
evaluation and gives D, the predicted clean latents; x is a symbolic linear form (see `table`). x goes to the
network at the variance-preserving scale x = alpha x0 + sigma e; solvers of the k-diffusion family hold x /
alpha and multiply by alpha on the way in. All hand back x = alpha x0 + sigma e at `schedule.end`, which is x / alpha
where that is clean. To add a solver: write the function, and name it in `samplers.SAMPLERS` with the convention of
its levels.
"""

from sdjax.diffusion.solvers.ancestral import dpm2_ancestral, dpmpp_2s_ancestral, euler_ancestral
from sdjax.diffusion.solvers.consistency import lcm, tcd
from sdjax.diffusion.solvers.ddim import ddim, ddim_inverse, ddpm
from sdjax.diffusion.solvers.deis import deis
from sdjax.diffusion.solvers.dpm import dpm_solver, dpmpp_2m, dpmpp_2m_sde, dpmpp_3m
from sdjax.diffusion.solvers.dpm_fast import dpm_fast
from sdjax.diffusion.solvers.dpm_sde import dpmpp_3m_sde, dpmpp_sde
from sdjax.diffusion.solvers.er_sde import er_sde
from sdjax.diffusion.solvers.euler import euler, gradient_estimation
from sdjax.diffusion.solvers.lms import lms
from sdjax.diffusion.solvers.pndm import ipndm, pndm, pndm_prk
from sdjax.diffusion.solvers.res import res_multistep
from sdjax.diffusion.solvers.restart import restart
from sdjax.diffusion.solvers.sa import sa_solver
from sdjax.diffusion.solvers.second_order import dpm2, heun
from sdjax.diffusion.solvers.singlestep import dpmpp_2s
from sdjax.diffusion.solvers.unipc import unipc

__all__ = [
    "ddim",
    "ddim_inverse",
    "ddpm",
    "deis",
    "dpm2",
    "dpm2_ancestral",
    "dpm_fast",
    "dpm_solver",
    "dpmpp_2m",
    "dpmpp_2m_sde",
    "dpmpp_2s",
    "dpmpp_2s_ancestral",
    "dpmpp_3m",
    "dpmpp_3m_sde",
    "dpmpp_sde",
    "er_sde",
    "euler",
    "euler_ancestral",
    "gradient_estimation",
    "heun",
    "ipndm",
    "lcm",
    "lms",
    "pndm",
    "pndm_prk",
    "res_multistep",
    "restart",
    "sa_solver",
    "tcd",
    "unipc",
]
