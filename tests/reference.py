"""Samplers written a second time, step by step, in plain float64 NumPy: no tape, no table, nothing of sdjax.

They follow the update rules as the papers print them (and, where the papers are silent, the conventions of
diffusers 0.42.1: which timesteps, where a run ends). `toy` is the network that all frameworks share.
"""

import numpy as np

SD = dict(
    num_train_timesteps=1000, beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear",
    steps_offset=1, set_alpha_to_one=False, clip_sample=False, skip_prk_steps=True,
    timestep_spacing="leading", prediction_type="epsilon",
)  # fmt: skip
ZERO_SNR = {
    **SD,
    "rescale_betas_zero_snr": True,
    "prediction_type": "v_prediction",
    "timestep_spacing": "trailing",
}
SHAPE = (2, 4, 5, 3)


def toy(xp, x, t):
    """A nonlinear network on [b, h, w, c]: neighbours mix, the timestep (0 .. 999) moves everything."""
    u = t / 1000.0
    shifted = x[:, [1, 2, 3, 0]]
    return xp.tanh(0.8 * x + 0.5 * shifted * xp.cos(3.0 * u) + 0.3 * u) + 0.4 * x[..., [2, 0, 1]] * xp.sin(
        2.0 * u + 0.5
    )


def draws(n):
    """Unit Gaussian [n, *SHAPE] float64, the same each time."""
    return np.random.default_rng(7).standard_normal((n, *SHAPE))


def alphas_cumprod(config):
    betas = np.linspace(config["beta_start"] ** 0.5, config["beta_end"] ** 0.5, 1000) ** 2
    a = np.cumprod(1 - betas)
    if config.get("rescale_betas_zero_snr"):
        root = np.sqrt(a)
        a = ((root - root[-1]) * root[0] / (root[0] - root[-1])) ** 2
    return a


def x0_and_eps(config, raw, x, a):
    """(clean latents, noise) that the raw output means at x = sqrt(a) x0 + sqrt(1 - a) e."""
    if config["prediction_type"] == "epsilon":
        return (x - np.sqrt(1 - a) * raw) / np.sqrt(a), raw
    if config["prediction_type"] == "v_prediction":
        return np.sqrt(a) * x - np.sqrt(1 - a) * raw, np.sqrt(a) * raw + np.sqrt(1 - a) * x
    return raw, (x - np.sqrt(a) * raw) / np.sqrt(1 - a)


def whole_timesteps(spacing, n, offset):
    if spacing == "leading":
        return [i * (1000 // n) + offset for i in reversed(range(n))]
    if spacing == "linspace":
        return [int(t) for t in np.linspace(0, 999, n).round()[::-1]]
    return [int(np.round(1000 - i * 1000 / n)) - 1 for i in range(n)]


def ddim(config, n, model, x, noise=None, eta=0.0):
    a = alphas_cumprod(config)
    for i, t in enumerate(whole_timesteps(config["timestep_spacing"], n, config["steps_offset"])):
        previous = t - 1000 // n
        a_t = a[t]
        a_p = a[previous] if previous >= 0 else (1.0 if config["set_alpha_to_one"] else a[0])
        x0, eps = x0_and_eps(config, model(x, t), x, a_t)
        std = eta * np.sqrt((1 - a_p) / (1 - a_t) * (1 - a_t / a_p))
        x = np.sqrt(a_p) * x0 + np.sqrt(1 - a_p - std**2) * eps
        if eta:
            x = x + std * noise[i]
    return x


def pndm(config, n, model, x):
    a, r = 1 / (1 + clamped_sigmas(config) ** 2), 1000 // n

    def move(x, raw, t, to):
        a_to = a[to] if to >= 0 else (1.0 if config["set_alpha_to_one"] else a[0])
        x0, eps = x0_and_eps(config, raw, x, a[t])
        return np.sqrt(a_to) * x0 + np.sqrt(1 - a_to) * eps

    ts = whole_timesteps(config["timestep_spacing"], n, config["steps_offset"])
    history = [model(x, ts[0])]
    start, x = x, move(x, history[0], ts[0], ts[0] - r)
    if n == 1:
        return x
    x = move(start, (history[0] + model(x, ts[1])) / 2, ts[1] + r, ts[1])
    for t in ts[1:]:
        history.append(model(x, t))
        e = history[::-1]
        if len(e) == 2:
            mixed = (3 * e[0] - e[1]) / 2
        elif len(e) == 3:
            mixed = (23 * e[0] - 16 * e[1] + 5 * e[2]) / 12
        else:
            mixed = (55 * e[0] - 59 * e[1] + 37 * e[2] - 9 * e[3]) / 24
        x = move(x, mixed, t, t - r)
    return x


def karras(low, high, n):
    ramp = np.arange(n) / max(n - 1, 1)
    return (high ** (1 / 7) + ramp * (low ** (1 / 7) - high ** (1 / 7))) ** 7


def clamped_sigmas(config):
    a = alphas_cumprod(config)
    if config.get("rescale_betas_zero_snr"):
        a[-1] = 2.0**-24
    return np.sqrt((1 - a) / a)


def euler_levels(config, n):
    """(timesteps [n], sigmas [n + 1], scale of x_T)."""
    all_sigmas = clamped_sigmas(config)
    if config["timestep_spacing"] == "linspace":
        ts = np.linspace(0, 999, n)[::-1]
    else:
        ts = np.array(whole_timesteps(config["timestep_spacing"], n, config["steps_offset"]), float)
    sigmas = np.interp(ts, np.arange(1000), all_sigmas)
    if config.get("use_karras_sigmas"):
        sigmas = karras(sigmas[-1], sigmas[0], n)
        ts = np.interp(np.log(sigmas), np.log(all_sigmas), np.arange(1000))
    start = np.sqrt(sigmas[0] ** 2 + 1) if config["timestep_spacing"] == "leading" else sigmas[0]
    return ts, np.append(sigmas, 0.0), start


def denoise_ve(config, model, x, sigma, t):
    """Clean latents from x = x0 + sigma e; the network sees x / sqrt(sigma^2 + 1)."""
    scaled = x / np.sqrt(sigma**2 + 1)
    return x0_and_eps(config, model(scaled, t), scaled, 1 / (sigma**2 + 1))[0]


def euler(config, n, model, x):
    ts, sigmas, start = euler_levels(config, n)
    x = x * start
    for i, t in enumerate(ts):
        d = (x - denoise_ve(config, model, x, sigmas[i], t)) / sigmas[i]
        x = x + d * (sigmas[i + 1] - sigmas[i])
    return x


def heun(config, n, model, x):
    """arXiv:2206.00364, algorithm 1 without churn."""
    ts, sigmas, start = euler_levels(config, n)
    x = x * start
    for i, t in enumerate(ts):
        d = (x - denoise_ve(config, model, x, sigmas[i], t)) / sigmas[i]
        guess = x + d * (sigmas[i + 1] - sigmas[i])
        if sigmas[i + 1] > 0:
            d = (d + (guess - denoise_ve(config, model, guess, sigmas[i + 1], ts[i + 1])) / sigmas[i + 1]) / 2
        x = x + d * (sigmas[i + 1] - sigmas[i])
    return x


def euler_ancestral(config, n, model, x, noise):
    """k-diffusion's sample_euler_ancestral with eta = 1."""
    ts, sigmas, start = euler_levels(config, n)
    x = x * start
    for i, t in enumerate(ts):
        s, to = sigmas[i], sigmas[i + 1]
        up = np.sqrt(to**2 * (s**2 - to**2) / s**2)
        down = np.sqrt(to**2 - up**2)
        d = (x - denoise_ve(config, model, x, s, t)) / s
        x = x + d * (down - s) + up * noise[i]
    return x


def dpmpp_2m(config, n, model, x):
    all_sigmas = clamped_sigmas(config)
    spacing = config["timestep_spacing"]
    if config.get("use_karras_sigmas"):
        sigmas = karras(all_sigmas[0], all_sigmas[-1], n)
        ts = np.interp(np.log(sigmas), np.log(all_sigmas), np.arange(1000)).round()
    else:
        if spacing == "leading":
            ts = np.array([i * (1000 // (n + 1)) for i in range(n, 0, -1)]) + config["steps_offset"]
        elif spacing == "linspace":
            ts = np.linspace(0, 999, n + 1).round()[:0:-1].astype(int)
        else:
            ts = np.array(whole_timesteps("trailing", n, 0))
        sigmas = all_sigmas[ts]
    sigmas = np.append(sigmas, 0.0)
    alpha = 1 / np.sqrt(1 + sigmas**2)
    sigma = sigmas * alpha
    old = None
    for i, t in enumerate(ts):
        x0 = x0_and_eps(config, model(x, t), x, alpha[i] ** 2)[0]
        if i == n - 1:
            return x0 * alpha[n]  # h is infinite: the clean prediction itself
        h = np.log(sigmas[i] / sigmas[i + 1])
        d = x0
        if i > 0:
            r = np.log(sigmas[i - 1] / sigmas[i]) / h
            d = (1 + 1 / (2 * r)) * x0 - 1 / (2 * r) * old
        x = sigma[i + 1] / sigma[i] * x - alpha[i + 1] * np.expm1(-h) * d
        old = x0
