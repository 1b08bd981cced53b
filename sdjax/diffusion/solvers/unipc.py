"""UniPC: one polynomial predicts a step and, with the value at its end added, corrects it."""

import functools
import math
from collections.abc import Sequence

from sdjax.diffusion.bounds import MOST_STEPS, check_whole
from sdjax.diffusion.noise import Level
from sdjax.diffusion.solvers import exponential as ei
from sdjax.diffusion.spacing import Schedule
from sdjax.diffusion.table import Linear, Tape


def unipc(
    tape: Tape,
    schedule: Schedule,
    *,
    solver_order: int = 2,
    solver_type: str = "bh2",
    predict_x0: bool = True,
    lower_order_final: bool = True,
    disable_corrector: Sequence[int] = (),
) -> Linear:
    """UniPC, Zhao et al. 2023, arXiv:2302.04867, algorithms 1 (UniC) and 2 (UniP), as diffusers has it.

    The corrector reuses the evaluation of the next step, so it costs none, and lifts the order by one. B(h) of the
    paper cancels but where the polynomial is a line: there the exact weight J_1 gives way to -B(h) / 2.

    Options:
      solver_order: 1 .. 3, of the predictor; reached step by step, and lowered again at the end with
        `lower_order_final`.
      solver_type: "bh1" for B(h) = z, "bh2" for B(h) = e^z - 1.
      predict_x0: integrate the clean latents; otherwise the noise, which cannot end at sigma zero.
      disable_corrector: steps of the whole run, counted from 0, whose end is not corrected.
    """
    order = ei.check_order("unipc", "solver_order", solver_order)
    solver_type = ei.check_type("unipc", solver_type, ("bh2", "bh1"))
    off = [check_whole("unipc: disable_corrector", step, 0, MOST_STEPS) for step in disable_corrector]
    count = len(schedule.steps)
    orders = [min(order, i + 1, schedule.left(i) if lower_order_final else order) for i in range(count)]
    ei.check_end("unipc", schedule.steps[-1][1], orders[-1], predict_x0)
    step = functools.partial(_step, bh1=solver_type == "bh1", data=predict_x0)
    x, before, past = tape.x_T, tape.x_T, list[tuple[Linear, Level]]()
    for i, (here, there) in enumerate(schedule.steps):
        new = (ei.predict(tape, x, here, predict_x0), here)
        if i and schedule.before + i - 1 not in off:
            x = step(before, *schedule.steps[i - 1], [new, *past[: orders[i - 1]]])
        before, past = x, [new, *past][:order]
        x = step(before, here, there, past[: orders[i]])
    return x


def _step(x: Linear, here: Level, there: Level, past: ei.Past, bh1: bool, data: bool) -> Linear:
    """arXiv:2302.04867, equation 3, by the predictions in `past`, one of which a corrector has from `there`."""
    z = ei.exponent(here, there, data)
    line = -(z if bh1 else math.expm1(z)) / 2.0
    return ei.advance(x, here, there, ei.polynomial(past, here, there, z, line), data)
