"""sdjax against diffusers at full size: one checkpoint, the same inputs, float32.

    python -m experiments.random_checkpoints --family=sd15 --out=/tmp/sd15
    python -m experiments.parity --checkpoint=/tmp/sd15 --out=parity.json       # 20 minutes on 2 busy cores

Any checkpoint in the diffusers layout will do; weights need not be random. One network's evaluation and the VAE run at
--size (default: the checkpoint's own), the guided pictures of --steps steps at --sampled_size, since 20 steps of four
samplers at full size would take two programs an hour. Prompts go through each side's own tokenizer. First diffusers
runs and is put away, then sdjax, so that one model is in memory at a time (6 GiB at 512 x 512).

Expected, as largest difference over largest value: networks <= 1e-4, 20-step latents <= 1e-3.
"""

import gc
import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags

from experiments import _cli

SCHEDULERS = {
    "pndm": "PNDMScheduler",
    "ddim": "DDIMScheduler",
    "euler": "EulerDiscreteScheduler",
    "dpmpp_2m": "DPMSolverMultistepScheduler",
}
PROMPT, NEGATIVE = "a photo of a castle", "blurred"
NETWORK_BAR, LATENTS_BAR = 1e-4, 1e-3
Arrays = dict[str, np.ndarray]


def define_flags() -> None:
    flags.DEFINE_string("checkpoint", None, "A folder in the diffusers layout.", required=True)
    flags.DEFINE_integer("size", None, "Height and width of the single evaluations, pixels.", lower_bound=8)
    flags.DEFINE_integer("sampled_size", 192, "Height and width of the sampled pictures, pixels.", lower_bound=8)
    flags.DEFINE_integer("steps", 20, "Steps of each sampler.", lower_bound=1)
    flags.DEFINE_list("samplers", list(SCHEDULERS), "Which samplers.")
    flags.DEFINE_string("out", None, "A JSON file for the table.")


def inputs(folder: Path, size: int | None, sampled_size: int) -> Arrays:
    """Random arrays in our axes: the U-Net's `x`, timesteps `t`, `pixels`, `z` to decode, starting `noise`."""
    native = 8 * json.loads((folder / "unet" / "config.json").read_text())["sample_size"]
    rng, latent = np.random.default_rng(0), (size or native) // 8
    shapes = {"x": (2, latent, latent, 4), "z": (1, latent, latent, 4), "noise": (1, *[sampled_size // 8] * 2, 4)}
    drawn = {name: rng.standard_normal(shape, np.float32) for name, shape in shapes.items()}
    coarse = rng.uniform(-1, 1, (1, latent, latent, 3)).astype(np.float32)
    return {**drawn, "t": np.array([981.0, 341.0], np.float32), "pixels": coarse.repeat(8, axis=1).repeat(8, axis=2)}


def theirs(folder: Path, given: Arrays, steps: int, samplers: list[str]) -> Arrays:
    """What diffusers makes of them, in our axes; token ids and text under `ids` and `text_encoder`."""
    import diffusers
    import torch

    torch.set_grad_enabled(False)
    pipe = diffusers.StableDiffusionPipeline.from_pretrained(folder, torch_dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)

    def channels_first(name: str) -> Any:
        return torch.from_numpy(given[name].transpose(0, 3, 1, 2).copy())

    def ours_order(tensor: Any) -> np.ndarray:
        return tensor.numpy().transpose(0, 2, 3, 1).copy()

    ids = pipe.tokenizer([NEGATIVE, PROMPT], padding="max_length", max_length=77, return_tensors="pt").input_ids
    text = pipe.text_encoder(ids).last_hidden_state
    made = {"ids": ids.numpy(), "text_encoder": text.numpy()}
    made["unet"] = ours_order(pipe.unet(channels_first("x"), torch.from_numpy(given["t"]), text).sample)
    posterior = pipe.vae.encode(channels_first("pixels")).latent_dist
    made["vae_encode_mean"], made["vae_encode_logvar"] = ours_order(posterior.mean), ours_order(posterior.logvar)
    made["vae_decode"] = ours_order(pipe.vae.decode(channels_first("z")).sample)
    size, config = 8 * given["noise"].shape[1], pipe.scheduler.config
    for name in samplers:
        pipe.scheduler = getattr(diffusers, SCHEDULERS[name]).from_config(config)
        asked = {"height": size, "width": size, "num_inference_steps": steps, "guidance_scale": 7.5}
        latents = pipe(PROMPT, negative_prompt=NEGATIVE, latents=channels_first("noise"), output_type="latent", **asked)
        made[f"{steps} steps {name}"] = ours_order(latents.images)
        print(f"diffusers: {name}", flush=True)
    return made


def ours(folder: Path, given: Arrays, steps: int, samplers: list[str]) -> Arrays:
    """The same with sdjax."""
    import jax
    import jax.numpy as jnp

    import sdjax
    from sdjax.nn.vae import Autoencoder

    sd = sdjax.load(folder)
    text = sd.encode_prompt([NEGATIVE, PROMPT])
    made = {"ids": sd.tokenizer.tokens([NEGATIVE, PROMPT]), "text_encoder": np.asarray(text)}
    made["unet"] = np.asarray(sd.predict(jnp.asarray(given["x"]), jnp.asarray(given["t"]), text))
    # Not sd.decode, which clips, nor sd.encode, which scales: differences would hide.
    vae = {name: jax.jit(partial(Autoencoder(sd.vae).apply, method=name)) for name in ("encode", "decode")}
    posterior = vae["encode"]({"params": sd.params["vae"]}, given["pixels"])
    made["vae_encode_mean"], made["vae_encode_logvar"] = map(np.asarray, posterior)
    made["vae_decode"] = np.asarray(vae["decode"]({"params": sd.params["vae"]}, given["z"]))
    size = 8 * given["noise"].shape[1]
    for name in samplers:
        asked = {"height": size, "width": size, "steps": steps, "guidance_scale": 7.5, "sampler": name}
        made[f"{steps} steps {name}"] = sd.generate(
            PROMPT, NEGATIVE, latents=given["noise"], decode=False, progress=False, **asked
        ).latents
        print(f"sdjax: {name}", flush=True)
    return made


def compare(mine: Arrays, reference: Arrays) -> dict[str, dict[str, Any]]:
    """The table: an entry for each output."""
    if not np.array_equal(mine.pop("ids"), reference.pop("ids")):
        raise ValueError("the two tokenizers give different ids")
    table = {}
    for name, want in reference.items():
        error = float(np.abs(mine[name] - want).max() / np.abs(want).max())
        bar = LATENTS_BAR if "steps" in name else NETWORK_BAR
        scale = {"shape": list(want.shape), "std": float(want.std()), "max": float(np.abs(want).max())}
        table[name] = {"relative_error": error, "bar": bar, "passes": bool(error <= bar), **scale}
    return table


def main(values: Any) -> None:
    folder = Path(values.checkpoint)
    unknown = sorted(set(values.samplers) - set(SCHEDULERS))
    if unknown:
        raise ValueError(f"--samplers: {unknown[0]!r} is unknown; known: {', '.join(SCHEDULERS)}")
    if not (folder / "model_index.json").is_file():
        raise ValueError(f"--checkpoint: {folder} has no model_index.json, so it is no diffusers folder")
    given = inputs(folder, values.size, values.sampled_size)
    reference = theirs(folder, given, values.steps, values.samplers)
    gc.collect()
    table = compare(ours(folder, given, values.steps, values.samplers), reference)
    print(f"{'':20} {'shape':18} {'std':>8} {'largest':>8} {'error':>9}  bar")
    for name, row in table.items():
        figures = f"{row['std']:8.3f} {row['max']:8.3f} {row['relative_error']:9.1e}  {row['bar']:.0e}"
        print(f"{name:20} {row['shape']!s:18} {figures} {'' if row['passes'] else 'FAILS'}")
    if values.out:
        Path(values.out).write_text(json.dumps(table, indent=2) + "\n")


if __name__ == "__main__":
    define_flags()
    _cli.run(lambda: main(flags.FLAGS))
