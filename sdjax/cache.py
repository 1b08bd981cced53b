"""JAX's persistent compilation cache, on by default: what one process compiled, the next one reads from disk.

The cache is a setting of the whole process (JAX keeps it in `jax.config`); it is left alone where the user has
already chosen a folder, by `JAX_COMPILATION_CACHE_DIR` or in code.

An entry that cannot be read is compiled again, with a warning of JAX's own. JAX never writes over it, and so warns in
every process from then on: `enable` has the warning end in which file to delete. One that can be read is machine code,
and runs: JAX does not ask who wrote it. So let nobody write to the folder whom you would not let run programs.
"""

import math
import os
import re
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
from jax.experimental.compilation_cache import compilation_cache

from sdjax.notice import notice

FOLDER, LEAST_SECONDS = "jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs"
# XLA's own caches on a GPU. Where they are on, JAX counts the folder's path as part of what a program depends on: a
# folder that was renamed or copied would be compiled anew.
XLA_CACHES = "jax_persistent_cache_enable_xla_caches"
# Programs that took longer to compile are kept, in seconds. JAX's own limit of 1 would leave out most of a small
# model's.
LEAST = 0.1
# What JAX says of an entry that it cannot read; an entry's file is named after its program, and a digest.
UNREADABLE = re.compile(r"Error reading persistent compilation cache entry for '([\w.-]+)'")
REMEDY = "compiled anew in every process until the file is deleted"


def default_folder() -> Path:
    """The user's cache folder for compiled programs: $XDG_CACHE_HOME/sdjax or ~/.cache/sdjax.

    Raises RuntimeError where the user has no home.
    """
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "sdjax" / "compiled"


def enable(folder: str | os.PathLike[str] | None = None, fill: Callable[[Path], Path] | None = None) -> None:
    """Turns the cache on in `folder`; without one, and unless one was chosen already, in the user's cache folder.

    fill: given the folder around the user's, makes one there that holds what `within` compiled: it takes the user's
    place. See `exported.compiled_into`.

    A folder that cannot be made is a warning, and there is no cache; from one that cannot be written to (also a
    warning) programs are only read.
    """
    if not isinstance(warnings.showwarning, _Remedy):
        warnings.showwarning = _Remedy(warnings.showwarning)
    if folder is None and getattr(jax.config, FOLDER, None) is not None:
        return
    try:
        usual = default_folder() if folder is None else Path(folder)
        path = fill(usual.parent) if fill is not None and folder is None else usual
        path.mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError) as error:
        notice(f"no compilation cache: {_why(error)}; choose a folder with compilation_cache=")
        return
    least = LEAST
    try:
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        notice(f"compiled programs are not kept: {path} cannot be written to ({error.strerror})")
        least = math.inf
    jax.config.update(FOLDER, str(path))
    jax.config.update(LEAST_SECONDS, least)
    if fill is not None and folder is None:
        jax.config.update(XLA_CACHES, "none")


@contextmanager
def within(folder: Path) -> Iterator[None]:
    """Compiles into a cache of its own in `folder`, which may be moved, and keeps every program, however small."""
    own = {FOLDER: str(folder), LEAST_SECONDS: 0.0, XLA_CACHES: "none"}
    before = {name: getattr(jax.config, name) for name in own}
    try:
        for name, value in own.items():
            jax.config.update(name, value)
        compilation_cache.reset_cache()  # JAX goes on with the folder that it first wrote to
        yield
    finally:
        for name, value in before.items():
            jax.config.update(name, value)
        compilation_cache.reset_cache()


@dataclass(frozen=True)
class _Remedy:
    """Shows a warning as `before` does; one of an unreadable entry with where it lies, and what to do."""

    before: Callable[..., None]

    def __call__(self, message: Warning | str, *args: Any, **named: Any) -> None:
        found, folder = UNREADABLE.search(str(message)), getattr(jax.config, FOLDER)
        if found and folder and REMEDY not in str(message):
            message = f"{message}. {REMEDY}: {Path(folder) / found[1]}*-cache"
        self.before(message, *args, **named)


def _why(error: OSError | RuntimeError) -> str:
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename} cannot be made ({error.strerror})"
    return str(error)
