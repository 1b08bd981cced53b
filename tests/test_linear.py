"""A parameter beside a kernel: it takes part wherever that kernel is read, or is refused by its path.

Each network runs as its program runs it, on shapes alone: the U-Net with keys, values and times made before the loop,
and a text of several pieces; the VAE in both directions, whole and in tiles.
"""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sdjax.config import ClipTextConfig, ClipVisionConfig, DepthConfig, UNetConfig, VaeConfig
from sdjax.core.tree import flatten, unflatten
from sdjax.diffusion.guidance import Guidance
from sdjax.diffusion.inpaint import KnownRegion
from sdjax.diffusion.plan import plan
from sdjax.nn import linear as linear_
from sdjax.nn.attention import Attention, cross_keys_values
from sdjax.nn.conditioning import Added, Chunks, Conditions, Signals
from sdjax.nn.layers import Conv, Dense, Embed, GroupNorm, LayerNorm
from sdjax.nn.linear import linear
from sdjax.nn.shapes import expected_params
from sdjax.nn.tiling import tiles
from sdjax.runtime import programs
from sdjax.runtime.denoisers import denoiser_of
from tests import checkpoints

F32 = jnp.dtype("float32")


def array(*shape: int, dtype: str = "float32") -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, dtype)


def unet(config: UNetConfig, params) -> None:
    """Two rows of a guided run for one picture, with all that such a U-Net is told."""
    denoiser, table = denoiser_of(config, F32), plan("euler", 2, checkpoints.SCHEDULER).table()
    chunks = Chunks({}, array(2, 3, 5, config.cross_attention_dim), array(2, dtype="int32"))
    text = jax.eval_shape(partial(programs.precompute_kv.function, denoiser), params, Conditions(chunks))
    given = Conditions(
        text.context,
        added=Added(array(2, 16), array(2, 6)) if config.addition_embed_type else None,
        guidance=array(2, config.time_cond_proj_dim) if config.time_cond_proj_dim else None,
    )
    x = array(1, 8, 8, 4)
    known = jax.eval_shape(KnownRegion.nothing, x)
    carry = jax.eval_shape(partial(programs.begin.function, None), x, known, array(2, 1), table)
    guidance = Guidance(jnp.ones((len(table), 1)), jnp.zeros((len(table), 1)))
    jax.eval_shape(partial(programs.run_rows.function, denoiser, None), carry, table, params, given, guidance, known)


def vae(config: VaeConfig, params) -> None:
    pixels = array(1, 8, 8, 3)
    jax.eval_shape(partial(programs.encode.function, config, F32), params, pixels, None)
    jax.eval_shape(partial(programs.decode.function, config, F32), params, array(1, 4, 4, config.latent_channels))


def vae_in_tiles(config: VaeConfig, params) -> None:
    limits = tiles.Limits(whole=0, held=0, tile=8)
    jax.eval_shape(partial(tiles.encode, config, F32, limits=limits), params, array(1, 16, 16, 3))
    jax.eval_shape(partial(tiles.decode, config, F32, limits=limits), params, array(1, 8, 8, config.latent_channels))


def text(config: ClipTextConfig, params) -> None:
    ids = array(config.max_position_embeddings, dtype="int32")
    jax.eval_shape(partial(programs.encode_text.function, config, F32, True), params, ids, array(dtype="int32"))


def vision(config: ClipVisionConfig, params) -> None:
    jax.eval_shape(partial(programs.encode_image.function, config, F32), params, array(32, 32, 3))


def depth(config: DepthConfig, params) -> None:
    jax.eval_shape(partial(programs.estimate_depth.function, config, F32), params, array(64, 64, 3))


XL = {
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 8,
    "projection_class_embeddings_input_dim": 64,
    "use_linear_projection": True,
    "time_cond_proj_dim": 5,
}
IDS = {"vocab_size": 20, "bos_token_id": 18, "eos_token_id": 19}
DEPTH = DepthConfig(
    hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2, image_size=64, patch_size=16,
    layer_norm_eps=1e-6, qkv_bias=True, taken=(0, 1), neck_hidden_sizes=(16, 24, 32, 20), fusion_hidden_size=16,
    bit_stem=8, bit_widths=(16, 24, 40), bit_depths=(1, 2, 1), bit_groups=4,
)  # fmt: skip
VISION = ClipVisionConfig.from_dict(
    dict(
        architectures=["CLIPVisionModelWithProjection"], hidden_act="quick_gelu", layer_norm_eps=1e-5, hidden_size=24,
        intermediate_size=40, num_hidden_layers=1, num_attention_heads=3, image_size=32, patch_size=8,
        projection_dim=20, num_channels=3,
    )
)  # fmt: skip
NETWORKS = {
    "sd": (unet, UNetConfig.from_dict(checkpoints.UNET)),
    "cross only": (unet, UNetConfig.from_dict(checkpoints.UNET | {"only_cross_attention": [True, False]})),
    "xl": (unet, UNetConfig.from_dict(checkpoints.UNET | XL)),
    "vae": (vae, VaeConfig.from_dict(checkpoints.VAE)),
    "vae in tiles": (vae_in_tiles, VaeConfig.from_dict(checkpoints.VAE)),
    "text": (text, ClipTextConfig.from_dict(checkpoints.TEXT | IDS)),
    "projected text": (
        text,
        ClipTextConfig.from_dict(
            checkpoints.TEXT | IDS | {"architectures": ["CLIPTextModelWithProjection"], "projection_dim": 8}
        ),
    ),
    "vision": (vision, VISION),
    "depth": (depth, DEPTH),
}


@cache
def leaves(name: str) -> dict:
    """The network's parameters by path, shapes alone."""
    return flatten(expected_params({"it": NETWORKS[name][1]})["it"])


def layers(name: str) -> list[tuple[str, ...]]:
    """The paths of all layers that have parameters: with a kernel, a norm's scale or an embedding."""
    known = ("kernel", "scale", "embedding")
    return [path[:-1] for path in leaves(name) if path[-1] in known]


def beside(name: str, *paths: tuple[str, ...]) -> dict:
    """The network's parameters, and an adapter's in the layers at these paths."""
    return unflatten(leaves(name) | {(*path, "lora", "down"): array(4, 2) for path in paths})


@pytest.mark.parametrize("name", NETWORKS)
def test_every_layer_is_asked_for_what_it_does_not_know(name, monkeypatch):
    """One run, in which what would be refused is noted: every layer there is, by its whole path."""
    run, config = NETWORKS[name]
    run(config, beside(name))  # nothing is refused of its own parameters
    found = set()

    def noted(params, known, path):
        found.update(f"{path}.{more}" for more in params if more not in known)

    for module in ("layers", "linear"):
        monkeypatch.setattr(f"sdjax.nn.{module}.check_known", noted)
    run(config, beside(name, *layers(name)))
    found.discard(".lora")  # the final norm of texts, which is taken once more alone for layers before the last
    assert len(layers(name)) > 5 and found == {".".join((*path, "lora")) for path in layers(name)}


@pytest.mark.parametrize(
    ("name", "path"),
    [(name, path) for name in NETWORKS for path in (layers(name)[0], layers(name)[-1])]
    + [("xl", path) for path in layers("xl") if path[0] == "mid_block" or "embedding" in path[0]],
)
def test_a_parameter_that_no_layer_reads_is_refused_by_its_path(name, path):
    run, config = NETWORKS[name]
    with pytest.raises(ValueError) as raised:
        run(config, beside(name, path))
    assert str(raised.value).startswith(".".join((*path, "lora")) + ": no layer reads such a parameter")


def test_a_parameter_that_linear_knows_takes_part_in_keys_values_and_times(monkeypatch):
    """One that scales the kernel, beside every kernel of a U-Net, does what a scaled kernel does: all readers ask."""

    def scaled(params, *args, **kwargs):
        return linear({**params, "kernel": params["kernel"] * params.get("scale", 1)} | {"scale": 1}, *args, **kwargs)

    config = UNetConfig.from_dict(checkpoints.UNET)
    params = checkpoints.random_params(unflatten(leaves("sd")), np.float32, 3)
    flat = flatten(params)
    kernels = [path for path in flat if path[-1] == "kernel"]
    apart = unflatten(flat | {(*path[:-1], "scale"): np.float32(1.25) for path in kernels})
    inside = unflatten(flat | {path: np.float32(1.25) * flat[path] for path in kernels})
    monkeypatch.setattr(linear_, "LEAVES", (*linear_.LEAVES, "scale"))
    for module in ("layers", "attention", "unet"):
        monkeypatch.setattr(f"sdjax.nn.{module}.linear", scaled)
    rng = np.random.default_rng(0)
    states = rng.standard_normal((2, 3, 5, config.cross_attention_dim), np.float32)
    denoiser, x = denoiser_of(config, F32), rng.standard_normal((2, 8, 8, 4), np.float32)

    @jax.jit
    def answer(params):
        given = denoiser.precompute(params, Conditions(Chunks({}, states, jnp.array([3, 1]))))
        rows = denoiser.per_row(params, jnp.array([700.0, 20.0]), given)
        row = jax.tree.map(lambda a: jnp.broadcast_to(a[0], (2, a.shape[-1])), rows)
        return denoiser(params, x, row, given)

    got, want = answer(apart), answer(inside)
    assert np.abs(want - answer(params)).max() > 1e-2 * np.abs(want).max()
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5 * np.abs(want).max())


X = jnp.ones((2, 4, 4, 8))


@pytest.mark.parametrize(
    ("module", "x"),
    [
        (Dense(3, F32), X),
        (Conv(3, F32), X),
        (Conv(3, F32, size=1), X),
        (Conv(3, F32, doubled=True), X),
        (GroupNorm(4, 1e-5, F32), X),
        (LayerNorm(1e-5, F32), X),
        (Embed(5, 3, F32), jnp.zeros((1, 2), jnp.int32)),
    ],
)
def test_a_layer_alone(module, x):
    params = module.init(jax.random.key(0), x)["params"]
    with pytest.raises(ValueError, match=r"^other: no layer reads such a parameter"):
        module.apply({"params": params | {"other": jnp.ones(1)}}, x)


def test_a_bias_takes_part_where_the_config_has_none():
    """Also in keys and values that are made before the run, and in those of a text's later pieces."""
    x, states = (jax.random.normal(jax.random.key(i), shape) for i, shape in enumerate([(1, 6, 8), (1, 3, 5, 8)]))
    attend = Attention(2, F32)

    def params(bias: jax.Array) -> dict:
        drawn = attend.init(jax.random.key(2), x)["params"]
        return {name: layer | ({"bias": bias} if name in ("to_k", "to_v") else {}) for name, layer in drawn.items()}

    def answers(bias: jax.Array) -> list[jax.Array]:
        own, whole = params(bias), states.reshape(1, -1, 8)
        made = cross_keys_values({"attn2": own}, states[:, 0], F32)
        chunks = Chunks({"": made["attn2"]}, states, jnp.array([3]))
        given = [Signals(X, Conditions(context)) for context in (whole, chunks)]
        return [attend.apply({"params": own}, x, one) for one in given]

    plain, shifted = (answers(bias) for bias in (jnp.zeros(8), jnp.arange(8.0)))
    np.testing.assert_allclose(*plain, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(*shifted, rtol=1e-4, atol=1e-5)
    assert jnp.abs(plain[0] - shifted[0]).max() > 0.1
