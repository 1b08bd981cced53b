"""The static plot: quality and distance against network evaluations."""

import io
from collections.abc import Sequence
from typing import Any

from experiments.tradeoff_grid.figures import Figures, front

# As the page has them (report.js): no two of 48 samplers have both colour and mark in common, nor do two of twelve in
# a row have the colour.
COLOURS = (
    "#2f6fde", "#d9541e", "#1d9a6c", "#b03fa8", "#b58900", "#0f97b5", "#8a1538", "#6d7f1f", "#7a5be0", "#8d6748",
    "#e8709f", "#5c6670",
)  # fmt: skip
MARKERS = "os^D"


def plot(rows: Sequence[Figures]) -> bytes:
    """A PNG of the cells of the first guidance scale; colours are samplers, line styles schedules.

    Raises:
      OSError: matplotlib is missing.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise OSError("the plot needs matplotlib: pip install matplotlib, then run the same command") from None
    scale = rows[0]["guidance_scale"]
    kept = [row for row in rows if row["guidance_scale"] == scale]
    panels = [key for key in ("accuracy", "distance") if any(row[key] is not None for row in kept)]
    figure = Figure(figsize=(6.2 * max(1, len(panels)) + 1.6, 4.6), dpi=110, layout="constrained")
    for i, key in enumerate(panels):
        axes = figure.add_subplot(1, len(panels), i + 1)
        _panel(axes, [row for row in kept if row[key] is not None], key)
        if i == len(panels) - 1:
            figure.legend(*axes.get_legend_handles_labels(), loc="outside right upper", fontsize=8, frameon=False)
    held = io.BytesIO()
    figure.savefig(held, format="png")
    return held.getvalue()


def _panel(axes: Any, rows: Sequence[Figures], key: str) -> None:
    samplers = list(dict.fromkeys(row["sampler"] for row in rows))
    schedules = list(dict.fromkeys(row["schedule"] for row in rows))
    for sampler, schedule in dict.fromkeys((row["sampler"], row["schedule"]) for row in rows):
        line = sorted((r for r in rows if (r["sampler"], r["schedule"]) == (sampler, schedule)), key=_cost)
        at = samplers.index(sampler)
        axes.plot(
            [_cost(row) for row in line],
            [row[key] for row in line],
            color=COLOURS[at % len(COLOURS)],
            marker=MARKERS[(at + at // len(COLOURS)) % len(MARKERS)],
            linestyle=["-", "--", ":", "-."][schedules.index(schedule) % 4],
            markersize=4,
            linewidth=1.2,
            label=sampler if len(schedules) == 1 else f"{sampler}, {schedule}",
        )
    best = [rows[i] for i in front(rows, _cost, lambda r: r[key] if key == "accuracy" else -r[key])]
    across, up = [_cost(row) for row in best], [row[key] for row in best]
    axes.step(across, up, where="post", color="black", linewidth=0.8, linestyle=(0, (4, 3)), label="Pareto front")
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.set_xlabel("network evaluations a picture")
    axes.grid(alpha=0.25)
    if key == "accuracy":
        axes.set_title("pictures that show their prompt", fontsize=10)
        axes.yaxis.set_major_formatter(lambda value, _: f"{100 * value:.0f} %")
        axes.set_ylim(-0.02, 1.02)
    else:
        axes.set_title("distance to the 1,000-evaluation reference (RMS of latents)", fontsize=10)
        axes.set_yscale("log")


def _cost(row: Figures) -> float:
    return float(row["evaluations"])
