"""Pseudo-numerical methods: linear multistep on the network's own outputs."""

from sdjax.diffusion.noise import Level
from sdjax.diffusion.prediction import coefficients
from sdjax.diffusion.spacing import Schedule
from sdjax.diffusion.table import Linear, Tape


def pndm(tape: Tape, schedule: Schedule) -> Linear:
    """PLMS: PNDM without its Runge-Kutta warm-up, Liu et al. 2022, arXiv:2202.09778, equations 9 and 12.

    Adams-Bashforth on the network's raw outputs, warmed up by one Heun step (so N + 1 evaluations); the mixed
    output then makes one DDIM step. Mixed v-predictions of different levels are no v-prediction of any level,
    so with those a constant picture is reproduced only up to the order of the method.
    """
    if tape.prediction == "v_prediction" and len(schedule.steps) > 1:
        tape.inexact = tape.inexact or "PNDM mixes v-predictions of different levels"
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
