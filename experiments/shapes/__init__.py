"""A small world of coloured shapes: its pictures and captions, its scorer, and a model's training on it.

`sample_scene(rng)` is a random scene, `str(scene)` its caption, `render(scene, rng)` a picture of it, and
`score(picture, scene).ok` says from the pixels alone whether any picture shows it.
"""

import warnings

from experiments.shapes.score import Verdict, score, wilson
from experiments.shapes.world import (
    COLOURS,
    RELATIONS,
    SHAPES,
    SIZES,
    UNSEEN,
    Scene,
    Thing,
    parse_caption,
    render,
    sample_scene,
)

__all__ = [
    "COLOURS", "RELATIONS", "SHAPES", "SIZES", "UNSEEN", "Scene", "Thing", "Verdict", "parse_caption", "render",
    "sample_scene", "score", "wilson",
]  # fmt: skip

# `python -m experiments.shapes.score` finds that module imported here already, and is none the worse for it.
warnings.filterwarnings("ignore", "'experiments.shapes.score' found in sys.modules", RuntimeWarning)
