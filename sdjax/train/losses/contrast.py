"""Contrast: pictures and their texts brought together, all others of the batch apart; how CLIP and SigLIP learn.

With u_i and v_j of length 1, the embeddings of picture i and of text j of a batch of n pairs:

    CLIP      z_ij = e^s u_i . v_j
              loss = -1/2n sum_i [log softmax_j(z_ij) + log softmax_j(z_ji)]  at j = i                            (1)
    SigLIP    z_ij = e^s u_i . v_j + b
              loss = -1/n sum_ij log sigmoid(y_ij z_ij),     y = 1 at j = i, else -1                              (2)

(Radford et al. 2021, arXiv:2103.00020, figure 3; Zhai et al. 2023, arXiv:2303.15343, equation 1.) s and b learn too: s
from log(1/0.07) and within [0, log 100] in (1), from log 10 in (2), b from -10. At a bound s stands still while its
gradient points outwards, and moves on when that turns (`bounded`): a clamp after each step does the same, and a clamp
inside the loss would hold s there for ever, without a gradient. No weight decay belongs on s and b.

Every pair's loss is made of all n: such a batch cannot be cut in pieces. So `draw` adds which texts are each picture's
own, `pairs` `b n`, and `loss` refuses a piece, whose pairs are not square. On many devices the batch is one array, and
XLA gathers the embeddings that (1) needs from all of them, with their gradients.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sdjax.config import ClipTextConfig, ClipVisionConfig
from sdjax.core.errors import unknown
from sdjax.images.processor import CLIP_MEAN, CLIP_STD
from sdjax.nn.clip import ClipTextEncoder
from sdjax.nn.clip_vision import ClipVisionEncoder
from sdjax.train.objective import Batch, Metrics, size

FORMS = ("clip", "siglip")
START = {"clip": {"logit_scale": np.log(1 / 0.07)}, "siglip": {"logit_scale": np.log(10), "logit_bias": -10.0}}
LARGEST = float(np.log(100))


@dataclass(frozen=True)
class Contrast:
    """Equation 1 or 2, for batches with `pixels` of the image encoder's size and `ids` of the "text_encoder".

    Pixels are in [-1, 1], as everywhere in training; CLIP's mean and deviation are applied here. params:
    "text_encoder", "image_encoder" and "contrast", which has the scalars "logit_scale", s, and for SigLIP "logit_bias",
    b. Metrics: "right", the part of the pictures whose own text is the nearest; "scale", e^s. Raises ValueError for an
    unknown form, or encoders that do not fit each other.
    """

    text: ClipTextConfig
    vision: ClipVisionConfig
    form: str = "clip"

    def __post_init__(self) -> None:
        if self.form not in FORMS:
            raise ValueError(unknown(f"contrastive loss {self.form!r} is unknown", self.form, FORMS))
        if self.text.projection_dim != self.vision.projection_dim:
            raise ValueError(
                f"texts are projected to {self.text.projection_dim} numbers and pictures to "
                f"{self.vision.projection_dim}: these two encoders are of different models"
            )

    def draw(self, batch: Batch, key: jax.Array) -> Batch:
        """Adds `pairs`, bool `b b`; nothing is random."""
        del key
        return {"pairs": jnp.eye(size(batch), dtype=bool)} | dict(batch)

    def loss(self, params: Mapping[str, Any], batch: Batch) -> tuple[jax.Array, Metrics]:
        """See `objective`. Raises ValueError for a piece of a batch."""
        pairs = batch["pairs"]
        if pairs.shape[0] != pairs.shape[1]:
            raise ValueError(
                f"a contrastive loss is of a whole batch, and this is a piece of {pairs.shape[0]} of {pairs.shape[1]} "
                "pairs: accumulate nothing; take a smaller batch, or SigLIP's form, which is good with small ones"
            )
        pictures, texts = self.embedded(params, batch)
        valid = batch["valid"].astype(bool) if "valid" in batch else jnp.ones(len(pictures), bool)
        own = params["contrast"]
        if self.form == "clip":
            value = clip_loss(pictures, texts, own["logit_scale"], valid)
        else:
            value = siglip_loss(pictures, texts, own["logit_scale"], valid, own["logit_bias"])
        nearest = jnp.argmax(jnp.where(valid, pictures @ texts.T, -jnp.inf), axis=1) == jnp.arange(len(pictures))
        count = jnp.sum(valid.astype(jnp.float32))
        right = jnp.sum(nearest & valid) / jnp.maximum(count, 1)
        return value, {"loss": value, "count": count, "right": right, "scale": jnp.exp(own["logit_scale"])}

    def __call__(self, params: Mapping[str, Any], batch: Batch, key: jax.Array) -> tuple[jax.Array, Metrics]:
        """See `objective`."""
        return self.loss(params, self.draw(batch, key))

    def embedded(self, params: Mapping[str, Any], batch: Batch) -> tuple[jax.Array, jax.Array]:
        """u `b d` and v `b d`, float32. Raises ValueError for pictures of another size."""
        side, pixels = self.vision.image_size, batch["pixels"]
        if pixels.shape[1:3] != (side, side):
            raise ValueError(f"this image encoder sees {side} x {side} pixels, and the batch has {list(pixels.shape)}")
        normal = (0.5 * (pixels + 1) - jnp.asarray(CLIP_MEAN)) / jnp.asarray(CLIP_STD)
        pictures = ClipVisionEncoder(self.vision).apply({"params": params["image_encoder"]}, normal)
        texts = ClipTextEncoder(self.text).apply({"params": params["text_encoder"]}, batch["ids"]["text_encoder"])
        return unit(pictures), unit(texts.pooled)


def clip_loss(pictures: jax.Array, texts: jax.Array, scale: jax.Array, valid: jax.Array) -> jax.Array:
    """Equation 1, of u `b d`, v `b d`, s, and which pairs are some at all, bool `b`."""
    logits = jnp.exp(bounded(scale, 0.0, LARGEST)) * _products(pictures, texts)
    count = jnp.maximum(jnp.sum(valid), 1)

    def rows(logits: jax.Array) -> jax.Array:
        right = jnp.diagonal(jax.nn.log_softmax(jnp.where(valid, logits, -jnp.inf), axis=1))
        return -jnp.sum(jnp.where(valid, right, 0.0)) / count

    return 0.5 * (rows(logits) + rows(logits.T))


def siglip_loss(
    pictures: jax.Array, texts: jax.Array, scale: jax.Array, valid: jax.Array, bias: jax.Array
) -> jax.Array:
    """Equation 2, as `clip_loss`; bias: b."""
    logits = jnp.exp(scale) * _products(pictures, texts) + bias
    signs = 2 * jnp.eye(len(logits)) - 1
    both = valid[:, None] & valid[None]
    return -jnp.sum(jnp.where(both, jax.nn.log_sigmoid(signs * logits), 0.0)) / jnp.maximum(jnp.sum(valid), 1)


def unit(x: jax.Array) -> jax.Array:
    """`b d`, each of length 1, as torch's `normalize` has it."""
    return x / jnp.maximum(jnp.linalg.norm(x, axis=-1, keepdims=True), 1e-12)


@jax.custom_vjp
def bounded(s: jax.Array, low: float, high: float) -> jax.Array:
    """s within [low, high]; beyond a bound there is a gradient only if a step against it leads back."""
    return jnp.clip(s, low, high)


def _forward(s: jax.Array, low: float, high: float) -> tuple[jax.Array, tuple[jax.Array, float, float]]:
    return jnp.clip(s, low, high), (s, low, high)


def _backward(kept: tuple[jax.Array, float, float], gradient: jax.Array) -> tuple[jax.Array, None, None]:
    s, low, high = kept
    out = ((s >= high) & (gradient < 0)) | ((s <= low) & (gradient > 0))
    return jnp.where(out, 0.0, gradient), None, None


bounded.defvjp(_forward, _backward)


def _products(pictures: jax.Array, texts: jax.Array) -> jax.Array:
    return jnp.dot(pictures, texts.T, precision=jax.lax.Precision.HIGHEST)
