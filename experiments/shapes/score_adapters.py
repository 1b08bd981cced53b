"""What the adapters of the shapes model have taught it, and what it has forgotten: pictures, scored from their pixels.

    python -m experiments.shapes.score_adapters --count=200
    python -m experiments.shapes.score_adapters --lora=runs/hexagon/hexagon.safetensors --inversion= --count=60

For each file the part of right pictures with 95 % Wilson intervals: of captions with the new outline or colour that are
none of the twenty it learnt from, of those among them whose colour (or outline) no picture showed the new thing with;
then of old captions, of the same seeds, without the adapter and with it. Wherever one is judged, the new outline and
the new colour count: a hexagon is no circle. Of an inversion that part counts whose colours
are right, and after it that where everything is. --out appends the figures as a JSON line.

Both are worn, as a user would: `generate(adapters=, embeddings=)`. --strength is the LoRA's.
"""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
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

FOLDER = Path(sdjax.__file__).parent / "assets" / "adapters"


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


def new_captions(
    sd: sdjax.StableDiffusion, name: str, word: str, kind: str | None, **worn: Any
) -> list[dict[str, Any]]:
    """The figures of captions with the new thing, for which `word` is written: with one object, then with two."""
    figures = []
    for things, count in ((1, FLAGS.count), (2, FLAGS.double)):
        if not count:
            continue
        scenes = lessons.held_out(name, count, things, report.SEED)
        images = drawn(sd, [scene.caption().replace(name, word) for scene in scenes], **worn)
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


def old_captions(sd: sdjax.StableDiffusion, worn: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The figures of old captions, the same without the adapter and with it."""
    scenes = report.scenes(FLAGS.old, None, "seen")
    prompts = [scene.caption() for scene in scenes]
    each: dict[str, Mapping[str, Any]] = {"without": {}, "with": worn}
    return [told(f"old captions, {name}", judged(drawn(sd, prompts, **own), scenes)) for name, own in each.items()]


def main() -> None:
    sd, figures = sdjax.load(), []
    if FLAGS.lora:
        adapter = sdjax.load_adapter(FLAGS.lora)
        print(adapter, f"at {FLAGS.strength:g}", flush=True)
        worn = {"adapters": [(adapter, FLAGS.strength)]}
        figures += new_captions(sd, adapter.name, adapter.name, None, **worn)
        if FLAGS.old:
            figures += old_captions(sd, worn)
    if FLAGS.inversion:
        inversion = sdjax.load_adapter(FLAGS.inversion)
        print(inversion, flush=True)
        figures += new_captions(sd, inversion.name, inversion.word, "colour", embeddings={inversion.word: inversion})
    if FLAGS.out:
        with Path(FLAGS.out).open("a") as file:
            file.write(json.dumps({"steps": FLAGS.steps, "sampler": FLAGS.sampler, "figures": figures}) + "\n")


if __name__ == "__main__":
    flags.DEFINE_string("lora", "hexagon", "The outline's adapter, a file or one that is shipped; empty for none.")
    flags.DEFINE_float("strength", 1.0, "Of that adapter.")
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
