"""The sides take turns: ours, theirs, ours, theirs ..., so that what slows the machine down slows down both."""

import statistics
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from experiments.benchmark import floor, memory
from experiments.benchmark.subject import Job, preset
from experiments.benchmark.worker import Worker

CACHED = ("sdjax", "compiled")  # the sides that compile, and keep what they compiled for another process


def measure(job: Job, sides: Sequence[str], repeats: int, ceiling: float) -> dict[str, Any]:
    """The table's entry for one job.

    ceiling: operations a second. Where the machine cannot hold all sides at once, one runs after the other, and the
    entry's `in_turns` says so. Raises worker.Failed.
    """
    useful, together = floor.useful(job), fits(job, len(sides))
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        for group in [sides] if together else [[side] for side in sides]:
            found |= timed(job, group, repeats, Path(folder))
        for side in set(CACHED).intersection(sides):
            found[side]["warm"] = timed(job, [side], 0, Path(folder))[side]["cold"]
    for entry in found.values():
        entry["share"] = useful / entry["median"] / ceiling
    theirs = {side: found[side]["median"] for side in sides if side not in ("sdjax", "openvino")}
    best = min(theirs, key=theirs.__getitem__)
    ratios = {side: found["sdjax"]["median"] / found[side]["median"] for side in sides}
    memory_ratio = found["sdjax"]["peak"] / found[best]["peak"]
    asked = {"row": job.row, "family": job.family, "size": job.size, "batch": job.batch, "steps": job.steps}
    summary = {
        "best": best,
        "ratio": ratios[best],
        "memory_ratio": memory_ratio,
        "ratios": ratios,
        "in_turns": together,
    }
    return {**asked, "dtype": job.dtype, "tflop": useful / 1e12, **summary, "sides": found}


def timed(job: Job, sides: Sequence[str], repeats: int, folder: Path) -> dict[str, Any]:
    """Seconds of each side's first call, of its others and their median; its highest memory in GiB."""
    with workers(job, sides, folder) as started:
        cold = {side: worker.time() for side, worker in started.items()}
        times: dict[str, list[float]] = {side: [] for side in sides}
        for _ in range(repeats):
            for side, worker in started.items():
                times[side].append(worker.time())
        peaks = {side: worker.peak() / 2**30 for side, worker in started.items()}
    return {
        side: {
            "median": statistics.median(times[side] or [cold[side]]),
            "times": times[side],
            "cold": cold[side],
            "warm": None,
            "peak": peaks[side],
        }
        for side in sides
    }


@contextmanager
def workers(job: Job, sides: Sequence[str], folder: Path) -> Iterator[dict[str, Worker]]:
    """A process for each side; what they compile is kept in `folder`."""
    environment = {
        "JAX_COMPILATION_CACHE_DIR": str(folder / "jax"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.1",  # as sdjax.load sets it
        "XLA_PYTHON_CLIENT_PREALLOCATE": "false",  # several processes on one GPU
        "TORCHINDUCTOR_CACHE_DIR": str(folder / "torch"),
        "TRITON_CACHE_DIR": str(folder / "triton"),
    }
    with ExitStack() as stack:
        yield {
            side: stack.enter_context(
                Worker(["experiments.benchmark.worker", side, job.dump()], folder / f"{side}.txt", environment)
            )
            for side in sides
        }


def fits(job: Job, sides: int) -> bool:
    """Whether the machine's memory holds the networks so many times, with half as much again for all else.

    On a GPU too: its memory is no smaller than what the largest of these models takes three times.
    """
    from experiments.benchmark import ours
    from sdjax import programs

    if job.row == "matmul" or job.dtype != "float32":
        return True
    part = {"unet_step": "unet", "vae_decode": "vae", "text_encoder": "text_encoder"}.get(job.row)
    configs = ours.networks(job)
    names = [part] if part else list(preset(job.family).configs)
    trees = programs.expected_params({name: configs[name] for name in names})
    import jax

    total = sum(leaf.size * 4 for leaf in jax.tree.leaves(trees))
    return 1.5 * total * sides < memory.free()


def ceiling(job: Job, sides: Sequence[str], repeats: int = 10) -> dict[str, float]:
    """Each side's best rate of a product of matrices, in operations a second."""
    with tempfile.TemporaryDirectory() as folder, workers(job, sides, Path(folder)) as started:
        for worker in started.values():
            worker.time()
        times: dict[str, list[float]] = {side: [] for side in sides}
        for _ in range(repeats):
            for side, worker in started.items():
                times[side].append(worker.time())
    return {side: floor.useful(job) / min(taken) for side, taken in times.items()}
