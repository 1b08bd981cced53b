"""The noise that torch gives for a seed, without torch: other people's seeds, in NumPy.

`seed=32` in diffusers, A1111 or ComfyUI means Gaussian numbers of torch's, drawn on the CPU (`mersenne`: diffusers with
a CPU generator, ComfyUI's start) or on a CUDA card (`philox`: diffusers with a generator there, A1111 by default).
They are drawn channels first. What is here is float32; a pipeline in half precision draws the same numbers, rounded
(on the CPU by torch 2.13: where their count is below 16 or a multiple of it).

diffusers takes start and draws from one generator, in the order of the plan's own draws, but for `sa_solver`, which
draws there in the steps that use no noise as well, and `dpmpp_sde`, whose Brownian tree is seeded apart. A1111 has a
generator per picture, with seeds counted up from the first. ComfyUI starts a batch on the CPU, and ancestral samplers
draw from a second generator with the same seed, on the card.
"""

import numpy as np

from sdjax.core.errors import closest
from sdjax.core.numbers import is_number
from sdjax.torch_noise.mersenne import Mersenne
from sdjax.torch_noise.philox import Philox

SOURCES = ("jax", "torch_cpu", "torch_cuda")  # of noise; jax's is not of this package
_GENERATORS: dict[str, type[Mersenne] | type[Philox]] = {"torch_cpu": Mersenne, "torch_cuda": Philox}


def generator(source: str, seed: int) -> Mersenne | Philox:
    """What `torch.Generator(device).manual_seed(seed)` is to `torch.randn` in float32: call its `.randn(shape)`.

    Args:
      source: "torch_cpu": equal bit for bit to torch 2.13 for Linux on x86 processors with AVX2; or "torch_cuda":
        to a few 1e-6, for tensors of up to one wave of the card's threads (see `philox` for larger ones).
      seed: 0 .. 2^64 - 1; torch_cpu looks at its low 32 bits alone, as torch does.

    Raises:
      ValueError: another source, or a seed out of range.
    """
    if source not in _GENERATORS:
        near = closest(str(source), _GENERATORS, cutoff=0.3) or list(_GENERATORS)
        raise ValueError(f"{source!r} is no generator of torch's; nearest: {near[0]}; known: {', '.join(_GENERATORS)}")
    if not is_number(seed, int | np.integer) or not 0 <= seed < 1 << 64:
        raise ValueError(f"seed must be a whole number from 0 to 2^64 - 1, not {seed!r}")
    return _GENERATORS[source](int(seed))


def picture_noise(
    source: str, seed: int, number: int, shape: tuple[int, int, int], draws: int
) -> tuple[np.ndarray, np.ndarray]:
    """The Gaussian numbers of one picture as a diffusers pipeline would draw them.

    A picture that is alone under its generator (number 0: one picture, or a list of generators) gets torch's start
    and torch's draws. Where one generator draws a whole batch, picture `number` has the start that it has there,
    whatever the batch (on the CPU: where h w c is a multiple of 16; else, as the last of its batch). Its draws are
    the batch's, too, for torch_cuda. For torch_cpu those depend on the batch's size: here they are the numbers that
    follow on the picture's start, which are also the start of the next picture.

    Args:
      source, seed: see `generator`.
      number: 0 .. of the picture in the batch.
      shape: (h, w, c) of the latents.
      draws: how many the sampler asks for (`plan.draws`).

    Returns:
      x_T float32 [h, w, c] and the draws float32 [draws, h, w, c].

    Raises:
      ValueError: see `generator`.
    """
    h, w, c = shape
    calls = generator(source, seed).picture(number, h * w * c, 1 + draws).reshape(-1, c, h, w)
    last = np.ascontiguousarray(np.moveaxis(calls, 1, -1))
    return last[0], last[1:]
