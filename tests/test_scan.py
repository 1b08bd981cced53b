"""The device side: against step-by-step float64, against itself in pieces, and counted compilations."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sdjax.diffusion import brownian, scan
from sdjax.diffusion.noise import Level
from sdjax.diffusion.plan import plan
from sdjax.diffusion.samplers import Sampler
from sdjax.diffusion.solvers import ddim, dpmpp_2m, euler
from sdjax.diffusion.spacing import Schedule
from tests import reference
from tests.reference import SD, SHAPE, ZERO_SNR, draws, toy

X_T = np.random.default_rng(0).standard_normal(SHAPE)


def model(x, t):
    return toy(jnp, x, t)


def numpy_model(x, t):
    return toy(np, x, t)


def heun(tape, schedule):
    """A solver of two evaluations per step, as a user would write it."""
    x = tape.x_T / schedule.steps[0][0].alpha
    for here, there in schedule.steps:
        slope = (x - tape.denoise(here.alpha * x, here)) / here.ve
        guess = x + (there.ve - here.ve) * slope
        if there.ve > 0:
            slope = (slope + (guess - tape.denoise(there.alpha * guess, there)) / there.ve) / 2
        x = x + (there.ve - here.ve) * slope
    return schedule.end.alpha * x


def euler_ancestral(tape, schedule):
    """A solver with fresh noise in every step."""
    x = tape.x_T / schedule.steps[0][0].alpha
    for here, there in schedule.steps:
        up = there.ve * np.sqrt(1 - (there.ve / here.ve) ** 2)
        down = np.sqrt(there.ve**2 - up**2)
        x = x + (down - here.ve) * (x - tape.denoise(here.alpha * x, here)) / here.ve + up * tape.draw()
    return x


run64 = jax.jit(lambda table, x, keys=None, noise=None: scan.run(table, model, x, keys, noise))


def in_float64(the_plan, noise=None):
    """The plan on the device in float64, with all draws padded so that one program serves."""
    with jax.enable_x64(True):
        if noise is not None:
            noise = np.concatenate([noise, np.zeros((64 - len(noise), *SHAPE))])
        return np.asarray(run64(the_plan.table(128, np.float64), X_T, noise=noise))


def error(a, b):
    return np.abs(a - b).max() / np.abs(b).max()


@pytest.mark.parametrize("name", ["ddim", "pndm", "euler", "dpmpp_2m", "heun"])
def test_equal_to_step_by_step_in_float64(name):
    solver = heun if name == "heun" else name
    configs = [{**SD, "prediction_type": p} for p in ("epsilon", "v_prediction", "sample")] + [ZERO_SNR]
    spacings = ["leading", "trailing", "linspace"] + ["karras"] * (name in ("euler", "dpmpp_2m", "heun"))
    for config, schedule, steps in itertools.product(configs, spacings, (1, 2, 3, 4, 7, 20, 50)):
        own = {"use_karras_sigmas": True} if schedule == "karras" else {"timestep_spacing": schedule}
        expected = getattr(reference, name)({**config, **own}, steps, numpy_model, X_T)
        assert error(in_float64(plan(solver, steps, config, schedule)), expected) <= 1e-10, (
            config,
            schedule,
            steps,
        )


@pytest.mark.parametrize("eta", [0.5, 1.0])
def test_ddim_with_fresh_noise_in_float64(eta):
    for steps, schedule in itertools.product((1, 7, 20), ("leading", "trailing", "linspace")):
        noise = draws(steps)
        expected = reference.ddim({**SD, "timestep_spacing": schedule}, steps, numpy_model, X_T, noise, eta)
        assert error(in_float64(plan("ddim", steps, SD, schedule, eta=eta), noise), expected) <= 1e-10


def test_a_users_stochastic_solver_in_float64():
    for steps in (1, 7, 20):
        noise = draws(steps)
        expected = reference.euler_ancestral(SD, steps, numpy_model, X_T, noise)
        assert error(in_float64(plan(euler_ancestral, steps, SD), noise), expected) <= 1e-10


def test_clipping_holds_the_clean_latents_but_not_the_noise():
    config = {**SD, "clip_sample": True, "clip_sample_range": 0.3, "set_alpha_to_one": True}
    p = plan("ddim", 6, config)
    assert (p.evaluations, p.rows) == (6, 13)
    out = in_float64(p)
    assert np.abs(out).max() == 0.3
    assert error(in_float64(plan("ddim", 6, {**config, "clip_sample_range": 1e6})), in_float64(plan("ddim", 6,
    {**config, "clip_sample": False}))) < 1e-12  # fmt: skip


def test_float32_loses_little():
    """float32 against float64: 1e-5 over 50 steps, the epsilon form's 1 / alpha included."""
    for name, schedule in itertools.product(("ddim", "pndm", "euler", "dpmpp_2m"), ("leading", "trailing")):
        p = plan(name, 50, SD, schedule)
        assert error(np.asarray(run64(p.table(128), X_T.astype(np.float32))), in_float64(p)) <= 1e-5


def test_one_compilation():
    """Sampler, schedule, steps, eta, prediction type and keys are data, with and without noise."""
    traces = []

    def counted(x, t):
        traces.append(1)
        return model(x, t)

    run = jax.jit(lambda table, x, keys: scan.run(table, counted, x, keys))
    x = jnp.asarray(X_T, jnp.float32)
    run(plan("ddim", 1, SD).table(), x, scan.keys_per_image(jax.random.key(0), 2))
    first = len(traces)
    for name, schedule in itertools.product(
        ("ddim", "pndm", "euler", "dpmpp_2m"), ("leading", "trailing", "linspace", "karras")
    ):
        for steps in (2, 31, 63 if name == "pndm" else 64):
            run(plan(name, steps, SD, schedule).table(), x, scan.keys_per_image(jax.random.key(steps), 2))
    for eta in (0.5, 1.0):
        run(
            plan("ddim", 64, {**SD, "prediction_type": "sample"}, eta=eta).table(),
            x,
            scan.keys_per_image(jax.random.key(1), 2),
        )
    run(plan(heun, 32, SD).table(), x, scan.keys_per_image(jax.random.key(2), 2))
    assert len(traces) == first and first <= 2  # a cond may trace its branch twice within one compilation


def test_padded_rows_skip_the_network():
    calls = []

    def watched(x, t):
        jax.debug.callback(lambda t: calls.append(float(t)), t)
        return model(x, t)

    p = plan("euler", 3, SD)
    jax.block_until_ready(jax.jit(lambda table, x: scan.run(table, watched, x))(p.table(64), X_T.astype(np.float32)))
    jax.effects_barrier()
    assert sorted(calls, reverse=True) == list(p.timesteps)


def test_segments_equal_the_whole():
    p = plan("ddim", 10, SD, eta=1.0)
    table, x = p.table(64), jnp.asarray(X_T, jnp.float32)
    keys = scan.keys_per_image(jax.random.key(3), 2)
    traces = []

    @jax.jit
    def run_rows(carry, rows):
        traces.append(1)
        return scan.run_rows(carry, rows, model)

    carry = scan.draw(scan.init(table, x), table, keys)
    for start in range(0, p.rows, 4):
        carry = run_rows(carry, table.rows(start, start + 4))
    assert len(traces) == 1
    np.testing.assert_allclose(scan.result(carry), scan.sample(p, model, x, key=keys), rtol=1e-5, atol=1e-6)


def test_an_image_depends_on_no_neighbour():
    p, key = plan("ddim", 8, SD, eta=1.0), jax.random.key(5)
    x = jax.random.normal(key, (4, *SHAPE[1:]))
    follow = jax.jit(lambda x, key: scan.sample(p, model, x, key=key))
    together = follow(x, key)
    for i in range(4):
        alone = follow(x[i : i + 1], jax.random.fold_in(key, i)[None])
        np.testing.assert_allclose(alone[0], together[i], rtol=1e-5, atol=1e-5)
    raw = follow(x, jax.random.key_data(key))
    np.testing.assert_allclose(raw, together, rtol=1e-6, atol=1e-6)


def test_given_noise_equals_the_keys_own():
    p, x = plan("ddim", 6, SD, eta=0.7), jnp.asarray(X_T, jnp.float32)
    keys = scan.keys_per_image(jax.random.key(9), 2)
    noise = jnp.stack(
        [jax.vmap(lambda k, a, b: brownian.increment(k, a, b, x[0]), (0, None, None))(keys, *s) for s in p.spans]
    )
    np.testing.assert_allclose(
        scan.sample(p, model, x, noise=noise), scan.sample(p, model, x, key=keys), rtol=1e-5, atol=1e-5
    )


def test_each_image_on_its_own_plan():
    """Tables with an axis b: what stacked plans will be. Every image equals its own run."""
    plans = [plan("euler", 5, SD, "karras"), plan("ddim", 9, SD, eta=1.0)]
    tables = [p.table(16) for p in plans]
    both = jax.tree.map(lambda *a: np.stack(a, -1), *tables)
    both = scan.replace(both, slot=tables[0].slot)
    x, keys = jnp.asarray(X_T, jnp.float32), scan.keys_per_image(jax.random.key(1), 2)
    noise = jnp.asarray(draws(9), jnp.float32)
    for given in ({"keys": keys}, {"noise": noise}):
        mixed = scan.run(both, lambda x, t: toy(jnp, x, t[:, None, None, None]), x, **given)
        for i, p in enumerate(plans):
            own = {"key": keys[i : i + 1]} if "keys" in given else {"noise": noise[: p.draws, i : i + 1]}
            alone = scan.sample(p, model, x[i : i + 1], **own)
            np.testing.assert_allclose(mixed[i], alone[0], rtol=1e-5, atol=1e-5)


def test_any_shape_and_dtype():
    p = plan("dpmpp_2m", 3, SD)
    half = scan.sample(p, lambda x, t: jnp.tanh(x + t / 1000).astype(jnp.bfloat16), jnp.ones((2, 7), jnp.bfloat16))
    assert half.dtype == jnp.float32 and half.shape == (2, 7)
    jitted = jax.jit(lambda x: scan.sample(p, lambda x, t: jnp.tanh(x), x))
    np.testing.assert_allclose(jitted(jnp.ones(3)), scan.sample(p, lambda x, t: jnp.tanh(x), jnp.ones(3)), rtol=1e-6)


def test_gradients_flow_to_the_starting_noise():
    p, x = plan("dpmpp_2m", 4, SD), jnp.asarray(X_T, jnp.float32)
    loss = jax.jit(lambda x: scan.sample(p, model, x).sum())
    step = 1e-2 * jax.random.normal(jax.random.key(0), x.shape)
    slope = (loss(x + step) - loss(x - step)) / 2
    np.testing.assert_allclose(jnp.vdot(jax.grad(loss)(x), step), slope, rtol=1e-3)


def test_bad_input():
    p = plan("ddim", 3, SD, eta=1.0)
    with pytest.raises(ValueError, match="give key="):
        scan.sample(p, model, X_T)
    with pytest.raises(ValueError, match="noise must be"):
        scan.sample(p, model, X_T, noise=draws(2))
    with pytest.raises(ValueError, match="2 keys"):
        scan.sample(p, model, X_T, key=jax.random.split(jax.random.key(0), 3))


def mixture(x, ve):
    """The exact noise prediction for two Gaussians. `ve`: the level's noise, told in place of a timestep."""
    alpha = 1 / jnp.sqrt(1 + ve**2)
    y, means, spread = x[..., None] / alpha, jnp.array([-1.0, 0.6]), jnp.array([0.5, 0.4])
    variance = spread**2 + ve**2
    weight = jax.nn.softmax(-((y - means) ** 2) / (2 * variance) - jnp.log(variance) / 2, -1)
    clean = (weight * (means * ve**2 + y * spread**2) / variance).sum(-1)
    return (x - alpha * clean) / (alpha * ve)


def fine_levels(settings, steps):
    """Levels from ve = 10 to 0.05, told as ve itself."""
    levels = [Level.from_ve(float(s), float(s)) for s in reference.karras(0.05, 10.0, steps + 1)]
    return Schedule(tuple(zip(levels[:-1], levels[1:], strict=True)), levels[0].sigma, levels[-1], lambda ve: ve)


SECOND = functools.partial(dpmpp_2m, lower_order_final=False)


@pytest.mark.parametrize(("solver", "order"), [(euler, 1), (ddim, 1), (SECOND, 2), (heun, 2)])
def test_order_of_convergence(solver, order):
    """On a mixture of two Gaussians the error falls with the step count to the order claimed."""
    solve = jax.jit(lambda table, x: scan.run(table, mixture, x))

    def end(solver, steps):
        p = plan(Sampler(solver, fine_levels), steps, SD)
        return np.asarray(solve(p.table(512, np.float64), np.linspace(-2, 2, 9))) / p.alpha[-1]

    with jax.enable_x64(True):
        truth = end(SECOND, 512) + (end(SECOND, 512) - end(SECOND, 256)) / 3  # Richardson
        errors = [np.abs(end(solver, n) - truth).max() for n in (24, 48, 96)]
    assert np.log2(errors[1] / errors[2]) == pytest.approx(order, abs=0.2), errors
    assert np.log2(errors[0] / errors[1]) == pytest.approx(order, abs=0.3), errors


@pytest.mark.parametrize(
    ("model", "told"),
    [
        (
            lambda x, t: x[..., :1],
            r"model must give an array of the shape of x, \(1, 2, 2, 4\), not float32\[1, 2, 2, 1\]",
        ),
        (lambda x, t: None, "model must give an array .* not None"),
        (lambda x, t: {"sample": x}, "model must give an array .* not {1 entries}"),
    ],
)
def test_what_a_network_gives_is_checked(model, told):
    with pytest.raises(ValueError, match=told):
        jax.eval_shape(lambda x: scan.sample(plan("euler", 2, {}), model, x), jnp.zeros((1, 2, 2, 4)))


def test_noise_that_is_none_is_told():
    for x_T in (None, "x"):
        with pytest.raises(ValueError, match="x_T must be an array of numbers"):
            scan.sample(plan("euler", 2, {}), lambda x, t: x, x_T)
