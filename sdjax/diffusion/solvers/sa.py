"""SA-Solver: stochastic Adams-Bashforth predicts, Adams-Moulton corrects."""

import math
from collections.abc import Callable

from sdjax.core.short import short
from sdjax.diffusion.bounds import check_number
from sdjax.diffusion.noise import Level
from sdjax.diffusion.solvers import exponential as ei
from sdjax.diffusion.spacing import Schedule
from sdjax.diffusion.table import Linear, Tape

# The first two are this class's own; the others' mean the first.
ALGORITHMS = ("data_prediction", "noise_prediction", "dpmsolver++", "dpmsolver", "sde-dpmsolver++", "sde-dpmsolver")


def middle_only(t: float) -> float:
    """tau of diffusers' class: noise is renewed at timesteps 200 .. 800 and nowhere else."""
    return 1.0 if 200 <= t <= 800 else 0.0


def sa_solver(
    tape: Tape,
    schedule: Schedule,
    *,
    predictor_order: int = 2,
    corrector_order: int = 2,
    tau_func: Callable[[float], float] = middle_only,
    algorithm_type: str = "data_prediction",
    lower_order_final: bool = True,
) -> Linear:
    """SA-Solver, Xue et al. 2023, arXiv:2309.05019, algorithm 1, as diffusers has it.

    A corrector takes the noise of the step that it corrects, and the evaluation of the next. Where two predictions
    make a line, its exact weight J_1 gives way to -z / 2, as in `unipc` with "bh1".

    Options:
      predictor_order: 1 .. 4; reached step by step, and lowered again at the end with `lower_order_final`.
      corrector_order: 1 .. 4, the new prediction counted.
      tau_func: timestep -> tau, 0 or more, the share of renewed noise; 0 everywhere makes it deterministic. A jump in
        tau, as the default has two, costs some of the strong order 1.
      algorithm_type: "data_prediction", or "noise_prediction", whose noise is right only as the steps go to zero.
        Other classes' names mean the first.
    """
    p = ei.check_order("sa_solver", "predictor_order", predictor_order, 4)
    c = ei.check_order("sa_solver", "corrector_order", corrector_order, 4)
    if algorithm_type not in ALGORITHMS:
        known = " or ".join(map(repr, ALGORITHMS[:2]))
        raise ValueError(f"sa_solver: algorithm_type must be {known}, not {short(algorithm_type)}")
    data, count = algorithm_type != "noise_prediction", len(schedule.steps)
    orders = [min(p, i + 1, schedule.left(i) if lower_order_final else p) for i in range(count)]
    ei.check_end("sa_solver", schedule.steps[-1][1], orders[-1], data)
    x, past = tape.x_T, list[tuple[Linear, Level]]()
    correct: Callable[[ei.Past], Linear] | None = None
    for i, (here, there) in enumerate(schedule.steps):
        new = (ei.predict(tape, x, here, data), here)
        if correct:
            x = correct([new, *past[: min(c, schedule.left(i) + 2 if lower_order_final else c) - 1]])
        past = [new, *past][: max(p, c - 1)]
        correct = _step(tape, x, here, there, _tau(tau_func, here.t), data)
        x = correct(past[: orders[i]])
    return x


def _tau(tau_func: Callable[[float], float], t: float) -> float:
    return check_number(f"sa_solver: what tau_func gives at timestep {t:g}", tau_func(t), 0.0)


def _step(tape: Tape, x: Linear, here: Level, there: Level, tau: float, data: bool) -> Callable[[ei.Past], Linear]:
    """A step from x as a function of the predictions it is made by; its noise is drawn once."""
    eta = tau**2
    z = ei.exponent(here, there, data, eta)
    if data:
        noise = ei.renewed(tape, here, there, eta)
        return lambda past: ei.advance(x, here, there, ei.polynomial(past, here, there, z, -z / 2.0), data, eta) + noise
    weight = tau * there.sigma * math.sqrt(max(0.0, math.expm1(2.0 * z)))
    noise = ei.noise(tape, here, there, weight)
    if weight:
        tape.inexact = tape.inexact or "SA-Solver by predicted noise has the right noise only as steps go to zero"
    return lambda past: ei.advance(x, here, there, (1.0 + eta) * ei.polynomial(past, here, there, z), data) + noise
