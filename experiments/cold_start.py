"""Time to the first picture in a new process, and where it goes.

    python -m experiments.cold_start                    # the shapes model, about a minute on 2 idle cores
    python -m experiments.cold_start --family=sd15      # Stable Diffusion 1.5 by its shapes, about 3 minutes

Three ways, each in a process of its own: `cold`, with an empty compilation cache; `warm`, with the cache that the first
one left; `exported`, with the programs that `sdjax.export` wrote. Of the shapes model it is whole processes that make a
picture; of the others, whose weights are not here, the programs of one guided picture at the native size, traced,
lowered and compiled by shapes alone. Seconds of wall time and, in brackets, of CPU time, which is what a busy machine
does not change much. Expected of the shapes model: cold below 20 s, warm below 5.
"""

import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from absl import flags

from experiments import _cli

WAYS = ("cold", "warm", "exported")
FAMILIES = ("shapes", "sd15", "sd21", "sdxl")
PROGRAMS = ("noise", "begin", "encode_text", "precompute_kv", "run_rows", "decode")  # of a picture from text
PROMPT = "a large red circle on a white background"
Times = dict[str, tuple[float, float]]  # by stage: wall and CPU


def define_flags() -> None:
    flags.DEFINE_enum("family", "shapes", FAMILIES, "The model: shapes, or published configs without weights.")
    flags.DEFINE_string("out", None, "A JSON file for the numbers.")
    flags.DEFINE_string("worker", None, "Used by the program itself: a way, or export.")
    flags.DEFINE_string("folder", None, "Used by the program itself: where the caches lie.")


def spent(who: int = resource.RUSAGE_SELF) -> float:
    """CPU seconds so far."""
    usage = resource.getrusage(who)
    return usage.ru_utime + usage.ru_stime


@contextmanager
def timed(times: Times, stage: str) -> Iterator[None]:
    """Adds what the block takes to a stage."""
    wall, cpu = time.perf_counter(), spent()
    yield
    before = times.get(stage, (0.0, 0.0))
    times[stage] = before[0] + time.perf_counter() - wall, before[1] + spent() - cpu


# ---------------------------------------------------------------------- in a process of its own


def picture(way: str, folder: Path) -> Times:
    """Makes a picture of the shapes model."""
    times: Times = {}
    with timed(times, "import"):
        import sdjax
    exported: dict[str, Any] = (
        {"exported": folder / "programs"} if way == "exported" else {"compilation_cache": folder / "cache"}
    )
    with timed(times, "load"):
        sd = sdjax.load(**exported)
    with timed(times, "first picture"):
        sd.generate(PROMPT, progress=False)
    with timed(times, "second picture"):
        sd.generate(PROMPT, progress=False)
    return times


def by_shapes(way: str, family: str, folder: Path) -> Times:
    """Traces, lowers and compiles the programs of a picture, or opens the exported ones."""
    times: Times = {}
    with timed(times, "import"):
        import jax
        from jax import export

        from sdjax.export import calls
        from sdjax.runtime import compilation_cache, programs
        from sdjax.runtime.exported import COMPILED, runnable

    if way == "exported":
        compilation_cache.enable(fill=lambda caches: folder / "programs" / COMPILED)
        for path in sorted((folder / "programs").glob("*.bin")):
            function, content = path.name.split("-")[0], path.read_bytes()
            if function in PROGRAMS:
                made = export.deserialize(bytearray(content))
                leaves = [jax.ShapeDtypeStruct(one.shape, one.dtype) for one in made.in_avals]
                with timed(times, "open"):
                    lowered = runnable(getattr(programs, function), content).lower(
                        *jax.tree.unflatten(made.in_tree, leaves)[0]
                    )
                with timed(times, "compile"):
                    lowered.compile()
        return times
    compilation_cache.enable(folder / "cache")
    for call, (program, data) in calls(model(family), None, (1,), (True,)).items():
        if call.function in PROGRAMS:
            jax.clear_caches()  # recording has traced it already
            with timed(times, "trace and lower"):
                lowered = program.lower(*call.static, *data)
            with timed(times, "compile"):
                lowered.compile()
    return times


def model(family: str) -> Any:
    """A checkpoint; of the published families one of shapes in place of arrays."""
    import sdjax
    from experiments.benchmark import ours
    from sdjax.nn.shapes import expected_params

    if family == "shapes":
        return sdjax.load()
    return ours.pipeline(family, expected_params(ours.networks(family)), "float32")


def work(way: str, family: str, folder: Path) -> Times:
    """What a worker does: one of WAYS, or "export"."""
    if way != "export":
        return picture(way, folder) if family == "shapes" else by_shapes(way, family, folder)
    times: Times = {}
    import sdjax

    with timed(times, "export"):
        sdjax.export(model(family), folder / "programs")
    return times


# ---------------------------------------------------------------------- all of them


def main(values: Any) -> None:
    """Runs the workers and prints a Markdown table."""
    if values.worker:
        print(json.dumps(work(values.worker, values.family, Path(values.folder))))
        return
    table: dict[str, Times] = {}
    with tempfile.TemporaryDirectory() as folder:
        for way in ("cold", "warm", "export", "exported"):
            command = [sys.executable, "-m", "experiments.cold_start", f"--family={values.family}"]
            before, begun = spent(resource.RUSAGE_CHILDREN), time.perf_counter()
            ran = subprocess.run([*command, f"--worker={way}", f"--folder={folder}"], capture_output=True, text=True)
            whole = time.perf_counter() - begun, spent(resource.RUSAGE_CHILDREN) - before
            if ran.returncode:
                raise RuntimeError(f"{way} failed:\n{ran.stderr}")
            table[way] = json.loads(ran.stdout.splitlines()[-1]) | {"whole process": whole}
    for way, times in table.items():
        told = " | ".join(f"{stage} {wall:.2f} s ({cpu:.2f})" for stage, (wall, cpu) in times.items())
        print(f"| {way} | {told} |")
    if values.out:
        Path(values.out).write_text(json.dumps(table, indent=1) + "\n")


if __name__ == "__main__":
    define_flags()
    _cli.run(lambda: main(flags.FLAGS))
