"""Optimisers at their real rate, each against another implementation or its own sums in float64; rates."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from optax import contrib

from sdjax.train.optimisers import USUAL, Optimiser
from sdjax.train.rates import Constant, Cosine, Linear, WarmupStableDecay, make_rate

RATES = (0.0, 0.01, 0.03, 0.03, 0.02, 0.01)


def params() -> dict:
    rng = np.random.default_rng(0)
    return {
        "layer": {"kernel": rng.standard_normal((6, 4)).astype(np.float32), "bias": np.ones(4, np.float32)},
        "norm": {"scale": np.full(4, 0.5, np.float32)},
    }


def gradients(n: int) -> dict:
    rng = np.random.default_rng(n + 1)
    return jax.tree.map(lambda p: rng.standard_normal(p.shape).astype(np.float32), params())


def ours(optimiser: Optimiser) -> dict:
    """The parameters after a step at each of RATES, by one program."""
    here, state, update = jax.tree.map(jnp.asarray, params()), optimiser.init(params()), jax.jit(optimiser.update)
    for n, rate in enumerate(RATES):
        here, state = update(gradients(n), state, here, jnp.float32(rate))
    assert update._cache_size() == 1
    return jax.device_get(here)


def optaxs(transformation: optax.GradientTransformation) -> dict:
    """As `ours`, of a transformation that knows the rates as a schedule."""
    here, state = jax.tree.map(jnp.asarray, params()), transformation.init(params())
    for n in range(len(RATES)):
        updates, state = transformation.update(gradients(n), state, here)
        here = optax.apply_updates(here, updates)
    return jax.device_get(here)


def schedule(count: jax.Array) -> jax.Array:
    return jnp.asarray(RATES)[count]


def kernels(tree: dict) -> dict:
    return {"layer": {"kernel": True, "bias": False}, "norm": {"scale": False}}


def clipped(transformation: optax.GradientTransformation) -> optax.GradientTransformation:
    return optax.chain(optax.clip_by_global_norm(1.0), transformation)


def close(one: dict, other: dict) -> None:
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-6, atol=1e-7), one, other)


def test_adamw_is_optaxs():
    want = optaxs(clipped(optax.adamw(schedule, weight_decay=0.01, mask=kernels)))
    close(ours(Optimiser("adamw")), want)
    want = optaxs(optax.adamw(schedule, 0.8, 0.9, 1e-6, weight_decay=0.3))
    close(ours(Optimiser("adamw", b1=0.8, b2=0.9, eps=1e-6, weight_decay=0.3, decay="all", clip=None)), want)


def test_lion_is_optaxs():
    close(ours(Optimiser("lion", decay="all")), optaxs(clipped(optax.lion(schedule, weight_decay=0.01))))


@pytest.mark.parametrize("decay", [0.0, 0.2])
def test_prodigy_is_optaxs(decay):
    """The rates 1, as is usual, and a rise to it; its state, which the rate is part of, is also the same."""
    own = contrib.prodigy(lambda n: 100 * schedule(n), weight_decay=decay, safeguard_warmup=True)
    here, state = jax.tree.map(jnp.asarray, params()), Optimiser("prodigy").init(params())
    optimiser = Optimiser("prodigy", weight_decay=decay, decay="all")
    for n, rate in enumerate(RATES):
        here, state = optimiser.update(gradients(n), state, here, 100 * rate)
    want = optaxs(clipped(own))
    close(jax.device_get(here), want)
    assert np.abs(want["layer"]["kernel"] - params()["layer"]["kernel"]).max() > 1e-6


def test_prodigy_decays_kernels_alone():
    here, state = jax.tree.map(jnp.asarray, params()), Optimiser("prodigy").init(params())
    nothing = jax.tree.map(np.zeros_like, params())
    after, _ = Optimiser("prodigy", weight_decay=100.0).update(nothing, state, here, 1.0)
    assert np.all(np.asarray(after["layer"]["kernel"]) != params()["layer"]["kernel"])
    np.testing.assert_array_equal(after["norm"]["scale"], params()["norm"]["scale"])
    assert not np.isnan(after["layer"]["kernel"]).any()  # optax's own are, before the first gradient


def test_schedule_free_is_its_papers_algorithm():
    """Defazio et al. 2024, algorithm 1, in float64; what is evaluated is x."""
    optimiser = Optimiser("schedule_free", weight_decay=0.1, decay="all", clip=None)
    here, state = jax.tree.map(jnp.asarray, params()), optimiser.init(params())
    for n, rate in enumerate(RATES):
        here, state = optimiser.update(gradients(n), state, here, jnp.float32(rate))
    found = jax.device_get(optimiser.evaluated(state, here))

    def derived(p, *grads):
        x = z = p.astype(np.float64)
        second, weights, most = 0.0, 0.0, 0.0
        for t, (rate, g) in enumerate(zip(RATES, grads, strict=True), 1):
            y = 0.1 * z + 0.9 * x
            second = 0.999 * second + 0.001 * g.astype(np.float64) ** 2
            z = z - rate * (g / (np.sqrt(second / (1 - 0.999**t)) + 1e-8) + 0.1 * y)
            most = max(most, rate)
            weights += most**2
            c = most**2 / weights if weights else 0.0
            x = (1 - c) * x + c * z
        return x

    want = jax.tree.map(derived, params(), *map(gradients, range(len(RATES))))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), found, want)
    assert np.abs(found["layer"]["kernel"] - here["layer"]["kernel"]).max() > 1e-4


def test_adafactor_is_its_papers_algorithm():
    """Shazeer & Stern 2018, algorithm 4, on a kernel that is large enough to be factored, in float64."""
    rng, optimiser = np.random.default_rng(0), Optimiser("adafactor", weight_decay=0.1, clip=None)
    p, row, column = rng.standard_normal((128, 160)), np.zeros(128), np.zeros(160)
    here = {"kernel": jnp.asarray(p, jnp.float32)}
    state = optimiser.init(here)
    for t, rate in enumerate(RATES, 1):
        g = rng.standard_normal((128, 160)).astype(np.float32)
        here, state = optimiser.update({"kernel": jnp.asarray(g)}, state, here, jnp.float32(rate))
        beta, square = 1 - t**-0.8, g.astype(np.float64) ** 2 + 1e-30
        row, column = beta * row + (1 - beta) * square.mean(1), beta * column + (1 - beta) * square.mean(0)
        update = g / np.sqrt(np.outer(row, column) / row.mean())
        update /= max(1.0, np.sqrt(np.mean(update**2)))
        p = p - rate * (update + 0.1 * p)
    np.testing.assert_allclose(here["kernel"], p, rtol=1e-5, atol=1e-5)


def test_muon_on_stacks_equals_muon_on_each_kernel():
    """Two kernels of one size, one of another, and what is no kernel."""
    rng = np.random.default_rng(0)
    shapes = {"a": (3, 3, 4, 8), "b": (36, 8), "c": (8, 36)}
    gradient = {
        name: {"kernel": jnp.asarray(rng.standard_normal(shape), jnp.float32)} for name, shape in shapes.items()
    }
    gradient["a"]["bias"] = jnp.ones(8)
    nothing, optimiser = jax.tree.map(jnp.zeros_like, gradient), Optimiser("muon")
    got, _ = optimiser.update(gradient, optimiser.init(nothing), nothing, 0.5)
    norm = optax.tree.norm(gradient)
    for name, shape in shapes.items():
        matrix = (gradient[name]["kernel"] / norm).reshape(-1, shape[-1])
        alone = contrib.muon(0.5)
        want, _ = alone.update(matrix, alone.init(matrix), matrix)
        np.testing.assert_allclose(got[name]["kernel"].reshape(matrix.shape), want, atol=1e-5)
    np.testing.assert_allclose(got["a"]["bias"], -0.05, rtol=1e-3)  # Adam's first update is the sign


@pytest.mark.parametrize("kind", USUAL)
def test_only_kernels_decay_unless_all_do(kind):
    """Without a gradient nothing but the decay moves a parameter."""
    nothing, rate = jax.tree.map(np.zeros_like, params()), 1000.0 if kind == "prodigy" else 0.01
    for decay in ("kernels", "all"):
        optimiser = Optimiser(kind, weight_decay=10.0, decay=decay)
        after, _ = optimiser.update(nothing, optimiser.init(params()), jax.tree.map(jnp.asarray, params()), rate)
        assert np.all(np.asarray(after["layer"]["kernel"]) != params()["layer"]["kernel"])
        assert np.all((np.asarray(after["norm"]["scale"]) == 0.5) == (decay == "kernels"))


@pytest.mark.parametrize(
    "kind, size", [("adamw", 8), ("lion", 4), ("prodigy", 16), ("schedule_free", 8), ("adafactor", 0.006)]
)
def test_bytes_of_state_per_parameter(kind, size):
    """TRAINING.md section 14, number 12: a convolution of Stable Diffusion's widest."""
    kernel = {"kernel": jax.ShapeDtypeStruct((3, 3, 1280, 1280), jnp.float32)}
    state = jax.eval_shape(Optimiser(kind).init, kernel)
    total = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))
    assert total / kernel["kernel"].size == pytest.approx(size, rel=0.05)


@pytest.mark.parametrize(
    "given, told",
    [
        ({"kind": "adamx"}, "optimiser 'adamx' is unknown; nearest: 'adamw'; known: adamw, adafactor"),
        ({"decay": "kernel"}, "decay 'kernel' is unknown; nearest: 'kernels'"),
        ({"b1": 1.0}, "b1 must be from 0 to below 1, not 1.0"),
        ({"weight_decay": -0.1}, "weight_decay must be from 0"),
        ({"weight_decay": float("nan")}, "weight_decay must be from 0"),
        ({"clip": 0.0}, "clip must be a norm above 0"),
        ({"kind": "schedule_free", "b1": 0.0}, "schedule_free needs a b1 above 0"),
    ],
)
def test_what_is_no_optimiser_is_refused(given, told):
    with pytest.raises(ValueError, match=told):
        Optimiser(**given)


def test_optimisers_of_the_same_fields_are_the_same():
    assert Optimiser() == Optimiser("adamw", b1=0.9) and hash(Optimiser()) == hash(Optimiser(b2=0.999))


# ---------------------------------------------------------------------- rates


def test_rates():
    stable = WarmupStableDecay(0.5, 40, 10, warmup=5)
    assert [stable(n) for n in (0, 1, 5, 30, 35, 39)] == [0, 0.1, 0.5, 0.5, 0.25, 0.05]
    assert WarmupStableDecay(0.5, 40, 0, warmup=5)(10**6) == 0.5
    assert [Constant(0.5, 5)(n) for n in (0, 1, 5, 10**6)] == [0, 0.1, 0.5, 0.5]
    assert [Linear(0.5, 25, 5)(n) for n in (0, 1, 5, 15, 25, 99)] == pytest.approx([0, 0.1, 0.5, 0.25, 0, 0])
    assert [Cosine(0.5, 25, 5)(n) for n in (1, 5, 10, 15, 25, 99)] == pytest.approx(
        [0.1, 0.5, 0.25 * (1 + 2**-0.5), 0.25, 0, 0]
    )


def test_a_cosine_is_optaxs():
    want = optax.warmup_cosine_decay_schedule(0.0, 0.3, 4, 20)
    np.testing.assert_allclose([make_rate("cosine", 0.3, 20, 4)(n) for n in range(25)], [want(n) for n in range(25)],
                               atol=1e-7)  # fmt: skip


@pytest.mark.parametrize(
    "given, told",
    [
        (("cosin", 0.1, 10), "the rate 'cosin' is unknown; nearest: 'cosine'"),
        (("constant", 0.0, 10), "must be above 0"),
        (("linear", float("nan"), 10), "must be above 0"),
        (("linear", 0.1, 10, 10), "a warm-up of 10 steps does not fit into 10 steps"),
    ],
)
def test_what_is_no_rate_is_refused(given, told):
    with pytest.raises(ValueError, match=told):
        make_rate(*given)
    assert make_rate("warmup_stable_decay", 0.1, 10)(9) == 0.05
