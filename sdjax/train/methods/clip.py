"""Both of CLIP's encoders learn, or one of them, and with them the scale of their logits (`contrast`).

What is written is a folder that transformers' `CLIPModel.from_pretrained` opens, as `read_clip` does: both encoders'
tensors in one file, "text_model.*", "vision_model.*", the two projections and "logit_scale".
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sdjax.config import ClipTextConfig, ClipVisionConfig
from sdjax.core.errors import unknown
from sdjax.core.json_fields import ConfigError
from sdjax.core.tree import Params
from sdjax.nn.shapes import expected_params
from sdjax.train.losses.contrast import FORMS, LARGEST, START
from sdjax.weights.load import read_component, read_json
from sdjax.weights.save import default_layout, save_component

PARTS = {"both": ("text_encoder", "image_encoder"), "text": ("text_encoder",), "image": ("image_encoder",)}
PROJECTED = {"architectures": ["CLIPTextModelWithProjection"]}


class Clip(NamedTuple):
    """A CLIP in hand: its configs, and its parameters by component, "text_encoder", "image_encoder", "contrast"."""

    text: ClipTextConfig
    vision: ClipVisionConfig
    params: dict[str, Params]


@dataclass(frozen=True)
class ClipTraining:
    """See above. part: one of PARTS; the scale learns in any case. form: of `contrast`. Raises ValueError."""

    text: ClipTextConfig
    vision: ClipVisionConfig
    part: str = "both"
    form: str = "clip"

    def __post_init__(self) -> None:
        if self.part not in PARTS:
            raise ValueError(unknown(f"part {self.part!r} of a CLIP is unknown", self.part, PARTS))
        if self.form not in FORMS:
            raise ValueError(unknown(f"contrastive loss {self.form!r} is unknown", self.form, FORMS))

    def start(self, params: Mapping[str, Any], key: jax.Array) -> Params:
        """What learns, float32; `contrast` begins as its form does if the parameters have none. Raises ValueError."""
        del key
        if missing := [name for name in PARTS["both"] if name not in params]:
            raise ValueError(f"a CLIP has two encoders, and the parameters have no {' and no '.join(missing)}")
        own = {name: params[name] for name in PARTS[self.part]}
        own["contrast"] = {**START[self.form], **params.get("contrast", {})}
        return jax.tree.map(lambda leaf: jnp.array(leaf, jnp.float32), own)

    def join(self, trainable: Params, params: Mapping[str, Any]) -> Mapping[str, Any]:
        """See `method`."""
        return {**params, **trainable}

    def write(self, trainable: Params, params: Mapping[str, Any], folder: Path, metadata: Mapping[str, str]) -> Path:
        """Writes config.json and weights, float32, into `folder`/clip and returns that. Raises CheckpointError.

        metadata: has no place in such a folder. Nor has a SigLIP's bias: transformers' CLIP has no such number.
        """
        joined = jax.tree.map(lambda leaf: np.asarray(leaf, np.float32), dict(self.join(trainable, params)))
        scale = joined["contrast"]["logit_scale"]
        scale = np.clip(scale, 0, np.float32(LARGEST)) if self.form == "clip" else scale
        tree = {**joined["text_encoder"], **joined["image_encoder"], "logit_scale": scale}
        save_component(folder / "clip", tree, default_layout(tree, clip_json(self.text, self.vision)))
        return folder / "clip"


def read_clip(folder: str | Path) -> Clip:
    """A CLIP in a folder of transformers' CLIPModel (as PickScore's), float32. Raises CheckpointError, ConfigError."""
    folder = Path(folder)
    config = read_json(folder / "config.json")
    of_text, of_vision = config.get("text_config"), config.get("vision_config")
    if not isinstance(of_text, dict) or not isinstance(of_vision, dict):
        raise ConfigError(f"{folder}/config.json has no text_config and vision_config: it is no CLIPModel's")
    width = {"projection_dim": config.get("projection_dim", 512)}
    text = ClipTextConfig.from_dict({**of_text, **width, **PROJECTED})
    vision = ClipVisionConfig.from_dict({**of_vision, **width})
    expected = expected_params({"text_encoder": text, "image_encoder": vision})
    scale = {"logit_scale": jax.ShapeDtypeStruct((), jnp.float32)}
    tree, _ = read_component(folder, {**expected["text_encoder"], **expected["image_encoder"], **scale}, jnp.float32)
    params = {name: {key: tree[key] for key in expected[name]} for name in expected}
    return Clip(text, vision, params | {"contrast": {"logit_scale": tree["logit_scale"]}})


def clip_json(text: ClipTextConfig, vision: ClipVisionConfig) -> dict[str, Any]:
    """What config.json says of such a CLIP, as transformers' CLIPModel has it."""
    sizes = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    shared = (*sizes, "hidden_act", "layer_norm_eps")
    of_text = {name: getattr(text, name) for name in (*shared, "vocab_size", "max_position_embeddings", "eos_token_id")}
    of_vision = {name: getattr(vision, name) for name in (*shared, "image_size", "patch_size")}
    width = {"projection_dim": vision.projection_dim}
    return {
        "architectures": ["CLIPModel"],
        "model_type": "clip",
        **width,
        "text_config": {"model_type": "clip_text_model", "bos_token_id": None, **of_text, **width},
        "vision_config": {"model_type": "clip_vision_model", **of_vision, **width},
    }
