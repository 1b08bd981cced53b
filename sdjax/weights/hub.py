"""Where a checkpoint is: a folder or a file on this disk, or a repository on the Hugging Face Hub.

Of a repository only what will be opened is fetched: JSON, tokenizer files and one set of safetensors; never
the pickles beside them, nor a float16 copy that nobody asked for. HF_ENDPOINT (another Hub) is read at each
call; HF_HOME, HF_TOKEN and HF_HUB_OFFLINE mean what they mean to huggingface_hub. Without a network the
cached copy is taken if it is whole.
"""

from __future__ import annotations

import errno
import os
import re
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path, PurePosixPath

from sdjax.config.components import COMPONENTS, TOKENIZERS
from sdjax.core.errors import CheckpointError, shown
from sdjax.weights.checkpoint import Checkpoint
from sdjax.weights.files import choose_weights, no_file, refuse_pickle, shards_of
from sdjax.weights.index import VOCABULARIES
from sdjax.weights.links import home_of, within
from sdjax.weights.load import open_folder

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS)
_SMALL = ("scheduler", "low_res_scheduler", "feature_extractor", *TOKENIZERS.values(), *COMPONENTS)


def resolve(name_or_path: str | os.PathLike[str], *, variant: str | None = None, revision: str = "main") -> Path:
    """The folder of a checkpoint, or its .safetensors file: `name_or_path` where it is one of the two, else the
    folder of the Hub's `owner/name`, fetched.

    Raises CheckpointError where it is none of these, the repository cannot be had, or it holds no safetensors.
    """
    if not os.fspath(name_or_path):  # pathlib would take it for the folder one is in
        raise CheckpointError("the checkpoint's name is empty; give a folder, a file or a Hub id (owner/name)")
    path = Path(os.path.expanduser(name_or_path))
    if os.path.isdir(path):  # false for a name too long, where pathlib raises OSError
        return path
    refuse_pickle(path)
    if os.path.isfile(path):
        return path
    if os.path.lexists(path):  # a broken link is not looked for on the Hub
        raise CheckpointError(no_file(path))
    if not HUB_ID.fullmatch(str(name_or_path)):
        raise CheckpointError(f"{shown(str(name_or_path))} is neither a folder nor a file nor a Hub id (owner/name)")
    return _fetch(str(name_or_path), variant, revision)


def wanted_files(names: Iterable[str], variant: str | None, where: str) -> list[str]:
    """Of a repository's files, those that loading will open. Raises CheckpointError where one is missing."""
    names = list(names)
    if "model_index.json" not in names:
        held = ", ".join(sorted(names)[:8])
        raise CheckpointError(f"{where} is no checkpoint in the diffusers layout (no model_index.json); holds: {held}")
    wanted = ["model_index.json"]
    for name in names:
        path = PurePosixPath(name)
        if len(path.parts) == 2 and path.parts[0] in _SMALL and path.suffix in (".json", ".txt", ".model"):
            wanted.append(name)
    for part in _networks(names):
        held_here = [name.removeprefix(f"{part}/") for name in names if name.startswith(f"{part}/")]
        chosen = choose_weights(held_here, variant, f"{where}/{part}")
        wanted += [f"{part}/{name}" for name in (chosen, *shards_of(chosen, held_here))]
    return list(dict.fromkeys(wanted))


def _networks(names: Iterable[str]) -> list[str]:
    """The networks to fetch: either text encoder may be absent, the first is asked for where both are.

    A depth estimator is fetched where there is one, an image encoder where no text encoder is.
    """
    held = {name.partition("/")[0] for name in names}
    text = [part for part in TOKENIZERS if part in held]
    text = text or ["image_encoder" if "image_encoder" in held else "text_encoder"]
    wanted = {*text, "unet", "vae"} | held & {"depth_estimator"}
    return [part for part in COMPONENTS if part in wanted]


def _fetch(repository: str, variant: str | None, revision: str) -> Path:
    """A checkpoint's folder, or its copy in the cache where there is no network and it is whole."""

    def wanted(names: Iterable[str], where: str) -> list[str]:
        return wanted_files(names, variant, where)

    def cached(marker: Path, why: str) -> Path:
        return _whole(marker.parent, variant, why)

    return fetch(repository, revision, wanted, ("model_index.json",), cached)


def fetch(
    repository: str,
    revision: str,
    wanted: Callable[[Iterable[str], str], list[str]],
    markers: Iterable[str],
    cached: Callable[[Path, str], Path],
) -> Path:
    """Download some of a repository's files into huggingface_hub's cache; the snapshot's folder.

    wanted: those files, of the names of all and where they are for messages; it may raise CheckpointError.
    markers, cached: where the Hub cannot be reached, and one of the markers is in the cache, the folder is what
      `cached` says of that file, for the reason that it is given.

    Raises CheckpointError.
    """
    import huggingface_hub  # 0.3 s that a local folder need not pay
    from huggingface_hub import errors

    endpoint = os.environ.get("HF_ENDPOINT") or None
    where = f"{endpoint or 'https://huggingface.co'}/{repository}"
    try:
        info = huggingface_hub.HfApi(endpoint=endpoint).model_info(repository, revision=revision)
        files = wanted((file.rfilename for file in info.siblings or ()), where)
        folder = huggingface_hub.snapshot_download(
            repository, revision=revision, allow_patterns=files, endpoint=endpoint
        )
        return _checked(Path(folder), files)
    except CheckpointError:
        raise
    except errors.GatedRepoError:
        reason = f"is gated: accept its licence at {where} and log in (`hf auth login` or HF_TOKEN)"
    except errors.RepositoryNotFoundError:
        reason = f"is no folder here, and {where} does not exist or is private (`hf auth login` or HF_TOKEN)"
    except errors.RevisionNotFoundError:
        reason = f"has no revision {revision!r} at {where}"
    except errors.HFValidationError as error:
        reason = f"is no Hub id: {error}"
    except Exception as error:  # the HTTP library under huggingface_hub differs by version, and so do its exceptions
        if isinstance(error, OSError) and error.errno in _DISK:
            raise CheckpointError(f"{repository} cannot be kept in the cache: {error}; HF_HOME chooses it") from None
        first = shown(str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__, 400)
        kept = (huggingface_hub.try_to_load_from_cache(repository, name, revision=revision) for name in markers)
        if marker := next((Path(one) for one in kept if isinstance(one, str)), None):
            return cached(marker, f"{repository}: {where} cannot be reached ({first})")
        reason = f"is no folder here, not in the cache, and {where} cannot be reached ({first})"
    raise CheckpointError(f"{repository} {reason}")


def _checked(folder: Path, files: Iterable[str]) -> Path:
    """A snapshot none of whose files lies outside its repository's part of the cache.

    huggingface_hub names a file after the ETag that the server sends, which could hold `../`. Raises CheckpointError.
    """
    home = home_of(folder)
    for name in files:
        try:
            within(folder / name, home)
        except CheckpointError as error:
            raise CheckpointError(f"{error}. Do not trust this server; delete {folder}") from None
    return folder


def _whole(folder: Path, variant: str | None, why: str) -> Path:
    """A cached snapshot that can be opened, which a broken download cannot. Raises CheckpointError, with `why`."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # whoever opens it warns
            _check_tokenizers(open_folder(folder, variant))
    except CheckpointError as error:
        raise CheckpointError(
            f"{why}, and the copy in the cache is not whole, as after a download that broke off: {error}. Load it "
            "again when the network is there: only what is missing is fetched"
        ) from None
    return folder


def _check_tokenizers(opened: Checkpoint) -> None:
    """Raises CheckpointError where a tokenizer that the index names has no vocabulary."""
    for part in TOKENIZERS.values():
        held = opened.tokenizer(part).keys()
        if (opened.index.get(part) or [None])[-1] and not any(files <= held for files in VOCABULARIES):
            raise CheckpointError(f"{part} holds neither vocab.json and merges.txt nor tokenizer.json")
