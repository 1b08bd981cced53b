"""The figures of each cell: how often it is right, how far from the reference, and what it costs."""

import csv
import io
import json
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from experiments.shapes.score import ERRORS, wilson
from experiments.tradeoff_grid.folder import Runs, write

Figures = dict[str, Any]


def of_cell(runs: Runs, reference: Mapping[int, np.ndarray]) -> Figures:
    """One row of the table; None where there is nothing to tell.

    `distance` is the root mean square of the difference of the final latents to the reference of the same noise and
    guidance scale, its mean over the pictures that have a reference. `seconds` of a picture are those of the fastest
    batch: other work on the machine only adds to it. A `failed` picture's latents are not finite; it has no distance.
    """
    latents = runs.by_picture("latents")
    apart = [_distance(latents[i], there) for i, there in reference.items() if i in latents]
    known = [d for d in apart if np.isfinite(d)]
    return {
        **(runs.about() or {}),
        "seconds": float(f"{min(runs.seconds()):.3g}"),
        "pictures": len(latents),
        "failed": sum(not np.isfinite(x).all() for x in latents.values()),
        **_accuracy(runs),
        "distance": float(f"{np.mean(known):.5g}") if known else None,
        "distance_pictures": len(known),
    }


def _distance(latents: np.ndarray, reference: np.ndarray) -> float:
    return float(np.sqrt(np.mean((latents.astype(np.float64) - reference) ** 2)))


def _accuracy(runs: Runs) -> Figures:
    wrong = list(runs.by_picture("errors").values())  # bool [len(ERRORS)] each, where pictures are judged
    if not wrong:
        return {"correct": None, "accuracy": None, "accuracy_low": None, "accuracy_high": None, "errors": None}
    correct = sum(not errors.any() for errors in wrong)
    low, high = wilson(correct, len(wrong))
    return {
        "correct": correct,
        "accuracy": round(correct / len(wrong), 5),
        "accuracy_low": round(low, 5),
        "accuracy_high": round(high, 5),
        "errors": {kind: int(n) for kind, n in zip(ERRORS, np.sum(wrong, axis=0), strict=True) if n},
    }


def line(row: Figures) -> str:
    """A cell's figures in words."""
    right = "" if row["accuracy"] is None else f"{row['correct']} of {row['pictures']} right, "
    apart = "" if row["distance"] is None else f"distance {row['distance']:.4f}, "
    return f"{right}{apart}{row['evaluations']} evaluations, {row['seconds']:.3g} s a picture"


def timed(rows: Sequence[Figures]) -> bool:
    """Whether the seconds tell anything: of one sampler on one schedule, more evaluations must take longer.

    One pair of neighbours in ten may say otherwise. Of runs so short that the machine's other work takes as long, the
    seconds are chance.
    """
    families: dict[tuple[Any, ...], list[Figures]] = {}
    for row in sorted(rows, key=lambda row: row["evaluations"]):
        families.setdefault((row["sampler"], row["schedule"], row["guidance_scale"]), []).append(row)
    pairs = [pair for family in families.values() for pair in pairwise(family)]
    wrong = sum(b["seconds"] <= a["seconds"] for a, b in pairs if a["evaluations"] < b["evaluations"])
    return 10 * wrong <= len(pairs)


def save(rows: Sequence[Figures], root: Path) -> None:
    """results.jsonl and results.csv, a line for each cell."""
    write(root / "results.jsonl", "".join(json.dumps(row, allow_nan=False) + "\n" for row in rows).encode())
    held = io.StringIO(newline="")
    if rows:
        table = csv.DictWriter(held, list(rows[0]), lineterminator="\n")
        table.writeheader()
        table.writerows({**row, "errors": json.dumps(row["errors"]) if row["errors"] else ""} for row in rows)
    write(root / "results.csv", held.getvalue().encode())


def front(rows: Sequence[Figures], cost: Callable[[Figures], float], quality: Callable[[Figures], float]) -> list[int]:
    """The Pareto front: rows to which no other is at least equal in both and better in one, cheapest first."""
    best, kept = -np.inf, []
    for i in sorted(range(len(rows)), key=lambda i: (cost(rows[i]), -quality(rows[i]))):
        if quality(rows[i]) > best:
            best = quality(rows[i])
            kept.append(i)
    return kept
