"""The sides take turns: ours, theirs, ours, theirs ..., so that what slows the machine down slows down both."""

import statistics
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import jax

from experiments.benchmark import floor, memory
from experiments.benchmark.ours import networks
from experiments.benchmark.subject import Job
from experiments.benchmark.worker import Failed, Worker
from sdjax.nn.shapes import expected_params


def measure(job: Job, sides: Sequence[str], repeats: int, ceiling: float, limit: float) -> dict[str, Any]:
    """The table's entry for one job.

    ceiling: operations a second. limit: seconds that a side may take. A side that fails or takes longer has `failed`,
    why, in place of its figures. Where the machine cannot hold all sides at once, one runs after the other, and the
    entry's `in_turns` says so.
    """
    useful, together = floor.useful(job), fits(job, len(sides))
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        for group in [sides] if together else [[side] for side in sides]:
            found |= timed(job, group, repeats, Path(folder), limit)
        if "failed" not in found["sdjax"]:  # the other sides keep nothing, or take too long to be asked twice
            again = timed(job, ["sdjax"], 0, Path(folder), limit)["sdjax"]
            found["sdjax"] |= {"warm": again.get("cold"), "warm_peak": again.get("peak")}
    for one in found.values():
        if "failed" not in one:
            one["share"] = useful / one["median"] / ceiling
    asked = {"row": job.row, "family": job.family, "size": job.size, "batch": job.batch, "steps": job.steps}
    return {**asked, "dtype": job.dtype, "tflop": useful / 1e12, "in_turns": together, **ratios(found), "sides": found}


def ratios(found: Mapping[str, Any]) -> dict[str, Any]:
    """Ours to each other side's; `ratio` is that to `best`, the fastest of diffusers', as is `memory_ratio`."""
    there = {side: one for side, one in found.items() if "failed" not in one}
    if "sdjax" not in there:
        return {"ratios": {}}
    ours = there["sdjax"]
    made: dict[str, Any] = {"ratios": {side: ours["median"] / one["median"] for side, one in there.items()}}
    theirs = there.keys() - {"sdjax", "openvino"}
    if theirs:
        best = min(theirs, key=lambda side: there[side]["median"])
        made |= {"best": best, "ratio": made["ratios"][best], "memory_ratio": ours["peak"] / there[best]["peak"]}
    return made


def timed(job: Job, sides: Sequence[str], repeats: int, folder: Path, limit: float) -> dict[str, Any]:
    """Of each side, seconds of its first call, of its others and their median; its highest memory in GiB."""
    found: dict[str, Any] = {side: {"warm": None} for side in sides}

    def each(action: Callable[[Worker], float]) -> dict[str, float]:
        made = {}
        for side in [side for side in sides if "failed" not in found[side]]:
            try:
                made[side] = action(started[side])
            except Failed as error:
                found[side] = {"failed": str(error)}
        return made

    with workers(job, sides, folder, limit) as started:
        each(Worker.ready)
        cold = each(Worker.time)
        taken = [each(Worker.time) for _ in range(repeats)]
        peaks = each(Worker.peak)
    for side in peaks:
        times = [one[side] for one in taken]
        median = statistics.median(times or [cold[side]])
        found[side] |= {"median": median, "times": times, "cold": cold[side], "peak": peaks[side] / 2**30}
    return found


@contextmanager
def workers(job: Job, sides: Sequence[str], folder: Path, limit: float) -> Iterator[dict[str, Worker]]:
    """A process for each side; what they compile is kept in `folder`."""
    environment = {
        "JAX_COMPILATION_CACHE_DIR": str(folder / "jax"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.1",  # as sdjax.load sets it
        "XLA_PYTHON_CLIENT_PREALLOCATE": "false",  # several processes on one GPU
        "TORCHINDUCTOR_CACHE_DIR": str(folder / "torch"),
        "TRITON_CACHE_DIR": str(folder / "triton"),
    }

    def start(side: str) -> Worker:
        return Worker(["experiments.benchmark.worker", side, job.dump()], folder / f"{side}.txt", environment, limit)

    with ExitStack() as stack:
        yield {side: stack.enter_context(start(side)) for side in sides}


def fits(job: Job, sides: int) -> bool:
    """Whether this machine's memory holds the networks so many times, with half as much again for all else.

    Not asked of a GPU, where the networks are half as large and the memory holds the largest three times.
    """
    if job.row == "matmul" or job.dtype != "float32":
        return True
    part = {"unet_step": "unet", "vae_decode": "vae", "text_encoder": "text_encoder"}.get(job.row)
    configs = {name: one for name, one in networks(job.family).items() if part in (None, name)}
    weights = sum(4 * leaf.size for leaf in jax.tree.leaves(expected_params(configs)))
    return 1.5 * weights * sides < memory.free()


def ceilings(job: Job, sides: Sequence[str], repeats: int = 10) -> dict[str, float]:
    """Each side's best rate of a product of matrices, in operations a second."""
    with tempfile.TemporaryDirectory() as folder:
        found = timed(job, sides, repeats, Path(folder), 600)
    return {side: floor.useful(job) / min(one["times"]) for side, one in found.items() if "failed" not in one}
