"""What the adapters of the shapes model have taught it, and what it has forgotten: pictures, scored from their pixels.

    python -m experiments.shapes.score_adapters --count=200
    python -m experiments.shapes.score_adapters --lora=runs/hexagon/adapter.safetensors --inversion= --count=60
    python -m experiments.shapes.score_adapters --lora= --model=runs/hexagon/model --inversion= --double=0

For each file the part of right pictures with 95 % Wilson intervals: of captions with the new outline or colour that are
none of the twenty it learnt from, of those among them whose colour (or outline) no picture showed the new thing with;
then of old captions, of the same seeds, without the adapter and with it. Wherever one is judged, the new outline and
the new colour count: a hexagon is no circle. Of an inversion that part counts whose colours
are right, and after it that where everything is. --out appends the figures as a JSON line.

Both are worn, as a user would: `generate(adapters=, embeddings=)`. --strength is the LoRA's. --model is scored as a
LoRA is: a whole model that has been taught the outline. --outline and --colour say what was taught.
"""

import json
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags

import sdjax
from experiments import _cli
from experiments.shapes import lessons, report, workers
from experiments.shapes.score import rate, score
from experiments.shapes.world import NEW_COLOURS, NEW_SHAPES, Scene

FLAGS = flags.FLAGS

Painter = Callable[[Sequence[str]], np.ndarray]  # prompts -> pictures uint8 `b H W 3`


def drawn(sd: sdjax.StableDiffusion, prompts: Sequence[str], **worn: Any) -> np.ndarray:
    """A picture of each prompt, made as `report` makes them; worn: `generate`'s adapters and embeddings."""
    batch = min(FLAGS.batch, len(prompts))
    asked = {"steps": FLAGS.steps, "sampler": FLAGS.sampler, "seed": FLAGS.seed} | worn
    return report.pictures(sd, prompts, batch, asked)


def judged(images: np.ndarray, scenes: Sequence[Scene]) -> list[frozenset[str]]:
    """The kinds of errors of each picture."""
    with workers.pool(len(images)) as pool:
        strict = partial(score, new=(*NEW_SHAPES, *NEW_COLOURS))  # no hexagon in a circle's place
        return [frozenset(verdict.errors) for verdict in pool.map(strict, images, scenes, chunksize=16)]


def told(what: str, errors: Sequence[frozenset[str]], kind: str | None = None) -> dict[str, Any]:
    """Prints how many pictures are right, of one kind of error or of all, and returns it."""
    right = sum((kind not in one) if kind else not one for one in errors)
    found = dict(Counter(error for one in errors for error in one).most_common())
    print(f"  {what}: {rate(right, len(errors)) if errors else 'none'} {found}", flush=True)
    return {"what": what, "right": right, "of": len(errors), "errors": found}


def new_captions(paint: Painter, name: str, word: str, kind: str | None) -> list[dict[str, Any]]:
    """The figures of captions with the new thing, for which `word` is written: with one object, then with two."""
    figures = []
    for things, count in ((1, FLAGS.count), (2, FLAGS.double)):
        if not count:
            continue
        scenes = lessons.held_out(name, count, things, report.SEED)
        images = paint([scene.caption().replace(name, word) for scene in scenes])
        errors = judged(images, scenes)
        objects = f"{name}, {things} object{'s' * (things - 1)}"
        other = [one for one, scene in zip(errors, scenes, strict=True) if lessons.other(name, scene) in lessons.OTHERS]
        figures.append(told(objects, errors, kind))
        figures.append(told(f"{objects}, of what it was not shown in", other, kind))
        if kind:
            figures.append(told(f"{objects}, everything right", errors))
        if FLAGS.sheets:
            Path(FLAGS.sheets).mkdir(parents=True, exist_ok=True)
            report.sheet(images[:40], 10).save(Path(FLAGS.sheets) / f"{name}_{things}.png")
    return figures


def old_captions(before: Painter, after: Painter) -> list[dict[str, Any]]:
    """The figures of old captions, the same before and after."""
    scenes = report.scenes(FLAGS.old, None, "seen")
    prompts = [scene.caption() for scene in scenes]
    each = {"without": before, "with": after}
    return [told(f"old captions, {name}", judged(paint(prompts), scenes)) for name, paint in each.items()]


def outline(sd: sdjax.StableDiffusion, taught: Painter) -> list[dict[str, Any]]:
    """The figures of a new outline."""
    figures = new_captions(taught, FLAGS.outline, FLAGS.outline, None)
    return figures + (old_captions(partial(drawn, sd), taught) if FLAGS.old else [])


def main() -> None:
    sd, figures = sdjax.load(), []
    if FLAGS.lora:
        adapter = sdjax.load_adapter(FLAGS.lora)
        print(adapter, f"at {FLAGS.strength:g}", flush=True)
        figures += outline(sd, partial(drawn, sd, adapters=[(adapter, FLAGS.strength)]))
    if FLAGS.model:
        figures += outline(sd, partial(drawn, sdjax.load(FLAGS.model)))
    if FLAGS.inversion:
        inversion = sdjax.load_adapter(FLAGS.inversion)
        print(inversion, flush=True)
        worn = partial(drawn, sd, embeddings={inversion.word: inversion})
        figures += new_captions(worn, FLAGS.colour, inversion.word, "colour")
    if FLAGS.out:
        with Path(FLAGS.out).open("a") as file:
            file.write(json.dumps({"steps": FLAGS.steps, "sampler": FLAGS.sampler, "figures": figures}) + "\n")


if __name__ == "__main__":
    flags.DEFINE_string("lora", "hexagon", "The outline's adapter, a file or one that is shipped; empty for none.")
    flags.DEFINE_float("strength", 1.0, "Of that adapter.")
    flags.DEFINE_string("model", None, "A whole model that has been taught the outline.")
    flags.DEFINE_enum("outline", "hexagon", NEW_SHAPES, "What the LoRA and the model were taught.")
    flags.DEFINE_enum("colour", "lime", list(NEW_COLOURS), "What the inversion was.")
    flags.DEFINE_string("inversion", "lime", "The colour's vectors; empty for none.")
    flags.DEFINE_integer("count", 200, "Captions with the new thing, of one object.", lower_bound=1)
    flags.DEFINE_integer("double", 200, "Captions with the new thing, of two objects.", lower_bound=0)
    flags.DEFINE_integer("old", 200, "Old captions.", lower_bound=0)
    flags.DEFINE_integer("batch", 50, "Pictures made at once.", lower_bound=1)
    flags.DEFINE_integer("steps", 20, "Sampler steps.", lower_bound=1)
    flags.DEFINE_string("sampler", "dpmpp_2m", "Sampler.")
    flags.DEFINE_integer("seed", 0, "Seed of the pictures.", lower_bound=0)
    flags.DEFINE_string("sheets", None, "Folder for contact sheets.")
    flags.DEFINE_string("out", None, "File to which the figures are appended, a JSON line.")
    _cli.run(main)
