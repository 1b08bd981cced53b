"""Architecture: what the networks of a model are, for training: no array in it, so it can be a program's static part.

A model that samples is told everything as a request; one that learns is told it as a batch of arrays, and what stays
the same for the whole run is here: which networks there are, what the U-Net takes of the text encoders, the noise
levels it was trained with and what it predicts.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from sdjax.config import ClipTextConfig, UNetConfig, VaeConfig
from sdjax.core.tree import Params
from sdjax.nn.clip import ClipTextEncoder, NewWords
from sdjax.nn.layers import LayerNorm

PREDICTIONS = ("epsilon", "v_prediction", "sample", "flow")


@dataclass(frozen=True)
class TextTower:
    """A text encoder, and which of its hidden states the U-Net attends to.

    Attributes:
      component: its name in the checkpoint, "text_encoder" or "text_encoder_2".
      layer: counted from the end, 1 the last. final_norm: whether the encoder's final norm comes after it.
    """

    component: str
    config: ClipTextConfig
    layer: int = 1
    final_norm: bool = True

    def __call__(
        self, params: Params, ids: jax.Array, new: NewWords | None = None, dtype: DTypeLike = jnp.float32
    ) -> tuple[jax.Array, jax.Array]:
        """Token ids `b l` -> (hidden states `b l d`, pooled `b d`), float32. params: of this encoder."""
        out = ClipTextEncoder(self.config, dtype).apply({"params": params}, ids, new)
        states = out.hidden_states[-self.layer]
        if self.final_norm:
            norm = LayerNorm(self.config.layer_norm_eps, dtype)
            states = norm.apply({"params": params["text_model"]["final_layer_norm"]}, states)
        return states.astype(jnp.float32), out.pooled.astype(jnp.float32)


class Described(Protocol):
    """What is asked of a model's description: `sd.networks.spec` has it."""

    @property
    def unet(self) -> UNetConfig: ...
    @property
    def vae(self) -> VaeConfig: ...
    @property
    def encoders(self) -> Mapping[str, Any]: ...
    @property
    def scheduler(self) -> Mapping[str, Any]: ...
    @property
    def family(self) -> Any: ...
    @property
    def alphas_cumprod(self) -> np.ndarray: ...
    @property
    def zeros_for_empty_negative(self) -> bool: ...


@dataclass(frozen=True)
class Architecture:
    """What the networks of a model are, and what its U-Net was trained to predict.

    Attributes:
      texts: the text encoders; the U-Net attends to their states side by side.
      alphas_cumprod: alpha_t^2 of the T training levels, in float64, after any rescaling to zero terminal SNR.
      prediction: what the U-Net answers, one of PREDICTIONS.
      zeros_for_empty: whether a caption left out is zeros (SDXL) or the empty text (Stable Diffusion 1 and 2).
      dtype: what the networks compute in; parameters, norms, softmax, losses are float32 whatever it is.
      remat: whether every resnet and transformer block of the U-Net is computed again in the backward pass, in place of
        keeping what it held: about a ninth of the memory for a third more time.
    """

    unet: UNetConfig
    vae: VaeConfig
    texts: tuple[TextTower, ...]
    alphas_cumprod: tuple[float, ...]
    prediction: str = "epsilon"
    zeros_for_empty: bool = False
    dtype: Any = jnp.float32
    remat: bool = False

    def __post_init__(self) -> None:
        if self.prediction not in PREDICTIONS:
            raise ValueError(f"prediction {self.prediction!r} is unknown; known: {', '.join(PREDICTIONS)}")

    @classmethod
    def of(cls, spec: Described, dtype: DTypeLike = jnp.float32, remat: bool = False) -> "Architecture":
        """What a loaded model is: `Architecture.of(sd.networks.spec)`."""
        family = spec.family
        texts = tuple(
            TextTower(name, encoder.config, family.layer, family.final_norm) for name, encoder in spec.encoders.items()
        )
        prediction = str(spec.scheduler.get("prediction_type") or "epsilon")
        levels = tuple(map(float, spec.alphas_cumprod))
        return cls(spec.unet, spec.vae, texts, levels, prediction, spec.zeros_for_empty_negative, dtype, remat)

    @property
    def takes_pooled(self) -> bool:
        """Whether the U-Net is told the last encoder's pooled state and sizes (SDXL)."""
        return self.unet.addition_embed_type == "text_time"
