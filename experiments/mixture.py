"""A mixture of Gaussians: a picture whose denoiser is known exactly, and its two diffusions solved finely.

Clean latents are drawn from sum_k N(m_k, S_k) / K with S_k = Q_k diag(s_k^2) Q_k^T. At noise `ve` the noisy latents
y = x0 + ve e have the covariances S_k + ve^2, so the clean latents to expect are, with w_k(y) the posterior weights,
    D(y, ve) = sum_k w_k(y) (m_k + S_k (S_k + ve^2)^-1 (y - m_k)).                                     (1)
A perfect network predicts (y - D) / ve, the noise e to expect. Its probability-flow ODE is, in l = -log ve,
    dy / dl = D(y, ve) - y,                                                                            (2)
and the reverse diffusion that forgets as much noise as it adds (Song et al. 2021, arXiv:2011.13456, eq. 6)
    dy = 2 (D - y) dl + ve^2 dW,    W the Brownian motion of `sdjax.diffusion.brownian`.               (3)
`flow` solves (2) and `diffusion` solves (3), both without anything of a tape, a table or a solver of sdjax.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from sdjax.diffusion import brownian
from sdjax.diffusion.noise import Level

_rng = np.random.default_rng(2)
MEANS = np.array([[1.2, 0.3, -0.5], [-0.9, 0.8, 0.4], [0.1, -1.1, 0.9], [-0.2, 0.1, -1.0]])  # [k, d]
SPREADS = np.array([[0.7, 0.4, 0.5], [0.5, 0.8, 0.4], [0.45, 0.6, 0.9], [0.5, 0.5, 0.5]])  # s, [k, d]
AXES = np.linalg.qr(_rng.standard_normal((4, 3, 3)))[0]  # Q, [k, d, d], an axis per column
DIMENSION = MEANS.shape[1]


def denoised(y: jax.Array, ve: jax.Array | float) -> jax.Array:
    """Equation 1. y: [b, d] of unit signal; ve > 0."""
    along = jnp.einsum("kde,bkd->bke", AXES, y[:, None] - MEANS)
    variance = SPREADS**2 + ve**2
    weight = jax.nn.softmax(-(along**2 / variance + jnp.log(variance)).sum(-1) / 2)
    clean = MEANS + jnp.einsum("kde,bke->bkd", AXES, along * SPREADS**2 / variance)
    return jnp.einsum("bk,bkd->bd", weight, clean)


def network(x: jax.Array, ve: jax.Array, prediction: str = "epsilon") -> jax.Array:
    """What a perfect network answers at x = alpha x0 + sigma e, [b, d]; given its noise `ve`."""
    alpha = 1.0 / jnp.sqrt(1.0 + ve**2)
    clean = denoised(x / alpha, ve)
    noise = (x / alpha - clean) / ve
    return noise if prediction == "epsilon" else alpha * noise - alpha * ve * clean


@functools.partial(jax.jit, static_argnums=3)
def _runge_kutta(y: jax.Array, start: float, end: float, steps: int) -> jax.Array:
    """Equation 2 by the classical fourth-order method in even steps of l."""
    begin, h = -jnp.log(start), jnp.log(start / end) / steps

    def slope(y: jax.Array, l: jax.Array) -> jax.Array:
        return denoised(y, jnp.exp(-l)) - y

    def step(y: jax.Array, i: jax.Array) -> tuple[jax.Array, None]:
        l = begin + i * h
        a = slope(y, l)
        b = slope(y + h / 2 * a, l + h / 2)
        c = slope(y + h / 2 * b, l + h / 2)
        d = slope(y + h * c, l + h)
        return y + h / 6 * (a + 2 * b + 2 * c + d), None

    return lax.scan(step, y, jnp.arange(steps))[0]


def flow(y: jax.Array, start: float, end: float, steps: int = 2048) -> jax.Array:
    """y [b, d] at noise `start` carried by equation 2 to `end`. Call it in float64: good to about 1e-13."""
    coarse, fine = (_runge_kutta(y, start, end, n) for n in (steps // 2, steps))
    return fine + (fine - coarse) / 15  # Richardson


@jax.jit
def _diffuse(keys: jax.Array, y: jax.Array, ve: jax.Array, spans: jax.Array) -> jax.Array:
    draw = jax.vmap(brownian.increment, (0, None, None, 0))

    def step(y: jax.Array, at: tuple[jax.Array, jax.Array, jax.Array]) -> tuple[jax.Array, None]:
        here, there, span = at
        keep = (there / here) ** 2
        return keep * y + (1 - keep) * denoised(y, here) + there * jnp.sqrt(1 - keep) * draw(
            keys, span[0], span[1], y
        ), None

    return lax.scan(step, y, (ve[:-1], ve[1:], spans))[0]


def diffusion(keys: jax.Array, y: jax.Array, ve: np.ndarray) -> jax.Array:
    """y [b, d] at ve[0] carried by equation 3 to ve[-1], D held over each step, along the paths of the images' keys.

    Of strong order 1, so its steps must be many times finer than those of what is compared with it.
    """
    levels = [Level.from_ve(float(v), 0.0) for v in ve]
    spans = [brownian.span(*pair) for pair in zip(levels[:-1], levels[1:], strict=True)]
    return _diffuse(keys, y, jnp.asarray(ve), jnp.asarray(spans))
