"""TextualInversion: new words for a text encoder, each one or more vectors in place of token embeddings.

Textual inversion (Gal et al. 2022, arXiv:2208.01618) leaves a model as it is and learns vectors that stand where the
embeddings of words stand. Its files hold little else, and are told by their tensors' names and shapes:

    {"<cat>": [d] or [n, d]}                                       diffusers: the only tensor, and its name is the word
    {"emb_params": [n, d]}                                         A1111, kohya
    {"clip_l": [n, 768], "clip_g": [n, 1280]}                      SDXL: a vector for each of its two encoders
    {"text_encoders_0": [n, 768], "text_encoders_1": [n, 1280]}    the same, as diffusers' scripts write it
    {"string_to_param.*": [n, d]}                                  inside a LoRA's file ("bundle_emb.<name>.")

d is the width of a text encoder: 768 of SD 1.x and SDXL's first, 1024 of SD 2.x, 1280 of SDXL's second. How a prompt
names a word is in `text.words`. A1111's pickles (.pt, .bin) are never opened.

Sources: huggingface/diffusers src/diffusers/loaders/textual_inversion.py; AUTOMATIC1111/stable-diffusion-webui
modules/textual_inversion/textual_inversion.py; Comfy-Org/ComfyUI comfy/sd1_clip.py, load_embed.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from sdjax.core.errors import CheckpointError, shown
from sdjax.core.notice import notice
from sdjax.weights.write import Draft, write_file, write_tensors

FIRST, SECOND = "text_encoder", "text_encoder_2"
PAIRS = ({"clip_l": FIRST, "clip_g": SECOND}, {"text_encoders_0": FIRST, "text_encoders_1": SECOND})
BUNDLED = "string_to_param."
UNREAD = ("clip_l_out", "clip_g_out")  # OneTrainer's, of the encoders' output; no program reads them
ENDS = (".weight", ".bias", ".alpha", ".diff", ".scale")  # of a network's tensors, which no word has
MOST_VECTORS = 1000  # of a word; the longest in use have 75
BIG_G = 1280  # the width of SDXL's second encoder, its refiner's only one
FAMILIES = {(768,): "SD 1.x", (1024,): "SD 2.x", (768, 1280): "SDXL", (1280,): "SDXL's refiner"}


@dataclass(frozen=True, eq=False, repr=False)
class TextualInversion:
    """A new word.

    Attributes:
      name: what messages call it. word: what its file calls it, for prompts; a dict of embeddings may say another.
      vectors: float32 `n d` by text encoder, n the same in each.
      tensors, metadata: of the file, as they lie there.
    """

    name: str
    word: str
    vectors: Mapping[str, np.ndarray]
    tensors: Mapping[str, np.ndarray] = field(repr=False)
    metadata: Mapping[str, str] = field(repr=False)

    def __repr__(self) -> str:
        """Of one line: the name, the word, how many vectors, the family."""
        count = f"{len(self)} vector{'' if len(self) == 1 else 's'}"
        return f"TextualInversion({self.name!r}, word {self.word!r}, {count}, {self.family})"

    def __len__(self) -> int:
        """How many vectors, which is how many places in a prompt it takes."""
        return len(next(iter(self.vectors.values())))

    @property
    def widths(self) -> tuple[int, ...]:
        """Of the encoders that it has vectors for, in their order."""
        return tuple(array.shape[1] for _, array in sorted(self.vectors.items()))

    @property
    def family(self) -> str:
        """Of models that it is for, in words, with its widths."""
        listed = " + ".join(map(str, self.widths))
        return f"{FAMILIES[self.widths]} ({listed})" if self.widths in FAMILIES else f"of width {listed}"

    @cached_property
    def sha256(self) -> str:
        """A digest of the vectors, in hex: the same whatever file they came in."""
        found = hashlib.sha256()
        for encoder, array in sorted(self.vectors.items()):
            found.update(f"{encoder} {array.shape} ".encode() + np.ascontiguousarray(array, "<f4").tobytes())
        return found.hexdigest()

    @classmethod
    def claims(cls, shapes: Mapping[str, tuple[int, ...]], metadata: Mapping[str, str]) -> bool:
        """Whether a file of tensors of these names and shapes is a textual inversion."""
        names = {name for name in shapes if name not in UNREAD}
        if not names or not all(len(shapes[name]) in (1, 2) for name in names):
            return False
        if any(names <= set(pair) for pair in PAIRS):
            return True
        (first, *more) = names
        return not more and shapes[first][-1:] != (0,) and not first.endswith(ENDS)

    @classmethod
    def read(
        cls, name: str, tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str], where: str
    ) -> "TextualInversion":
        """From a file's tensors and metadata; `where` it is, for messages.

        Raises CheckpointError for other tensors than the docstring of this file lists, and for broken ones.
        """
        used = {key: array for key, array in tensors.items() if key not in UNREAD}
        if len(used) < len(tensors):
            notice(f"{where}: {', '.join(set(tensors) - set(used))} are left aside; no program reads them")
        pair = next((pair for pair in PAIRS if used and set(used) <= set(pair)), None)
        if pair is None and len(used) != 1:
            listed = ", ".join(shown(key, 60) for key in list(used)[:6]) or "nothing"
            raise CheckpointError(f"{where} is no textual inversion: it should hold one tensor, or clip_l and clip_g, "
                                  f"and holds {listed}")  # fmt: skip
        vectors = {key: _vectors(array, f"{where}: {shown(key, 60)}") for key, array in used.items()}
        if len(counts := {len(array) for array in vectors.values()}) > 1:
            raise CheckpointError(f"{where} has {' and '.join(map(str, sorted(counts)))} vectors for the two encoders, "
                                  "which must be as many")  # fmt: skip
        if pair is not None:
            by_encoder = {encoder: vectors[key] for key, encoder in pair.items() if key in vectors}
            return cls(name, name, by_encoder, dict(tensors), dict(metadata))
        ((key, array),) = vectors.items()
        word = name if key == "emb_params" or key.startswith(BUNDLED) else key
        encoder = SECOND if array.shape[1] == BIG_G else FIRST
        return cls(name, word, {encoder: array}, dict(tensors), dict(metadata))

    def save(self, path: str | Path) -> None:
        """Writes a safetensors file in the format it came in, tensor for tensor; out of a bundle, A1111's own.

        Raises CheckpointError.
        """
        names = {name: "emb_params" if name.startswith(BUNDLED) else name for name in self.tensors}
        drafts = {names[name]: Draft.of(array) for name, array in self.tensors.items()}
        write_file(Path(path), lambda unfinished: write_tensors(drafts, self.metadata, unfinished))

    def check(self, widths: Mapping[str, int], model: str) -> Mapping[str, np.ndarray]:
        """The vectors for each of a model's text encoders, `n d`; widths: d by encoder; `model` is its name.

        Raises ValueError where they are for another family: a word that one of two encoders knows and the other does
        not is no word.
        """
        own = self.vectors
        if len(widths) == 1 and len(own) == 1:  # a file of one tensor says nothing of which encoder
            own = dict(zip(widths, own.values(), strict=True))
        if len(widths) == 1 and len(own) == 2 and SECOND in widths:
            own = {SECOND: own[SECOND]}  # SDXL's refiner has the second encoder alone
        if {name: array.shape[1] for name, array in own.items()} != dict(widths):
            listed = " + ".join(str(width) for _, width in sorted(widths.items()))
            fits = FAMILIES.get(tuple(width for _, width in sorted(widths.items())))
            raise ValueError(
                f"embedding {self.name!r} is {'for ' if self.widths in FAMILIES else ''}{self.family}, and the text "
                f"{'encoders' if len(widths) > 1 else 'encoder'} of {model} {'are' if len(widths) > 1 else 'is'} "
                f"{listed} wide{f': take one for {fits}' if fits else ''}"
            )
        return own


def _vectors(array: np.ndarray, what: str) -> np.ndarray:
    """A tensor as float32 `n d`. Raises CheckpointError."""
    if not jnp.issubdtype(array.dtype, jnp.floating):
        raise CheckpointError(f"{what} is of the dtype {array.dtype}, and vectors are floats")
    if array.ndim not in (1, 2) or 0 in array.shape:
        raise CheckpointError(f"{what} must be one vector [d], or several [n, d], not {list(array.shape)}")
    with np.errstate(over="ignore"):  # told as an error below
        found = np.asarray(array, np.float32).reshape(-1, array.shape[-1])
    if len(found) > MOST_VECTORS:
        raise CheckpointError(f"{what} holds {len(found):,} vectors; no word has more than {MOST_VECTORS:,}")
    if not np.isfinite(found).all():
        raise CheckpointError(f"{what} holds NaN or infinite numbers; its vectors are broken")
    return found
