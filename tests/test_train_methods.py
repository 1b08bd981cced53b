"""What learns: full training by rules, ControlNets, image prompts; and blocks computed again on the way back."""

import json
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import sdjax
from sdjax.config import UNetConfig
from sdjax.config.image_prompt import BASE, PLUS, ImagePromptConfig, ResamplerConfig
from sdjax.core import tree
from sdjax.core.jit import options
from sdjax.model.builtin import ASSETS
from sdjax.nn.conditioning import Conditions
from sdjax.nn.unet import UNet
from sdjax.train.architecture import Architecture
from sdjax.train.losses.denoising import Denoising
from sdjax.train.methods.controlnet import ControlDenoising, ControlNetTraining
from sdjax.train.methods.full import CROSS_ATTENTION, TEXT_ENCODER, Full
from sdjax.train.methods.image_prompt import ImagePromptDenoising, ImagePromptTraining
from sdjax.train.methods.rules import learning

UNET_JSON = (ASSETS / "shapes/unet/config.json").read_text()
KEY = jax.random.key(3)


@pytest.fixture(scope="module")
def sd() -> sdjax.StableDiffusion:
    return sdjax.load()


@pytest.fixture(scope="module")
def params(sd):
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), dict(sd.params))


@pytest.fixture(scope="module")
def architecture(sd):
    return Architecture.of(sd.networks.spec)


def batch(b: int = 2, **more):
    rng = np.random.default_rng(0)
    return {
        "latents": rng.standard_normal((b, 8, 8, 4)).astype(np.float32),
        "context": rng.standard_normal((b, 24, 128)).astype(np.float32),
        **more,
    }


def learnt(objective, method, begun, params, given):
    """The loss, and its gradient in what learns."""

    @jax.jit
    def run(own, params, given):
        return jax.value_and_grad(lambda own: objective(method.join(own, params), given, KEY)[0])(own)

    return run(begun, params, given)


def plain_loss(architecture, params):
    return jax.jit(Denoising(architecture))(params, batch(), KEY)[0]


# ---------------------------------------------------------------------- rules


def test_every_parameter_is_covered(params):
    with pytest.raises(ValueError, match=r"no rule says whether \w+/.* learns"):
        learning(params, (("^unet/", True),))


def test_a_rule_that_matches_nothing_is_refused(params):
    with pytest.raises(ValueError, match=r"the rule '\^unnet/' matches no parameter.*nearest: 'unet"):
        learning(params, (("^unnet/", True), ("", False)))
    with pytest.raises(ValueError, match="is no regular expression"):
        learning(params, (("(", True), ("", False)))
    with pytest.raises(ValueError, match="nothing learns"):
        learning(params, (("", False),))


def test_the_first_rule_that_matches_counts(params):
    chosen = learning(params, ((r"conv_in/bias", False), ("^unet/conv_in", True), ("", False)))
    assert chosen == {("unet", "conv_in", "kernel")}


@pytest.mark.parametrize(("rules", "words"), [(CROSS_ATTENTION, "attn2"), (TEXT_ENCODER, "text_model")])
def test_what_learns_in_full_training(params, architecture, rules, words):
    method = Full(rules)
    begun = method.start(params, KEY)
    paths = tree.flatten(begun)
    assert paths and all(words in path for path in paths)
    ids = np.full((2, 24), 5, np.int32)
    given = {name: value for name, value in batch().items() if name != "context"} | {"ids": {"text_encoder": ids}}
    objective = Denoising(architecture)
    _, gradient = learnt(objective, method, begun, params, given)
    assert tree.flatten(gradient).keys() == paths.keys()
    learns = [path for path, leaf in tree.flatten(gradient).items() if np.abs(leaf).max() > 0]
    assert len(learns) > 0.9 * len(paths)
    joined = method.join(jax.tree.map(lambda leaf: leaf + 1, begun), params)
    same = [path for path, leaf in tree.flatten(joined).items() if leaf is tree.flatten(params)[path]]
    assert len(same) == len(tree.flatten(params)) - len(paths), "what does not learn is the same array"


# ---------------------------------------------------------------------- beside the U-Net


def test_a_fresh_controlnet_changes_nothing_and_learns(sd, params, architecture, tmp_path):
    method = ControlNetTraining(UNET_JSON, (4, 8, 8, 12))
    objective = ControlDenoising(architecture, control=method.config)
    begun = method.start(params, KEY)
    given = batch(map=np.random.default_rng(1).random((2, 64, 64, 3), np.float32))
    loss, gradient = learnt(objective, method, begun, params, given)
    assert np.isclose(loss, plain_loss(architecture, params), rtol=1e-6), "zeros lead out of it"
    moved = {path[0] for path, leaf in tree.flatten(gradient).items() if np.abs(leaf).max() > 0}
    assert moved == {name for name in begun if name.startswith("controlnet_") and "embedding" not in name}

    begun = jax.tree.map(lambda leaf: leaf + 0.01, begun)
    folder = method.write(begun, params, tmp_path, {"title": "from a test"})
    net = sdjax.load_controlnet(folder)
    assert net.metadata["title"] == "from a test"
    picture = np.asarray(given["map"][0] * 255, np.uint8)
    drawn = sd.generate("a red circle", control=[(net, picture)], steps=2, height=64, width=64, seed=0, decode=False)
    plain = sd.generate("a red circle", steps=2, height=64, width=64, seed=0, decode=False)
    assert np.abs(drawn.latents - plain.latents).max() > 1e-3
    with pytest.raises(ValueError, match="this batch has none under 'map'"):
        objective(method.join(begun, params), batch(), KEY)


KINDS = [
    ImagePromptConfig(BASE, 128, 128, 4),
    ImagePromptConfig(PLUS, 32, 128, 5, ResamplerConfig(64, 1, 1, 96)),
]


@pytest.mark.parametrize("config", KINDS, ids=lambda config: config.kind)
def test_an_image_prompt_learns_and_is_read_again(params, architecture, tmp_path, config):
    method, objective = ImagePromptTraining(config), ImagePromptDenoising(architecture, image_prompt=config)
    begun = method.start(params, KEY)
    shape = (2, 7, 32) if config.takes_states else (2, 128)
    given = batch(embedding=np.random.default_rng(2).standard_normal(shape).astype(np.float32))
    loss, gradient = learnt(objective, method, begun, params, given)
    assert not np.isclose(loss, plain_loss(architecture, params), rtol=1e-4)
    assert all(np.abs(leaf).max() > 0 for path, leaf in tree.flatten(gradient).items())
    with pytest.raises(ValueError, match="none under 'embedding'"):
        objective(method.join(begun, params), batch(), KEY)

    path = method.write(begun, params, tmp_path, {"title": "from a test"})
    if config.kind == BASE:
        read = sdjax.load_image_prompt(path, image_encoder=ASSETS / "control/image_encoder").bind(params["unet"])
        for name, other in (("image_proj", "image_proj"), ("attention", "ip_adapter")):
            ours, theirs = tree.flatten(begun[other]), tree.flatten(read[name])
            assert ours.keys() == theirs.keys()
            assert all(np.array_equal(ours[one], theirs[one]) for one in ours)


# ---------------------------------------------------------------------- computed again


def test_remat_gives_the_same_and_holds_less(params):
    config = UNetConfig.from_dict(json.loads(UNET_JSON))
    x, t = jnp.ones((4, 32, 32, 4)), jnp.array([3.0, 500.0, 20.0, 999.0])
    conditions = Conditions(jnp.asarray(np.random.default_rng(0).standard_normal((4, 24, 128)), jnp.float32))

    def compiled(remat: bool):
        unet = UNet(config, remat=remat)
        loss = lambda own: jnp.mean(jnp.square(unet.apply({"params": own}, x, t, conditions)))  # noqa: E731
        return jax.jit(jax.value_and_grad(loss), compiler_options=options()).lower(params["unet"]).compile()

    plain, again = compiled(False), compiled(True)
    (loss, gradient), (other, others) = plain(params["unet"]), again(params["unet"])
    assert np.isclose(loss, other, rtol=1e-6)
    for path, leaf in tree.flatten(gradient).items():
        scale = np.abs(leaf).max()
        assert np.abs(leaf - tree.flatten(others)[path]).max() <= 1e-3 * scale + 1e-9, path
    held, less = (one.memory_analysis().temp_size_in_bytes for one in (plain, again))
    assert less < 0.75 * held, f"{less / 1e6:.0f} MB of {held / 1e6:.0f} MB"


def test_an_architecture_is_hashable_and_refuses_an_unknown_prediction(architecture):
    assert hash(architecture) == hash(replace(architecture)) and architecture.prediction == "v_prediction"
    with pytest.raises(ValueError, match="known: epsilon, v_prediction"):
        replace(architecture, prediction="noise")
