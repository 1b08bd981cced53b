"""What a training step costs beside diffusers': time and memory, full and LoRA.

    python -m experiments.train_cost                           # about half an hour on 2 cores, 20 GiB
    python -m experiments.train_cost --ways=lora --rounds=5
    python -m experiments.train_cost --sides=ours --ways=full --rounds=1 --steps=10 \\
        --model=sd21_base --size=512 --batch=32 --dtype=bfloat16 --remat    # an H200: 145 pictures a second hoped for

Stable Diffusion 1.5's U-Net with random weights, 256 x 256, one picture, float32, the error of the noise, AdamW with
the gradient's norm cut at 1, latents and states of texts given; LoRA of rank 16 on the projections of every attention,
diffusers' by peft. Each side in a process of its own, for both at once would not fit, in turns; each process takes two
steps that are not counted, and then --steps that are. A round gives the ratio of the medians. Memory is the process's
highest, with all that it loaded; a GPU's is not in it.

Expected on a CPU: time at most 0.9 of diffusers', memory at most as much.
"""

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

from absl import flags

from experiments import _cli, _presets
from experiments.load_cost import peak
from sdjax.config.presets import PRESETS

SIDES, WAYS = ("ours", "diffusers"), ("full", "lora")
RANK = 16
WARM = 2  # steps that are not counted


def main() -> None:
    """Runs both sides in turns, prints a line a round, then the ratios."""
    values = flags.FLAGS
    if values.side:
        print(json.dumps(measure(values)))
        return
    for way in values.ways:
        rounds = [{side: run(side, way) for side in values.sides} for _ in range(values.rounds)]
        if set(values.sides) == {*SIDES}:
            compare(way, rounds)


def compare(way: str, rounds: list[dict[str, dict[str, float]]]) -> None:
    """Prints the ratios of both sides' times, and of their memory."""
    for name, unit in (("seconds", "s"), ("peak", "bytes")):
        ratios = [one["ours"][name] / one["diffusers"][name] for one in rounds]
        told = ", ".join(f"{one['ours'][name]:.4g} and {one['diffusers'][name]:.4g}" for one in rounds)
        spread = f"{min(ratios):.3f} to {max(ratios):.3f}"
        print(f"{way}, {name}: ours / diffusers = {statistics.median(ratios):.3f} ({spread}); {unit}: {told}")


def run(side: str, way: str) -> dict[str, float]:
    """One side's step, in a process of its own."""
    values = flags.FLAGS
    command = [sys.executable, "-m", "experiments.train_cost", f"--side={side}", f"--ways={way}"]
    command += [f"--{name}={values[name].value}" for name in ("steps", "model", "size", "batch", "dtype", "remat")]
    found: dict[str, float] = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    pace = values.batch / found["seconds"]
    print(
        f"  {side} {way}: {found['seconds']:.3f} s, {pace:.2f} pictures a second, {found['peak'] / 2**30:.2f} GiB",
        flush=True,
    )
    return found


def measure(values: Any) -> dict[str, float]:
    """The median seconds of a step, and this process's highest memory in bytes."""
    step: Callable[[Any], Callable[[], Any]] = {"ours": our_step, "diffusers": their_step}[values.side]
    once, times = step(values), []
    for _ in range(WARM + values.steps):
        begun = time.perf_counter()
        once()
        times.append(time.perf_counter() - begun)
    return {"seconds": statistics.median(times[WARM:]), "peak": peak()}


def our_step(values: Any) -> Callable[[], Any]:
    """sdjax's."""
    import jax
    import numpy as np

    from sdjax.core.keys import key
    from sdjax.nn.shapes import expected_params
    from sdjax.train.losses.denoising import Denoising
    from sdjax.train.methods import Full, LoRA
    from sdjax.train.optimisers import Optimiser
    from sdjax.train.step import make_step

    architecture = _presets.architecture(values.model, values.dtype, values.remat)
    rng = np.random.default_rng(0)
    shapes = expected_params({"unet": architecture.unet})
    params = jax.tree.map(lambda leaf: jax.numpy.asarray(0.02 * rng.standard_normal(leaf.shape, np.float32)), shapes)
    method: Any = Full() if values.ways[0] == "full" else LoRA(RANK)
    begun = method.start(params, key(0))
    optimiser = Optimiser(weight_decay=0.01)
    step = make_step(Denoising(architecture), method, begun, params, optimiser)
    state = step.begin(begun)
    del begun, params
    told = _presets.batch(architecture, values.size, values.batch)
    batch = {name: jax.numpy.asarray(rng.standard_normal(shape, np.float32)) for name, shape in told.items()}

    def one() -> Any:
        nonlocal state
        state, said = step(state, batch, key(0), 1e-5)
        return float(said["loss"])

    return one


def their_step(values: Any) -> Callable[[], Any]:
    """diffusers', as its scripts have it. Raises ValueError for what is not measured so."""
    import torch
    from diffusers import DDPMScheduler, UNet2DConditionModel

    if values.model == "sdxl" or values.dtype != "float32" or values.remat:
        raise ValueError("diffusers' side is of Stable Diffusion 1 and 2 in float32, without remat; give --sides=ours")
    config = PRESETS[values.model].configs["unet"]
    unet: Any = UNet2DConditionModel(**config)
    scheduler: Any = DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    if values.ways[0] == "lora":
        from peft import LoraConfig

        unet.requires_grad_(False)
        unet.add_adapter(LoraConfig(r=RANK, lora_alpha=RANK, target_modules=["to_q", "to_k", "to_v", "to_out.0"]))
    learns = [one for one in unet.parameters() if one.requires_grad]
    optimiser = torch.optim.AdamW(learns, lr=1e-5, weight_decay=0.01)
    side = values.size // 8
    latents, context = (
        torch.randn(values.batch, 4, side, side),
        torch.randn(values.batch, 77, unet.config.cross_attention_dim),
    )

    def one() -> Any:
        noise, t = torch.randn_like(latents), torch.randint(0, 1000, (values.batch,))
        answer = unet(scheduler.add_noise(latents, noise, t), t, context).sample
        loss = torch.nn.functional.mse_loss(answer.float(), noise.float())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(learns, 1.0)
        optimiser.step()
        optimiser.zero_grad()
        return float(loss)

    return one


if __name__ == "__main__":
    flags.DEFINE_list("ways", list(WAYS), "Which of them.")
    flags.DEFINE_list("sides", list(SIDES), "Which of them.")
    flags.DEFINE_string("model", "sd15", "A preset of sdjax.config.presets, by its name.")
    flags.DEFINE_integer("size", 256, "Height and width of a picture, pixels.", lower_bound=64)
    flags.DEFINE_integer("batch", 1, "Pictures in a step.", lower_bound=1)
    flags.DEFINE_enum("dtype", "float32", ["float32", "bfloat16"], "What the U-Net computes in.")
    flags.DEFINE_bool("remat", False, "Whether blocks are computed again on the way back.")
    flags.DEFINE_integer("rounds", 3, "Of both sides.", lower_bound=1)
    flags.DEFINE_integer("steps", 3, "That are counted, in each process.", lower_bound=1)
    flags.DEFINE_string("side", None, "Of the program's own processes.")
    _cli.run(main)
