"""sdjax's side: a call that computes a row once and waits for it."""

import tempfile
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import sdjax
from experiments.benchmark.subject import PROMPT, SAMPLER, SCALE, Call, Job, pooled_and_ids, preset, write_tokenizer
from sdjax import config
from sdjax.diffusion.guidance import Guidance
from sdjax.diffusion.inpaint import KnownRegion
from sdjax.diffusion.plan import plan
from sdjax.model.networks import Networks
from sdjax.model.spec import ModelSpec
from sdjax.model.text_encoder import TextEncoder
from sdjax.nn.conditioning import Added, Chunks, Conditions
from sdjax.nn.shapes import expected_params
from sdjax.runtime import programs
from sdjax.runtime.denoisers import denoiser_of
from sdjax.text import Tokenizer

READ: dict[str, Callable[[Any], config.Config]] = {
    "unet": config.UNetConfig.from_dict,
    "vae": config.VaeConfig.from_dict,
}


def call(job: Job) -> Call:
    """A call that computes the job's row."""
    return {"unet_step": steps, "picture": picture, "vae_decode": vae, "text_encoder": text, "matmul": matmul}[job.row](
        job
    )


def networks(family: str) -> dict[str, Any]:
    """The configs of the family's networks, by component."""
    read = READ.get
    return {name: read(name, config.ClipTextConfig.from_dict)(one) for name, one in preset(family).configs.items()}


def weights(job: Job, name: str) -> Any:
    """Random parameters of one network: each layer keeps about the variance of its input.

    The numbers of a kernel repeat: a million drawn once make billions in no time, and a product costs the same.
    """
    pool, dtype = np.random.default_rng(0).standard_normal(2**20, np.float32), jnp.dtype(job.dtype)

    def one(path: tuple[Any, ...], leaf: jax.ShapeDtypeStruct) -> jax.Array:
        if len(leaf.shape) == 1:
            return jnp.full(leaf.shape, float(path[-1].key == "scale"), dtype)
        scale = np.prod(leaf.shape[:-1]) ** -0.5
        return jnp.asarray(np.resize((pool * scale).astype(dtype), leaf.shape))

    return jax.tree_util.tree_map_with_path(one, expected_params({name: networks(job.family)[name]})[name])


def latents(job: Job) -> jax.Array:
    """Unit Gaussian noise, float32 `b h w c`."""
    vae = networks(job.family)["vae"]
    side = job.size // vae.factor
    shape = (job.batch, side, side, vae.latent_channels)
    return jnp.asarray(np.random.default_rng(0).standard_normal(shape, np.float32))


def steps(job: Job, count: int = 1) -> Call:
    """The first `count` rows of a guided run as one scan, the network on 2 x batch latents; the text is encoded."""
    unet, dtype, params, x = networks(job.family)["unet"], jnp.dtype(job.dtype), weights(job, "unet"), latents(job)
    length = preset(job.family).configs["text_encoder"]["max_position_embeddings"]
    shape = (2 * job.batch, 1, length, unet.cross_attention_dim)
    states = np.random.default_rng(0).standard_normal(shape, np.float32)
    denoiser, text = (
        denoiser_of(unet, dtype),
        Conditions(Chunks({}, jnp.asarray(states), jnp.ones(2 * job.batch, jnp.int32))),
    )
    added = pooled_and_ids(job)
    told = replace(
        programs.precompute_kv(denoiser, params, text),
        added=None if added is None else Added(*map(jnp.asarray, added)),
    )
    table = plan(SAMPLER, max(count, job.steps), preset(job.family).scheduler).table()
    known, shares = KnownRegion.nothing(x), np.array([[0.0], [1.0]], np.float32).repeat(job.batch, 1)
    scales = jnp.full((count, job.batch), SCALE)
    rows, guidance = table.rows(0, count), Guidance(scales, 0 * scales)

    def step() -> Any:
        # Every call is the start of a run: the state is donated, so each has one of its own.
        carry = programs.begin(None, x, known, shares, table)
        return programs.run_rows(denoiser, None, carry, rows, params, told, guidance, known).x.block_until_ready()

    return step


def vae(job: Job) -> Call:
    """Latents to pixels."""
    decode = partial(
        programs.decode, networks(job.family)["vae"], jnp.dtype(job.dtype), weights(job, "vae"), latents(job)
    )
    return lambda: decode().block_until_ready()


def text(job: Job) -> Call:
    """2 x batch prompts through the first text encoder."""
    config, params = networks(job.family)["text_encoder"], weights(job, "text_encoder")
    shape = (2 * job.batch, config.max_position_embeddings)
    prompts = jnp.asarray(np.random.default_rng(0).integers(0, config.vocab_size, shape), jnp.int32)
    encode = partial(programs.encode_text, config, jnp.dtype(job.dtype), True, params, depth=jnp.asarray(1))
    return lambda: jax.block_until_ready([encode(ids) for ids in prompts])


def picture(job: Job) -> Call:
    """`generate`, from prompts to PIL images."""
    sd = pipeline(job.family, {name: weights(job, name) for name in networks(job.family)}, job.dtype)
    arguments: dict[str, Any] = {"height": job.size, "width": job.size, "steps": job.steps, "sampler": SAMPLER}
    prompts = [PROMPT] * job.batch
    return lambda: sd.generate(prompts, "", guidance_scale=SCALE, progress=False, **arguments).images


def pipeline(family: str, params: Any, dtype: str) -> sdjax.StableDiffusion:
    """The whole family with these parameters, which may be shapes alone, and a vocabulary of a few words."""
    configs = networks(family)
    with tempfile.TemporaryDirectory() as folder:
        write_tokenizer(folder, family)
        tokenizer = Tokenizer.load(folder)
    encoders = {name: TextEncoder(one, tokenizer) for name, one in configs.items() if name not in READ}
    unet, vae = configs["unet"], configs["vae"]
    spec = ModelSpec(family, encoders, unet, vae, preset(family).scheduler)
    return sdjax.StableDiffusion(Networks.of(spec, params, jnp.dtype(dtype)))


def matmul(job: Job) -> Call:
    """A product of two square matrices."""
    drawn = np.random.default_rng(0).standard_normal((2, job.size, job.size), np.float32)
    one, other = jnp.asarray(drawn, jnp.dtype(job.dtype))
    product = jax.jit(jnp.dot)
    return lambda: product(one, other).block_until_ready()


def device_peak() -> int | None:
    """The most device memory taken so far, in bytes; None on a CPU."""
    return (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use")
