"""A plan drawn: its matrix as a picture."""

from collections.abc import Sequence
from typing import Any

import numpy as np


def draw(
    weights: np.ndarray,
    levels: np.ndarray,
    timesteps: Sequence[float | None],
    title: str,
    unguided: np.ndarray | None = None,
) -> Any:
    """The weights of a plan as a matplotlib figure: a row per evaluation, red adds and blue subtracts.

    Args:
      weights: [n + 1, 1 + n + draws] as `Plan.weights`. levels: alpha + sigma of each row, at whose scale it is drawn,
        [n + 1]; colours are logarithmic beyond 0.01. timesteps: of the n rows; None where the network does not run.
      unguided: [n + 1, n] as `Plan.unguided`, or None.

    Raises:
      ImportError: matplotlib is not installed.
    """
    try:
        from matplotlib.colors import SymLogNorm
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("plan.plot() needs matplotlib: pip install matplotlib") from error
    columns = weights if unguided is None else np.concatenate([weights, unguided], axis=1)
    n, draws = len(weights) - 1, weights.shape[1] - len(weights)
    columns = columns / levels[:, None]
    largest = max(0.1, float(abs(columns).max()))
    figure = Figure(figsize=(1.5 + 0.24 * columns.shape[1], 1.2 + 0.24 * len(columns)), layout="constrained")
    axes = figure.add_subplot()
    image = axes.imshow(columns, cmap="RdBu_r", norm=SymLogNorm(0.01, vmin=-largest, vmax=largest))
    for edge in (0.5, n + 0.5, *([] if unguided is None else [n + draws + 0.5])):
        axes.axvline(edge, color="0.4", linewidth=0.8)
    told = ["-" if t is None else f"t = {t:.4g}" for t in timesteps]
    axes.set_yticks(range(n + 1), [*told, "result"], fontsize=7)
    middles = {0: "$x_T$", (n + 1) / 2: "predictions $D_j$", n + (draws + 1) / 2: "draws $n_k$"}
    shown = {x: name for x, name in middles.items() if x <= n or draws}
    if unguided is not None:
        shown[n + draws + (n + 1) / 2] = "unguided $U_j$"
    axes.set_xticks(list(shown), list(shown.values()), fontsize=8)
    axes.tick_params(length=0)
    axes.set_title(title, fontsize=9)
    figure.colorbar(image, ax=axes, shrink=0.7, ticks=[-largest, -0.1, 0, 0.1, largest], format=_short)
    return figure


def _short(value: float, _: Any = None) -> str:
    return f"{np.round(value, 2):g}"
