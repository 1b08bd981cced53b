"""Noise levels: how much clean picture and how much Gaussian noise a latent holds.

A noisy latent is   x = alpha x0 + sigma e,   e ~ N(0, 1),                                          (1)
and the networks in scope are trained variance-preserving, alpha^2 + sigma^2 = 1. Training visits T = 1000
levels,
    alpha_t^2 = prod_{s <= t} (1 - beta_s)          (DDPM, Ho et al. 2020, arXiv:2006.11239, eq. 4)      (2)
Solvers of the k-diffusion family think in the variance-exploding scale x / alpha = x0 + ve e, with
    ve = sigma / alpha,    alpha = 1 / sqrt(1 + ve^2)      (EDM, Karras et al. 2022, arXiv:2206.00364)   (3)

Everything here is host-side float64 NumPy. diffusers computes betas and their running product in float32; the
largest difference that leaves is at t = 0, where 1 - alpha^2 = 8.5e-4 is rounded: its sigma_0 is 1.3e-5 off,
relatively.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np

from sdjax.core import short
from sdjax.diffusion.bounds import LEAST_NOISE, MOST_NOISE, MOST_TIMESTEPS, as_float, check_number, check_whole

# diffusers replaces the zero of a zero-terminal-SNR schedule by this, in the schedulers that divide by alpha.
TERMINAL_ALPHA_BAR = 2.0**-24
NO_BETAS = "scheduler config: the betas must lie in (0, 1], so that each level is noisier than the last"


@dataclass(frozen=True)
class Level:
    """x = alpha x0 + sigma e, and the timestep t that the network is told (0 .. T-1, may be fractional)."""

    alpha: float
    sigma: float
    t: float

    @classmethod
    def from_ve(cls, ve: float, t: float) -> "Level":
        """The level of variance-exploding noise `ve` on the variance-preserving path (equation 3), and on no other."""
        alpha = 1.0 / math.sqrt(1.0 + ve * ve)
        return cls(alpha, ve * alpha, t)

    @property
    def ve(self) -> float:
        """Noise of unit signal, sigma / alpha; infinite where no signal is left."""
        return self.sigma / self.alpha if self.alpha else math.inf

    @property
    def log_snr(self) -> float:
        """lambda = log(alpha / sigma), the half log signal-to-noise ratio; infinite at a clean level."""
        return -math.log(self.ve) if self.ve else math.inf


@dataclass(frozen=True)
class Settings:
    """What a checkpoint's scheduler_config.json says, with the defaults most diffusers schedulers share.

    The fields before `num_train_timesteps` are no keys of that file: they are what the caller of `plan` chose.
    """

    schedule: str | None = None  # None: what the keys say
    preset: str = "diffusers"
    rho: float | None = None
    sigmas: tuple[float, ...] | None = None
    timesteps: tuple[float, ...] | None = None
    discard_penultimate_sigma: bool = False

    num_train_timesteps: int = 1000
    beta_start: float = 1e-4
    beta_end: float = 0.02
    beta_schedule: str = "linear"
    trained_betas: Any = None
    prediction_type: str = "epsilon"
    timestep_spacing: str = "leading"
    steps_offset: int = 0
    rescale_betas_zero_snr: bool = False
    set_alpha_to_one: bool = False
    clip_sample: bool = False
    clip_sample_range: float = 1.0
    thresholding: bool = False
    dynamic_thresholding_ratio: float = 0.995
    sample_max_value: float = 1.0
    use_karras_sigmas: bool = False
    use_exponential_sigmas: bool = False
    use_beta_sigmas: bool = False
    use_lu_lambdas: bool = False
    sigma_min: float | None = None
    sigma_max: float | None = None
    final_sigmas_type: str = "zero"
    interpolation_type: str = "linear"
    lambda_min_clipped: float = -math.inf
    solver_type: str = "midpoint"
    lower_order_final: bool = True
    euler_at_final: bool = False
    solver_order: int = 2
    algorithm_type: str = "dpmsolver++"
    predict_x0: bool = True
    disable_corrector: tuple[int, ...] = ()
    predictor_order: int = 2
    corrector_order: int = 2
    variance_type: str = "fixed_small"
    original_inference_steps: int = 50
    timestep_scaling: float = 10.0

    @classmethod
    def read(cls, config: Mapping[str, Any], reads: frozenset[str], defaults: Mapping[str, Any]) -> "Settings":
        """Keep the keys in `reads` (those that diffusers' class has), over that class's own `defaults`.

        As diffusers does, keys named in the config's `_use_default_values` count as absent, and so does an
        explicit null where the default is no null.
        """
        _check_family(config)
        names = {f.name: f.default for f in fields(cls)}
        kept = {k: v for k, v in said(config).items() if k in reads and k in names}
        settings = cls(**{**defaults, **kept})
        settings._check()
        return replace(settings, num_train_timesteps=int(settings.num_train_timesteps))  # JSON's 1000.0 is 1000

    def _check(self) -> None:
        for field in fields(self):
            _check_kind(field.name, getattr(self, field.name), field.default)
        check_whole("scheduler config: num_train_timesteps", self.num_train_timesteps, 1, MOST_TIMESTEPS)
        if self.final_sigmas_type not in ("zero", "sigma_min"):
            raise ValueError(
                f"scheduler config: final_sigmas_type is 'zero' or 'sigma_min', not {self.final_sigmas_type!r}"
            )
        flags = [f for f in ("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas") if getattr(self, f)]
        if len(flags) > 1:
            raise ValueError(f"scheduler config: only one of {' and '.join(flags)} can be true; pass schedule=...")
        for key in ("sigma_min", "sigma_max"):
            value = getattr(self, key)
            if value is not None:
                check_number(f"scheduler config: {key}", value, LEAST_NOISE, MOST_NOISE)
        if self.interpolation_type != "linear":
            raise ValueError(
                f"scheduler config: interpolation_type is 'linear', not {short.short(self.interpolation_type)}"
            )


@dataclass(frozen=True)
class NoiseSchedule:
    """The training levels. `alphas_cumprod`: float64 [T], alpha_t^2 of equation 2, strictly decreasing."""

    alphas_cumprod: np.ndarray

    __repr__ = short.fields

    def __post_init__(self) -> None:
        a = self.alphas_cumprod
        if a.ndim != 1 or not np.isfinite(a).all() or (np.diff(a) >= 0).any() or a[-1] < 0 or a[0] >= 1:
            raise ValueError(NO_BETAS)

    @property
    def total(self) -> int:
        """T, the number of training levels."""
        return len(self.alphas_cumprod)

    @property
    def ve(self) -> np.ndarray:
        """Variance-exploding noise of every training level, float64 [T], increasing."""
        with np.errstate(divide="ignore"):
            return np.sqrt((1.0 - self.alphas_cumprod) / self.alphas_cumprod)

    def level(self, t: int) -> Level:
        """The training level at the whole timestep `t`."""
        alpha_bar = float(self.alphas_cumprod[t])
        return Level(math.sqrt(alpha_bar), math.sqrt(1.0 - alpha_bar), float(t))

    def timestep(self, ve: np.ndarray) -> np.ndarray:
        """The fractional timestep of noise `ve`: linear in log(ve) between levels, held at both ends."""
        return np.interp(np.log(ve), np.log(self.ve), np.arange(self.total))

    def at(self, timestep: np.ndarray) -> np.ndarray:
        """`ve` at fractional timesteps, the inverse of `timestep`."""
        return np.exp(np.interp(timestep, np.arange(self.total), np.log(self.ve)))

    def nearest(self, ve: np.ndarray) -> np.ndarray:
        """The whole timestep whose noise is nearest to `ve` in log(ve)."""
        return np.abs(np.log(ve)[..., None] - np.log(self.ve)).argmin(-1).astype(np.float64)

    def without_zero_snr(self, alpha_bar: float = TERMINAL_ALPHA_BAR) -> "NoiseSchedule":
        """The same levels with a last trace of signal kept, as diffusers' Euler and DPM-Solver++ do."""
        a = self.alphas_cumprod.copy()
        a[-1] = alpha_bar
        return NoiseSchedule(a)


def noise_schedule(settings: Settings) -> NoiseSchedule:
    """Equation 2 for a checkpoint's betas, rescaled to zero terminal SNR where its config says so."""
    alphas_cumprod = np.cumprod(1.0 - _betas(settings))
    return NoiseSchedule(zero_terminal_snr(alphas_cumprod) if settings.rescale_betas_zero_snr else alphas_cumprod)


def zero_terminal_snr(alphas_cumprod: np.ndarray) -> np.ndarray:
    """The levels float64 [T] with alpha_t moved and stretched so that the last is 0 and the first unchanged.

    Lin et al. 2023, arXiv:2305.08891, algorithm 1.
    """
    alpha = np.sqrt(alphas_cumprod)
    return ((alpha - alpha[-1]) * alpha[0] / (alpha[0] - alpha[-1])) ** 2


def float32_ve(settings: Settings) -> np.ndarray:
    """`NoiseSchedule.ve` as diffusers computes it, float32 [T]: for whole timesteps that hang on the last digit."""
    if settings.rescale_betas_zero_snr:
        alphas_cumprod = noise_schedule(settings).without_zero_snr().alphas_cumprod.astype(np.float32)
    else:
        alphas = np.float32(1) - _float32_betas(settings)
        alphas_cumprod = np.cumprod(alphas.astype(np.float64)).astype(np.float32)
    return np.sqrt((1 - alphas_cumprod) / alphas_cumprod)


def _float32_betas(settings: Settings) -> np.ndarray:
    """float32 [T]. torch.linspace counts in float32 steps, up to the middle from one end and then from the other."""
    power = {"linear": 1, "scaled_linear": 2}.get(settings.beta_schedule, 0)
    if settings.trained_betas is not None or not power:
        return _betas(settings).astype(np.float32)
    total = settings.num_train_timesteps
    ends = np.array([settings.beta_start, settings.beta_end]) ** (1 / power)
    start, end = ends.astype(np.float32)
    step, i = np.float64((end - start) / np.float32(max(total - 1, 1))), np.arange(total)
    ramp = np.where(i < total // 2, start + step * i, end - step * i[::-1])
    return ramp.astype(np.float32) ** power


def _betas(settings: Settings) -> np.ndarray:
    """float64 [T]. "scaled_linear" is linear in sqrt(beta), "squaredcos_cap_v2" arXiv:2102.09672, eq. 17."""
    total, start, end = settings.num_train_timesteps, settings.beta_start, settings.beta_end
    if settings.trained_betas is not None:
        return _trained_betas(settings.trained_betas, total)
    if not (0 <= start <= 1 and 0 <= end <= 1):
        raise ValueError(NO_BETAS)
    if settings.beta_schedule == "linear":
        return np.linspace(start, end, total)
    if settings.beta_schedule == "scaled_linear":
        return np.linspace(math.sqrt(start), math.sqrt(end), total) ** 2
    if settings.beta_schedule == "squaredcos_cap_v2":
        alpha_bar = np.cos((np.arange(total + 1) / total + 0.008) / 1.008 * np.pi / 2) ** 2
        return np.minimum(1.0 - alpha_bar[1:] / alpha_bar[:-1], 0.999)
    raise ValueError(
        f"scheduler config: beta_schedule {short.short(settings.beta_schedule)} is unknown; "
        "known: linear, scaled_linear, squaredcos_cap_v2"
    )


def _trained_betas(given: Any, total: int) -> np.ndarray:
    if not isinstance(given, list | tuple | np.ndarray):
        raise ValueError(f"scheduler config: trained_betas must be a list of numbers, not {short.short(given)}")
    betas = np.array([as_float(beta) for beta in given], np.float64)
    if betas.shape != (total,):
        raise ValueError(f"scheduler config: trained_betas holds {len(betas)}, num_train_timesteps says {total}")
    return betas


def said(config: Mapping[str, Any]) -> dict[str, Any]:
    """What a scheduler_config.json says itself: without nulls and what it marks as defaults."""
    absent = set(config.get("_use_default_values") or ())
    return {key: value for key, value in config.items() if key not in absent and value is not None}


def _check_family(config: Mapping[str, Any]) -> None:
    """Raises ValueError where the network is of another kind than (1) and timesteps, whatever the sampler reads."""
    told, name = said(config), str(config.get("_class_name") or "")
    for flag in ("use_flow_sigmas", "use_dynamic_shifting"):
        if told.get(flag):
            raise ValueError(f"scheduler config: {flag}=true belongs to flow-matching models, not supported")
    if name.startswith(("FlowMatch", "EDM")):
        raise ValueError(f"scheduler config: {name} belongs to flow-matching and EDM models, not supported")
    if told.get("timestep_type", "discrete") != "discrete":
        raise ValueError(f"scheduler config: timestep_type is 'discrete', not {short.short(told['timestep_type'])}")


def _check_kind(key: str, value: Any, default: Any) -> None:
    """Raises ValueError where a config's `value` is of another kind than the key's default."""
    if isinstance(default, bool):
        kind, right = "true or false", isinstance(value, bool)
    elif isinstance(default, str):
        kind, right = "a string", isinstance(value, str)
    elif isinstance(default, int):
        kind, right = "a whole number", math.isfinite(as_float(value)) and as_float(value) == int(value)
    elif isinstance(default, float):
        # NaN and infinity are numbers here; whoever takes them says what is wrong
        kind, right = "a number", isinstance(value, float) or not math.isnan(as_float(value))
    else:
        return
    if not right:
        raise ValueError(f"scheduler config: {key} must be {kind}, not {short.short(value)}")
