"""Where an adapter is: a file or a folder on this disk, or a repository on the Hugging Face Hub.

diffusers writes a folder with pytorch_lora_weights.safetensors, PEFT one with adapter_model.safetensors and, beside it,
adapter_config.json, without which the numbers are of another strength. Others publish a file by any name.
"""

import os
from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from sdjax.core.errors import CheckpointError, listing, shown
from sdjax.core.short import short
from sdjax.weights.files import PICKLES, no_file, starts_as_pickle
from sdjax.weights.hub import HUB_ID, fetch
from sdjax.weights.links import home_of, within

DIFFUSERS, PEFT, CONFIG = "pytorch_lora_weights.safetensors", "adapter_model.safetensors", "adapter_config.json"
EMBEDDING = "learned_embeds.safetensors"
STANDARD = (DIFFUSERS, PEFT, EMBEDDING)  # names that say nothing of what is inside
ASSETS = Path(__file__).resolve().parents[1] / "assets" / "adapters"
SHIPPED = ("hexagon", "lime")  # for the shapes model: a thing that it draws then, and a colour
CONVERT = (
    "is a pickle. Such a file can run any code when it is opened, so it never is; look for its .safetensors, or "
    "convert it once with `safetensors.torch.save_file(torch.load(old, weights_only=True), new)`, a new word's "
    "with `save_file({'emb_params': torch.load(old, weights_only=True)['string_to_param']['*']}, new)`, an IP-Adapter "
    "with `save_file({f'{part}.{name}': one for part, held in torch.load(old, weights_only=True).items() for name, one "
    "in held.items()}, new)`"
)


class HubFile(NamedTuple):
    """A file of a repository: `owner/name`, and the file's path there."""

    repository: str
    file: str


class Located(NamedTuple):
    """An adapter's file, what it is called, PEFT's config beside it where there is one, and where it was fetched."""

    path: Path
    name: str
    config: Path | None
    hub: HubFile | None = None


def locate(source: str | os.PathLike[str], revision: str = "main") -> Located:
    """The one file that is meant: a path, a folder, `owner/name` or `owner/name/file.safetensors` on the Hub.

    Or one of SHIPPED, where no such path is here. Raises CheckpointError where there is none, or more than one.
    """
    text = checked(source, "load_adapter")
    path = Path(os.path.expanduser(text))
    if text in SHIPPED and not os.path.lexists(path):
        return Located(ASSETS / f"{text}.safetensors", text, None)
    if os.path.isdir(path):
        return _in_folder(path, choose((one.name for one in path.iterdir()), str(path)))
    if os.path.lexists(path):
        if not os.path.isfile(path):
            raise CheckpointError(no_file(path))
        _refuse_pickle(path)
        return _in_folder(path.parent, path.name, inside=False)
    owner, _, rest = text.partition("/")
    name, _, file = rest.partition("/")
    if not HUB_ID.fullmatch(f"{owner}/{name}") or (file and not is_inside(file)):
        if path.suffix.lower() in PICKLES:
            raise CheckpointError(f"{path} is missing, and would be a pickle, which is never opened")
        raise CheckpointError(
            f"{shown(text)} is neither a file nor a folder here nor a Hub id (owner/name, owner/name/file.safetensors)"
        )
    return _from_hub(f"{owner}/{name}", file, revision)


def choose(names: Iterable[str], where: str) -> str:
    """Of a folder's file names the adapter's: a name that tools give, else the only .safetensors.

    Raises CheckpointError where nothing fits or more than one does.
    """
    names = sorted(names)
    if "model_index.json" in names:
        raise CheckpointError(f"{where} is a checkpoint and no adapter: open it with sdjax.load")
    held = [name for name in names if name.lower().endswith(".safetensors")]
    chosen = [name for name in held if name in STANDARD] or held
    if len(chosen) == 1:
        return chosen[0]
    if chosen:
        raise CheckpointError(f"{where} holds several files; give the path of one:{listing(chosen)}")
    if pickles := [name for name in names if name.lower().endswith(PICKLES)]:
        raise CheckpointError(f"{where}: {shown(pickles[0])} {CONVERT}")
    told = f"; it holds:{listing(names)}" if names else "; it is empty"
    raise CheckpointError(f"{where} holds no .safetensors file{told}")


def checked(source: str | os.PathLike[str], function: str) -> str:
    """A source as a text, for the function of that name. Raises CheckpointError for anything else."""
    text = os.fspath(source) if isinstance(source, str | os.PathLike) else source
    if not isinstance(text, str) or not text or "\0" in text:
        raise CheckpointError(f"{function} takes a file, a folder or a Hub id, not {short(text)}")
    return text


def _in_folder(folder: Path, file: str, inside: bool = True) -> Located:
    """A folder's file, and PEFT's config where it is PEFT's; `inside`: links may not lead out of the folder."""
    path = folder / file
    if inside:
        within(path, home_of(folder))
    _refuse_pickle(path)
    config = folder / CONFIG
    there = path.name == PEFT and os.path.lexists(config)
    return Located(path, _named(folder) if path.name in STANDARD else path.stem, config if there else None)


def _refuse_pickle(path: Path) -> None:
    if path.suffix.lower() in PICKLES or starts_as_pickle(path):
        raise CheckpointError(f"{path} {CONVERT}")


def _named(folder: Path) -> str:
    """What an adapter is called whose file's name says nothing: as its folder."""
    return folder.absolute().name or "adapter"


def is_inside(file: str) -> bool:
    """Whether the path of a file on the Hub stays in its repository."""
    return not {"..", ".", ""} & set(PurePosixPath(file).parts) and "\\" not in file


def _from_hub(repository: str, file: str, revision: str) -> Located:
    """The file of a repository that is meant, fetched with the config beside it and nothing else."""
    if PurePosixPath(file).suffix.lower() in PICKLES:
        raise CheckpointError(f"{repository}/{file} {CONVERT}")

    def wanted(names: Iterable[str], where: str) -> list[str]:
        held = list(names)
        if file and file not in held:
            raise CheckpointError(f"{where} holds no {shown(file)}; it holds:{listing(held)}")
        chosen = file or choose((name for name in held if "/" not in name), where)
        beside = str(PurePosixPath(chosen).parent / CONFIG)
        return [chosen, *([beside] if PurePosixPath(chosen).name == PEFT and beside in held else [])]

    markers = (file,) if file else STANDARD
    folder = fetch(repository, revision, wanted, markers, lambda marker, _: above(marker, file or marker.name))
    chosen = file or choose((one.name for one in folder.iterdir() if not one.is_dir()), str(folder))
    found = folder / chosen
    located = _in_folder(found.parent, found.name)._replace(hub=HubFile(repository, chosen))
    return located._replace(name=repository.partition("/")[2]) if found.name in STANDARD else located


def above(marker: Path, file: str) -> Path:
    """The snapshot's folder, of a file in it; `file` is its path from there."""
    return marker.parents[len(PurePosixPath(file).parts) - 1]
