"""Samplers of distilled networks: each evaluation is already a finished picture.

A consistency network f(x, t) gives, from any level of a trajectory, that trajectory's end. There is no equation left
to solve; a run of several steps noises the picture again and asks once more, which mends what the last answer got
wrong. Distillation saw only K of the T training timesteps, k T / K - 1 with k = 1 .. K (`original_inference_steps`),
and N of those, evenly picked, are visited (`timesteps`).

`lcm` noises with fresh draws only. `tcd`'s network was trained to stop anywhere on the trajectory, so it goes to a
level s cleaner than the next one and back up by the forward process, x = alpha x0 + sigma e at both ends:
    x' = (alpha' / alpha_s) x_s + sqrt(1 - (alpha' / alpha_s)^2) n,      n ~ N(0, 1)                   (1)
Neither converges to anything as N grows: the draws are new noise, and the network's error is the same at any N.
"""

import math

from sdjax.diffusion.bounds import check_number
from sdjax.diffusion.spacing import Schedule
from sdjax.diffusion.table import Linear, Tape
from sdjax.diffusion.timesteps import TrajectorySchedule

SIGMA_DATA = 0.5


def lcm(tape: Tape, schedule: Schedule, *, timestep_scaling: float = 10.0) -> Linear:
    """Multistep latent consistency sampling, Luo et al. 2023, arXiv:2310.04378, algorithm 3.

    The boundary condition f(x, 0) = x is met by f = c_skip x + c_out D with, for s = `timestep_scaling` t,
        c_skip = 0.5^2 / (s^2 + 0.5^2),    c_out = s / sqrt(s^2 + 0.5^2)
    (Song et al. 2023, arXiv:2303.01469, appendix C), which away from t = 0 is D itself to 1e-5.
    """
    timestep_scaling = check_number("timestep_scaling", timestep_scaling, 0.0)
    tape.inexact = tape.inexact or "LCM's boundary condition mixes a trace of x into each picture"
    x = tape.x_T
    for i, (here, there) in enumerate(schedule.steps):
        s = timestep_scaling * here.t
        c_skip = SIGMA_DATA**2 / (s**2 + SIGMA_DATA**2)
        c_out = s / math.sqrt(s**2 + SIGMA_DATA**2)
        picture = c_skip * x + c_out * tape.clip(tape.denoise(x, here))
        x = picture
        if schedule.left(i) > 1:
            x = there.alpha * picture + there.sigma * tape.draw()
    return x


def tcd(tape: Tape, schedule: Schedule, *, eta: float = 0.3) -> Linear:
    """Strategic stochastic sampling of trajectory consistency distillation, Zheng et al. 2024, arXiv:2402.19159.

    `eta`, 0 .. 1 (the paper's gamma): s lies at the fraction 1 - eta of the next timestep. 0 goes straight there, which
    is DDIM; 1 goes to the cleanest level and draws all noise anew. The last step ends on its level without a draw.

    Raises:
      ValueError: eta out of range, or a schedule that does not know the training levels below its own.
    """
    eta = check_number("eta", eta, 0.0, 1.0)
    if not isinstance(schedule, TrajectorySchedule):
        raise ValueError("tcd needs a schedule that knows all training levels: timesteps.tcd_schedule")
    x = tape.x_T
    for i, (here, there) in enumerate(schedule.steps):
        stochastic = eta > 0.0 and schedule.left(i) > 1
        s = schedule.fraction(there, 1.0 - eta) if stochastic else there
        denoised = tape.denoise(x, here)
        x = s.alpha * denoised + s.sigma * (x - here.alpha * denoised) / here.sigma
        if stochastic:
            kept = there.alpha / s.alpha
            x = kept * x + math.sqrt(max(0.0, 1.0 - kept**2)) * tape.draw()
    return x
