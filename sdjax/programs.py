"""The compiled programs that a picture goes through: text, preparation, the sampling scan, pixels.

Each is a pure function of (static config, parameters, data). Static are the model's config, the compute dtype and,
through the arrays' shapes, the picture's size, the batch and whether there is guidance. Everything a researcher
varies between runs (prompt, seed, sampler, schedule, steps, guidance) is data, so it never compiles again.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from sdjax.config import ClipTextConfig, ClipVisionConfig, Config, DepthConfig, UNetConfig, VaeConfig
from sdjax.diffusion import scan
from sdjax.diffusion.guidance import Guidance, classifier_free
from sdjax.diffusion.held import Held
from sdjax.diffusion.table import Table
from sdjax.keys import settled
from sdjax.nn import tiles
from sdjax.nn.attention import Chunks, cross_keys_values
from sdjax.nn.clip import ClipTextEncoder
from sdjax.nn.clip_vision import ClipVisionEncoder
from sdjax.nn.convolution import on_cpu
from sdjax.nn.depth import DepthNetwork
from sdjax.nn.layers import LayerNorm
from sdjax.nn.parameter import shapes
from sdjax.nn.resnet import Time
from sdjax.nn.unet import Added, Conditions, UNet, time_shifts
from sdjax.nn.vae import Autoencoder
from sdjax.program import program

Params = Any
# Pixels decoded or encoded at once; more images than fit go through one group after the other.
PIXELS_AT_ONCE = 1024 * 1024


def expected_params(configs: Mapping[str, Config]) -> dict[str, Params]:
    """The shapes of every parameter of the networks: {component: nested dict of `jax.ShapeDtypeStruct`}."""
    with settled():
        return {name: _EXPECTED[type(config)](config) for name, config in configs.items()}


def _expected_text(config: ClipTextConfig) -> Params:
    ids = jax.ShapeDtypeStruct((1, config.max_position_embeddings), jnp.int32)
    return shapes(ClipTextEncoder(config), ids)


def _expected_unet(config: UNetConfig) -> Params:
    def array(*shape: int) -> Any:
        return jax.ShapeDtypeStruct(shape, jnp.float32)

    width, size = config.projection_class_embeddings_input_dim or 0, 2 ** (config.levels - 1)
    # The pooled text's width and the number of time ids enter the shapes by their sum alone.
    given = {
        "added": Added(array(1, width), array(1, 0)) if config.addition_embed_type == "text_time" else None,
        "class_labels": _labels(config),
        "guidance": array(1, config.time_cond_proj_dim) if config.time_cond_proj_dim else None,
    }
    x, context = array(1, size, size, config.in_channels), array(1, 1, config.cross_attention_dim)
    return shapes(UNet(config), x, array(1), context, **given)


def _labels(config: UNetConfig) -> jax.ShapeDtypeStruct | None:
    if config.class_embed_type == "projection":
        return jax.ShapeDtypeStruct((1, config.projection_class_embeddings_input_dim or 0), jnp.float32)
    classes = config.class_embed_type is not None or config.num_class_embeds is not None
    return jax.ShapeDtypeStruct((1,), jnp.int32) if classes else None


def _expected_vae(config: VaeConfig) -> Params:
    pixels = jax.ShapeDtypeStruct((1, config.factor, config.factor, 3), jnp.float32)
    return shapes(Autoencoder(config), pixels)


def _expected_vision(config: ClipVisionConfig) -> Params:
    pixels = jax.ShapeDtypeStruct((1, config.image_size, config.image_size, 3), jnp.float32)
    return shapes(ClipVisionEncoder(config), pixels)


def _expected_depth(config: DepthConfig) -> Params:
    pixels = jax.ShapeDtypeStruct((1, config.image_size, config.image_size, 3), jnp.float32)
    return shapes(DepthNetwork(config), pixels)


_EXPECTED: dict[type, Callable[[Any], Params]] = {
    ClipTextConfig: _expected_text,
    ClipVisionConfig: _expected_vision,
    DepthConfig: _expected_depth,
    UNetConfig: _expected_unet,
    VaeConfig: _expected_vae,
}


def cast(dtype: DTypeLike, params: Params) -> Params:
    """Parameters in `dtype`; those that are in it already are not copied."""
    leaves, structure = jax.tree.flatten(params)
    if all(leaf.dtype == dtype for leaf in leaves):
        return params
    others = iter(_cast(dtype, [leaf for leaf in leaves if leaf.dtype != dtype]))
    return jax.tree.unflatten(structure, [leaf if leaf.dtype == dtype else next(others) for leaf in leaves])


@program(static=(0,))
def _cast(dtype: DTypeLike, arrays: list[jax.Array]) -> list[jax.Array]:
    """One program for all: hundreds of casts on their own would each be compiled."""
    return [array.astype(dtype) for array in arrays]


@program(static=(0, 1, 2))
def encode_text(
    config: ClipTextConfig, dtype: DTypeLike, normed: bool, params: Params, ids: jax.Array, depth: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Token ids `l` of one row -> (hidden states `l d`, pooled `d`), float32.

    depth: the states of the layer so many from the end, 1 the last. normed: after the final norm (SD 1.x and 2.x) or
    before it (SDXL). One row a call: a matrix product of 77 rows rounds otherwise than one of several times as many,
    and a picture must not depend on its batch.
    """
    out = ClipTextEncoder(config, dtype).apply({"params": params}, ids[None])
    states = jnp.stack(out.hidden_states)[-depth, 0]
    if normed:
        norm = LayerNorm(config.layer_norm_eps, dtype)
        states = norm.apply({"params": params["text_model"]["final_layer_norm"]}, states)
    return states.astype(jnp.float32), out.pooled[0].astype(jnp.float32)


@program(static=(0, 1))
def encode_image(config: ClipVisionConfig, dtype: DTypeLike, params: Params, pixels: jax.Array) -> jax.Array:
    """One picture's normalised pixels `H W 3` -> its embedding `d`, float32; see `encode_text` for why one."""
    return ClipVisionEncoder(config, dtype).apply({"params": params}, pixels[None])[0]


@program(static=(0, 1))
def estimate_depth(config: DepthConfig, dtype: DTypeLike, params: Params, pixels: jax.Array) -> jax.Array:
    """One picture's normalised pixels `H W 3` -> its inverse depth `H W`, float32."""
    return DepthNetwork(config, dtype).apply({"params": params}, pixels[None])[0]


@program(static=(0, 1))
def predict(
    config: UNetConfig, dtype: DTypeLike, params: Params, x: jax.Array, t: jax.Array, conditions: Conditions
) -> jax.Array:
    """One evaluation of the U-Net: x `b h w c`, t `b`, conditions for b pictures -> `b h w c`, float32."""
    return _unet(config, dtype, params, x, t, conditions)


def _unet(config: UNetConfig, dtype: DTypeLike, params: Params, x: jax.Array, t: Time, given: Conditions) -> jax.Array:
    unet = UNet(config, dtype)
    if given.channels is not None:
        x = jnp.concatenate([x, given.channels], axis=-1)
    told = {"added": given.added, "guidance": given.guidance, "class_labels": given.class_labels}
    return unet.apply({"params": params}, x, t, given.context, **told)


@program(static=(0,))
def hoist(dtype: DTypeLike, params: Params, states: jax.Array, count: jax.Array) -> Chunks:
    """What of the text is the same at every step: the cross-attentions' keys and values of each first piece.

    states: `b c l e`, the text in up to c pieces; count: int32 `b`, how many there are.
    """
    first = jax.lax.map(lambda one: cross_keys_values(params, one, dtype), states[:, 0])
    return Chunks(first, states, count)


@program(static=(0, 1))
def noise(shape: tuple[int, ...], purpose: int | None, keys: jax.Array) -> jax.Array:
    """Unit Gaussian noise [b, *shape], each image's from its own key [b].

    purpose: a number for each use that an image has for noise, so that no two are alike; None is what a run starts
    from.
    """

    def one(key: jax.Array) -> jax.Array:
        own = jax.random.split(key)[0] if purpose is None else jax.random.fold_in(key, purpose)
        return jax.random.normal(own, shape, jnp.float32)

    return jax.vmap(one)(keys)


@program()
def begin(x: jax.Array, held: Held, shares: jax.Array, table: Table) -> scan.Carry:
    """The scan's state before its first row, without the sampler's draws.

    x: `b h w c`, noise, or the latents to go on from. shares: [2, b], of the held picture and of x in what the run
    starts from.
    """
    picture, given = (share[:, None, None, None] for share in shares)
    return scan.init(table, picture * held.original + given * x)


@program(donate=(0,))
def draw(carry: scan.Carry, table: Table, keys: jax.Array, draws: jax.Array | None) -> scan.Carry:
    """The state with the sampler's draws; a program of its own, for most samplers have none and it is long to compile.

    They come from the images' `keys` [b], or are given: `draws` [draws, b, h, w, c], of which there may be more than
    the sampler takes.
    """
    own = jax.vmap(jax.random.split, out_axes=1)(keys)[1]
    return scan.draw(carry, table, own if draws is None else None, draws)


def place(told: Any, axis: int, parts: int | None = None) -> Any:
    """Arguments that are the same at every call of `advance`, where it wants them: here as they are.

    told: a tree of arrays, or None. axis: of the b pictures in every leaf, where the network's parts stand with them
    as `(parts b)` if `parts` is given.
    """
    return told


@program()
def look(carry: scan.Carry, table: Table, index: jax.Array, held: Held) -> tuple[jax.Array, jax.Array]:
    """What the network saw in a row of the table, and the clean latents that it predicted, `b h w c` each."""
    return scan.look(carry, table, index, held)


def result(carry: scan.Carry) -> jax.Array:
    """The clean latents `b h w c`, once all rows have been run."""
    return scan.result(carry)


@program(static=(0, 1, 9), donate=(2,))
def advance(
    config: UNetConfig,
    dtype: DTypeLike,
    carry: scan.Carry,
    rows: Table,
    params: Params,
    conditions: Conditions,
    guidance: Guidance | None,
    held: Held,
    regions: jax.Array | None = None,
    gather: Callable[[jax.Array], jax.Array] | None = None,
) -> scan.Carry:
    """Runs rows of the table: one `lax.scan`.

    With guidance for those rows, the conditions are those of [uncond, cond] or [uncond, cond_1, .., cond_k], each for
    all b pictures, and `regions` [k, b, h, w, 1] says where each cond counts. Or they are those of one part, where
    other devices have the others, and `gather` makes of the answer for it, `b h w c`, that for all, `(parts b) h w c`.
    """
    b = carry.x_T.shape[0]
    parts = jax.tree.leaves(conditions)[0].shape[0] // b
    shifts = _time_shifts(config, dtype, params, rows.timestep, conditions)

    def network(inputs: tuple[jax.Array, Time, Conditions]) -> jax.Array:
        return _unet(config, dtype, params, *inputs)

    def model(x: jax.Array, t: jax.Array, row: tuple[jax.Array, Guidance | None, dict[str, jax.Array]]) -> jax.Array:
        needed, guided, shift = row

        def answer(x: jax.Array, t: jax.Array) -> jax.Array:
            x = x if gather is None else x[:b]  # all parts see the same
            each = jax.tree.map(lambda a: jnp.broadcast_to(a, (x.shape[0], a.shape[-1])), shift)
            inputs = (x, each, conditions)
            raw = _one_by_one(network, inputs, needed, parts) if on_cpu() else network(inputs)
            return raw if gather is None else gather(raw)

        if guided is None:
            return answer(x, t)
        return classifier_free(answer, guided.scale, guided.rescale, guided.shares, regions, guided.shown)(x, t)

    return scan.advance(carry, rows, model, (rows.evaluate, guidance, shifts), held)


def _time_shifts(
    config: UNetConfig, dtype: DTypeLike, params: Params, timesteps: jax.Array, given: Conditions
) -> dict[str, jax.Array]:
    """What each row's time adds in every resnet, [r, p, c]: p is 1 where it is the same for all pictures.

    timesteps: [r], or [r, b].
    """
    told = (given.added, given.class_labels, given.guidance)
    alike = timesteps.ndim == 1 and all(one is None for one in told)
    times = timesteps if timesteps.ndim == 2 else timesteps[:, None]
    count = 1 if alike else jax.tree.leaves(given)[0].shape[0]
    # On a CPU each alone, so that the last bits depend on no other row or picture; see `_one_by_one`.
    over = jax.lax.map if on_cpu() else lambda run, xs: jax.vmap(run)(xs)

    def one(now: Any) -> dict[str, jax.Array]:
        shifts = time_shifts(config, dtype, params, *jax.tree.map(lambda a: a[None], now))
        return jax.tree.map(lambda a: a[0], shifts)

    return over(lambda row: over(one, (row, *told)), jnp.tile(times, (1, count // times.shape[1])))


def _one_by_one(network: Any, inputs: Any, needed: jax.Array, parts: int) -> jax.Array:
    """`network` on each picture alone (with its unguided part): `(parts b) ...` -> `(parts b) ...`, float32.

    A CPU's matrix products round otherwise for another number of rows; so the latents are the same to the last bits
    in any batch, and it is no slower at Stable Diffusion's size. needed: bool, or [b] where every picture has a plan
    of its own; the network then runs for those pictures only.
    """
    pictures = jax.tree.map(lambda a: _by_picture(a, parts), inputs)
    if needed.ndim == 0:
        answers = jax.lax.map(network, pictures)
    else:
        like = jax.eval_shape(network, jax.tree.map(lambda a: a[0], pictures))
        skip = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), like)
        answers = jax.lax.map(lambda one: jax.lax.cond(one[0], network, lambda _: skip, one[1]), (needed, pictures))
    return answers.swapaxes(0, 1).reshape(-1, *answers.shape[2:])


@program(static=(0, 1))
def decode(config: VaeConfig, dtype: DTypeLike, params: Params, latents: jax.Array) -> jax.Array:
    """Latents `b h w c` at the U-Net's scale -> pixels `b H W 3` in [-1, 1], clipped, float32.

    NaN where the VAE gave an infinity: clipped, what overflowed could not be told from black or white.
    """

    def one(z: jax.Array) -> jax.Array:
        pixels = tiles.decode(config, dtype, params, z[None] / config.scaling_factor)[0]
        return jnp.where(jnp.isinf(pixels), jnp.nan, jnp.clip(pixels, -1.0, 1.0))

    at_once = PIXELS_AT_ONCE // (latents.shape[1] * latents.shape[2] * config.factor**2)
    return _in_groups(one, latents, at_once)


@program(static=(0, 1))
def encode(
    config: VaeConfig, dtype: DTypeLike, params: Params, pixels: jax.Array, noise: jax.Array | None
) -> jax.Array:
    """Pixels `b H W 3` in [-1, 1] -> latents `b h w c` at the U-Net's scale: a draw by unit `noise`, or the mean."""

    def one(image: tuple[jax.Array, jax.Array | None]) -> jax.Array:
        posterior = tiles.encode(config, dtype, params, image[0][None])
        z = posterior.mean if image[1] is None else posterior.sample(image[1])
        return config.scaling_factor * z[0]

    return _in_groups(one, (pixels, noise), PIXELS_AT_ONCE // (pixels.shape[1] * pixels.shape[2]))


def _by_picture(array: jax.Array, parts: int) -> jax.Array:
    """`(parts b) ... -> b parts ...`."""
    return array.reshape(parts, -1, *array.shape[1:]).swapaxes(0, 1)


def _in_groups(one: Any, batch: Any, at_once: int) -> jax.Array:
    """`vmap(one)` over the batch where it fits at once, else group by group."""
    count = jax.tree.leaves(batch)[0].shape[0]
    if at_once >= count:
        return jax.vmap(one)(batch)
    return jax.lax.map(one, batch, batch_size=max(1, at_once))
