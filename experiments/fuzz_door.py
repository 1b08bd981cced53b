"""The doors of `fuzz_checkpoints`: small sound checkpoints, one mutated copy of them a case, opened and judged.

A Door opens a copy as a user would and compares what comes out with the bytes, read by hand. Which tensor a parameter
comes from is found by the numbers of the sound checkpoint alone, so that no table of names is trusted.
"""

import json
import os
import re
import resource
import shutil
import tempfile
import time
import traceback
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from random import Random
from typing import Any

import numpy as np

from experiments.fuzz_mutations import (
    DTYPES,
    KINDS,
    ONLY,
    SCHEDULER_KEYS,
    WEIGHTS,
    Mutation,
    file_of,
    files,
    tensors_of,
)

SECONDS = 10.0  # of work, after which a case is too slow
ROOM = 3 << 30  # address space a worker may take beyond its own
WIDENED = ("folder", "vae.safetensors")  # opened with everything in float32; others keep each tensor's dtype
FAMILIES = ("bk_sdm_tiny", "sd21", "sdxl_refiner")
MiB = 2**20


@dataclass(frozen=True)
class Result:
    """One case: `outcome` is "loaded", "refused", or what went wrong, in capitals."""

    case: int
    base: str
    kind: str
    outcome: str
    message: str = ""
    seconds: float = 0.0
    mebibytes: float = 0.0


# ---------------------------------------------------------------------- the sound checkpoints


def make_bases(folder: Path, families: Sequence[str] = FAMILIES) -> None:
    """Writes the checkpoints that are to be mutated: a folder, one in shards, an autoencoder, files of `families`."""
    from sdjax.weights import default_layout, save_single_file
    from tests.checkpoints import make_checkpoint, random_params
    from tests.single_files import SMALL, expected

    make_checkpoint(folder / "folder")
    shutil.copytree(folder / "folder", folder / "shards")
    for file in files(folder / "shards", "*.safetensors"):
        _shard(file)
    shutil.copy(folder / "folder/vae/diffusion_pytorch_model.safetensors", folder / "vae.safetensors")
    for family in families:
        preset, parts = SMALL[family], {}
        for seed, (name, tree) in enumerate(expected(preset.configs).items()):
            params = random_params(tree, np.float16, seed)
            parts[name] = params, default_layout(params, preset.configs[name])
        save_single_file(folder / f"{family}.safetensors", preset.configs, parts, preset.scheduler)


def _shard(file: Path) -> None:
    tensors = sorted(tensors_of(file.read_bytes()).items())
    shards = {f"{file.stem}-0000{i + 1}-of-00003.safetensors": dict(tensors[i::3]) for i in range(3)}
    for name, own in shards.items():
        (file.parent / name).write_bytes(file_of(own))
    weight_map = {tensor: name for name, own in shards.items() for tensor in own}
    text = json.dumps({"metadata": {"total_size": 1}, "weight_map": weight_map})
    file.with_name(f"{file.name}.index.json").write_text(text)
    file.unlink()


def make_case(
    seed: int,
    case: int,
    bases: Path,
    into: Path,
    kinds: Mapping[str, Mutation] = KINDS,
    only: Mapping[str, Sequence[str]] = ONLY,
) -> tuple[str, str, Path]:
    """A base's name, the kind of mutation, and where the mutated copy lies.

    kinds: of mutations, by name. only: the bases that a kind is for, where not for all.
    """
    rng = Random(f"{seed} {case}")
    kind = rng.choices(list(kinds), [WEIGHTS.get(kind, 2.0) for kind in kinds])[0]
    base = rng.choice(only.get(kind) or sorted(path.name for path in bases.iterdir()))
    path = into / base
    shutil.copytree(bases / base, path) if path.suffix == "" else shutil.copy(bases / base, path)
    kinds[kind](rng, path)
    return base, kind, path


# ---------------------------------------------------------------------- opened and judged


class Wrong(Exception):
    """A checkpoint was loaded, and not as its bytes say."""


class Door:
    """Opens checkpoints as a user would, and checks what came out. One a process."""

    make_case = staticmethod(make_case)

    def __init__(self, bases: Path) -> None:
        from sdjax.nn import shapes
        from sdjax.weights import open_single_file, source
        from tests.single_files import SMALL

        self.bases = bases
        # Single files are of narrow networks, and a network already traced is not traced again.
        source.open_single_file = partial(open_single_file, presets=SMALL)  # type: ignore[assignment]
        traced = shapes.expected_params
        one = cache(lambda name, config: traced({name: config})[name])
        shapes.expected_params = lambda configs: {name: one(name, config) for name, config in configs.items()}
        self.sources = {base.name: self._sources(base) for base in sorted(bases.iterdir())}

    def _sources(self, base: Path) -> dict[tuple[str, ...], tuple[str, int | None]]:
        """Of each parameter the tensor, or the third of one, that holds its numbers: found by the numbers alone."""
        held = {}
        for component, name, array in tensors_in(base):
            for third, part in [(None, array), *enumerate(np.split(array, 3) if len(array) % 3 == 0 else ())]:
                held[component, _sorted(part)] = name, third
        return {place: held[_of(base, place), _sorted(array)] for place, array in _flat(self.open(base))}

    def open(self, path: Path) -> Mapping[str, Any]:
        """The parameters by component; of a folder its sampler's plans are made as well."""
        import sdjax
        from sdjax.config import read_networks
        from sdjax.nn import shapes
        from sdjax.weights import open_checkpoint

        if path.name == "vae.safetensors":
            return {"vae": sdjax.load(self.bases / "folder", vae=path, compilation_cache=False).params["vae"]}
        if path.suffix == "":
            dtype = "float32" if path.name in WIDENED else "float16"
            sd = sdjax.load(path, dtype=dtype, compilation_cache=False)
            for sampler in ("ddim", "euler", "dpmpp_2m"):
                sd.plan(sampler, min(2, sd.scheduler.get("num_train_timesteps") or 2))
            return sd.params
        opened = open_checkpoint(path)
        trees = shapes.expected_params(read_networks(opened.configs))
        return {name: opened.read(name, tree)[0] for name, tree in trees.items()}

    def check(self, path: Path, params: Mapping[str, Any]) -> None:
        """Raises Wrong unless each parameter is the tensor that the base's own came from, read by hand."""
        held = {(component, name): array for component, name, array in tensors_in(path)}

        @cache
        def numbers() -> set[tuple[str | None, bytes]]:
            return {(component, _sorted(array)) for (component, _), array in held.items()}

        for place, array in _flat(params):
            component = _of(path, place)
            name, third = self.sources[path.name].get(place, (None, None))
            stored = None if name is None else held.get((component, name))
            if stored is None:  # a name of older files, or a network that another config asks for
                right = (component, _sorted(array)) in numbers()
            else:
                part = stored if third is None else np.split(stored, 3)[third]
                right = any(np.array_equal(_bits(array), _bits(one)) for one in _turned(part))
                right &= array.dtype in ((np.float32,) if path.name in WIDENED else (part.dtype,))
            if not right:
                raise Wrong(f"{'.'.join(place)} is not what {name} holds")


def tensors_in(path: Path) -> Iterator[tuple[str | None, str, np.ndarray]]:
    """(component in a folder, name, numbers) of every tensor; eight bits are widened, 64 rounded to 32."""
    for file in files(path, "*.safetensors"):
        for name, (dtype, shape, data) in tensors_of(file.read_bytes()).items():
            if dtype not in DTYPES:  # of something that was left alone
                continue
            array = np.frombuffer(data, DTYPES[dtype]).reshape(shape)
            read_as = np.float16 if dtype.startswith("F8") else np.float32 if dtype == "F64" else array.dtype
            with np.errstate(over="ignore"):
                yield (file.parent.name if path.is_dir() else None, name, array.astype(read_as, copy=False))


def _of(path: Path, place: tuple[str, ...]) -> str | None:
    return place[0] if path.suffix == "" else None


def _flat(tree: Mapping[str, Any], above: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], np.ndarray]]:
    for key, value in tree.items():
        yield from _flat(value, (*above, key)) if isinstance(value, Mapping) else [((*above, key), np.asarray(value))]


def _turned(stored: np.ndarray) -> Iterator[np.ndarray]:
    """A tensor as it is, as a linear layer's kernel, as a convolution's."""
    yield from (stored, stored.T)
    if stored.ndim == 4:
        yield from (stored.transpose(2, 3, 1, 0), stored[:, :, 0, 0].T)


def _bits(array: np.ndarray) -> np.ndarray:
    """Of the numbers in float32, which holds those of every dtype that parameters may have."""
    return np.ascontiguousarray(array).astype(np.float32).view(np.uint32)


def _sorted(array: np.ndarray) -> bytes:
    return np.sort(_bits(array), axis=None).tobytes()


def run_case(door: Any, seed: int, case: int, traced: bool = False) -> Result:
    """Mutates, opens, judges; traced: prints the traceback of an error."""
    with tempfile.TemporaryDirectory(prefix="fuzz") as folder:
        base, kind, path = door.make_case(seed, case, door.bases, Path(folder))
        size = sum(file.stat().st_size for file in files(path) if file.stat().st_blocks) if path.exists() else 0
        Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
        before, begun, outcome, message = _memory("VmRSS"), time.process_time(), "loaded", ""
        try:
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                params = door.open(path)
            if stray := [one for one in caught if one.category is not UserWarning]:
                outcome, message = "STRAY WARNING", str(stray[0].message)
        except Exception as error:
            if traced:
                traceback.print_exc()
            params, outcome, message = None, judge(error, path), f"{type(error).__name__}: {error}"
        seconds, grown = time.process_time() - begun, (_memory("VmHWM") - before) / MiB
        if params is not None:
            try:
                door.check(path, params)
            except Wrong as error:
                outcome, message = "WRONG NUMBERS", str(error)
        if seconds > SECONDS:
            outcome, message = "SLOW", f"{seconds:.1f} s: {outcome} {message}"
        if grown > 64 + 20 * size / MiB:
            outcome, message = "MEMORY", f"{grown:.0f} MiB: {outcome} {message}"
        return Result(case, base, kind, outcome, message.replace(folder, ""), seconds, grown)


def judge(error: Exception, path: Path) -> str:
    """ "refused" where an error is one that a user can act on, else what is wrong with it."""
    *_, (frame, _line) = traceback.walk_tb(error.__traceback__)
    message = str(error)
    if not isinstance(error, ValueError) or not frame.f_globals.get("__name__", "").startswith("sdjax"):
        return "WRONG ERROR"
    if re.search(r"NoneType|object has no|not subscriptable|operand|Traceback|unhashable", message):
        return "UNCLEAR"
    if len(message) > 4000 or not all(c.isprintable() or c == "\n" for c in message):
        return "UNREADABLE"
    named = path.stem in message or ".json" in message or any(key in message for key in SCHEDULER_KEYS)
    return "refused" if named else "NAMES NOTHING"


def _memory(what: str) -> int:
    return int(re.search(rf"{what}:\s+(\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024  # type: ignore[index]


def serve(pipe: Any, opens: type, bases: Path, seed: int) -> None:
    """A worker: takes numbers of cases, gives results; opens: a class as Door."""
    warnings.simplefilter("ignore")
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    door = opens(bases)
    size = _memory("VmSize") + ROOM
    resource.setrlimit(resource.RLIMIT_AS, (size, size))
    pipe.send(None)
    while (case := pipe.recv()) is not None:
        pipe.send(run_case(door, seed, case))
