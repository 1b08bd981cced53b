"""A whole grid of samplers in one compiled program, against compiling each setting.

    python -m experiments.one_program                        # about 15 minutes on 2 idle cores

The grid: every sampler x 1 to 64 steps (as far as they fit 64 evaluations) x three guidance scales, each run with a
seed and a prompt of its own, on the shapes model. First all of it as one program, its plans being data; then, over an
even selection of --compiled settings of the same grid, as other systems do it: the sampler and the step count are part
of the program, so each setting is traced and compiled (the guidance scale, the seed and the prompt are data there too).
Both are timed from the first call on, without a compilation cache. Prints seconds, runs and compilations, and the
selection's time in both ways.
"""

import itertools
import time
from collections.abc import Iterator
from typing import Any

from absl import flags

from experiments import _cli

STEPS = (1, 2, 4, 8, 16, 32, 64)
SCALES = (1.5, 4.0, 7.5)
PROMPTS = ("a large red circle", "a small yellow star on a purple background", "a pink heart", "a blue ring")
LENGTH = 128  # rows that hold the longest plan of 64 evaluations


def plans(sd: Any) -> Iterator[Any]:
    """Every sampler at every step count that it takes, up to 64 evaluations."""
    from sdjax.diffusion.samplers import SAMPLERS

    for name, steps in itertools.product(SAMPLERS, STEPS):
        try:
            one = sd.plan(name, steps)
        except ValueError:  # too few steps for its order, or a sampler that cannot end at zero noise
            continue
        if one.evaluations <= 64 and one.rows <= LENGTH:
            yield one


def main(values: Any) -> None:
    """Times both ways and prints them."""
    import jax
    import jax.numpy as jnp

    import sdjax
    from sdjax.diffusion import scan
    from sdjax.diffusion.guidance import classifier_free
    from sdjax.nn.conditioning import Chunks, Conditions
    from sdjax.runtime import programs
    from sdjax.runtime.denoisers import denoiser_of

    sd = sdjax.load(values.model, compilation_cache=False)
    denoiser, params, ones = denoiser_of(sd.unet, jnp.float32), sd.params["unet"], jnp.ones(2, jnp.int32)
    texts = [sd.encode_prompt(["", prompt])[:, None] for prompt in PROMPTS]
    told = [programs.precompute_kv(denoiser, params, Conditions(Chunks({}, text, ones))) for text in texts]
    shape = (1, sd.unet.sample_size, sd.unet.sample_size, sd.unet.in_channels)
    compiled = []

    def run(table: Any, params: Any, conditions: Any, scale: Any, key: Any) -> Any:
        compiled.append(1)  # runs when traced, so once a compilation

        def network(x: Any, t: Any) -> Any:
            return denoiser(params, x, jnp.broadcast_to(t, x.shape[:1]), conditions)

        x_T = jax.random.normal(key, shape)
        return scan.run(table, classifier_free(network, scale), x_T, scan.keys_per_image(key, 1))

    def timed(settings: list[tuple[int, Any, float]], each: bool) -> float:
        one = jax.jit(run)
        begun = time.perf_counter()
        for i, plan, scale in settings:
            arguments = (params, told[i % len(told)], jnp.float32(scale), jax.random.key(i))
            if each:
                own = plan.table(plan.rows - 1)
                out = jax.jit(lambda *rest, own=own: run(own, *rest))(*arguments)
            else:
                out = one(plan.table(LENGTH), *arguments)
            jax.block_until_ready(out)
        return time.perf_counter() - begun

    grid = [(i, plan, scale) for i, (plan, scale) in enumerate(itertools.product(plans(sd), SCALES))]
    evaluations = sum(plan.evaluations for _, plan, _ in grid)
    print(f"the grid: {len(grid)} settings, {evaluations} evaluations", flush=True)
    print(f"one program: {timed(grid, False):.1f} s, {len(compiled)} compilation(s)", flush=True)
    # Scales are data in both ways: the selection has one setting of each plan it holds.
    some = grid[:: max(1, len(grid) // values.compiled)][: values.compiled]
    for each in (False, True):
        compiled.clear()
        name = "compiled each" if each else "one program"
        print(
            f"{len(some)} settings of it, {name}: {timed(some, each):.1f} s, {len(compiled)} compilation(s)", flush=True
        )


if __name__ == "__main__":
    flags.DEFINE_string("model", None, "Checkpoint; the shipped one by default.")
    flags.DEFINE_integer("compiled", 60, "Settings to compile one by one.", lower_bound=1)
    _cli.run(lambda: main(flags.FLAGS))
