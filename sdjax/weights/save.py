"""From parameters back to a folder in the diffusers layout, bit for bit.

A component that was loaded is written as its `Layout` says: the same tensors under the same names, shapes and
dtypes, in the same files with the same metadata. Parameters computed in float32 that came from a float16 file
go back to float16 where that loses nothing; where it would (they were trained), they are written as they are.

Nothing is ever half-written: a file or a folder is made under another name, then renamed (`core.files`).
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from sdjax.core import tree
from sdjax.core.errors import CheckpointError, listing
from sdjax.core.files import replaced
from sdjax.weights import names
from sdjax.weights.names import DTYPES, Layout, Stored
from sdjax.weights.tensors import pages_of
from sdjax.weights.write import Draft, make_folder, write_bytes, write_file, write_tensors

_CODES = {dtype: code for code, dtype in DTYPES.items()}


def default_layout(
    params: Mapping[str, Any], config: Mapping[str, Any], dtypes: Mapping[tree.Path, str] | None = None
) -> Layout:
    """The layout of a component that was in no folder: one file, today's names.

    `config` is what its config.json will say; `dtypes` are what its parameters were stored in, by default their own.
    The file is called as transformers or diffusers would call it.
    """
    flat = tree.flatten(params)
    transformers = {"text_model", "vision_model"} & params.keys()
    file = "model.safetensors" if transformers else "diffusion_pytorch_model.safetensors"
    tensors = {
        path: Stored(
            names.tensor_name(path),
            names.file_shapes(path, array.shape)[0],
            dtypes[path] if dtypes else _code(path, array),
            file,
        )
        for path, array in flat.items()
    }
    return Layout(tensors, {file: {"format": "pt"}}, json.dumps(config, indent=2) + "\n")


def save_component(folder: str | os.PathLike[str], params: Mapping[str, Any], layout: Layout) -> None:
    """Write a component's weights and config.json into `folder`, which is made where it is missing.

    Raises CheckpointError where `params` are not the ones the layout tells of, or the disk does not take
    them.
    """
    folder = Path(folder)
    flat = tree.flatten(params)
    _check(flat, layout, folder)
    for pages in {id(pages): pages for array in flat.values() if (pages := pages_of(array))}.values():
        pages.check()
    codes = stored_dtypes(flat, layout)
    make_folder(folder)
    for file, metadata in layout.metadata.items():
        tensors = {name: Draft.of(array) for (of, name), array in layout.kept.items() if of == file}
        for path, record in layout.tensors.items():
            if record.file == file:
                make = partial(in_file, path, flat[path], codes[path])
                tensors[record.name] = Draft(codes[path], record.shape, make)
        write_file(folder / file, partial(write_tensors, tensors, metadata))
    if layout.index is not None:
        write_bytes(folder / layout.index[0], _index_text(layout, codes).encode())
    write_bytes(folder / "config.json", layout.config.encode())


def in_file(path: tree.Path, array: Any, code: str) -> np.ndarray:
    """A parameter as a file holds it: in its dtype and order of axes."""
    return names.to_file(path, np.asarray(array).astype(DTYPES[code], copy=False))


def save_folder(
    out: str | os.PathLike[str],
    components: Mapping[str, tuple[Mapping[str, Any], Layout]],
    files: Mapping[str, bytes],
) -> None:
    """Write a whole checkpoint: components as (params, layout) by name, other files by path from the root.

    `out` may be new, empty, or a checkpoint (it has a model_index.json). A checkpoint is replaced once the
    new one is complete; what else lay at its top level stays. Any other folder is refused. Raises
    CheckpointError.
    """
    out = Path(out).resolve()
    if out.exists() and not out.is_dir():
        raise CheckpointError(f"{out} is a file; a checkpoint is a folder")
    if out.is_dir() and any(out.iterdir()) and not (out / "model_index.json").is_file():
        raise CheckpointError(f"{out} holds other files and no checkpoint; give a new or an empty folder")
    for name in files:
        if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
            raise CheckpointError(f"{name!r} leads out of the folder to write")
    make_folder(out.parent)
    try:
        with replaced(out, keep=True) as unfinished:
            for name, (params, layout) in components.items():
                save_component(unfinished / name, params, layout)
            for name, content in files.items():
                make_folder((unfinished / name).parent)
                write_bytes(unfinished / name, content)
    except OSError as error:
        raise CheckpointError(f"{out} cannot be written: {error}") from error


def _check(flat: Mapping[tree.Path, Any], layout: Layout, folder: Path) -> None:
    missing = [record.name for path, record in layout.tensors.items() if path not in flat]
    unexpected = [names.tensor_name(path) for path in flat if path not in layout.tensors]
    wrong = [
        f"{record.name}: {list(flat[path].shape)} cannot be stored as {list(record.shape)}"
        for path, record in layout.tensors.items()
        if path in flat and record.shape not in names.file_shapes(path, tuple(flat[path].shape))
    ]
    for what, found in (
        ("are missing", missing),
        ("are unknown", unexpected),
        ("have the wrong shape", wrong),
    ):
        if found:
            raise CheckpointError(f"cannot save {folder}: {len(found)} parameters {what}:{listing(found)}")


def stored_dtypes(flat: Mapping[tree.Path, Any], layout: Layout) -> dict[tree.Path, str]:
    """The dtype to store each parameter in: the file's if none loses by it, else the parameters' own."""
    own = {path: _code(path, array) for path, array in flat.items()}
    stored = {path: record.dtype for path, record in layout.tensors.items()}
    return stored if all(_fits(flat[path], code) for path, code in stored.items()) else own


def _fits(array: Any, code: str) -> bool:
    """Whether a parameter survives storage as `code` with every bit. A narrower one is never widened."""
    own, stored = np.dtype(array.dtype), DTYPES[code]
    if own == stored or own.itemsize < stored.itemsize:
        return own == stored
    host = np.asarray(array)
    with np.errstate(over="ignore"):
        return bool((host.astype(stored).astype(own) == host).all())


def _code(path: tree.Path, array: Any) -> str:
    code = _CODES.get(np.dtype(array.dtype))
    if code is None:
        raise CheckpointError(
            f"{names.tensor_name(path)} is {array.dtype}; a checkpoint holds {', '.join(map(str, _CODES))}"
        )
    return code


def _index_text(layout: Layout, codes: Mapping[tree.Path, str]) -> str:
    """The shard index as it was, its total size set right where the dtypes have changed."""
    assert layout.index is not None
    if all(record.dtype == codes[path] for path, record in layout.tensors.items()):
        return layout.index[1]
    index = json.loads(layout.index[1])
    sizes = (int(np.prod(r.shape)) * DTYPES[codes[path]].itemsize for path, r in layout.tensors.items())
    metadata = index.get("metadata")  # of any kind, since reading does not look at it
    index["metadata"] = {**(metadata if isinstance(metadata, dict) else {}), "total_size": sum(sizes)}
    return json.dumps(index, indent=2) + "\n"
