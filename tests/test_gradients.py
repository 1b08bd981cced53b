"""Gradients through a whole run: right, and frugal."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import sdjax
from sdjax.diffusion import scan
from sdjax.diffusion.guidance import classifier_free
from sdjax.diffusion.plan import plan
from sdjax.diffusion.plan_batch import stack_plans
from tests.reference import SD, SHAPE, draws, toy

X_T = np.random.default_rng(0).standard_normal(SHAPE)
CLIPPED = {**SD, "clip_sample": True, "clip_sample_range": 0.9}


def loss(the_plan, inputs, noise=None):
    """Of the final latents, with guidance over a network that sees an embedding [b, c]."""

    def model(x, t):
        return toy(jnp, x, t / 1.0 if jnp.ndim(t) == 0 else t[:, None, None, None]) + jnp.tanh(context)[:, None, None]

    context = jnp.concatenate([jnp.zeros_like(inputs["embedding"]), inputs["embedding"]])
    guided = classifier_free(model, inputs["scale"])
    return jnp.sum(jnp.sin(scan.sample(the_plan, guided, inputs["x_T"], noise=noise)))


@pytest.mark.parametrize("case", ["dpmpp_2m", "pndm", "ddim with noise", "clipped", "lanes"])
def test_equal_to_finite_differences(case):
    """With respect to x_T, the embeddings and the guidance scale, in float64, along random directions."""
    plans = {
        "dpmpp_2m": lambda: (plan("dpmpp_2m", 7, SD), None),
        "pndm": lambda: (plan("pndm", 6, {**SD, "prediction_type": "v_prediction"}), None),
        "ddim with noise": lambda: (plan("ddim", 5, SD, eta=1.0), draws(5)),
        "clipped": lambda: (plan("ddim", 5, CLIPPED), None),
        "lanes": lambda: (stack_plans([plan("euler", 4, SD), plan("pndm", 6, SD)]), None),
    }
    rng = np.random.default_rng(1)
    with jax.enable_x64(True):
        the_plan, noise = plans[case]()
        inputs = {"x_T": X_T, "embedding": rng.standard_normal((2, 3)), "scale": np.array([2.5, 1.2])}
        of = jax.jit(lambda inputs: loss(the_plan, inputs, noise))
        grads = jax.jit(jax.grad(of))(inputs)
        for name, value in inputs.items():
            direction = rng.standard_normal(value.shape)
            ends = [of({**inputs, name: value + sign * 1e-6 * direction}) for sign in (1, -1)]
            slope = (ends[0] - ends[1]) / 2e-6
            assert float(jnp.vdot(grads[name], direction)) == pytest.approx(float(slope), rel=1e-6, abs=1e-8), name


def test_memory_does_not_grow_with_the_network():
    """The network's own activations (32 times the latents here) are not stored for each row."""
    up, down = jnp.full((4, 128), 0.1), jnp.full((128, 4), 0.1)

    def scratch(steps):
        p = plan("ddim", steps, SD)
        table = p.table(p.rows - 1)
        of = jax.grad(lambda x: scan.run(table, lambda x, t: jnp.tanh(jnp.tanh(x @ up) @ down), x).sum())
        x = jax.ShapeDtypeStruct((1, 64, 64, 4), jnp.float32)
        return jax.jit(of).lower(x).compile().memory_analysis().temp_size_in_bytes

    latents = 64 * 64 * 4 * 4
    assert scratch(100) - scratch(50) < 12 * 50 * latents


def test_what_the_model_closes_over_may_be_whole_numbers():
    p, x = plan("euler", 3, SD), jnp.asarray(X_T, jnp.float32)

    @jax.jit
    def grad(x, ids):
        table = jnp.arange(12.0).reshape(4, 3) / 12
        return jax.grad(lambda x: scan.sample(p, lambda x, t: jnp.tanh(x) + table[ids][:, None, None], x).sum())(x)

    assert np.isfinite(grad(x, jnp.array([1, 3]))).all()


@pytest.mark.ci
def test_a_pictures_brightness(tiny_checkpoint):
    """README's example: through guidance, the sampler and the VAE, to the noise and to the text; jitted once.

    Along each gradient the brightness rises by its length, as a step to either side measures.
    """
    sd = sdjax.load(tiny_checkpoint)
    six = sd.plan("dpmpp_2m", 6)

    def brightness(x_T, context, scale):
        model = classifier_free(lambda x, t: sd.predict(x, t, context), scale)
        return sd.decode(sdjax.sample(six, model, x_T)).mean()

    inputs = [
        jax.random.normal(jax.random.key(0), (1, 8, 8, 4)),
        sd.encode_prompt(["", "a red circle"]),
        jnp.ones(1) * 5,
    ]
    of, grads = jax.jit(brightness), jax.jit(jax.grad(brightness, argnums=(0, 1)))(*inputs)
    for i, grad in enumerate(grads):
        length = float(jnp.linalg.norm(grad))
        step = 0.004 * float(jnp.linalg.norm(inputs[i])) * grad / length
        ends = [of(*inputs[:i], inputs[i] + sign * step, *inputs[i + 1 :]) for sign in (1, -1)]
        assert float(ends[0] - ends[1]) / (2 * float(jnp.linalg.norm(step))) == pytest.approx(length, rel=0.02), i
