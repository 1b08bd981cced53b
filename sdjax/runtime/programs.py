"""The compiled programs that a picture goes through: text, preparation, the sampling scan, pixels.

Each is a pure function of (static config, parameters, data). Static are the model's config, the compute dtype and,
through the arrays' shapes, the picture's size, the batch, the guider, and whether a picture has an interval of guidance
or a plan that asks for the unguided prediction. Everything a researcher varies between runs (prompt, seed, sampler,
schedule, steps, scales) is data, so it never compiles again.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from sdjax.config import ClipTextConfig, ClipVisionConfig, DepthConfig, VaeConfig
from sdjax.config.image_prompt import ImagePromptConfig
from sdjax.core.devices import on_cpu
from sdjax.core.jit import KEPT, PARAMS, SAME, program
from sdjax.core.tree import Params
from sdjax.diffusion import scan
from sdjax.diffusion.guidance import Guidance, Guided, prompt_or_all
from sdjax.diffusion.guiders.guider import Guider
from sdjax.diffusion.guiders.unguided import Unguided
from sdjax.diffusion.inpaint import KnownRegion
from sdjax.diffusion.table import Table, batch_axes
from sdjax.nn.clip import ClipTextEncoder, NewWords
from sdjax.nn.clip_vision import ClipVisionEncoder
from sdjax.nn.conditioning import Conditions
from sdjax.nn.control import ControlNetwork
from sdjax.nn.denoiser import Denoiser
from sdjax.nn.dpt.depth import DepthNetwork
from sdjax.nn.image_prompt import ImagePromptEncoder
from sdjax.nn.layers import LayerNorm
from sdjax.nn.tiling import tiles
from sdjax.runtime.denoisers import one_by_one
from sdjax.weights.tensors import cast_to_device

# Pixels decoded or encoded at once; more images than fit go through one group after the other.
PIXELS_AT_ONCE = 1024 * 1024


def cast(dtype: DTypeLike, params: Params) -> Params:
    """Parameters in `dtype` on the device; those that are there and in it already are not copied.

    From the host they go one by one, so that at no time it holds more than one of them twice.
    """
    leaves, structure = jax.tree.flatten(params)
    leaves = [cast_to_device(leaf, dtype) if isinstance(leaf, np.ndarray) else leaf for leaf in leaves]
    others = [leaf for leaf in leaves if leaf.dtype != dtype]
    cast_ = iter(_cast(dtype, others) if others else ())
    return jax.tree.unflatten(structure, [leaf if leaf.dtype == dtype else next(cast_) for leaf in leaves])


@program(static=1)
def _cast(dtype: DTypeLike, arrays: list[jax.Array]) -> list[jax.Array]:
    """One program for all: hundreds of casts on their own would each be compiled."""
    return [array.astype(dtype) for array in arrays]


@program(static=3)
def encode_text(
    config: ClipTextConfig,
    dtype: DTypeLike,
    normed: bool,
    params: Params,
    ids: jax.Array,
    depth: jax.Array,
    new: NewWords | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Token ids `l` of one row -> (hidden states `l d`, pooled `d`), float32.

    depth: the states of the layer so many from the end, 1 the last. normed: after the final norm (SD 1.x and 2.x) or
    before it (SDXL). new: words that the vocabulary does not have, for the places `l`; a row without them has a program
    of its own, and those with them have one, whatever the words. One row a call: a matrix product of 77 rows rounds
    otherwise than one of several times as many, and a picture must not depend on its batch.
    """
    given = jax.tree.map(lambda array: array[None], (ids, new))
    out = ClipTextEncoder(config, dtype).apply({"params": params}, *given)
    states = jnp.stack(out.hidden_states)[-depth, 0]
    if normed:
        norm = LayerNorm(config.layer_norm_eps, dtype)
        states = norm.apply({"params": params["text_model"]["final_layer_norm"]}, states)
    return states.astype(jnp.float32), out.pooled[0].astype(jnp.float32)


@program(static=2)
def encode_image(config: ClipVisionConfig, dtype: DTypeLike, params: Params, pixels: jax.Array) -> jax.Array:
    """One picture's normalised pixels `H W 3` -> its embedding `d`, float32; see `encode_text` for why one."""
    return ClipVisionEncoder(config, dtype).apply({"params": params}, pixels[None])[0]


@program(static=2)
def estimate_depth(config: DepthConfig, dtype: DTypeLike, params: Params, pixels: jax.Array) -> jax.Array:
    """One picture's normalised pixels `H W 3` -> its inverse depth `H W`, float32."""
    return DepthNetwork(config, dtype).apply({"params": params}, pixels[None])[0]


@program(static=3)
def encode_prompt_image(
    vision: ClipVisionConfig,
    config: ImagePromptConfig,
    dtype: DTypeLike,
    params: Params,
    pixels: jax.Array | None,
) -> jax.Array:
    """One picture's normalised pixels `H W 3` -> the tokens `m d` that an IP-Adapter makes of it, float32.

    pixels: None is no picture, as the half of guidance without a prompt is told.
    """
    encoder = ImagePromptEncoder(vision, config, dtype)
    if pixels is None:
        return encoder.apply({"params": params}, method="unconditional")[0]
    return encoder.apply({"params": params}, pixels[None])[0]


@program(static=1, batch=(PARAMS, 0))
def look(network: ControlNetwork, params: Params, image: jax.Array) -> Any:
    """What a network beside the U-Net makes of the b pictures that it looks at; see `ControlNetwork.look`.

    Each alone, so that the last bits depend on no other.
    """

    def one(picture: jax.Array) -> Any:
        return jax.tree.map(lambda a: a[0], network.look(params, picture[None]))

    return jax.lax.map(one, image)


@program(static=1, batch=(PARAMS, KEPT), out=KEPT)
def precompute_kv(denoiser: Denoiser, params: Params, conditions: Conditions) -> Conditions:
    """What of the conditions is the same at every step, made once; see `Denoiser.precompute`.

    Given the text alone, as it is one program for all sizes of picture.
    """
    return denoiser.precompute(params, conditions)


@program(static=1, batch=(PARAMS, 0, 0, 0))
def predict(denoiser: Denoiser, params: Params, x: jax.Array, t: jax.Array, conditions: Conditions) -> jax.Array:
    """One evaluation of the network: x `b h w c`, t `b`, conditions for b pictures -> `b h w c`, float32."""
    return denoiser(params, x, t, conditions)


@program(static=2)
def noise(shape: tuple[int, ...], use: int | None, keys: jax.Array) -> jax.Array:
    """Unit Gaussian noise [b, *shape], each image's from its own key [b].

    use: a number for each use that an image has for noise, so that no two are alike; None is what a run starts
    from.
    """

    def one(key: jax.Array) -> jax.Array:
        own = jax.random.split(key)[0] if use is None else jax.random.fold_in(key, use)
        return jax.random.normal(own, shape, jnp.float32)

    return jax.vmap(one)(keys)


@program(static=1, batch=(0, KEPT, 1, batch_axes), out=KEPT)
def begin(guider: Guider | None, x: jax.Array, known: KnownRegion, start_mix: jax.Array, table: Table) -> scan.Carry:
    """The scan's state before its first row, without the sampler's draws.

    guider: that of the run's guidance if it keeps a state, None for all others, whose runs begin by one program.
    x: `b h w c`, noise, or the latents to go on from. start_mix: [2, b], of the held picture and of x in what the run
    starts from.
    """
    picture, given = (share[:, None, None, None] for share in start_mix)
    return scan.init(table, picture * known.original + given * x, guider)


@program(donate=(0,), batch=(KEPT, batch_axes, 0, 1), out=KEPT)
def draw(carry: scan.Carry, table: Table, keys: jax.Array, draws: jax.Array | None) -> scan.Carry:
    """The state with the sampler's draws; a program of its own, for most samplers have none and it is long to compile.

    They come from the images' `keys` [b], or are given: `draws` [draws, b, h, w, c], of which there may be more than
    the sampler takes.
    """
    own = jax.vmap(jax.random.split, out_axes=1)(keys)[1]
    return scan.draw(carry, table, own if draws is None else None, draws)


@program(batch=(KEPT, batch_axes, SAME, KEPT))
def inspect_row(carry: scan.Carry, table: Table, index: jax.Array, known: KnownRegion) -> tuple[jax.Array, jax.Array]:
    """What the network saw in a row of the table, and the clean latents that it predicted, `b h w c` each."""
    return scan.inspect_row(carry, table, index, known)


@program(batch=(KEPT,))
def result(carry: scan.Carry) -> jax.Array:
    """The clean latents `b h w c`, once all rows have been run."""
    return scan.result(carry)


@program(static=2, donate=(0,), batch=(KEPT, batch_axes, PARAMS, KEPT, KEPT, KEPT, KEPT), out=KEPT, gathers=1)
def run_rows(
    denoiser: Denoiser,
    gather: Callable[[jax.Array], jax.Array] | None,
    carry: scan.Carry,
    rows: Table,
    params: Params,
    conditions: Conditions,
    guidance: Guidance | None,
    known: KnownRegion,
    regions: jax.Array | None = None,
) -> scan.Carry:
    """Runs rows of the table: one `lax.scan`.

    With guidance for those rows, the conditions are those of its guider's branches, each for all b pictures, and
    `regions` [k, b, h, w, 1] says where each but the first counts. Or they are those of one branch, where other
    devices have the others, and `gather` makes of the answer for it, `b h w c`, that for all, `(parts b) h w c`.
    """
    b = carry.x_T.shape[0]
    parts = jax.tree.leaves(conditions)[0].shape[0] // b
    shifts = denoiser.per_row(params, rows.timestep, conditions)

    def network(inputs: tuple[jax.Array, Any, Conditions]) -> jax.Array:
        x, row, told = inputs
        return denoiser(params, x, row, told.worn_alike() if on_cpu() else told)  # there of one picture at a time

    guider = Unguided() if guidance is None else guidance.guider

    def answers(x: jax.Array, t: jax.Array, row: tuple[jax.Array, Guidance | None, Any]) -> jax.Array:
        needed, guided, shift = row
        x = x if gather is None else x[:b]  # all parts see the same
        each = jax.tree.map(lambda a: jnp.broadcast_to(a, (x.shape[0], *a.shape[1:])), shift)
        run: Any = network
        inputs: Any = (x, each, conditions)
        # Where each part has a device of its own there is nothing to leave out.
        if guided is not None and guided.alone is not None and guider.prompt_alone and gather is None:
            run, inputs = prompt_or_all(network, guider), (inputs, jnp.tile(guided.alone, parts))
        raw = one_by_one(run, inputs, needed, parts) if on_cpu() else run(inputs)
        return raw if gather is None else gather(raw)

    def strength(row: tuple[jax.Array, Guidance | None, Any]) -> Guidance | None:
        return None if row[1] is None else row[1].within(regions)

    model = Guided(answers, guider, strength)
    return scan.run_rows(carry, rows, model, (rows.evaluate, guidance, shifts), known)


@program(static=2, batch=(PARAMS, 0))
def decode(config: VaeConfig, dtype: DTypeLike, params: Params, latents: jax.Array) -> jax.Array:
    """Latents `b h w c` at the U-Net's scale -> pixels `b H W 3` in [-1, 1], clipped, float32.

    NaN where the VAE gave an infinity: clipped, what overflowed could not be told from black or white.
    """

    def one(z: jax.Array) -> jax.Array:
        pixels = tiles.decode(config, dtype, params, z[None] / config.scaling_factor)[0]
        return jnp.where(jnp.isinf(pixels), jnp.nan, jnp.clip(pixels, -1.0, 1.0))

    at_once = PIXELS_AT_ONCE // (latents.shape[1] * latents.shape[2] * config.factor**2)
    return _in_groups(one, latents, at_once)


@program(static=2, batch=(PARAMS, 0, 0))
def encode(
    config: VaeConfig, dtype: DTypeLike, params: Params, pixels: jax.Array, noise: jax.Array | None
) -> jax.Array:
    """Pixels `b H W 3` in [-1, 1] -> latents `b h w c` at the U-Net's scale: a draw by unit `noise`, or the mean."""

    def one(image: tuple[jax.Array, jax.Array | None]) -> jax.Array:
        posterior = tiles.encode(config, dtype, params, image[0][None])
        z = posterior.mean if image[1] is None else posterior.sample(image[1])
        return config.scaling_factor * z[0]

    return _in_groups(one, (pixels, noise), PIXELS_AT_ONCE // (pixels.shape[1] * pixels.shape[2]))


def _in_groups(one: Any, batch: Any, at_once: int) -> jax.Array:
    """`vmap(one)` over the batch where it fits at once, else group by group."""
    count = jax.tree.leaves(batch)[0].shape[0]
    if at_once >= count:
        return jax.vmap(one)(batch)
    return jax.lax.map(one, batch, batch_size=max(1, at_once))
