"""DPM-Solver with a step size of its own: the one solver that is no matrix.

How far a step goes depends on the latents, so no table can be made beforehand, and no compiled program is shared with
the other samplers: this is a `lax.while_loop`. Two solutions of neighbouring orders, DPM-Solver-12 or -23 (Lu et al.
2022, arXiv:2206.00927, appendix C), come of the same evaluations; the root mean square of their difference, each
element taken relative to
    delta = max(atol, rtol max(|x_low|, |x_before|)),                                                  (1)
is the error of a step of size h in log SNR. With e the inverse errors of this attempt and of the last two steps
taken, newest first, a PID controller (Soderlind 2003, doi:10.1145/641876.641877) makes the next size
    h' = h (1 + arctan(f - 1)),     f = e_0^b_0 e_1^b_1 e_2^b_2,
    b = (p + i + d, -(p + 2 d), d) / order,                                                            (2)
and an attempt whose factor h' / h is below `accept_safety` is made again from where it began.

Method and constants are those of k-diffusion's sample_dpm_adaptive. There one error decides for the whole batch; here
every image has its own size, error and counts, so that it does not depend on its neighbours: one that is done is
carried along, untouched, until all are.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from sdjax.core import short
from sdjax.diffusion import brownian
from sdjax.diffusion.bounds import LEAST_NOISE, MOST_NOISE, as_float, check_number, check_whole
from sdjax.diffusion.noise import Settings
from sdjax.diffusion.prediction import check_prediction
from sdjax.diffusion.samplers import SAMPLERS
from sdjax.diffusion.scan import keys_per_image, widened
from sdjax.diffusion.solvers.dpm_fast import Slope, pair_12, pair_23
from sdjax.diffusion.spacing import sigma_noise

Model = Callable[[jax.Array, jax.Array], jax.Array]
MOST_ATTEMPTS = 10**6
CLOSE = 1e-5  # in log SNR: nearer to the end than this is there


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Adaptive:
    """What a run came to, for each of b images.

    Attributes:
      latents: [b, ...], what a network sees at the last level, (x0 + sigma_min e) / sqrt(1 + sigma_min^2); NaN for an
        image that did not get there.
      finished: bool [b], False where the network gave something not finite or `max_steps` were not enough.
      accepted, rejected: int32 [b], steps taken, and attempts that were too long.
      evaluations: int32 [b], network evaluations: `order` for each of both. While other images are still under way the
        network sees a finished one, too, so the batch has cost the largest of these.
    """

    latents: jax.Array
    finished: jax.Array
    accepted: jax.Array
    rejected: jax.Array
    evaluations: jax.Array

    __repr__ = short.fields


@dataclass(frozen=True)
class _Method:
    """The options of `dpm_adaptive`, checked. `end`: log SNR of the last level."""

    order: int
    rtol: float
    atol: float
    h_init: float
    pcoeff: float
    icoeff: float
    dcoeff: float
    accept_safety: float
    eta: float
    s_noise: float
    max_steps: int
    end: float = math.nan

    def __post_init__(self) -> None:
        if self.order not in (2, 3):
            raise ValueError(f"order must be 2 or 3, not {self.order!r}")
        # Tracers, which some of these may be, are let through.
        numbers = {name: value for name, value in vars(self).items() if isinstance(value, int | float | np.number)}
        known = {name: as_float(value) for name, value in numbers.items()}
        for name in ("rtol", "atol", "h_init", "accept_safety"):
            if not 0.0 < known.get(name, 1.0) < math.inf:
                raise ValueError(f"{name} must be a number > 0, not {short.short(numbers[name])}")
        for name in ("eta", "s_noise"):
            if not 0.0 <= known.get(name, 1.0) < math.inf:
                raise ValueError(f"{name} must be a number >= 0, not {short.short(numbers[name])}")
        for name in ("pcoeff", "icoeff", "dcoeff"):
            if not math.isfinite(known.get(name, 0.0)):
                raise ValueError(f"{name} must be a finite number, not {short.short(numbers[name])}")
        check_whole("max_steps", self.max_steps, 1, MOST_ATTEMPTS)

    def factor(self, inverse_errors: jax.Array) -> jax.Array:
        """h' / h of equation 2, [b], from [b, 3]."""
        order = 1.5 if self.eta else self.order  # as k-diffusion has it
        p, i, d = self.pcoeff, self.icoeff, self.dcoeff
        powers = jnp.array([p + i + d, -(p + 2 * d), d], inverse_errors.dtype) / order
        return 1.0 + jnp.arctan(jnp.prod(inverse_errors**powers, -1) - 1.0)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class _State:
    """x, before: [b, ...], now and as the low order had it before the last step; variance-exploding. All else is [b].

    s: log SNR reached. h: size of the next attempt. errors: [b, 2], inverse errors of the last two steps. leaf: of the
    Brownian path, up to which it has been drawn.
    """

    x: jax.Array
    before: jax.Array
    s: jax.Array
    h: jax.Array
    errors: jax.Array
    accepted: jax.Array
    rejected: jax.Array
    failed: jax.Array
    leaf: jax.Array


def dpm_adaptive(
    model: Model,
    x_T: jax.Array,
    scheduler: Mapping[str, Any],
    *,
    order: int = 3,
    rtol: float = 0.05,
    atol: float = 0.0078,
    h_init: float = 0.05,
    pcoeff: float = 0.0,
    icoeff: float = 1.0,
    dcoeff: float = 0.0,
    accept_safety: float = 0.81,
    eta: float = 0.0,
    s_noise: float = 1.0,
    sigma_min: float | None = None,
    sigma_max: float | None = None,
    max_steps: int = 1000,
    key: jax.Array | None = None,
) -> Adaptive:
    """Sample with as many steps as the tolerances ask for. Jit what calls it; not differentiable in reverse.

    Args:
      model: (x [b, ...], t [b]) -> raw prediction [b, ...], x at the network's own scale, t fractional timesteps: the
        images are not at the same noise.
      x_T: unit Gaussian [b, ...]; it is scaled here.
      scheduler: a checkpoint's scheduler_config.json as a dict; only its betas and prediction type count.
      order: 3 for DPM-Solver-23 (three evaluations an attempt), 2 for DPM-Solver-12 (two).
      rtol, atol: relative and absolute tolerance of equation 1, > 0; latents there are variance-exploding. These and
        all other numbers but order, eta, sigma_min, sigma_max and max_steps may be data of a compiled program.
      h_init: size of the first attempt in log SNR, > 0.
      pcoeff, icoeff, dcoeff: p, i and d of equation 2.
      accept_safety: least factor with which an attempt is taken, > 0.
      eta: share of renewed noise, >= 0, a piece of the image's Brownian path (on which a step's end, and so the
        picture, moves a little with rounding). s_noise: factor on it.
      sigma_min, sigma_max: noise (variance-exploding) at which runs end and begin; None is the smallest and largest
        training level. As in k-diffusion the result keeps the noise of `sigma_min`; as everywhere here, it is alpha x0
        + sigma e with alpha^2 + sigma^2 = 1.
      max_steps: attempts after which an image is given up.
      key: with eta, one key (image i then uses fold_in(key, i)) or b keys, one per image.

    Raises:
      ValueError: a number out of range, or eta without a key.
    """
    x_T = widened(x_T)
    settings = Settings.read(scheduler, SAMPLERS["dpm_fast"].reads, {})
    ve = sigma_noise(settings).ve
    top = check_number("sigma_max", ve[-1] if sigma_max is None else sigma_max, LEAST_NOISE, MOST_NOISE)
    bottom = check_number("sigma_min", ve[0] if sigma_min is None else sigma_min, LEAST_NOISE, MOST_NOISE)
    if not 0.0 < bottom < top < math.inf:
        raise ValueError(f"sigma_min and sigma_max must be 0 < sigma_min < sigma_max, not {bottom:g} and {top:g}")
    if eta and key is None:
        raise ValueError("eta renews noise: give key=")
    method = _Method(
        order, rtol, atol, h_init, pcoeff, icoeff, dcoeff, accept_safety, eta, s_noise, max_steps, -math.log(bottom)
    )
    keys = keys_per_image(key, len(x_T)) if eta and key is not None else None
    slope = _slope(model, check_prediction(settings.prediction_type), np.log(ve))
    last = lax.while_loop(
        lambda state: jnp.any(_under_way(method, state)),
        lambda state: _attempt(method, slope, keys, state),
        _start(method, x_T, top),
    )
    return _result(method, last)


def _slope(model: Model, prediction: str, log_ve: np.ndarray) -> Slope:
    """The predicted noise at x [b, ...] and noise `ve` [b, 1, ...], both variance-exploding."""

    def slope(x: jax.Array, ve: jax.Array) -> jax.Array:
        alpha = 1.0 / jnp.sqrt(1.0 + ve * ve)
        t = jnp.interp(jnp.log(ve.reshape(-1)), jnp.asarray(log_ve, x.dtype), jnp.arange(len(log_ve), dtype=x.dtype))
        raw = model(alpha * x, t).astype(x.dtype)
        if prediction == "v_prediction":
            return alpha * (raw + alpha * ve * x)
        return (x - raw) / ve if prediction == "sample" else raw

    return slope


def _start(method: _Method, x_T: jax.Array, top: float) -> _State:
    b = len(x_T)
    s, none = jnp.full(b, -math.log(top), x_T.dtype), jnp.zeros(b, jnp.int32)
    h, errors = jnp.full_like(s, method.h_init), jnp.ones((b, 2), x_T.dtype)
    return _State(top * x_T, top * x_T, s, h, errors, none, none, jnp.zeros(b, bool), _leaf(s))


def _under_way(method: _Method, state: _State) -> jax.Array:
    """bool [b]"""
    attempts = state.accepted + state.rejected
    return (state.s < method.end - CLOSE) & ~state.failed & (attempts < method.max_steps)


def _attempt(method: _Method, slope: Slope, keys: jax.Array | None, state: _State) -> _State:
    """One step of every image that is under way, kept where its error allows."""
    wide, going = state.s.shape + (1,) * (state.x.ndim - 1), _under_way(method, state)
    to = jnp.where(going, jnp.minimum(method.end, state.s + state.h), state.s + 1.0)
    here, there = jnp.exp(-state.s).reshape(wide), jnp.exp(-to).reshape(wide)
    down = _down(here, there, method)
    pair = pair_12 if method.order == 2 else pair_23
    low, high = pair(slope, state.x, slope(state.x, here), here, down, jnp.log(here / down))
    delta = jnp.maximum(method.atol, method.rtol * jnp.maximum(jnp.abs(low), jnp.abs(state.before)))
    error = jnp.sqrt(jnp.mean(jnp.square((low - high) / delta), axis=range(1, high.ndim)))
    inverse = (1.0 / (error + 1e-8))[:, None]
    past = jnp.where((state.accepted + state.rejected == 0)[:, None], inverse, state.errors)
    factor = method.factor(jnp.concatenate([inverse, past], 1))
    failed = state.failed | (going & ~jnp.isfinite(error))
    taken = going & ~failed & (factor >= method.accept_safety)
    leaf = jnp.clip(_leaf(to), state.leaf + 1, brownian.LEAVES)
    if keys is not None:
        drawn = jax.vmap(brownian.increment)(keys, jnp.minimum(state.leaf, brownian.LEAVES - 1), leaf, state.x)
        high = high + method.s_noise * jnp.sqrt(jnp.maximum(there**2 - down**2, 0.0)) * drawn
    kept = taken.reshape(wide)
    return _State(
        x=jnp.where(kept, high, state.x),
        before=jnp.where(kept, low, state.before),
        s=jnp.where(taken, to, state.s),
        h=jnp.where(going, state.h * factor, state.h),
        errors=jnp.where(taken[:, None], jnp.concatenate([inverse, past[:, :1]], 1), past),
        accepted=state.accepted + taken,
        rejected=state.rejected + (going & ~taken),
        failed=failed,
        leaf=jnp.where(taken, leaf, state.leaf),
    )


def _down(here: jax.Array, there: jax.Array, method: _Method) -> jax.Array:
    """Noise to step to before noise is renewed; equation 1 of `solvers.ancestral`, but never below the last level."""
    if not method.eta:
        return there
    up = jnp.minimum(there, method.eta * there * jnp.sqrt(1.0 - (there / here) ** 2))
    return jnp.maximum(jnp.sqrt(there**2 - up**2), jnp.minimum(there, math.exp(-method.end)))


def _leaf(log_snr: jax.Array) -> jax.Array:
    """The leaf of the Brownian path at a log SNR, int32."""
    return jnp.round((log_snr - brownian.LOWEST) / brownian.WIDTH).astype(jnp.int32)


def _result(method: _Method, state: _State) -> Adaptive:
    finished = ~state.failed & (state.s >= method.end - CLOSE)
    shape = finished.shape + (1,) * (state.x.ndim - 1)
    own_scale = 1.0 / math.sqrt(1.0 + math.exp(-2.0 * method.end))
    return Adaptive(
        latents=jnp.where(finished.reshape(shape), own_scale * state.x, jnp.nan),
        finished=finished,
        accepted=state.accepted,
        rejected=state.rejected,
        evaluations=method.order * (state.accepted + state.rejected),
    )
