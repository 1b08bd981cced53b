"""sdjax against diffusers at full size: one checkpoint, the same inputs, float32.

    python -m experiments.random_checkpoints --family=sdxl --out=/tmp/sdxl
    python -m experiments.parity --checkpoint=/tmp/sdxl --out=parity.json      # 13 GiB; half an hour on 2 busy cores

Any checkpoint in the diffusers layout will do: Stable Diffusion 1.x, 2.x, SDXL, its refiner; weights need not be
random. The text encoders, one guided evaluation of the U-Net and the VAE run at --size (default: the checkpoint's own).
Whole guided runs of --steps steps at --sampled_size are for 1.x and 2.x only, since a float32 SDXL does not fit
beside its stored weights in 24 GiB. Prompts go through each side's own tokenizers.

Each side is a process of its own, diffusers first, so that one network is in memory at a time: `--side=theirs` writes
its arrays and their inputs to --reference, `--side=ours` compares with that file, `--side=both` does the one and then
the other. Weights are stored as they are (float16 in SDXL's), computed with in float32.

Expected, as largest difference over largest value: networks <= 1e-4, 20-step latents <= 1e-3.
"""

import json
import os
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags

from experiments import _cli
from experiments.parity_theirs import SCHEDULERS, Arrays, is_xl, read_config
from experiments.random_checkpoints import count_time_ids

PROMPT, NEGATIVE = "a photo of a castle", "blurred"
# Rows: the negative prompt's, the prompt's. Original size, crop, then target size or aesthetic score; not the usual
# ones, which would not tell height from width.
TIME_IDS = {
    6: [[512, 640, 0, 0, 1024, 1024], [1024, 768, 32, 64, 1024, 896]],
    5: [[512, 640, 0, 0, 2.5], [1024, 768, 32, 64, 6.0]],
}
TIMESTEP = 481.0
NETWORK_BAR, LATENTS_BAR = 1e-4, 1e-3


def define_flags() -> None:
    flags.DEFINE_string("checkpoint", None, "A folder in the diffusers layout.", required=True)
    flags.DEFINE_enum("side", "both", ["both", "theirs", "ours"], "Which program runs.")
    flags.DEFINE_string("reference", None, "diffusers' arrays; default: the checkpoint's name with .reference.npz.")
    flags.DEFINE_integer("size", None, "Height and width of the U-Net's picture, pixels.", lower_bound=8)
    flags.DEFINE_integer("vae_size", None, "Height and width of the VAE's picture; default: the same.", lower_bound=8)
    flags.DEFINE_integer("sampled_size", 192, "Height and width of the sampled pictures, pixels.", lower_bound=8)
    flags.DEFINE_integer("steps", 20, "Steps of each sampler.", lower_bound=1)
    flags.DEFINE_list("samplers", list(SCHEDULERS), "Which samplers.")
    flags.DEFINE_string("out", None, "A JSON file for the table.")


def inputs(folder: Path, size: int | None, vae_size: int | None, sampled_size: int) -> Arrays:
    """What both sides are given, arrays in our axes: the U-Net's `x`, `t`, SDXL's `time_ids`, the guidance `scale`,
    the VAE's `pixels` and `z`, starting `noise` of sampled pictures, `prompts` (the negative one first)."""
    unet = read_config(folder, "unet")
    latent = (size or 8 * unet["sample_size"]) // 8
    decoded = vae_size // 8 if vae_size else latent
    rng = np.random.default_rng(0)
    shapes = {"x": (1, latent, latent, 4), "z": (1, decoded, decoded, 4), "noise": (1, *[sampled_size // 8] * 2, 4)}
    given: Arrays = {name: rng.standard_normal(shape, np.float32) for name, shape in shapes.items()}
    coarse = rng.uniform(-1, 1, (1, decoded, decoded, 3)).astype(np.float32)
    given["pixels"] = coarse.repeat(8, axis=1).repeat(8, axis=2)
    given |= {"t": np.array([TIMESTEP] * 2, np.float32), "prompts": np.array([NEGATIVE, PROMPT])}
    given["scale"] = np.array(5.0 if is_xl(folder) else 7.5)  # diffusers' own defaults
    if is_xl(folder):
        count = count_time_ids(unet, read_config(folder, "text_encoder_2"))
        given["time_ids"] = np.array(TIME_IDS[count], np.float32)
    return given


def run_theirs(values: Any, folder: Path, reference: Path) -> None:
    """diffusers on the inputs; writes these, its arrays and what it took to `reference`."""
    from experiments import parity_theirs

    given = inputs(folder, values.size, values.vae_size, values.sampled_size)
    seconds: dict[str, float] = {}
    made = parity_theirs.evaluate(folder, given, seconds)
    if values.samplers and not is_xl(folder):
        made |= parity_theirs.sample(folder, given, values.steps, values.samplers, seconds)
    named = {f"given {name}": array for name, array in given.items()}
    held: dict[str, Any] = {"took": json.dumps(_took(seconds)), **named, **made}
    np.savez(reference, **held)


def run_ours(values: Any, folder: Path, reference: Path) -> dict[str, Any]:
    """sdjax on the inputs in `reference`, compared with the arrays there: {"table", "theirs", "ours"}."""
    from experiments import parity_ours

    with np.load(reference) as opened:
        theirs = {name: opened[name] for name in opened.files}
    given = {name.removeprefix("given "): theirs.pop(name) for name in list(theirs) if name.startswith("given ")}
    took = json.loads(str(theirs.pop("took")))
    seconds: dict[str, float] = {}
    made = parity_ours.evaluate(folder, given, seconds)
    samplers = [name for name in SCHEDULERS if f"{values.steps} steps {name}" in theirs]
    if samplers:
        made |= parity_ours.sample(folder, given, values.steps, samplers, seconds)
    return {"table": compare(made, theirs, float(given["scale"])), "theirs": took, "ours": _took(seconds)}


def _took(seconds: dict[str, float]) -> dict[str, Any]:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return {"seconds": seconds, "peak_gib": round(peak, 2), "load": [round(one, 1) for one in os.getloadavg()]}


def compare(mine: Arrays, reference: Arrays, scale: float) -> dict[str, dict[str, Any]]:
    """The table: an entry for each output, and one for the guided combination of the U-Net's two."""
    table = {}
    for arrays in (mine, reference):
        negative, positive = arrays["unet"]
        arrays["unet, guided"] = negative + scale * (positive - negative)
    for name, want in reference.items():
        if name.endswith(" ids"):
            if not np.array_equal(mine[name], want):
                raise ValueError(f"{name}: the two tokenizers give different ids")
            continue
        error = float(np.abs(mine[name] - want).max() / np.abs(want).max())
        bar = LATENTS_BAR if "steps" in name else NETWORK_BAR
        figures = {"shape": list(want.shape), "std": float(want.std()), "max": float(np.abs(want).max())}
        table[name] = {"relative_error": error, "bar": bar, "passes": bool(error <= bar), **figures}
    return table


def main(values: Any) -> None:
    folder = Path(values.checkpoint)
    unknown = sorted(set(values.samplers) - set(SCHEDULERS))
    if unknown:
        raise ValueError(f"--samplers: {unknown[0]!r} is unknown; known: {', '.join(SCHEDULERS)}")
    if not (folder / "model_index.json").is_file():
        raise ValueError(f"--checkpoint: {folder} has no model_index.json, so it is no diffusers folder")
    reference = Path(values.reference or f"{folder}.reference.npz")
    if values.side == "both":
        first = [sys.executable, "-m", "experiments.parity", *sys.argv[1:], "--side=theirs"]
        if status := subprocess.run(first).returncode:  # it has said why
            sys.exit(status)
    if values.side == "theirs":
        return run_theirs(values, folder, reference)
    if not reference.is_file():
        raise ValueError(f"--reference: {reference} is not there; --side=theirs makes it")
    report = run_ours(values, folder, reference)
    print_table(report)
    if values.out:
        Path(values.out).write_text(json.dumps(report, indent=2) + "\n")


def print_table(report: dict[str, Any]) -> None:
    print(f"{'':20} {'shape':18} {'std':>8} {'largest':>8} {'error':>9}  bar")
    for name, row in report["table"].items():
        figures = f"{row['std']:8.3f} {row['max']:8.3f} {row['relative_error']:9.1e}  {row['bar']:.0e}"
        print(f"{name:20} {row['shape']!s:18} {figures} {'' if row['passes'] else 'FAILS'}")
    for side in ("theirs", "ours"):
        print(f"{side}: {report[side]['peak_gib']} GiB at most, {sum(report[side]['seconds'].values()):.0f} s")


if __name__ == "__main__":
    define_flags()
    _cli.run(lambda: main(flags.FLAGS))
