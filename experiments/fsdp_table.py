"""What a training step of a full-size model would hold and send on many devices, by XLA's own count; nothing is run.

    python -m experiments.fsdp_table                              # SDXL over 64 devices; half an hour, 10 GB
    python -m experiments.fsdp_table --model=sd15 --size=512 --devices=8 --meshes=8,4,1
    python -m experiments.fsdp_table --model=sd15 --size=512 --devices=1 --meshes=1 --method=lora --noremat

The whole step (U-Net computed in bfloat16, blocks computed again on the way back unless told otherwise, gradient,
clipping, AdamW, one average; latents, texts and sizes given) is lowered and compiled for simulated devices, for one
picture on each: of the full U-Net, or of LoRAs of rank 16 beside its attention. A row a mesh: --meshes says over how
many devices the state is cut. Of one device, in GB: what it holds between steps, what the step takes beside that, and
what it sends in collectives, by kind, as the sum of their results' sizes. (On a CPU XLA leaves an all-reduce whose
result is cut as it is; on a TPU or GPU it becomes a reduce-scatter. And 16-bit programs hold float32 copies there of
what they multiply.)
"""

import math
import os
import re
from typing import Any

from absl import flags

from experiments import _cli, _presets
from experiments.tpu.hlo import COLLECTIVES, bytes_of

RESULT = re.compile(rf"= (.*?) ({'|'.join(COLLECTIVES)})(?:-start)?\(")


def define_flags() -> None:
    """Called for the program only."""
    flags.DEFINE_string("model", "sdxl", "A preset of sdjax.config.presets, by its name.")
    flags.DEFINE_integer("devices", 64, "How many are simulated.", lower_bound=1)
    flags.DEFINE_list("meshes", ["64", "8"], "Over how many of them the state is cut.")
    flags.DEFINE_integer("size", 1024, "Height and width of a picture, pixels.")
    flags.DEFINE_enum("method", "full", ["full", "lora"], "What learns.")
    flags.DEFINE_enum("dtype", "bfloat16", ["bfloat16", "float32"], "What the U-Net computes in.")
    flags.DEFINE_bool("remat", True, "Whether blocks are computed again on the way back.")


def compiled(model: Any, size: int, fsdp: int, way: str) -> tuple[Any, int]:
    """The step's program over all devices with the state cut over `fsdp`; bytes on one device of what is held."""
    import jax
    import jax.numpy as jnp

    from sdjax.nn.shapes import expected_params
    from sdjax.train.averages import Decay
    from sdjax.train.losses.denoising import Denoising
    from sdjax.train.mesh import batch_sharding, device_mesh, place
    from sdjax.train.methods import Full, LoRA
    from sdjax.train.optimisers import Optimiser
    from sdjax.train.state import TrainState
    from sdjax.train.step import make_step

    mesh, params = device_mesh(fsdp), expected_params({"unet": model.unet})
    optimiser, averages = Optimiser(), [Decay(0.999)]
    key = jax.eval_shape(lambda: jax.random.key(0))
    method = Full() if way == "full" else LoRA(rank=16)
    learns = jax.eval_shape(method.start, params, key)
    step = make_step(Denoising(model), method, learns, params, optimiser, averages, mesh=mesh)
    state = place(jax.eval_shape(lambda p: TrainState.create(p, optimiser, averages), learns), mesh)
    shapes, share = _presets.batch(model, size, mesh.size), batch_sharding(mesh)
    given = {name: jax.ShapeDtypeStruct(shape, jnp.float32, sharding=share) for name, shape in shapes.items()}
    held = sum(
        leaf.dtype.itemsize * math.prod(leaf.sharding.shard_shape(leaf.shape))
        for leaf in jax.tree.leaves((state, step.frozen))
    )
    lowered = step.run.lower(state, given, key, jnp.float32(1e-4), step.frozen)
    return lowered.compile(), held


def sent(text: str) -> dict[str, float]:
    """GB of the results of each kind of collective in a program's text."""
    total: dict[str, float] = {}
    for result, kind in RESULT.findall(text):
        total[kind] = total.get(kind, 0.0) + bytes_of(result)
    return {kind: size / 1e9 for kind, size in total.items()}


def main(values: Any) -> None:
    """Prints the table."""
    # Before JAX starts. What is read here is settled before LLVM makes code of it.
    simulated = f"--xla_force_host_platform_device_count={values.devices} --xla_backend_optimization_level=0"
    os.environ["XLA_FLAGS"] = simulated
    model = _presets.architecture(values.model, values.dtype, values.remat)
    how = f"{values.method}, {values.dtype}, {'with' if values.remat else 'without'} remat"
    where = f"one picture on each of {values.devices} devices"
    print(f"{values.model}, {how}, {values.size} x {values.size}, {where}; GB of one")
    print(
        f"{'data x fsdp':>12} {'held':>8} {'beside':>8} " + " ".join(f"{kind:>18}" for kind in COLLECTIVES), flush=True
    )
    for fsdp in map(int, values.meshes):
        program, held = compiled(model, values.size, fsdp, values.method)
        memory, moved = program.memory_analysis(), sent(program.as_text())
        row = f"{values.devices // fsdp} x {fsdp}"
        cells = " ".join(f"{moved.get(kind, 0.0):18.2f}" for kind in COLLECTIVES)
        print(f"{row:>12} {held / 1e9:8.2f} {memory.temp_size_in_bytes / 1e9:8.2f} {cells}", flush=True)


if __name__ == "__main__":
    define_flags()
    _cli.run(lambda: main(flags.FLAGS))
