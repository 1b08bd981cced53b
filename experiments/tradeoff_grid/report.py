"""The files a reader opens: the tables, one HTML page with everything inside, a plot, a contact sheet."""

import base64
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from experiments.tradeoff_grid import figures
from experiments.tradeoff_grid.figures import Figures
from experiments.tradeoff_grid.folder import write as write_file
from experiments.tradeoff_grid.plot import plot
from experiments.tradeoff_grid.work import REFERENCE, REFERENCE_STEPS, Experiment

PAGE = Path(__file__).parent / "page"
BYTES = 9_000_000  # of all pictures in the page; in base64 they take 4/3 of it
SIZES = ((6, 128), (6, 96), (4, 64), (2, 64), (1, 64))  # pictures of a cell and their sides, the first that fits
EDGE, GAP, LABEL = 96, 4, 150  # of the contact sheet, pixels


def write(experiment: Experiment) -> list[Path]:
    """Writes all of them from the finished cells; gives their paths."""
    rows = experiment.complete()
    root = experiment.root
    figures.save(list(rows.values()), root)
    pictures = {name: experiment.pictures(name) for name in rows}
    write_file(root / "report.html", page(experiment, rows, pictures).encode())
    made = ["results.jsonl", "results.csv", "report.html"]
    if rows:
        write_file(root / "sheet.png", _png(sheet(rows, pictures)))
        write_file(root / "plot.png", plot(list(rows.values())))
        made += ["sheet.png", "plot.png"]
    return [root / name for name in made]


# ---------------------------------------------------------------------- the page


def page(experiment: Experiment, rows: Mapping[str, Figures], pictures: Mapping[str, Sequence[np.ndarray]]) -> str:
    """The report: one file that asks nothing of any other."""
    right = {name: experiment.verdicts(name) for name in rows}
    inside = embedded(pictures)
    data = {
        "about": _about(experiment, rows),
        "method": _method(experiment, list(rows.values())),
        "timed": figures.timed(list(rows.values())),
        "prompts": list(experiment.prompts[: max(map(len, inside.values()), default=0)]),
        "cells": [
            {**row, "name": name, "images": inside[name], "right": right[name][: len(inside[name])] or None}
            for name, row in rows.items()
        ],
    }
    text = (PAGE / "report.html").read_text()
    held = json.dumps(data, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")  # no tag may end the script
    parts = {"CSS": (PAGE / "report.css").read_text(), "JS": (PAGE / "report.js").read_text(), "DATA": held}
    for mark, part in parts.items():
        text = text.replace(f"@@{mark}@@", part)
    return text


def embedded(pictures: Mapping[str, Sequence[np.ndarray]]) -> dict[str, list[str]]:
    """Each cell's first pictures as data URIs, as many and as large as keep the page small."""
    for count, edge in SIZES:
        packed = {name: [_webp(pixels, edge) for pixels in those[:count]] for name, those in pictures.items()}
        if sum(len(one) for those in packed.values() for one in those) <= BYTES:
            break
    return {
        name: ["data:image/webp;base64," + base64.b64encode(one).decode() for one in those]
        for name, those in packed.items()
    }


def _about(experiment: Experiment, rows: Mapping[str, Figures]) -> str:
    count, pictures = len(rows), len(experiment.prompts)
    judged = " Each is judged from its pixels." if experiment.scored else ""
    return (
        f"Model {experiment.sd.name}: {count} settings, each with the same {pictures} prompts and the same starting "
        f"noise (seed {experiment.seed}): {count * pictures:,} pictures.{judged} Click a point or a row for its own."
    )


def _method(experiment: Experiment, rows: Sequence[Figures]) -> list[str]:
    chance = "" if figures.timed(rows) else " Here they are chance, as more evaluations took less, and are not drawn."
    lines = [
        "An evaluation with guidance counts as one, though the network answers in it with and without the prompt.",
        "Seconds are those of the sampling loop, a picture of the fastest batch; text and pixels are not in them."
        + chance,
        *_distances(experiment, max((row["distance_pictures"] for row in rows), default=0)),
        "Intervals are Wilson's, 95 %; cells share their prompts and noise, so differences are surer than the "
        "intervals look. A front of many cells flatters the luckiest.",
        "The pictures shown are those of the first prompts, none chosen.",
    ]
    for run in experiment.runs():
        compiled = ", ".join(f"{name} {n}" for name, n in run["compilations"].items())
        lines.append(f"Run on {run['device']}: batches of {run['batch']}; programs compiled: {compiled}.")
    return list(dict.fromkeys(lines))


def _distances(experiment: Experiment, pictures: int) -> list[str]:
    """How the distance is measured, over so many pictures; nothing where there is none."""
    if not pictures:
        return []
    lines = [
        f"The distance is the root mean square of the final latents' difference to {REFERENCE} in {REFERENCE_STEPS} "
        f"steps from the same noise at the same guidance scale, its mean over {pictures} pictures. "
        "Samplers with fresh noise do not aim at that solution: theirs tells how far they wander."
    ]
    if experiment.scored:
        lines.append("The reference is itself good to about 0.004: so far apart are its 500 and 1,000 steps.")
    return lines


def _webp(pixels: np.ndarray, edge: int) -> bytes:
    held, image = io.BytesIO(), Image.fromarray(pixels)
    image.thumbnail((edge, edge), Image.Resampling.LANCZOS)
    image.save(held, "WEBP", quality=80, method=4)
    return held.getvalue()


# ---------------------------------------------------------------------- the contact sheet


def sheet(rows: Mapping[str, Figures], pictures: Mapping[str, Sequence[np.ndarray]]) -> Image.Image:
    """The first prompt's picture of every cell of the first guidance scale: samplers down, steps across."""
    scale = next(iter(rows.values()))["guidance_scale"]
    cells = {name: row for name, row in rows.items() if row["guidance_scale"] == scale}
    down = list(dict.fromkeys((row["sampler"], row["schedule"]) for row in cells.values()))
    across = sorted({row["steps"] for row in cells.values()})
    size = EDGE + GAP
    canvas = Image.new("RGB", (LABEL + len(across) * size, 24 + len(down) * size), "white")
    draw, font = ImageDraw.Draw(canvas), ImageFont.load_default(13)
    for i, steps in enumerate(across):
        draw.text((LABEL + i * size + EDGE // 2, 12), f"{steps}", "black", font, anchor="mm")
    for j, names in enumerate(down):
        draw.multiline_text((8, 24 + j * size + EDGE // 3), "\n".join(names), "black", font)
    for name, row in cells.items():
        image = Image.fromarray(pictures[name][0]).resize((EDGE, EDGE), Image.Resampling.LANCZOS)
        at = (down.index((row["sampler"], row["schedule"])), across.index(row["steps"]))
        canvas.paste(image, (LABEL + at[1] * size, 24 + at[0] * size))
    return canvas


def _png(image: Image.Image) -> bytes:
    held = io.BytesIO()
    image.save(held, "PNG", optimize=True)
    return held.getvalue()
