"""A published family's compiled programs at their real size, by shapes alone: no weight is made and nothing is run."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from sdjax.config.presets import PRESETS

VAE = "vae"  # the family that has no U-Net: Stable Diffusion 1.5's autoencoder alone


@dataclass(frozen=True)
class Call:
    """A program and what it is called with.

    Attributes:
      program: of `core.jit`. static: its static arguments. arrays: the others, trees of `jax.ShapeDtypeStruct`.
      params: which of those are the network's weights.
    """

    program: Any
    static: tuple[Any, ...]
    arrays: tuple[Any, ...]
    params: int

    @property
    def inputs(self) -> tuple[Any, ...]:
        """What it takes beside weights."""
        return self.arrays[: self.params] + self.arrays[self.params + 1 :]

    def lower(self) -> Any:
        """As `jax.jit`'s."""
        return self.program.lower(*self.static, *self.arrays)

    def function(self, *arrays: Any) -> Any:
        """The program's function, static arguments given."""
        return self.program.function(*self.static, *arrays)

    def placed(self, params: Callable[[Any], Any], others: Callable[[Any], Any]) -> "Call":
        """The same whose arrays say where they lie: what is made of each weight's shape, and of each other's."""
        import jax

        given = [jax.tree.map(params if place == self.params else others, one) for place, one in enumerate(self.arrays)]
        return replace(self, arrays=tuple(given))


def check_row(text: str, others: Iterable[str] = ()) -> tuple[str, int, int]:
    """(family, size, batch) of `family:size:batch`, checked. others: names beside the families. Raises ValueError."""
    family, *numbers = text.split(":")
    known = [*others, *(name for name, preset in PRESETS.items() if "unet" in preset.configs)]
    if family not in known or len(numbers) != 2 or not all(number.isdecimal() and int(number) for number in numbers):
        raise ValueError(f"--rows: {text!r} is not family:size:batch, with a family of {', '.join(known)}")
    if int(numbers[0]) % 64:
        raise ValueError(f"--rows: {text!r} has a size that is no multiple of 64")
    return family, int(numbers[0]), int(numbers[1])


def networks(family: str) -> dict[str, Any]:
    """The configs of the family's networks, by component."""
    from experiments.benchmark.ours import networks

    return {"vae": networks("sd15")["vae"]} if family == VAE else networks(family)


def parameters(configs: dict[str, Any], dtype: str) -> dict[str, Any]:
    """The networks' weights, all in `dtype`."""
    import jax

    from sdjax.nn.shapes import expected_params

    def one(leaf: Any) -> Any:
        return jax.ShapeDtypeStruct(leaf.shape, dtype)

    return {name: jax.tree.map(one, tree) for name, tree in expected_params(configs).items()}


def calls(family: str, size: int, batch: int, dtype: str) -> dict[str, Call]:
    """Every program that a guided picture goes through, and `encode`, by what it does."""
    configs = networks(family)
    params = parameters(configs, dtype)
    made = _vae(configs["vae"], params["vae"], size, batch, dtype)
    for name in configs:
        if name.startswith("text_encoder"):  # text, or of two text and text_2
            made[name.replace("_encoder", "")] = _text(configs[name], params[name], dtype)
    if "unet" in configs:
        made["U-Net step"] = step(family, size, batch, dtype, configs, params)
    return made


def _vae(config: Any, params: Any, size: int, batch: int, dtype: str) -> dict[str, Call]:
    import jax
    import jax.numpy as jnp

    from sdjax.runtime import programs

    side, static = size // config.factor, (config, jnp.dtype(dtype))
    latents = jax.ShapeDtypeStruct((batch, side, side, config.latent_channels), "float32")
    pixels = jax.ShapeDtypeStruct((batch, size, size, 3), "float32")
    return {
        "decode": Call(programs.decode, static, (params, latents), 0),
        "encode": Call(programs.encode, static, (params, pixels, latents), 0),
    }


def _text(config: Any, params: Any, dtype: str) -> Call:
    """One row of 77 tokens."""
    import jax
    import jax.numpy as jnp

    from sdjax.runtime import programs

    ids, depth = (jax.ShapeDtypeStruct(shape, "int32") for shape in ((77,), ()))
    return Call(programs.encode_text, (config, jnp.dtype(dtype), False), (params, ids, depth), 0)


def step(family: str, size: int, batch: int, dtype: str, configs: Any = None, params: Any = None) -> Call:
    """One row of a plan with guidance; the text is of one piece of 77 tokens."""
    import jax
    import jax.numpy as jnp

    from sdjax.diffusion.guidance import Guidance
    from sdjax.diffusion.inpaint import KnownRegion
    from sdjax.diffusion.plan import plan
    from sdjax.nn.conditioning import Chunks, Conditions
    from sdjax.runtime import programs
    from sdjax.runtime.denoisers import denoiser_of

    def array(*shape: int) -> Any:
        return jax.ShapeDtypeStruct(shape, "float32")

    configs = networks(family) if configs is None else configs
    own = (parameters(configs, dtype) if params is None else params)["unet"]
    unet, compute, both = configs["unet"], jnp.dtype(dtype), 2 * batch
    latents = array(batch, size // 8, size // 8, unet.in_channels)
    states: Any = array(both, 1, 77, unet.cross_attention_dim)
    count: Any = jax.ShapeDtypeStruct((both,), "int32")
    denoiser, text = denoiser_of(unet, compute), Conditions(Chunks({}, states, count))
    text = jax.eval_shape(partial(programs.precompute_kv, denoiser), own, text)
    table = plan("dpmpp_2m", 20, PRESETS[family].scheduler).table()
    known = jax.eval_shape(KnownRegion.nothing, latents)
    carry = jax.eval_shape(partial(programs.begin, None), latents, known, array(2, batch), table)
    conditions = replace(text, added=_added(unet, both))
    arrays = (carry, table.rows(0, 1), own, conditions, Guidance(array(1, batch), array(1, batch)), known)
    return Call(programs.run_rows, (denoiser, None), arrays, 2)


def _added(unet: Any, count: int) -> Any:
    """SDXL's pooled text and sizes (5 in the refiner, 6 in the base), None for other U-Nets."""
    import jax

    from sdjax.nn.conditioning import Added

    if unet.addition_embed_type != "text_time":
        return None
    pooled = 1280
    ids = (unet.projection_class_embeddings_input_dim - pooled) // unet.addition_time_embed_dim
    made: Any = tuple(jax.ShapeDtypeStruct((count, width), "float32") for width in (pooled, ids))
    return Added(*made)
