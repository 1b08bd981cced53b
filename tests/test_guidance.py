"""Guidance: the doubled batch, its order, a scale per image and row, rescaling, and no guidance at scale 1."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sdjax.diffusion import scan
from sdjax.diffusion.guidance import Guidance, classifier_free, pair
from sdjax.diffusion.guidance_schedule import GuidanceSchedule, progress
from sdjax.diffusion.guiders.cfg import combine
from sdjax.diffusion.plan import plan
from sdjax.diffusion.plan_batch import stack_plans
from sdjax.diffusion.scan import run
from tests import reference
from tests.reference import SD, SHAPE, toy

B = 3
UNCOND, COND = jnp.arange(3.0)[:, None], 10.0 + jnp.arange(3.0)[:, None]
X = jax.random.normal(jax.random.key(0), (B, 4))


def network(x, t, context):
    t = jnp.broadcast_to(t, x.shape[:1])[:, None]
    return jnp.tanh(x * 0.3 + 0.1 * context["words"] + t / 1000)


def doubled(x, t):
    return network(x, t, pair({"words": UNCOND}, {"words": COND}))


@pytest.mark.parametrize("scale", [7.5, 1.0, 0.0, np.array([1.0, 7.5, 3.0], np.float32)])
@pytest.mark.parametrize("t", [500.0, np.array([1.0, 500.0, 999.0], np.float32)])
def test_both_halves_of_one_batch(scale, t):
    u, c = network(X, t, {"words": UNCOND}), network(X, t, {"words": COND})
    s = np.broadcast_to(scale, (B,))[:, None]
    np.testing.assert_allclose(classifier_free(doubled, scale)(X, t), u + s * (c - u), rtol=1e-5, atol=1e-6)


def test_scale_is_data():
    traces = []

    @jax.jit
    def generate(table, scale):
        traces.append(1)
        return run(table, classifier_free(doubled, scale), X)

    table = plan("dpmpp_2m", 5, SD).table()
    strong, weak = (
        generate(table, np.full(B, 9.0, np.float32)),
        generate(table, np.array([1.0, 9.0, 2.0], np.float32)),
    )
    assert len(traces) == 1
    np.testing.assert_allclose(weak[1], strong[1], rtol=1e-5)
    assert np.abs(weak[0] - strong[0]).max() > 1e-2


# The two equations ------------------------------------------------------

SCALES, PHI = np.array([1.0, 7.5, 3.0]), np.array([0.7, 0.0, 1.0])


def outputs():
    rng = np.random.default_rng(0)
    return rng.standard_normal((B, 4, 5, 2)), 2.0 + 3.0 * rng.standard_normal((B, 4, 5, 2))


def test_both_equations_in_float64():
    u, c = outputs()
    s, phi = SCALES[:, None, None, None], PHI[:, None, None, None]
    plain = u + s * (c - u)
    spread = plain * c.std((1, 2, 3), keepdims=True) / plain.std((1, 2, 3), keepdims=True)
    with jax.enable_x64(True):
        guided = np.asarray(combine(u, jnp.asarray(c), SCALES))
        made = np.asarray(combine(u, jnp.asarray(c), SCALES, PHI))
    assert guided.dtype == made.dtype == np.float64
    assert np.abs(guided - plain).max() <= 1e-14 * np.abs(plain).max()
    assert np.abs(made - (phi * spread + (1 - phi) * plain)).max() <= 1e-14 * np.abs(plain).max()


def test_scale_1_is_exactly_the_prompt_s_answer_and_rescale_0_changes_nothing():
    u, c = (jnp.asarray(one, jnp.float32) for one in outputs())
    np.testing.assert_array_equal(combine(u, c, SCALES)[0], c[0])
    np.testing.assert_array_equal(combine(u, c, SCALES, np.zeros(B)), combine(u, c, SCALES))
    np.testing.assert_array_equal(combine(u, c, SCALES, PHI)[1], combine(u, c, SCALES)[1])


def test_rescaling_an_output_without_spread_leaves_it():
    flat = jnp.ones((B, 4, 5, 2))
    np.testing.assert_array_equal(combine(flat, flat, SCALES, np.ones(B)), flat)


def test_gradients_of_scale_and_rescale():
    u, c = outputs()
    with jax.enable_x64(True):
        loss = jax.jit(lambda s, phi: jnp.sum(jnp.sin(combine(u, jnp.asarray(c), s, phi))))
        slopes = jax.grad(loss, (0, 1))(jnp.asarray(SCALES), jnp.asarray(PHI))
        for which, slope in enumerate(slopes):
            for i, step in enumerate(1e-6 * np.eye(B)):
                moved = [[SCALES, PHI], [SCALES, PHI]]
                moved[0][which], moved[1][which] = moved[0][which] + step, moved[1][which] - step
                np.testing.assert_allclose(slope[i], (loss(*moved[0]) - loss(*moved[1])) / 2e-6, rtol=1e-6, atol=1e-7)


# Along a plan ------------------------------------------------------


@pytest.mark.parametrize(
    "text,want",
    [
        ("constant", [1, 1, 1, 1, 1]),
        ("interval:0.2:0.8", [0, 1, 1, 1, 0]),
        ("interval:0.25:0.5", [0, 1, 1, 0, 0]),
        ("linear", [0, 0.25, 0.5, 0.75, 1]),
        ("linear:2:0", [2, 1.5, 1, 0.5, 0]),
        ("cosine", [0, 0.5 - 0.5**1.5, 0.5, 0.5 + 0.5**1.5, 1]),
        ("cosine:1:0.5", [1, 0.75 + 0.5**2.5, 0.75, 0.75 - 0.5**2.5, 0.5]),
    ],
)
def test_shares(text, want):
    np.testing.assert_allclose(GuidanceSchedule.read(text).along(plan("euler", 5, SD)), want, atol=1e-12)


@pytest.mark.parametrize("name", ["euler", "dpmpp_2m", "pndm"])
def test_noise_interval_knows_nothing_of_the_steps(name):
    """Half-open, in sigma / alpha, for any sampler and step count."""
    schedule = GuidanceSchedule.read("noise_interval:0.28:5.42")
    betas = reference.alphas_cumprod(SD)
    for steps in (3, 10, 50):
        p = plan(name, steps, SD)
        ve = np.interp(p.row_timesteps, np.arange(1000), np.sqrt((1 - betas) / betas))
        np.testing.assert_array_equal(schedule.along(p), (ve > 0.28) & (ve <= 5.42))
    end = GuidanceSchedule("noise_interval", *(p.sigma / p.alpha)[[20, 10]])
    assert np.flatnonzero(end.along(p)).tolist() == list(range(10, 20))


def heun(tape, schedule):
    """Two stages a step, the second at the next step's first level."""
    x = tape.x_T / schedule.steps[0][0].alpha
    for here, there in schedule.steps:
        slope = (x - tape.denoise(here.alpha * x, here)) / here.ve
        guess = x + (there.ve - here.ve) * slope
        if there.ve > 0:
            slope = (slope + (guess - tape.denoise(there.alpha * guess, there)) / there.ve) / 2
        x = x + (there.ve - here.ve) * slope
    return x


def test_stages_at_one_level_are_treated_alike():
    assert progress(plan(heun, 5, SD)).tolist() == [0, 0.25, 0.25, 0.5, 0.5, 0.75, 0.75, 1, 1]
    np.testing.assert_allclose(progress(plan("pndm", 4, SD)), [0, 1 / 3, 1 / 3, 2 / 3, 1])
    assert progress(plan("euler", 1, SD)).tolist() == [1]
    zero_snr = progress(plan("ddim", 3, reference.ZERO_SNR))
    np.testing.assert_allclose(zero_snr[plan("ddim", 3, reference.ZERO_SNR).evaluate], [0, 0.5, 1])


def test_guidance_along_lanes():
    """Every image its own scale on its own plan; 1 where there is nothing to guide."""
    plans = [plan("euler", 3, SD), plan("dpmpp_2m", 5, SD)]
    schedules = [GuidanceSchedule.read("linear:0:1"), GuidanceSchedule()]
    made = Guidance.along(stack_plans(plans), [5.0, 3.0], schedules, [0.0, 0.5], 8)
    assert made.scale.T.tolist() == [[1, 3, 5, 1, 1, 1, 1, 1, 1], [3, 3, 3, 3, 3, 1, 1, 1, 1]]
    assert made.rescale.shape == made.scale.shape and made.rescale[:, 1].tolist() == [0.5] * 9
    assert made.rows(2, 4).scale.tolist() == [[5, 3], [1, 3]]


def test_a_scheduled_run_is_the_step_by_step_run():
    """Against Euler written out in NumPy, with the scale set by hand at each step."""
    x, steps, s = np.random.default_rng(1).standard_normal(SHAPE), 6, np.array([4.0, 2.5])
    ts = reference.euler_levels(SD, steps)[0]

    def half(xp, x, t, prompt):
        return toy(xp, x + 0.3 * prompt, t)

    def by_hand(x, t):
        along = s[:, None, None, None] * 0 + 1 + (s[:, None, None, None] - 1) * (list(ts).index(t) / (steps - 1))
        return half(np, x, t, 0) + along * (half(np, x, t, 1) - half(np, x, t, 0))

    def model(x, t, row):
        both = lambda x, t: jnp.concatenate([half(jnp, x[:2], t, 0), half(jnp, x[2:], t, 1)])  # noqa: E731
        return classifier_free(both, row.scale, row.rescale)(x, t)

    p = plan("euler", steps, SD)
    with jax.enable_x64(True):
        guidance = Guidance.along(p, s, [GuidanceSchedule("linear")] * 2, [0.0, 0.0], p.rows - 1, np.float64)
        table = p.table(p.rows - 1, np.float64)
        made = np.asarray(scan.run_rows(scan.init(table, jnp.asarray(x)), table, model, guidance).x)
    want = reference.euler(SD, steps, by_hand, x)
    assert np.abs(made - want).max() <= 1e-10 * np.abs(want).max()


@pytest.mark.parametrize(
    "text", ["constant", "interval:0.2:0.8", "noise_interval:0.28:5.42", "linear:0.0:1.0", "cosine:2.0:0.1"]
)
def test_text_and_back(text):
    assert str(GuidanceSchedule.read(text)) == text and GuidanceSchedule.read(None) == GuidanceSchedule()


@pytest.mark.parametrize(
    "value,message",
    [
        ("intervall:0:1", "'intervall' is unknown; nearest: 'interval'; known: constant, interval:first:last"),
        ("", "'' is unknown"),
        ("interval", "'interval' cannot be understood; known: constant"),
        ("interval:a:b", "'interval:a:b' cannot be understood"),
        ("linear:1", "'linear:1' cannot be understood"),
        ("constant:1:2", "'constant:1:2' cannot be understood"),
        ("interval:0.8:0.2", "the interval is empty; give the smaller number first"),
        ("interval:0:14.6", "progress goes from 0 to 1; sigmas belong to noise_interval"),
        ("linear:nan:1", "both numbers must be finite and >= 0"),
        ("cosine:-1:0", "both numbers must be finite and >= 0"),
        (3.0, "guidance_schedule must be a string"),
    ],
)
def test_bad_schedules(value, message):
    with pytest.raises(ValueError, match=message):
        GuidanceSchedule.read(value)


def test_regions_mix_the_predictions():
    """Equation 4 with masks: each prompt counts where its own is white, and shares of a soft one add up."""
    answers = jnp.stack([jnp.full((B, 4, 4, 2), float(k)) for k in (0, 1, 3)])  # u, c_1, c_2
    masks = np.zeros((2, B, 4, 4, 1), np.float32)
    masks[0, :, :2], masks[1, :, 2:], masks[:, 1, 0] = 1, 1, 0.5
    guided = classifier_free(
        lambda x, t: answers.reshape(-1, 4, 4, 2), 2.0, None, jnp.ones((2, B)), jnp.asarray(masks)
    )(jnp.zeros((B, 4, 4, 2)), jnp.asarray(1.0))
    np.testing.assert_allclose(guided[0, 0], 2.0)  # u + 2 (1 - u)
    np.testing.assert_allclose(guided[0, 3], 6.0)  # u + 2 (3 - u)
    np.testing.assert_allclose(guided[1, 0], 4.0)  # half of each


@pytest.mark.parametrize("schedule", ["constant", "interval:0.3:1", "linear:0:2"])
def test_three_way_guidance(schedule):
    """u + s_I (i - u) + s (c - i) with s of each row, and no guidance at all where s is 1 and s_I is 1."""
    p, scales, image = plan("euler", 6, SD), np.array([7.5, 3.0, 1.0]), np.array([1.5, 1.0, 1.0])
    shares = np.ones((2, B), np.float32)
    along = Guidance.along(p, scales, [GuidanceSchedule.read(schedule)] * B, [0.0] * B, 8, weights=shares,
                           image_scales=image)  # fmt: skip
    u, i, c = (jax.random.normal(jax.random.key(k), (B, 4)) for k in range(3))
    for row in range(6):
        guided = classifier_free(
            lambda x, t: jnp.concatenate([u, i, c]),
            along.scale[row],
            along.rescale[row],
            jnp.asarray(along.weights[row]),
        )(X, jnp.asarray(1.0))
        s, s_i = along.scale[row][:, None], image[:, None]
        np.testing.assert_allclose(guided, u + s_i * (i - u) + s * (c - i), rtol=1e-4, atol=1e-4)
