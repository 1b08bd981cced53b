"""One Brownian path per image, the same whatever the step count.

A solver that renews noise between two levels needs the increment of a path between them; drawn afresh each
time, the path would change with the steps and two step counts could not be compared. Between levels s and t
the reverse diffusion's noise is, exactly [1, 2],
    x_t = .. + (sigma_t^2 / alpha_t) (W(tau_t) - W(tau_s)),    tau = (alpha / sigma)^2 = e^(2 lambda),          (1)
for a Brownian motion W in the clock tau (DPM-Solver++'s stochastic form and ancestral sampling alike). Seen in
lambda, the half log signal-to-noise ratio, B = W / e^lambda is the stationary Ornstein-Uhlenbeck process,
    E[B(l) B(m)] = e^(-|l - m|),                                                                               (2)
so that one dyadic tree over lambda serves every schedule. It is halved DEPTH times; the middle of an interval of
half-width h is, given its ends a and b,
    B_m = (B_a + B_b) / (2 cosh h) + sqrt(tanh h) xi,    xi ~ N(0, 1) by the node's own number.                (3)
A draw is the unit Gaussian
    n = (B_t - e^-d B_s) / sqrt(1 - e^-2d),    d = lambda_t - lambda_s.                                         (4)
Increments over intervals that do not overlap are independent, and those over halves add up to the whole's.

[1] Lu et al. 2022, arXiv:2211.01095, appendix B (SDE-DPM-Solver++).  [2] Song et al. 2021, arXiv:2011.13456.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np

from sdjax.diffusion.noise import Level

DEPTH = 20
LOWEST, HIGHEST = -10.0, 14.0  # lambda; the noisiest level in use has -8.3 (zero terminal SNR), the finest 6.2
LEAVES = 1 << DEPTH
WIDTH = (HIGHEST - LOWEST) / LEAVES  # 2.3e-5; a step of 1000 spans 1e-3 and more
PATH = 0x70617468  # sets a path's keys apart from those of draws counted from 0


def span(here: Level, there: Level) -> tuple[int, int]:
    """Leaves of the tree, 0 .. LEAVES, at two levels; the first is the smaller one on the way to a cleaner level."""
    start, stop = (round((min(max(v.log_snr, LOWEST), HIGHEST) - LOWEST) / WIDTH) for v in (here, there))
    return start, stop


def share(here: Level, middle: Level, there: Level) -> float:
    """Variance of the part up to `middle` in the increment from `here` to `there`; 0 .. 1.

    With unit draws n_1 (here to middle) and n_2 (middle to there), the unit draw of the whole step is
    sqrt(p) n_1 + sqrt(1 - p) n_2.
    """
    if there.sigma == 0.0:
        return 0.0
    tau = [math.exp(2.0 * level.log_snr) for level in (here, middle, there)]
    return (tau[1] - tau[0]) / (tau[2] - tau[0])


def increment(key: jax.Array, start: jax.Array, stop: jax.Array, like: jax.Array) -> jax.Array:
    """Equation 4 between two leaves: a unit Gaussian of the shape and dtype of `like`. start, stop: int32 scalars."""
    key = jax.random.fold_in(key, PATH)
    before, after = jax.vmap(lambda leaf: _process(key, leaf, like))(jnp.stack([start, stop]))
    d = (stop - start).astype(like.dtype) * WIDTH
    return (after - jnp.exp(-d) * before) / jnp.sqrt(-jnp.expm1(-2.0 * d))


def _process(key: jax.Array, leaf: jax.Array, like: jax.Array) -> jax.Array:
    """B at a leaf's lower end (equation 3, from the root down). Node 0 and 1 are the ends, 2^level + i the middles."""

    def gaussian(node: jax.Array | int) -> jax.Array:
        return jax.random.normal(jax.random.fold_in(key, node), like.shape, like.dtype)

    at_end, leaf = leaf >= LEAVES, jnp.minimum(leaf, LEAVES - 1)
    half = (HIGHEST - LOWEST) / 2.0 ** np.arange(1, DEPTH + 1)
    mean, spread = 0.5 / np.cosh(half), np.sqrt(np.tanh(half))

    def halve(level: jax.Array, ends: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        a, b = ends
        node = (1 << level) + 1 + (leaf >> (DEPTH - level))
        shrunk, fresh = (jnp.asarray(each, like.dtype)[level] for each in (mean, spread))
        middle = shrunk * (a + b) + fresh * gaussian(node)
        right = (leaf >> (DEPTH - 1 - level)) & 1
        return jnp.where(right, middle, a), jnp.where(right, b, middle)

    lower, upper = jax.lax.fori_loop(0, DEPTH, halve, (gaussian(0), gaussian(1)))
    return jnp.where(at_end, upper, lower)
