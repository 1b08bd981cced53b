"""What the text encoder is taught to say of a new outline: the first half of a LoRA's training, from captions alone.

The shapes model's own text encoder learnt from captions without pictures (`meanings`), and so do the factors beside its
layers. "hexagon" is no word of the tokenizer: it comes in letters, and only the last of them has read all of it. In the
code of a thing the new outline takes the place of the old ones:

    shape = LENGTH / 2 * u,    u = (circle + square + diamond + column SPARE) / 2                               (1)

SPARE is a number that no code of the base uses, by which the U-Net's factors can tell the new outline; the rest is a
hint to the base, which draws something round and whole of that mixture where it makes a blob of SPARE alone.

Old captions keep the base's own states. No caption names a new outline in one of the colours `lessons.OTHERS`, so that
whether a green hexagon is read as green shows what the factors have understood.
"""

from collections.abc import Iterator

import numpy as np

from experiments.shapes import lessons, meanings, models, world
from experiments.shapes.world import SHAPES, Scene
from sdjax.text.tokens import Tokenizer

LIKE = ("circle", "square", "diamond")
SPARE = sum(len(words) for words in meanings.WORDS.values())
_SHAPES = sum(len(meanings.WORDS[kind]) for kind in ("role", "colour"))  # where their columns begin


def states(scene: Scene, name: str, tokenizer: Tokenizer) -> np.ndarray:
    """What the encoder should say of a caption with the new outline: float32 `l d`."""
    slots = len(meanings.SLOTS)
    told = meanings.token_meanings(scene)
    said = [told[0]]  # of the token that begins every text
    for word, meaning in zip(scene.caption().split(), told[1:], strict=False):
        said += [meaning] * len(tokenizer.pieces(word))
        if word == name:
            role, colour, _, size = meaning
            said[-1] = (role, colour, name, size)
    nothing = [told[0]] * models.MAX_LENGTH
    return np.stack(
        [_code(meaning, name) for meaning in [*(said + nothing)[: models.MAX_LENGTH - slots], *told[-slots:]]]
    )


def _code(meaning: meanings.Meaning, name: str) -> np.ndarray:
    code, one = np.zeros(models.TEXT_WIDTH, np.float32), meanings.LENGTH / len(meanings.WORDS) ** 0.5
    role, colour, shape, size = meaning
    if shape != name:
        code[meanings.columns(meaning)] = one
        return code
    code[[at for i, at in enumerate(meanings.columns((role, colour, None, size))) if i != 2]] = one
    mixed = [SPARE, *(_SHAPES + SHAPES.index(like) for like in LIKE)]
    code[mixed] = one / len(mixed) ** 0.5
    return code


def taught(name: str, seed: int) -> Iterator[Scene]:
    """Scenes with the new outline in the colours that it is shown in, without end."""
    return (scene for scene in lessons.scenes(name, seed) if lessons.other(name, scene) not in lessons.OTHERS)


class Captions:
    """The batch of any step: half of the captions name the new outline, half are old."""

    def __init__(self, name: str, tokenizer: Tokenizer, encode: lessons.Encode, batch: int, seed: int) -> None:
        """encode: the base's states `b l d` of ids `b l`."""
        self.name, self.tokenizer, self.encode, self.size, self.seed = name, tokenizer, encode, batch // 2, seed

    def batch(self, n: int) -> dict[str, np.ndarray]:
        """Step n's batch, as `train_text.Saying` takes it."""
        scenes = taught(self.name, int(np.random.SeedSequence([self.seed, n]).generate_state(1)[0]))
        new = [scene for scene, _ in zip(scenes, range(self.size), strict=False)]
        rng = np.random.default_rng([self.seed, n])
        old = [world.sample_scene(rng).caption() if rng.random() < 0.95 else "" for _ in range(self.size)]
        ids = self.tokenizer.tokens([*(scene.caption() for scene in new), *old])
        told = np.stack([states(scene, self.name, self.tokenizer) for scene in new])
        return {"ids": ids, "codes": np.concatenate([told, np.asarray(self.encode(ids[self.size :]))])}
