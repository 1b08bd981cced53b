"""What a training step costs beside diffusers': time and memory, full and LoRA.

    python -m experiments.train_cost                           # about half an hour on 2 cores, 20 GiB
    python -m experiments.train_cost --ways=lora --rounds=5

Stable Diffusion 1.5's U-Net with random weights, 256 x 256, one picture, float32, the error of the noise, AdamW with
the gradient's norm cut at 1; LoRA of rank 16 on the projections of every attention, diffusers' by peft. Each side in
a process of its own, for both at once would not fit, in turns; each process takes two steps that are not counted, and
then --steps that are. A round gives the ratio of the medians. Memory is the process's highest, with all that it loaded.

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

from experiments import _cli
from experiments.load_cost import peak
from sdjax.config.presets import PRESETS

SIDES, WAYS = ("ours", "diffusers"), ("full", "lora")
RANK, LATENTS, TOKENS = 16, 32, 77
WARM = 2  # steps that are not counted


def main() -> None:
    """Runs both sides in turns, prints a line a round, then the ratios."""
    values = flags.FLAGS
    if values.side:
        print(json.dumps(measure(values.side, values.ways[0], values.steps)))
        return
    for way in values.ways:
        rounds = [{side: run(side, way) for side in SIDES} for _ in range(values.rounds)]
        for name, unit in (("seconds", "s"), ("peak", "bytes")):
            ratios = [one["ours"][name] / one["diffusers"][name] for one in rounds]
            told = ", ".join(f"{one['ours'][name]:.4g} and {one['diffusers'][name]:.4g}" for one in rounds)
            spread = f"{min(ratios):.3f} to {max(ratios):.3f}"
            print(f"{way}, {name}: ours / diffusers = {statistics.median(ratios):.3f} ({spread}); {unit}: {told}")


def run(side: str, way: str) -> dict[str, float]:
    """One side's step, in a process of its own."""
    command = [sys.executable, "-m", "experiments.train_cost", f"--side={side}", f"--ways={way}"]
    command.append(f"--steps={flags.FLAGS.steps}")
    found: dict[str, float] = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    print(f"  {side} {way}: {found['seconds']:.2f} s, {found['peak'] / 2**30:.2f} GiB", flush=True)
    return found


def measure(side: str, way: str, steps: int) -> dict[str, float]:
    """The median seconds of a step, and this process's highest memory in bytes."""
    step: Callable[[], Any] = {"ours": our_step, "diffusers": their_step}[side](way)
    times = []
    for _ in range(WARM + steps):
        begun = time.perf_counter()
        step()
        times.append(time.perf_counter() - begun)
    return {"seconds": statistics.median(times[WARM:]), "peak": peak()}


def our_step(way: str) -> Callable[[], Any]:
    """sdjax's."""
    import jax
    import numpy as np

    from sdjax.config import UNetConfig, VaeConfig
    from sdjax.core.keys import key
    from sdjax.diffusion.noise import Settings, noise_schedule
    from sdjax.nn.shapes import expected_params
    from sdjax.train.architecture import Architecture
    from sdjax.train.losses.denoising import Denoising
    from sdjax.train.methods.full import Full
    from sdjax.train.methods.lora import LoRA
    from sdjax.train.optimisers import Optimiser
    from sdjax.train.step import make_step

    configs = PRESETS["sd15"].configs
    unet = UNetConfig.from_dict(configs["unet"])
    levels = noise_schedule(Settings(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")).alphas_cumprod
    architecture = Architecture(unet, VaeConfig.from_dict(configs["vae"]), (), tuple(map(float, levels)))
    rng = np.random.default_rng(0)
    shapes = expected_params({"unet": unet})
    params = jax.tree.map(lambda leaf: jax.numpy.asarray(0.02 * rng.standard_normal(leaf.shape, np.float32)), shapes)
    method: Any = Full() if way == "full" else LoRA(RANK)
    begun = method.start(params, key(0))
    optimiser = Optimiser(weight_decay=0.01)
    step = make_step(Denoising(architecture), method, begun, params, optimiser)
    state = step.begin(begun)
    del begun, params
    batch = {
        "latents": rng.standard_normal((1, LATENTS, LATENTS, 4), np.float32),
        "context": rng.standard_normal((1, TOKENS, 768), np.float32),
    }

    def one() -> Any:
        nonlocal state
        state, told = step(state, batch, key(0), 1e-5)
        return float(told["loss"])

    return one


def their_step(way: str) -> Callable[[], Any]:
    """diffusers', as its scripts have it."""
    import torch
    from diffusers import DDPMScheduler, UNet2DConditionModel

    unet: Any = UNet2DConditionModel(**PRESETS["sd15"].configs["unet"])
    scheduler: Any = DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    if way == "lora":
        from peft import LoraConfig

        unet.requires_grad_(False)
        unet.add_adapter(LoraConfig(r=RANK, lora_alpha=RANK, target_modules=["to_q", "to_k", "to_v", "to_out.0"]))
    learns = [one for one in unet.parameters() if one.requires_grad]
    optimiser = torch.optim.AdamW(learns, lr=1e-5, weight_decay=0.01)
    latents, context = torch.randn(1, 4, LATENTS, LATENTS), torch.randn(1, TOKENS, 768)

    def one() -> Any:
        noise, t = torch.randn_like(latents), torch.randint(0, 1000, (1,))
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
    flags.DEFINE_integer("rounds", 3, "Of both sides.", lower_bound=1)
    flags.DEFINE_integer("steps", 3, "That are counted, in each process.", lower_bound=1)
    flags.DEFINE_string("side", None, "Of the program's own processes.")
    _cli.run(main)
