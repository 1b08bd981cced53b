"""A plan: a sampler on a schedule, as float64 matrices on the host.

    plan("dpmpp_2m", 20, scheduler_config).weights

reads a checkpoint's scheduler_config.json as the diffusers scheduler of that name would, runs the solver on
the tape and checks what came out. A plan is finite, strictly causal (row i uses D_j and U_j of j < i only and draws
that came in by row i), and right where the answer is known: were every D_j and U_j one constant picture c, row i must
be
    x_i = alpha_i c + sigma_i e,   e of unit variance,                                                 (1)
that is, the weights of x_T, D, U and the draws must add up to alpha_i and (in squares) to sigma_i^2. Where a
convention of diffusers breaks (1), `inexact` says why.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from sdjax.core import hints
from sdjax.core.notice import notice
from sdjax.core.short import short
from sdjax.diffusion import plot
from sdjax.diffusion.a1111_comfy import begun
from sdjax.diffusion.bounds import as_float, check_number
from sdjax.diffusion.noise import Level, Settings
from sdjax.diffusion.overrides import choose, count_steps, dropped, keys_in_force
from sdjax.diffusion.prediction import check_prediction
from sdjax.diffusion.samplers import Sampler
from sdjax.diffusion.samplers import sampler as find_sampler
from sdjax.diffusion.schedule import CLEAN
from sdjax.diffusion.segment import Segment
from sdjax.diffusion.spacing import schedule_name
from sdjax.diffusion.table import FREE, NONE, Bound, Linear, Row, Table, Tape

LEAST_BOUND = 1e-6  # of predicted clean latents
TOLERANCE = 1e-9  # of equation 1; float64 sums of up to 1000 terms stay below 1e-11


@dataclass(frozen=True, eq=False, repr=False)
class Plan:
    """A sampler as a matrix; see equation 1 of `table`. All arrays are float64 NumPy unless said otherwise.

    n counts the rows before the result: the network evaluations, and any row that only clips or brings in
    noise.

    Attributes:
      weights: [n + 1, 1 + n + draws]; columns x_T, D_0 .. D_(n-1), n_0 .. n_(draws-1); the last row is the
        result. Weights of unguided predictions stand apart, in `unguided`.
      row_timesteps: [n], what the network is told; `timesteps` leaves out rows without an evaluation.
      c_skip, c_out: [n], D_i = c_skip_i x_i + c_out_i raw_i.
      alpha, sigma: [n + 1], the level of x_i: x_i = alpha_i x0 + sigma_i e. The result's is the last, and there
        alpha^2 + sigma^2 = 1 whatever the sampler.
      start: the level of the first step. With `denoising_start` x_T is not noise but latents there: to go on from a
        picture x0, x_T = start.alpha x0 + start.sigma e. (x_0 is at a noisier level where churn comes before it.)
      clip: [n], bound on D_i, infinite where there is none. ratio: [n], the quantile of dynamic thresholding, or 0.
      evaluate: bool [n], whether the network runs.
      draw: int [n + 1], number of the draw that comes in with the row, or -1.
      spans: int [draws, 2], leaves of the Brownian path (see `brownian`) each draw lies between, or -1.
      sampler, schedule: their names. steps: what was asked for.
      inexact: why equation 1 of this module does not hold, or "" where it was checked.
      unfinished: whether another plan is to go on from the result (`denoising_end`, or `sigmas` that end above 0).
      unguided: [n + 1, n], the weights of U_0 .. U_(n-1), what D_j would have been without guidance (equation 3 of
        `table`), to be added to those of `weights`; None where the solver asks for none.
    """

    weights: np.ndarray
    row_timesteps: np.ndarray
    c_skip: np.ndarray
    c_out: np.ndarray
    alpha: np.ndarray
    sigma: np.ndarray
    clip: np.ndarray
    ratio: np.ndarray
    evaluate: np.ndarray
    draw: np.ndarray
    spans: np.ndarray
    start: Level
    sampler: str
    schedule: str
    steps: int
    inexact: str = ""
    unfinished: bool = False
    unguided: np.ndarray | None = None

    def __post_init__(self) -> None:
        self._check_shapes()
        self._check_causal()
        if not self.inexact:
            self._check_constant()

    def __repr__(self) -> str:
        """Of one line, without the matrix."""
        told = [self.sampler, f"{self.steps} steps", self.schedule, f"{self.evaluations} evaluations"]
        told += [f"{self.draws} draws"] if self.draws else []
        return f"Plan({', '.join(told)})"

    @property
    def timesteps(self) -> np.ndarray:
        """[evaluations], what the network is told at each evaluation; 0 .. T-1, may be fractional."""
        return self.row_timesteps[self.evaluate]

    @property
    def evaluations(self) -> int:
        """Network evaluations of a run."""
        return int(self.evaluate.sum())

    @property
    def draws(self) -> int:
        """Fresh Gaussian draws of a run, each of the latents' shape."""
        return self.weights.shape[1] - len(self.weights)

    @property
    def rows(self) -> int:
        """n + 1, the rows a run must go through, the result included; a table's rows beyond are padding."""
        return len(self.weights)

    def table(self, length: int | None = None, dtype: Any = np.float32) -> Table:
        """The plan as device data, padded to `length` + 1 rows (default: `padded_length` of this plan).

        Raises:
          ValueError: `length` is less than the plan needs.
        """
        n, length = self.rows - 1, padded_length(self.rows - 1) if length is None else length
        if n > length:
            raise ValueError(f"a table of length {length} is too short for {self.sampler} with {n} rows")
        last = np.minimum(np.arange(length + 1), n)  # padded rows repeat the result row
        real = np.arange(length + 1) <= n
        before = np.minimum(last, n - 1)
        d_weights = np.zeros((length + 1, length + 1))
        d_weights[:, :n] = self.weights[last, 1 : n + 1]
        n_weights = np.zeros_like(d_weights)
        n_weights[:, np.flatnonzero(self.draw >= 0)] = self.weights[last, n + 1 :]
        u_weights = None
        if self.unguided is not None:
            u_weights = np.zeros_like(d_weights)
            u_weights[:, :n] = self.unguided[last]
        network = np.arange(length + 1) < n
        ended = ~network & (not self.unfinished)
        draw = np.where(real, self.draw[last], -1)
        spans = np.concatenate([self.spans, [[-1, -1]]])  # the last for rows without a draw
        return Table(
            slot=np.arange(length + 1, dtype=np.int32),
            timestep=self.row_timesteps[before].astype(dtype),
            x_weight=self.weights[last, 0].astype(dtype),
            d_weights=d_weights.astype(dtype),
            n_weights=n_weights.astype(dtype),
            alpha=np.where(ended, 1.0, self.alpha[last]).astype(dtype),
            sigma=np.where(ended, 0.0, self.sigma[last]).astype(dtype),
            c_skip=np.where(network, self.c_skip[before], 0.0).astype(dtype),
            c_out=np.where(network, self.c_out[before], 0.0).astype(dtype),
            clip=np.where(network, self.clip[before], np.inf).astype(dtype),
            ratio=np.where(network, self.ratio[before], 0.0).astype(dtype),
            evaluate=network & self.evaluate[before],
            draw=draw.astype(np.int32),
            start=spans[draw, 0].astype(np.int32),
            stop=spans[draw, 1].astype(np.int32),
            u_weights=None if u_weights is None else u_weights.astype(dtype),
        )

    def plot(self) -> Any:
        """The matrix as a matplotlib figure, which a notebook shows and `savefig` writes. See `plot.draw`."""
        told = [t if run else None for t, run in zip(self.row_timesteps, self.evaluate, strict=True)]
        title = f"{self.sampler} on {self.schedule}: {self.evaluations} evaluations"
        return plot.draw(self.weights, self.alpha + self.sigma, told, title, self.unguided)

    def _check_shapes(self) -> None:
        n = len(self.row_timesteps)
        per_row = {
            "c_skip": n,
            "c_out": n,
            "clip": n,
            "ratio": n,
            "evaluate": n,
            "alpha": n + 1,
            "sigma": n + 1,
            "draw": n + 1,
        }
        for name, size in per_row.items():
            if getattr(self, name).shape != (size,):
                raise ValueError(f"plan {self.sampler}: {name} must be [{size}], not {list(getattr(self, name).shape)}")
        draws = int((self.draw >= 0).sum())
        if self.weights.shape != (n + 1, 1 + n + draws) or n == 0:
            raise ValueError(f"plan {self.sampler}: weights {self.weights.shape} do not fit {n} rows and {draws} draws")
        if self.unguided is not None and self.unguided.shape != (n + 1, n):
            raise ValueError(f"plan {self.sampler}: unguided must be [{n + 1}, {n}], not {list(self.unguided.shape)}")
        if not np.array_equal(self.draw[self.draw >= 0], np.arange(draws)):
            raise ValueError(f"plan {self.sampler}: draws must come in by their number")
        unguided = () if self.unguided is None else ("unguided",)
        for name in ("weights", *unguided, "row_timesteps", "c_skip", "c_out", "alpha", "sigma"):
            if not (np.abs(getattr(self, name)) <= np.finfo(np.float32).max).all():
                raise ValueError(
                    f"plan {self.sampler} on {self.schedule}, {self.steps} steps: {name} is not finite, or more than "
                    "float32 holds; take more moderate levels or options"
                )

    def _check_causal(self) -> None:
        n = self.rows - 1
        came_in = np.flatnonzero(self.draw >= 0)
        late = self.weights[:, n + 1 :] * (came_in[None, :] > np.arange(n + 1)[:, None])
        if np.triu(self.weights[:, 1 : n + 1]).any() or late.any():
            raise ValueError(f"plan {self.sampler}: a row uses a prediction or a draw that does not exist yet")
        if self.unguided is not None and (np.triu(self.unguided).any() or self.unguided[:, ~self.evaluate].any()):
            raise ValueError(f"plan {self.sampler}: a row uses an unguided prediction that does not exist yet, or ever")

    def _check_constant(self) -> None:
        """Equation 1; x_T is what the first evaluation makes it: (alpha_0 c + sigma_0 e - draws) / weight."""
        n, start = self.rows - 1, int(np.argmax(self.evaluate))
        w, drawn = self.weights, (self.weights[:, self.rows :] ** 2).sum(1)
        predicted = w[:, 1 : n + 1] if self.unguided is None else w[:, 1 : n + 1] + self.unguided
        checked = np.append(self.evaluate, True)
        signal = w[:, 0] * self.alpha[start] / w[start, 0] + predicted.sum(1)
        variance = w[:, 0] ** 2 * (self.sigma[start] ** 2 - drawn[start]) / w[start, 0] ** 2 + drawn
        error = np.maximum(abs(signal - self.alpha), abs(variance - self.sigma**2))
        wrong = checked & ~(error <= TOLERANCE * max(1.0, float(abs(w).max())))
        if wrong.any():
            i = int(np.argmax(wrong))
            raise ValueError(
                f"solver {self.sampler} is inconsistent: for a constant prediction row {i} holds "
                f"{signal[i]:.6g} of the picture and noise variance {variance[i]:.6g}, where its level says "
                f"{self.alpha[i]:.6g} and {self.sigma[i] ** 2:.6g}; x must be alpha x0 + sigma e there"
            )


def padded_length(rows: int) -> int:
    """The table length for a plan of n = `rows` rows before the result: 64, 128, 256, 512, 1024, ..."""
    return max(64, 1 << (rows - 1).bit_length())


@hints.arguments(hints.PLAN, needs="scheduler is a scheduler_config.json as a dict, as sd.scheduler; sd.plan has it")
def plan(
    sampler: "str | Sampler | Callable[..., Linear]",
    steps: int | None,
    scheduler: Mapping[str, Any],
    schedule: str | None = None,
    *,
    preset: str | None = None,
    rho: float | None = None,
    sigmas: Sequence[float] | None = None,
    timesteps: Sequence[float] | None = None,
    denoising_start: float | None = None,
    denoising_end: float | None = None,
    strength: float | None = None,
    **options: Any,
) -> Plan:
    """The plan that diffusers' scheduler of that name, made from the same config, would follow.

    However a run comes to end above noise 0 (its `sigmas`, `denoising_end`, a schedule's or a sampler's own last
    level), the result is x = alpha x0 + sigma e with alpha^2 + sigma^2 = 1, for every sampler: what a network sees, at
    the level alpha = `Plan.alpha[-1]`, sigma = `Plan.sigma[-1]`. The scale of k-diffusion, x0 + ve e, is x / alpha.

    Args:
      sampler: a name in `samplers.SAMPLERS`, a `Sampler`, or a function (tape, schedule) -> latents.
      steps: 1 .. num_train_timesteps, or None where `sigmas` or `timesteps` tell it. `plan(...).evaluations` tells
        how often the network then runs.
      scheduler: a checkpoint's scheduler_config.json as a dict. Missing keys take the defaults of the
        diffusers class of that sampler's name: note that for ddim these clip the predicted latents to [-1, 1]
        unless clip_sample is false.
      schedule: one of `spacing.SCHEDULES` in place of the config's own; None leaves it.
      preset: whose levels these are where programs differ: "diffusers" (the default), "a1111" or "comfy"; see
        `a1111_comfy`. The latter two take no spacing from `scheduler`. Where they leave out steps that would fall on
        one level ("beta" of "comfy"), or add some ("ddim_uniform"), so does the plan.
      rho: of the schedules karras (default 7) and polyexponential (default 1).
      sigmas: the levels themselves in place of a schedule: decreasing variance-exploding noise from the first to
        the last of the run, which is 0 where it is to end clean. N + 1 of them make N steps. Between training levels
        the network is told fractional timesteps, linear in log noise.
      timesteps: the levels as decreasing timesteps in 0 .. num_train_timesteps - 1, one for each step.
      denoising_start, denoising_end: run only a `segment` of the schedule, from and to these shares of it, 0 .. 1: of
        `steps` those that start at timesteps t with cutoff(denoising_end) <= t < cutoff(denoising_start), cutoff(f)
        being round(T - f T). With a start, x_T is not noise but the latents to go on from, x = alpha x0 + sigma e at
        the level `Plan.start`, and with an end the result is such latents.
      strength: run only the last int(steps * strength) steps, or as many as the preset's program does (see
        `a1111_comfy.begun`), from latents x = alpha x0 + sigma e at `Plan.start`; where that is no step, the plan asks
        the network nothing and gives back what it was given.
      options: what the sampler's function takes by keyword (eta, solver_order, s_churn, ..); None is its default, or
        what the config says.

    Warns where `scheduler` asks something of the levels, or of the bound on the predicted latents, that the class of
    this sampler does not read, as diffusers logs it.

    Raises:
      ValueError: an unknown name (the nearest are given), a number out of range, a part without a step, or a config
        that has no such plan.
    """
    name, record = find_sampler(sampler)
    if not isinstance(scheduler, Mapping):
        told = short(scheduler)
        raise ValueError(f"scheduler must be a scheduler_config.json as a dict, as sd.scheduler is, not {told}")
    chosen = {"rho": rho, "sigmas": sigmas, "timesteps": timesteps}
    settings = _settings(name, record, scheduler, schedule, "diffusers" if preset is None else preset, **chosen)
    count = count_steps(settings, steps)
    part, total = Segment(denoising_start, denoising_end, strength), count
    if strength is not None and settings.preset != "diffusers":
        total, last = begun(settings, count, float(strength))
        part = replace(part, last=last, alone=True)
    whole = record.schedule(settings, total)
    if strength is not None and denoising_end is None and part.skipped(total) == total:
        return _idle(sampler=name, schedule=schedule_name(settings), steps=count)
    levels = part.of(whole, settings.num_train_timesteps)
    tape = Tape(settings.prediction_type, levels.init, inexact=levels.gap, bound=_bound(settings))
    rows = tape.finish(record.solve(tape, levels, **_options(name, record, settings, options)), levels.end)
    known = {"sampler": name, "schedule": schedule_name(settings), "steps": count}
    unfinished = denoising_end is not None or bool(settings.sigmas and settings.sigmas[-1])
    return _plan(tape, rows, start=levels.steps[0][0], unfinished=unfinished, **known)


def _idle(**known: Any) -> Plan:
    """The plan that asks the network nothing: x_T is the clean latents already."""
    tape = Tape("epsilon")
    rows = [Row(tape.x_T, CLEAN), Row(tape.x_T, CLEAN)]
    tape.columns.append("D")
    return _plan(tape, rows, start=CLEAN, **known)


def _options(name: str, record: Sampler, settings: Settings, given: Mapping[str, Any]) -> dict[str, Any]:
    """Keywords of the solver: the caller's over the config's over its own."""
    known = record.options
    options = {key: getattr(settings, key) for key in known if key in record.reads}
    for key, value in given.items():
        if value is None or (key == "eta" and value == 0 and key not in known):  # no noise is what the others have
            continue
        if key not in known:
            takes = f"it takes {', '.join(known)}" if known else "it takes no options"
            raise ValueError(f"sampler {name} has no option {key!r}; {takes}")
        options[key] = value
    for key, value in options.items():
        _check_kind(f"{name}: {key}", value, known[key])
    return options


def _check_kind(name: str, value: Any, default: Any) -> None:
    """Raises ValueError where `value` is of another kind than the option's default; solvers know the range."""
    kinds: list[tuple[str, Callable[[Any], bool]]] = [
        ("True or False", lambda a: isinstance(a, bool | np.bool)),
        ("a string", lambda a: isinstance(a, str)),
        ("a list", lambda a: isinstance(a, list | tuple | range) or getattr(a, "ndim", 0) == 1),
        ("a function", callable),
        ("a number", lambda a: not math.isnan(as_float(a))),
    ]
    for kind, holds in kinds:
        if holds(default) and not holds(value):
            raise ValueError(f"{name} must be {kind}, not {short(value)}")


def _bound(settings: Settings) -> Bound:
    """How the config bounds predicted clean latents. diffusers' classes let thresholding go before clipping."""
    if settings.thresholding:
        largest = check_number("scheduler config: sample_max_value", settings.sample_max_value, LEAST_BOUND)
        name = "scheduler config: dynamic_thresholding_ratio"
        return Bound(largest, check_number(name, settings.dynamic_thresholding_ratio, 0.0, 1.0))
    if not settings.clip_sample:
        return FREE
    return Bound(check_number("scheduler config: clip_sample_range", settings.clip_sample_range, LEAST_BOUND))


def _settings(
    name: str, record: Sampler, scheduler: Mapping[str, Any], schedule: str | None, preset: str, **chosen: Any
) -> Settings:
    """The config as that sampler's class reads it, with what the caller chose over its own."""
    own = schedule is not None or chosen["sigmas"] is not None or chosen["timesteps"] is not None
    settings = Settings.read(scheduler, keys_in_force(record.reads, preset, own), record.defaults)
    if note := dropped(scheduler, name, record.reads, own or preset != "diffusers") if record.reads else "":
        notice(note)
    check_prediction(settings.prediction_type)
    return choose(settings, name, schedule, preset, **chosen)


def _plan(tape: Tape, rows: list[Row], **known: Any) -> Plan:
    """The tape's rows as arrays, columns sorted into x_T, predictions, draws; unguided predictions by their rows."""
    order = [i for kind in "xDn" for i, column in enumerate(tape.columns) if column == kind]
    weights, unguided = np.zeros((len(rows), len(tape.columns))), None
    for i, row in enumerate(rows):
        weights[i, : len(row.form.weights)] = row.form.weights
    if tape.unguided_rows:
        unguided = np.zeros((len(rows), len(rows) - 1))
        unguided[:, tape.unguided_rows] = weights[:, [kind == "U" for kind in tape.columns]]
    before, draws = rows[:-1], [row.draw for row in rows]
    return Plan(
        weights=weights[:, order],
        row_timesteps=np.array([row.level.t for row in before], np.float64),
        c_skip=np.array([row.c_skip for row in before], np.float64),
        c_out=np.array([row.c_out for row in before], np.float64),
        alpha=np.array([row.level.alpha for row in rows], np.float64),
        sigma=np.array([row.level.sigma for row in rows], np.float64),
        clip=np.array([row.bound.limit for row in before], np.float64),
        ratio=np.array([row.bound.ratio for row in before], np.float64),
        evaluate=np.array([row.evaluate for row in before], bool),
        draw=np.array([draw.number for draw in draws], np.int64),
        spans=np.array([(draw.start, draw.stop) for draw in draws if draw is not NONE], np.int64).reshape(-1, 2),
        inexact=tape.inexact,
        unguided=unguided,
        **known,
    )
