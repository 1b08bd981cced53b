"""The compiled programs that a picture goes through: text, preparation, the sampling scan, pixels.

Each is a pure function of (static config, parameters, data). Static are the model's config, the compute dtype and,
through the arrays' shapes, the picture's size, the batch and whether there is guidance. Everything a researcher
varies between runs (prompt, seed, sampler, schedule, steps, guidance) is data, so it never compiles again.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from sdjax.config import ClipTextConfig, UNetConfig, VaeConfig
from sdjax.diffusion import scan
from sdjax.diffusion.guidance import Guidance, classifier_free
from sdjax.diffusion.table import Table
from sdjax.nn.attention import Context, cross_keys_values
from sdjax.nn.clip import ClipTextEncoder
from sdjax.nn.convolution import on_cpu
from sdjax.nn.unet import UNet
from sdjax.nn.vae import Autoencoder

Params = Any

# Pixels decoded or encoded at once; more images than fit go through one group after the other.
PIXELS_AT_ONCE = 1024 * 1024


def expected_params(text: ClipTextConfig, unet: UNetConfig, vae: VaeConfig) -> dict[str, Params]:
    """The shapes of every parameter: {"text_encoder", "unet", "vae"} of nested dicts of `jax.ShapeDtypeStruct`."""
    key, f32 = jax.random.key(0), jnp.float32
    ids = jax.ShapeDtypeStruct((1, text.max_position_embeddings), jnp.int32)
    size = 2 ** (unet.levels - 1)
    x = jax.ShapeDtypeStruct((1, size, size, unet.in_channels), f32)
    context = jax.ShapeDtypeStruct((1, 1, unet.cross_attention_dim), f32)
    pixels = jax.ShapeDtypeStruct((1, vae.factor, vae.factor, 3), f32)
    shapes = {
        "text_encoder": jax.eval_shape(ClipTextEncoder(text).init, key, ids),
        "unet": jax.eval_shape(UNet(unet).init, key, x, jax.ShapeDtypeStruct((1,), f32), context),
        "vae": jax.eval_shape(Autoencoder(vae).init, key, pixels),
    }
    return {name: tree["params"] for name, tree in shapes.items()}


def cast(dtype: DTypeLike, params: Params) -> Params:
    """Parameters in `dtype`; those that are in it already are not copied."""
    leaves, structure = jax.tree.flatten(params)
    others = iter(_cast(dtype, [leaf for leaf in leaves if leaf.dtype != dtype]))
    return jax.tree.unflatten(structure, [leaf if leaf.dtype == dtype else next(others) for leaf in leaves])


@partial(jax.jit, static_argnums=0)
def _cast(dtype: DTypeLike, arrays: list[jax.Array]) -> list[jax.Array]:
    """One program for all: hundreds of casts on their own would each be compiled."""
    return [array.astype(dtype) for array in arrays]


@partial(jax.jit, static_argnums=(0, 1))
def encode_text(config: ClipTextConfig, dtype: DTypeLike, params: Params, ids: jax.Array) -> jax.Array:
    """Token ids `b l` -> the hidden states that the U-Net attends to, `b l d`, float32.

    One prompt after the other, as in `hoist`: a matrix product of 24 or 77 rows rounds otherwise than one of several
    times as many, and a picture must not depend on its batch. It is done once per picture, before the loop.
    """

    def one(row: jax.Array) -> jax.Array:
        return ClipTextEncoder(config, dtype).apply({"params": params}, row[None]).last_hidden_state[0]

    return jax.lax.map(one, ids).astype(jnp.float32)


@partial(jax.jit, static_argnums=(0, 1))
def predict(
    config: UNetConfig, dtype: DTypeLike, params: Params, x: jax.Array, t: jax.Array, context: Context
) -> jax.Array:
    """One evaluation of the U-Net: x `b h w c`, t `b`, context `b l d` -> `b h w c`, float32."""
    return UNet(config, dtype).apply({"params": params}, x, t, context)


@partial(jax.jit, static_argnums=0)
def hoist(dtype: DTypeLike, params: Params, context: jax.Array) -> Context:
    """What of the text is the same at every step: the cross-attentions' keys and values for context `b l d`."""
    return jax.lax.map(lambda one: cross_keys_values(params, one, dtype), context)


@partial(jax.jit, static_argnums=0)
def begin(shape: tuple[int, ...], keys: jax.Array, table: Table) -> scan.Carry:
    """The scan's state before its first row, each image's noise drawn from its own key [b]."""
    start, draws = jax.vmap(jax.random.split, out_axes=1)(keys)
    x_T = jax.vmap(lambda key: jax.random.normal(key, shape))(start)
    return scan.init(table, x_T, draws)


@jax.jit
def begin_from(x_T: jax.Array, keys: jax.Array, table: Table) -> scan.Carry:
    """`begin` from given noise `b h w c`, unit Gaussian."""
    return scan.init(table, x_T, jax.vmap(jax.random.split, out_axes=1)(keys)[1])


@partial(jax.jit, static_argnums=(0, 1), donate_argnums=2)
def advance(
    config: UNetConfig,
    dtype: DTypeLike,
    carry: scan.Carry,
    rows: Table,
    params: Params,
    context: Context,
    guidance: Guidance | None,
) -> scan.Carry:
    """Runs rows of the table: one `lax.scan`. With guidance for those rows, context is doubled ([uncond, cond])."""
    unet, halves = UNet(config, dtype), 1 if guidance is None else 2

    def network(inputs: tuple[jax.Array, jax.Array, Context]) -> jax.Array:
        return unet.apply({"params": params}, *inputs)

    def model(x: jax.Array, t: jax.Array, row: tuple[jax.Array, Guidance | None]) -> jax.Array:
        needed, guided = row

        def answer(x: jax.Array, t: jax.Array) -> jax.Array:
            inputs = (x, jnp.broadcast_to(t, x.shape[:1]), context)
            return _one_by_one(network, inputs, needed, halves) if on_cpu() else network(inputs)

        return answer(x, t) if guided is None else classifier_free(answer, guided.scale, guided.rescale)(x, t)

    return scan.advance(carry, rows, model, (rows.evaluate, guidance))


def _one_by_one(network: Any, inputs: Any, needed: jax.Array, halves: int) -> jax.Array:
    """`network` on each picture alone (with its unguided half): `(halves b) ...` -> `(halves b) ...`, float32.

    A CPU's matrix products round otherwise for another number of rows; so the latents are the same to the last bits
    in any batch, and it is no slower at Stable Diffusion's size. needed: bool, or [b] where every picture has a plan
    of its own; the network then runs for those pictures only.
    """
    pictures = jax.tree.map(lambda a: _by_picture(a, halves), inputs)
    if needed.ndim == 0:
        answers = jax.lax.map(network, pictures)
    else:
        like = jax.eval_shape(network, jax.tree.map(lambda a: a[0], pictures))
        skip = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), like)
        answers = jax.lax.map(lambda one: jax.lax.cond(one[0], network, lambda _: skip, one[1]), (needed, pictures))
    return answers.swapaxes(0, 1).reshape(-1, *answers.shape[2:])


@partial(jax.jit, static_argnums=(0, 1))
def decode(config: VaeConfig, dtype: DTypeLike, params: Params, latents: jax.Array) -> jax.Array:
    """Latents `b h w c` at the U-Net's scale -> pixels `b H W 3` in [-1, 1], clipped, float32."""
    vae = Autoencoder(config, dtype)

    def one(z: jax.Array) -> jax.Array:
        pixels = vae.apply({"params": params}, z[None] / config.scaling_factor, method="decode")
        return jnp.clip(pixels[0], -1.0, 1.0)

    at_once = PIXELS_AT_ONCE // (latents.shape[1] * latents.shape[2] * config.factor**2)
    return _in_groups(one, latents, at_once)


@partial(jax.jit, static_argnums=(0, 1))
def encode(config: VaeConfig, dtype: DTypeLike, params: Params, pixels: jax.Array, keys: jax.Array | None) -> jax.Array:
    """Pixels `b H W 3` in [-1, 1] -> latents `b h w c` at the U-Net's scale: a draw by `keys` [b], or the mean."""
    vae = Autoencoder(config, dtype)

    def one(image: tuple[jax.Array, jax.Array | None]) -> jax.Array:
        posterior = vae.apply({"params": params}, image[0][None], method="encode")
        z = posterior.mean if image[1] is None else posterior.sample(image[1])
        return config.scaling_factor * z[0]

    return _in_groups(one, (pixels, keys), PIXELS_AT_ONCE // (pixels.shape[1] * pixels.shape[2]))


def _by_picture(array: jax.Array, halves: int) -> jax.Array:
    """`(halves b) ... -> b halves ...`."""
    return array.reshape(halves, -1, *array.shape[1:]).swapaxes(0, 1)


def _in_groups(one: Any, batch: Any, at_once: int) -> jax.Array:
    """`vmap(one)` over the batch where it fits at once, else group by group."""
    count = jax.tree.leaves(batch)[0].shape[0]
    if at_once >= count:
        return jax.vmap(one)(batch)
    return jax.lax.map(one, batch, batch_size=max(1, at_once))
