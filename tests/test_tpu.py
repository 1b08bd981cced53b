"""The programs lowered for a TPU from this machine: what the StableHLO may not hold, and in which dtype it multiplies.

No TPU is needed to lower, so this shows that nothing on the path is for CPUs or GPUs alone, not that it is fast.
"""

import re
from collections.abc import Iterator
from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export

from sdjax.config import ClipTextConfig, UNetConfig, VaeConfig
from sdjax.core.devices import tracing_for
from sdjax.diffusion.guidance import Guidance
from sdjax.diffusion.inpaint import KnownRegion
from sdjax.diffusion.plan import plan
from sdjax.nn.conditioning import Added, Chunks, Conditions
from sdjax.nn.shapes import expected_params
from sdjax.runtime import programs
from sdjax.runtime.denoisers import denoiser_of
from tests import checkpoints

BFLOAT16 = jnp.dtype("bfloat16")
LATENTS, TOKENS = 24, 12
TEXT = ClipTextConfig.from_dict(
    checkpoints.TEXT | {"vocab_size": 37, "bos_token_id": 35, "eos_token_id": 36, "intermediate_size": 48}
)
UNET = UNetConfig.from_dict(checkpoints.UNET | {"sample_size": LATENTS})
XL = {
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 8,
    "projection_class_embeddings_input_dim": 64,
    "use_linear_projection": True,
    "sample_size": LATENTS,
}
UNET_XL = UNetConfig.from_dict(checkpoints.UNET | XL)
VAE = VaeConfig.from_dict(checkpoints.VAE | {"sample_size": 2 * LATENTS})


@pytest.fixture(autouse=True)
def for_a_tpu() -> Iterator[None]:
    """The networks choose their forms by the platform that they are traced for."""
    with tracing_for("tpu"):
        yield


def array(*shape: int, dtype: str = "float32") -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, jnp.dtype(dtype))


def params(config, dtype=BFLOAT16):
    tree = expected_params({"it": config})["it"]
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, dtype), tree)


def stablehlo(function, *arguments) -> str:
    """The program's text for a TPU. The keys' generator is threefry, which is plain arithmetic."""
    return export.export(function, platforms=["tpu"])(*arguments).mlir_module()


def run_rows(config: UNetConfig, batch: int) -> str:
    """A guided run of 4 rows."""
    x = array(batch, LATENTS, LATENTS, 4)
    latents = np.zeros(x.shape, np.float32)
    table, known = plan("dpmpp_2m", 4, checkpoints.SCHEDULER).table(), KnownRegion.nothing(jnp.asarray(latents))
    carry = jax.eval_shape(partial(programs.begin, None), x, known, np.ones((2, batch), np.float32), table)
    states = array(2 * batch, 1, TOKENS, checkpoints.WIDTH)
    denoiser, text = denoiser_of(config, BFLOAT16), Chunks({}, states, array(2 * batch, dtype="int32"))
    text = jax.eval_shape(partial(programs.precompute_kv, denoiser), params(config), Conditions(text))
    added = Added(array(2 * batch, 16), array(2 * batch, 6)) if config.addition_embed_type else None
    guidance = Guidance(jnp.ones((len(table), batch)), jnp.zeros((len(table), batch)))
    run = jax.jit(lambda *rest: programs.run_rows(denoiser, None, *rest))
    return stablehlo(run, carry, table, params(config), replace(text, added=added), guidance, known)


PROGRAMS = {
    "encode_text": lambda: stablehlo(
        jax.jit(lambda *rest: programs.encode_text(TEXT, BFLOAT16, True, *rest)),
        params(TEXT), array(TOKENS, dtype="int32"), array(dtype="int32"),
    ),
    "run_rows": lambda: run_rows(UNET, 2),
    "advance_xl": lambda: run_rows(UNET_XL, 2),
    "decode": lambda: stablehlo(
        jax.jit(lambda *rest: programs.decode(VAE, BFLOAT16, *rest)), params(VAE), array(2, LATENTS, LATENTS, 4)
    ),
    "encode": lambda: stablehlo(
        jax.jit(lambda *rest: programs.encode(VAE, BFLOAT16, *rest)),
        params(VAE), array(2, 2 * LATENTS, 2 * LATENTS, 3), array(2, LATENTS, LATENTS, 4),
    ),
}  # fmt: skip


def products(text: str) -> set[tuple[str, str]]:
    """The dtypes of the two factors of every matrix product and convolution that a TPU would do in bfloat16.

    Left out is what asks for all of float32's digits (a TPU has none by default): the solver's, row by history.
    """
    factors = r"\(tensor<([^>]*)>, tensor<([^>]*)>\)"
    found = re.findall(rf"stablehlo\.(?:dot_general|convolution)\b(.*?): {factors}", text)
    plain = [pair for settings, *pair in found if "[HIGHEST, HIGHEST]" not in settings]
    return {(one.split("x")[-1], other.split("x")[-1]) for one, other in plain}


@pytest.mark.parametrize("name", PROGRAMS)
def test_lowers_for_a_tpu(name):
    text = PROGRAMS[name]()
    assert not re.findall(r"custom_call @(?!Sharding|SPMD)\w+", text), "an operation of one kind of device"
    assert "f64" not in text
    assert products(text) == {("bf16", "bf16")}
    # Statistics of norms and of the softmax: what is summed is float32.
    sums = set(re.findall(r"stablehlo\.reduce\(.*?applies stablehlo\.add.*?: \(tensor<([^>]*)>", text))
    assert sums and {one.split("x")[-1] for one in sums} <= {"f32"}, sums
