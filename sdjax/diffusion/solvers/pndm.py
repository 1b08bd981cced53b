"""Pseudo-numerical methods: a classical ODE solver's mix of slopes, then DDIM's exact step with that mix.

With x / alpha as the variable and ve = sigma / alpha as the time, the deterministic step of DDIM is Euler's,
    x' / alpha' = x / alpha + (ve' - ve) e,      e the network's noise prediction                      (1)
so e is the slope dx/dve. PNDM keeps (1) as the way to move and replaces e by what a method of higher order
makes of several: in the middle of a run the fourth-order Adams-Bashforth formula
    e = (55 e_0 - 59 e_1 + 37 e_2 - 9 e_3) / 24      e_0 the newest                                    (2)
and until four slopes are known a warm-up: one Heun step (`pndm`, the community's PLMS), three Runge-Kutta steps
    e = (e_1 + 2 e_2 + 2 e_3 + e_4) / 6          at the start, twice the middle, the end               (3)
of four evaluations each (`pndm_prk`), or lower orders of (2) (`ipndm`). (2) and (3) suppose equal steps. Levels are
equal steps in t, not in ve, so all three are of second order, which is what Liu et al. 2022, arXiv:2202.09778, claim
(and of first order where the steps do not even change smoothly).
"""

from sdjax.diffusion.bounds import check_whole
from sdjax.diffusion.noise import Level
from sdjax.diffusion.prediction import coefficients
from sdjax.diffusion.solvers.euler import finish, slope, start
from sdjax.diffusion.spacing import Schedule
from sdjax.diffusion.table import Linear, Tape

WARM_UP = 12  # stages of the three Runge-Kutta steps


def pndm(tape: Tape, schedule: Schedule) -> Linear:
    """PLMS: PNDM without its Runge-Kutta warm-up, Liu et al. 2022, arXiv:2202.09778, equations 9 and 12.

    Adams-Bashforth on the network's raw outputs, warmed up by one Heun step (so N + 1 evaluations); the mixed
    output then makes one DDIM step. Mixed v-predictions of different levels are no v-prediction of any level: with
    those the method is of first order only, here as in diffusers, and a constant picture is not reproduced exactly.
    """
    if len(schedule.steps) > 1:
        _say_mixed(tape)
    x = tape.x_T
    outputs: list[Linear] = []
    for i, (here, there) in enumerate(schedule.steps):
        told = there if i == 1 else here
        raw = tape.raw(tape.denoise(x, told), x, told)
        if i == 1:  # the first step again, now with the slopes of both its ends
            x = _transfer(tape, tape.x_T, (raw + outputs[0]) / 2, here, there)
        else:
            outputs.append(raw)
            x = _transfer(tape, x, _adams_bashforth(outputs), here, there)
    return x


def pndm_prk(tape: Tape, schedule: Schedule) -> Linear:
    """PNDM as its paper has it: three Runge-Kutta steps, then Adams-Bashforth; arXiv:2202.09778, algorithm 2.

    N + 9 evaluations for N >= 4. The schedule's first 12 steps are the four stages of each Runge-Kutta step, all of
    them from where that step begins (`timesteps.prk_schedule`). v-predictions are mixed as in `pndm`.

    Raises:
      ValueError: a schedule without those stages.
    """
    steps = schedule.steps
    if len(steps) <= WARM_UP or any(steps[i][0] != steps[i - i % 4][0] for i in range(WARM_UP)):
        raise ValueError("pndm_prk needs a schedule of Runge-Kutta stages: timesteps.prk_schedule")
    _say_mixed(tape)
    x, outputs = tape.x_T, []
    for first in range(0, WARM_UP, 4):
        x, output = _runge_kutta(tape, x, steps[first : first + 4])
        outputs.append(output)
    for here, there in steps[WARM_UP:]:
        outputs.append(tape.raw(tape.denoise(x, here), x, here))
        x = _transfer(tape, x, _adams_bashforth(outputs), here, there)
    return x


def ipndm(tape: Tape, schedule: Schedule, *, max_order: int = 4) -> Linear:
    """Improved PNDM: Adams-Bashforth on dx/dve alone, its warm-up the lower orders of the same formula.

    The "iPNDM" that Zhang & Chen 2022, arXiv:2204.13902, set beside DEIS, on the levels of the Euler family, as
    ComfyUI has it. A last step to the clean level is Euler's and gives the prediction itself. One evaluation per step.

    `max_order`, 1 .. 4: slopes mixed at most; 1 is `euler`.
    """
    max_order = check_whole("max_order", max_order, 1, 4)
    x = start(tape, schedule)
    slopes: list[Linear] = []
    for here, there in schedule.steps:
        slopes = [*slopes, slope(tape, x, here)][-max_order:]
        x = x + (there.ve - here.ve) * _adams_bashforth(slopes if there.sigma else slopes[-1:])
    return finish(x, schedule)


def _say_mixed(tape: Tape) -> None:
    if tape.prediction == "v_prediction":
        tape.inexact = tape.inexact or "PNDM mixes v-predictions of different levels"


def _runge_kutta(tape: Tape, x: Linear, stages: tuple[tuple[Level, Level], ...]) -> tuple[Linear, Linear]:
    """Equation 3 from `x`, and the output at its start. Each stage ends where the next one asks the network."""
    start, at, outputs = stages[0][0], x, []
    for told, (here, there) in zip((start, *(there for _, there in stages)), stages, strict=False):
        outputs.append(tape.raw(tape.denoise(at, told), at, told))
        at = _transfer(tape, x, outputs[-1], here, there)
    first, second, third, fourth = outputs
    mixed = (first + 2 * second + 2 * third + fourth) / 6
    return _transfer(tape, x, mixed, *stages[-1]), first


def _adams_bashforth(outputs: list[Linear]) -> Linear:
    """The next slope from up to four past ones; arXiv:2202.09778, equation 12 and its lower orders."""
    order = min(len(outputs), 4)
    weights = {
        1: (1.0,),
        2: (3 / 2, -1 / 2),
        3: (23 / 12, -16 / 12, 5 / 12),
        4: (55 / 24, -59 / 24, 37 / 24, -9 / 24),
    }
    terms = [w * raw for w, raw in zip(weights[order], reversed(outputs), strict=False)]
    return sum(terms[1:], start=terms[0])


def _transfer(tape: Tape, x: Linear, raw: Linear, here: Level, there: Level) -> Linear:
    """arXiv:2202.09778, equation 9 (the deterministic DDIM step) with the network's output given."""
    c_skip, c_out = coefficients(tape.prediction, here)
    denoised = c_skip * x + c_out * raw
    return there.alpha * denoised + there.sigma * (x - here.alpha * denoised) / here.sigma
