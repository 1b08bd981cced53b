"""JAX's persistent compilation cache, on by default: what one process compiled, the next one reads from disk.

The cache is a setting of the whole process (JAX keeps it in `jax.config`); it is left alone where the user has
already chosen a folder, by `JAX_COMPILATION_CACHE_DIR` or in code.

An entry that cannot be read is compiled again, with a warning of JAX's own, and removed at the next start. One that can
be read is machine code, and runs: JAX does not ask who wrote it. So let nobody write to the folder whom you would not
let run programs.
"""

import importlib.util
import math
import os
import stat
import tempfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import jax
from jax.experimental.compilation_cache import compilation_cache

from sdjax.core.notice import notice

FOLDER, LEAST_SECONDS = "jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs"
# XLA's own caches on a GPU. Where they are on, JAX counts the folder's path as part of what a program depends on: a
# folder that was renamed or copied would be compiled anew.
XLA_CACHES = "jax_persistent_cache_enable_xla_caches"
# Programs that took longer to compile are kept, in seconds. JAX's own limit of 1 would leave out most of a small
# model's.
LEAST = 0.1
LOOKED = ".looked_at"  # its time is that of the last look for broken entries
ZSTD = b"\x28\xb5\x2f\xfd"  # how what zstd compressed begins


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

    Entries that are broken are removed. A folder that cannot be made is a warning, and there is no cache; from one that
    cannot be written to (also a warning) programs are only read.
    """
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
    else:
        remove_broken(path)
    jax.config.update(FOLDER, str(path))
    jax.config.update(LEAST_SECONDS, least)
    if fill is not None and folder is None:
        jax.config.update(XLA_CACHES, "none")


def remove_broken(folder: Path) -> None:
    """Removes the entries that cannot be read: JAX would warn of each in every process, and never write over it.

    Looked at are those that were written since the last look, whose time a file in the folder keeps: decompressing all
    of them at every start would take longer than it saves. What cannot be removed is named, with the remedy.
    """
    looked = folder / LOOKED
    try:
        last = looked.stat().st_mtime_ns if looked.exists() else 0
        looked.touch()
        entries = [(path, path.lstat()) for path in folder.glob("*-cache")]
    except OSError:  # another process clears the folder
        return
    for path, found in entries:
        regular = stat.S_ISREG(found.st_mode)
        if regular and (found.st_mtime_ns < last or _whole(path)):
            continue
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            notice(f"{path} is a broken entry of the compilation cache and stays ({error.strerror}); delete it")


def _whole(path: Path) -> bool:
    """Whether a file is all of what JAX compressed: by zlib, or by zstd where the package zstandard is installed."""
    try:
        content = path.read_bytes()
    except OSError:
        return True  # gone meanwhile, or not ours to read
    try:
        if not content.startswith(ZSTD):
            zlib.decompress(content)
        elif importlib.util.find_spec("zstandard"):
            importlib.import_module("zstandard").ZstdDecompressor().decompress(content)
    except Exception:  # each library has errors of its own
        return False
    return True


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


def _why(error: OSError | RuntimeError) -> str:
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename} cannot be made ({error.strerror})"
    return str(error)
