"""What steers the shapes model: maps, the measures of obedience, and files in the published formats."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file

import sdjax
from experiments.shapes import (
    control_lora,
    depth,
    edges,
    encode_control,
    image_tokens,
    models,
    train_control,
    train_image_prompt,
    train_pictures,
)
from experiments.shapes.objects import label
from experiments.shapes.train_unet import WEIGHTING
from sdjax.core import tree
from sdjax.core.tree import modules_named
from sdjax.model.builtin import ASSETS
from sdjax.nn.conditioning import Conditions
from sdjax.nn.image_prompt import attention_paths
from sdjax.train.losses.denoising import Denoising
from sdjax.train.methods.image_prompt import ImagePromptDenoising

CONTROL = ASSETS / "control"


def moved(picture: np.ndarray, by: int) -> np.ndarray:
    return np.roll(picture, by, axis=1)


def test_the_regions_of_a_map_are_the_objects():
    """Lines filled are what the world drew, but for the lines themselves, whatever the colours, however sharp a tip."""
    for case in depth.cases(5, 0, 60, overlapping=0.0):
        lines = edges.lines(case.picture)
        drawn = [edges.filled(case.depth == number + 1) for number in range(len(case.order))]
        found = edges.regions(lines)
        assert len(found) == len(drawn)
        for region in found:
            one = max(drawn, key=lambda mask: (mask & region).sum())
            assert ((one & region & ~lines).sum() / ((one | region) & ~lines).sum()) > 0.95


def test_a_picture_obeys_its_own_map_and_no_other():
    cases = list(depth.cases(6, 0, 30, overlapping=0.0))
    for case, other in zip(cases, cases[1:], strict=False):
        lines = edges.lines(case.picture)
        assert min(edges.overlaps(case.picture, lines)) > 0.95
        assert not edges.obeys(edges.overlaps(moved(case.picture, 12), lines))
        assert not edges.obeys(edges.overlaps(np.full_like(case.picture, 90), lines))
        if {t.shape for t in case.scene.things} != {t.shape for t in other.scene.things}:
            assert not edges.obeys(edges.overlaps(other.picture, lines))
    assert not edges.obeys([])


def test_two_things_overlap_as_often_as_asked():
    for part, parts in ((0.0, 2), (1.0, 1)):
        cases = list(depth.cases(7, 0, 40, things=2, overlapping=part))
        assert sum(label(case.depth > 0)[1] == parts for case in cases) >= 36
    mixed = [label(case.depth > 0)[1] for case in depth.cases(7, 0, 200, things=2, overlapping=0.5)]
    assert 70 < mixed.count(1) < 130


def test_overlapping_pictures_are_known_by_their_depth():
    for part, expected in ((0.0, 0), (1.0, 30)):
        cases = list(depth.cases(7, 0, 30, things=2, overlapping=part))
        assert abs(train_control.overlap(np.array([case.depth for case in cases])).sum() - expected) <= 2
    assert not train_control.overlap(np.array([case.depth for case in depth.cases(7, 0, 5, things=1)])).any()


@pytest.fixture(scope="module")
def unet():
    return train_pictures.shipped_unet()


@pytest.fixture(scope="module")
def changed(unet):
    """A net as if it had been trained: nothing of it is zero."""
    rng = np.random.default_rng(0)
    trained = control_lora.fresh(unet, 3, jax.random.key(0))
    return jax.tree.map(lambda p: np.float32(np.float16(p + 0.03 * rng.standard_normal(p.shape))), trained)


def batch_of(count: int) -> dict:
    """A batch as `train_control.Steering` takes it."""
    rng = np.random.default_rng(1)
    cases = list(depth.cases(8, 0, count))
    drawn = np.packbits([edges.lines(case.picture) for case in cases], axis=-1)
    latents = rng.standard_normal((count, 16, 16, 4)).astype(np.float32)
    context = rng.standard_normal((count, models.MAX_LENGTH, models.TEXT_WIDTH)).astype(np.float32)
    weights = np.ones((count, 16, 16, 1), np.float32)
    return {"map": train_control.seen("edges", drawn), "latents": latents, "context": context, "weights": weights}


def test_maps_are_seen_as_they_were_drawn():
    cases = list(depth.cases(9, 0, 4, things=2))
    lines = np.stack([edges.lines(case.picture) for case in cases])
    seen = train_control.seen("edges", np.packbits(lines, axis=-1))
    assert seen.shape == (4, 128, 128, 3) and seen.dtype == np.float32
    np.testing.assert_array_equal(seen, np.repeat(lines[..., None], 3, -1))
    near = train_control.seen("depth", np.array([case.depth for case in cases], np.uint8))
    assert set(np.unique(near)) == {0.0, 0.5, 1.0}
    assert all((near[i, ..., 0] == 1)[case.depth == 2].all() for i, case in enumerate(cases))


def steering(repeat: int) -> train_control.Steering:
    control = control_lora.CONFIG
    return train_control.Steering(models.architecture(), weighting=WEIGHTING, control=control, repeat=repeat)


def test_a_net_before_training_changes_nothing(unet):
    batch, method = batch_of(2), control_lora.TrainControlLora(2)
    params = method.join(method.start({"unet": unet}, jax.random.key(0)), {"unet": unet})
    x, t = jnp.asarray(batch["latents"]), jnp.array([10, 900])
    conditions = Conditions(jnp.asarray(batch["context"]))
    added = jax.jit(steering(1).injected)(params, batch, x, t, conditions)
    assert not any(np.asarray(leaf).any() for leaf in jax.tree.leaves(added))
    assert len(added.skips) == 6


def test_every_part_of_a_net_learns(unet, changed):
    """The gradient reaches every tensor, and none of the U-Net's own is among what is learnt."""
    method, batch = control_lora.TrainControlLora(3), batch_of(2)

    def loss(trained):
        return steering(2)(method.join(trained, {"unet": unet}), batch, jax.random.key(1))[0]

    value, gradients = jax.jit(jax.value_and_grad(loss))(changed)
    assert np.isfinite(value)
    dead = {path for path, leaf in tree.flatten(gradients).items() if not np.asarray(leaf).any()}
    assert not dead
    assert sum(leaf.size for leaf in jax.tree.leaves(gradients)) < 500_000


def test_a_map_is_looked_at_once_for_all_its_noises(unet, changed):
    """The same loss as of a batch in which every picture stands twice with its map."""
    params, batch = control_lora.TrainControlLora(3).join(changed, {"unet": unet}), batch_of(2)
    drawn = steering(2).draw(batch, jax.random.key(1))
    assert drawn["timesteps"].shape == drawn["keys"].shape == (2, 2)
    assert sorted(np.asarray(drawn["timesteps"]).ravel() // 250) == [0, 1, 2, 3]  # stratified over all of them
    twice = {name: np.repeat(leaf, 2, axis=0) for name, leaf in batch.items()}
    twice |= {name: drawn[name].reshape(4, 1) for name in ("keys", "timesteps")}
    value, told = jax.jit(steering(2).loss)(params, drawn)
    np.testing.assert_allclose(value, jax.jit(steering(1).loss)(params, twice)[0], rtol=1e-5)
    assert told["count"] == 2


def test_a_file_holds_what_was_learnt_by_the_published_names(unet, changed):
    written = control_lora.tensors(changed)
    assert {"lora_controlnet", "input_hint_block.14.bias", "zero_convs.5.0.weight", "middle_block_out.0.weight"} <= set(
        written
    )
    assert written["input_blocks.1.0.in_layers.2.down"].shape == (3, 64, 3, 3)
    assert written["input_blocks.1.0.in_layers.2.up"].shape == (64, 3, 1, 1)
    assert written["middle_block.1.transformer_blocks.0.attn2.to_k.down"].shape == (3, models.TEXT_WIDTH)
    assert "input_blocks.1.0.in_layers.2.weight" not in written and not any("blocks.0.resnets" in n for n in written)
    read = control_lora.untensors(written, unet)
    assert tree.flatten(read).keys() == tree.flatten(changed).keys()
    for path, leaf in tree.flatten(read).items():
        np.testing.assert_array_equal(leaf, tree.flatten(changed)[path])


def test_a_written_net_is_the_trained_one(unet, changed, tmp_path):
    """As everyone reads it: the U-Net's kernels plus the products of the factors, all else as it was learnt."""
    control_lora.save(tmp_path / "net", changed, {"of": "a test"})
    net = sdjax.load_controlnet(tmp_path / "net")
    assert net.kind == "control_lora" and net.config == control_lora.CONFIG and net.metadata["of"] == "a test"
    read, worn = tree.flatten(net.params(unet)), tree.flatten(control_lora.worn(unet, changed))
    factors = {path[:-1]: leaf for path, leaf in worn.items() if path[-1] == "low_rank"}
    assert set(read) == set(worn) - {(*path, "low_rank") for path in factors}
    for path, leaf in read.items():
        wanted = np.asarray(worn[path], np.float32)
        if path[-1] == "kernel" and path[:-1] in factors:
            wanted = wanted + np.asarray(factors[path[:-1]].down) @ np.asarray(factors[path[:-1]].up)
        np.testing.assert_allclose(leaf, wanted, atol=1e-6, err_msg=str(path))


def test_a_picture_tells_all_that_its_caption_would():
    drawn = image_tokens.scenes(3, 0, 20)
    for scene, small in drawn:
        assert scene.background and all(thing.size for thing in scene.things)
        assert small.shape == (64, 64, 3)
    tokens = image_tokens.targets([scene.caption() for scene, _ in drawn]).astype(np.float32)
    assert tokens.shape == (20, 6, models.TEXT_WIDTH)
    scenes = [scene for scene, _ in drawn]
    assert image_tokens.right(tokens, scenes).mean() > 0.9
    assert image_tokens.right(tokens, scenes[1:] + scenes[:1]).mean() < 0.1


def test_an_image_prompt_begins_with_the_keys_and_values_of_texts(unet):
    """Where the projection gives a text's states, a picture's keys and values are those of that text."""
    params = image_tokens.init_params(0)
    begun = train_image_prompt.begun(params, unet)
    assert tuple(begun["ip_adapter"]) == attention_paths(unet) and len(begun["ip_adapter"]) == 7
    objective = ImagePromptDenoising(models.architecture(), image_prompt=image_tokens.CONFIG)
    x, t, text = jnp.zeros((2, 16, 16, 4)), jnp.array([500, 500]), Conditions(jnp.zeros((2, 24, models.TEXT_WIDTH)))
    embedding = jax.random.normal(jax.random.key(2), (2, models.TEXT_WIDTH))
    added = objective.injected({"image_prompt": begun}, {"embedding": embedding}, x, t, text)
    tokens = np.asarray(train_image_prompt.projected(params["image_proj"], embedding))
    (images,), layers = added.images, dict(modules_named(unet, ("attn2",)))
    assert images.keys_values.keys() == layers.keys()
    for path, pair in images.keys_values.items():
        for made, name in zip(pair, ("to_k", "to_v"), strict=True):
            np.testing.assert_allclose(made, tokens @ layers[path][name]["kernel"], atol=1e-4)


def test_a_picture_takes_part(unet):
    """With keys and values of zeros, attention to which is zero, the loss is the U-Net's own; as they begin, not."""
    begun = train_image_prompt.begun(image_tokens.init_params(0), unet)
    silent = begun | {"ip_adapter": jax.tree.map(jnp.zeros_like, begun["ip_adapter"])}
    batch = {name: leaf for name, leaf in batch_of(1).items() if name != "map"}
    batch["embedding"] = np.random.default_rng(2).standard_normal((1, models.TEXT_WIDTH)).astype(np.float32)
    told = {"weighting": WEIGHTING, "image_prompt": image_tokens.CONFIG}
    loss = jax.jit(ImagePromptDenoising(models.architecture(), **told))
    quiet, loud = (loss({"unet": unet, "image_prompt": own}, batch, jax.random.key(0))[0] for own in (silent, begun))
    plain = jax.jit(Denoising(models.architecture(), weighting=WEIGHTING))({"unet": unet}, batch, jax.random.key(0))[0]
    np.testing.assert_allclose(quiet, plain, rtol=1e-5)
    assert abs(loud / quiet - 1) > 0.01


def test_a_written_image_prompt_is_the_trained_one(unet, tmp_path):
    params = image_tokens.init_params(0)
    half = jax.tree.map(lambda p: np.float32(np.float16(p)), train_image_prompt.begun(params, unet))
    file = train_image_prompt.save(tmp_path, params["image_encoder"], half, unet, {})
    written = load_file(file)
    assert written["image_proj.proj.weight"].shape == (6 * models.TEXT_WIDTH, models.TEXT_WIDTH)
    assert written["ip_adapter.13.to_k_ip.weight"].shape == (160, models.TEXT_WIDTH)
    assert {array.dtype.name for array in written.values()} == {"float16"}
    adapter = sdjax.load_image_prompt(file)
    assert adapter.config == image_tokens.CONFIG and adapter.encoder.config == image_tokens.ENCODER
    read = adapter.bind(unet)
    for part, own in {"image_proj": half["image_proj"], "attention": half["ip_adapter"]}.items():
        for path, leaf in tree.flatten(own).items():
            np.testing.assert_array_equal(tree.flatten(read[part])[path], leaf, str(path))


def test_the_data_are_the_same_wherever_they_are_cut(tmp_path):
    tokenizer = models.tokenizer()

    def encode(pixels):
        return pixels[:, ::8, ::8, :1].astype(np.float16)

    whole = encode_control.encoded(encode, tokenizer, 0, 6)
    part = encode_control.encoded(encode, tokenizer, 4, 2)
    assert tuple(whole) == encode_control.NAMES
    for name, values in part.items():
        np.testing.assert_array_equal(whole[name][4:], values)
    with pytest.raises(ValueError, match="run experiments.shapes.encode_control first"):
        encode_control.data(tmp_path)


def test_what_is_shipped_is_read_and_is_small(unet):
    for name in ("edges", "depth"):
        net = sdjax.load_controlnet(CONTROL / name)
        assert net.config == control_lora.CONFIG
        assert all(np.isfinite(np.asarray(leaf, np.float32)).all() for leaf in jax.tree.leaves(net.params(unet)))
    prompt = sdjax.load_image_prompt(CONTROL / "image_prompt.safetensors")
    assert prompt.config == image_tokens.CONFIG and prompt.encoder.config == image_tokens.ENCODER
    assert sum(path.stat().st_size for path in CONTROL.rglob("*") if path.is_file()) < 6e6


def test_the_shipped_encoder_reads_pictures_that_it_never_saw(unet):
    """Of one object: colour, shape, size and ground, from the pixels alone."""
    prompt = sdjax.load_image_prompt(CONTROL / "image_prompt.safetensors")
    drawn = image_tokens.scenes(77, 0, 60, one=1.0)
    params = {"image_encoder": prompt.encoder.params, "image_proj": prompt.bind(unet)["image_proj"]}
    scenes = [scene for scene, _ in drawn]
    embeddings = train_image_prompt.embeddings(params, np.stack([small for _, small in drawn]))
    tokens = np.asarray(train_image_prompt.projected(params["image_proj"], embeddings))
    assert image_tokens.right(tokens.astype(np.float32), scenes).mean() > 0.95


@pytest.mark.ci  # compiles the sampler with a net
def test_the_shipped_edge_net_is_obeyed():
    cases = list(depth.cases(78, 0, 8, things=1))
    maps = [Image.fromarray(np.uint8(255 * edges.lines(case.picture))) for case in cases]
    net = sdjax.Control(sdjax.load_controlnet(CONTROL / "edges"), maps)
    out = sdjax.load().generate([case.scene.caption() for case in cases], control=net, seed=0, progress=False)
    assert out.pixels is not None
    found = [
        edges.overlaps(picture, edges.lines(case.picture)) for picture, case in zip(out.pixels, cases, strict=True)
    ]
    assert sum(edges.obeys(one) for one in found) >= 7
