"""What there is to choose from: the samplers and the schedules as tables, a line each.

sdjax.samplers()            a notebook prints the table
list(sdjax.samplers())      the names
sdjax.samplers()["heun"]    one line
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from functools import cache
from html import escape
from inspect import getdoc
from typing import Generic, TypeVar

from sdjax.core.short import short
from sdjax.diffusion import a1111_comfy
from sdjax.diffusion.plan import plan
from sdjax.diffusion.samplers import SAMPLERS
from sdjax.diffusion.spacing import SCHEDULES

STEPS = 24  # of the runs by which evaluations are counted: enough for restart to restart


@dataclass(frozen=True)
class SamplerLine:
    """One sampler.

    Attributes:
      name: as `plan` and `generate` take it. order: of its global error (see `Sampler`); 0 where there is none.
      evaluations: of the network for each step, on a run of 24. stochastic: whether it draws fresh noise by default.
      about: the paper, in a line. options: what it takes beside, by its default.
    """

    name: str
    order: int
    evaluations: float
    stochastic: bool
    about: str
    options: tuple[str, ...] = field(repr=False)


@dataclass(frozen=True)
class ScheduleLine:
    """One schedule: its name, the presets that have it, and what it is in a line."""

    name: str
    presets: tuple[str, ...]
    about: str


Line = TypeVar("Line", SamplerLine, ScheduleLine)


@dataclass(frozen=True, repr=False)
class Listing(Mapping[str, Line], Generic[Line]):
    """A table by name, a mapping; `repr` and a notebook show it whole."""

    lines: Mapping[str, Line]

    def __iter__(self) -> Iterator[str]:
        return iter(self.lines)

    def __len__(self) -> int:
        return len(self.lines)

    def __contains__(self, name: object) -> bool:
        return name in self.lines

    def __getitem__(self, name: str) -> Line:
        """One line. Raises KeyError with the names that there are."""
        if name not in self.lines:
            raise KeyError(f"{short(name)} is none of {', '.join(self.lines)}")
        return self.lines[name]

    def __repr__(self) -> str:
        rows = self._cells()
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)

    def _repr_html_(self) -> str:
        """The table as a notebook shows it."""
        head, *rows = (("".join(f"<td>{escape(cell)}</td>" for cell in row)) for row in self._cells())
        body = "".join(f"<tr>{row}</tr>" for row in rows)
        return f"<table><thead><tr>{head.replace('td>', 'th>')}</tr></thead><tbody>{body}</tbody></table>"

    def _cells(self) -> list[list[str]]:
        """The heads, then a row for each line."""
        heads = [one.name for one in fields(next(iter(self.lines.values()))) if one.repr]
        rows: list[list[str]] = [[_cell(getattr(line, head)) for head in heads] for line in self.lines.values()]
        return [heads, *rows]


@cache
def samplers() -> Listing[SamplerLine]:
    """The samplers that `plan` and `generate` know by name, with what each of them costs and is.

    Beside them stands `sdjax.dpm_adaptive`, which chooses its own steps.
    """
    return Listing({name: _sampler(name) for name in SAMPLERS})


@cache
def schedules() -> Listing[ScheduleLine]:
    """The schedules that `plan` and `generate` know by name; None is the checkpoint's own."""
    return Listing({name: ScheduleLine(name, _presets(name), ABOUT[name]) for name in SCHEDULES})


# A line for each of `spacing.SCHEDULES`; `sigmas` has the formulas and where they are from.
ABOUT = {
    "leading": "every floor(T / N)-th training level, from the clean end up",
    "trailing": "every (T / N)-th training level down from the noisiest, which is visited",
    "linspace": "even timesteps from the noisiest level to the first",
    "karras": "even in ve^(1/rho), rho = 7: Karras et al. 2022, arXiv:2206.00364, equation 5",
    "exponential": "even in log ve, from k-diffusion",
    "polyexponential": "even in log ve raised to rho, from k-diffusion",
    "beta": "quantiles of Beta(0.6, 0.6) in noise, after Lee et al. 2024, arXiv:2407.12173",
    "lu": "even in log SNR: Lu et al. 2022, arXiv:2206.00927, as diffusers' use_lu_lambdas",
    "kl_optimal": "even in arctan ve, the optimum for Gaussian data: Sabour et al. 2024, arXiv:2404.14507",
    "laplace": "quantiles of a Laplace density of log ve: Hang et al. 2024, arXiv:2407.03297",
    "linear_quadratic": "half the steps linear, then a parabola, after Polyak et al. 2024, arXiv:2410.13720",
    "normal": "even timesteps from T - 1 to 0, both visited",
    "sgm_uniform": "even timesteps from T - 1, the 0 left out",
    "simple": "every (T / N)-th training level down from the noisiest",
    "ddim_uniform": "every floor(T / N)-th timestep up from 1",
    "beta_timesteps": "quantiles of Beta(0.6, 0.6) in timesteps: Lee et al. 2024, arXiv:2407.12173",
    "ays": "Align Your Steps for SD 1.5, ten levels found by optimisation: arXiv:2404.14507",
    "ays_sdxl": "Align Your Steps for SDXL",
}


def _sampler(name: str) -> SamplerLine:
    record, made = SAMPLERS[name], plan(name, STEPS, {})
    rate = round(made.evaluations / STEPS, 1)
    about, *_ = (getdoc(record.solve) or "").partition("\n")
    return SamplerLine(name, record.order, rate, made.draws > 0, about.rstrip(".:"), tuple(record.options))


def _presets(name: str) -> tuple[str, ...]:
    return ("diffusers", *(preset for preset, known in a1111_comfy.NAMES.items() if name in known))


def _cell(value: object) -> str:
    if isinstance(value, tuple):
        return ", ".join(value)
    if isinstance(value, bool):
        return "yes" if value else ""
    return f"{value:g}" if isinstance(value, float) else str(value)
