"""What the adapters of the shapes model have taught it, and what it has forgotten: pictures, scored from their pixels.

    python -m experiments.shapes.score_adapters --count=200
    python -m experiments.shapes.score_adapters --lora=runs/hexagon/hexagon.safetensors --inversion= --count=60

For each file the part of right pictures with 95 % Wilson intervals: of captions with the new outline or colour that are
none of the twenty it learnt from, of those among them whose colour (or outline) no picture showed the new thing with;
then of old captions, of the same seeds, without the adapter and with it. Wherever one is judged, the new outline and
the new colour count: a hexagon is no circle. Of an inversion that part counts whose colours
are right, and after it that where everything is. --out appends the figures as a JSON line.

A LoRA is merged into the parameters here (`train.low_rank`), the vectors of an inversion stand in the rows of letters
that no caption has: what the adapters' own room makes of both is held to the same in its tests.
"""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags
from safetensors.numpy import load_file

import sdjax
from experiments import _cli
from experiments.shapes import lessons, report, workers
from experiments.shapes.score import rate, score
from experiments.shapes.world import NEW_COLOURS, NEW_SHAPES, Scene
from sdjax.train import low_rank

FLAGS = flags.FLAGS

FOLDER = Path(sdjax.__file__).parent / "assets" / "adapters"
LETTERS = ("q", "w", "z", "v")  # words of one token each, which no caption has


def with_lora(sd: sdjax.StableDiffusion, path: Path, strength: float = 1.0) -> sdjax.StableDiffusion:
    """The model with a LoRA that was trained here merged into it."""
    factors, scale = low_rank.untensors(load_file(path), sd.params)
    own = {name: low_rank.merged(sd.params[name], one, strength * scale) for name, one in factors.items()}
    return replace(sd, params={**sd.params, **own})


def with_vectors(sd: sdjax.StableDiffusion, vectors: np.ndarray) -> sdjax.StableDiffusion:
    """The model in which the first LETTERS are the vectors `n d`."""
    ids = [sd.tokenizer.pieces(letter)[0] for letter in LETTERS[: len(vectors)]]
    text = sd.params["text_encoder"]
    embeddings = text["text_model"]["embeddings"]
    table = np.array(embeddings["token_embedding"]["embedding"], np.float32)
    table[ids] = vectors
    own = {**embeddings, "token_embedding": {"embedding": table}}
    changed = {**text, "text_model": {**text["text_model"], "embeddings": own}}
    return replace(sd, params={**sd.params, "text_encoder": changed})


def drawn(sd: sdjax.StableDiffusion, prompts: Sequence[str]) -> np.ndarray:
    """A picture of each prompt, made as `report` makes them."""
    batch = min(FLAGS.batch, len(prompts))
    return report.pictures(sd, prompts, batch, {"steps": FLAGS.steps, "sampler": FLAGS.sampler, "seed": FLAGS.seed})


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


def new_captions(sd: sdjax.StableDiffusion, name: str, word: str, kind: str | None) -> list[dict[str, Any]]:
    """The figures of captions with the new thing, for which `word` is written: with one object, then with two."""
    figures = []
    for things, count in ((1, FLAGS.count), (2, FLAGS.double)):
        if not count:
            continue
        scenes = lessons.held_out(name, count, things, report.SEED)
        images = drawn(sd, [scene.caption().replace(name, word) for scene in scenes])
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


def old_captions(models: Mapping[str, sdjax.StableDiffusion]) -> list[dict[str, Any]]:
    """The figures of old captions, the same with each model."""
    scenes = report.scenes(FLAGS.old, None, "seen")
    prompts = [scene.caption() for scene in scenes]
    return [told(f"old captions, {name}", judged(drawn(sd, prompts), scenes)) for name, sd in models.items()]


def main() -> None:
    sd, figures = sdjax.load(), []
    if FLAGS.lora:
        path = Path(FLAGS.lora)
        print(f"{path.name}, {path.stat().st_size / 1e3:.0f} KB:", flush=True)
        worn = with_lora(sd, path)
        figures += new_captions(worn, path.stem, path.stem, None)
        if FLAGS.old:
            figures += old_captions({"without": sd, "with": worn})
    if FLAGS.inversion:
        path = Path(FLAGS.inversion)
        (vectors,) = load_file(path).values()
        print(f"{path.name}, {path.stat().st_size / 1e3:.1f} KB, {len(vectors)} vectors:", flush=True)
        word = " ".join(LETTERS[: len(vectors)])
        figures += new_captions(with_vectors(sd, vectors), path.stem, word, "colour")
    if FLAGS.out:
        with Path(FLAGS.out).open("a") as file:
            file.write(json.dumps({"steps": FLAGS.steps, "sampler": FLAGS.sampler, "figures": figures}) + "\n")


if __name__ == "__main__":
    flags.DEFINE_string("lora", str(FOLDER / "hexagon.safetensors"), "The outline's adapter; empty for none.")
    flags.DEFINE_string("inversion", str(FOLDER / "lime.safetensors"), "The colour's vectors; empty for none.")
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
