"""Losses: what a training run makes smaller, each an objective (see `sdjax.train.objective`).

    Denoising        noise a latent, predict the noise: `denoising`, of `levels`, `predictions`, `weightings`, `errors`,
                     `noising` and `timesteps`, one choice a file
    Preserving       the same, and what was known before stays: `preserving`
    Consistency      a student that paints in few steps: `consistency`
    Preference       of two pictures the better one: `preference`
    Reward           a score, by its gradient through the sampler: `reward`
    Autoencoding, AdversarialAutoencoding      a VAE's: `autoencoding`, `adversarial`, with `perceptual`
    Contrast         pictures with their texts, CLIP's and SigLIP's: `contrast`

Those with a ControlNet or an IP-Adapter beside the U-Net stand with what learns, in `methods`.
"""

from sdjax.train.losses.adversarial import AdversarialAutoencoding as AdversarialAutoencoding
from sdjax.train.losses.autoencoding import Autoencoding as Autoencoding
from sdjax.train.losses.consistency import Consistency as Consistency
from sdjax.train.losses.contrast import Contrast as Contrast
from sdjax.train.losses.denoising import Denoising as Denoising
from sdjax.train.losses.errors import Error as Error
from sdjax.train.losses.noising import Noising as Noising
from sdjax.train.losses.preference import Preference as Preference
from sdjax.train.losses.preserving import Preserving as Preserving
from sdjax.train.losses.reward import Reward as Reward
from sdjax.train.losses.timesteps import Timesteps as Timesteps
from sdjax.train.losses.weightings import Weighting as Weighting
