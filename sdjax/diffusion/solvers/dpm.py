"""The DPM-Solver family: exact integrals of the linear part in log SNR."""

from sdjax.diffusion.spacing import Schedule
from sdjax.diffusion.table import Linear, Tape


def dpmpp_2m(
    tape: Tape,
    schedule: Schedule,
    *,
    solver_type: str = "midpoint",
    lower_order_final: bool = True,
    euler_at_final: bool = False,
) -> Linear:
    """DPM-Solver++(2M), Lu et al. 2022, arXiv:2211.01095, algorithm 2.

    solver_type "heun" is the second-order form with the exact integral of the slope.

    The last step is of first order where it ends clean (there h is infinite), where `euler_at_final` says so,
    and in runs under 15 steps with `lower_order_final`.
    """
    x, last, past = tape.x_T, len(schedule.steps) - 1, None
    for i, (here, there) in enumerate(schedule.steps):
        denoised = tape.clip(tape.denoise(x, here))
        decay = there.ve / here.ve  # e^-h, with h the step in log SNR
        update = there.alpha * (1.0 - decay) * denoised
        first = i == last and (there.sigma == 0.0 or euler_at_final or (lower_order_final and last + 1 < 15))
        if past and not first:
            h = there.log_snr - here.log_snr
            slope = (denoised - past[0]) * (h / (here.log_snr - past[1].log_snr))
            weight = (1.0 - decay) / 2 if solver_type == "midpoint" else 1.0 - (1.0 - decay) / h
            update = update + there.alpha * weight * slope
        x = (there.sigma / here.sigma) * x + update
        past = (denoised, here)
    return x
