"""Consistency distillation and preferences, each against its formulas written a second time in float64."""

from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sdjax.diffusion.plan import plan
from sdjax.train.losses import consistency
from sdjax.train.losses.consistency import SCALE, Consistency, boundary
from sdjax.train.losses.denoising import Denoising, unet_answer
from sdjax.train.losses.noising import NOISE
from sdjax.train.losses.preference import Preference, both
from sdjax.train.losses.timesteps import Timesteps
from sdjax.train.losses.weightings import Weighting
from sdjax.train.objective import standard_normal
from tests import training
from tests.reference import alphas_cumprod
from tests.test_train_losses import near

BETAS = dict(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
COND = {"time_cond_proj_dim": 8}


def toy(architecture, params, x, t, conditions):
    """A network of one number, which hears its text and, where it is told one, the guidance scale."""
    heard = jnp.mean(conditions.context, (1, 2)) + jnp.cos(t / 300.0)
    if conditions.guidance is not None:
        heard = heard + jnp.mean(conditions.guidance, 1)
    return jnp.tanh(params * x + heard[:, None, None, None])


# ---------------------------------------------------------------------- consistency


def test_where_the_solver_is_and_what_the_student_keeps():
    """TRAINING.md 14, fact 15."""
    own = Consistency(training.architecture())
    times = own.solver_timesteps()
    assert list(times[:3]) == [19, 39, 59] and times[-1] == 999 and len(times) == 50
    skip, out = boundary(jnp.array([0, 19]))
    near(skip, [1, 6.92516e-6])
    assert float(out[0]) == 0
    seen = own.draw(training.batch(50), jax.random.key(0))
    assert sorted(seen["timesteps"].tolist()) == list(times)  # stratified: each once


def test_the_samplers_boundary_is_the_trainings():
    """What `lcm` makes of an answer at a timestep is what the student was taught that it means."""
    lcm = plan("lcm", 4, {**BETAS, "set_alpha_to_one": False, "prediction_type": "epsilon"})
    t, level = jnp.asarray(lcm.timesteps), training.architecture()
    own = Consistency(level)
    assert set(np.asarray(t)) <= set(own.solver_timesteps().tolist())
    skip, out = (np.asarray(one, np.float64) for one in boundary(t))
    weight = lcm.weights[-1, 1 : lcm.rows]
    assert weight[-1] == pytest.approx(out[-1], rel=1e-5)  # the last row's result: c_out x_0' + c_skip x
    assert skip[-1] < 1e-4


@pytest.mark.parametrize("told", [False, True])
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_distillation_step_by_step(monkeypatch, prediction, told):
    """One batch with the first solver timestep, whose step ends at t = 0, where the target is x itself."""
    monkeypatch.setattr(consistency, "unet_answer", toy)
    of = training.architecture(prediction, COND if told else None)
    own = Consistency(of, averaged=True)
    batch = {**training.batch(4), "unprompted": {"context": jnp.full((4, 12, 16), 0.3)}}
    seen = {**own.draw(batch, jax.random.key(0)), "timesteps": jnp.array([19, 39, 499, 999])}
    params = {name: jnp.float32(value) for name, value in {"unet": 0.7, "teacher": 0.4, "target": 0.6}.items()}
    loss, metrics = own.loss(params, seen)

    t, a = np.array([19, 39, 499, 999]), alphas_cumprod(BETAS)
    s = np.array([0, 19, 479, 979])
    x_0 = np.asarray(seen["latents"], np.float64)
    e = np.asarray(standard_normal(seen["keys"], NOISE, x_0.shape[1:]), np.float64)
    keys = [jax.random.fold_in(key, SCALE) for key in seen["keys"]]
    w = np.array([float(jax.random.uniform(key, minval=5.0, maxval=15.0)) for key in keys])
    text, empty = np.asarray(batch["context"], np.float64).mean((1, 2)), np.full(4, 0.3)
    frequencies = np.exp(-np.log(10000) * np.arange(4) / (4 - 1))
    sinusoids = 1000 * w[:, None] * frequencies
    scale = np.concatenate([np.sin(sinusoids), np.cos(sinusoids)], 1).mean(1) if told else 0

    def wide(value):
        return value[:, None, None, None]

    def answer(number, x, t, heard):
        return np.tanh(number * x + wide(heard + np.cos(t / 300)))

    def means(raw, x, t):
        alpha, sigma = wide(np.sqrt(a[t])), wide(np.sqrt(1 - a[t]))
        if prediction == "epsilon":
            return (x - sigma * raw) / alpha, raw
        return alpha * x - sigma * raw, sigma * x + alpha * raw

    def jump(number, x, t):
        skip, out = 0.25 / ((10.0 * t) ** 2 + 0.25), 10 * t / np.sqrt((10.0 * t) ** 2 + 0.25)
        return wide(skip) * x + wide(out) * means(answer(number, x, t, text + scale), x, t)[0]

    x = wide(np.sqrt(a[t])) * x_0 + wide(np.sqrt(1 - a[t])) * e
    (c_clean, c_noise), (u_clean, u_noise) = (means(answer(0.4, x, t, heard), x, t) for heard in (text, empty))
    clean, noise = c_clean + wide(w) * (c_clean - u_clean), c_noise + wide(w) * (c_noise - u_noise)
    x_s = wide(np.sqrt(a[s])) * clean + wide(np.sqrt(1 - a[s])) * noise
    difference = jump(0.7, x, t) - jump(0.6, x_s, s)
    want = np.mean(np.sqrt(difference**2 + 0.001**2) - 0.001)
    assert float(loss) == pytest.approx(want, rel=2e-3 if told else 2e-4)  # 1000 w in float32 is 1e-3 of a turn off
    assert float(metrics["count"]) == 4


def test_only_the_student_has_a_gradient_and_its_target_none(monkeypatch):
    """Of itself as the target: the gradient is that with the target held fixed, which finite differences tell."""
    monkeypatch.setattr(consistency, "unet_answer", toy)
    own = Consistency(training.architecture("v_prediction"), c=None)
    batch = {**training.batch(3), "unprompted": {"context": jnp.zeros((3, 12, 16))}}
    seen = own.draw(batch, jax.random.key(0))
    params = {"unet": jnp.float32(0.7), "teacher": jnp.float32(0.4)}
    grads = jax.grad(lambda p: own.loss(p, seen)[0])(params)
    held = replace(own, averaged=True)
    ends = [held.loss({**params, "unet": 0.7 + d, "target": 0.7}, seen)[0] for d in (1e-2, -1e-2)]
    assert float(grads["unet"]) == pytest.approx(float(ends[0] - ends[1]) / 2e-2, rel=2e-2)
    assert float(grads["teacher"]) == 0


def test_zeros_stand_for_no_text_where_the_model_takes_them(monkeypatch):
    monkeypatch.setattr(consistency, "unet_answer", toy)
    batch, params = training.batch(2), {"unet": jnp.float32(0.7), "teacher": jnp.float32(0.4)}
    zeros = Consistency(training.architecture(zeros_for_empty=True))
    seen = zeros.draw(batch, jax.random.key(0))
    near(zeros.loss(params, seen)[0], zeros.loss(params, {**seen, "unprompted": {"context": seen["context"] * 0}})[0])
    with pytest.raises(ValueError, match="give the batch its ids or states"):
        Consistency(training.architecture()).loss(params, seen)


@pytest.mark.ci
def test_a_student_learns():
    """A real U-Net that is told the scale: some steps of its distillation lower the loss, on one batch."""
    of = training.architecture("v_prediction", COND, zeros_for_empty=True)
    own, student = Consistency(of), training.params(of)["unet"]
    plain = training.params(replace(of, unet=replace(of.unet, time_cond_proj_dim=None)))["unet"]
    seen, losses = own.draw(training.batch(4), jax.random.key(0)), []
    step = jax.jit(jax.value_and_grad(lambda unet: own.loss({"unet": unet, "teacher": plain}, seen)[0]))
    for _ in range(12):
        loss, grads = step(student)
        losses.append(float(loss))
        student = jax.tree.map(lambda p, g: p - 0.05 * g, student, grads)
    assert losses[-1] < 0.95 * losses[0]
    assert float(jnp.abs(grads["time_embedding"]["cond_proj"]["kernel"]).max()) > 0


# ---------------------------------------------------------------------- preference


@dataclass(frozen=True)
class Scaled(Denoising):
    """A network of one number."""

    def predict(self, params, x, t, conditions, injected):
        return params["unet"] * x


def pairs(b: int = 3) -> dict:
    return {**training.batch(b), "rejected": training.batch(b, seed=1)["latents"]}


@pytest.mark.parametrize("kind", ["sigmoid", "hinge"])
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_preference_by_its_formula(prediction, kind):
    own = Preference(Scaled(training.architecture(prediction)), beta=3.0, kind=kind)
    seen = own.draw(pairs(), jax.random.key(0))
    params = {"unet": jnp.float32(0.5), "reference": jnp.float32(0.2)}
    loss, metrics = own.loss(params, seen)

    a = alphas_cumprod(BETAS)[np.asarray(seen["timesteps"])][:, None, None, None]
    e = np.asarray(standard_normal(seen["keys"], NOISE, (8, 8, 4)), np.float64)

    def error(number, name):
        x_0 = np.asarray(seen[name], np.float64)
        x = np.sqrt(a) * x_0 + np.sqrt(1 - a) * e
        target = e if prediction == "epsilon" else np.sqrt(a) * e - np.sqrt(1 - a) * x_0
        return ((number * x - target) ** 2).mean((1, 2, 3))

    m_w, m_l, r_w, r_l = (error(n, name) for n in (0.5, 0.2) for name in ("latents", "rejected"))
    z = -3.0 * ((m_w - m_l) - (r_w - r_l))
    want = np.log1p(np.exp(-z)) if kind == "sigmoid" else np.maximum(0, 1 - z)
    assert float(loss) == pytest.approx(want.mean(), rel=1e-4)
    assert float(metrics["margin"]) == pytest.approx(z.mean(), rel=1e-3, abs=1e-6)
    assert float(metrics["right"]) == pytest.approx((z > 0).mean())


def test_a_model_that_is_its_reference_prefers_nothing():
    own = Preference(Scaled(training.architecture(), weighting=Weighting("min_snr"), timesteps=Timesteps()))
    params = {"unet": jnp.float32(0.5), "reference": jnp.float32(0.5)}
    seen = own.draw(pairs(), jax.random.key(0))
    loss, metrics = own.loss(params, seen)
    assert float(loss) == pytest.approx(np.log(2)) and float(metrics["margin"]) == 0
    grads = jax.grad(lambda p: own.loss(p, seen)[0])(params)
    assert float(grads["unet"]) != 0 and float(grads["reference"]) == 0


def test_a_pair_shares_its_noise_and_may_be_moments():
    batch = {"moments": jnp.zeros((2, 8, 8, 8)), "rejected": jnp.ones((2, 8, 8, 8)), "weight": jnp.array([1.0, 2.0])}
    doubled = both({**batch, "unprompted": {"context": jnp.zeros((2, 3, 4))}})
    assert doubled["moments"].shape == (4, 8, 8, 8) and float(doubled["moments"][2:].min()) == 1
    assert doubled["unprompted"]["context"].shape == (4, 3, 4) and list(doubled["weight"]) == [1, 2, 1, 2]
    with pytest.raises(ValueError, match="as `rejected`; this one has none"):
        both(training.batch(2))


REFUSED = {
    "has 2 to 1000 steps, not 1": lambda of: Consistency(of, steps=1),
    "guidance is drawn from 0 or more upwards": lambda of: Consistency(of, lowest=5, highest=4),
    "c of the distance": lambda of: Consistency(of, c=0.0),
    "not of flow models": lambda of: Consistency(training.architecture("flow")),
    "preference loss 'sigmod' is unknown; nearest: 'sigmoid'": lambda of: Preference(Denoising(of), kind="sigmod"),
    "beta of a preference": lambda of: Preference(Denoising(of), beta=0),
}


@pytest.mark.parametrize("message", REFUSED)
def test_what_does_not_go_together_is_refused(message):
    with pytest.raises(ValueError, match=message):
        REFUSED[message](training.architecture())


def test_the_toy_is_called_as_the_network_is():
    """So that what is shown with it holds: one real answer through the same signature."""
    of = training.architecture()
    params, batch = jax.eval_shape(lambda: (training.params(of)["unet"], training.batch(1)))

    def answer(params, batch):
        conditions = consistency.conditions_of(of, {}, batch)
        return unet_answer(of, params, batch["latents"], jnp.array([3]), conditions)

    assert jax.eval_shape(answer, params, batch).shape == (1, 8, 8, 4)
