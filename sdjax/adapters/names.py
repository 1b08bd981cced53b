"""The dialects in which adapters' files name modules, and what each calls a module's tensors.

A tensor's name is three things in a row:

    (1)   lora_unet_  down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q  .lora_down.weight       kohya
    (2)   unet.       down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q  .lora_A.weight          PEFT
          the part    the module                                                  what of the module

Underscores cannot be undone by rules ("to_q" is one word, "attn1_to_q" two), so that a module is known by its name
with underscores in every dialect, and a model's own parameters tell which one it is (`table`). What a tensor is of its
module is told in kohya's words, as the kinds read them (`kinds.SUFFIXES`); other dialects have other words for the
same: PEFT's lora_A is "down", lora_B is "up".

The names are those that these programs write: kohya-ss/sd-scripts (networks/lora.py), KohakuBlueleaf/LyCORIS, diffusers
(loaders/lora_conversion_utils.py), huggingface/peft, Comfy (comfy/lora.py), Nerogar/OneTrainer. A DIALECT is one line.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from sdjax.adapters.kinds import SUFFIXES
from sdjax.adapters.module_names import Module, blocks, is_text

# Parts of a model: "te" is its only text encoder, "te1" and "te2" those of the two that a pair is made of.
UNET, TE, TE1, TE2 = "unet", "te", "te1", "te2"
DOWN, UP, MAGNITUDE = "lora_down.weight", "lora_up.weight", "lora_magnitude_vector"

# What ends a name, where it is none of kohya's words, in those.
_PEFT = {
    "lora_A.weight": DOWN, "lora_B.weight": UP, "lora_B.bias": "lora_up.bias",
    MAGNITUDE: MAGNITUDE, f"{MAGNITUDE}.weight": MAGNITUDE,
}  # fmt: skip
_DIFFUSERS = {
    "lora.down.weight": DOWN, "lora.up.weight": UP, "lora_linear_layer.down.weight": DOWN,
    "lora_linear_layer.up.weight": UP,
}  # fmt: skip
_KOHYA_WORDS = {suffix: suffix for suffix in SUFFIXES if suffix not in ("weight", "bias")}
_LOOSE = _KOHYA_WORDS | _DIFFUSERS | _PEFT
_STRICT = {suffix: word for suffix, word in _LOOSE.items() if suffix not in {**_DIFFUSERS, DOWN: 0, UP: 0}}
_NAMED = re.compile(r"(.*\.(?:lora_[AB]|lora_magnitude_vector))\.(?!weight$|bias$)([^.]{1,100})(\.(?:weight|bias))?")


class Spelled(NamedTuple):
    """What a tensor's name says: which module, and what of it, in kohya's words."""

    module: Module
    suffix: str


@dataclass(frozen=True)
class Dialect:
    """A way to name tensors.

    Attributes:
      name: of the dialect. prefixes: what stands before a module's name, by part, the longest of those that begin
        alike first; "" of a part that is told by the module's name alone.
      dotted: whether the words of a path are joined by dots, and not by underscores.
      blocks: the vocabulary of the U-Net's modules, "diffusers" or "sgm".
      words: what it calls a tensor, by kohya's word for it where that is another.
      strict: whether it has no other words than its own for what they say.
    """

    name: str
    prefixes: Mapping[str, str]
    dotted: bool = False
    blocks: str = "diffusers"
    words: Mapping[str, str] = field(default_factory=dict)
    strict: bool = False

    def read(self, name: str) -> Spelled | None:
        """What a tensor's name says, or None where it is none of this dialect's."""
        for part, prefix in self.prefixes.items():
            if name.startswith(prefix):
                path, suffix = self._split(name[len(prefix) :])
                module = path.replace(".", "_") if self.dotted else path
                if suffix and self._has(part, module):
                    return Spelled(Module(part, module), suffix)
        return None

    def write(self, part: str, path: str, suffix: str) -> str:
        """The name of a tensor; path: of its module, with dots. Raises KeyError for a part that it has no prefix of."""
        module = path if self.dotted else path.replace(".", "_")
        return f"{self.prefixes[part]}{module}.{self.words.get(suffix, suffix)}"

    def _split(self, rest: str) -> tuple[str, str]:
        """The module's path and what of it, in kohya's words; ("", "") where that is nothing that is known."""
        if not self.dotted:
            path, _, suffix = rest.partition(".")
            if suffix in _LOOSE or "." not in suffix:
                return path, _LOOSE.get(suffix, suffix)
        known, words = _STRICT if self.strict else _LOOSE, rest.split(".")
        for count in range(min(3, len(words) - 1), 0, -1):
            if found := known.get(".".join(words[-count:])):
                return (".".join if self.dotted else "_".join)(words[:-count]), found
        return ("", "") if self.dotted else (path, suffix)

    def _has(self, part: str, module: str) -> bool:
        """Whether a part's module is called so here; behind a prefix, one that no model has is too."""
        if part != UNET:
            return is_text(module) or list(self.prefixes.values()).count(self.prefixes[part]) == 1
        own = blocks(module)
        return own == self.blocks or (own is None and self.prefixes[part] != "" and not is_text(module))


class Named(Dialect):
    """PEFT's names with that of the adapter among them, as a raw dump of its modules has: `lora_A.default.weight`."""

    def read(self, name: str) -> Spelled | None:
        """Likewise."""
        found = _NAMED.fullmatch(name)
        return found and super().read(f"{found[1]}{found[3] or ''}")


class Processors(Dialect):
    """diffusers' names up to 0.21, where adapters belonged to attention's processors: `attn1.processor.to_q_lora`."""

    def read(self, name: str) -> Spelled | None:
        """Likewise."""
        new = re.sub(r"\.(to_q|to_k|to_v|to_out)_lora\.(down|up)\.weight$", r".\1.lora.\2.weight", name)
        if new == name:
            return None
        new = new.replace(".processor.", ".").replace(".to_out.lora.", ".to_out.0.lora.")
        if ".self_attn." in new:
            new = re.sub(r"\.to_([qkv])\.lora\.", r".\1_proj.lora.", new).replace(".to_out.0.", ".out_proj.")
        return super().read(new)

    def write(self, part: str, path: str, suffix: str) -> str:
        """Likewise; of attention's four projections alone. Raises KeyError for other modules."""
        site, _, word = path.removesuffix(".0").rpartition(".")
        word = {"q_proj": "to_q", "k_proj": "to_k", "v_proj": "to_v", "out_proj": "to_out"}.get(word, word)
        if word not in ("to_q", "to_k", "to_v", "to_out"):
            raise KeyError(path)
        processor = "processor." if part == UNET else ""
        return f"{self.prefixes[part]}{site}.{processor}{word}_lora.{'down' if suffix == DOWN else 'up'}.weight"


_KOHYA = {TE1: "lora_te1_", TE2: "lora_te2_", TE: "lora_te_", UNET: "lora_unet_"}
_PIPELINE = {TE2: "text_encoder_2.", TE1: "text_encoder.", UNET: "unet."}
_CLIPS = {TE2: "clip_g.", TE1: "clip_l.", UNET: "unet."}
_COMFY = {
    TE2: "text_encoders.clip_g.transformer.",
    TE1: "text_encoders.clip_l.transformer.",
    TE: "text_encoders.clip_h.transformer.",
    UNET: "diffusion_model.",
}
PEFT_PREFIX = "base_model.model."  # of PEFT's own folders
_BASE, _BARE = {UNET: PEFT_PREFIX, TE: PEFT_PREFIX}, {UNET: "", TE: ""}
_TO_NAMED = {DOWN: "lora_A.default.weight", UP: "lora_B.default.weight"}
_TO_PEFT = {DOWN: "lora_A.weight", UP: "lora_B.weight", "lora_up.bias": "lora_B.bias"}
_TO_DIFFUSERS = {DOWN: "lora.down.weight", UP: "lora.up.weight"}

# The order matters: a file is of the first that reads all of it, else of the one that reads most.
DIALECTS: Mapping[str, Dialect] = {
    one.name: one
    for one in (
        Dialect("kohya", _KOHYA),
        Dialect("kohya-sgm", _KOHYA, blocks="sgm"),
        Dialect("oft", {UNET: "oft_unet_"}, blocks="sgm"),
        Dialect("oft-diffusers", {UNET: "oft_unet_"}),
        Dialect("lycoris", {UNET: "lycoris_", TE: "lycoris_"}),
        Processors("diffusers-attn", _PIPELINE, dotted=True),
        Processors("diffusers-attn-bare", {UNET: ""}, dotted=True),
        Dialect("peft", _PIPELINE, dotted=True, words=_TO_PEFT, strict=True),
        Dialect("peft-model", _BASE, dotted=True, words=_TO_PEFT, strict=True),
        Dialect("peft-bare", _BARE, dotted=True, words=_TO_PEFT, strict=True),
        Named("peft-named", _PIPELINE, dotted=True, words=_TO_NAMED, strict=True),
        Named("peft-named-model", _BASE, dotted=True, words=_TO_NAMED, strict=True),
        Named("peft-named-bare", _BARE, dotted=True, words=_TO_NAMED, strict=True),
        Dialect("diffusers", _PIPELINE, dotted=True, words=_TO_DIFFUSERS),
        Dialect("comfy", _COMFY, dotted=True, blocks="sgm"),
        Dialect("comfy-diffusers", _COMFY, dotted=True),
        Dialect("omi", _CLIPS, dotted=True, blocks="sgm"),
    )
}
