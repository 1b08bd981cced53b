"""Which files hold a component's weights, and what their headers promise.

A folder of the diffusers layout holds one of

    diffusion_pytorch_model.safetensors                   unet and vae; a text encoder's begins `model.`
    diffusion_pytorch_model.fp16.safetensors              the variant "fp16"
    diffusion_pytorch_model.safetensors.index.json        shards: `weight_map` says which file has a tensor
    diffusion_pytorch_model.safetensors.index.fp16.json   shards of the variant

A safetensors file is an 8-byte length n, n bytes of JSON (dtype, shape and byte range by tensor), then the
bytes (https://github.com/huggingface/safetensors#format). The library checks that the ranges tile the file
exactly and agree with the shapes; so a header that lies is caught before one weight is read.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from sdjax.core.errors import CheckpointError, listing, nearest, shown
from sdjax.core.files import FOLDER, irregular
from sdjax.core.notice import notice
from sdjax.weights.impostor import START, impostor, is_pickle, pointer_or_page
from sdjax.weights.links import within

_STEM = r"(?:diffusion_pytorch_model|model)"
_SINGLE = re.compile(_STEM + r"(?:\.(?P<variant>[\w-]+))?\.safetensors")
_INDEX = re.compile(_STEM + r"\.safetensors\.index(?:\.(?P<variant>[\w-]+))?\.json")
_SHARD = re.compile(_STEM + r"(?:\.(?P<variant>[\w-]+))?-\d+-of-\d+\.safetensors")
LARGEST_TEXT = 1 << 26  # bytes; a tokenizer.json has 4 MB, an index of shards 0.2
PICKLES = (".bin", ".ckpt", ".pt", ".pth", ".pkl", ".msgpack")
LONGEST_HEADER = 1 << 25  # bytes; that of SDXL has 0.4 MB
LONGEST_NAME = 10_000  # characters of a tensor's name; the longest in use have 120

CONVERT = (
    "Such files can run any code when they are opened, so they never are; convert once with "
    "`DiffusionPipeline.from_pretrained(old).save_pretrained(new, safe_serialization=True)`"
)
CONVERT_FILE = (
    "Such a file can run any code when it is opened, so it never is; look for its .safetensors, or convert it once "
    "with `safetensors.torch.save_file(torch.load(old, weights_only=True)['state_dict'], new)`"
)


@dataclass(frozen=True)
class Entry:
    """One tensor of a header: its name there, its dtype as safetensors spells it, and its bytes' place in the file."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int


@dataclass(frozen=True)
class Header:
    """What one safetensors file says it holds, by the names of the file or by those that it should have."""

    path: Path
    tensors: Mapping[str, Entry]
    metadata: Mapping[str, str]


def read_json(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The object in a JSON file. Raises CheckpointError where the file is missing or holds no object."""
    return parse_json(read_text(path), Path(path))


def read_bytes(path: str | os.PathLike[str]) -> bytes:
    """A small file of a checkpoint, whole. Raises CheckpointError."""
    path = Path(path)
    try:
        if os.path.lexists(path) and not path.is_file():  # a pipe would be waited for, a device read for ever
            raise CheckpointError(no_file(path))
        if (size := path.stat().st_size) > LARGEST_TEXT:
            raise CheckpointError(f"{path} has {size:,} bytes, far too many for what it should hold")
        found = path.read_bytes()
    except FileNotFoundError:
        beside = sorted(p.name for p in path.parent.iterdir()) if path.parent.is_dir() else []
        held = f"; the folder holds: {', '.join(map(shown, beside[:8]))}" if beside else ""
        raise CheckpointError(f"{path} is missing{held}") from None
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from None
    if what := pointer_or_page(found[:START]):
        raise CheckpointError(f"{path} is {what}")
    return found


def no_file(path: Path) -> str:
    """What is at `path`, which is no file, in words."""
    if os.path.islink(path) and not os.path.exists(path):
        return f"{path} is a link to {shown(os.readlink(path))}, which is not there; the download may be incomplete"
    if not os.path.lexists(path):
        return f"{shown(str(path))} is missing; the download may be incomplete"
    what = irregular(path)
    return f"{path} is {what}{', where a file should be' if what == FOLDER else ''}"


def read_text(path: str | os.PathLike[str]) -> str:
    """The text of a file of a checkpoint, line ends as they are. Raises CheckpointError."""
    try:
        return read_bytes(path).decode("utf-8")
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from None


def parse_json(text: str, path: Path) -> dict[str, Any]:
    """The object that the text of `path` holds. Raises CheckpointError."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is not valid JSON ({error}); download it again") from None
    if not isinstance(found, dict):
        raise CheckpointError(f"{path} must hold a JSON object, not {shown(json.dumps(found), 60)}")
    return found


def choose_weights(names: Iterable[str], variant: str | None, where: str) -> str:
    """Of a folder's file names, the one to open: a single safetensors file or the index of its shards.

    Without `variant` the plain file is taken; where only one variant is there it is taken with a warning.
    Raises CheckpointError where nothing fits, more than one does, or there are only pickles.
    """
    names = sorted(names)
    found: dict[str, list[str]] = {}
    for name in names:
        match = _SINGLE.fullmatch(name) or _INDEX.fullmatch(name)
        if match and not _SHARD.fullmatch(name):
            found.setdefault(match["variant"] or "", []).append(name)
    if not found:
        raise CheckpointError(_no_weights(names, where))
    offered = ", ".join(repr(v) for v in found if v)
    if variant is None and "" not in found:
        if len(found) > 1:
            raise CheckpointError(f"{where} holds only variants; choose one with variant=: {offered}")
        variant = next(iter(found))
        notice(f"{where} holds only the variant {variant!r}, which is taken")
    if (variant or "") not in found:
        plain = " and a file without variant" if "" in found else ""
        raise CheckpointError(
            f"{where} has no variant {variant!r}{nearest(variant or '', found)}; it has: {offered or 'none'}{plain}"
        )
    chosen = found[variant or ""]
    if len(chosen) > 1:
        raise CheckpointError(f"{where} holds {' and '.join(chosen)}: which one counts? Keep one of them")
    return chosen[0]


def shards_of(chosen: str, names: Iterable[str]) -> list[str]:
    """The shards that belong to the file `choose_weights` gave, told by their names alone."""
    match = _INDEX.fullmatch(chosen)
    if match is None:
        return []
    shards = ((name, _SHARD.fullmatch(name)) for name in names)
    return [name for name, shard in shards if shard and shard["variant"] == match["variant"]]


def _no_weights(names: list[str], where: str) -> str:
    pickles = [name for name in names if name.endswith(PICKLES)]
    if pickles:
        return f"{where} holds its weights as pickles only ({', '.join(pickles[:4])}). {CONVERT}"
    held = f"; it holds: {', '.join(map(shown, names[:8]))}" if names else "; it is empty"
    return f"{where} holds no diffusion_pytorch_model.safetensors or model.safetensors{held}"


def component_headers(folder: Path, variant: str | None, home: Path) -> tuple[list[Header], tuple[str, str] | None]:
    """The headers of a component's weight files, and the (name, text) of the index where it is sharded.

    Links may not leave `home`. Raises CheckpointError.
    """
    if not within(folder, home).is_dir():
        raise CheckpointError(f"{folder} is missing: a checkpoint has one folder for each of its components")
    chosen = choose_weights((entry.name for entry in folder.iterdir()), variant, str(folder))
    if _SINGLE.fullmatch(chosen):
        return [read_header(within(folder / chosen, home))], None
    text = read_text(within(folder / chosen, home))
    weight_map = _weight_map(parse_json(text, folder / chosen), folder / chosen)
    headers = [read_header(within(folder / name, home)) for name in sorted(set(weight_map.values()))]
    _check_index(weight_map, headers, folder / chosen)
    return headers, (chosen, text)


def _weight_map(index: Mapping[str, Any], path: Path) -> dict[str, str]:
    """The index's file by tensor, every file's name a bare one: a path would lead out of the folder."""
    weight_map = index.get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{path} has no weight_map (file name by tensor name); download it again")
    for tensor, name in weight_map.items():
        bare = isinstance(name, str) and name.isprintable() and len(name) < 256 and not re.search(r"[/\\:]", name)
        if not bare or not name.endswith(".safetensors"):
            raise CheckpointError(
                f"{path}: tensor {shown(tensor)} is said to lie in {shown(repr(name))}; an index may only name "
                ".safetensors files of its own folder. Do not trust this checkpoint"
            )
    return weight_map


def _check_index(weight_map: Mapping[str, str], headers: list[Header], path: Path) -> None:
    """Every tensor lies in the shard that the index says, and in no other."""
    held = {header.path.name: set(header.tensors) for header in headers}
    absent = [f"{name} (in {file})" for name, file in weight_map.items() if name not in held[file]]
    stray = [f"{t} in {file}" for file, names in held.items() for t in sorted(names) if weight_map.get(t) != file]
    if absent:
        raise CheckpointError(f"{path} names tensors that its files do not hold:{listing(absent)}")
    if stray:
        raise CheckpointError(
            f"{path}: files hold tensors, duplicate or unknown, that it does not name:{listing(stray)}"
        )


def refuse_pickle(path: Path) -> None:
    """Raises CheckpointError where a file is a pickle by its name or its first bytes; nothing more is read."""
    if path.suffix.lower() in PICKLES or starts_as_pickle(path):
        raise CheckpointError(f"{path} is a pickle. {CONVERT_FILE}")


def starts_as_pickle(path: Path) -> bool:
    """Whether a file's first bytes are those of a pickle; False for what cannot be read."""
    return is_pickle(_start(path))


def _start(path: Path) -> bytes:
    """A file's first bytes, or none: what cannot be read is told by `read_header`."""
    with contextlib.suppress(OSError):
        if path.is_file():  # a pipe would be waited for
            with open(path, "rb") as file:
                return file.read(START)
    return b""


def read_single_header(path: Path) -> Header:
    """What a file holds that is a checkpoint or a network by itself, and is told by its tensors' names.

    Raises CheckpointError, also for a pickle and for a name too long to be looked through.
    """
    refuse_pickle(path)
    header = read_header(path)
    if long := next((name for name in header.tensors if len(name) > LONGEST_NAME or "\n" in name), None):
        lines = ", in several lines" if "\n" in long else ""  # over which patterns would go back and forth
        raise CheckpointError(f"{path} has a tensor whose name has {len(long):,} characters{lines}: {shown(long, 60)}")
    return header


def read_header(path: Path) -> Header:
    """What `path` holds, checked against the file's true size. Raises CheckpointError."""
    if not os.path.isfile(path):
        raise CheckpointError(no_file(path))
    try:
        if path.stat().st_size < 8:
            raise ValueError("it has no header" if path.stat().st_size else "it is empty")
        with open(path, "rb") as file:
            length = int.from_bytes(file.read(8), "little")
        if length > LONGEST_HEADER:
            raise ValueError(f"header too large: {length:,} bytes")
        with safe_open(path, framework="np"):
            pass  # opening checks that dtypes, shapes and byte ranges agree and tile the file
        with open(path, "rb") as file:
            file.seek(8)
            found = json.loads(file.read(length), object_pairs_hook=_without_duplicates)
    except (SafetensorError, OSError, ValueError) as error:
        refuse_pickle(path)
        if what := impostor(_start(path)):
            raise CheckpointError(f"{path} is {what}") from None
        size, reason = path.stat().st_size, shown(str(error), 400)
        raise CheckpointError(f"{path} ({size:,} bytes) is truncated or corrupt: {reason}; download it again") from None
    metadata = found.pop("__metadata__", None) or {}
    tensors = {name: _entry(name, entry, 8 + length) for name, entry in found.items()}
    return Header(path, tensors, metadata)


def _entry(name: str, entry: Mapping[str, Any], data: int) -> Entry:
    start, stop = entry["data_offsets"]
    return Entry(name, entry["dtype"], tuple(entry["shape"]), data + start, data + stop)


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = Counter(name for name, _ in pairs).most_common(1)[0][0]
        raise ValueError(f"its header names {shown(twice)!r} twice")
    return found
