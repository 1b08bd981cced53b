r"""Samplers against step counts: which setting makes the right picture at the least cost, measured.

    python -m experiments.tradeoff --samplers=ddim,euler,dpmpp_2m --schedules=default,karras --steps=4,8,16,32 \
        --guidance_scales=5 --num_prompts=100 --out=out/tradeoff

Every combination is a cell, and all cells run through one compiled program, with the same prompts and the same
starting noise. For each cell: how often the picture shows its prompt (the shapes model; judged from pixels, 95 %
Wilson intervals), how far its latents end from those of a 1,000-evaluation solution of the same noise, network
evaluations and seconds a picture. A guided evaluation is one, though the network sees the batch twice in it.

--out then holds results.jsonl, results.csv, report.html (one file, opens anywhere), plot.png, sheet.png. Stopped or
killed, the same command goes on where it was and loses at most one batch; with more samplers, schedules, steps or
scales it adds cells to the folder; with nothing left to do it writes the reports anew.

Run time on 2 idle CPU cores with the shapes model: 12 ms for each evaluation of each picture, so 20 minutes for the
references of 100 pictures, which have 1,000 evaluations each. For a look in a minute: --num_prompts=8
--reference_prompts=0. The program measures its rate and tells its own estimate before it starts.
"""

from pathlib import Path
from typing import Any

from absl import flags

from experiments import _cli

KINDS: dict[str, tuple[int, Any]] = {
    "one_object": (1, "seen"),
    "two_objects": (2, "seen"),
    "one_object_unseen": (1, "unseen"),
    "two_objects_unseen": (2, "unseen"),
}


def define_flags() -> None:
    flags.DEFINE_list("samplers", ["ddim", "euler", "dpmpp_2m"], "By name.")
    flags.DEFINE_list("schedules", ["default"], "By name: karras, trailing ...; default is the model's own.")
    flags.DEFINE_list("steps", ["4", "8", "16", "32"], "Step counts.")
    flags.DEFINE_list("guidance_scales", [], "Pull of the prompt; default: the model's own.")
    flags.DEFINE_integer("num_prompts", 100, "Pictures of each cell, each of its own prompt.", lower_bound=1)
    flags.DEFINE_integer("reference_prompts", None, "How many get a reference, 0: none; default: all.", lower_bound=0)
    flags.DEFINE_enum("kind", "one_object", list(KINDS), "Captions of the shapes world.")
    flags.DEFINE_string("model", None, "A folder in the diffusers layout or a Hub id; default: the shapes model.")
    flags.DEFINE_string("variant", None, "Which weights where there are several files, as fp16.")
    flags.DEFINE_enum("dtype", "float32", ["float32", "bfloat16", "float16"], "What the networks compute in.")
    flags.DEFINE_integer("seed", 0, "Of the noise; picture i is the i-th of this seed.", lower_bound=0)
    flags.DEFINE_integer("batch", None, "Pictures at once; default: what the machine's memory takes.", lower_bound=1)
    flags.DEFINE_boolean("time_again", False, "Measure the seconds anew, a batch of each cell: on an idle machine.")
    flags.DEFINE_string("out", "out/tradeoff", "Folder of this experiment.")


def main(values: Any) -> None:
    """Checks everything, makes what is missing, writes the reports."""
    steps = [_cli.number(text, int, "steps") for text in values.steps]
    scales = [_cli.number(text, float, "guidance_scales") for text in values.guidance_scales]
    if values.reference_prompts is not None and values.reference_prompts > values.num_prompts:
        raise ValueError(f"--reference_prompts={values.reference_prompts} of --num_prompts={values.num_prompts}")
    import sdjax  # takes seconds with JAX behind it, which a wrong flag should not cost
    from experiments.shapes.report import captions
    from experiments.tradeoff_grid import cells, report, work

    sd = sdjax.load(values.model, dtype=values.dtype, variant=values.variant)
    grid = cells.grid(values.samplers, values.schedules, steps, scales or [sd.guidance_scale])
    plans = cells.plans(sd, grid)
    references = values.num_prompts if values.reference_prompts is None else values.reference_prompts
    things, pairs = KINDS[values.kind]
    prompts = captions(values.num_prompts, things, pairs)
    experiment = work.Experiment(sd, Path(values.out), prompts, references, values.seed, values.batch)
    experiment.make(plans)
    if values.time_again:
        experiment.time_again(plans)
    for path in report.write(experiment):
        print(path)


if __name__ == "__main__":
    define_flags()
    _cli.run(lambda: main(flags.FLAGS))
