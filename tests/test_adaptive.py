"""The adaptive solver: its error obeys the tolerance, images do not depend on each other, and failures show."""

from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import mixture
from sdjax.diffusion.adaptive import dpm_adaptive
from tests import reference
from tests.reference import SD, SHAPE, ZERO_SNR, toy

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
    """On the mixture with its exact score, against a fine solution of the ODE; finer costs more evaluations."""
    x_T = np.random.default_rng(1).standard_normal((16, mixture.DIMENSION))
    with jax.enable_x64(True):
        truth, runs = mixture.flow(x_T * VE[-1], VE[-1], VE[0]), []
        for rtol in (1e-1, 1e-2, 1e-3, 1e-4):
            runs.append(dpm_adaptive(exact("epsilon"), x_T, SD, order=order, rtol=rtol, atol=rtol / 10))
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


@pytest.mark.parametrize("options", [{}, {"order": 2, "eta": 0.8}])
def test_an_image_does_not_depend_on_its_neighbours(options):
    """Its latents, steps and rejections in a batch are those it has alone, though the other is hard to please."""
    key = jax.random.key(3)
    x_T = np.concatenate([X_T, 3.0 * X_T])
    run = jax.jit(lambda x, keys: dpm_adaptive(network, x, SD, key=keys, h_init=1.0, **options))
    keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(jnp.arange(4))
    together = run(x_T, keys)
    assert len({(int(a), int(r)) for a, r in zip(together.accepted, together.rejected, strict=True)}) > 1
    for i in range(4):
        alone = run(x_T[i : i + 1], keys[i : i + 1])
        np.testing.assert_allclose(together.latents[i], alone.latents[0], rtol=2e-5, atol=2e-5)
        for count in ("accepted", "rejected", "evaluations"):
            assert int(getattr(together, count)[i]) == int(getattr(alone, count)[0])


def test_noise_comes_from_the_key_and_stays_on_its_path():
    """One key for the batch is a key per image; another is another picture; eta 0 needs none."""
    run = jax.jit(lambda key: dpm_adaptive(network, X_T, SD, eta=1.0, key=key).latents)
    one, other = run(jax.random.key(0)), run(jax.random.key(1))
    per_image = jax.vmap(lambda i: jax.random.fold_in(jax.random.key(0), i))(jnp.arange(2))
    np.testing.assert_array_equal(one, run(per_image))
    assert np.abs(one - other).max() > 0.1
    with pytest.raises(ValueError, match="give key="):
        dpm_adaptive(network, X_T, SD, eta=1.0)


def test_a_bad_number_stops_its_own_image():
    """NaN from the network below some noise: that image ends as NaN, at once; the other is what it is alone."""
    poisoned = jnp.array([True, False])[:, None, None, None]

    def model(x, t):
        return jnp.where(poisoned & (t < 500.0)[:, None, None, None], jnp.nan, network(x, t))

    healthy, out = dpm_adaptive(network, X_T, SD), dpm_adaptive(model, X_T, SD)
    assert out.finished.tolist() == [False, True] and int(out.rejected[0]) <= int(healthy.rejected[0]) + 1
    assert int(out.accepted[0]) < int(healthy.accepted[0]) and np.isnan(out.latents[0]).all()
    np.testing.assert_allclose(out.latents[1], healthy.latents[1], rtol=2e-5, atol=2e-5)


def test_a_run_that_takes_too_long_is_given_up():
    out = dpm_adaptive(network, X_T, SD, max_steps=5)
    assert not out.finished.any() and (out.accepted + out.rejected == 5).all() and np.isnan(out.latents).all()
    assert dpm_adaptive(
        network, X_T, SD, max_steps=int(dpm_adaptive(network, X_T, SD).accepted.max()) + 9
    ).finished.all()


def test_it_goes_from_and_to_the_noise_asked_for():
    """Levels of a network that says where it is asked; zero terminal SNR starts at its last trace of signal."""
    seen = []

    def model(x, t):
        jax.debug.callback(lambda t: seen.append(float(t)), t[0])
        return network(x, t)

    def visited(config, **ends):
        seen.clear()
        assert dpm_adaptive(model, X_T, config, **ends).finished.all()
        jax.effects_barrier()
        return max(seen), min(seen)

    top, bottom = (float(np.interp(np.log(ve), np.log(VE), np.arange(1000))) for ve in (9.0, 0.2))
    assert visited(SD)[0] == 999.0 and visited(ZERO_SNR)[0] == 999.0
    noisiest, cleanest = visited(SD, sigma_max=9.0, sigma_min=0.2)
    assert noisiest == pytest.approx(top, abs=1e-2) and cleanest > bottom


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"order": 4}, "order must be 2 or 3"),
        ({"rtol": 0.0}, "rtol must be a number > 0"),
        ({"atol": -1.0}, "atol must be a number > 0"),
        ({"h_init": float("nan")}, "h_init must be a number > 0"),
        ({"accept_safety": 0.0}, "accept_safety must be a number > 0"),
        ({"eta": -0.1}, "eta must be a number >= 0"),
        ({"icoeff": float("inf")}, "pcoeff, icoeff and dcoeff must be finite"),
        ({"max_steps": 0}, "max_steps must be 1 or more"),
        ({"sigma_min": 20.0}, "must be 0 < sigma_min < sigma_max, not 20 and 14.6"),
    ],
)
def test_numbers_out_of_range(options, message):
    with pytest.raises(ValueError, match=message):
        dpm_adaptive(network, X_T, SD, key=jax.random.key(0), **options)
