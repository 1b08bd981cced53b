"""What a denoising loss is made of: levels, weights, errors, noise and timesteps, against published numbers."""

from dataclasses import dataclass, replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from sdjax.train.architecture import PREDICTIONS
from sdjax.train.losses import predictions
from sdjax.train.losses.denoising import Denoising
from sdjax.train.losses.errors import Error, pseudo_huber
from sdjax.train.losses.levels import FLOW_TIMESTEPS, level_at, with_zero_terminal_snr
from sdjax.train.losses.noising import NOISE, Noising
from sdjax.train.losses.timesteps import Biased, LogitNormal, Mode, Timesteps, Uniform, earlier, later
from sdjax.train.losses.weightings import KINDS, Weighting
from sdjax.train.objective import picture_keys, standard_normal
from sdjax.train.validation import band_losses, band_metrics, band_timesteps
from tests import training

ALL = jnp.arange(1000)
EPSILON = training.architecture()
LEVEL = level_at(EPSILON, ALL)
near = partial(np.testing.assert_allclose, rtol=2e-5)


def at(values, *times):
    return np.asarray(values)[list(times)]


# ---------------------------------------------------------------------- golden numbers of TRAINING.md, section 14


def test_snr():
    """1."""
    want = [1175.47, 8.453889, 4.953448, 2.065535, 0.381850, 0.0595127, 0.00468192]
    near(at(LEVEL.snr, 0, 100, 147, 250, 500, 750, 999), want)


def test_min_snr():
    """2 and 3; the form that diffusers had for the velocity is another one."""
    noise, velocity = (Weighting("min_snr")(kind, LEVEL) for kind in ("epsilon", "v_prediction"))
    near(at(noise, 0, 50, 100, 147, 500, 999), [0.004254, 0.254436, 0.591443, 1, 1, 1], rtol=2e-4)
    near(at(velocity, 0, 50, 100, 250, 500), [0.004250, 0.242115, 0.528883, 0.673793, 0.276333], rtol=2e-4)
    near(at(velocity, 999), 0.004660, rtol=2e-4)
    assert int(jnp.argmax(velocity)) == 146
    near(at(velocity, 146), 0.832850)
    near([noise.mean(), velocity.mean()], [0.916571, 0.294330])
    assert [int(jnp.argmax(LEVEL.snr < bound)) for bound in (5, 1)] == [147, 354]
    clipped = Weighting("velocity_clipped")("v_prediction", LEVEL)
    near(at(clipped, 250, 500, 999), 1)
    near(clipped, np.minimum(1, 5 * (1 - np.array(training.LEVELS))))


def test_other_weights():
    """4."""
    near(at(Weighting("debiased")("epsilon", LEVEL), 100, 500, 999), [0.343931, 1.618279, 14.614641])
    near(at(Weighting("p2")("epsilon", LEVEL), 100, 500), [0.105777, 0.723667])
    near(at(Weighting("soft_min_snr")("epsilon", LEVEL), 100, 500), [0.371640, 0.929048])


def test_zero_terminal_snr():
    """5."""
    velocity = with_zero_terminal_snr(training.architecture("v_prediction"))
    levels = np.array(velocity.alphas_cumprod)
    near(levels[[500, 998]], [0.241019, 1.96789e-7])
    assert levels[999] == 0 and float(level_at(velocity, ALL).snr[999]) == 0
    near(1 - levels[999] / levels[998], 1)
    near(1 - levels[998] / levels[997], 0.751137)
    near(at(level_at(velocity, ALL).snr, 900), 0.00296918)
    near(at(LEVEL.snr, 900), 0.0143543)


def test_offset_noise():
    """14: how far a channel's mean goes."""
    keys, x_0 = picture_keys(jax.random.key(0), 1500), jnp.zeros((1500, 64, 64, 1))
    for offset, want in ((0.05, 0.052385), (0.0, 0.015625)):
        means = Noising(offset=offset).draw(keys, x_0).mean((1, 2))
        assert float(means.std()) == pytest.approx(want, rel=0.06)


def test_huber():
    """16, and that both forms are what they are called."""
    width = Error("huber").width_at(LEVEL, ALL / 1000)
    near(at(width, 0, 500, 999), [0.949710, 0.231284, 0.103691])
    near(at(Error("huber", width="exponential").width_at(LEVEL, ALL / 1000), 0, 500), [1, 0.1**0.5])
    d, c = np.array([1e-4, 0.3, -20.0]).reshape(1, 3, 1, 1), 0.1
    want = 2 * c * (np.sqrt(d**2 + c**2) - c)
    one = level_at(EPSILON, jnp.array([3]))
    near(Error("huber", c, "constant")(jnp.asarray(d, jnp.float32), one, jnp.array([0.0])), want)
    near(Error("smooth_l1", c, "constant")(jnp.asarray(d, jnp.float32), one, jnp.array([0.0])), want / c)
    assert float(jax.grad(lambda d: pseudo_huber(d, 0.001))(0.0)) == 0


# ---------------------------------------------------------------------- levels, predictions, weights


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_a_prediction_that_is_right_gives_back_what_was_mixed(prediction):
    """And an error of it is one of the clean latents by the table's last column."""
    t = jnp.array([5.0, 500.0, 900.0]) if prediction == "flow" else jnp.array([5, 500, 900])
    level, rng = level_at(training.architecture(prediction), t), np.random.default_rng(0)
    x_0, e, slip = (jnp.asarray(rng.standard_normal((3, 2, 2, 4)), jnp.float32) for _ in range(3))
    x = level.noised(x_0, e)
    raw = predictions.target(prediction, level, x_0, e)
    np.testing.assert_allclose(predictions.clean(prediction, level, x, raw), x_0, atol=2e-5)
    np.testing.assert_allclose(predictions.noise(prediction, level, x, raw), e, atol=2e-4)
    moved = predictions.clean(prediction, level, x, raw + slip) - predictions.clean(prediction, level, x, raw)
    share = jnp.mean(moved**2, (1, 2, 3)) / jnp.mean(slip**2, (1, 2, 3))
    near(share, predictions.as_clean_error(prediction, level), rtol=5e-3)


def test_levels_between_timesteps():
    """Whole ones are the table's; between two the logarithm of sigma / alpha is halfway; flow is straight."""
    whole, middle = (level_at(EPSILON, t) for t in (ALL.astype(jnp.float32), jnp.arange(999) + 0.5))
    near(whole.alpha, LEVEL.alpha, rtol=1e-4)
    near(whole.sigma, LEVEL.sigma, rtol=1e-4)
    near(middle.snr, jnp.sqrt(LEVEL.snr[1:] * LEVEL.snr[:-1]), rtol=1e-3)
    flow = level_at(training.architecture("flow"), jnp.array([250.0]))
    near([*flow.alpha, *flow.sigma], [0.75, 0.25])


def test_weights_are_one_weight_of_the_clean_latents():
    """Those of x_0's error; EDM's is 1 on the velocity where sigma_data is 1, and everything is finite without SNR."""
    for kind in ("min_snr", "soft_min_snr", "edm"):
        own = {p: Weighting(kind)(p, LEVEL) for p in ("epsilon", "v_prediction", "sample")}
        near(own["epsilon"] * LEVEL.snr, own["sample"], rtol=1e-4)
        near(own["v_prediction"] * (LEVEL.snr + 1), own["sample"], rtol=1e-4)
        zero = level_at(with_zero_terminal_snr(training.architecture("v_prediction")), ALL)
        assert np.isfinite(Weighting(kind)("v_prediction", zero)).all()
    near(Weighting("edm")("v_prediction", LEVEL), 1, rtol=1e-4)
    gamma, snr = 5.0, np.asarray(LEVEL.snr, np.float64)
    near(Weighting("soft_min_snr")("v_prediction", LEVEL), snr * gamma / (snr + gamma) / (snr + 1), rtol=1e-4)
    near(Weighting("velocity_snr")("v_prediction", LEVEL)[500], snr[500] / (snr[500] + 1))
    near(Weighting("debiased")("v_prediction", LEVEL)[jnp.array([0, 500])], [1 / 1001, 1 / (snr[500] + 1)])


def test_weights_of_flow_matching():
    level = level_at(training.architecture("flow"), jnp.array([250.0, 500.0]))
    near(Weighting("sigma_sqrt")("flow", level), [16, 4])
    near(Weighting("cosmap")("flow", level), [2 / (np.pi * 0.625), 4 / np.pi])


def test_every_weighting_takes_part_in_a_loss():
    """The loss is the plain errors times the weights, whatever the kind: each option once."""
    for prediction in PREDICTIONS:
        of = training.architecture(prediction)
        model = Answering(of)
        seen = model.draw(training.batch(6), jax.random.key(1))
        plain, _ = model.errors({}, seen)
        for kind in (kind for kind, known in KINDS.items() if prediction in known.weights):
            each, square = replace(model, weighting=Weighting(kind)).errors({}, seen)
            near(each, plain * Weighting(kind)(prediction, level_at(of, seen["timesteps"])))
            near(square, plain)


@pytest.mark.parametrize("width", ["snr", "exponential", "constant"])
def test_every_error_takes_part_in_a_loss(width):
    """Each kind once: pictures' errors are the means of what the formulas say, by the width of their levels."""
    seen = Answering(EPSILON).draw(training.batch(6), jax.random.key(1))
    level, t = level_at(EPSILON, seen["timesteps"]), np.asarray(seen["timesteps"])
    e = standard_normal(seen["keys"], NOISE, (8, 8, 4))
    d = np.asarray(level.noised(seen["latents"], e) / 10 - e, np.float64)
    ve = np.asarray(level.sigma / level.alpha, np.float64)
    c = {"snr": 0.9 / (1 + ve) ** 2 + 0.1, "exponential": np.exp(np.log(0.1) * t / 1000), "constant": np.full(6, 0.1)}
    wide = c[width][:, None, None, None]
    for kind, factor in (("huber", 2 * wide), ("smooth_l1", 2)):
        each, _ = Answering(EPSILON, error=Error(kind, 0.1, width)).errors({}, seen)
        near(each, (factor * (np.sqrt(d**2 + wide**2) - wide)).mean((1, 2, 3)), rtol=1e-4)


# ---------------------------------------------------------------------- noise


@dataclass(frozen=True)
class Answering(Denoising):
    """A network that answers a tenth of what it sees."""

    def predict(self, params, x, t, conditions, injected):
        return x / 10


NOISES = {
    "plain": Noising(),
    "offset": Noising(offset=0.1, offset_random=True, offset_adaptive=0.5),
    "pyramid": Noising(pyramid=3),
    "perturbed": Noising(perturbation=0.1),
}


@pytest.mark.parametrize("kind", NOISES)
def test_a_pictures_loss_does_not_depend_on_its_neighbours(kind):
    """Nor on how many they are; only stratified timesteps are a batch's own."""
    own = Answering(EPSILON, noising=NOISES[kind], timesteps=Timesteps(stratified=False))
    key, five = jax.random.key(3), training.batch(5)
    alone = {name: leaf[:2] for name, leaf in five.items()}
    others = {name: leaf.at[2:].multiply(9.0) for name, leaf in five.items()}
    errors = jax.jit(lambda batch: own.errors({}, own.draw(batch, key))[0][:2])
    first, second, third = (errors(b) for b in (five, alone, others))
    np.testing.assert_allclose(first, second, rtol=1e-6)
    np.testing.assert_allclose(first, third, rtol=1e-6)
    plain = Answering(EPSILON, timesteps=Timesteps(stratified=False))
    same = np.allclose(first, plain.errors({}, plain.draw(five, key))[0][:2])
    assert same == (kind == "plain")


def test_offset_noise_of_a_picture():
    """Its strength is below s and each picture's own; the adaptive part follows the channels' means."""
    keys, x_0 = picture_keys(jax.random.key(0), 4), jnp.zeros((4, 8, 8, 3))
    plain, offset = standard_normal(keys, NOISE, (8, 8, 3)), partial(Noising, offset=0.2)
    added = offset().draw(keys, x_0) - plain
    np.testing.assert_allclose(added, jnp.broadcast_to(added[:, :1, :1], added.shape), atol=1e-6)
    ratio = (offset(offset_random=True).draw(keys, x_0) - plain)[:, 0, 0] / added[:, 0, 0]
    np.testing.assert_allclose(ratio, jnp.broadcast_to(ratio[:, :1], ratio.shape), rtol=1e-3)
    assert ((ratio > 0) & (ratio < 1)).all() and len(np.unique(ratio[:, 0].round(4))) == 4
    adaptive = offset(offset_adaptive=-0.1).draw(keys, x_0.at[..., 1].set(-1.0).at[..., 2].set(5.0)) - plain
    near(adaptive[:, 0, 0] / added[:, 0, 0], np.tile([1, 0.5, 0], (4, 1)), rtol=1e-4, atol=1e-5)


def test_pyramid_noise_is_correlated_over_space():
    """Unit variance in each picture, and neighbours alike; without further levels it is white."""
    keys, x_0 = picture_keys(jax.random.key(0), 64), jnp.zeros((64, 16, 24, 2))
    drawn = {levels: Noising(pyramid=levels, pyramid_discount=0.8) for levels in (1, 4)}
    made = {levels: jax.jit(noising.draw)(keys, x_0) for levels, noising in drawn.items()}
    alike = {levels: float(jnp.mean(e[:, :, 1:] * e[:, :, :-1])) for levels, e in made.items()}
    near(jnp.std(made[4], axis=(1, 2, 3), ddof=1), 1, rtol=1e-4)
    assert abs(alike[1]) < 0.01 and alike[4] > 0.2


def test_perturbation_is_no_part_of_the_target():
    """x moves by alpha p n', the target stays: with the identity as the network, for which the loss is known."""
    own, seen = Answering(EPSILON, noising=Noising(perturbation=0.3)), None
    seen = own.draw(training.batch(3), jax.random.key(0))
    e = own.noising.draw(seen["keys"], seen["latents"])
    level = level_at(EPSILON, seen["timesteps"])
    x = level.noised(seen["latents"], own.noising.perturbed(seen["keys"], e))
    near(own.errors({}, seen)[1], jnp.mean((x / 10 - e) ** 2, (1, 2, 3)))
    assert float(jnp.std(own.noising.perturbed(seen["keys"], e) - e)) == pytest.approx(0.3, rel=0.05)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_dream(prediction):
    """As the paper has it for epsilon, x + sigma d and e + d, and the same noise for the velocity."""
    own = Answering(training.architecture(prediction), dream=1.0)
    seen = own.draw(training.batch(3), jax.random.key(0))
    level, x_0 = level_at(own.architecture, seen["timesteps"]), seen["latents"]
    alpha, sigma = level.beside(x_0)
    e = standard_normal(seen["keys"], NOISE, x_0.shape[1:])
    x = alpha * x_0 + sigma * e
    d = sigma * (e - (x / 10 if prediction == "epsilon" else sigma * x + alpha * x / 10))
    wanted = e + d if prediction == "epsilon" else alpha * (e + d) - sigma * x_0
    near(own.errors({}, seen)[1], jnp.mean(((x + sigma * d) / 10 - wanted) ** 2, (1, 2, 3)), rtol=1e-4)


# ---------------------------------------------------------------------- timesteps


def test_stratified_timesteps_fill_the_range_in_any_order():
    b, key = 64, jax.random.key(0)
    draw = jax.jit(lambda key: Timesteps().draw(key, picture_keys(key, b), 1000))
    drawn = np.array([draw(jax.random.fold_in(key, n)) for n in range(200)])
    assert drawn.dtype == np.int32 and drawn.min() >= 0 and drawn.max() <= 999
    strata = np.sort(drawn * b // 1000, axis=1)
    np.testing.assert_allclose(strata, np.tile(np.arange(b), (200, 1)), atol=1)
    assert abs(np.corrcoef(drawn[:, 0], drawn[:, 1])[0, 1]) < 0.2  # no place has a stratum of its own
    assert stats.kstest(drawn[:, 0] / 1000, "uniform").pvalue > 1e-3
    independent = Timesteps(stratified=False)
    other = np.array([independent.draw(k, picture_keys(k, b), 1000) for k in jax.random.split(key, 20)])
    assert (np.sort(other * b // 1000, axis=1) != np.arange(b)).any(1).all()


def test_densities():
    """Each against its own distribution function, over many pictures, all levels of which occur."""
    u = (np.arange(200_000) + 0.5) / 200_000
    q = np.asarray(LogitNormal(-0.5, 1.3).quantile(jnp.asarray(u)))
    np.testing.assert_allclose(stats.norm.cdf((np.log(q / (1 - q)) + 0.5) / 1.3), u, atol=1e-3)
    q = np.asarray(Mode(1.29).quantile(jnp.asarray(u)))
    np.testing.assert_allclose(q, 1 - u - 1.29 * (np.cos(np.pi * u / 2) ** 2 - 1 + u), atol=1e-6)
    assert q.min() >= 0 and q.max() <= 1
    biases = [
        (later(0.25, 2.0), slice(750, None)),
        (earlier(0.3, 0.5), slice(300)),
        (Biased(0.2, 0.5, 3), slice(200, 500)),
    ]
    for biased, within in biases:
        weights = np.ones(1000)
        weights[within] *= biased.multiplier  # as diffusers' SDXL trainer has it
        t = np.floor(np.asarray(biased.quantile(jnp.asarray(u))) * 1000).astype(int)
        counted = np.bincount(t, minlength=1000) / len(u)
        np.testing.assert_allclose(counted, weights / weights.sum(), atol=2e-5)


def test_timesteps_of_flow_matching():
    keys = picture_keys(jax.random.key(0), 4000)
    plain, shifted = (Timesteps(shift=s).flow(jax.random.key(0), keys, FLOW_TIMESTEPS) for s in (1.0, 3.0))
    assert plain.dtype == jnp.float32 and float(plain.min()) > 0 and float(plain.max()) < 1000
    near([jnp.median(plain), jnp.median(shifted)], [500, 750], rtol=1e-2)
    ends = Timesteps(LogitNormal(0.0, 50.0)).flow(jax.random.key(0), keys, FLOW_TIMESTEPS)
    assert float(ends.min()) > 0 and float(ends.max()) < 1000


def test_continuous_timesteps_are_those_of_the_network():
    own = Answering(EPSILON, timesteps=Timesteps(Uniform(), continuous=True))
    seen = own.draw(training.batch(5), jax.random.key(0))
    assert seen["timesteps"].dtype == jnp.float32 and (seen["timesteps"] % 1 != 0).any()
    assert np.isfinite(own.loss({}, seen)[0])


# ---------------------------------------------------------------------- the whole


def test_in_pieces_and_padded_the_loss_is_the_same():
    """Equation 2 of `objective`: pieces by the pictures they count; a picture that only fills the batch up is none."""
    own = Answering(EPSILON, weighting=Weighting("min_snr"), noising=Noising(pyramid=2, offset=0.1))
    seen, loss = own.draw(training.batch(6), jax.random.key(0)), jax.jit(partial(own.loss, {}))
    whole, metrics = loss(seen)
    halves = [loss({name: leaf[part] for name, leaf in seen.items()})[0] for part in (slice(3), slice(3, 6))]
    near(sum(halves) / 2, whole)
    assert float(metrics["count"]) == 6
    padded = {**seen, "valid": jnp.array([1, 1, 1, 0, 0, 0])}
    near(loss(padded)[0], halves[0])
    doubled, told = loss({**seen, "weight": jnp.full(6, 2.0)})
    near(doubled, 2 * whole)
    near(told["square"], metrics["square"])


def test_the_error_counts_where_the_weights_say():
    own = Answering(EPSILON)
    seen = own.draw(training.batch(2), jax.random.key(0))
    left = jnp.zeros((2, 8, 8, 1)).at[:, :, :4].set(2.0)
    ruined = {**seen, "latents": seen["latents"].at[:, :, 4:].set(100.0), "weights": left}
    near(own.loss({}, ruined)[0], own.loss({}, {**seen, "weights": left})[0])


@pytest.mark.ci
def test_a_network_learns_by_it():
    """A gradient reaches every parameter of a real U-Net, and steps along it lower the error."""
    of = training.architecture("v_prediction")
    own, unet = Denoising(of, weighting=Weighting("min_snr")), training.params(of)["unet"]
    seen, losses = own.draw(training.batch(4), jax.random.key(0)), []
    step = jax.jit(jax.value_and_grad(lambda unet: own.loss({"unet": unet}, seen)[0]))
    for _ in range(16):
        loss, grads = step(unet)
        losses.append(float(loss))
        unet = jax.tree.map(lambda p, g: p - 0.05 * g, unet, grads)
    assert losses[-1] < 0.85 * losses[0]
    assert all(float(jnp.abs(g).max()) > 0 for g in jax.tree.leaves(grads))


def test_validation_is_the_same_noise_every_time():
    """Whatever the objective trains with; and each band's error is that of its own level."""
    own = Answering(EPSILON)
    other = Answering(EPSILON, weighting=Weighting("p2"), noising=Noising(pyramid=3, perturbation=0.1), dream=1.0)
    batch, key = training.batch(7), jax.random.key(5)
    first, second = (jax.jit(partial(band_losses, of))({}, batch, key) for of in (own, other))
    assert first.shape == (16, 7)
    np.testing.assert_array_equal(first, second)
    np.testing.assert_allclose(band_losses(own, {}, training.batch(7), key)[:, :4], first[:, :4], rtol=1e-5)
    assert list(band_timesteps(1000)[[0, 1, 15]]) == [31, 93, 968]
    level = level_at(EPSILON, jnp.asarray(band_timesteps(1000)))  # of e - x / 10, x_0 and e of unit variance
    want = (level.alpha / 10) ** 2 + (1 - level.sigma / 10) ** 2
    np.testing.assert_allclose(first.mean(1), want, rtol=0.1)
    metrics = band_metrics(first, {"valid": jnp.array([1, 1, 1, 0, 0, 0, 0])})
    near(metrics["validation"], first[:, :3].mean())
    near(metrics["validation_15"], first[15, :3].mean())


REFUSED = {
    "weighting 'min_snrr' is unknown; nearest: 'min_snr'": lambda: Weighting("min_snrr"),
    "takes no number, and 3 was given": lambda: Weighting("uniform", 3),
    "number must be above 0, not -1": lambda: Weighting("min_snr", -1),
    "'p2' is one of epsilon, and this model's prediction is 'v_prediction'": lambda: Denoising(
        training.architecture("v_prediction"), weighting=Weighting("p2")
    ),
    "error 'hubber' is unknown; nearest: 'huber'": lambda: Error("hubber"),
    "width 'snrr' of a Huber error": lambda: Error("huber", width="snrr"),
    "c of a Huber error must lie": lambda: Error("huber", 0.0),
    "offset of the noise must lie": lambda: Noising(offset=2),
    "perturbation of the noise must lie": lambda: Noising(perturbation=-1),
    "0 to 10 levels, not 11": lambda: Noising(pyramid=11),
    "pyramid_discount must": lambda: Noising(pyramid=2, pyramid_discount=0.0),
    "give offset too": lambda: Noising(offset_random=True),
    "cannot learn levels of zero terminal SNR": lambda: with_zero_terminal_snr(EPSILON),
    "'epsilon' cannot learn levels": lambda: Denoising(
        replace(EPSILON, alphas_cumprod=(*EPSILON.alphas_cumprod[:-1], 0.0))
    ),
    "flow matching ends in pure noise": lambda: with_zero_terminal_snr(training.architecture("flow")),
    "no continuous timesteps": lambda: Denoising(
        with_zero_terminal_snr(training.architecture("v_prediction")), timesteps=Timesteps(continuous=True)
    ),
    "shift is one of flow matching's": lambda: Denoising(EPSILON, timesteps=Timesteps(shift=3.0)),
    "shift must be above 0": lambda: Timesteps(shift=0.0),
    "power of DREAM must be 0 or more": lambda: Denoising(EPSILON, dream=-1.0),
    "scale of a logit-normal": lambda: LogitNormal(0.0, 0.0),
    "scale of a mode density": lambda: Mode(2.0),
    "from one share of the timesteps to a larger one": lambda: Biased(0.5, 0.5, 2.0),
    "multiplier of a bias must be above 0": lambda: later(0.25, 0.0),
    "from 1 to 1000 bands, not 0": lambda: band_timesteps(1000, 0),
}


@pytest.mark.parametrize("message", REFUSED)
def test_what_does_not_go_together_is_refused(message):
    with pytest.raises(ValueError, match=message):
        REFUSED[message]()
