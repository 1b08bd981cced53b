"""Files and folders that are never half-written, and none read that is no file.

What is written is made under another name beside its own, flushed to the disk, then renamed: a file by `whole`, or by
`write` where an error is to be one sentence; a folder by `replaced`. What is to be read may be a pipe, which would be
waited for, or a device, which may never end: `irregular` tells.
"""

import contextlib
import os
import shutil
import stat
import tempfile
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

FOLDER, NO_FILE = "a folder", "no file but a pipe, a socket or a device"


def irregular(path: str | os.PathLike[str]) -> str | None:
    """What lies at `path` where it is no regular file: FOLDER or NO_FILE. Raises OSError, ValueError for a NUL."""
    mode = os.stat(path).st_mode
    return None if stat.S_ISREG(mode) else FOLDER if stat.S_ISDIR(mode) else NO_FILE


def check_writable(folder: str | os.PathLike[str], what: str = "the pictures") -> None:
    """Raises OSError where nothing could be written to `folder` (made later). Leaves nothing behind.

    what: is to be written, for the message.
    """
    there = Path(folder).absolute()
    while not there.exists() and there != there.parent:
        there = there.parent
    try:
        with tempfile.TemporaryFile(dir=there):
            pass
    except OSError as error:
        raise unwritable(folder, error, what) from None


def write(data: bytes | memoryview, path: Path, what: str = "the pictures") -> Path:
    """Writes one file in the place of any that has its name, never half; its folder is made.

    what: is written, for the message of the OSError.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        whole(path, lambda unfinished: unfinished.write_bytes(data))
        return path
    except OSError as error:
        raise unwritable(path.parent, error, what) from None


def whole(path: Path, make: Callable[[Path], object]) -> None:
    """Writes one file in the place of any that has its name, by `make(another path)`. Raises OSError as it came."""
    with made(path.parent, make) as unfinished:
        os.replace(unfinished, path)


@contextlib.contextmanager
def made(folder: Path, make: Callable[[Path], object]) -> Iterator[Path]:
    """The file that `make(path)` writes, flushed to the disk, in `folder` under a name that is gone in the end."""
    path = folder / f".{uuid.uuid4().hex}.partial"
    try:
        make(path)
        with open(path, "rb+") as file:
            os.fsync(file.fileno())
        yield path
    finally:
        path.unlink(missing_ok=True)


@contextlib.contextmanager
def replaced(folder: Path, *, keep: bool = False) -> Iterator[Path]:
    """A path to make a folder at; in the end that is `folder`, and what was there is gone. Raises OSError.

    Where the making fails, or the renaming, the folder that was there stays as it was.

    keep: whether what the old folder held at its top level and the new one does not is carried over.
    """
    unfinished = folder.with_name(f".{folder.name}.{uuid.uuid4().hex[:8]}.partial")
    try:
        yield unfinished
        _exchange(unfinished, folder, keep)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _exchange(finished: Path, folder: Path, keep: bool) -> None:
    if not folder.is_dir():
        finished.rename(folder)
        return
    old = finished.with_suffix(".old")
    folder.rename(old)
    try:
        finished.rename(folder)
    except OSError:
        old.rename(folder)
        raise
    for entry in old.iterdir() if keep else ():
        if not (folder / entry.name).exists():
            entry.rename(folder / entry.name)
    shutil.rmtree(old)


def unwritable(folder: str | os.PathLike[str], error: OSError, what: str = "the pictures") -> OSError:
    """The sentence for what the system says of a folder that was to take `what`."""
    return OSError(f"{folder} cannot be written ({error.strerror or error}); choose another folder for {what}")
