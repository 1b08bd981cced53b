"""What is left to do in a folder, and doing it: references first, then the cells, a batch at a time."""

import json
import time
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
from PIL import Image
from tqdm import tqdm

import sdjax
from experiments.shapes.score import ERRORS, score
from experiments.tradeoff_grid import figures
from experiments.tradeoff_grid.cells import Cell
from experiments.tradeoff_grid.folder import Runs, append, open_folder
from experiments.tradeoff_grid.program import Program, automatic_batch
from sdjax.images.pixels import to_uint8

# Deterministic, of second order, one step for each timestep of the usual training. With the shapes model it lies 0.004
# from its own 500 steps (the last step, to no noise at all, is longer there) and 0.0003 from dpmpp_3m in 1,000.
REFERENCE, REFERENCE_SCHEDULE, REFERENCE_STEPS = "dpmpp_2m", "trailing", 1000
SHOWN = 6  # the first prompts, whose pictures the reports show
DECODED_ON_CPU = 2  # pictures at once through the VAE: half the time of 25, whose numbers do not fit the cache
THUMBNAIL = 256  # longest side of what is kept of them, pixels


@dataclass(frozen=True)
class Task:
    """Pictures that one plan has still to make, `missing` [m]."""

    name: str
    runs: Runs
    plan: sdjax.Plan
    scale: float
    missing: np.ndarray

    def batches(self, size: int) -> list[np.ndarray]:
        """The missing pictures, cut into batches."""
        return [self.missing[i : i + size] for i in range(0, len(self.missing), size)]


@dataclass(frozen=True)
class Experiment:
    """One folder of results, and what is needed to add to it.

    Attributes:
      prompts: one for each picture. references: how many of them, from the first on, get a reference.
      seed: of the noise. batch: pictures at once, None for as many as fit.
    """

    sd: sdjax.StableDiffusion
    root: Path
    prompts: Sequence[str]
    references: int
    seed: int = 0
    batch: int | None = None

    @property
    def scored(self) -> bool:
        """Whether the pictures are judged: the shapes model's are."""
        return self.sd.name == "shapes"

    def settings(self) -> dict[str, Any]:
        """What all cells of a folder share."""
        leaves = jax.tree_util.tree_leaves_with_path(self.sd.params)
        weights = 0
        for path, leaf in leaves:
            weights = zlib.crc32(np.asarray(leaf).tobytes(), zlib.crc32(jax.tree_util.keystr(path).encode(), weights))
        return {
            "model": self.sd.name,
            "weights": f"{weights:08x}",
            "dtype": str(np.dtype(self.sd.dtype)),
            "seed": self.seed,
            "num_prompts": len(self.prompts),
            "prompts": list(self.prompts),
        }

    def make(self, plans: Mapping[Cell, sdjax.Plan]) -> None:
        """Computes what is missing of the cells and of their references.

        Raises:
          ValueError: the folder is of another experiment. OSError: it cannot be written.
        """
        open_folder(self.root, self.settings())
        groups = {"reference": self._reference_tasks(plans), "grid": self._cell_tasks(plans)}
        pictures = max((len(task.missing) for tasks in groups.values() for task in tasks), default=0)
        if not pictures:
            return
        rows = {"reference": REFERENCE_STEPS, "grid": max(plan.rows for plan in plans.values())}
        batch = self.batch or automatic_batch(self.sd, pictures, max(rows[n] for n, tasks in groups.items() if tasks))
        programs = {
            name: Program(self.sd, self.prompts, self.seed, batch, max(task.plan.rows for task in tasks))
            for name, tasks in groups.items()
            if tasks
        }
        seconds = {name: program.warm_up(groups[name][0].plan) for name, program in programs.items()}
        self._announce(groups, batch, seconds)
        begun = time.time()
        try:
            with Progress(groups, batch) as progress:
                for name, program in programs.items():
                    for task in groups[name]:
                        self._work(task, program, progress, is_cell=name == "grid")
        finally:
            line = {
                "device": f"{jax.devices()[0].device_kind}, jax {jax.__version__}",
                "batch": batch,
                "compilations": {name: program.compilations for name, program in programs.items()},
                "picture_evaluations_a_second": {name: round(batch / s, 1) for name, s in seconds.items()},
                "seconds": round(time.time() - begun, 1),
            }
            append(self.root / "runs.jsonl", json.dumps(line))

    def time_again(self, plans: Mapping[Cell, sdjax.Plan]) -> None:
        """Runs one batch of each cell for its seconds alone: those before had perhaps other work beside them."""
        batch = self.batch or automatic_batch(self.sd, len(self.prompts), max(plan.rows for plan in plans.values()))
        program = Program(self.sd, self.prompts, self.seed, batch, max(plan.rows for plan in plans.values()))
        program.warm_up(next(iter(plans.values())))
        for cell, plan in tqdm(plans.items(), disable=None, unit="cell"):
            index = np.arange(min(batch, len(self.prompts)))
            _, seconds = program.run(plan, index, cell.guidance_scale, lambda evaluations: None)
            Runs(self.root / "cells" / cell.name, len(self.prompts)).save_seconds(seconds)

    def complete(self) -> dict[str, figures.Figures]:
        """The figures of every finished cell in the folder, by its name."""
        references: dict[float, dict[int, np.ndarray]] = {}
        rows = {}
        for folder in sorted((self.root / "cells").iterdir()):
            runs = Runs(folder, len(self.prompts))
            about = runs.about()
            if about is None or len(runs.missing()):
                continue
            scale = about["guidance_scale"]
            if scale not in references:
                references[scale] = self._reference(scale).by_picture("latents")
            rows[folder.name] = figures.of_cell(runs, references[scale])
        return rows

    def pictures(self, name: str) -> list[np.ndarray]:
        """What is kept of the first pictures of a cell, uint8 [h, w, 3] each."""
        return list(Runs(self.root / "cells" / name, len(self.prompts)).by_picture("pixels").values())

    def verdicts(self, name: str) -> list[bool]:
        """Whether each picture of a cell shows its prompt; none where they are not judged."""
        errors = Runs(self.root / "cells" / name, len(self.prompts)).by_picture("errors")
        return [not wrong.any() for wrong in errors.values()]

    def runs(self) -> list[dict[str, Any]]:
        """What is known of each run that computed anything."""
        path = self.root / "runs.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    # ------------------------------------------------------------------ what is missing

    def _reference(self, scale: float) -> Runs:
        return Runs(self.root / f"reference-{scale:g}", self.references)

    def _reference_tasks(self, plans: Mapping[Cell, sdjax.Plan]) -> list[Task]:
        if not self.references:
            return []
        steps = min(REFERENCE_STEPS, int(self.sd.scheduler.get("num_train_timesteps", REFERENCE_STEPS)))
        plan = self.sd.plan(REFERENCE, steps, REFERENCE_SCHEDULE)
        tasks = []
        for scale in dict.fromkeys(cell.guidance_scale for cell in plans):
            runs = self._reference(scale)
            runs.claim(plan, {"guidance_scale": scale})
            tasks.append(Task(f"reference at scale {scale:g}", runs, plan, scale, runs.missing()))
        return [task for task in tasks if len(task.missing)]

    def _cell_tasks(self, plans: Mapping[Cell, sdjax.Plan]) -> list[Task]:
        tasks = []
        for cell, plan in plans.items():
            runs = Runs(self.root / "cells" / cell.name, len(self.prompts))
            runs.claim(plan, {**vars(cell), "evaluations": plan.evaluations, "stochastic": plan.draws > 0})
            tasks.append(Task(str(cell), runs, plan, cell.guidance_scale, runs.missing()))
        return [task for task in tasks if len(task.missing)]

    # ------------------------------------------------------------------ doing it

    def _announce(self, groups: Mapping[str, Sequence[Task]], batch: int, seconds: Mapping[str, float]) -> None:
        each = {name: seconds[name] * evaluations(tasks, batch) for name, tasks in groups.items() if tasks}
        of_references = f" ({duration(each['reference'])} of it for the references)" if "reference" in each else ""
        rates = ", ".join(f"{batch / s:.1f} ({name})" for name, s in seconds.items())
        cells, pictures = len(groups["grid"]), len(self.prompts)
        print(
            f"{cells} cells of {pictures} pictures to make, {len(groups['reference'])} references; batches of {batch}; "
            f"picture-evaluations a second: {rates}; about "
            f"{duration(sum(each.values()))}{of_references}",
            flush=True,
        )

    def _work(self, task: Task, program: Program, progress: "Progress", is_cell: bool) -> None:
        for index in task.batches(program.batch):
            latents, seconds = program.run(task.plan, index, task.scale, progress.tick)
            seen = self._seen(index, latents, program.batch) if is_cell else {}
            task.runs.save(index, latents=latents, seconds=np.asarray(seconds), **seen)
            if not is_cell:
                progress.say(f"{task.name}: {index[-1] + 1} of {self.references} pictures")
        if is_cell:
            row = figures.of_cell(task.runs, self._reference(task.scale).by_picture("latents"))
            progress.say(f"{task.name}: {figures.line(row)}")

    def _seen(self, index: np.ndarray, latents: np.ndarray, batch: int) -> dict[str, np.ndarray]:
        """What is judged and kept of pictures: `errors` bool [b, len(ERRORS)] and `pixels` uint8 of those shown."""
        shown = int((index < SHOWN).sum())
        if self.scored:
            images = self._pixels(latents, batch)
            found = [score(image, self.prompts[i]).errors for i, image in zip(index, images, strict=True)]
        else:  # the others are not looked at
            images, found = self._pixels(latents[:shown], 1), []
        errors = np.array([[kind in those for kind in ERRORS] for those in found], bool).reshape(-1, len(ERRORS))
        kept = [thumbnail(image) for image in images[:shown]]
        return {"errors": errors, "pixels": np.stack(kept) if kept else np.zeros((0, 1, 1, 3), np.uint8)}

    def _pixels(self, latents: np.ndarray, batch: int) -> list[np.ndarray]:
        """uint8 [H, W, 3] each, decoded in groups of one size."""
        size = min(batch, DECODED_ON_CPU) if jax.default_backend() == "cpu" else batch
        images: list[np.ndarray] = []
        for start in range(0, len(latents), size):
            group = np.nan_to_num(latents[start : start + size])
            full = np.pad(group, [(0, size - len(group)), (0, 0), (0, 0), (0, 0)])
            images += list(np.asarray(self.sd.decode(jax.numpy.asarray(full)))[: len(group)])
        return [to_uint8(image) for image in images]


def thumbnail(pixels: np.ndarray) -> np.ndarray:
    """A picture uint8 [h, w, 3], no larger than THUMBNAIL."""
    image = Image.fromarray(pixels)
    image.thumbnail((THUMBNAIL, THUMBNAIL), Image.Resampling.LANCZOS)
    return np.asarray(image)


class Progress:
    """A bar where standard error is a terminal, and the time left; both weighted by network evaluations."""

    def __init__(self, groups: Mapping[str, Sequence[Task]], batch: int) -> None:
        self.total, self.done = sum(evaluations(tasks, batch) for tasks in groups.values()), 0
        self.begun = time.time()
        self.bar = tqdm(total=self.total, disable=None, unit="evaluation", smoothing=0.02, dynamic_ncols=True)

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_: Any) -> None:
        self.bar.close()

    def tick(self, evaluations: int) -> None:
        """So many evaluations of a batch are done."""
        self.done += evaluations
        self.bar.update(evaluations)

    def say(self, text: str) -> None:
        """A line on standard output, with the time left."""
        left = (time.time() - self.begun) * (self.total - self.done) / self.done
        self.bar.write(f"{text}; {duration(left)} left")


def evaluations(tasks: Sequence[Task], batch: int) -> int:
    """Network evaluations of whole batches."""
    return sum(len(task.batches(batch)) * task.plan.evaluations for task in tasks)


def duration(seconds: float) -> str:
    """In words: 2 h 05 min, 12 min, 40 s."""
    minutes = round(seconds / 60)
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{minutes // 60} h {minutes % 60:02d} min" if minutes >= 60 else f"{minutes} min"
