"""The training loop: it learns, it resumes exactly, it stops at a NaN, it refuses another run's folder."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from optax import contrib

from sdjax.train.loop import Diverged, fit, restore
from sdjax.train.state import TrainState, Trapezoid, make_optimiser, make_step


def loss(params, batch, key):
    noise = 0.01 * jax.random.normal(key, batch.shape)
    return jnp.mean(jnp.square(batch @ params["layer"]["kernel"] + params["layer"]["bias"] - 2 * batch - 1 + noise))


def batch(n: int) -> np.ndarray:
    return np.random.default_rng(n).standard_normal((16, 3)).astype(np.float32)


def run(folder, steps: int, *, kind: str = "muon", batches=batch, total: int = 40) -> TrainState:
    params = {"layer": {"kernel": jnp.zeros((3, 3)), "bias": jnp.zeros(3)}}
    optimiser = make_optimiser(kind)
    state = TrainState.create(params, optimiser)
    step = make_step(loss, optimiser, ema_decay=0.9)
    return fit(
        folder, state, step, batches,
        Trapezoid(0.05, total, 2 * total // 5, warmup=5),
        steps=steps, seed=0, settings={"kind": kind}, every=10, save_seconds=0, report=lambda line: None,
    )  # fmt: skip


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_it_learns(tmp_path, kind):
    state = run(tmp_path, 200, kind=kind, total=200)
    assert float(loss(state.average, batch(10**6), jax.random.key(1))) < 0.2
    assert int(state.step) == 200


def test_a_resumed_run_equals_an_unbroken_one(tmp_path):
    whole = run(tmp_path / "whole", 40)
    run(tmp_path / "broken", 20)
    resumed = run(tmp_path / "broken", 40)
    for ours, theirs in zip(jax.tree.leaves(resumed), jax.tree.leaves(whole), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_restore_gives_the_saved_state(tmp_path):
    state = run(tmp_path, 20)
    blank = jax.tree.map(jnp.zeros_like, state)
    np.testing.assert_array_equal(restore(tmp_path, blank).average["layer"]["kernel"], state.average["layer"]["kernel"])
    with pytest.raises(FileNotFoundError, match="no checkpoint there"):
        restore(tmp_path / "empty", blank)


def test_a_nan_stops_and_keeps_the_last_good_state(tmp_path):
    def poisoned(n: int) -> np.ndarray:
        return batch(n) * (np.nan if n >= 25 else 1)

    with pytest.raises(Diverged, match="at step 26; last good state: step 25"):
        run(tmp_path, 40, batches=poisoned)
    assert int(run(tmp_path, 30).step) == 30


def test_another_runs_folder_is_refused(tmp_path):
    run(tmp_path, 10)
    with pytest.raises(ValueError, match="other settings \\(kind\\)"):
        run(tmp_path, 20, kind="adamw")


def test_the_rate_rises_stays_and_falls():
    assert [Trapezoid(0.5, 40, 10, warmup=5)(n) for n in (0, 1, 5, 30, 35, 39)] == [0, 0.1, 0.5, 0.5, 0.25, 0.05]
    assert Trapezoid(0.5, 40, 0, warmup=5)(10**6) == 0.5


def test_muon_on_stacks_equals_muon_on_each_kernel():
    """Two kernels of one size, one of another, and what is no kernel."""
    rng = np.random.default_rng(0)
    shapes = {"a": (3, 3, 4, 8), "b": (36, 8), "c": (8, 36)}
    gradient = {
        name: {"kernel": jnp.asarray(rng.standard_normal(shape), jnp.float32)} for name, shape in shapes.items()
    }
    gradient["a"]["bias"] = jnp.ones(8)
    stacked = make_optimiser("muon")
    got, _ = stacked.update(gradient, stacked.init(gradient), gradient)
    norm = optax.tree.norm(gradient)
    for name, shape in shapes.items():
        matrix = (gradient[name]["kernel"] / norm).reshape(-1, shape[-1])
        alone = contrib.muon(1.0)
        want, _ = alone.update(matrix, alone.init(matrix), matrix)
        np.testing.assert_allclose(got[name]["kernel"].reshape(matrix.shape), want, atol=1e-5)
    np.testing.assert_allclose(got["a"]["bias"], -0.1, rtol=1e-3)  # Adam's first update is the sign


def test_unknown_optimiser():
    with pytest.raises(ValueError, match="known: adamw, muon"):
        make_optimiser("sgd")
