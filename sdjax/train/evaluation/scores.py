"""Scores of a picture for its text by a CLIP: how well they fit, and which of several pictures people would choose.

    CLIP score  = 100 max(0, u . v)                                                                           (1)
    PickScore   = e^s u . v,       chance that a is chosen over b, .. = softmax of theirs                      (2)

u, v the embeddings of picture and text, of length 1 (Hessel et al. 2021, arXiv:2104.08718, whose factor is 2.5, here
torchmetrics' 100; Kirstain et al. 2023, arXiv:2305.01569, equation 1: a CLIP-H trained on what people chose, with its
own scale s). Some report u . v itself: MLPerf asks for 0.15.
"""

from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any

import jax
import numpy as np
from PIL import Image

from sdjax.config import ClipTextConfig
from sdjax.nn.clip import ClipTextEncoder
from sdjax.text.tokens import Tokenizer
from sdjax.train.evaluation.features import ClipFeatures
from sdjax.train.methods.clip import Clip


def cosines(
    clip: Clip, tokenizer: Tokenizer, pictures: Iterable[Image.Image], texts: Sequence[str], batch: int = 16
) -> np.ndarray:
    """u . v, float32 `n`, of n pictures and their texts. Raises ValueError where there are not as many of both."""
    if tokenizer.size > clip.text.vocab_size:
        raise ValueError(
            f"the tokenizer has {tokenizer.size} ids and the text encoder {clip.text.vocab_size}: not of one model"
        )
    of_pictures = ClipFeatures(clip.vision, clip.params["image_encoder"], unit=True)(pictures, batch)
    if len(of_pictures) != len(texts):
        raise ValueError(f"{len(of_pictures)} pictures and {len(texts)} texts: each picture has one")
    ids = tokenizer.tokens(list(texts))
    runs = [ids[i : i + batch] for i in range(0, len(ids), batch)]
    runs[-1] = np.pad(runs[-1], ((0, batch - len(runs[-1])), (0, 0)), mode="edge")
    of_texts = np.concatenate([np.asarray(_text(clip.text, clip.params["text_encoder"], one)) for one in runs])
    of_texts = of_texts[: len(texts)]
    return np.sum(of_pictures * of_texts / np.linalg.norm(of_texts, axis=1, keepdims=True), axis=1)


def clip_scores(found: np.ndarray) -> np.ndarray:
    """Equation 1 of `cosines`, 0 to 100."""
    return 100 * np.maximum(found, 0)


def pick_scores(clip: Clip, found: np.ndarray) -> np.ndarray:
    """Equation 2 of `cosines` by the same CLIP."""
    return np.exp(np.float64(clip.params["contrast"]["logit_scale"])) * found


def choices(scores: np.ndarray) -> np.ndarray:
    """Equation 2's chances, `.. k`, of the scores of k pictures for one text."""
    powers = np.exp(scores - scores.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


@partial(jax.jit, static_argnums=0)
def _text(config: ClipTextConfig, params: Any, ids: np.ndarray) -> jax.Array:
    return ClipTextEncoder(config).apply({"params": params}, ids).pooled
