"""Two samplers that no installable package has, written from their papers' integrals in plain float64 NumPy.

Each integral is done by adaptive quadrature over the polynomial that the method puts in place of the network, so
that nothing here shares a coefficient with sdjax.
"""

import functools
import math

import numpy as np
from scipy.integrate import quad

from tests.reference import denoise_ve, euler_levels


def res_multistep(config, n, model, x):
    """Zhang et al. 2023, arXiv:2308.02157: in lambda = -log sigma the ODE is x' = D - x, for x = x0 + sigma e."""
    ts, sigmas, start = euler_levels(config, n)
    x, seen = x * start, []
    for i, t in enumerate(ts):
        seen.append(denoise_ve(config, model, x, sigmas[i], t))
        if sigmas[i + 1] == 0:
            return seen[-1]
        here, there = -math.log(sigmas[i]), -math.log(sigmas[i + 1])
        x = math.exp(here - there) * x
        if i == 0:
            x = x + decayed(lambda _: 1.0, here, there) * seen[-1]
        else:  # the line through (before, D_before) and (here, D_here)
            before = -math.log(sigmas[i - 1])
            x = x + decayed(functools.partial(share, before, here), here, there) * seen[-1]
            x = x + decayed(functools.partial(share, here, before), here, there) * seen[-2]
    return x


def share(zero, one, l):
    """The line that is 0 at `zero` and 1 at `one`."""
    return (l - zero) / (one - zero)


def decayed(f, here, there):
    """int e^(l - there) f(l) dl from here to there."""
    return quad(lambda l: math.exp(l - there) * f(l), here, there, epsabs=1e-13)[0]


def phi(s):
    """The noise scale of ER-SDE-Solver's authors and of ComfyUI."""
    return s * (np.exp(s**0.3) + 10)


def er_sde(config, n, model, x, noise, stages=3, points=200, phi=phi):
    """Cui et al. 2023, arXiv:2309.06169: x = phi(t) / phi(s) x_s + phi(t) int_t^s phi'(u) / phi(u)^2 D(u) du + noise.

    D(u) is replaced by its Taylor polynomial from difference quotients: that of the last two predictions as D', the
    change of those over half the way back to the third as D''. By parts, the integral of (u - s)^k / k! is
    ((t - s)^k / k! + phi(t) int_t^s (u - s)^(k-1) / (k-1)! / phi(u) du) / phi(t); with `points` the last integral
    is their sum of rectangles, otherwise exact, and not done by parts.
    """
    ts, sigmas, start = euler_levels(config, n)
    x, seen, slopes, k = x * start, [], [], 0
    for i, told in enumerate(ts):
        s, t = sigmas[i], sigmas[i + 1]
        seen.append(denoise_ve(config, model, x, s, told))
        if t == 0:
            return seen[-1]
        ratio = phi(t) / phi(s)
        x = ratio * x + (1 - ratio) * seen[-1]
        if i:
            slopes.append((seen[-1] - seen[-2]) / (s - sigmas[i - 1]))
        if i and stages >= 2:
            x = x + weight(1, s, t, phi, points) * slopes[-1]
        if i > 1 and stages >= 3:
            x = x + weight(2, s, t, phi, points) * (slopes[-1] - slopes[-2]) / ((s - sigmas[i - 2]) / 2)
        up = t * t - (s * ratio) ** 2
        if up > 1e-12:
            x, k = x + np.sqrt(up) * noise[k], k + 1
    return x


def weight(k, s, t, phi, points):
    """phi(t) int_t^s phi'(u) / phi(u)^2 (u - s)^k / k! du."""
    if points:
        u = t + np.arange(points) * (s - t) / points
        area = ((u - s) ** (k - 1) / phi(u)).sum() * (s - t) / points
        return (t - s) ** k / math.factorial(k) + phi(t) * area

    def slope(u):
        return (phi(u * (1 + 1e-6)) - phi(u * (1 - 1e-6))) / (2e-6 * u)

    # over log u, where the integrand is smooth down to small noise
    value = quad(
        lambda l: math.exp(l) * slope(math.exp(l)) / phi(math.exp(l)) ** 2 * (math.exp(l) - s) ** k / math.factorial(k),
        math.log(t), math.log(s), epsrel=1e-10,
    )[0]  # fmt: skip
    return phi(t) * value
