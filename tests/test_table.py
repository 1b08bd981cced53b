"""The tape and the plans it makes."""

import dataclasses
import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sdjax.diffusion.noise import Level
from sdjax.diffusion.plan import Plan, padded_length, plan
from sdjax.diffusion.table import Linear, Tape
from tests.reference import SD, ZERO_SNR

NAMES = ("ddim", "pndm", "euler", "dpmpp_2m")
SCHEDULES = ("leading", "trailing", "linspace", "karras")


@settings(max_examples=60, deadline=None)
@given(
    name=st.sampled_from(NAMES),
    steps=st.integers(1, 120),
    schedule=st.sampled_from(SCHEDULES),
    prediction=st.sampled_from(["epsilon", "v_prediction", "sample"]),
    eta=st.floats(0.0, 1.0),
)
def test_every_plan_is_consistent(name, steps, schedule, prediction, eta):
    """A plan checks itself when made: finite, causal, constants reproduced, the level's noise variance."""
    p = plan(name, steps, {**SD, "prediction_type": prediction}, schedule, eta=eta if name == "ddim" else 0.0)
    assert p.weights.shape == (p.evaluations + 1, 1 + p.evaluations + p.draws)
    assert p.evaluations == steps + (name == "pndm" and steps > 1)
    assert p.draws == (steps if name == "ddim" and eta else 0)
    exact_by_design = name in ("euler", "dpmpp_2m") or (name == "ddim" and schedule in ("leading", "karras"))
    assert not (exact_by_design and p.inexact)


@pytest.mark.parametrize("name", ["ddim", "euler", "dpmpp_2m"])
def test_zero_terminal_snr_plans_are_finite(name):
    for steps, prediction in itertools.product((1, 2, 20), ("v_prediction", "sample")):
        assert np.isfinite(plan(name, steps, {**ZERO_SNR, "prediction_type": prediction}).weights).all()
    if name == "ddim":
        with pytest.raises(ValueError, match="zero terminal SNR"):
            plan(name, 20, {**ZERO_SNR, "prediction_type": "epsilon"})


def test_a_clean_end_is_the_last_prediction_or_their_mean():
    np.testing.assert_allclose(plan("euler", 5, SD).weights[-1], [0, 0, 0, 0, 0, 1], atol=1e-14)
    assert plan("pndm", 9, SD, "karras").weights[-1, 1:].sum() == pytest.approx(1.0)


def test_ddim_by_hand():
    """Two steps of arXiv:2010.02502, equation 12, multiplied out."""
    p = plan("ddim", 2, {**SD, "set_alpha_to_one": True})
    a, s = p.alpha, p.sigma
    np.testing.assert_allclose(p.weights[0], [1, 0, 0])
    np.testing.assert_allclose(p.weights[1], [s[1] / s[0], a[1] - s[1] * a[0] / s[0], 0], rtol=1e-13)
    np.testing.assert_allclose(p.weights[2], [0, 0, 1], atol=1e-15)
    np.testing.assert_allclose([p.c_skip[0], p.c_out[0]], [1 / a[0], -s[0] / a[0]], rtol=1e-14)


@pytest.mark.parametrize(("what", "said"), [
    (lambda x: x * x, "multiplies latents by latents; .* plain numbers"), (lambda x: x**2, "power"),
    (lambda x: 2**x, "exponent"), (lambda x: x + 1.0, r"adds 1.0 \(float\) to latents"),
    (lambda x: np.float64(2.0) + x, r"adds .* \(float64\) to"), (lambda x: 1 / x, "divides by"),
    (lambda x: x / x, "divides latents by latents"), (abs, "absolute"), (lambda x: x > 0, "compares"),
    (float, "number of"), (lambda x: x * "a", r"multiplies latents by 'a' \(str\)"),
    (lambda x: x if x else x, "decides"), (round, "rounds"), (np.sin, "np.sin"), (lambda x: np.ones(2) * x, "ndarray"),
    (lambda x: np.float64(1) / x, "np.divide"), (math.sqrt, "number of"),
])  # fmt: skip
def test_what_is_not_linear_is_refused_by_name(what, said):
    with pytest.raises(ValueError, match=f"must be linear.*{said}"):
        what(Linear(np.ones(2)))


def test_linear_arithmetic():
    x, y = Linear(np.array([1.0])), Linear(np.array([0.0, 2.0]))
    np.testing.assert_array_equal((np.float64(3.0) * x - y / 2 + sum([x, -y])).weights, [4.0, -3.0])


def test_two_draws_between_evaluations_take_a_row_of_their_own():
    tape, here = Tape("epsilon"), Level.from_ve(2.0, 500.0)
    denoised = tape.denoise(tape.x_T, here)
    first, second = tape.draw(), tape.draw()
    rows = tape.finish(denoised + 0.1 * first + 0.2 * second, Level(1.0, 0.0, 0.0))
    assert [row.evaluate for row in rows] == [True, False, False]
    assert [row.draw.number for row in rows] == [-1, 0, 1]
    assert tape.columns == ["x", "D", "n", "D", "n"]


def test_a_plan_refuses_what_is_wrong():
    good = plan("dpmpp_2m", 4, SD)
    ahead, nan, unsteady = (good.weights.copy() for _ in range(3))
    ahead[1, 3] = 0.5
    nan[2, 0] = math.nan
    unsteady[2, 1] += 1e-6
    for weights, message in ((ahead, "does not exist yet"), (nan, "not finite"), (unsteady, "inconsistent")):
        with pytest.raises(ValueError, match=message):
            dataclasses.replace(good, weights=weights)
    with pytest.raises(ValueError, match="do not fit"):
        dataclasses.replace(good, weights=good.weights[:, :-1])
    with pytest.raises(ValueError, match="alpha must be"):
        dataclasses.replace(good, alpha=good.alpha[1:])


def test_an_inconsistent_solver_is_named():
    def too_bold(tape, schedule):
        x = tape.x_T
        for here, there in schedule.steps:
            x = there.alpha * tape.denoise(x, here) + here.sigma * tape.draw()  # the noise of the wrong level
        return x

    with pytest.raises(ValueError, match="solver too_bold is inconsistent.* row 1"):
        plan(too_bold, 5, SD)
    with pytest.raises(ValueError, match="must return its last latents, not None"):
        plan(lambda tape, schedule: None, 5, SD)
    with pytest.raises(ValueError, match="ask the network at least once"):
        plan(lambda tape, schedule: tape.x_T, 5, SD)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("dpmpp2m", 20), "write sampler='dpmpp_2m'"),
        (("ddim", 0), "1 .. 1000"),
        (("ddim", 1001), "1 .. 1000"),
        (("ddim", 2.5), "1 .. 1000"),
        (("ddim", True), "1 .. 1000"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        plan(*arguments, SD)


def test_eta_is_ddims():
    for name, eta in (("euler", 0.5), ("ddim", 1.5), ("ddim", -0.1), ("ddim", math.nan)):
        with pytest.raises(ValueError, match="eta"):
            plan(name, 5, SD, eta=eta)
    with pytest.raises(ValueError, match="nearest: 'epsilon'"):
        plan("ddim", 5, {**SD, "prediction_type": "epsilom"})


def test_tables_are_padded_with_the_result_row():
    p = plan("ddim", 5, SD, eta=0.5)
    table = p.table(64)
    assert len(table) == 65 and table.evaluate.sum() == 5 and (table.draw >= 0).sum() == 5
    assert isinstance(p, Plan) and table.d_weights.dtype == np.float32
    for row in (5, 6, 64):
        np.testing.assert_allclose(table.d_weights[row, :5], p.weights[5, 1:6], rtol=1e-7)
        np.testing.assert_allclose(table.n_weights[row, 1:6], p.weights[5, 6:], rtol=1e-7)
    np.testing.assert_array_equal(table.rows(2, 4).slot, [2, 3])
    with pytest.raises(ValueError, match="too short"):
        p.table(4)
    assert [padded_length(n) for n in (1, 64, 65, 128, 1000, 1025)] == [64, 64, 128, 128, 1024, 2048]
