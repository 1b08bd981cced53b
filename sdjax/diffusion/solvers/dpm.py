"""DPM-Solver and DPM-Solver++ as multistep methods: exact integrals of the linear part in log SNR."""

from sdjax.diffusion.bounds import check_number
from sdjax.diffusion.noise import Level
from sdjax.diffusion.solvers import exponential as ei
from sdjax.diffusion.spacing import Schedule
from sdjax.diffusion.table import Linear, Tape

SOLVER_TYPES = ("midpoint", "heun")
FEW_STEPS = 15  # runs shorter than this end at a lower order, says `lower_order_final`


def dpm_solver(
    tape: Tape,
    schedule: Schedule,
    *,
    solver_order: int = 2,
    solver_type: str = "midpoint",
    lower_order_final: bool = True,
    euler_at_final: bool = False,
) -> Linear:
    """DPM-Solver by predicted noise, Lu et al. 2022, arXiv:2206.00927, proposition 3.1; multistep as diffusers has it.

    `solver_order`, 1 .. 3; 1 is DDIM. Options otherwise as of `dpmpp_2m`, the third order as of `dpmpp_3m`.

    Raises:
      ValueError: the run ends at sigma zero, where the integral of the noise has no end.
    """
    order = ei.check_order("dpm_solver", "solver_order", solver_order)
    ei.check_end("dpm_solver", schedule.steps[-1][1], order, data=False)
    return multistep(tape, schedule, order, solver_type, lower_order_final, euler_at_final, data=False)


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
    return multistep(tape, schedule, 2, solver_type, lower_order_final, euler_at_final)


def dpmpp_3m(
    tape: Tape,
    schedule: Schedule,
    *,
    solver_type: str = "midpoint",
    lower_order_final: bool = True,
    euler_at_final: bool = False,
) -> Linear:
    """DPM-Solver++(3M), from the code of Lu et al. 2022, arXiv:2211.01095; the paper stops at 2M.

    Options as of `dpmpp_2m`; a lower order at the end of a short run means 2 on the last step but one. The code
    gives the curvature half the weight that the polynomial through three predictions has, and every peer repeats
    it: so the error falls with the second power of the step, though from a smaller constant than 2M's.
    """
    return multistep(tape, schedule, 3, solver_type, lower_order_final, euler_at_final)


def dpmpp_2m_sde(
    tape: Tape,
    schedule: Schedule,
    *,
    eta: float = 1.0,
    solver_type: str = "midpoint",
    lower_order_final: bool = True,
    euler_at_final: bool = False,
) -> Linear:
    """SDE-DPM-Solver++(2M), Lu et al. 2022, arXiv:2211.01095, appendix B: noise renewed in every step but a clean last.

    `eta`, 0 or more: the share of renewed noise; 0 is `dpmpp_2m`, 1 the reverse diffusion itself, as diffusers has it.
    Options otherwise as of `dpmpp_2m`.
    """
    eta = check_number("eta", eta, 0.0)
    return multistep(tape, schedule, 2, solver_type, lower_order_final, euler_at_final, eta=eta)


def multistep(
    tape: Tape,
    schedule: Schedule,
    order: int,
    solver_type: str,
    lower_order_final: bool,
    euler_at_final: bool,
    data: bool = True,
    eta: float = 0.0,
) -> Linear:
    """Equation 1 or 2 of `exponential`, on up to `order` past predictions."""
    solver_type = ei.check_type("DPM-Solver", solver_type, SOLVER_TYPES)
    x, past = tape.x_T, list[tuple[Linear, Level]]()
    clean = schedule.steps[-1][1].sigma == 0.0
    orders = multistep_orders(schedule, order, lower_order_final, clean or euler_at_final)
    for (here, there), now in zip(schedule.steps, orders, strict=True):
        past = [(ei.predict(tape, x, here, data), here), *past][:order]
        integral = _taylor(ei.exponent(here, there, data, eta), ei.step_length(here, there), past[:now], solver_type)
        x = ei.advance(x, here, there, integral, data, eta) + ei.renewed(tape, here, there, eta)
    return x


def multistep_orders(schedule: Schedule, order: int, lower_order_final: bool, euler_at_final: bool) -> list[int]:
    """The order of each step: rising from 1, and falling to 1 at the whole run's end where that is asked for."""
    orders = [min(order, i + 1) for i in range(len(schedule.steps))]
    if lower_order_final and schedule.whole < FEW_STEPS:
        orders = [min(o, schedule.left(i)) for i, o in enumerate(orders)]
    return [*orders[:-1], 1] if euler_at_final and not schedule.after else orders


def _taylor(z: float, h: float, past: ei.Past, solver_type: str) -> Linear:
    """I[f] of the Taylor polynomial of f at the start of a step, from divided differences of one to three predictions.

    For third order see `dpmpp_3m`.
    """
    j0, j1, j2 = ei.moments(z, 3)
    (f0, here), *before = past
    integral = j0 * f0
    if not before:
        return integral
    f1, first = before[0]
    slope = (f0 - f1) / ei.step_length(first, here)
    if len(before) == 1:
        return integral + (j0 / 2.0 if solver_type == "midpoint" else j1) * h * slope
    f2, second = before[1]
    curvature = (slope - (f1 - f2) / ei.step_length(second, first)) / ei.step_length(second, here)
    slope = slope + ei.step_length(first, here) * curvature
    return integral + j1 * h * slope + j2 / 2.0 * h**2 * curvature
