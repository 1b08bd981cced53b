"""How fast a sampler's error falls with its steps, where the answer is known.

The network is the exact one of `mixture`, arithmetic is float64 (call this inside jax.enable_x64), and runs go from
noise ve = e^2.5 to e^-3.5: no step is infinite, and last steps of lower order, which exist for the sake of that one,
are switched off. On smooth levels the error of a method of order p is C / N^p for N steps.

The plans are those that a user gets of `sdjax.plan(sampler, None, SCHEDULER, sigmas=noise_levels(..))`: which timesteps
the network is told is measured with them. Samplers that walk whole timesteps take no levels of one's own that end
above 0; their solvers get the same levels by `on_levels`.

A sampler without noise is compared with the solution of the probability-flow ODE (`flow`). Of one that renews noise, N
and 2N steps are compared on the same Brownian path (`noisy`): their distance falls as N^-p for strong order p, and so
does the difference of a mean for weak order p.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments import mixture
from sdjax.diffusion import brownian, scan
from sdjax.diffusion.a1111_comfy import OWN_TIMESTEPS
from sdjax.diffusion.noise import Level
from sdjax.diffusion.plan import Plan, padded_length, plan
from sdjax.diffusion.samplers import Sampler, sampler
from sdjax.diffusion.spacing import Schedule
from sdjax.diffusion.table import Linear
from sdjax.diffusion.timesteps import inverse_schedule, pndm_schedule, prk_schedule

START, END = math.exp(2.5), math.exp(-3.5)
NOISY_END = 0.5  # where a wrong timestep at the last evaluation shows
LEVELS = ("exponential", "karras", "gentle", "uneven")
STEPS = (8, 16, 32, 64, 128, 256, 512)
MANY = 64  # up to this many steps, all samples are run where there is noise; beyond, a quarter
STARTS, PATHS, CHUNK = 32, 256, 1024  # images: without noise; along keys' own paths; at once where there is noise
TOLERANCE = 0.2
LAST_TOLD = 99.99  # the timestep at noise END
FLOOR = 1e-11  # of an error; below it float64 sums over hundreds of rows show
# No step here ends clean, so none needs the lower order that is published for one that does.
WHOLE_ORDER = {"lower_order_final": False, "euler_at_final": False}
WHOLE_TIMESTEPS = tuple(name for name in OWN_TIMESTEPS if name != "unipc")


@dataclass(frozen=True)
class Case:
    """A sampler (its name, or a solver of one's own) at some options, and the order that is claimed there (0: none)."""

    sampler: str | Callable[..., Linear]
    options: Mapping[str, Any] = field(default_factory=dict)
    order: int = 0

    @property
    def name(self) -> str:
        options = ((key, getattr(value, "__name__", value)) for key, value in self.options.items())
        return " ".join([sampler(self.sampler)[0], *(f"{key}={value}" for key, value in options)])

    def counts(self, steps: Sequence[int]) -> tuple[int, ...]:
        """`steps`, raised where the method groups its steps, so that no group is left shorter."""
        if self.sampler == "dpm_fast":  # orders 3, 3, .., 3, 2
            return tuple(n + (2 - n) % 3 for n in steps)
        group = self.options.get("solver_order", 2) if self.sampler == "dpmpp_2s" else 1
        return tuple(n + -n % group for n in steps)


@dataclass(frozen=True)
class Measured:
    """Errors of one case on one kind of levels, by number of steps, and the order with which they fall.

    kind: "flow", or "strong" or "weak" where there is noise. evaluations: of the network, per step. spread: largest
    less smallest slope between neighbours in the range fitted. doubt: standard error of each error, where it is a mean
    over samples. limit: `to_diffusion` of the finest run.
    """

    case: Case
    levels: str
    kind: str
    evaluations: float
    steps: Sequence[int]
    errors: Sequence[float]
    order: float
    spread: float
    doubt: Sequence[float] = ()
    limit: float | None = None

    @property
    def wrong(self) -> bool:
        """Whether an order is claimed here and another one measured.

        A first step of order 1, which is all that a multistep method can make, has an error of h^2: above order 2 it
        hides the method's own order, unless that step is a short one. Nothing is claimed on `uneven` levels, nor of
        weak orders.
        """
        if self.kind == "flow":
            claimed = self.levels == "gentle" or (self.levels != "uneven" and self.case.order <= 2)
        else:
            claimed = self.kind == "strong" and self.levels == "exponential"
        return bool(self.case.order and claimed and not abs(self.order - self.case.order) <= TOLERANCE)


# ---------------------------------------------------------------------- runs


def noise_levels(kind: str, steps: int) -> np.ndarray:
    """ve from START to END, or to NOISY_END where `kind` is "noisy", float64 [steps + 1].

    exponential, noisy: even in log ve. karras: arXiv:2206.00364, equation 5, rho 7. gentle: the share of log ve walked
    after i of N steps is (i / N)^2, so that the first step is of length 1 / N^2. uneven: every second step twice as
    long, what formulas for even steps do not survive.
    """
    if kind == "karras":
        return np.linspace(START ** (1 / 7), END ** (1 / 7), steps + 1) ** 7
    if kind == "gentle":
        walked = np.linspace(0.0, 1.0, steps + 1) ** 2
    else:
        length = np.resize([1.0, 2.0] if kind == "uneven" else [1.0], steps)
        walked = np.append(0.0, np.cumsum(length)) / length.sum()
    return START * (last(kind) / START) ** walked


def last(kind: str) -> float:
    """The noise at which levels of `kind` end."""
    return NOISY_END if kind == "noisy" else END


def told(ve: Any) -> Any:
    """The timestep of noise ve, linear in its logarithm, 899.99 .. 99.99.

    Timesteps 800 and 200, between which `sa_solver` renews noise, thus come just before an eighth and seven eighths of
    exponential levels, which are levels whatever their number.
    """
    return LAST_TOLD + 800.0 * np.log(ve / END) / math.log(START / END)


def noise_at(t: Any) -> Any:
    """`told`'s inverse."""
    return END * (START / END) ** ((t - LAST_TOLD) / 800.0)


@functools.cache
def scheduler(prediction: str) -> dict[str, Any]:
    """The scheduler config of a network trained at the noise levels `noise_at(t)`, t = 0 .. 999."""
    signal = 1.0 / (1.0 + noise_at(np.arange(1000.0)) ** 2)
    betas = 1.0 - signal / np.append(1.0, signal[:-1])
    return {"trained_betas": betas.tolist(), "prediction_type": prediction, "clip_sample": False}


def network(x: jax.Array, t: jax.Array, prediction: str = "epsilon") -> jax.Array:
    """`mixture.network`, told a timestep."""
    return mixture.network(x, noise_at(t), prediction)


def on_levels(record: Sampler, ve: np.ndarray) -> Sampler:
    """The sampler with the levels `ve` in place of its own."""
    levels = [Level.from_ve(float(v), float(told(v))) for v in ve]
    pairs = _stages(record, list(pairwise(levels)))
    init = 1.0 if record.schedule is inverse_schedule else levels[0].sigma
    schedule = Schedule(tuple(pairs), init, pairs[-1][1], told)
    return dataclasses.replace(record, schedule=lambda *_: schedule)


def _stages(record: Sampler, pairs: list[tuple[Level, Level]]) -> list[tuple[Level, Level]]:
    """Steps as those solvers want them that want more than one after the other."""
    if record.schedule is inverse_schedule:
        return [(there, here) for here, there in reversed(pairs)]
    if record.schedule is pndm_schedule:
        return [pairs[0], *pairs]
    if record.schedule is prk_schedule:
        ve = [math.sqrt(here.ve * there.ve) for here, there in pairs[:3]]
        middles = [Level.from_ve(v, float(told(v))) for v in ve]
        stages = [(p[0], to) for p, m in zip(pairs, middles, strict=False) for to in (m, m, p[1], p[1])]
        return [*stages, *pairs[3:]]
    return pairs


def make_plan(case: Case, kind: str, steps: int, prediction: str = "epsilon") -> Plan:
    """The plan of a case on levels of `kind`."""
    name, record = sampler(case.sampler)
    options = {key: value for key, value in WHOLE_ORDER.items() if key in record.options} | dict(case.options)
    config, ve = scheduler(prediction), noise_levels(kind, steps)
    if name in WHOLE_TIMESTEPS:
        return plan(on_levels(record, ve), steps, config, **options)
    return plan(case.sampler, None, config, sigmas=ve.tolist(), **options)


@functools.partial(jax.jit, static_argnames="prediction")
def _run(table: Any, x_T: jax.Array, keys: Any = None, noise: Any = None, prediction: str = "epsilon") -> jax.Array:
    """One program for every sampler and step count whose tables are of one length."""
    return scan.run(table, functools.partial(network, prediction=prediction), x_T, keys, noise)


def end_of(the_plan: Plan, x_T: np.ndarray, prediction: str = "epsilon", **randomness: Any) -> np.ndarray:
    """Where a run ends that starts from `x_T` times the noise of the first level, at unit signal, [b, d]."""
    table = the_plan.table(dtype=np.float64)
    if the_plan.start.ve > the_plan.sigma[-1] / the_plan.alpha[-1]:  # a run upwards starts from latents
        x_T = x_T * the_plan.start.sigma / the_plan.weights[0, 0]
    return np.asarray(_run(table, x_T, prediction=prediction, **randomness)) / the_plan.alpha[-1]


def starting_noise(b: int, seed: int = 0) -> np.ndarray:
    """Unit Gaussian [b, d], float64."""
    return np.random.default_rng(seed).standard_normal((b, mixture.DIMENSION))


def rms(a: np.ndarray) -> float:
    return float(np.sqrt((a**2).mean()))


def fit(steps: Sequence[int], errors: Sequence[float]) -> tuple[float, float]:
    """(order, spread) from the three finest step counts whose error is above FLOOR; NaN with fewer than two."""
    seen = [(n, e) for n, e in zip(steps, errors, strict=True) if e > FLOOR][-3:]
    if len(seen) < 2:
        return math.nan, math.nan
    x, y = np.log([n for n, _ in seen]), -np.log([e for _, e in seen])
    return float(np.polyfit(x, y, 1)[0]), float(np.ptp(np.diff(y) / np.diff(x)))


# -------------------------------------------------------------- without noise


@functools.cache
def _flow_truth(upward: bool, low: float) -> np.ndarray:
    start, end = (low, START) if upward else (START, low)
    y = starting_noise(STARTS) * (math.hypot(1.0, low) if upward else START)
    return np.asarray(mixture.flow(jnp.asarray(y), start, end))


def flow(case: Case, kind: str, steps: Sequence[int] = STEPS, prediction: str = "epsilon") -> Measured:
    """Root mean square distance to the solution of the probability-flow ODE."""
    steps = case.counts(steps)
    plans = [make_plan(case, kind, n, prediction) for n in steps]
    truth = _flow_truth(bool(plans[0].sigma[-1] > plans[0].sigma[0]), last(kind))
    errors = [rms(end_of(p, starting_noise(STARTS), prediction) - truth) for p in plans]
    return Measured(case, kind, "flow", plans[-1].evaluations / steps[-1], steps, errors, *fit(steps, errors))


# ----------------------------------------------------------------- with noise


def noisy(case: Case, kind: str, chunks: int, steps: Sequence[int] = STEPS) -> tuple[Measured, Measured]:
    """Strong and weak order: runs of N and 2N steps that share start and path, on `chunks` times CHUNK samples.

    strong: root mean square of their distance. weak: difference of the mean of `statistic`, fitted where it is more
    than four standard errors from zero.
    """
    steps = case.counts(steps)
    plans = [make_plan(case, kind, n) for n in steps]
    distances: list[list[float]] = [[] for _ in steps[1:]]
    changes: list[list[np.ndarray]] = [[] for _ in steps[1:]]
    for seed in range(chunks):
        run = [p for p in plans if p.steps <= MANY or seed < max(1, chunks // 4)]
        noises = path_noise(run, seed)
        ends = [end_of(p, starting_noise(CHUNK, seed), noise=n) for p, n in zip(run, noises, strict=True)]
        for i, (coarse, fine) in enumerate(pairwise(ends)):
            distances[i].append(rms(fine - coarse))
            changes[i].append(statistic(fine) - statistic(coarse))
    made = functools.partial(Measured, case, kind, evaluations=plans[-1].evaluations / steps[-1], steps=steps[:-1])
    far, every = [rms(np.array(d)) for d in distances], [np.concatenate(c) for c in changes]
    mean, doubt = [abs(float(c.mean())) for c in every], [float(c.std()) / math.sqrt(c.size) for c in every]
    clear = [m if m > 4 * s else 0.0 for m, s in zip(mean, doubt, strict=True)]
    (p, spread), (weak_p, weak_spread) = fit(steps[:-1], far), fit(steps[:-1], clear)
    return made("strong", errors=far, order=p, spread=spread), made(
        "weak", errors=mean, order=weak_p, spread=weak_spread, doubt=doubt
    )


def statistic(x: np.ndarray) -> np.ndarray:
    """The smooth function of latents [.., d] whose mean the weak order is about: their squared length."""
    return (x**2).sum(-1)


def to_diffusion(the_plan: Plan) -> float:
    """Root mean square distance of a run to the reverse diffusion's own solution, on the paths of images' keys."""
    keys = scan.keys_per_image(jax.random.key(0), PATHS)
    return rms(end_of(the_plan, starting_noise(PATHS), keys=keys) - _diffusion_truth())


@functools.cache
def _diffusion_truth() -> np.ndarray:
    keys, fine = scan.keys_per_image(jax.random.key(0), PATHS), noise_levels("exponential", 4096)
    return np.asarray(mixture.diffusion(keys, jnp.asarray(START * starting_noise(PATHS)), fine))


def path_noise(plans: Sequence[Plan], seed: int) -> list[np.ndarray]:
    """Draws [r, CHUNK, d] (padded to the r rows of its table) for every plan, all from one set of paths.

    The same distribution as from keys, but made in one walk over the process of `brownian`, for which each draw of a
    key comes down a tree of twenty nodes.
    """
    shape, rng = (CHUNK, mixture.DIMENSION), np.random.default_rng([1, seed])
    leaves = np.unique(np.concatenate([p.spans for p in plans]))
    process, b = {}, rng.standard_normal(shape)
    for leaf, d in zip(leaves, brownian.WIDTH * np.diff(leaves, prepend=leaves[:1]), strict=True):
        b = math.exp(-d) * b + math.sqrt(-math.expm1(-2 * d)) * rng.standard_normal(shape)
        process[int(leaf)] = b
    return [_draws(p, process, seed) for p in plans]


def _draws(the_plan: Plan, process: Mapping[int, np.ndarray], seed: int) -> np.ndarray:
    """Equation 4 of `brownian` between the leaves of each of the plan's draws, or the Gaussian of its number."""
    noise = np.zeros((padded_length(the_plan.rows - 1), CHUNK, mixture.DIMENSION))
    for k, (start, stop) in enumerate(the_plan.spans.tolist()):
        d = brownian.WIDTH * (stop - start)
        if start < 0:
            noise[k] = np.random.default_rng([2, seed, k]).standard_normal(noise.shape[1:])
        else:
            noise[k] = (process[stop] - math.exp(-d) * process[start]) / math.sqrt(-math.expm1(-2 * d))
    return noise
