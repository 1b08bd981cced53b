"""The contrastive objective: whole batches only, the scale's bounds, what only fills up. The numbers: tests/parity."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sdjax.config import ClipTextConfig, ClipVisionConfig
from sdjax.core.json_fields import ConfigError
from sdjax.nn.clip import ClipTextEncoder
from sdjax.nn.clip_vision import ClipVisionEncoder
from sdjax.train.losses.contrast import LARGEST, Contrast, bounded, clip_loss, siglip_loss, unit
from sdjax.train.methods.clip import PROJECTED, ClipTraining, read_clip
from sdjax.train.optimisers import Optimiser
from sdjax.train.state import fresh
from sdjax.train.step import make_step

KEY = jax.random.key(0)
SIZES = dict(hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, projection_dim=8)
TEXT = ClipTextConfig.from_dict({**SIZES, **PROJECTED, "vocab_size": 20, "max_position_embeddings": 6})
VISION = ClipVisionConfig.from_dict({**SIZES, "image_size": 16, "patch_size": 8})


@pytest.fixture(scope="module")
def params():
    return {
        "text_encoder": fresh(ClipTextEncoder(TEXT), 0, jnp.zeros((1, 6), jnp.int32)),
        "image_encoder": fresh(ClipVisionEncoder(VISION), 0, jnp.zeros((1, 16, 16, 3))),
    }


def batch_of(b: int) -> dict:
    rng = np.random.default_rng(b)
    ids = rng.integers(0, 19, (b, 6)).astype(np.int32)
    return {"pixels": rng.uniform(-1, 1, (b, 16, 16, 3)).astype(np.float32), "ids": {"text_encoder": ids}}


@pytest.mark.parametrize("form", ["clip", "siglip"])
def test_a_batch_cannot_be_cut(params, form):
    objective, method = Contrast(TEXT, VISION, form), ClipTraining(TEXT, VISION, form=form)
    joined = method.join(method.start(params, KEY), params)
    drawn = objective.draw(batch_of(6), KEY)
    value, metrics = jax.jit(objective.loss)(joined, drawn)
    assert np.isfinite(value) and metrics["count"] == 6
    with pytest.raises(ValueError, match="a piece of 3 of 6 pairs: accumulate nothing"):
        jax.eval_shape(objective.loss, joined, jax.tree.map(lambda leaf: leaf[:3], drawn))


def test_accumulation_is_refused(params):
    """By the step, before anything is compiled."""
    method = ClipTraining(TEXT, VISION)
    learning = method.start(params, KEY)
    step = make_step(Contrast(TEXT, VISION), method, learning, params, Optimiser("adamw"), accumulate=2)
    with pytest.raises(ValueError, match="a piece of 3 of 6 pairs: accumulate nothing"):
        step(step.begin(learning), batch_of(6), KEY, 1e-3)


@pytest.mark.parametrize("form", ["clip", "siglip"])
def test_pairs_that_only_fill_up_do_not_count(params, form):
    objective, method = Contrast(TEXT, VISION, form), ClipTraining(TEXT, VISION, form=form)
    joined, whole = method.join(method.start(params, KEY), params), batch_of(6)
    some = jax.tree.map(lambda leaf: leaf[:4], whole)
    filled = whole | {"valid": np.array([1, 1, 1, 1, 0, 0], np.float32)}

    both = jax.jit(jax.value_and_grad(lambda joined, batch: objective(joined, batch, KEY)[0]))
    (alone, of_alone), (among, of_among) = both(joined, some), both(joined, filled)
    assert abs(float(alone) - float(among)) < 1e-6
    for one, other in zip(jax.tree.leaves(of_alone), jax.tree.leaves(of_among), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)


def test_losses_by_their_definition():
    rng = np.random.default_rng(0)
    u, v = (np.asarray(unit(rng.standard_normal((5, 7)))) for _ in range(2))
    z = np.exp(1.2) * u.astype(np.float64) @ v.T
    rows, columns = (np.log(np.exp(z).sum(axis)) - np.diag(z) for axis in (1, 0))
    valid = np.ones(5, bool)
    assert abs(float(clip_loss(u, v, jnp.float32(1.2), valid)) - 0.5 * (rows.mean() + columns.mean())) < 1e-5
    signed = (2 * np.eye(5) - 1) * (z - 3)
    wanted = np.log1p(np.exp(-signed)).sum() / 5
    assert abs(float(siglip_loss(u, v, jnp.float32(1.2), valid, jnp.float32(-3.0))) - wanted) < 1e-5


@pytest.mark.parametrize(
    "s, slope, moves",
    [(1.0, 1.0, True), (1.0, -1.0, True), (5.0, -1.0, False), (5.0, 1.0, True), (-0.1, 1.0, False), (-0.1, -1.0, True)],
)
def test_the_scale_stands_at_its_bounds_and_leaves_them(s, slope, moves):
    """Descent goes against the slope: above the bound a negative one would lead further out."""
    value, gradient = jax.value_and_grad(lambda s: slope * bounded(s, 0.0, LARGEST))(jnp.float32(s))
    assert float(gradient) == (slope if moves else 0)
    assert abs(float(value) - slope * np.clip(s, 0, LARGEST)) < 1e-6


def test_the_scale_as_a_clamp_after_each_step_has_it():
    """open_clip clamps s after each step; ours, never clamped, is the same function at every step of plain descent."""
    slopes = [-1.0] * 8 + [1.0] * 8  # up against the bound, then down again
    clamped = mine = jnp.float32(4.4)
    for slope in slopes:
        clamped = jnp.clip(clamped - 0.05 * slope, 0, LARGEST)
        mine = mine - 0.05 * jax.grad(lambda s, slope=slope: slope * bounded(s, 0.0, LARGEST))(mine)
        assert abs(float(bounded(mine, 0.0, LARGEST)) - float(clamped)) <= 0.05 + 1e-6  # at most the step that crossed
    assert float(mine) < LARGEST - 0.2


def test_the_written_scale_is_within_its_bounds(params, tmp_path):
    method = ClipTraining(TEXT, VISION)
    learning = method.start(params, KEY)
    learning["contrast"]["logit_scale"] = jnp.float32(7.0)
    back = read_clip(method.write(learning, params, tmp_path, {}))
    assert abs(float(back.params["contrast"]["logit_scale"]) - LARGEST) < 1e-6
    assert back.text == TEXT and back.vision == VISION


def test_one_encoder_alone(params):
    method = ClipTraining(TEXT, VISION, "text")
    learning = method.start(params, KEY)
    assert set(learning) == {"text_encoder", "contrast"}
    assert method.join(learning, params)["image_encoder"] is params["image_encoder"]
    given = method.start({**params, "contrast": {"logit_scale": jnp.float32(3.0)}}, KEY)
    assert float(given["contrast"]["logit_scale"]) == 3.0


def test_mistakes(params, tmp_path):
    with pytest.raises(ValueError, match="nearest: 'siglip'"):
        Contrast(TEXT, VISION, "sig_lip")
    with pytest.raises(ValueError, match="part 'boths' of a CLIP is unknown; nearest: 'both'"):
        ClipTraining(TEXT, VISION, "boths")
    with pytest.raises(ValueError, match="of different models"):
        Contrast(TEXT, ClipVisionConfig.from_dict({**SIZES, "image_size": 16, "patch_size": 8, "projection_dim": 9}))
    with pytest.raises(ValueError, match="no image_encoder"):
        ClipTraining(TEXT, VISION).start({"text_encoder": params["text_encoder"]}, KEY)
    small = batch_of(2)
    small["pixels"] = small["pixels"][:, :8]
    with pytest.raises(ValueError, match="sees 16 x 16 pixels"):
        Contrast(TEXT, VISION)({**params, "contrast": {"logit_scale": 1.0}}, small, KEY)
    (tmp_path / "config.json").write_text('{"model_type": "clip_text_model"}')
    with pytest.raises(ConfigError, match="no text_config and vision_config"):
        read_clip(tmp_path)
