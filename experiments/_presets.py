"""The architecture of a published family by its name, for programs that look at what a step of it costs."""

from typing import Any


def architecture(name: str, dtype: str, remat: bool) -> Any:
    """A preset's `Architecture`, without text encoders: states of texts are given. Raises ValueError for no preset.

    JAX is imported here, for a program may say before what devices there are.
    """
    import jax.numpy as jnp

    from sdjax.config import UNetConfig, VaeConfig
    from sdjax.config.presets import PRESETS
    from sdjax.core.errors import unknown
    from sdjax.diffusion.noise import Settings, noise_schedule
    from sdjax.train.architecture import Architecture

    if name not in PRESETS:
        raise ValueError(unknown(f"--model: {name!r} is no preset", name, PRESETS))
    unet, vae = (PRESETS[name].configs[one] for one in ("unet", "vae"))
    levels = noise_schedule(Settings(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")).alphas_cumprod
    return Architecture(
        UNetConfig.from_dict(unet),
        VaeConfig.from_dict(vae),
        (),
        tuple(map(float, levels)),
        dtype=jnp.dtype(dtype),
        remat=remat,
    )


def batch(model: Any, size: int, count: int) -> dict[str, tuple[int, ...]]:
    """The shapes of what a step of `count` pictures of `size` pixels is given: latents, and states of texts."""
    side, unet = size // model.vae.factor, model.unet
    given: dict[str, tuple[int, ...]] = {
        "latents": (count, side, side, unet.in_channels),
        "context": (count, 77, unet.cross_attention_dim),
    }
    if model.takes_pooled:
        ids = 6 * unet.addition_time_embed_dim
        given |= {"time_ids": (count, 6), "pooled": (count, unet.projection_class_embeddings_input_dim - ids)}
    return given
