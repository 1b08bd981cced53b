"""What the inpainting and the depth U-Net learn from: holes, maps, conventions, and a scorer that is not fooled."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.shapes import depth, encode_pictures, inpainting, models, train_pictures, train_unet, world
from experiments.shapes.score import score
from sdjax.config import UNetConfig
from sdjax.nn.conditioning import Conditions
from sdjax.nn.shapes import expected_params
from sdjax.nn.unet import UNet
from sdjax.train.losses.denoising import Denoising
from tests.checkpoints import UNET, random_params


def same(a: tuple, b: tuple) -> bool:
    return all(np.array_equal(x, y) for x, y in zip(a, b, strict=True))


def test_pictures_depend_on_seed_and_index_alone():
    whole, part = list(inpainting.examples(3, 0, 6, 2)), list(inpainting.examples(3, 4, 2, 2))
    assert all(same(a, b) for a, b in zip(whole[4:], part, strict=True))
    assert not np.array_equal(whole[0][0], next(inpainting.examples(4, 0, 1, 2))[0])
    for draw in (inpainting.cases, depth.cases):
        for a, b in zip(list(draw(3, 0, 6))[4:], draw(3, 4, 2), strict=True):
            assert same(tuple(vars(a).values()), tuple(vars(b).values()))


def test_training_masks_are_boxes_of_every_kind():
    masks = [mask for _, masks, _ in inpainting.examples(0, 0, 300, 1) for mask in masks]
    for mask in masks:
        rows, columns = mask.any(1), mask.any(0)
        np.testing.assert_array_equal(mask, rows[:, None] & columns)
        assert mask.any()
    full = np.mean([mask.all() for mask in masks])
    aligned = np.mean([np.array_equal(mask, np.kron(mask[::8, ::8], np.ones((8, 8), bool))) for mask in masks])
    assert 0.04 < full < 0.2 and 0.25 < aligned < 0.6


@pytest.mark.parametrize("kind", inpainting.KINDS)
def test_a_case_asks_for_something_that_is_not_there_yet(kind):
    for case in inpainting.cases(1, 0, 120):
        if case.kind != kind:
            continue
        wrong = score(case.picture, case.scene).errors
        assert wrong
        if kind == "new object":
            assert "count" in wrong
        else:
            assert set(wrong) <= {"colour", "shape"}, (case.scene.caption(), wrong)


def test_a_case_is_right_once_its_hole_is_painted_right():
    """The finished picture, pasted into the hole, passes; and outside the hole nothing tells of what was there."""
    for index in range(60):
        case = next(inpainting.cases(2, index, 1))
        rng = np.random.default_rng([2, index])
        scene = world.sample_scene(rng)
        finished = world.render(scene, rng)
        assert scene == case.scene
        made = np.where(case.mask[..., None], finished, case.picture)
        np.testing.assert_array_equal(made, finished)
        assert score(made, case.scene).ok


def test_what_stands_beside_the_latents_of_a_picture_with_a_hole():
    """The mask's pixels [8 i, 8 j], then the latents of the picture that is middle grey in the hole."""
    seen = []

    def encode(pixels: np.ndarray) -> np.ndarray:
        seen.append(pixels)
        return np.repeat(pixels[:, ::8, ::8].mean(-1, keepdims=True), 4, axis=-1).astype(np.float16)

    latents, channels, captions = encode_pictures.inpainting_pictures(encode, 0, 3, 2)
    drawn = list(inpainting.examples(encode_pictures.SEEDS["inpainting"], 0, 3, 2))
    assert captions == [scene.caption() for _, _, scene in drawn]
    for n, (picture, holes, _) in enumerate(drawn):
        pixels = picture / 127.5 - 1
        for k, hole in enumerate(holes):
            np.testing.assert_array_equal(channels[n, k, :, :, 0], hole[::8, ::8])
            np.testing.assert_allclose(seen[k][n], pixels * ~hole[..., None], atol=1e-6)
            np.testing.assert_array_equal(channels[n, k, ..., 1:], encode(seen[k][n : n + 1])[0])
        np.testing.assert_allclose(seen[2][n], pixels, atol=1e-6)
    assert latents.shape == (3, 16, 16, 4) and channels.shape == (3, 2, 16, 16, 5)


def test_nearer_objects_hide_farther_ones():
    orders = set()
    for case in depth.cases(5, 0, 60, things=2):
        orders.add(case.order)
        colours = [case.picture[0, 0]] + [world.COLOURS[case.scene.things[which].colour] for which in case.order]
        distances = np.linalg.norm(case.picture[:, :, None].astype(float) - np.array(colours), axis=-1)
        assert (distances.argmin(-1) == case.depth).mean() > 0.98  # a pixel where three colours meet may go astray
        far, near = ((case.depth == level) for level in (1, 2))
        assert far.sum() > 80 and near.sum() > 300
    assert orders == {(0, 1), (1, 0)}
    hidden = [case for case in depth.cases(5, 0, 60, things=2) if not _apart(case)]
    assert len(hidden) > 50


def _apart(case: depth.Case) -> bool:
    """Whether no pixel of the near object touches one of the far one."""
    near = case.depth == 2
    beside = np.zeros_like(near)
    for axis in (0, 1):
        for step in (-2, -1, 1, 2):
            beside |= np.roll(near, step, axis)
    return not (beside & (case.depth == 1)).any()


def test_true_pictures_follow_their_depth_and_wrong_ones_do_not():
    rng = np.random.default_rng(0)
    right, refused = 0, {"swapped": 0, "recoloured": 0, "moved": 0, "bare": 0, "background": 0}
    cases = list(depth.cases(9, 0, 100, things=2))
    for case in cases:
        right += not depth.follows(case.picture, case)
        things = [case.scene.things[i] for i in case.order]
        colours = [np.array(world.COLOURS[thing.colour], np.uint8) for thing in things]
        free = [c for c in world.COLOURS if c not in {thing.colour for thing in things} | {case.scene.background}]
        other = np.array(world.COLOURS[free[rng.integers(len(free))]], np.uint8)
        back = case.picture[0, 0]
        flat = np.choose(case.depth.astype(int)[..., None], [back, *colours]).astype(np.uint8)
        assert not depth.follows(flat, case)
        wrong = {
            "swapped": np.choose(case.depth.astype(int)[..., None], [back, *colours[::-1]]),
            "recoloured": np.choose(case.depth.astype(int)[..., None], [back, other, colours[1]]),
            "moved": np.roll(flat, 20, 1),
            "bare": np.where((case.depth == 2)[..., None], back, flat),
        }
        for name, picture in wrong.items():
            refused[name] += bool(depth.follows(picture.astype(np.uint8), case))
        if case.scene.background is not None:
            painted = np.where((case.depth == 0)[..., None], other, flat).astype(np.uint8)
            assert "background" in depth.follows(painted, case)
    assert right >= 99
    assert all(refused[name] == len(cases) for name in ("swapped", "recoloured", "moved", "bare")), refused


def test_an_outline_of_another_shape_is_refused():
    scene = world.Scene((world.Thing("red", "star"),), None, "white")
    places = [(0.5, 0.5, 0.6)]
    case = depth.Case(
        world.draw(scene.things, places, "white"), depth.depth_map(list(scene.things), places), scene, (0,)
    )
    assert depth.follows(case.picture, case) == ()
    square = world.draw([world.Thing("red", "square")], places, "white")
    assert "outline" in depth.follows(square, case)


def test_the_hole_is_what_counts():
    mask = np.zeros((2, 16, 16, 1), np.float32)
    mask[0, 4:8, 4:8] = 1
    weights = train_pictures.hole_weights(mask)
    np.testing.assert_allclose(weights.mean((1, 2, 3)), 1, rtol=1e-6)
    assert weights[0, 3, 3, 0] == weights[0, 5, 5, 0] == weights[0, 5, 8, 0]  # one latent around it counts in full
    np.testing.assert_allclose(weights[0, 0, 0, 0] / weights[0, 5, 5, 0], train_pictures.REST, rtol=1e-6)
    np.testing.assert_allclose(weights[1], 1, rtol=1e-6)


def test_inpainting_starts_as_the_shipped_model():
    """Whatever the mask and the masked picture hold, the widened U-Net says what the shipped one says."""
    rng = np.random.default_rng(0)
    x, beside = (jnp.asarray(rng.normal(size=(1, 16, 16, c)), jnp.float32) for c in (4, 5))
    text, t = Conditions(jnp.asarray(rng.normal(size=(1, 24, 128)), jnp.float32)), jnp.array([500.0])
    wide = UNet(UNetConfig.from_dict(models.PICTURE_UNETS["inpainting"]))
    want = jax.jit(UNet(models.UNET).apply)({"params": train_pictures.shipped_unet()}, x, t, text)
    params = {"params": train_pictures.initial("inpainting", 0)}
    got = jax.jit(wide.apply)(params, x, t, replace(text, channels=beside))
    np.testing.assert_allclose(got, want, atol=1e-5)


def test_batches_are_a_function_of_the_step(tmp_path):
    rng = np.random.default_rng(0)
    ids = np.zeros((20, models.MAX_LENGTH), np.int32)
    ids[:, 1] = np.arange(20)
    channels = rng.normal(size=(20, 2, 16, 16, 5)).astype(np.float16)
    channels[..., 0] = channels[..., 0] > 0
    np.savez(tmp_path / "pictures.npz", latents=rng.normal(size=(20, 16, 16, 4)), channels=channels, ids=ids)
    pictures = train_pictures.Pictures(tmp_path, "inpainting", batch=200, seed=0)
    one, two = pictures.batch(5), pictures.batch(5)
    assert all(np.array_equal(one[name], two[name]) for name in ("latents", "channels", "context", "weights"))
    assert not np.array_equal(one["latents"], pictures.batch(6)["latents"])
    empty = (one["context"] == pictures.empty).all((1, 2))
    assert 0 < empty.mean() < 0.25
    own = np.array([(pictures.latents == latents).all((1, 2, 3)).argmax() for latents in one["latents"]])
    assert np.array_equal(one["context"][~empty], pictures.contexts[own][~empty])
    both = [(pictures.channels[i] == one["channels"][n]).all((1, 2, 3)) for n, i in enumerate(own)]
    assert all(which.any() for which in both) and {int(which.argmax()) for which in both} == {0, 1}


def test_the_loss_sees_the_channels_and_the_weights():
    config = UNetConfig.from_dict(UNET | {"in_channels": 5, "cross_attention_dim": 128})
    params = random_params(expected_params({"unet": config})["unet"], np.float32, 0)
    rng = np.random.default_rng(0)
    batch = {
        name: rng.normal(size=size).astype(np.float32)
        for name, size in (("latents", (2, 16, 16, 4)), ("channels", (2, 16, 16, 1)), ("context", (2, 24, 128)))
    }
    of = jax.jit(Denoising(models.architecture(config), weighting=train_unet.WEIGHTING))

    def loss(batch):
        return of({"unet": params}, batch, jax.random.key(1))[0]

    plain = float(loss(batch))
    assert float(loss(batch | {"channels": -batch["channels"]})) != plain
    half = np.zeros((2, 16, 16, 1), np.float32)
    half[:, :8] = 2
    top, bottom = float(loss(batch | {"weights": half})), float(loss(batch | {"weights": half[:, ::-1]}))
    assert top != bottom
    np.testing.assert_allclose((top + bottom) / 2, plain, rtol=1e-5)
