"""DEIS: Adams-Bashforth in the exponential integrator's own variable."""

from sdjax.diffusion.noise import Level
from sdjax.diffusion.solvers import exponential as ei
from sdjax.diffusion.solvers.dpm import multistep_orders
from sdjax.diffusion.spacing import Schedule
from sdjax.diffusion.table import Linear, Tape


def deis(tape: Tape, schedule: Schedule, *, solver_order: int = 2, lower_order_final: bool = True) -> Linear:
    """DEIS, Zhang & Chen 2022, arXiv:2204.13902, equation 15: log-rho multistep, as diffusers has it.

    The polynomial through the last `solver_order`, 1 .. 3, predicted noises in log rho, rho = sigma / alpha, is
    integrated exactly over rho. As log rho = -lambda, these are equations 2 and 5 of `exponential`; order 2 is
    `dpm_solver` with solver_type "heun". Runs under 15 steps end at a lower order with `lower_order_final`.

    Raises:
      ValueError: the run ends at sigma zero, where log rho has no end.
    """
    order = ei.check_order("deis", "solver_order", solver_order)
    ei.check_end("deis", schedule.steps[-1][1], order, data=False)
    x, past = tape.x_T, list[tuple[Linear, Level]]()
    orders = multistep_orders(schedule, order, lower_order_final, euler_at_final=False)
    for (here, there), now in zip(schedule.steps, orders, strict=True):
        past = [(ei.predict(tape, x, here, data=False), here), *past][:order]
        integral = ei.polynomial(past[:now], here, there, ei.exponent(here, there, data=False))
        x = ei.advance(x, here, there, integral, data=False)
    return x
