"""RES: refined exponential solver, multistep."""

from sdjax.diffusion.noise import Level
from sdjax.diffusion.solvers import exponential as ei
from sdjax.diffusion.spacing import Schedule
from sdjax.diffusion.table import Linear, Tape


def res_multistep(tape: Tape, schedule: Schedule) -> Linear:
    """RES multistep of order 2, Zhang et al. 2023, arXiv:2308.02157, section 3, as ComfyUI's sample_res_multistep.

    The line through the last two predictions is integrated exactly over log SNR, which makes these the updates of
    `dpmpp_2m` with solver_type "heun". The first step is of first order, and so is one that ends clean.
    """
    x, past = tape.x_T, list[tuple[Linear, Level]]()
    for here, there in schedule.steps:
        past = [(tape.denoise(x, here), here), *past][:2]
        used = past if there.sigma else past[:1]
        x = ei.advance(x, here, there, ei.polynomial(used, here, there, ei.exponent(here, there)))
    return x
