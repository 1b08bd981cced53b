"""What the network's output means, as two numbers per level.

Whatever a network was trained to predict, the clean latents it implies are linear in its input and its
output:
    D = c_skip x + c_out raw,      x = alpha x0 + sigma e,                                              (1)
    epsilon       raw = e                       c_skip = 1 / alpha,   c_out = -sigma / alpha           (2)
    v_prediction  raw = alpha e - sigma x0      c_skip = alpha,       c_out = -sigma                   (3)
    sample        raw = x0                      c_skip = 0,           c_out = 1                        (4)
(3) is Salimans & Ho 2022 (arXiv:2202.00512), appendix D; the form (1) is EDM's preconditioning,
arXiv:2206.00364, eq. 7. Solvers see D only, so no solver knows a prediction type.
"""

from sdjax.core.errors import unknown
from sdjax.diffusion.noise import Level

PREDICTIONS = ("epsilon", "v_prediction", "sample")


def check_prediction(kind: str) -> str:
    """Return `kind` if it is one of `PREDICTIONS`; otherwise raise ValueError with the nearest name."""
    if kind in PREDICTIONS:
        return kind
    raise ValueError(unknown(f"prediction_type {kind!r} is unknown", kind, PREDICTIONS))


def coefficients(kind: str, level: Level) -> tuple[float, float]:
    """(c_skip, c_out) of equations 2-4.

    Raises:
      ValueError: an epsilon network at a level without any signal, where no clean latents follow from its
        output.
    """
    if kind == "v_prediction":
        return level.alpha, -level.sigma
    if kind == "sample":
        return 0.0, 1.0
    if level.alpha == 0.0:
        raise ValueError(
            f"timestep {level.t:g} holds no signal (zero terminal SNR), where an epsilon prediction says "
            "nothing about the picture; use a v_prediction or sample model, set rescale_betas_zero_snr to "
            "false, or schedule='leading'"
        )
    return 1.0 / level.alpha, -level.sigma / level.alpha
