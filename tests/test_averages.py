"""Averages: golden numbers of TRAINING.md section 14, and averages of other widths made afterwards."""

import jax.numpy as jnp
import numpy as np
import pytest

from sdjax.core.errors import CheckpointError
from sdjax.train.averages import Decay, PowerFunction, combination, moved, reconstruct, solved, write_snapshot


@pytest.mark.parametrize(
    "width, power",
    [(0.01, 96.994898), (0.05, 16.9721986), (0.10, 6.9372039), (0.15, 3.5578688), (0.20, 1.8262138), (0.25, 0.7198240)],
)
def test_the_power_of_a_width(width, power):
    """Number 6, and equation 3 itself."""
    g = PowerFunction(width).power
    assert g == pytest.approx(power, rel=1e-7)
    assert np.sqrt((g + 1) / ((g + 2) ** 2 * (g + 3))) == pytest.approx(width, rel=1e-9)


@pytest.mark.parametrize(
    "width, kept",
    [
        (0.05, {1: 0.0, 2: 3.889e-6, 10: 0.150535, 100: 0.834747, 1000: 0.982180, 10_000: 0.998204}),
        (0.10, {1: 0.0, 2: 0.004080, 10: 0.433325, 100: 0.923327, 1000: 0.992090, 10_000: 0.999207}),
    ],
)
def test_what_an_update_keeps(width, kept):
    """Number 7: 1 - weight at step t, in float32."""
    for t, b in kept.items():
        assert 1 - float(PowerFunction(width).weight(jnp.float32(t - 1))) == pytest.approx(b, abs=6e-7)


def test_a_decays_warm_up():
    """TRAINING.md 3.1: Tensorflow's rule, n from 0."""
    kept = [1 - float(Decay(0.99).weight(jnp.float32(n))) for n in (0, 1, 10, 100, 10_000)]
    assert kept == pytest.approx([0.1, 2 / 11, 11 / 20, 101 / 110, 0.99], abs=1e-6)
    updates = [2, 10, 100, 1000]  # number 9: diffusers counts one update less, from the second one on
    kept = [1 - float(Decay(0.9999).weight(jnp.float32(n - 1))) for n in updates]
    assert kept == pytest.approx([0.181818, 0.526316, 0.917431, 0.991080], abs=1e-6)


def test_an_average_is_float32_and_moves_where_bfloat16_stands():
    """Number 13."""
    assert jnp.bfloat16(0.9999) == 1.0 and jnp.bfloat16(1) + jnp.bfloat16(0.003) == 1.0
    average = moved({"p": jnp.ones(1)}, {"p": jnp.full(1, 2.0, jnp.bfloat16)}, jnp.float32(0.003))
    assert average["p"].dtype == jnp.float32 and float(average["p"][0]) == pytest.approx(1.003)
    still = moved({"p": jnp.full(1, 0.1)}, {"p": jnp.full(1, 0.1)}, jnp.float32(0.3))
    assert float(still["p"][0]) == float(jnp.float32(0.1))


def test_the_weights_of_snapshots():
    """Number 8."""
    kept = [(t, width) for t in range(1, 9) for width in (0.05, 0.10)]
    x = solved(kept, (8, 0.15))
    assert x.sum() == pytest.approx(0.9947739, abs=1e-7)
    assert combination(kept, (8, 0.15))[-4:] == pytest.approx([-0.085808, 0.198664, -0.173043, 0.940654], abs=1e-6)
    assert combination(kept, (8, 0.05))[-2:] == pytest.approx([1, 0], abs=1e-9)  # one that was kept is itself


def test_the_product_is_the_integral_of_two_profiles():
    """<a, b> against the integral over time of the two weights, (g + 1) u^g / t^(g + 1) up to t."""
    kept, u = [(5, 0.05), (8, 0.10), (7, 0.20)], np.linspace(0, 8, 400_001)

    def profile(t, width):
        g = PowerFunction(width).power
        return np.where(u <= t, (g + 1) * u**g / t ** (g + 1), 0.0)

    profiles = [profile(*one) for one in kept]
    a = np.array([[np.trapezoid(p * q, u) for p in profiles] for q in profiles])
    b = np.array([np.trapezoid(p * profile(8, 0.15), u) for p in profiles])
    np.testing.assert_allclose(solved(kept, (8, 0.15)), np.linalg.solve(a, b), rtol=1e-4)


def test_an_average_of_another_width_is_made_afterwards(tmp_path):
    """A walk of 400 steps with snapshots at every 50: the average of width 0.15, which was kept for comparison."""
    rng = np.random.default_rng(0)
    averages = {width: PowerFunction(width) for width in (0.05, 0.10, 0.15)}
    p, held = np.zeros(50), {width: np.ones(50) for width in averages}  # what they begin as is forgotten
    for n in range(400):
        p = p + rng.standard_normal(50)
        for width, one in averages.items():
            held[width] = held[width] + float(one.weight(jnp.float32(n))) * (p - held[width])
        if (n + 1) % 50 == 0:
            for width in (0.05, 0.10):
                write_snapshot(tmp_path, averages[width], {"a": {"kernel": held[width].astype(np.float32)}}, n + 1)
        if n + 1 == 200:
            at_200 = held[0.15].copy()
    made = reconstruct(tmp_path, 0.15)["a"]["kernel"]
    assert made.dtype == np.float32
    assert np.linalg.norm(made - held[0.15]) < 0.1 * np.linalg.norm(held[0.10] - held[0.15])
    np.testing.assert_allclose(reconstruct(tmp_path, 0.10)["a"]["kernel"], held[0.10], rtol=1e-5)
    earlier = reconstruct(tmp_path, 0.15, step=200)["a"]["kernel"]
    assert np.linalg.norm(earlier - at_200) < 0.02 * np.linalg.norm(at_200)
    assert len(list((tmp_path / "snapshots").iterdir())) == 16


def test_snapshots_that_cannot_be_used(tmp_path):
    with pytest.raises(FileNotFoundError, match="holds no snapshot"):
        reconstruct(tmp_path, 0.1)
    path = write_snapshot(tmp_path, PowerFunction(0.1), {"a": np.ones(3)}, 10)
    with pytest.raises(FileNotFoundError, match="no snapshot of the first 9 steps"):
        reconstruct(tmp_path, 0.1, step=9)
    with pytest.raises(ValueError, match="relative width must be from"):
        reconstruct(tmp_path, 0.5)
    (path.parent / "copy.safetensors").write_bytes(path.read_bytes())
    with pytest.raises(ValueError, match="two snapshots are of the same step"):
        reconstruct(tmp_path, 0.15)
    (path.parent / "copy.safetensors").write_bytes(path.read_bytes()[:40])
    with pytest.raises(CheckpointError, match="copy.safetensors is no snapshot, or damaged"):
        reconstruct(tmp_path, 0.15)


@pytest.mark.parametrize("make, value", [(Decay, 1.0), (Decay, -0.1), (PowerFunction, 0.0), (PowerFunction, 0.29)])
def test_what_is_no_average_is_refused(make, value):
    with pytest.raises(ValueError, match="an average's"):
        make(value)
