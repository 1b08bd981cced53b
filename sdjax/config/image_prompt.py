"""The projection of an image prompt (IP-Adapter, Ye et al. 2023, arXiv:2308.06721), told by the shapes of its tensors.

Its files hold no config. There are three kinds, each by the names of its authors and by those of diffusers:

    base    proj, norm                                    or  image_embeds, norm
    full    proj.0, proj.2, proj.3                        or  ff.net.0.proj, ff.net.2, norm
    plus    latents, proj_in, layers.l.0.norm1 ..         or  latents, proj_in, layers.l.ln0 ..

Sources: tencent-ailab/IP-Adapter ip_adapter/ip_adapter.py and resampler.py; huggingface/diffusers
src/diffusers/loaders/unet.py (`_convert_ip_adapter_image_proj_to_diffusers`).
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from sdjax.core.errors import shown
from sdjax.core.json_fields import ConfigError
from sdjax.core.limits import MOST_LAYERS

BASE, PLUS, FULL = "base", "plus", "full"
DIM_HEAD = 64  # of the resampler's attention, in every program that reads such files
MOST_TOKENS = 4096  # that a picture becomes; the published have 4, 16 and 257
_LAYER = re.compile(r"layers\.(\d{1,9})\..*", re.ASCII)

Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class ResamplerConfig:
    """The resampler of the kind "plus" (Flamingo's perceiver, Alayrac et al. 2022, arXiv:2204.14198).

    Attributes:
      width: of its tokens. depth: its layers. heads, dim_head: of its attention. hidden: the feed-forward's width.
    """

    width: int
    depth: int
    heads: int
    hidden: int
    dim_head: int = DIM_HEAD


@dataclass(frozen=True)
class ImagePromptConfig:
    """What makes tokens of an encoded picture.

    Attributes:
      kind: BASE, PLUS or FULL. image_dim: the width of what an image encoder gives: its embedding for BASE, its states
        before the last layer for the others.
      cross_attention_dim: the tokens' width, which is the text's of the U-Net that it is for.
      tokens: how many a picture becomes; None for FULL: as many as the encoder has.
      resampler: of PLUS.
    """

    kind: str
    image_dim: int
    cross_attention_dim: int
    tokens: int | None
    resampler: ResamplerConfig | None = None

    @property
    def takes_states(self) -> bool:
        """Whether it is made from all of the encoder's tokens, and not from its embedding."""
        return self.kind != BASE

    @classmethod
    def from_shapes(cls, shapes: Shapes, where: str) -> "ImagePromptConfig":
        """From the shapes of a projection's tensors by name, in torch's order of axes; `where` it is, for messages.

        Raises ConfigError, naming the tensor.
        """
        found = _Shapes(shapes, where)
        if "latents" in shapes:
            return _plus(found)
        if found.has("proj.3.weight", "ff.net.0.proj.weight"):
            (width,) = found.of(1, "proj.3.weight", "norm.weight")
            return cls(FULL, found.of(2, "proj.0.weight", "ff.net.0.proj.weight")[1], width, None)
        outputs, inputs = found.of(2, "proj.weight", "image_embeds.weight")
        (width,) = found.of(1, "norm.weight")
        return cls(BASE, inputs, width, found.tokens(found.parts("proj.weight", outputs, "norm.weight", width)))


def _plus(found: "_Shapes") -> ImagePromptConfig:
    one, count, width = found.of(3, "latents")
    if one != 1:
        raise ConfigError(f"{found.where}: latents must be [1, tokens, width], not {[one, count, width]}")
    image_dim = found.of(2, "proj_in.weight")[1]
    inner = found.of(2, "layers.0.0.to_q.weight", "layers.0.attn.to_q.weight")[0]
    hidden = found.of(2, "layers.0.1.1.weight", "layers.0.ff.1.net.0.proj.weight")[0]
    heads = found.parts("to_q", inner, "a head", DIM_HEAD)
    resampler = ResamplerConfig(width, found.depth(), heads, hidden)
    return ImagePromptConfig(PLUS, image_dim, found.of(2, "proj_out.weight")[0], found.tokens(count), resampler)


@dataclass(frozen=True)
class _Shapes:
    """Shapes by name, and where they are. Every method raises ConfigError."""

    shapes: Shapes
    where: str

    def has(self, *names: str) -> bool:
        return any(name in self.shapes for name in names)

    def of(self, rank: int, *names: str) -> tuple[int, ...]:
        """The shape of the first of these names that there is, which has so many axes, none of them empty."""
        name = next((name for name in names if name in self.shapes), None)
        if name is None:
            raise ConfigError(f"{self.where}: {' or '.join(names)} is missing; is this an IP-Adapter?")
        shape = self.shapes[name]
        if len(shape) != rank or 0 in shape:
            raise ConfigError(f"{self.where}: {name} must have {rank} axes, none of them empty, not {list(shape)}")
        return shape

    def parts(self, name: str, whole: int, of: str, part: int) -> int:
        """How often a width goes into another, without rest."""
        if whole % part:
            raise ConfigError(f"{self.where}: {name} is {whole} wide, which is no multiple of {of}'s {part}")
        return whole // part

    def tokens(self, count: int) -> int:
        if count > MOST_TOKENS:
            raise ConfigError(f"{self.where}: a picture would become {count:,} tokens; at most {MOST_TOKENS:,} do")
        return count

    def depth(self) -> int:
        """The number of layers."""
        found = {int(match[1]): name for name in self.shapes if (match := _LAYER.fullmatch(name))}
        last = max(found, default=0)
        if last >= MOST_LAYERS:
            raise ConfigError(f"{self.where}: {shown(found[last])} is of too many layers; at most {MOST_LAYERS} are")
        return last + 1
