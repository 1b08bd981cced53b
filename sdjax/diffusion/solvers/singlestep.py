"""DPM-Solver++ as a singlestep method: groups of evaluations that forget what came before."""

from sdjax.diffusion.noise import Level
from sdjax.diffusion.solvers import exponential as ei
from sdjax.diffusion.solvers.dpm import SOLVER_TYPES
from sdjax.diffusion.spacing import Schedule
from sdjax.diffusion.table import Linear, Tape


def dpmpp_2s(
    tape: Tape,
    schedule: Schedule,
    *,
    solver_order: int = 2,
    solver_type: str = "midpoint",
    lower_order_final: bool = False,
) -> Linear:
    """DPM-Solver++(2S), Lu et al. 2022, arXiv:2211.01095, algorithm 1; with `solver_order` 3 the (3S) of its code.

    Every level is evaluated once: the steps come in groups of `solver_order`, 1 .. 3, and step i of a group goes
    from the group's first level to the group's i-th target, by i predictions. The last group may be shorter. The
    last step is a group of its own where it ends clean and, with `lower_order_final`, where it would end a whole group.
    """
    order = ei.check_order("dpmpp_2s", "solver_order", solver_order)
    solver_type = ei.check_type("dpmpp_2s", solver_type, SOLVER_TYPES)
    clean = schedule.steps[-1][1].sigma == 0.0
    x, start, group = tape.x_T, tape.x_T, list[tuple[Linear, Level]]()
    for i, (here, there) in enumerate(schedule.steps):
        last = schedule.left(i) == 1 and (clean or (lower_order_final and len(group) + 1 == order))
        if last or len(group) == order:
            group = []
        start = start if group else x
        group = [*group, (ei.predict(tape, x, here), here)]
        x = ei.advance(start, group[0][1], there, _integral(group, there, solver_type))
    return x


def _integral(group: ei.Past, there: Level, solver_type: str) -> Linear:
    """I[D] of `exponential` over the step from the group's first level; here the predictions are oldest first."""
    (base, first), *later = group
    z = ei.exponent(first, there)
    if solver_type == "heun" or not later:
        return ei.polynomial(group, first, there, z)
    j0, j1 = ei.moments(z, 2)
    newest, level = later[-1]
    slope = (newest - base) * (ei.step_length(first, there) / ei.step_length(first, level))
    return j0 * base + (j0 / 2.0 if len(later) == 1 else j1) * slope
