"""Files that are never half-written: made under another name, flushed to the disk, then renamed."""

import contextlib
import os
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path


def check_writable(folder: str | os.PathLike[str]) -> None:
    """Raises OSError where pictures could not be written to `folder` (made later). Leaves nothing behind."""
    there = Path(folder).absolute()
    while not there.exists() and there != there.parent:
        there = there.parent
    try:
        with tempfile.TemporaryFile(dir=there):
            pass
    except OSError as error:
        raise _unwritable(folder, error) from None


def write(data: bytes | memoryview, path: Path) -> Path:
    """Writes one file in the place of any that has its name, never half. Raises OSError."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _unfinished(data, path.parent) as unfinished:
            os.replace(unfinished, path)
        return path
    except OSError as error:
        raise _unwritable(path.parent, error) from None


@contextlib.contextmanager
def _unfinished(data: bytes | memoryview, folder: Path) -> Iterator[Path]:
    """A file of these bytes, flushed to the disk under a name that is gone in the end, however it ends."""
    path = folder / f".{uuid.uuid4().hex}.partial"
    try:
        with open(path, "xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        yield path
    finally:
        path.unlink(missing_ok=True)


def _unwritable(folder: str | os.PathLike[str], error: OSError) -> OSError:
    return OSError(f"{folder} cannot be written ({error.strerror or error}); choose another folder for the pictures")
