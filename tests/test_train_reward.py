"""Reward fine-tuning: the gradient through the sampler is right, whole and in part, and frugal."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.train import rewards
from sdjax.diffusion import scan
from sdjax.diffusion.plan import plan
from sdjax.train.losses import reward
from sdjax.train.losses.denoising import unet_answer
from sdjax.train.losses.reward import DRAWS, NOISE, Reward
from sdjax.train.objective import standard_normal
from tests import training
from tests.reference import SD
from tests.test_guiders import euler_cfg_pp

ZEROS = training.architecture(zeros_for_empty=True)
KEY = jax.random.key(0)


def toy(architecture, params, x, t, conditions):
    """A network of a few numbers, which hears its text."""
    heard = jnp.mean(conditions.context, (1, 2)) + jnp.cos(t / 300.0)
    return jnp.tanh(x @ params["mix"] + heard[:, None, None, None])


@pytest.fixture
def params():
    mix = np.eye(4) + 0.1 * np.random.default_rng(0).standard_normal((4, 4))
    return {"unet": {"mix": jnp.asarray(mix, jnp.float32)}}


@pytest.fixture(autouse=True)
def toy_network(request, monkeypatch):
    if "real" not in request.node.name:
        monkeypatch.setattr(reward, "unet_answer", toy)


def score(pictures, params, batch):
    """How far the first channel's mean in the left half is up, softly."""
    return jnp.sin(jnp.mean(pictures[:, :, : pictures.shape[2] // 2, 0], (1, 2)))


def objective(sampler="ddim", steps=4, **given):
    options = {"eta": 1.0} if sampler == "ddim with noise" else {}
    made = plan(euler_cfg_pp if sampler == "euler_cfg_pp" else sampler.split()[0], steps, SD, **options)
    return Reward(ZEROS, score, made, 8, 8, **{"decode": False, **given})


CASES = {
    "deterministic": dict(sampler="ddim"),
    "multistep": dict(sampler="dpmpp_2m", steps=5),
    "ancestral": dict(sampler="euler_ancestral"),
    "drawn": dict(sampler="ddim with noise"),
    "guided": dict(sampler="euler", guidance_scale=3.0),
    "unguided": dict(sampler="euler_cfg_pp", guidance_scale=0.6),
}


@pytest.mark.parametrize("case", CASES)
def test_equal_to_finite_differences(case, params):
    own, batch = objective(**CASES[case]), training.batch(3)
    of = jax.jit(lambda params: own(params, batch, KEY)[0])
    grad = jax.grad(of)(params)["unet"]["mix"]
    step = 0.02 * grad / jnp.linalg.norm(grad)
    ends = [of({"unet": {"mix": params["unet"]["mix"] + sign * step}}) for sign in (1, -1)]
    slope = float(ends[0] - ends[1]) / (2 * float(jnp.linalg.norm(step)))
    assert slope == pytest.approx(float(jnp.linalg.norm(grad)), rel=0.02)


@pytest.mark.parametrize("case", ["multistep", "ancestral"])
def test_it_makes_what_sampling_makes(case, params):
    """The latents are those of `sdjax.sample` with the same draws, and the loss is their score's mean."""
    own, batch = objective(**CASES[case]), training.batch(3)
    seen = own.draw(batch, KEY)
    conditions = reward.conditions_of(ZEROS, params, batch)
    x_T = standard_normal(seen["keys"], NOISE, (8, 8, 4))
    keys = jax.vmap(lambda key: jax.random.fold_in(key, DRAWS))(seen["keys"])
    want = scan.sample(own.plan, lambda x, t: toy(ZEROS, params["unet"], x, jnp.full(3, t), conditions), x_T, key=keys)
    np.testing.assert_allclose(own.latents(params, seen), want, rtol=1e-4, atol=1e-5)
    loss, metrics = own.loss(params, seen)
    assert float(loss) == pytest.approx(-float(score(want, params, batch).mean()), rel=1e-4)
    assert float(metrics["reward"]) == -float(loss) and float(metrics["count"]) == 3


@pytest.mark.parametrize("case", ["multistep", "ancestral", "guided"])
def test_all_rows_are_the_whole_gradient(case, params):
    own, batch = objective(**CASES[case]), training.batch(2)
    some = [own, *(replace(own, last=k) for k in (own.plan.rows - 1, 1, 2))]
    found = [jax.jit(jax.value_and_grad(lambda p, o=o: o(p, batch, KEY)[0]))(params) for o in some]
    np.testing.assert_allclose([float(value) for value, _ in found], float(found[0][0]), rtol=1e-5)  # the same pictures
    whole, every, one, two = (grad["unet"]["mix"] for _, grad in found)
    np.testing.assert_allclose(every, whole, rtol=1e-4, atol=1e-7)
    assert float(jnp.abs(one - two).max()) > 1e-4


def test_the_last_rows_are_those_whose_parameters_are_not_held(params):
    """DRaFT-K is the derivative of a run whose first rows keep other parameters: by finite differences."""
    own, batch = objective("dpmpp_2m", 5, last=2), training.batch(2)
    seen, mix = own.draw(batch, KEY), params["unet"]["mix"]
    conditions = reward.conditions_of(ZEROS, params, batch)
    x_T, table = standard_normal(seen["keys"], NOISE, (8, 8, 4)), own.plan.table(own.plan.rows - 1)

    def run(moved):
        def model(mix):
            return lambda x, t: toy(ZEROS, {"mix": mix}, x, jnp.full(2, t), conditions)

        carry = scan.run_rows(scan.init(table, x_T), table.rows(0, 3), model(mix))
        return score(scan.result(scan.run_rows(carry, table.rows(3, 6), model(moved))), params, batch).mean()

    grad = jax.grad(lambda p: own.loss(p, seen)[0])(params)["unet"]["mix"]
    step = 0.02 * grad / jnp.linalg.norm(grad)
    slope = float(run(mix + step) - run(mix - step)) / (2 * float(jnp.linalg.norm(step)))
    assert -slope == pytest.approx(float(jnp.linalg.norm(grad)), rel=0.02)


def test_a_picture_does_not_depend_on_its_neighbours(params):
    own, batch = objective("euler_ancestral"), training.batch(4)
    whole = own.latents(params, own.draw(batch, KEY))
    alone = {name: leaf[:2] for name, leaf in batch.items()}
    np.testing.assert_allclose(own.latents(params, own.draw(alone, KEY)), whole[:2], rtol=1e-5, atol=1e-6)


def test_memory_is_lower_for_what_is_computed_again(monkeypatch):
    """The network's activations, 32 times the latents here, are kept for one row in place of for all."""
    monkeypatch.setattr(reward, "unet_answer", lambda a, p, x, t, c: jnp.tanh(jnp.tanh(x @ p["up"]) @ p["down"]))
    params = {"unet": {"up": jnp.full((4, 128), 0.1), "down": jnp.full((128, 4), 0.1)}}
    batch = {"context": jnp.zeros((2, 3, 4))}

    def scratch(last=None):
        own = replace(objective("ddim", 20, last=last), height=32, width=32)
        grad = jax.jit(jax.grad(lambda p: own(p, batch, KEY)[0]))
        return grad.lower(params).compile().memory_analysis().temp_size_in_bytes

    again, last = scratch(), scratch(last=2)
    monkeypatch.setattr(jax, "checkpoint", lambda run, **_: run)
    assert again < scratch() / 2
    assert last < again


def test_it_learns(params):
    """A few steps of gradient ascent, from noise that is new at every step, raise the score of other noise."""
    own, batch = objective("ddim", 4, last=2), training.batch(4)
    of = jax.jit(jax.value_and_grad(lambda p, key: own(p, batch, key)[0]))
    before, now = of(params, jax.random.key(99))[0], params
    for n in range(20):
        now = jax.tree.map(lambda p, g: p - 0.5 * g, now, of(now, jax.random.key(n))[1])
    assert float(of(now, jax.random.key(99))[0]) < float(before) - 0.1


@pytest.mark.ci
def test_a_real_network_through_its_decoder():
    """The tiny checkpoint's U-Net and VAE: along the gradient of a colour it rises by the gradient's length."""
    own = objective("dpmpp_2m", 4, decode=True, guidance_scale=2.0)
    params, batch = training.params(ZEROS), training.batch(1)
    of = jax.jit(lambda unet: own({**params, "unet": unet}, batch, KEY)[0])
    grads = jax.jit(jax.grad(of))(params["unet"])
    length = float(jnp.sqrt(sum(jnp.vdot(g, g) for g in jax.tree.leaves(grads))))
    assert reward.unet_answer is unet_answer and length > 1e-4
    ends = [of(jax.tree.map(lambda p, g, s=s: p + s * 0.005 * g / length, params["unet"], grads)) for s in (1, -1)]
    assert float(ends[0] - ends[1]) / 0.01 == pytest.approx(length, rel=0.05)


REFUSED = {
    "last must be 1 to 4, the rows of": lambda: objective(last=5),
    "height and width of the latents": lambda: replace(objective(), height=0),
    "give a guidance_scale": lambda: objective("euler_cfg_pp"),
    "one number for each of 2 pictures": lambda: replace(objective(), score=lambda x, p, b: x.mean())(
        {"unet": {"mix": jnp.eye(4)}}, training.batch(2), KEY
    ),
    "give the batch its ids or states": lambda: replace(
        objective(guidance_scale=2.0), architecture=training.architecture()
    )({"unet": {"mix": jnp.eye(4)}}, training.batch(2), KEY),
}


@pytest.mark.parametrize("message", REFUSED)
def test_what_does_not_go_together_is_refused(message):
    with pytest.raises(ValueError, match=message):
        REFUSED[message]()


def test_a_reward_of_a_flag():
    """The mean colour of a box against what is wanted, in [-1, 1]; what is no such reward is told."""
    pictures = np.full((2, 10, 20, 3), -1, np.float32)
    pictures[1, :1, 10:] = (1, 0, -1)
    score = rewards.read("colour:255,0,0@0.5,0,1,0.1")
    np.testing.assert_allclose(score(jnp.asarray(pictures), {}, {}), [-4, -1], rtol=1e-5)
    assert rewards.read("colour:1,2,3") == rewards.BoxColour((1, 2, 3), (0.25, 0.25, 0.75, 0.75))
    for wrong in ("red", "colour:1,2", "colour:1,2,256", "colour:1,2,3@0,0,1", "colour:1,2,3@0.5,0,0.5,1", "x:1,2,3"):
        with pytest.raises(ValueError, match=f"--reward={wrong}: it is colour:R,G,B"):
            rewards.read(wrong)
