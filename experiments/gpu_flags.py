"""XLA's settings tried one at a time on a GPU, each against the baseline of the same run.

    python -m experiments.gpu_flags --out=gpu_flags.json           # an NVIDIA GPU, at most 8 minutes
    python -m experiments.gpu_flags --family=shapes --size=64      # anything, to see that it runs

What is timed is a whole guided run without text and pixels: `run_rows` over --steps rows of the table, one scan, random
weights. Each setting has a process of its own, for XLA reads its flags when it starts, and no longer than --limit
seconds; the most promising come first. The baseline runs again among them, and the difference of the two is what a
difference has to exceed to count. The table is printed, and written to --out and a .md beside it, after each.

The first call warms up and the second captures the command buffers (openxla/xla#33073), so the third is the first
that counts. Float8 products of the linear layers are not among the settings: they are another program.
"""

import json
import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from absl import flags

from experiments import _cli
from experiments.benchmark.subject import FAMILIES, Job, native_size

CAPTURED = "--xla_gpu_enable_command_buffer"
WARM_UP, REPEATS = 2, 5


@dataclass(frozen=True)
class Setting:
    """One thing changed.

    Attributes:
      name: in the table. flags: XLA's. predicted: the effect, said before it was measured, and why.
      attention: "own" is what sdjax chooses (cuDNN where it can), "blocked" its own blocks everywhere.
    """

    name: str
    flags: str = ""
    predicted: str = ""
    attention: str = "own"
    dtype: str = ""


SETTINGS = (
    Setting("baseline"),
    Setting("command buffers with convolutions", f"{CAPTURED}=+CONVOLUTION",
            "batch 1: 10 to 30 % less; some 100 convolutions cut the graph of a step into pieces (openxla/xla#34572)"),
    Setting("command buffers with convolutions and loops", f"{CAPTURED}=+CONVOLUTION,+WHILE",
            "a few % less than that: one graph for the whole run, no launch from the host between steps"),
    Setting("baseline again"),
    Setting("attention in blocks", "", "10 to 40 % more: scores go through memory", attention="blocked"),
    Setting("float16", "", "the same, or more where convolution and bias fuse worse (jax-ml/jax#11143)",
            dtype="float16"),
    Setting("no Triton products", "--xla_gpu_enable_triton_gemm=false", "within 3 %: cuBLASLt fuses bias and GELU"),
    Setting("convolution fusion", "--xla_gpu_experimental_enable_conv_fusion=true",
            "0 to 5 % less: bias and activation in the convolution's epilogue (openxla/xla#37311)"),
    Setting("cuDNN products, level 1", "--xla_gpu_cudnn_gemm_fusion_level=1", "within 3 %: autotuned beside Triton"),
    Setting("cuDNN products, level 2", "--xla_gpu_cudnn_gemm_fusion_level=2", "as level 1"),
    Setting("cuDNN products, level 3", "--xla_gpu_cudnn_gemm_fusion_level=3", "as level 1, compiles longer"),
    Setting("latency-hiding scheduler", "--xla_gpu_enable_latency_hiding_scheduler=true",
            "nothing: there is no communication to hide on one GPU"),
    Setting("exhaustive tiling", "--xla_gpu_exhaustive_tiling_search=true", "0 to 3 % less, compiles much longer"),
)  # fmt: skip


def define_flags() -> None:
    """Called for the program only."""
    flags.DEFINE_enum("family", "sd15", FAMILIES, "Which published configs.")
    flags.DEFINE_integer("size", None, "Height and width in pixels; default: the family's own.", lower_bound=8)
    flags.DEFINE_integer("batch", 1, "Pictures at once.", lower_bound=1)
    flags.DEFINE_integer("steps", 20, "Rows of the run.", lower_bound=1)
    flags.DEFINE_integer("limit", 60, "Seconds that a setting may take, its compilation included.", lower_bound=1)
    flags.DEFINE_integer("seconds", 480, "When so many are over, no further setting begins.", lower_bound=1)
    flags.DEFINE_string("out", None, "A JSON file for the table.")
    flags.DEFINE_string("worker", None, "Used by the program itself: the job and the kind of attention.")


def serve(text: str) -> None:
    """A setting's own process."""
    from experiments.benchmark import ours, worker
    from sdjax.nn import attention

    asked = json.loads(text)
    if asked["attention"] == "blocked":
        attention._cudnn_takes = lambda q: False
    job = Job(**asked["job"])
    worker.serve(ours.steps(job, job.steps), ours.device_peak)


def measure(setting: Setting, job: Job, limit: int, folder: Path) -> dict[str, Any]:
    """Seconds of a step and of the first call; or `failed`, why there are none."""
    from experiments.benchmark.worker import Failed, Worker

    asked = {"job": job.__dict__ | ({"dtype": setting.dtype} if setting.dtype else {}), "attention": setting.attention}
    environment = {"XLA_FLAGS": setting.flags, "JAX_ENABLE_COMPILATION_CACHE": "false"}
    command = ["experiments.gpu_flags", f"--worker={json.dumps(asked)}"]
    try:
        with Worker(command, folder / "errors.txt", environment, limit) as worker:
            worker.ready()
            first, *times = [worker.time() for _ in range(WARM_UP + REPEATS)]
            return {"first": first, "step": statistics.median(times[WARM_UP - 1 :]) / job.steps, "peak": worker.peak()}
    except Failed as error:
        return {"failed": str(error)}


def verdict(ratio: float, noise: float | None) -> str:
    """What a ratio to the baseline says, where two baselines differ by the ratio 1 + noise; None: there is one."""
    if noise is None:
        return "not judged: one baseline"
    least = max(0.01, noise)
    return "keep" if ratio < 1 - least else "drop: slower" if ratio > 1 + least else "drop: no difference"


def markdown(found: dict[str, Any]) -> str:
    """The table; the first baseline is 1."""
    rows = found["settings"]
    steps = [one["step"] for one in rows if one["flags"] == "" and one["name"].startswith("baseline") and "step" in one]
    noise = max(steps) / min(steps) - 1 if len(steps) > 1 else None
    spread = "unknown" if noise is None else f"{noise:.1%}"
    lines = [f"{found['device']}, {found['versions']}; {found['job']}; noise {spread}", ""]
    lines += ["| setting | predicted | ms a step | ratio | first call, s | |", "|---|---|---|---|---|---|"]
    for one in rows:
        name = f"{one['name']} `{one['flags']}`" if one["flags"] else one["name"]
        if "failed" in one or not steps:
            lines.append(f"| {name} | {one['predicted']} | | | | {one.get('failed', 'no baseline')} |")
            continue
        ratio = one["step"] / steps[0]
        said = "" if one["name"].startswith("baseline") else verdict(ratio, noise)
        figures = f"{1000 * one['step']:.2f} | {ratio:.3f} | {one['first']:.1f}"
        lines.append(f"| {name} | {one['predicted']} | {figures} | {said} |")
    return "\n".join(lines)


def main(values: Any) -> None:
    """Tries one setting after the other."""
    if values.worker:
        serve(values.worker)
        return
    from experiments.benchmark import report

    report.check_out(values.out)
    gpu, begun = report.on_gpu(), time.monotonic()
    size = values.size or native_size(values.family)
    job = Job("unet_step", values.family, size, values.batch, values.steps, "bfloat16" if gpu else "float32")
    found: dict[str, Any] = {**report.machine(), "job": str(job), "settings": []}
    with tempfile.TemporaryDirectory() as folder:
        for setting in SETTINGS:
            late = time.monotonic() - begun > values.seconds
            made = {"failed": "not tried: no time"} if late else measure(setting, job, values.limit, Path(folder))
            found["settings"].append({**setting.__dict__, **made})
            print(f"{setting.name}: {made}", flush=True)
            report.write(values.out, found)
            if values.out:
                Path(values.out).with_suffix(".md").write_text(markdown(found) + "\n")
    print(f"\n{markdown(found)}")


if __name__ == "__main__":
    define_flags()
    _cli.run(lambda: main(flags.FLAGS))
