"""A plan drawn: its matrix as a picture."""

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from sdjax.diffusion.plan import Plan


def draw(plan: "Plan") -> Any:
    """The weights of a plan as a matplotlib figure: a row per evaluation, red adds and blue subtracts.

    Each row is drawn at the scale of its own level (divided by alpha + sigma), colours logarithmic beyond 0.01.

    Raises:
      ImportError: matplotlib is not installed.
    """
    try:
        from matplotlib.colors import SymLogNorm
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("plan.plot() needs matplotlib: pip install matplotlib") from error
    columns = plan.weights if plan.unguided is None else np.concatenate([plan.weights, plan.unguided], axis=1)
    weights = columns / (plan.alpha + plan.sigma)[:, None]
    n, largest = plan.rows - 1, max(0.1, float(abs(weights).max()))
    figure = Figure(figsize=(1.5 + 0.24 * weights.shape[1], 1.2 + 0.24 * len(weights)), layout="constrained")
    axes = figure.add_subplot()
    image = axes.imshow(weights, cmap="RdBu_r", norm=SymLogNorm(0.01, vmin=-largest, vmax=largest))
    for edge in (0.5, n + 0.5, *([] if plan.unguided is None else [n + plan.draws + 0.5])):
        axes.axvline(edge, color="0.4", linewidth=0.8)
    told = [f"t = {t:.4g}" if run else "-" for t, run in zip(plan.row_timesteps, plan.evaluate, strict=True)]
    axes.set_yticks(range(n + 1), [*told, "result"], fontsize=7)
    middles = {0: "$x_T$", (n + 1) / 2: "predictions $D_j$", n + (plan.draws + 1) / 2: "draws $n_k$"}
    shown = {x: name for x, name in middles.items() if x <= n or plan.draws}
    if plan.unguided is not None:
        shown[n + plan.draws + (n + 1) / 2] = "unguided $U_j$"
    axes.set_xticks(list(shown), list(shown.values()), fontsize=8)
    axes.tick_params(length=0)
    axes.set_title(f"{plan.sampler} on {plan.schedule}: {plan.evaluations} evaluations", fontsize=9)
    figure.colorbar(image, ax=axes, shrink=0.7, ticks=[-largest, -0.1, 0, 0.1, largest], format=_short)
    return figure


def _short(value: float, _: Any = None) -> str:
    return f"{np.round(value, 2):g}"
