"""What tests/test_many_devices.py asserts, in processes of their own: simulated devices are counted before JAX starts.

    XLA_FLAGS=--xla_force_host_platform_device_count=8 python -m tests.many_devices meshes FOLDER
    XLA_FLAGS=--xla_force_host_platform_device_count=2 python -m tests.many_devices process FOLDER PORT I STEPS SECONDS

The first prints what was found over several meshes of 8 devices, as JSON. The second is one of two processes.
"""

import json
import sys
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sdjax.train.averages import Decay
from sdjax.train.checkpoint import flat, opened
from sdjax.train.fingerprints import fingerprints
from sdjax.train.interrupt import Interrupted
from sdjax.train.loop import fit, newest_step, restore
from sdjax.train.mesh import device_mesh, own_rows
from sdjax.train.metrics import Csv
from sdjax.train.optimisers import Optimiser
from sdjax.train.rates import Constant
from sdjax.train.step import Step, make_step
from tests.test_step import Regression

MESHES = {"one": (1, 1), "copied": (8, 1), "cut": (8, 8), "both": (8, 4), "four": (4, 2), "pieces": (4, 4)}


class Wide:
    """All of "unet" learns."""

    def start(self, params: Any, key: Any) -> Any:
        return {"unet": params["unet"]}

    def join(self, trainable: Any, params: Any) -> Any:
        return {**params, **trainable}


def params() -> dict[str, Any]:
    """Two kernels that are cut, and a bias that is not."""
    rng = np.random.default_rng(0)
    kernels = [rng.standard_normal(shape).astype(np.float32) / 16 for shape in ((3, 256), (256, 256))]
    return {
        "frozen": {"layer": {"kernel": rng.standard_normal((3, 3)).astype(np.float32)}},
        "unet": {"first": {"kernel": kernels[0]}, "layer": {"kernel": kernels[1], "bias": np.zeros(256, np.float32)}},
    }


class Deep(Regression):
    """Regression with the first kernel before the other."""

    def loss(self, params: Any, batch: Any) -> Any:
        first = params["frozen"]["layer"]["kernel"] @ params["unet"]["first"]["kernel"]
        return super().loss({**params, "frozen": {"layer": {"kernel": first}}}, batch)


def rows(n: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(n)
    valid = (np.arange(16) >= 5).astype(np.float32)
    return {
        "x": rng.standard_normal((16, 3)).astype(np.float32),
        "y": rng.standard_normal((16, 256)).astype(np.float32),
        "valid": valid,
    }


def made(mesh: Any, accumulate: int = 1) -> Step:
    trainable = Wide().start(params(), None)
    return make_step(
        Deep(), Wide(), trainable, params(), Optimiser(eps=1e-4), [Decay(0.9)], accumulate=accumulate, mesh=mesh
    )


def run(folder: Path, step: Step, steps: int, seconds: float = 0.0, **given: Any) -> Any:
    part = own_rows(step.mesh, 16)

    def batch(n: int) -> dict[str, np.ndarray]:
        time.sleep(seconds)
        return {name: leaf[part] for name, leaf in rows(n).items()}

    return fit(
        folder, step.begin(Wide().start(params(), None)), step, batch, Constant(1e-3), steps=steps, seed=1, settings={},
        every=1, recorders=[Csv(folder / "metrics.csv")], **given,
    )  # fmt: skip


def quiet(line: str) -> None:
    """Of `report`."""


def losses(folder: Path) -> list[float]:
    lines = (folder / "metrics.csv").read_text().splitlines()
    return [float(line.split(",")[1]) for line in lines[1:]]


def meshes(folder: Path) -> dict[str, Any]:
    """Ten steps over each mesh; ten of which the last five were over another; where the state lies."""
    found: dict[str, Any] = {"losses": {}, "largest_share": {}, "apart": {}, "marks": []}
    steps, states = {}, {}
    for name, (count, fsdp) in MESHES.items():
        steps[name] = made(device_mesh(fsdp, jax.devices()[:count]), accumulate=2 if name == "pieces" else 1)
        states[name] = run(folder / name, steps[name], 10, report=quiet)
        found["losses"][name] = losses(folder / name)
        kernel = states[name].optimiser_state[1][0].mu["unet"]["layer"]["kernel"]
        found["largest_share"][name] = max(shard.data.size for shard in kernel.addressable_shards) / kernel.size
        found["apart"][name] = apart(states[name], states["one"])
    for name, other in (("cut", "one"), ("four", "both")):
        run(folder / "moved" / name, steps[name], 5, report=quiet)
        found["apart"][f"{name} to {other}"] = apart(
            run(folder / "moved" / name, steps[other], 10, report=quiet), states["one"]
        )
    found["total"] = float(np.sum(steps["one"].evaluated(states["one"])["unet"]["layer"]["kernel"], dtype=np.float64))
    found["moved"] = apart(states["one"].params, Wide().start(params(), None))
    state = restore(folder / "cut", states["one"])
    found["marks"] = [fingerprints(flat(one)) == fingerprints(flat(states["cut"])) for one in (state, states["one"])]
    blank = jax.eval_shape(lambda: jax.tree.map(jnp.zeros_like, states["cut"]))
    with opened(folder / "cut") as checkpoints:
        found["read"] = apart(checkpoints.read(10, blank), states["cut"])
    return found


def apart(one: Any, other: Any) -> float:
    pairs = zip(jax.tree.leaves(jax.device_get(one)), jax.tree.leaves(jax.device_get(other)), strict=True)
    return max(float(np.max(np.abs(np.asarray(a, np.float64) - b))) for a, b in pairs)


def process(folder: Path, port: str, index: str, steps: str, seconds: str) -> dict[str, Any]:
    """One of two processes with two devices each: half data, half of the state."""
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(f"localhost:{port}", 2, int(index))
    step = made(device_mesh(2))
    part = own_rows(step.mesh, 16)
    said: list[str] = []
    try:
        state = run(folder, step, int(steps), float(seconds), save_seconds=1000, report=said.append)
    except Interrupted as error:
        print(json.dumps({"interrupted": str(error), "newest": newest_step(folder)}), flush=True)
        sys.exit(error.status)
    total = float(np.sum(step.evaluated(state)["unet"]["layer"]["kernel"], dtype=np.float64))
    return {
        "step": int(state.step),
        "total": total,
        "rows": [part.start, part.stop],
        "said": len(said),
        "devices": jax.device_count(),
    }


if __name__ == "__main__":
    _, NAME, FOLDER, *REST = sys.argv
    print(json.dumps({"meshes": meshes, "process": process}[NAME](Path(FOLDER), *REST)))
