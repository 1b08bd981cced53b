r"""Peak memory by family, size and batch, read from the compiled programs: by shapes alone, no weight is made.

    python -m experiments.memory --out=memory.json               # 20 minutes on 2 busy cores, 3 GiB
    python -m experiments.memory --rows=vae:2048:1,vae:4096:1    # the autoencoder of Stable Diffusion 1.5 alone

Every program is compiled for the device that this process has, and XLA says what it holds at once: arguments, results
and temporaries. In GiB: the weights of all networks, in the dtype that they compute in; what one evaluation with
guidance, decoding and encoding hold beside the weights; and the peak, all weights and the largest of the rest (the text
encoders' is small, and is held before any of these). On a CPU pictures go through the U-Net one by one, so that a batch
adds little, and 16-bit programs hold float32 copies of what they multiply; on a GPU neither is so.
Expected: Stable Diffusion 1.5 at 512 x 512 in float32 under 5 GiB; decoding 2048 x 2048 in about twice, not four
times, the memory of 1024 x 1024, its large levels being cut into tiles.
"""

import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from absl import flags

from experiments import _cli
from sdjax.config.presets import PRESETS
from sdjax.core.files import write
from sdjax.nn.shapes import expected_params
from sdjax.runtime.denoisers import denoiser_of

ROWS = ["sd15:512:1", "sd15:512:8", "sd15:768:1", "sd21:768:1", "sdxl:1024:1", "vae:1024:1", "vae:2048:1", "vae:4096:1"]
DTYPES = ["float32", "bfloat16"]
VAE = "vae"  # the family of rows without a U-Net
PROGRAMS = ("text", "U-Net step", "decode", "encode")
Program = tuple[Any, Any]  # lowered, and what it takes beside weights
HEAD = f"| family | size | batch | dtype | weights | {' | '.join(PROGRAMS)} | peak |\n|{'---|' * 9}"


def main(values: Any) -> None:
    """Prints a line of the table as soon as it is known, then writes them all."""
    rows = [_row(row) for row in values.rows]
    measured = []
    print(HEAD)
    for family, size, batch in rows:
        for dtype in values.dtypes:
            one = measure(family, size, batch, dtype)
            measured.append({"family": family, "size": size, "batch": batch, "dtype": dtype, **one})
            cells = [f"{one[name] / 2**30:.2f}" if name in one else "" for name in ("weights", *PROGRAMS, "peak")]
            print(f"| {family} | {size} | {batch} | {dtype} | {' | '.join(cells)} |", flush=True)
    if values.out:
        write(json.dumps(measured, indent=1).encode(), Path(values.out), "what was measured")


def measure(family: str, size: int, batch: int, dtype: str) -> dict[str, int]:
    """Bytes, by column."""
    import jax

    configs = _configs(family)
    params = {
        name: jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, dtype), tree)
        for name, tree in expected_params(configs).items()
    }
    lowered = _vae_programs(configs["vae"], params["vae"], size, batch, dtype)
    if "unet" in configs:
        lowered["text"] = _text(configs["text_encoder"], params["text_encoder"], dtype)
        lowered["U-Net step"] = _step(configs, params["unet"], family, size, batch, dtype)
    found = {}
    for name, (program, inputs) in lowered.items():
        told = program.compile().memory_analysis()
        results = told.output_size_in_bytes - told.alias_size_in_bytes  # the state is written in its own place
        found[name] = _bytes(inputs) + results + told.temp_size_in_bytes
    return {"weights": _bytes(params), **found, "peak": _bytes(params) + max(found.values())}


def _bytes(arrays: Any) -> int:
    import jax

    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(arrays))


def _configs(family: str) -> dict[str, Any]:
    from experiments.benchmark.ours import networks

    return {"vae": networks("sd15")["vae"]} if family == VAE else networks(family)


def _vae_programs(vae: Any, params: Any, size: int, batch: int, dtype: str) -> dict[str, Program]:
    import jax
    import jax.numpy as jnp

    from sdjax.runtime import programs

    latents = jax.ShapeDtypeStruct((batch, size // vae.factor, size // vae.factor, vae.latent_channels), "float32")
    pixels = jax.ShapeDtypeStruct((batch, size, size, 3), "float32")
    return {
        "decode": (programs.decode.lower(vae, jnp.dtype(dtype), params, latents), latents),
        "encode": (programs.encode.lower(vae, jnp.dtype(dtype), params, pixels, latents), (pixels, latents)),
    }


def _text(config: Any, params: Any, dtype: str) -> Program:
    """One row of 77 tokens, lowered."""
    import jax
    import jax.numpy as jnp

    from sdjax.runtime import programs

    ids, depth = (jax.ShapeDtypeStruct(shape, "int32") for shape in ((77,), ()))
    return programs.encode_text.lower(config, jnp.dtype(dtype), False, params, ids, depth), ids


def _step(configs: Any, params: Any, family: str, size: int, batch: int, dtype: str) -> Program:
    """One row of a plan with guidance, lowered; the text is of one piece of 77 tokens."""
    import jax
    import jax.numpy as jnp

    from sdjax.diffusion.guidance import Guidance
    from sdjax.diffusion.inpaint import KnownRegion
    from sdjax.diffusion.plan import plan
    from sdjax.nn.conditioning import Added, Chunks, Conditions
    from sdjax.runtime import programs

    def array(*shape: int) -> Any:
        return jax.ShapeDtypeStruct(shape, "float32")

    unet, compute, both = configs["unet"], jnp.dtype(dtype), 2 * batch
    latents = array(batch, size // 8, size // 8, unet.in_channels)
    states: Any = array(both, 1, 77, unet.cross_attention_dim)
    count: Any = jax.ShapeDtypeStruct((both,), "int32")
    denoiser, text = denoiser_of(unet, compute), Conditions(Chunks({}, states, count))
    text = jax.eval_shape(partial(programs.precompute_kv, denoiser), params, text)
    added = Added(array(both, 1280), array(both, 6)) if unet.addition_embed_type == "text_time" else None
    table = plan("dpmpp_2m", 20, PRESETS[family].scheduler).table()
    known = jax.eval_shape(KnownRegion.nothing, latents)
    carry = jax.eval_shape(partial(programs.begin, None), latents, known, array(2, batch), table)
    rest = (replace(text, added=added), Guidance(array(1, batch), array(1, batch)), known)
    return programs.run_rows.lower(denoiser, None, carry, table.rows(0, 1), params, *rest), (carry, rest)


def _row(text: str) -> tuple[str, int, int]:
    """`family:size:batch`, checked. Raises ValueError."""
    family, *numbers = text.split(":")
    known = [VAE, *(name for name, preset in PRESETS.items() if "text_encoder" in preset.configs)]
    if family not in known or len(numbers) != 2 or not all(number.isdecimal() and int(number) for number in numbers):
        raise ValueError(f"--rows: {text!r} is not family:size:batch, with a family of {', '.join(known)}")
    if int(numbers[0]) % 64:
        raise ValueError(f"--rows: {text!r} has a size that is no multiple of 64")
    return family, int(numbers[0]), int(numbers[1])


if __name__ == "__main__":
    flags.DEFINE_list("rows", ROWS, "Of family:size:batch each.")
    flags.DEFINE_multi_enum("dtypes", DTYPES, DTYPES, "What the networks are held and compute in.")
    flags.DEFINE_string("out", None, "A JSON file.")
    _cli.run(lambda: main(flags.FLAGS))
