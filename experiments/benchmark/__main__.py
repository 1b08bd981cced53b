"""sdjax against diffusers on this machine: ratios of time, taken in turns in one run.

    python -m experiments.benchmark            # a guided step of SD 1.5 at 512 x 512, about 4 minutes on 2 cores
    python -m experiments.benchmark --suite=cpu --out=cpu.json              # the whole table: 45 minutes on 2 cores
    python -m experiments.benchmark --suite=gpu --out=gpu.json              # an NVIDIA GPU, bfloat16
    python -m experiments.benchmark --family=sd21 --rows=picture,vae_decode --steps=10 --repeats=1
    python -m experiments.benchmark --table=cpu.json                        # the README's table, nothing measured

Each side runs in a process of its own, so that its peak memory is its own, and waits for its turn, so that only one
computes at a time. A ratio is median over median, ours over theirs. diffusers runs as it comes (PyTorch eager) in both
of torch's memory layouts, on a GPU eager and compiled in the slowest-to-compile mode; the fastest counts. OpenVINO
takes part in the steps of a CPU where it is installed. Weights are random, of the published shapes.

Rows: `unet_step`, one sampling step with guidance, the network on 2 x batch latents; `picture`, from prompts to PIL
images; `vae_decode`; `text_encoder`, 2 x batch prompts. Columns: the first call of a process that compiles everything
(cold), and of ours one that finds it in the cache (warm); the highest memory after the weights were made, of the
device or on a CPU of the process; the share of the floor (see floor.py). --out has what is done after every row.
"""

import importlib.util
from dataclasses import replace
from typing import Any

from absl import flags

from experiments import _cli
from experiments.benchmark import floor, report, table, turns
from experiments.benchmark.subject import FAMILIES, ROWS, Job, factor, native_size
from experiments.benchmark.suites import SUITES


def define_flags() -> None:
    """Called for the program only."""
    flags.DEFINE_enum("suite", None, sorted(SUITES), "A prepared table; else the one model that these flags say:")
    flags.DEFINE_enum("family", "sd15", FAMILIES, "Which published configs; vega is a small SDXL.")
    flags.DEFINE_integer("size", None, "Height and width in pixels; default: the family's own.", lower_bound=8)
    flags.DEFINE_integer("batch", 1, "Pictures at once.", lower_bound=1)
    flags.DEFINE_integer("steps", 20, "Steps of a picture.", lower_bound=1)
    flags.DEFINE_list("rows", ["unet_step"], f"Which of {', '.join(ROWS)}.")
    flags.DEFINE_integer("repeats", 5, "Timed calls of each side; of a picture, on a CPU, one.", lower_bound=1)
    flags.DEFINE_integer("limit", 24 * 3600, "Seconds that a side may take for a row.", lower_bound=1)
    flags.DEFINE_string("out", None, "A JSON file for the table.")
    flags.DEFINE_string("table", None, "A JSON file of an earlier run, to be printed as a table.")


def jobs(values: Any) -> list[Job]:
    """What the flags ask for. Raises ValueError."""
    if values.suite:
        return SUITES[values.suite]
    size, multiple = values.size or native_size(values.family), factor(values.family)
    if size % multiple:
        raise ValueError(f"--size must be a multiple of {multiple}, not {size}")
    unknown = sorted(set(values.rows) - set(ROWS))
    if unknown or not values.rows:
        raise ValueError(f"--rows: {', '.join(unknown) or 'nothing'} is unknown; known: {', '.join(ROWS)}")
    return [Job(row, values.family, size, values.batch, values.steps) for row in values.rows]


def sides(job: Job, gpu: bool, earlier: list[dict[str, Any]]) -> list[str]:
    """Who takes part. Of the two layouts on a CPU a picture, which takes minutes, has the one faster at a step."""
    if gpu:
        return ["sdjax", "channels_last", "compiled"]
    steps = [one for one in earlier if one["row"] == "unet_step" and one["family"] == job.family and "best" in one]
    if job.row == "picture" and steps:
        return ["sdjax", steps[-1]["best"]]
    openvino = job.row == "unet_step" and importlib.util.find_spec("openvino") is not None
    return ["sdjax", "eager", "channels_last", *["openvino"] * openvino]


def main(values: Any) -> None:
    """Measures row by row, or prints what was measured."""
    if values.table:
        print(table.markdown(report.read(values.table)))
        return
    asked = jobs(values)
    report.check_out(values.out)
    gpu = report.on_gpu()
    dtype = "bfloat16" if gpu else "float32"
    product = floor.ceiling_job(dtype, gpu)
    rates = turns.ceilings(product, sides(product, gpu, []))
    found: dict[str, Any] = {**report.machine(), "ceilings": rates, "rows": []}
    for job in asked:
        job = replace(job, dtype=dtype)
        repeats = 1 if job.row == "picture" and not gpu else values.repeats  # minutes, and of many steps in itself
        entry = turns.measure(job, sides(job, gpu, found["rows"]), repeats, max(rates.values()), values.limit)
        print(f"{job}: {'ratio {ratio:.3f}'.format(**entry) if 'ratio' in entry else 'no ratio'}", flush=True)
        found["rows"].append(entry)
        report.write(values.out, found)
    print(f"\n{table.markdown(found)}")


if __name__ == "__main__":
    define_flags()
    _cli.run(lambda: main(flags.FLAGS))
