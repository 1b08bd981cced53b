"""Adapters of the shapes model: what they learn from and are judged by, the training of factors, the files shipped."""

import re
import warnings
from collections import Counter

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

import sdjax
from experiments.shapes import lessons, meanings, models, new_word, score_adapters, world
from experiments.shapes.score import score
from experiments.shapes.train_unet import WEIGHTING
from sdjax.adapters.locate import ASSETS
from sdjax.config import UNetConfig
from sdjax.nn.shapes import expected_params
from sdjax.train.averages import Decay
from sdjax.train.losses.preserving import Preserving
from sdjax.train.methods import low_rank
from sdjax.train.methods.lora import LoRA
from sdjax.train.optimisers import Optimiser
from sdjax.train.step import make_step

SMALL = UNetConfig.from_dict(
    models.UNET_JSON
    | {"block_out_channels": [8, 16], "norm_num_groups": 4, "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D"]}
    | {"up_block_types": ["CrossAttnUpBlock2D", "UpBlock2D"]}
)
LAYERS = re.compile(r"attn2|up_blocks\.1.*conv[12]|conv_shortcut|downsamplers")
SEED = 1_000_004


# ---------------------------------------------------------------------- the world


@pytest.mark.parametrize("name", ["hexagon", "lime"])
def test_the_scorer_knows_what_is_new(name):
    scenes = [lessons.held_out(name, 60, things, SEED) for things in (1, 2)]
    pictures = [[world.render(scene, np.random.default_rng([1, i])) for i, scene in enumerate(own)] for own in scenes]
    for own, drawn in zip(scenes, pictures, strict=True):
        assert np.mean([score(picture, scene.caption()).ok for picture, scene in zip(drawn, own, strict=True)]) >= 0.98
    wrong = {"hexagon": "circle", "lime": "blue"}[name]
    for scene, picture in zip(scenes[0], pictures[0], strict=True):
        if wrong not in scene.caption():
            assert not score(picture, scene.caption().replace(name, wrong), [name]).ok


def test_an_old_shape_is_no_hexagon_and_is_judged_as_before():
    right = [(score(picture, scene).ok, score(picture, scene, ["hexagon", "lime"]).ok)
             for picture, scene in world.examples(3, 0, 100, pairs="any")]  # fmt: skip
    assert np.mean(right, axis=0).tolist() == [1.0, 1.0]
    picture = world.render(world.parse_caption("a large red circle"), np.random.default_rng(0))
    assert score(picture, "a large red circle").ok and score(picture, "a large red hexagon").errors == ("shape",)


@pytest.mark.parametrize("name", ["hexagon", "lime"])
def test_the_twenty_pictures(name):
    taught = lessons.twenty(name)
    captions = [scene.caption() for scene, _ in taught]
    assert len(taught) == 20 and len({picture.tobytes() for _, picture in taught}) == 20
    assert Counter(len(scene.things) for scene, _ in taught) == {1: 12, 2: 8}
    assert not {lessons.other(name, scene) for scene, _ in taught} & {*lessons.OTHERS}
    asked = lessons.held_out(name, 200, 1, SEED)
    assert len({scene.caption() for scene in asked}) == 200 and not {scene.caption() for scene in asked} & {*captions}
    kinds = world.COLOURS if name == "hexagon" else world.SHAPES
    assert {lessons.other(name, scene) for scene in asked} >= {*lessons.OTHERS} & {*kinds}
    assert [scene.caption() for scene, _ in lessons.twenty(name)] == captions


def test_a_variant_shows_what_its_caption_says():
    rng = np.random.default_rng(0)
    for scene, picture in lessons.twenty("hexagon"):
        made = [lessons.variant(scene, picture, rng) for _ in range(8)]
        assert all(score(changed, told).ok for told, changed in made)
        assert len({changed.tobytes() for _, changed in made}) > 4


def test_nothing_but_what_is_new_can_be_learnt():
    with pytest.raises(ValueError, match="'circle' is nothing new; there are hexagon, lime"):
        next(lessons.scenes("circle", 0))


# ---------------------------------------------------------------------- the word


def test_the_word_is_told_in_place_of_an_outline():
    tokenizer = models.tokenizer()
    scene = world.parse_caption("a small red hexagon above a blue ring on a pink background")
    told, like = (
        new_word.states(scene, "hexagon", tokenizer),
        world.parse_caption(scene.caption().replace("hexagon", "circle")),
    )
    slots = slice(-len(meanings.SLOTS), None)
    old = meanings.codes([like])[0]
    np.testing.assert_allclose(np.linalg.norm(told, axis=1), meanings.LENGTH, rtol=1e-6)
    differ = np.flatnonzero((told[slots] != old[slots]).any(1))
    assert differ.tolist() == [meanings.SLOTS.index("top")]
    columns = np.flatnonzero((told[slots] != old[slots]).any(0)).tolist()
    assert new_word.SPARE in columns and len(columns) == 4
    last = 1 + len(tokenizer.pieces("a small red hexagon")) - 1
    assert told[last, new_word.SPARE] > 0 and not told[:last, new_word.SPARE].any()
    np.testing.assert_array_equal(told[last + 1], old[last + 1 - len(tokenizer.pieces("hexagon")) + 1])


def test_captions_of_the_text_stage_hold_no_other_colour():
    captions = new_word.Captions("hexagon", models.tokenizer(), lambda ids: np.zeros((*ids.shape, 128)), 32, 0)
    batch = captions.batch(5)
    assert batch["ids"].shape == (32, 24) and batch["codes"].shape == (32, 24, 128)
    assert (batch["codes"][:16, :, new_word.SPARE] > 0).any(1).all()
    np.testing.assert_array_equal(batch["ids"], captions.batch(5)["ids"])
    scenes = [scene for scene, _ in zip(new_word.taught("hexagon", 0), range(200), strict=False)]
    assert not {lessons.other("hexagon", scene) for scene in scenes} & {*lessons.OTHERS}


# ---------------------------------------------------------------------- the factors


def random(shapes, seed: int = 0):
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: (rng.normal(size=leaf.shape) / 4).astype(np.float32), shapes)


@pytest.fixture(scope="module")
def small():
    shapes = expected_params({"unet": SMALL})["unet"]
    return random(shapes)


def test_what_was_trained_is_read_back_to_train_on(small, tmp_path):
    method = LoRA(4, alpha=2.0, layers=(("unet", LAYERS.pattern),))
    learnt = random(method.start({"unet": small}, jax.random.key(0)))
    file = method.write(learnt, {"unet": small}, tmp_path, {})
    read, scale = low_rank.untensors(load_file(file), {"unet": small})
    assert scale == 0.5
    jax.tree.map(np.testing.assert_array_equal, read["unet"], learnt["unet"])


def test_mistakes_with_factors(small):
    with pytest.raises(ValueError, match="no layer mid_block.nowhere"):
        low_rank.worn(small, {"mid_block.nowhere": {}}, 1.0)
    with pytest.raises(ValueError, match="no adapter that was trained here: lora_unet_x"):
        low_rank.untensors(
            {"lora_unet_x.lora_down.weight": np.zeros((4, 2)), "lora_unet_x.alpha": np.array(4)}, {"unet": small}
        )


@pytest.fixture(scope="module")
def pools():
    rng = np.random.default_rng(0)
    sizes = {"latents": (8, 8, 8, 4), "context": (8, 5, 128)}
    return {kind: {name: rng.normal(size=size).astype(np.float32) for name, size in sizes.items()}
            for kind in ("new", "old")}  # fmt: skip


def test_lessons_weigh_the_kinds_by_their_own_means(pools):
    """Whatever the errors are, and in whatever numbers the kinds come."""
    batch = lessons.Lessons(pools, (3, 2), 0, prior=5.0).batch(0)
    assert batch["preserved"].tolist() == [0, 0, 0, 1, 1]
    each = np.array([1.0, 2, 4, 8, 32])
    np.testing.assert_allclose((each * batch["weight"]).mean(), each[:3].mean() + 5 * each[3:].mean())
    assert all(any(np.array_equal(one, known) for known in pools["old"]["latents"]) for one in batch["latents"][3:])
    alone = lessons.Lessons({"new": pools["new"]}, (4,), 0).batch(0)
    assert alone["weight"].tolist() == [1.0] * 4 and not alone["preserved"].any()


def test_only_the_factors_learn(small, pools):
    method = LoRA(4, layers=(("unet", LAYERS.pattern),))
    objective = Preserving(models.architecture(SMALL), weighting=WEIGHTING)
    params = {"unet": small, "reference": {"unet": small}}
    fresh = method.start(params, jax.random.key(0))
    batch, strict = (lessons.Lessons(pools, (3, 2), 0, prior=prior).batch(0) for prior in (1.0, 100.0))
    before = jax.tree.map(np.array, small)
    loss = jax.jit(lambda factors, batch: objective(method.join(factors, params), batch, jax.random.key(0))[0])
    # Before the first step nothing is forgotten: the weight of the old captions makes no difference.
    np.testing.assert_allclose(loss(fresh, batch), loss(fresh, strict), rtol=1e-5)
    learnt = random(fresh, 1)
    assert loss(learnt, strict) > 1.2 * loss(learnt, batch)
    step = make_step(objective, method, fresh, params, Optimiser("adamw"), [Decay(0.9)])
    state, metrics = step(step.begin(fresh), batch, jax.random.key(0), 1e-2)
    assert jax.tree.structure(state.params) == jax.tree.structure(fresh) and metrics["gradient_norm"] > 0
    assert all(np.asarray(one["up"]).any() for one in state.params["unet"].values())
    jax.tree.map(np.testing.assert_array_equal, small, before)


# ---------------------------------------------------------------------- what is shipped


@pytest.fixture(scope="module")
def sd():
    return sdjax.load(compilation_cache=False)


def test_the_shipped_files(sd):
    lora, inversion = (load_file(ASSETS / f"{name}.safetensors") for name in ("hexagon", "lime"))
    for path in ASSETS.glob("*.safetensors"):
        assert path.stat().st_size < 300_000
    factors, scale = low_rank.untensors(lora, sd.params)
    assert scale == 1.0 and {len(one["up"]) for own in factors.values() for one in own.values()} == {8}
    assert all(np.isfinite(array).all() for array in (*lora.values(), *inversion.values()))
    assert inversion["<lime>"].shape[1] == models.TEXT_WIDTH
    assert {"lora_unet", "lora_te_t"} == {name[:9] for name in lora}


def test_the_shipped_adapters_draw_what_they_learnt(sd):
    scenes = [scene for name in ("hexagon", "lime") for scene in lessons.held_out(name, 6, 1, SEED)]
    prompts = [scene.caption().replace("lime", "<lime>") for scene in scenes]
    worn = {"adapters": [("hexagon", [1.0] * 6 + [0.0] * 6)], "embeddings": {"<lime>": "lime"}}
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # of words that the model does not know: it was taught both
        made = sd.generate(prompts, steps=10, progress=False, **worn).pixels
    errors = [score(picture, scene).errors for picture, scene in zip(made, scenes, strict=True)]
    # Ten steps are fewer than what the figures were measured with; the base would have none right.
    assert sum(not one for one in errors[:6]) >= 4 and sum("colour" not in one for one in errors[6:]) >= 2, errors


@pytest.mark.ci
@pytest.mark.optimised
def test_the_shipped_adapters_in_full(sd):
    """At least so much of 200 held-out captions; measured when they were shipped: assets/adapters/README.md."""
    hexagon = {"adapters": [("hexagon", 1.0)]}
    for worn, name, written, kind, least in (
        (hexagon, "hexagon", "hexagon", None, 0.85),
        ({"embeddings": {"<lime>": "lime"}}, "lime", "<lime>", "colour", 0.75),
    ):
        scenes = lessons.held_out(name, 200, 1, score_adapters.report.SEED)
        prompts = [scene.caption().replace(name, written) for scene in scenes]
        made = score_adapters.report.pictures(sd, prompts, 50, worn)
        found = [score(picture, scene).errors for picture, scene in zip(made, scenes, strict=True)]
        assert np.mean([not errors if kind is None else kind not in errors for errors in found]) >= least
    scenes = score_adapters.report.scenes(200, None, "seen")
    prompts = [scene.caption() for scene in scenes]
    rights = [
        np.mean([
            score(picture, scene, ["hexagon", "lime"]).ok
            for picture, scene in zip(score_adapters.report.pictures(sd, prompts, 50, own), scenes, strict=True)
        ])
        for own in ({}, hexagon)
    ]  # fmt: skip
    assert rights[1] >= rights[0] - 0.06
