"""What the image prompt of the shapes model says of a picture, and the small encoder that sees it.

A picture's tokens are what the shapes model's text encoder says of a caption that tells all there is: its states at the
last positions (`meanings.SLOTS`), one for each place of the picture and one for the ground. So the U-Net's own keys and
values of texts are where those of pictures begin, as in the published adapters. An image encoder in CLIP's format, of
pictures of 64 x 64 pixels, is taught that, and with it the projection of an IP-Adapter of the kind "base"; of no
picture (an embedding of zeros) the projection says what the text encoder says of no caption.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import jax.numpy as jnp
import numpy as np

from experiments.shapes import encode_control, meanings, models, train_pictures, world
from experiments.shapes.world import SIZES, Scene
from sdjax.config import ClipVisionConfig
from sdjax.config.image_prompt import BASE, ImagePromptConfig
from sdjax.images.processor import CLIP_MEAN, CLIP_STD
from sdjax.nn.image_prompt import ImagePromptEncoder
from sdjax.train.state import fresh

ENCODER_JSON: dict[str, Any] = {
    "architectures": ["CLIPVisionModelWithProjection"],
    "hidden_act": "quick_gelu",
    "hidden_size": 96,
    "image_size": encode_control.SMALL,
    "intermediate_size": 384,
    "layer_norm_eps": 1e-05,
    "model_type": "clip_vision_model",
    "num_attention_heads": 4,
    "num_hidden_layers": 4,
    "patch_size": 8,
    "projection_dim": models.TEXT_WIDTH,
}
ENCODER = ClipVisionConfig.from_dict(ENCODER_JSON)
TOKENS = len(meanings.SLOTS)
CONFIG = ImagePromptConfig(BASE, models.TEXT_WIDTH, models.TEXT_WIDTH, TOKENS)
MODULE = ImagePromptEncoder(ENCODER, CONFIG)


def init_params(seed: int) -> dict[str, Any]:
    """Encoder and projection before training."""
    return fresh(MODULE, seed, jnp.zeros((1, ENCODER.image_size, ENCODER.image_size, 3)))


def pixels(small: np.ndarray) -> np.ndarray:
    """Pictures uint8 [b, s, s, 3] of the encoder's size, normalised as CLIP's are: float32."""
    return ((small / 255 - np.array(CLIP_MEAN)) / np.array(CLIP_STD)).astype(np.float32)


def told(scene: Scene, rng: np.random.Generator) -> Scene:
    """The scene with sizes and a background named, drawn where the caption left them open."""
    things = tuple(replace(thing, size=thing.size or SIZES[rng.integers(2)]) for thing in scene.things)
    background, _ = world.arrange(scene, rng)
    return Scene(things, scene.relation, background)


def scenes(
    seed: int, start: int, count: int, pairs: world.Pairs = "seen", one: float = 0.5
) -> list[tuple[Scene, np.ndarray]]:
    """Scenes that tell all, with their pictures at the encoder's size; each depends on (seed, its index) alone.

    one: the part of them that shows one object.
    """
    made = []
    for index in range(start, start + count):
        rng = np.random.default_rng([seed, index])
        scene = told(world.sample_scene(rng, things=1 if rng.random() < one else 2, pairs=pairs), rng)
        made.append((scene, encode_control.smaller(world.render(scene, rng))))
    return made


def targets(captions: Sequence[str]) -> np.ndarray:
    """The tokens that pictures of such captions should become: float16 [b, TOKENS, d]."""
    return train_pictures.contexts(models.tokenizer().tokens(captions))[:, -TOKENS:]


def right(tokens: np.ndarray, pictured: Sequence[Scene]) -> np.ndarray:
    """Whether every place reads as it should, bool [b], of tokens [b, TOKENS, d]."""
    wanted = meanings.read(meanings.codes(list(pictured))[:, -TOKENS:])
    return (meanings.read(tokens) == wanted).all((1, 2))
