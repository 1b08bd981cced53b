r"""Does every sampler converge as fast as its paper says?

    python -m experiments.order --out=out/order
    python -m experiments.order --samplers=heun,dpmpp_2m --variants=false --out=out/two

A solver of your own, say `adams` of the README, in a few seconds:

    with jax.enable_x64(True):
        print(convergence.flow(convergence.Case(adams), "exponential").order)  # 2.00

Measures the order of every sampler, as `convergence` describes, on four kinds of levels, and of the samplers that
renew noise the strong and the weak order. An order is claimed for smooth levels; methods of order 3 and more that begin
with steps of lower order show theirs only where those are short (`gentle`). Weak orders come with Monte Carlo errors
and are told where two step counts or more stand out of them; nothing is claimed of them.

`limit` in the JSON lines is how far the finest run of a sampler with noise is from the solution of the reverse
diffusion on the Brownian paths of the images' keys, found without any sampler: small where it converges to that.

Writes order.jsonl (a line per sampler and levels), order.md (the table) and order.png. Expected: every measured order
within 0.2 of the claimed one, else the program names the sampler and exits with 1. About 8 minutes on 2 cores.
"""

import dataclasses
import json
import math
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
from absl import flags
from tqdm import tqdm

from experiments import _cli, convergence
from experiments.convergence import LEVELS, Case, Measured
from sdjax.diffusion.samplers import SAMPLERS, sampler


def ode(ve: float) -> float:
    """er_sde's noise scale without noise."""
    return ve


def never(t: float) -> float:
    """sa_solver without noise."""
    return 0.0


def always(t: float) -> float:
    """sa_solver with noise everywhere."""
    return 1.0


# Options that change the method, and the order it then has.
VARIANTS = (
    Case("ddim", {"eta": 1.0}, 1),
    Case("dpm2_ancestral", {"eta": 0.0}, 2),
    Case("dpmpp_2s_ancestral", {"eta": 0.0}, 2),
    Case("dpmpp_sde", {"eta": 0.0}, 2),
    Case("dpmpp_2m_sde", {"eta": 0.0}, 2),
    Case("dpmpp_3m_sde", {"eta": 0.0}, 2),
    Case("gradient_estimation", {"gamma": 1.5}, 2),
    Case("lms", {"order": 2}, 2),
    Case("lms", {"order": 3}, 3),
    Case("dpm_solver", {"solver_order": 3}, 2),
    Case("dpmpp_2m", {"solver_type": "heun"}, 2),
    Case("dpmpp_2s", {"solver_order": 3}, 3),
    Case("deis", {"solver_order": 3}, 3),
    Case("unipc", {"solver_order": 1}, 2),
    Case("unipc", {"solver_order": 3}, 4),
    Case("unipc", {"solver_type": "bh1"}, 3),
    Case("sa_solver", {"tau_func": never}, 2),
    Case("sa_solver", {"tau_func": never, "predictor_order": 3, "corrector_order": 4}, 4),
    Case("sa_solver", {"tau_func": always}, 1),
    Case("er_sde", {"noise_scaler": ode, "max_stage": 1}, 1),
)


def cases(names: Sequence[str], variants: bool) -> list[Case]:
    """The samplers at their defaults, each followed by its variants.

    Raises:
      ValueError: no sampler has that name; the nearest are given.
    """
    chosen = []
    for name in names:
        chosen.append(Case(name, {}, sampler(name)[1].order))
        chosen += [case for case in VARIANTS if variants and case.sampler == name]
    return chosen


def measure(case: Case, levels: Sequence[str], chunks: int) -> Iterator[Measured]:
    """Every measure of a case. Its strong order is taken on fewer samples beyond the first kind of levels."""
    if case.order == 0:
        return
    finest = convergence.make_plan(case, levels[0], case.counts(convergence.STEPS)[-1])
    for kind in levels if finest.draws == 0 else [kind for kind in levels if kind in ("exponential", "karras")]:
        if finest.draws == 0:
            yield convergence.flow(case, kind)
            continue
        strong, weak = convergence.noisy(case, kind, chunks if kind == levels[0] else 1)
        if (finest.spans >= 0).all():  # noise that is not of the path says nothing about a path
            yield dataclasses.replace(strong, limit=convergence.to_diffusion(finest))
        if kind == levels[0]:
            yield weak


# --------------------------------------------------------------------- report


def paper(case: Case) -> str:
    """The first arXiv number in the solver's docstring, as a link."""
    solve: Any = sampler(case.sampler)[1].solve
    found = re.search(r"arXiv:(\d{4}\.\d{5})", getattr(solve, "func", solve).__doc__ or "")
    return f"[{found[1]}](https://arxiv.org/abs/{found[1]})" if found else ""


def markdown(measured: Sequence[Measured], chosen: Sequence[Case]) -> str:
    """A line per case: what is claimed, and what was measured on each kind of levels."""
    heads = ["sampler", "paper", "order claimed", *LEVELS, "weak", "evaluations per step", "noise"]
    lines = [heads, ["---"] * len(heads)]
    for case in chosen:
        own = [m for m in measured if m.case == case]
        found = {("weak" if m.kind == "weak" else m.levels): m.order for m in own}
        orders = [f"{found[h]:.2f}" if not math.isnan(found.get(h, math.nan)) else "" for h in (*LEVELS, "weak")]
        evaluations = f"{own[0].evaluations:.2g}" if own else ""
        noise = ("no" if own[0].kind == "flow" else "yes") if own else ""
        lines.append([f"`{case.name}`", paper(case), str(case.order or "none"), *orders, evaluations, noise])
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def draw(measured: Sequence[Measured], path: Path) -> None:
    """Error against steps, log-log: a panel for each claimed order, and one for samplers with noise."""
    from matplotlib.figure import Figure

    shown = [m for m in measured if m.levels in ("exponential", "gentle") and m.kind != "weak"]
    first = {m.case.name: m for m in reversed(shown) if m.levels == ("gentle" if m.case.order > 2 else "exponential")}
    panels: dict[str, list[Measured]] = {}
    for m in sorted(first.values(), key=lambda m: (m.kind == "strong", m.case.order, m.case.name)):
        panels.setdefault("strong" if m.kind == "strong" else f"order {m.case.order}", []).append(m)
    figure = Figure(figsize=(5.5 * len(panels), 6), layout="constrained")
    for axes, (title, members) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True):
        for i, m in enumerate(members):
            style = ("-", "--", ":")[i // 10 % 3]
            axes.loglog(m.steps, m.errors, style, marker=".", label=f"{m.case.name}  {m.order:.2f}")
        axes.set(title=title, xlabel="steps", ylabel="root mean square error")
        axes.legend(fontsize=7)
        axes.grid(alpha=0.3)
    figure.savefig(path, dpi=120)


def main(values: Any) -> None:
    """Measures, writes the three files, prints the table; exits with 1 where an order is not the one claimed."""
    unknown = sorted(set(values.levels) - set(LEVELS))
    if unknown or not values.levels:
        raise ValueError(f"--levels: {', '.join(unknown) or 'none'}; known: {', '.join(LEVELS)}")
    chosen, out = cases(values.samplers or list(SAMPLERS), values.variants), Path(values.out)
    out.mkdir(parents=True, exist_ok=True)
    measured = []
    with jax.enable_x64(True), open(out / "order.jsonl", "w") as lines:
        for case in tqdm(chosen, desc="samplers", disable=None):
            for m in measure(case, values.levels, values.chunks):
                measured.append(m)
                record = {**vars(m), "case": case.name, "claimed": case.order, "wrong": m.wrong}
                known = {k: None if isinstance(v, float) and math.isnan(v) else v for k, v in record.items()}
                print(json.dumps(known), file=lines, flush=True)
    (out / "order.md").write_text(table := markdown(measured, chosen))
    draw(measured, out / "order.png")
    print(table)
    wrong = [m for m in measured if m.wrong]
    for m in wrong:
        print(f"{m.case.name} on {m.levels}: claimed {m.case.order}, measured {m.order:.2f} (spread {m.spread:.2f})")
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    flags.DEFINE_list("samplers", None, "Which; default: all.")
    flags.DEFINE_list("levels", list(LEVELS), "Kinds of levels; see convergence.noise_levels.")
    flags.DEFINE_boolean("variants", True, "Also their other orders and forms.")
    flags.DEFINE_integer("chunks", 8, "Thousands of samples of the strong and the weak order.", lower_bound=1)
    flags.DEFINE_string("out", "out/order", "A folder for order.jsonl, order.md and order.png.")
    _cli.run(lambda: main(flags.FLAGS))
