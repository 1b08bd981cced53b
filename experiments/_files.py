"""Files that programs of this folder read and write: regular ones, not too large; whole or not at all."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sdjax.core.files import FOLDER, irregular, made

# What a file system says that has no hard links (FAT, some that are mounted over the network).
NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def read(path: str | Path, label: str, largest: int) -> bytes:
    """The bytes of a regular file. Raises FileNotFoundError and OSError, ValueError for what is none or too large."""
    try:
        if what := irregular(path):
            remedy = "name one file in it" if what == FOLDER else "write it to a file first"
            raise ValueError(f"{label} is {what}; {remedy}")
        with open(path, "rb") as file:
            data = file.read(largest + 1)
    except OSError as error:
        raise type(error)(f"{label} cannot be read ({error.strerror})") from None
    if len(data) > largest:
        raise ValueError(f"{label} has more than the {largest:,} bytes that are read; make several of it")
    return data


def publish(data: bytes | memoryview, path: Path) -> bool:
    """Writes a file that is not there yet, never half; False where another was first, whose file stays.

    Raises OSError. The name is given by a link, which one process alone can make, also over NFS. Where there are no
    links it is given by a rename, and of two processes that come within a moment of each other the second's file stays.
    """
    try:
        return _published(data, path)
    except FileNotFoundError:  # this process stood still and was thought dead, so others tidied its file away
        return _published(data, path)


def _published(data: bytes | memoryview, path: Path) -> bool:
    with made(path.parent, lambda unfinished: unfinished.write_bytes(data)) as unfinished:
        return _link(unfinished, path)


def _link(unfinished: Path, path: Path) -> bool:
    try:
        os.link(unfinished, path)
    except FileExistsError:
        return os.stat(unfinished).st_nlink == 2  # of NFS: it was made, and the first answer got lost
    except OSError as error:
        if error.errno not in NO_LINKS:
            raise
        if os.path.lexists(path):
            return False
        os.replace(unfinished, path)
    return True


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Turns what the system says of a folder that cannot be written into one sentence with the remedy, an OSError."""
    try:
        yield
    except OSError as error:
        if error.errno is None:  # a sentence already
            raise
        full = error.errno in FULL
        remedy = "make room and give the same command again" if full else "choose another --out"
        raise OSError(f"{folder} cannot be written ({error.strerror}); {remedy}") from None
