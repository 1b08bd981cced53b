"""How often the shapes model draws what it is asked: generated pictures, scored from their pixels alone.

    python -m experiments.shapes.report --count=1000 --sheets=out/sheets
    python -m experiments.shapes.report --count=300 --guidance_scales=1,2,3,5,8
    python -m experiments.shapes.report --count=300 --steps=4,8,20,50
    python -m experiments.shapes.report --adapter=lcm.safetensors --sampler=lcm --steps=4 --guidance_scales=1

Prints accuracy with 95 % Wilson intervals for random captions (of one object or two) and for each number of objects
apart, with seen pairs only and with an unseen one; the kinds of error; how many of the pictures that the world itself
draws of such captions the scorer accepts, as they are and after a turn through the VAE, about the most that a
U-Net can reach. With one setting also the parts: each relation, backgrounds and sizes named or left open; with
several, a line for each. --out appends all of it as JSON lines, --sheets holds unselected contact sheets.

Samplers against steps: `python -m experiments.tradeoff`.
"""

import itertools
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from absl import flags
from PIL import Image

import sdjax
from experiments import _cli
from experiments.shapes import workers, world
from experiments.shapes.score import Verdict, rate
from experiments.train import rewards
from sdjax.images.pixels import from_uint8, to_uint8

FLAGS = flags.FLAGS

SEED = 1_000_003  # of the captions: no training stage draws from it
KINDS: dict[str, tuple[int | None, world.Pairs]] = {
    "seen pairs": (None, "seen"),
    "an unseen pair": (None, "unseen"),
    "one object, seen pair": (1, "seen"),
    "one object, unseen pair": (1, "unseen"),
    "two objects, seen pairs": (2, "seen"),
    "two objects, an unseen pair": (2, "unseen"),
}


@dataclass(frozen=True)
class Setting:
    """How pictures are made."""

    sampler: str
    steps: int
    guidance_scale: float
    seed: int


def scenes(count: int, things: int | None, pairs: world.Pairs) -> list[world.Scene]:
    """`count` random scenes of one kind."""
    return [world.sample_scene(np.random.default_rng([SEED, i]), things=things, pairs=pairs) for i in range(count)]


def captions(count: int, things: int | None, pairs: world.Pairs) -> list[str]:
    """`count` random captions of one kind."""
    return [scene.caption() for scene in scenes(count, things, pairs)]


def pictures(
    sd: sdjax.StableDiffusion, prompts: Sequence[str], batch: int, given: Mapping[str, Any], **each: Sequence[Any]
) -> np.ndarray:
    """One picture of each prompt, uint8 `b H W 3`, in batches of equal size so that there is one compilation.

    given: arguments of `generate` for all pictures. each: its arguments with a value for every picture.
    """
    made = []
    for start in range(0, len(prompts), batch):
        chosen = [min(i, len(prompts) - 1) for i in range(start, start + batch)]
        own: dict[str, Any] = {name: [values[i] for i in chosen] for name, values in each.items()}
        out = sd.generate([prompts[i] for i in chosen], first_image=start, progress=False, **given, **own)
        assert out.pixels is not None
        made.append(out.pixels[: len(prompts) - start])
    return np.concatenate(made)


def through_vae(sd: sdjax.StableDiffusion, images: np.ndarray, batch: int) -> np.ndarray:
    """Pictures uint8 `b H W 3` encoded and decoded."""
    groups = [images[start : start + batch] for start in range(0, len(images), batch)]
    encoded = [sd.encode(jnp.asarray(from_uint8(group))) for group in groups]
    return np.concatenate([to_uint8(np.asarray(sd.decode(latents))) for latents in encoded])


def parts(scene: world.Scene) -> list[str]:
    """What a caption is counted under besides its kind."""
    named = {"background": scene.background is not None, "size": any(thing.size for thing in scene.things)}
    told = [f"{what} named" if yes else f"{what} left open" for what, yes in named.items()]
    return told if scene.relation is None else [*told, scene.relation]


def counted(prompts: Sequence[str], verdicts: Sequence[Verdict]) -> dict[str, Any]:
    """{"right", "of", "errors": {kind: pictures}, "parts": {part: [right, of]}}."""
    groups: dict[str, list[bool]] = {}
    for prompt, verdict in zip(prompts, verdicts, strict=True):
        for part in parts(world.parse_caption(prompt)):
            groups.setdefault(part, []).append(verdict.ok)
    return {
        "right": sum(verdict.ok for verdict in verdicts),
        "of": len(verdicts),
        "errors": dict(Counter(error for verdict in verdicts for error in verdict.errors).most_common()),
        "parts": {part: [sum(groups[part]), len(groups[part])] for part in sorted(groups)},
    }


def sheet(images: np.ndarray, columns: int) -> Image.Image:
    """The pictures side by side in rows, in order."""
    rows = [np.concatenate(list(images[i : i + columns]), axis=1) for i in range(0, len(images), columns)]
    return Image.fromarray(np.concatenate([row for row in rows if row.shape == rows[0].shape], axis=0))


def ceiling(sd: sdjax.StableDiffusion, kind: str, pool: ProcessPoolExecutor) -> None:
    """Prints how many pictures of the world itself pass, as they are and after the VAE."""
    chosen = scenes(FLAGS.count, *KINDS[kind])
    prompts = [scene.caption() for scene in chosen]
    drawn = np.stack([world.render(scene, np.random.default_rng([SEED, 1, i])) for i, scene in enumerate(chosen)])
    for name, images in (("drawn", drawn), ("through the VAE", through_vae(sd, drawn, FLAGS.batch))):
        right = sum(verdict.ok for verdict in workers.scores(pool, images, prompts))
        print(f"  {name}: {rate(right, len(prompts))}", flush=True)


def measured(sd: sdjax.StableDiffusion, kind: str, setting: Setting, pool: ProcessPoolExecutor) -> dict[str, Any]:
    """Makes and scores the pictures of one kind at one setting."""
    prompts = captions(FLAGS.count, *KINDS[kind])
    images = pictures(sd, prompts, FLAGS.batch, vars(setting))
    if FLAGS.sheets:
        Path(FLAGS.sheets).mkdir(parents=True, exist_ok=True)
        sheet(images[:40], 10).save(Path(FLAGS.sheets) / f"{kind.replace(',', '').replace(' ', '_')}.png")
    if FLAGS.reward:
        scores = rewards.read(FLAGS.reward)(jnp.asarray(from_uint8(images)), {}, {})
        print(f"  the reward: {scores.mean():.4f}, standard error {scores.std() / len(scores) ** 0.5:.4f}", flush=True)
    return counted(prompts, workers.scores(pool, images, prompts))


def main() -> None:
    kinds = [kind for kind in KINDS if FLAGS.kind in kind]
    if not kinds:
        raise ValueError(f"--kind={FLAGS.kind}: no kind holds that; there are {'; '.join(KINDS)}")
    steps = [_cli.number(text, int, "steps") for text in FLAGS.steps]
    scales = [_cli.number(text, float, "guidance_scales") for text in FLAGS.guidance_scales]
    sd = sdjax.load(FLAGS.model)
    if FLAGS.adapter:
        sd = sd.with_adapters([(sdjax.load_adapter(FLAGS.adapter), 1.0)])
    settings = [
        Setting(FLAGS.sampler, count, scale, FLAGS.seed)
        for count, scale in itertools.product(steps, scales or [sd.guidance_scale])
    ]
    with workers.pool(FLAGS.count) as pool:
        for kind in kinds:
            print(f"{kind}:", flush=True)
            ceiling(sd, kind, pool)
            for setting in settings:
                result = measured(sd, kind, setting, pool)
                what = f"{setting.steps} steps, guidance scale {setting.guidance_scale:g}"
                print(f"  {what}: {rate(result['right'], result['of'])} {result['errors']}", flush=True)
                if len(settings) == 1:
                    for part, numbers in result["parts"].items():
                        print(f"    {part}: {rate(*numbers)}", flush=True)
                if FLAGS.out:
                    line = {"model": FLAGS.model, "kind": kind, **vars(setting), **result}
                    with Path(FLAGS.out).open("a") as file:
                        file.write(json.dumps(line) + "\n")


if __name__ == "__main__":
    flags.DEFINE_string("model", None, "Checkpoint; the shipped one by default.")
    flags.DEFINE_string("adapter", None, "Merged into it at strength 1.")
    flags.DEFINE_string("reward", None, "A score of pictures, as --reward of experiments.train; its mean is printed.")
    flags.DEFINE_integer("count", 300, "Captions of each kind.", lower_bound=1)
    flags.DEFINE_integer("batch", 50, "Pictures made at once.", lower_bound=1)
    flags.DEFINE_list("steps", ["20"], "Sampler steps, one number or several.")
    flags.DEFINE_string("sampler", "dpmpp_2m", "Sampler.")
    flags.DEFINE_list("guidance_scales", [], "Guidance scales; the model's default where not given.")
    flags.DEFINE_integer("seed", 0, "Seed of the pictures.", lower_bound=0)
    flags.DEFINE_string("kind", "", "Only the kinds whose name holds this.")
    flags.DEFINE_string("sheets", None, "Folder for contact sheets.")
    flags.DEFINE_string("out", None, "File to which each result is appended, a JSON line.")
    _cli.run(main)
