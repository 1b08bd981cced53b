"""One labelled sheet of pictures, a prompt under each.

    python -m experiments.grid --out=docs/shapes.png

makes the grid at the head of the README with the shipped model: its prompts in the order given, seed 0, none left
out. --prompt, several times, makes one of your own. About 20 s on 2 CPU cores.
"""

from pathlib import Path
from typing import Any

import numpy as np
from absl import flags
from PIL import Image

from experiments import _cli

PROMPTS = (
    "a large red circle on a white background",
    "a small yellow star on a purple background",
    "a large green diamond",
    "a pink heart on a black background",
    "a large blue ring on a yellow background",
    "a white cross on a brown background",
    "a large orange triangle on a cyan background",
    "a gray square on a green background",
    "a red circle above a blue square",
    "a yellow star to the left of a purple heart on a white background",
    "a large black cross below a small cyan circle",
    "a green triangle to the right of a pink ring on a gray background",
)
SCALE = 2


def labelled(images: np.ndarray, prompts: list[str], columns: int) -> Image.Image:
    """Pictures uint8 `b H W 3`, enlarged twice, each with its prompt below, in rows of `columns`."""
    from sdjax.images import sheet

    size = SCALE * images.shape[2], SCALE * images.shape[1]
    shown = [Image.fromarray(pixels).resize(size, Image.Resampling.LANCZOS) for pixels in images]
    return sheet.sheet(shown, [sheet.wrapped(prompt, size[0]) for prompt in prompts], columns)


def main(values: Any) -> None:
    """Generates, labels, saves; prints the path."""
    import sdjax

    prompts = values.prompt or list(PROMPTS)
    sd = sdjax.load(values.model)
    out = sd.generate(prompts, steps=values.steps, seed=values.seed, guidance_scale=values.guidance_scale)
    assert out.pixels is not None
    Path(values.out).parent.mkdir(parents=True, exist_ok=True)
    labelled(out.pixels, prompts, values.columns).save(values.out, optimize=True)
    print(values.out)


if __name__ == "__main__":
    flags.DEFINE_multi_string("prompt", None, "A prompt; several times for several pictures.")
    flags.DEFINE_string("model", None, "Checkpoint; the shipped one by default.")
    flags.DEFINE_integer("steps", 20, "Sampler steps.", lower_bound=1)
    flags.DEFINE_float("guidance_scale", None, "Guidance scale; the model's default where not given.")
    flags.DEFINE_integer("seed", 0, "Seed.", lower_bound=0)
    flags.DEFINE_integer("columns", 4, "Pictures in a row.", lower_bound=1)
    flags.DEFINE_string("out", "out/grid.png", "The file to write.")
    _cli.run(lambda: main(flags.FLAGS))
