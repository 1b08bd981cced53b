"""Programs compiled ahead of time: a folder from which a new process runs without tracing.

    sdjax.export(sd, "programs", sizes=[(512, 512)])             # once
    sd = sdjax.load(model, exported="programs")                  # in every process from then on

A picture is made once, on shapes alone: every call of a program is noted in place of computing it, and what was noted
is traced, lowered, written down (`jax.export`) and compiled. So the folder holds exactly what a picture goes through,
and one program of each kind serves all prompts, seeds, samplers, scales and steps (up to 64 evaluations), as ever.
"""

import hashlib
import itertools
import json
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from jax import export as jax_export

from sdjax.core.files import replaced
from sdjax.core.jit import Program
from sdjax.core.keys import settled
from sdjax.core.short import short
from sdjax.request import checks
from sdjax.request.arguments.adapters import Adapters
from sdjax.request.arguments.size_conditioning import REFINER_IDS
from sdjax.request.control import Controls, ImagePrompts
from sdjax.runtime import compilation_cache
from sdjax.runtime.exported import COMPILED, FORMAT, MANIFEST, fingerprint, is_export, made_by, runnable
from sdjax.runtime.signature import ProgramSignature
from sdjax.weights.write import make_folder, write_bytes

if TYPE_CHECKING:
    from sdjax.pipeline import StableDiffusion

# A custom call that XLA promises nothing about between its versions; a program is only run by the one that made it.
UNSTABLE = ("__cudnn$fmhaSoftmax",)


def export(
    sd: "StableDiffusion",
    folder: str | Path,
    sizes: Sequence[tuple[int, int]] | None = None,
    *,
    batches: Sequence[int] = (1,),
    guidance: Sequence[bool] = (True,),
    adapters: Adapters = None,
    control: Controls = None,
    image_prompt: ImagePrompts = None,
) -> Path:
    """Writes the programs of `sd` into `folder`, and returns it. They are compiled here, which takes its time.

    Args:
      folder: a new one, an empty one, or one that an earlier export wrote, which is replaced.
      sizes: (height, width) of the pictures, in pixels; default the checkpoint's own size.
      batches: how many pictures at once. guidance: whether with it (True), without, or both.
      adapters: as `generate` takes them, for pictures that wear these, or others of as many ranks in all: their
        programs besides those without. What is merged needs none.
      control, image_prompt: as `generate` takes them, for pictures that these networks steer: their programs besides
        those without. What they look at and how strongly they count is data.

    Raises:
      ValueError: anything out of range, or a folder that holds something else, before anything is traced.
      ImportError: the package flatbuffers, with which JAX writes programs, is not installed.
    """
    if not hasattr(sd, "encoders"):
        raise ValueError(f"export takes a loaded model, as sdjax.load() gives one, not {short(sd)}")
    out, sizes = Path(folder).resolve(), [_native(sd)] if sizes is None else sizes
    _check(sd, out, sizes, batches, guidance)
    found = calls(sd, sizes, batches, guidance, adapters, control, image_prompt)
    make_folder(out.parent)
    with replaced(out) as unfinished:
        make_folder(unfinished / COMPILED)
        entries = {call.digest: _write(unfinished, call, *found[call]) for call in found}
        said = f"{_listed(sizes)} in batches of {_listed(batches)}, guidance {_listed(guidance)}"
        manifest = _manifest(sd, said, entries, _sums(unfinished / COMPILED))
        write_bytes(unfinished / MANIFEST, json.dumps(manifest, indent=1).encode())
    return out


# ---------------------------------------------------------------------- what a picture goes through


def calls(
    sd: "StableDiffusion",
    sizes: Sequence[tuple[int, int]] | None = None,
    batches: Sequence[int] = (1,),
    guidance: Sequence[bool] = (True,),
    adapters: Adapters = None,
    control: Controls = None,
    image_prompt: ImagePrompts = None,
) -> dict[ProgramSignature, tuple[Program, Any]]:
    """Every call that such pictures go through, with its program and its arguments' shapes; see `export`."""
    recorder = Recorder()
    for (height, width), count, guided in itertools.product(sizes or [_native(sd)], batches, guidance):
        steered = {"control": control, "image_prompt": image_prompt}
        pictures = _pictures(sd, height, width, count)
        for given, worn, by in itertools.product(pictures, (None, adapters), ({}, steered)):
            _record(sd, recorder, given | {"guidance_scale": 2.0 if guided else 1.0, "adapters": worn} | by)
    return {call: (program, data) for call, (program, data, _) in recorder.calls.items()}


def _native(sd: "StableDiffusion") -> tuple[int, int]:
    return sd.spec.side, sd.spec.side


@dataclass(frozen=True, eq=False)
class Recorder:
    """An executor that computes nothing: notes the calls, and answers with zeros of the right shapes.

    Attributes:
      calls: each call's program, its arguments as `jax.ShapeDtypeStruct`, and what it gives likewise.
    """

    calls: dict[ProgramSignature, tuple[Program, Any, Any]] = field(default_factory=dict)

    def run(self, program: Program, *args: Any) -> Any:
        """See `Executor.run`."""
        call, data = ProgramSignature.of(program, args)
        if call not in self.calls:
            shapes = _shapes(data)
            with settled():
                self.calls[call] = program, shapes, program.inside.eval_shape(*call.static, *shapes)
        return jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), self.calls[call][2])

    def shard_inputs(self, tree: Any, axis: int, parts: int | None = None) -> Any:
        """The tree as it is."""
        return tree

    def place(self, params: Any) -> Any:
        """Shapes alone."""
        return _shapes(params)


def _record(sd: "StableDiffusion", recorder: Recorder, given: dict[str, Any]) -> None:
    """Makes a picture of shapes alone, by a sampler that draws noise: it goes through every program there is."""
    networks = sd.networks
    shapes = {name: _shapes(tree) for name, tree in networks.params.items()}
    blank = replace(networks, stored=shapes, params=shapes, executor=recorder)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the picture, which nobody will see
        whole = given | {"sampler": "euler_ancestral", "show_steps": 1, "progress": False}
        replace(sd, networks=blank, params=shapes).generate(**whole)


def _shapes(tree: Any) -> Any:
    """Arrays -> `jax.ShapeDtypeStruct`."""
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), tree)


def _pictures(sd: "StableDiffusion", height: int, width: int, count: int) -> Iterator[dict[str, Any]]:
    """Arguments of `generate` for each way to a picture of that size that the model has."""
    task, size = sd.spec.task, {"height": height, "width": width}
    prompt: dict[str, Any] = {"prompt": [""] * count}
    blank = np.zeros((height, width, 3), np.uint8)
    if task.enlarges:
        yield prompt | {"image": blank[:: sd.vae.factor, :: sd.vae.factor]}
    elif task.varies:
        yield size | {"image": blank, "num_images": count}
    elif task.shows_mask:
        yield prompt | {"image": blank, "mask": blank[..., 0] + np.uint8(255)}
    elif sd.time_ids == REFINER_IDS:
        shape = (count, height // sd.vae.factor, width // sd.vae.factor, sd.vae.latent_channels)
        yield prompt | size | {"latents": np.zeros(shape, np.float32), "denoising_start": 0.8}
    else:
        if not task.needs:
            yield prompt | size
        yield prompt | size | {"image": blank}


# ---------------------------------------------------------------------- the folder


def _write(folder: Path, call: ProgramSignature, program: Program, data: Any) -> dict[str, Any]:
    """Writes a program and what XLA makes of it; returns its entry in the manifest."""
    unstable = [jax_export.DisabledSafetyCheck.custom_call(name) for name in UNSTABLE]
    with settled():
        made = jax_export.export(program.inside, disabled_checks=unstable)(*call.static, *data)
    content, name = bytes(made.serialize()), f"{call.function}-{call.digest[:16]}.bin"
    write_bytes(folder / name, content)
    with compilation_cache.within(folder / COMPILED):
        runnable(program, content).lower(*data).compile()
    return {"file": name, "sha256": hashlib.sha256(content).hexdigest(), **call.described()}


def _sums(compiled: Path) -> dict[str, str]:
    """The sha256 of each entry; what JAX lays beside them (when they were last read) is none."""
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(compiled.glob("*-cache"))}


def _manifest(sd: "StableDiffusion", sizes: str, entries: dict[str, Any], compiled: dict[str, str]) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "made_by": made_by(),
        "name": sd.name,
        "dtype": np.dtype(sd.dtype).name,
        "model": fingerprint(sd.spec.configs, sd.dtype),
        "sizes": sizes,
        "programs": entries,
        "compiled": compiled,
    }


def _check(sd: Any, out: Path, sizes: Sequence[Any], batches: Sequence[Any], guidance: Sequence[Any]) -> None:
    """Raises ValueError, or ImportError where programs cannot be written."""
    for name, given in (("sizes", sizes), ("batches", batches), ("guidance", guidance)):
        if not isinstance(given, Sequence) or isinstance(given, str) or not given:
            raise ValueError(f"{name} must be a list with at least one entry, not {given!r}")
    for size in sizes:
        if not isinstance(size, Sequence) or isinstance(size, str) or len(size) != 2:
            raise ValueError(f"sizes must be (height, width) each, as [(512, 512)], not {size!r}")
        for name, pixels in zip(("height", "width"), size, strict=True):
            checks.check_size(pixels, -1, sd.vae.factor, f"sizes: {name}")
    for count in batches:
        checks.check_count(count, 1, "batches: each")
    if not all(isinstance(one, bool) for one in guidance):
        raise ValueError(f"guidance must hold True (with), False (without) or both, not {guidance!r}")
    if out.exists() and not out.is_dir():
        raise ValueError(f"{out} is a file; programs are exported into a folder")
    if out.is_dir() and any(out.iterdir()) and not is_export(out):
        raise ValueError(f"{out} holds other files and no exported programs; give a new or an empty folder")
    try:
        import flatbuffers  # noqa: F401
    except ImportError:
        raise ImportError("JAX writes programs with the package flatbuffers: pip install flatbuffers") from None


def _listed(values: Sequence[Any]) -> str:
    """In words: 512 x 512, 768 x 768."""
    return ", ".join(" x ".join(map(str, one)) if isinstance(one, tuple | list) else str(one) for one in values)
