"""The adaptive solver: its error obeys the tolerance, images do not depend on each other, and failures show."""

from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import mixture
from sdjax.diffusion.adaptive import dpm_adaptive
from tests import reference
from tests.reference import SD, SHAPE, toy

X_T = np.random.default_rng(0).standard_normal(SHAPE).astype(np.float32)
VE = reference.clamped_sigmas(SD)


def network(x, t):
    """The toy, told a timestep per image."""
    return jax.vmap(lambda x, t: toy(jnp, x[None], t)[0])(x, t)


def exact(prediction):
    """A perfect network of the Gaussian mixture, [b, d]."""

    def model(x, t):
        ve = jnp.exp(jnp.interp(t, jnp.arange(1000.0), jnp.log(VE)))
        return jax.vmap(lambda x, ve: mixture.network(x[None], ve, prediction)[0])(x, ve)

    return model


@pytest.mark.parametrize("order", [2, 3])
def test_error_falls_with_the_tolerance(order):
    """On the mixture with its exact score, against a fine solution of the ODE; finer costs more evaluations.

    The result is alpha x0 + sigma e at the last level, as that of every sampler.
    """
    x_T = np.random.default_rng(1).standard_normal((16, mixture.DIMENSION))
    with jax.enable_x64(True):
        truth = mixture.flow(x_T * VE[-1], VE[-1], VE[0]) / np.sqrt(1 + VE[0] ** 2)
        run = jax.jit(lambda rtol: dpm_adaptive(exact("epsilon"), x_T, SD, order=order, rtol=rtol, atol=rtol / 10))
        runs = [run(rtol) for rtol in (1e-1, 1e-2, 1e-3, 1e-4)]
        errors = [float(jnp.abs(one.latents - truth).max()) for one in runs]
    assert all(one.finished.all() for one in runs)
    assert all(fine < coarse / 3 for coarse, fine in pairwise(errors)) and errors[-1] < 1e-3
    assert all((coarse.evaluations < fine.evaluations).all() for coarse, fine in pairwise(runs[1:]))


def test_predictions_of_one_network_are_one_run():
    """Noise and velocity as they follow from the same exact denoiser: the same attempts, the same latents."""
    x_T = np.random.default_rng(1).standard_normal((8, mixture.DIMENSION))
    with jax.enable_x64(True):
        by_noise, by_velocity = (
            dpm_adaptive(exact(prediction), x_T, {**SD, "prediction_type": prediction})
            for prediction in ("epsilon", "v_prediction")
        )
    np.testing.assert_allclose(by_velocity.latents, by_noise.latents, rtol=1e-9, atol=1e-9)
    np.testing.assert_array_equal(by_velocity.accepted, by_noise.accepted)
    np.testing.assert_array_equal(by_velocity.rejected, by_noise.rejected)


@jax.jit
def plain(x):
    return dpm_adaptive(network, x, SD, h_init=1.0)


@jax.jit
def noisy(x, key):
    return dpm_adaptive(network, x, SD, h_init=1.0, order=2, eta=0.8, key=key)


@pytest.mark.parametrize(("run", "bound"), [(lambda x, key: plain(x), 1e-5), (noisy, 5e-3)], ids=["plain", "noisy"])
def test_an_image_does_not_depend_on_its_neighbours(run, bound):
    """Its latents, steps and rejections in a batch are those it has alone, though the other is harder to please.

    The noise of a step hangs on where it ends, which rounding moves along a rough path.
    """
    x_T = np.concatenate([X_T[:1], 3.0 * X_T[1:]])
    keys = jax.vmap(lambda i: jax.random.fold_in(jax.random.key(3), i))(jnp.arange(2))
    together, alone = run(x_T, keys), [run(x_T[i : i + 1], keys[i : i + 1]) for i in range(2)]
    assert int(together.evaluations[0]) != int(together.evaluations[1])
    for i, one in enumerate(alone):
        assert np.abs(together.latents[i] - one.latents[0]).max() <= bound * np.abs(one.latents).max()
        for count in ("accepted", "rejected", "evaluations"):
            assert int(getattr(together, count)[i]) == int(getattr(one, count)[0])


def test_noise_comes_from_the_key():
    """One key for the batch is a key per image; another is another picture; eta 0 needs none."""
    one, other = (noisy(X_T, jax.random.key(seed)).latents for seed in (0, 1))
    per_image = jax.vmap(lambda i: jax.random.fold_in(jax.random.key(0), i))(jnp.arange(2))
    np.testing.assert_array_equal(one, noisy(X_T, per_image).latents)
    assert np.abs(one - other).max() > 0.1
    with pytest.raises(ValueError, match="give key="):
        dpm_adaptive(network, X_T, SD, eta=1.0)


def test_a_bad_number_stops_its_own_image():
    """NaN from the network below some noise: that image ends as NaN, at once; the other is what it is alone."""
    poisoned = jnp.array([True, False])[:, None, None, None]

    def model(x, t):
        return jnp.where(poisoned & (t < 500.0)[:, None, None, None], jnp.nan, network(x, t))

    healthy, out = plain(X_T), dpm_adaptive(model, X_T, SD, h_init=1.0)
    assert out.finished.tolist() == [False, True] and int(out.rejected[0]) <= int(healthy.rejected[0]) + 1
    assert int(out.accepted[0]) < int(healthy.accepted[0]) and np.isnan(out.latents[0]).all()
    np.testing.assert_allclose(out.latents[1], healthy.latents[1], rtol=2e-5, atol=2e-5)


def test_a_run_that_takes_too_long_is_given_up():
    """At the cap an image is not done and says so; an image that needs less than that is not touched."""
    whole = plain(np.concatenate([X_T[:1], 3.0 * X_T[1:]]))
    attempts = (whole.accepted + whole.rejected).tolist()
    out = dpm_adaptive(network, np.concatenate([X_T[:1], 3.0 * X_T[1:]]), SD, h_init=1.0, max_steps=min(attempts))
    done = [n == min(attempts) for n in attempts]
    assert sorted(done) == [False, True] and out.finished.tolist() == done
    assert np.isnan(out.latents).all((1, 2, 3)).tolist() == [not d for d in done]


def test_it_goes_from_and_to_the_noise_asked_for():
    """Timesteps that a network sees on the way from sigma 9 to 0.2 are theirs, and the first is that of 9."""
    seen = []

    def model(x, t):
        jax.debug.callback(lambda t: seen.append(float(t)), t[0])
        return network(x, t)

    assert dpm_adaptive(model, X_T, SD, sigma_max=9.0, sigma_min=0.2).finished.all()
    jax.effects_barrier()
    top, bottom = (float(np.interp(np.log(ve), np.log(VE), np.arange(1000))) for ve in (9.0, 0.2))
    assert max(seen) == pytest.approx(top, abs=1e-2) and min(seen) > bottom


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"order": 4}, "order must be 2 or 3"),
        ({"rtol": 0.0}, "rtol must be a number > 0"),
        ({"atol": -1.0}, "atol must be a number > 0"),
        ({"h_init": float("nan")}, "h_init must be a number > 0"),
        ({"accept_safety": 0.0}, "accept_safety must be a number > 0"),
        ({"eta": -0.1}, "eta must be a number >= 0"),
        ({"icoeff": float("inf")}, "icoeff must be a finite number"),
        ({"max_steps": 0}, "max_steps must be a whole number in 1 .. 1000000, not 0"),
        ({"sigma_min": 20.0}, "must be 0 < sigma_min < sigma_max, not 20 and 14.6"),
    ],
)
def test_numbers_out_of_range(options, message):
    with pytest.raises(ValueError, match=message):
        dpm_adaptive(network, X_T, SD, key=jax.random.key(0), **options)
