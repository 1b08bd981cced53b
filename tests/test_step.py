"""A step: what it computes, in one piece, in several, on several devices; what is in it and what is not."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from sdjax.core import tree
from sdjax.core.keys import key, settled
from sdjax.train.averages import Decay, PowerFunction
from sdjax.train.mesh import born, device_mesh, leaf_sharding, own_rows, share
from sdjax.train.methods.full import Full
from sdjax.train.objective import mean, picture_keys, size, standard_normal
from sdjax.train.optimisers import Optimiser
from sdjax.train.state import TrainState, evaluated
from sdjax.train.step import make_plain_step, make_step


@dataclass(frozen=True)
class Regression:
    """Noise on the inputs and a frozen map before the one that learns."""

    def draw(self, batch: Mapping[str, Any], key: jax.Array) -> dict[str, Any]:
        return {"keys": picture_keys(key, size(batch)), **batch}

    def loss(self, params: Mapping[str, Any], batch: Mapping[str, Any]) -> tuple[jax.Array, dict[str, jax.Array]]:
        x = batch["x"] + 0.1 * standard_normal(batch["keys"], 0, (3,))
        y = (
            x @ params["frozen"]["layer"]["kernel"] @ params["unet"]["layer"]["kernel"]
            + params["unet"]["layer"]["bias"]
        )
        value, count = mean(jnp.mean(jnp.square(y - batch["y"]), -1), batch)
        return value, {"loss": value, "count": count, "largest": jnp.max(jnp.abs(y))}


def params() -> dict:
    rng = np.random.default_rng(0)
    return {
        "frozen": {"layer": {"kernel": rng.standard_normal((3, 3)).astype(np.float32)}},
        "unet": {"layer": {"kernel": rng.standard_normal((3, 2)).astype(np.float32), "bias": np.ones(2, np.float32)}},
    }


def batch(n: int, b: int = 16, filled: int = 0) -> dict:
    """filled: how many of the pictures, the first ones, only fill up."""
    rng = np.random.default_rng(n)
    x, y = rng.standard_normal((b, 3)).astype(np.float32), rng.standard_normal((b, 2)).astype(np.float32)
    return {"x": x, "y": y, "valid": (np.arange(b) >= filled).astype(np.float32)}


def trained(steps: int = 3, filled: int = 0, **given) -> tuple[TrainState, dict]:
    trainable = Full().start(params(), key(0))
    optimiser = given.pop("optimiser", Optimiser())
    step = make_step(Regression(), Full(), trainable, params(), optimiser, [Decay(0.9), PowerFunction(0.1)], **given)
    state = step.begin(trainable)
    for n in range(steps):
        with settled():
            state, told = step(state, batch(n, filled=filled), key(7), 0.05)
    return jax.device_get(state), jax.device_get(told)


def close(one: Any, other: Any, rtol: float = 1e-5) -> None:
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol, atol=1e-6), one, other)


def test_a_step_is_its_equations():
    """Draw with the step's own key, gradient, clip, AdamW, averages; by hand."""
    p, objective, optimiser = params()["unet"], Regression(), optax.adamw(0.05, weight_decay=0.01, mask=kernels)
    chain = optax.chain(optax.clip_by_global_norm(1.0), optimiser)
    state, decayed, wide = chain.init(p), p, p
    for n in range(3):
        drawn = objective.draw(batch(n), jax.random.fold_in(key(7), n))
        value, g = jax.value_and_grad(lambda p: objective.loss({**params(), "unet": p}, drawn)[0])(p)  # noqa: B023
        updates, state = chain.update(g, state, p)
        p = optax.apply_updates(p, updates)
        decayed = blended(decayed, p, min(0.9, (1 + n) / (10 + n)))
        wide = blended(wide, p, (1 - 1 / (n + 1)) ** (6.9372039 + 1))
    found, told = trained()
    close(found.params["unet"], p)
    close(found.averages["decay_0.9"]["unet"], decayed)
    close(found.averages["width_0.1"]["unet"], wide)
    assert told["loss"] == pytest.approx(float(value), rel=1e-5) and told["count"] == 16
    assert told["gradient_norm"] == pytest.approx(float(optax.tree.norm(g)), rel=1e-5)
    assert found.step == 3 and list(found.params) == ["unet"]


def blended(e: dict, p: dict, b: float) -> dict:
    return jax.tree.map(lambda e, p: b * e + (1 - b) * p, e, p)


def kernels(tree: dict) -> dict:
    return {"layer": {"kernel": True, "bias": False}}


@pytest.mark.parametrize("pieces", [2, 4])
@pytest.mark.parametrize("filled", [0, 11])
def test_a_batch_in_pieces_is_the_batch(pieces, filled):
    """With 11 of 16 only filling up, the pieces count 1 or 2, or none; a mean of means would be another gradient."""
    whole, told = trained(filled=filled)
    cut, cut_told = trained(filled=filled, accumulate=pieces)
    close(cut, whole)
    assert cut_told["count"] == told["count"] == 16 - filled
    assert cut_told["loss"] == pytest.approx(told["loss"], rel=1e-5)
    assert cut_told["gradient_norm"] == pytest.approx(told["gradient_norm"], rel=1e-5)


def test_what_does_not_learn_is_held_once_and_stays():
    trainable = Full().start(params(), key(0))
    step = make_step(Regression(), Full(), trainable, params(), Optimiser(weight_decay=1.0), [Decay(0.9)])
    assert [leaf.shape for leaf in step.frozen] == [(3, 3)]  # and not the U-Net that the trainable one stands for
    np.testing.assert_array_equal(step.frozen[0], params()["frozen"]["layer"]["kernel"])
    state, _ = step(step.begin(trainable), batch(0), key(7), 0.05)
    assert set(tree.flatten(state.params)) == {("unet", "layer", "kernel"), ("unet", "layer", "bias")}
    np.testing.assert_array_equal(step.frozen[0], params()["frozen"]["layer"]["kernel"])


def test_a_state_holds_copies_and_none_twice():
    """Prodigy's and schedule-free's states begin as the parameters, and so do the averages: all of it is donated."""
    p = jax.tree.map(jnp.asarray, {"layer": {"kernel": np.ones((2, 2), np.float32)}})
    for kind in ("prodigy", "schedule_free"):
        step = make_plain_step(
            lambda p, batch, key: jnp.sum(p["layer"]["kernel"] * batch[0]), Optimiser(kind), [Decay(0.9)]
        )
        state = step.begin(p)
        pointers = [leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves(state)]
        assert len(set(pointers)) == len(pointers)
        step(state, np.ones((1, 2, 2), np.float32), key(0), 1.0)
    np.testing.assert_array_equal(p["layer"]["kernel"], 1.0)


def test_one_program_for_every_rate_and_step():
    traced = []

    def loss(p, batch, key):
        traced.append(1)
        return jnp.mean(p["kernel"] * batch)

    step = make_plain_step(loss, Optimiser(), [Decay(0.9)])
    state = step.begin({"kernel": jnp.ones(3)})
    for n in range(4):
        state, _ = step(state, np.ones((2, 3), np.float32), key(0), 0.1 * n)
    assert len(traced) == 1


def test_what_is_shipped():
    state, _ = trained()
    assert evaluated(state, Optimiser()) is state.averages["decay_0.9"]
    bare = dataclasses.replace(state, averages={})
    assert evaluated(bare, Optimiser()) is state.params
    p = {"layer": {"kernel": jnp.ones((2, 2))}}
    free = make_plain_step(lambda p, batch, key: jnp.sum(p["layer"]["kernel"] * batch[0]), Optimiser("schedule_free"))
    state, _ = free(free.begin(p), np.ones((1, 2, 2), np.float32), key(0), 0.1)
    after, _ = free(jax.tree.map(jnp.copy, state), np.ones((1, 2, 2), np.float32), key(0), 0.1)
    x, y = free.evaluated(after)["layer"]["kernel"], after.params["layer"]["kernel"]
    np.testing.assert_allclose(x, 0.85, rtol=1e-5)  # the mean of z = 0.9 and 0.8
    np.testing.assert_allclose(y, 0.845, rtol=1e-5)


def test_what_cannot_be_cut_is_refused():
    with pytest.raises(ValueError, match="accumulate must be at least 1 piece, not 0"):
        trained(accumulate=0)
    with pytest.raises(
        ValueError, match="a batch of 16 cannot be shared by 1 devices in 3 pieces; give a multiple of 3"
    ):
        trained(accumulate=3)
    with pytest.raises(ValueError, match="fsdp=3: the state cannot be cut so often over 1 devices"):
        device_mesh(3)


# ---------------------------------------------------------------------- many devices: see also test_many_devices


def test_where_leaves_lie():
    mesh = jax.sharding.AbstractMesh((2, 4), ("data", "fsdp"))
    specs = {
        (3, 3, 320, 640): (None, None, None, "fsdp"),
        (256, 256): (None, "fsdp"),
        (255, 256): (),
        (65536, 6): (),
        (): (),
        (320,): (),
    }
    assert {shape: tuple(leaf_sharding(shape, mesh).spec) for shape in specs} == specs


def test_one_process_makes_all_rows():
    mesh = device_mesh()
    assert own_rows(mesh, 16) == slice(0, 16)
    shared = share({"x": np.ones((4, 2))}, mesh)
    assert shared["x"].shape == (4, 2)
    made = born(lambda n: {"kernel": jnp.full((4, 4), n)}, mesh, jnp.float32(3))
    np.testing.assert_array_equal(made["kernel"], 3.0)
