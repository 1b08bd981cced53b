"""Every solver: its matrix against itself run step by step, its plans, and one compilation for all."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sdjax.diffusion import scan
from sdjax.diffusion.guidance import classifier_free
from sdjax.diffusion.plan import plan
from sdjax.diffusion.prediction import coefficients
from sdjax.diffusion.samplers import SAMPLERS
from sdjax.diffusion.table import Tape
from tests.reference import SD, SHAPE, toy

CLIPS = {**SD, "clip_sample": True, "thresholding": False, "clip_sample_range": 0.8}
PREDICTIONS = ("epsilon", "v_prediction", "sample")
STOCHASTIC = {"eta", "s_churn", "s_noise"}
X_T = np.random.default_rng(0).standard_normal(SHAPE)


class Eager(Tape):
    """A tape that evaluates at once: a solver on it is the plain step-by-step loop, in float64."""

    def start(self, x_T, noise):
        self.x_T, self.noise = self.x_T.weights[0] * x_T, iter(noise)
        return self

    def denoise(self, x, level):
        self.rows.append(None)
        c_skip, c_out = coefficients(self.prediction, level)
        return c_skip * x + c_out * toy(np, x, level.t)

    def draw(self, here=None, there=None):
        return next(self.noise)

    def clip(self, x):
        return np.clip(x, -self.bound.limit, self.bound.limit)

    def finish(self, x, level):
        raise Stop(x)


class Stop(Exception):
    """Carries a step-by-step run's result out of `plan`."""


def step_by_step(monkeypatch, noise, *args, **options):
    """The result of `plan`'s solver with its own tape replaced by an eager one."""
    with monkeypatch.context() as patch:
        patch.setattr("sdjax.diffusion.plan.Tape", lambda *a, **k: Eager(*a, **k).start(X_T, noise))
        with pytest.raises(Stop) as stopped:
            plan(*args, **options)
    return stopped.value.args[0]


run64 = jax.jit(lambda table, noise: scan.run(table, lambda x, t: toy(jnp, x, t), X_T, None, noise))


def config_for(name, prediction):
    """A config that the sampler can use."""
    config = {**SD, "prediction_type": prediction}
    return {**config, "final_sigmas_type": "sigma_min"} if name == "dpm_solver" else config


def plan_or_none(name, steps, config, schedule, **options):
    """None where the sampler says that it cannot, by a ValueError."""
    try:
        return plan(name, steps, config, schedule, **options)
    except ValueError as error:
        assert any(word in str(error) for word in ("step", "schedule", "prediction", "timestep")), error
        return None


@pytest.mark.parametrize("name", list(SAMPLERS))
def test_matrix_equals_step_by_step(name, monkeypatch):
    """In float64 to 1e-10, for every prediction type, schedule convention and step count that it takes."""
    made = 0
    with jax.enable_x64(True):
        for prediction in PREDICTIONS:
            for schedule, steps in [("leading", 2), ("trailing", 5), ("linspace", 9), ("karras", 20), (None, 50)]:
                args = (name, steps, config_for(name, prediction), schedule)
                if (p := plan_or_none(*args)) is None:
                    continue
                made += 1
                noise = np.random.default_rng(steps).standard_normal((p.draws, *SHAPE))
                expected = step_by_step(monkeypatch, noise, *args)
                padded = np.concatenate([noise, np.zeros((256 - p.draws, *SHAPE))])
                ours = np.asarray(run64(p.table(256, np.float64), padded))
                assert np.abs(ours - expected).max() <= 1e-10 * np.abs(expected).max(), args[1:]
    assert made >= 8


@pytest.mark.parametrize("name", list(SAMPLERS))
def test_plans_are_exact_or_say_why_not(name):
    """A plan checks itself when made; one that is not exact for a constant prediction names its reason."""
    exact = 0
    for steps in (3, 10, 30):
        for schedule in ("leading", "trailing", "karras"):
            p = plan_or_none(name, steps, config_for(name, "epsilon"), schedule)
            exact += p is not None and not p.inexact
            assert p is None or len(p.inexact) != 1
    assert exact >= 3 or name in ("lcm", "tcd")


def test_one_compilation_for_everything():
    """All solvers x 1 .. 64 evaluations x guidance scales x keys x prompts, x one shape: traced once."""
    traces = []

    def network(x, t):
        traces.append(1)
        return toy(jnp, x, t)

    @jax.jit
    def follow(table, x, keys, scale, prompt):
        guided = classifier_free(lambda x, t: network(x, t) + jnp.concatenate([0 * prompt, prompt]), scale)
        return scan.run(table, guided, x, keys)

    x = jnp.asarray(X_T, jnp.float32)
    first, runs = None, 0
    for name in SAMPLERS:
        for steps in (1, 2, 3, 8, 17, 31, 64):
            if (p := plan_or_none(name, steps, config_for(name, "epsilon"), None)) is None or p.rows > 257:
                continue
            for seed, scale in enumerate((1.0, 5.0, 12.0)):
                keys = scan.keys_per_image(jax.random.key(seed), SHAPE[0])
                prompt = jax.random.normal(jax.random.key(seed), SHAPE)
                out = follow(p.table(256), x, keys, jnp.full(SHAPE[0], scale), prompt)
                first = first or len(traces)
                runs += 1
        assert np.isfinite(out).all(), name
    assert len(traces) == first and runs >= 15 * len(SAMPLERS)


def test_unknown_options_and_names():
    with pytest.raises(ValueError, match="sampler euler has no option 'order'"):
        plan("euler", 5, SD, order=2)
    with pytest.raises(ValueError, match="write sampler='dpmpp_2m'"):
        plan("dpmpp2m", 5, SD)
