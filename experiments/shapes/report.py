"""How often the shapes model draws what it is asked: generated pictures, scored from their pixels alone.

    python -m experiments.shapes.report --count=300

Prints accuracy with 95 % Wilson intervals for captions of one object and of two, with seen pairs only and with an
unseen one, the kinds of error, and the same apart for each relation and for captions that name a background or a size
and that do not; writes an unselected contact sheet. About a second a picture on 2 cores.

Against guidance, steps and samplers: `python -m experiments.tradeoff`.
"""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from absl import flags
from PIL import Image

import sdjax
from experiments import _cli
from experiments.shapes import world
from experiments.shapes.score import Verdict, score, wilson

FLAGS = flags.FLAGS

SEED = 1_000_003  # of the captions: no training stage draws from it
KINDS: dict[str, tuple[int, world.Pairs]] = {
    "one object, seen pairs": (1, "seen"),
    "two objects, seen pairs": (2, "seen"),
    "one object, unseen pair": (1, "unseen"),
    "two objects, an unseen pair": (2, "unseen"),
}


def captions(count: int, things: int, pairs: world.Pairs) -> list[str]:
    """`count` random captions of one kind."""
    scenes = (world.sample_scene(np.random.default_rng([SEED, i]), things=things, pairs=pairs) for i in range(count))
    return [scene.caption() for scene in scenes]


def pictures(sd: sdjax.StableDiffusion, prompts: list[str]) -> np.ndarray:
    """One picture of each prompt, uint8 `b H W 3`, in batches of equal size so that there is one compilation."""
    made, size = [], FLAGS.batch
    for start in range(0, len(prompts), size):
        group = prompts[start : start + size]
        padded = group + group[-1:] * (size - len(group))
        out = sd.generate(
            padded,
            steps=FLAGS.steps,
            sampler=FLAGS.sampler,
            guidance_scale=FLAGS.guidance_scale,
            seed=FLAGS.seed,
            first_image=start,
        )
        assert out.pixels is not None
        made.append(out.pixels[: len(group)])
    return np.concatenate(made)


def table(prompts: Sequence[str], verdicts: Sequence[Verdict]) -> str:
    """Lines: how many pictures show their captions, the errors, and the same for each of the captions' `parts`."""
    errors = Counter(error for verdict in verdicts for error in verdict.errors)
    groups: dict[str, list[bool]] = {}
    for prompt, verdict in zip(prompts, verdicts, strict=True):
        for part in parts(world.parse_caption(prompt)):
            groups.setdefault(part, []).append(verdict.ok)
    first = f"{_rate([verdict.ok for verdict in verdicts])} {dict(errors)}"
    return "\n".join([first, *(f"  {part}: {_rate(groups[part])}" for part in sorted(groups))])


def parts(scene: world.Scene) -> list[str]:
    """What a caption is counted under besides its kind."""
    named = {"background": scene.background is not None, "size": any(thing.size for thing in scene.things)}
    told = [f"{what} named" if yes else f"{what} left open" for what, yes in named.items()]
    return told if scene.relation is None else [*told, scene.relation]


def _rate(right: Sequence[bool]) -> str:
    low, high = wilson(sum(right), len(right))
    return f"{sum(right)}/{len(right)} = {sum(right) / len(right):.1%} ({low:.1%} to {high:.1%})"


def sheet(images: np.ndarray, columns: int) -> Image.Image:
    """The pictures side by side in rows, in order."""
    rows = [np.concatenate(list(images[i : i + columns]), axis=1) for i in range(0, len(images), columns)]
    return Image.fromarray(np.concatenate([row for row in rows if row.shape == rows[0].shape], axis=0))


def main() -> None:
    sd = sdjax.load(FLAGS.model)
    for kind, (things, pairs) in KINDS.items():
        if FLAGS.kind not in kind:
            continue
        prompts = captions(FLAGS.count, things, pairs)
        images = pictures(sd, prompts)
        verdicts = [score(image, prompt) for image, prompt in zip(images, prompts, strict=True)]
        print(f"{kind}: {table(prompts, verdicts)}", flush=True)
        if FLAGS.sheets:
            Path(FLAGS.sheets).mkdir(parents=True, exist_ok=True)
            sheet(images[:40], 10).save(Path(FLAGS.sheets) / f"{kind.replace(',', '').replace(' ', '_')}.png")


if __name__ == "__main__":
    flags.DEFINE_string("model", None, "Checkpoint; the shipped one by default.")
    flags.DEFINE_integer("count", 300, "Captions of each kind.")
    flags.DEFINE_integer("batch", 50, "Pictures made at once.")
    flags.DEFINE_integer("steps", 20, "Sampler steps.")
    flags.DEFINE_string("sampler", "dpmpp_2m", "Sampler.")
    flags.DEFINE_float("guidance_scale", None, "Guidance scale; the model's default where not given.")
    flags.DEFINE_integer("seed", 0, "Seed of the pictures.")
    flags.DEFINE_string("kind", "", "Only the kinds whose name holds this.")
    flags.DEFINE_string("sheets", None, "Folder for contact sheets.")
    _cli.run(main)
