"""Which image encoder an IP-Adapter looks through, and where it is: none of its files says.

The published repository (h94/IP-Adapter) keeps two, each in a folder with config.json and model.safetensors:

    models/image_encoder         OpenCLIP's ViT-H/14: all adapters of SD 1.5 but one, and those of XL called *_vit-h
    sdxl_models/image_encoder    OpenCLIP's ViT-bigG/14: ip-adapter_sdxl, ip-adapter_sd15_vit-G

So one is looked for beside the adapter's own file and in the other of these two folders, and the first that gives
vectors of the adapter's width is it. What is given by hand must give such vectors too.
"""

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath, PurePosixPath
from typing import Any, NamedTuple

from sdjax.adapters.locate import Located, above, is_inside
from sdjax.config import ClipVisionConfig
from sdjax.config.image_prompt import ImagePromptConfig
from sdjax.core.errors import CheckpointError, listing, shown
from sdjax.core.json_fields import ConfigError
from sdjax.core.short import short
from sdjax.core.tree import Params
from sdjax.nn.shapes import expected_params
from sdjax.weights.files import choose_weights, component_headers, read_json, shards_of
from sdjax.weights.hub import HUB_ID, fetch
from sdjax.weights.links import home_of, within
from sdjax.weights.load import read_component
from sdjax.weights.tensors import in_the_file

FOLDER, CONFIG = "image_encoder", "config.json"
PUBLISHED = ("models", "sdxl_models")  # the folders of h94/IP-Adapter that hold adapters, and an encoder each
KNOWN = {(1280, 1024): "ViT-H/14", (1664, 1280): "ViT-bigG/14", (1024, 768): "ViT-L/14"}  # by states and embedding


class ImageEncoder(NamedTuple):
    """An image encoder: its config, its parameters, and what `images.processor.Processor.from_dict` reads for it."""

    config: ClipVisionConfig
    params: Params
    preprocessor: dict[str, Any]


@dataclass(frozen=True)
class EncoderFolder:
    """An image encoder's folder, whose config has been read and whose weights are there."""

    path: Path
    config: ClipVisionConfig

    def read(self) -> ImageEncoder:
        """The encoder; its parameters stay in the file. Raises CheckpointError.

        A picture's shorter side becomes as long as the encoder's, and the middle is cut out. Source: diffusers'
        loaders/ip_adapter.py, which makes a CLIPImageProcessor of these two sizes whatever the folder says.
        """
        expected = expected_params({FOLDER: self.config})[FOLDER]
        params, _ = read_component(self.path, expected, place=in_the_file)
        side = self.config.image_size
        sizes = {"size": {"shortest_edge": side}, "crop_size": {"height": side, "width": side}}
        return ImageEncoder(self.config, params, {"image_processor_type": "CLIPImageProcessor", **sizes})


def given(source: str | os.PathLike[str], config: ImagePromptConfig, name: str) -> EncoderFolder:
    """The encoder that is given by hand for the adapter `name`: a folder, or `owner/name/folder` on the Hub.

    Raises CheckpointError, also for one that gives vectors of another width than the adapter takes.
    """
    if not isinstance(source, str | os.PathLike) or not isinstance(text := os.fspath(source), str) or "\0" in text:
        raise CheckpointError(f"image_encoder must be a folder or a Hub id, not {short(source)}")
    folder = Path(os.path.expanduser(text))
    if text and os.path.isdir(folder):
        return _fitting([folder], config, name)
    owner, _, rest = text.partition("/")
    repository, _, below = rest.partition("/")
    if os.path.lexists(folder) or not HUB_ID.fullmatch(f"{owner}/{repository}") or (below and not is_inside(below)):
        raise CheckpointError(
            f"image_encoder: {shown(text) or 'an empty text'} is neither a folder here, with {CONFIG} and "
            "model.safetensors, nor a Hub id (owner/name, owner/name/folder)"
        )
    return _from_hub(f"{owner}/{repository}", [below], "main", config, name)


def beside(located: Located, revision: str, config: ImagePromptConfig, name: str) -> EncoderFolder:
    """The encoder that belongs to an adapter's file, by where it lies. Raises CheckpointError."""
    if located.hub is not None:
        folders = [str(one) for one in _candidates(PurePosixPath(located.hub.file).parent)]
        return _from_hub(located.hub.repository, folders, revision, config, name)
    candidates = [Path(one) for one in _candidates(Path(os.path.abspath(located.path)).parent)]
    there = [folder for folder in candidates if folder.is_dir()]
    if not there:
        raise CheckpointError(
            f"{name} {_needs(config)}, and there is none at {' or '.join(map(str, candidates))}; {_GIVE}"
        )
    return _fitting(there, config, name)


_GIVE = (
    "give its folder as image_encoder=, a path or a Hub id as h94/IP-Adapter/models/image_encoder (ViT-H/14), "
    "h94/IP-Adapter/sdxl_models/image_encoder (ViT-bigG/14)"
)


def _candidates(folder: PurePath) -> list[PurePath]:
    """Where an encoder may be, of the folder that the adapter's file is in."""
    others = [other for other in PUBLISHED if folder.name in PUBLISHED and other != folder.name]
    return [folder / FOLDER, *(folder.parent / other / FOLDER for other in others)]


def _from_hub(
    repository: str, folders: Sequence[str], revision: str, config: ImagePromptConfig, name: str
) -> EncoderFolder:
    """The first of a repository's folders that fits; no weights are fetched but its own."""
    configs = [str(PurePosixPath(folder) / CONFIG) for folder in folders]

    def wanted(held: Iterable[str], where: str) -> list[str]:
        found = sorted(set(configs) & set(held))
        if not found:
            raise CheckpointError(f"{where} holds no {' or '.join(configs)}: {name} {_needs(config)}; {_GIVE}")
        return found

    def snapshot(marker: Path, _: str) -> Path:
        return above(marker, configs[0])  # all lie equally deep

    root = fetch(repository, revision, wanted, configs, snapshot)
    there = [root / folder for folder in folders if (root / folder / CONFIG).is_file()]
    chosen = _choose(there, config, name)[0].relative_to(root).as_posix()

    def weights(held: Iterable[str], where: str) -> list[str]:
        own = {PurePosixPath(one).name: one for one in held if PurePosixPath(one).parent == PurePosixPath(chosen)}
        file = choose_weights(own, None, f"{where}/{chosen}")
        return [str(PurePosixPath(chosen) / CONFIG), *(own[one] for one in (file, *shards_of(file, own)))]

    fetch(repository, revision, weights, [str(PurePosixPath(chosen) / CONFIG)], snapshot)
    return _fitting([root / chosen], config, name)


def _fitting(folders: Sequence[Path], config: ImagePromptConfig, name: str) -> EncoderFolder:
    """The first folder that fits, its weights' headers looked through."""
    folder, vision = _choose(folders, config, name)
    component_headers(folder, None, home_of(folder))
    return EncoderFolder(folder, vision)


def _choose(folders: Sequence[Path], config: ImagePromptConfig, name: str) -> tuple[Path, ClipVisionConfig]:
    """The first folder that gives vectors of the adapter's width, and its config."""
    found = [(folder, _config(folder)) for folder in folders]
    for folder, vision in found:
        if _width(vision, config) == config.image_dim:
            return folder, vision
    told = [f"{folder} is {_called(vision)} and gives {_width(vision, config)}" for folder, vision in found]
    raise CheckpointError(f"{name} {_needs(config)}, and none such is there:{listing(told)}\n  {_GIVE}")


def _config(folder: Path) -> ClipVisionConfig:
    try:
        return ClipVisionConfig.from_dict(read_json(within(folder / CONFIG, home_of(folder))))
    except ConfigError as error:
        raise CheckpointError(f"{folder}: {error}; an image encoder is a CLIPVisionModelWithProjection") from None


def _width(vision: ClipVisionConfig, config: ImagePromptConfig) -> int:
    return vision.hidden_size if config.takes_states else vision.projection_dim


def _called(vision: ClipVisionConfig) -> str:
    return KNOWN.get((vision.hidden_size, vision.projection_dim), "an encoder of its own kind")


def _needs(config: ImagePromptConfig) -> str:
    """What kind of encoder an adapter needs, in words."""
    known = {pair[0 if config.takes_states else 1]: called for pair, called in KNOWN.items()}
    called = f", as {known[config.image_dim]}" if config.image_dim in known else ""
    what = "states" if config.takes_states else "embeddings"
    return f"needs an image encoder that gives {what} of width {config.image_dim}{called}"
