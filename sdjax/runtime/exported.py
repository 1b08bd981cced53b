"""Programs that another process has exported: found by the call they are for, and run without tracing.

    folder/manifest.json       what the programs are for, of which versions, and each file's sha256
           <function>-*.bin    one program each: StableHLO in JAX's own format (`jax.export`)
           compiled/           what XLA made of them: machine code, in entries of a compilation cache as JAX keeps it

Tracing and lowering, which are Python's work and take longer than a small picture, happen when a folder is written
(`sdjax.export`). To open a folder is to run what is in it, as it is with any program. The sums in the manifest tell a
file that was damaged or exchanged, and such a folder is refused; but who writes a manifest of his own writes its sums
as well. So open none that you would not run a program from.

Nothing is written into the folder. Its compiled entries are copied to the user's cache, into a folder for this export
alone (no other process takes a stranger's entry for its own), and what is compiled besides is kept there.
"""

import errno
import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import jaxlib
from jax import export
from jax.typing import DTypeLike

from sdjax.config import Config
from sdjax.core.files import irregular, write
from sdjax.core.jit import Program, options
from sdjax.core.notice import notice
from sdjax.core.version import VERSION
from sdjax.diffusion.guidance import Guidance
from sdjax.runtime.signature import ProgramSignature, digest

FORMAT = 2
MANIFEST, COMPILED = "manifest.json", "compiled"
AGAIN = "write it again with sdjax.export"
ALONE = ("predict",)  # programs that no picture goes through, and that are never exported


@dataclass(frozen=True, eq=False)
class Exported:
    """An executor of exported programs; calls that were not exported are compiled, with a warning.

    Attributes:
      folder: where they lie. files: each program's file by its call's digest. sizes: what they are for, in words.
      compiled: the sha256 of each entry of `compiled/`. name: a digest of the whole manifest.
    """

    folder: Path
    files: Mapping[str, Path]
    sizes: str
    compiled: Mapping[str, str] = field(default_factory=dict)
    name: str = ""
    _ready: dict[ProgramSignature, Callable[..., Any]] = field(default_factory=dict, repr=False)
    _missed: set[str] = field(default_factory=set, repr=False)

    def run(self, program: Program, *args: Any) -> Any:
        """See `Executor.run`."""
        if program.name in ALONE:
            return program(*args)
        call, data = ProgramSignature.of(program, args)
        if call not in self._ready:
            self._ready[call] = self._find(program, call)
        return self._ready[call](*data)

    def shard_inputs(self, tree: Any, axis: int, parts: int | None = None) -> Any:
        """The tree as it is, on one device; a folder's program evaluates all of the guidance, also in intervals."""
        return tree.complete() if isinstance(tree, Guidance) else tree

    def place(self, params: Any) -> Any:
        """On JAX's default device."""
        return jax.tree.map(jnp.asarray, params)

    def _find(self, program: Program, call: ProgramSignature) -> Callable[..., Any]:
        file = self.files.get(call.digest)
        if file is not None:
            return runnable(program, file.read_bytes())
        if call.function not in self._missed:
            self._missed.add(call.function)
            notice(
                f"{self.folder} has no program {call.function!r} for this call, which is compiled: it was exported "
                f"for {self.sizes}. Export what you need with sdjax.export(sd, folder, sizes=...)"
            )
        return partial(program, *call.static)


def runnable(program: Program, content: bytes) -> Any:
    """An exported form of a program, jitted: takes the program's arguments but the static."""
    call = export.deserialize(bytearray(content)).call
    # Said, since results of such a program claim to lie on a mesh of no axes, and the next program, asked to take them
    # as they are, would be another one than that which was compiled when the folder was written.
    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return jax.jit(call, donate_argnums=program.donate, in_shardings=here, compiler_options=options())


def open_exported(folder: str | Path, networks: Mapping[str, Config], dtype: DTypeLike) -> Exported | None:
    """The programs in `folder`, for a model of these networks that computes in `dtype`; None where they cannot run.

    They cannot, which is a warning, under another version or on another device than they were made for.

    Raises ValueError for a folder without programs, a damaged one, or programs of another model.
    """
    folder = Path(folder)
    manifest = _Read(_parsed(folder), folder)
    if manifest("format", int) != FORMAT:
        raise ValueError(f"{folder}: its format is {manifest('format', int)}, and this sdjax knows {FORMAT}; {AGAIN}")
    there, here = manifest("made_by", dict), made_by()
    other = [f"{name} {there.get(name)} and not {here[name]}" for name in here if there.get(name) != here[name]]
    if other:
        notice(f"{folder} is of {', '.join(other)}: its programs are not used, but compiled anew")
        return None
    if manifest("model", str) != fingerprint(networks, dtype):
        raise ValueError(
            f"{folder} was exported from {manifest('name', str)} in {manifest('dtype', str)}, which is another model "
            f"or dtype than this one; {AGAIN}"
        )
    listed = manifest("programs", dict)
    files = {}
    for call, entry in listed.items():
        own = _Read(entry, folder)
        files[call] = folder / own("file", str)
        _checked(folder, own("file", str), own("sha256", str))
    compiled = _compiled(folder, manifest("compiled", dict))
    return Exported(folder, files, manifest("sizes", str), compiled, digest(manifest.values))


def compiled_into(exported: Exported, caches: Path) -> Path:
    """Copies the compiled entries into a folder of their own among the user's `caches`, and returns it.

    Raises OSError where it cannot be written, and ValueError for an entry that was exchanged since.
    """
    own = caches / "exported" / exported.name[:16]
    own.mkdir(parents=True, exist_ok=True)
    for name, sha256 in exported.compiled.items():
        content = _checked(exported.folder / COMPILED, name, sha256)
        if not (own / name).exists() or (own / name).read_bytes() != content:
            write(content, own / name, "the compiled programs")
    return own


def is_export(folder: Path) -> bool:
    """Whether `sdjax.export` wrote the folder, in whatever state it is."""
    try:
        return {"format", "made_by", "programs"} <= set(_parsed(folder))
    except (ValueError, TypeError):
        return False


def fingerprint(networks: Mapping[str, Config], dtype: DTypeLike) -> str:
    """What of a model its programs depend on, as a digest: all its configs, and what it computes in."""
    return digest({"networks": dict(networks), "dtype": dtype})


def made_by() -> dict[str, str]:
    """What must be the same where a program was exported and where it runs."""
    device, source = jax.devices()[0], hashlib.sha256()
    for path in sorted(Path(__file__).parents[1].rglob("*.py")):
        source.update(path.read_bytes())
    return {
        "sdjax": f"{VERSION} ({source.hexdigest()[:12]})",
        "jax": jax.__version__,
        "jaxlib": jaxlib.__version__,
        "device": f"{device.platform}: {device.device_kind}",
    }


# ---------------------------------------------------------------------- the manifest


@dataclass(frozen=True)
class _Read:
    """Typed access to what a manifest holds. Raises ValueError."""

    values: Any
    folder: Path

    def __call__(self, key: str, kind: type) -> Any:
        value = self.values.get(key) if isinstance(self.values, dict) else None
        if not isinstance(value, kind):
            raise ValueError(f"{self.folder / MANIFEST} is damaged: {key!r} is no {kind.__name__}; {AGAIN}")
        return value


def _parsed(folder: Path) -> Any:
    try:
        return json.loads(_content(folder / MANIFEST))
    except OSError as error:
        raise ValueError(f"{folder} holds no exported programs ({MANIFEST}: {error.strerror}); {AGAIN}") from None
    except (ValueError, RecursionError):
        raise ValueError(f"{folder / MANIFEST} is damaged: it is not JSON; {AGAIN}") from None


def _checked(folder: Path, name: str, sha256: str) -> bytes:
    """What a file holds, which must lie in the folder and be what was written. Raises ValueError."""
    if not name or Path(name).name != name:
        raise ValueError(f"{folder}: the manifest is damaged: the file {name!r} leads out of the folder; {AGAIN}")
    try:
        content = _content(folder / name)
    except (OSError, ValueError) as error:
        raise ValueError(f"{folder / name} cannot be read ({error}); {AGAIN}") from None
    if hashlib.sha256(content).hexdigest() != sha256:
        raise ValueError(f"{folder / name} is not the file that was exported: truncated or changed; {AGAIN}")
    return content


def _compiled(folder: Path, listed: dict[str, Any]) -> dict[str, str]:
    """The sha256 of each entry of `compiled/`, all of which must be there and no other. Raises ValueError.

    Made anew in place of one that was exchanged, they would cost every process what they are there to save, and say
    nothing of the rest of the folder, which the same hand may have reached.
    """
    for name in listed:
        _checked(folder / COMPILED, name, _Read(listed, folder)(name, str))
    others = sorted({path.name for path in (folder / COMPILED).glob("*-cache")} - set(listed))
    if others:
        raise ValueError(f"{folder / COMPILED / others[0]} is no entry that was exported; {AGAIN}, or delete it")
    return listed


def _content(path: Path) -> bytes:
    """Raises OSError, also for what is no file: a pipe would be waited for."""
    if irregular(path):
        raise OSError(errno.EINVAL, "no file")
    return path.read_bytes()
