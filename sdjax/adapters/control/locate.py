"""Where a control network is: a file or a folder on this disk, or a repository on the Hugging Face Hub.

diffusers writes a folder with config.json and diffusion_pytorch_model.safetensors; others publish a file by any name,
which says nothing of itself but its tensors' names and shapes.
"""

import os
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from sdjax.adapters.locate import above, checked, choose, is_inside
from sdjax.core.errors import CheckpointError, listing, shown
from sdjax.weights.files import (
    PICKLES,
    Header,
    choose_weights,
    component_headers,
    no_file,
    read_json,
    read_single_header,
    refuse_pickle,
    shards_of,
)
from sdjax.weights.hub import HUB_ID, fetch
from sdjax.weights.links import home_of, within

CONFIG, STEM = "config.json", "diffusion_pytorch_model"
TAKES = "load_controlnet"
SHIPPED = ("edges", "depth")  # for the shapes model, by what their maps show
ASSETS = Path(__file__).resolve().parents[2] / "assets" / "control"


class Located(NamedTuple):
    """A network's files: their headers, what config.json says where there is one, and what it is called."""

    headers: list[Header]
    config: Mapping[str, Any] | None
    path: Path
    name: str

    @property
    def config_path(self) -> str:
        """Where config.json is, for messages."""
        return str(self.headers[0].path.parent / CONFIG)


def locate(source: str | os.PathLike[str], variant: str | None, revision: str) -> Located:
    """What is meant: a file, a folder, `owner/name`, `owner/name/folder` or `owner/name/file.safetensors`.

    Or one of SHIPPED, where no such path is here. Raises CheckpointError where there is none, or more than one.
    """
    text = checked(source, TAKES)
    path = Path(os.path.expanduser(text))
    if text in SHIPPED and not os.path.lexists(path):
        return _folder(ASSETS / text, variant)
    if os.path.isdir(path):
        return _folder(path, variant)
    if os.path.lexists(path):
        if not os.path.isfile(path):
            raise CheckpointError(no_file(path))
        return _file(path, path.parent, inside=False)
    owner, _, rest = text.partition("/")
    name, _, inside = rest.partition("/")
    if not HUB_ID.fullmatch(f"{owner}/{name}") or (inside and not is_inside(inside)):
        refuse_pickle(path)
        raise CheckpointError(
            f"{shown(text)} is neither a file nor a folder here nor a Hub id (owner/name, owner/name/file.safetensors)"
        )
    return _from_hub(f"{owner}/{name}", inside, variant, revision)


def _folder(folder: Path, variant: str | None) -> Located:
    names = [one.name for one in folder.iterdir()]
    if "model_index.json" in names:
        inside = "; the one inside is in its folder controlnet" if "controlnet" in names else ""
        raise CheckpointError(f"{folder} is a checkpoint and no control: open it with sdjax.load{inside}")
    if CONFIG not in names:
        return _file(folder / choose(names, str(folder)), folder)
    home = home_of(folder)
    config = read_json(within(folder / CONFIG, home))
    headers, _ = component_headers(folder, variant, home)
    return Located(headers, config, headers[0].path, folder.absolute().name or "control")


def _file(path: Path, folder: Path, inside: bool = True) -> Located:
    """One file; config.json beside it counts where it has the name that diffusers gives. inside: links stay there."""
    home = home_of(folder)
    header = read_single_header(within(path, home) if inside else path)
    theirs = path.name.startswith(STEM)
    beside = within(path.parent / CONFIG, home) if theirs and os.path.lexists(path.parent / CONFIG) else None
    name = path.absolute().parent.name if path.stem == STEM else path.stem
    return Located([header], read_json(beside) if beside else None, path, name or "control")


def _from_hub(repository: str, inside: str, variant: str | None, revision: str) -> Located:
    """Of a repository the one network that is meant, fetched with its config and nothing else."""
    if PurePosixPath(inside).suffix.lower() in PICKLES:
        raise CheckpointError(f"{repository}/{inside} is a pickle, which is never opened; look for its .safetensors")
    one_file = inside.lower().endswith(".safetensors")

    def wanted(names: Iterable[str], where: str) -> list[str]:
        return _wanted(list(names), inside, one_file, variant, where)

    folder = "" if not inside else f"{PurePosixPath(inside).parent if one_file else PurePosixPath(inside)}/"
    marker = inside if one_file else f"{folder}{CONFIG}"
    snapshot = fetch(repository, revision, wanted, (marker,), lambda found, _: above(found, marker))
    located = _file(snapshot / inside, (snapshot / inside).parent) if one_file else _folder(snapshot / inside, variant)
    own = repository.partition("/")[2]
    return located if one_file and located.path.stem != STEM else located._replace(name=own)


def _wanted(names: list[str], inside: str, one_file: bool, variant: str | None, where: str) -> list[str]:
    """Of a repository's files those to fetch. Raises CheckpointError."""
    if one_file:
        if inside not in names:
            raise CheckpointError(f"{where} holds no {shown(inside)}; it holds:{listing(sorted(names))}")
        beside = str(PurePosixPath(inside).parent / CONFIG)
        return [inside, *([beside] if beside in names else [])]
    prefix = f"{inside}/" if inside else ""
    held = [name.removeprefix(prefix) for name in names if name.startswith(prefix)]
    held = [name for name in held if "/" not in name]
    if "model_index.json" in held:
        raise CheckpointError(f"{where} is a checkpoint and no control: open it with sdjax.load")
    if CONFIG not in held:
        return [f"{prefix}{choose(held, where)}"]
    chosen = choose_weights(held, variant, where)
    return [f"{prefix}{name}" for name in (CONFIG, chosen, *shards_of(chosen, held))]
