"""The program that every cell runs through: the sampling scan with guidance, over whole batches.

Sampler, schedule, steps, guidance scale, prompts and noise are its data, so a grid of any of them is one compilation.
The library runs each picture alone on a CPU, for the same bits in any batch; here whole batches go through the
network, which is faster and differs in the last bits.
"""

import os
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import sdjax
from sdjax.core.keys import key, settled
from sdjax.diffusion import scan
from sdjax.diffusion.guidance import classifier_free
from sdjax.diffusion.plan import padded_length
from sdjax.diffusion.table import Table
from sdjax.nn.conditioning import Chunks, Conditions
from sdjax.runtime import programs
from sdjax.runtime.denoisers import denoiser_of

SEGMENT_ROWS = 8  # rows of one call: how often the progress bar moves
# Memory of one guided picture in the U-Net, in bytes for each latent pixel and channel of its first level, and what of
# the free memory may be used. SD 1.5 at 512 x 512 on a CPU: 1.3 GiB over its parameters.
BYTES_PER_FEATURE, USABLE = 1100, 0.5
# Latent pixels times channels of one batch on a CPU, where larger ones are no faster: 25 pictures of the shapes model.
CPU_FEATURES = 25 * 16 * 16 * 64


class Program:
    """One compiled scan, for plans of up to `longest` rows.

    Attributes:
      compilations: how often it was compiled; 1 after any number of cells.
    """

    def __init__(self, sd: sdjax.StableDiffusion, prompts: Sequence[str], seed: int, batch: int, longest: int) -> None:
        self.sd, self.seed, self.batch = sd, seed, batch
        self.length = padded_length(longest - 1) + SEGMENT_ROWS - 1  # a whole number of segments, the result included
        self.compilations = 0
        self._denoiser = denoiser_of(sd.unet, sd.dtype)
        self._params = sd.networks.params["unet"]
        self._context = np.asarray(sd.encode_prompt(["", *prompts]))
        self._advance = jax.jit(self._segment, donate_argnums=0)
        size = sd.unet.sample_size
        self._begin = jax.jit(partial(_begin, (size, size, sd.unet.in_channels)))

    def warm_up(self, plan: sdjax.Plan) -> float:
        """Compiles, if that has not been done; gives the seconds of one network evaluation of a batch."""
        rows = plan.table(self.length).rows(0, SEGMENT_ROWS)
        seconds = []
        for evaluations in (0, 2, 2):
            few = Table(**{**vars(rows), "evaluate": np.arange(SEGMENT_ROWS) < evaluations})
            carry, conditions, scales = self._start(plan.table(self.length), np.zeros(1, int), 1.0)
            begun = time.perf_counter()
            jax.block_until_ready(self._advance(carry, few, self._params, conditions, scales))
            seconds.append(time.perf_counter() - begun)
        return seconds[-1] / 2

    def run(
        self, plan: sdjax.Plan, index: np.ndarray, scale: float, tick: Callable[[int], object]
    ) -> tuple[np.ndarray, float]:
        """Pictures `index` [<= batch] under one plan.

        Returns:
          their final latents `b h w c`, and seconds a picture of a full batch, text and pixels not among them.
          `tick` is told the evaluations done, segment by segment.
        """
        table = plan.table(self.length)
        carry, conditions, scales = self._start(table, index, scale)
        seconds = 0.0
        for start in range(0, plan.rows, SEGMENT_ROWS):
            part = table.rows(start, start + SEGMENT_ROWS)
            begun = time.perf_counter()
            carry = jax.block_until_ready(self._advance(carry, part, self._params, conditions, scales))
            seconds += time.perf_counter() - begun
            tick(int(part.evaluate.sum()))
        return np.asarray(scan.result(carry))[: len(index)], seconds / self.batch

    def _start(self, table: Table, index: np.ndarray, scale: float) -> tuple[scan.Carry, Any, jax.Array]:
        """The state before the first row, the text's keys and values ([no prompt, prompt]), the scales; filled up."""
        index = np.pad(index, (0, self.batch - len(index)), mode="edge")
        text = np.concatenate([np.repeat(self._context[:1], self.batch, axis=0), self._context[1 + index]])
        ones = jnp.ones(len(text), jnp.int32)
        context = Chunks({}, jnp.asarray(text)[:, None], ones)
        conditions = programs.precompute_kv(self._denoiser, self._params, Conditions(context))
        keys = jax.vmap(partial(jax.random.fold_in, key(self.seed)))(index.astype(np.uint32))
        with settled():
            carry = self._begin(keys, table)
        return jax.block_until_ready(carry), jax.block_until_ready(conditions), jnp.full(self.batch, scale, jnp.float32)

    def _segment(self, carry: scan.Carry, rows: Table, params: Any, conditions: Any, scales: jax.Array) -> scan.Carry:
        self.compilations += 1  # Python runs this once for each compilation

        def model(x: jax.Array, t: jax.Array) -> jax.Array:
            return self._denoiser(params, x, jnp.broadcast_to(t, x.shape[:1]), conditions)

        return scan.run_rows(carry, rows, classifier_free(model, scales))


def _begin(shape: tuple[int, ...], keys: jax.Array, table: Table) -> scan.Carry:
    """Each picture's noise from its own key, as `generate` draws it: picture i is its first_image=i of that seed."""
    start, draws = jax.vmap(jax.random.split, out_axes=1)(keys)
    carry = scan.init(table, jax.vmap(lambda key: jax.random.normal(key, shape))(start))
    return scan.draw(carry, table, draws)


def automatic_batch(sd: sdjax.StableDiffusion, count: int, rows: int) -> int:
    """Pictures at once that fit into the machine's free memory; on a CPU no more than make it faster.

    Args:
      count: pictures there are. rows: of the longest table.
    """
    pixels = sd.unet.sample_size**2
    features = pixels * sd.unet.block_out_channels[0]
    picture = BYTES_PER_FEATURE * features + 2 * 4 * rows * pixels * sd.unet.in_channels
    fits = int(USABLE * free_memory() / picture)
    if jax.default_backend() == "cpu":
        fits = min(fits, CPU_FEATURES // features)
    batches = -(-count // max(1, fits))
    return -(-count // batches)  # as few, and of equal size


def free_memory() -> int:
    """Bytes that the device has left."""
    stats = jax.local_devices()[0].memory_stats()
    if stats and "bytes_limit" in stats:
        return stats["bytes_limit"] - stats.get("bytes_in_use", 0)
    known = Path("/proc/meminfo")
    if known.exists():
        fields = dict(line.split(":") for line in known.read_text().splitlines())
        return int(fields["MemAvailable"].split()[0]) * 1024
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
