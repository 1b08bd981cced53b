"""sdjax's half of `parity`: each network of a folder on given inputs, through the public calls.

One network at a time is in memory, in float32 whatever it is stored in: SDXL's U-Net takes 10 GB, and a checkpoint
loaded as a whole would take half as much again for the stored weights.
"""

from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import sdjax
from experiments.parity_theirs import ENCODERS, Arrays, present, timed
from sdjax.config import ClipTextConfig, Config, UNetConfig, VaeConfig
from sdjax.model.networks import Networks
from sdjax.model.spec import ModelSpec
from sdjax.model.text_encoder import TextEncoder
from sdjax.nn.conditioning import Conditions
from sdjax.nn.shapes import expected_params
from sdjax.nn.vae import Autoencoder
from sdjax.text import Tokenizer
from sdjax.weights import open_checkpoint, read_component


def evaluate(folder: Path, given: Arrays, seconds: dict[str, float]) -> Arrays:
    """As parity_theirs' `evaluate`; the times hold compiling as well."""
    made: Arrays = {}
    with timed(seconds, "text encoders"):
        conditions = _text(folder, given, made)
    with timed(seconds, "unet"):
        x = jnp.repeat(jnp.asarray(given["x"]), 2, axis=0)
        made["unet"] = np.asarray(_holding(folder, "unet").predict(x, jnp.asarray(given["t"]), conditions))
    # Not sd.decode, which clips, nor sd.encode, which scales: differences would hide.
    vae = _holding(folder, "vae")
    run = {name: jax.jit(partial(Autoencoder(vae.vae).apply, method=name)) for name in ("encode", "decode")}
    with timed(seconds, "vae_encode"):
        posterior = run["encode"]({"params": vae.params["vae"]}, given["pixels"])
        made["vae_encode_mean"], made["vae_encode_logvar"] = map(np.asarray, posterior)
    with timed(seconds, "vae_decode"):
        made["vae_decode"] = np.asarray(run["decode"]({"params": vae.params["vae"]}, given["z"]))
    return made


def sample(folder: Path, given: Arrays, steps: int, samplers: list[str], seconds: dict[str, float]) -> Arrays:
    """As parity_theirs' `sample`."""
    sd, size = sdjax.load(folder), 8 * given["noise"].shape[1]
    negative, prompt = given["prompts"].tolist()
    asked = {"height": size, "width": size, "steps": steps, "guidance_scale": float(given["scale"])}
    made = {}
    for name in samplers:
        with timed(seconds, f"{steps} steps {name}"):
            out = sd.generate(
                prompt, negative, sampler=name, latents=given["noise"], decode=False, progress=False, **asked
            )
        made[f"{steps} steps {name}"] = out.latents
    return made


def _text(folder: Path, given: Arrays, made: Arrays) -> Conditions:
    """What the U-Net is told for [negative prompt, prompt]; each encoder's share goes into `made`."""
    prompts = given["prompts"].tolist()
    sd = _holding(folder, *present(folder))
    sizes = _sizes(given["time_ids"]) if sd.time_ids else {}
    told = sd.conditions(prompts, **sizes)
    context = np.asarray(told.context)
    for name, encoder in sd.encoders.items():
        made[f"{name} ids"] = encoder.tokenizer.tokens(prompts)
        made[name], context = np.split(context, [encoder.config.hidden_size], axis=-1)
    if told.added is not None:
        made["pooled"] = np.asarray(told.added.pooled)
    return told


def _sizes(time_ids: np.ndarray) -> dict[str, Any]:
    """The rows of ids as `StableDiffusion.conditions` takes them."""
    rows = time_ids.astype(int).tolist()
    sizes = {"original_size": [row[:2] for row in rows], "crop": [row[2:4] for row in rows]}
    if time_ids.shape[1] == 5:
        return {**sizes, "aesthetic_score": [float(row[4]) for row in time_ids]}
    return {**sizes, "target_size": [row[4:] for row in rows]}


def _holding(folder: Path, *names: str) -> sdjax.StableDiffusion:
    """The checkpoint with the weights of these networks alone, widened to float32 as they are read."""
    opened = open_checkpoint(folder)
    unet, vae = UNetConfig.from_dict(opened.configs["unet"]), VaeConfig.from_dict(opened.configs["vae"])
    encoders = {
        name: TextEncoder(ClipTextConfig.from_dict(opened.configs[name]), Tokenizer.read(opened.tokenizer(part), part))
        for name, part in ENCODERS.items()
        if name in opened.configs
    }
    networks: dict[str, Config] = {name: one.config for name, one in encoders.items()}
    networks |= {"unet": unet, "vae": vae}
    expected = expected_params({name: networks[name] for name in names})
    params = {name: read_component(folder / name, expected[name], dtype=np.float32)[0] for name in names}
    spec = ModelSpec(folder.name, encoders, unet, vae, opened.scheduler)
    return sdjax.StableDiffusion(Networks.of(spec, params))
