"""A picture held in place: inpainting with any network, by what of the result is known before the run begins.

Where a mask m is 1 the run is free; where it is 0 the clean latents z_0 are known, and with the noise e that the run
started from so is every x_i. At each row of the table

    x_i <- m x_i + (1 - m) (alpha_i z_0 + sigma_i e)        what the network sees                     (1)
    D_i <- m D_i + (1 - m) z_0                              what it is taken to have answered         (2)

(Lugmayr et al. 2022, arXiv:2201.09865, equation 8, with one e for all levels as in diffusers'
pipeline_stable_diffusion_inpaint.py; both equations together as ComfyUI's KSamplerX0Inpaint has them.) The first row
stays as it is: it is noise alone at strength 1, and holds the picture already at any other. At the result alpha = 1
and sigma = 0, so that z_0 comes back to the last bit.

A solver works element by element, so under a mask of zeros and ones nothing that (1) or (2) changes reaches the free
elements but through the network. For a soft mask (2) makes every sampler follow the path of the blended denoiser.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from sdjax.core import short
from sdjax.diffusion.row import append_dims
from sdjax.diffusion.table import Table


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class KnownRegion:
    """What is held of b pictures.

    Attributes:
      original: z_0, [b, h, w, c]. mask: m in [0, 1], [b, h, w, 1]; 1 is free. noise: e, [b, h, w, c], unit Gaussian.
    """

    original: jax.Array
    mask: jax.Array
    noise: jax.Array

    __repr__ = short.fields

    @classmethod
    def nothing(cls, noise: jax.Array) -> "KnownRegion":
        """Nothing is held: every picture is free."""
        # From the host: made on the device, each would be a program to compile.
        zeros, ones = np.zeros(noise.shape, noise.dtype), np.ones((*noise.shape[:-1], 1), noise.dtype)
        return cls(jnp.asarray(zeros), jnp.asarray(ones), noise)

    def latents(self, row: Table, x: jax.Array) -> jax.Array:
        """Equation 1 for the x [b, h, w, c] of a row, the table's first apart."""
        known = append_dims(row.alpha, x) * self.original + append_dims(row.sigma, x) * self.noise
        return jnp.where(row.slot == 0, x, self._blend(x, known))

    def prediction(self, denoised: jax.Array) -> jax.Array:
        """Equation 2 for a row's D, [b, h, w, c]."""
        return self._blend(denoised, self.original)

    def _blend(self, free: jax.Array, known: jax.Array) -> jax.Array:
        return self.mask * free + (1 - self.mask) * known
