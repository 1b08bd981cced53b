"""diffusers' and transformers' half of `parity`: each network of a folder on given inputs, one in memory at a time.

Everything computes in float32, whatever the weights are stored in; the U-Net keeps them as stored and widens a layer
at a time, so that SDXL's takes 5 GB, not 10. Arrays are in our axes, `b h w c`.
"""

import contextlib
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from experiments.random_checkpoints import in_float32

Arrays = dict[str, np.ndarray]
SCHEDULERS = {
    "pndm": "PNDMScheduler",
    "ddim": "DDIMScheduler",
    "euler": "EulerDiscreteScheduler",
    "dpmpp_2m": "DPMSolverMultistepScheduler",
}
ENCODERS = {"text_encoder": "tokenizer", "text_encoder_2": "tokenizer_2"}  # each with its tokenizer's folder


@contextlib.contextmanager
def timed(seconds: dict[str, float], name: str) -> Iterator[None]:
    """Enters the time of a block under `name`, and tells of it."""
    begun = time.perf_counter()
    yield
    seconds[name] = round(time.perf_counter() - begun, 1)
    print(f"{name}: {seconds[name]} s", flush=True)


def evaluate(folder: Path, given: Arrays, seconds: dict[str, float]) -> Arrays:
    """The text encoders, the U-Net for both prompts, the VAE both ways; `seconds` gets what each took, loading too."""
    import torch

    made: Arrays = {}
    with torch.no_grad():
        with timed(seconds, "text encoders"):
            context, pooled = _text(folder, given["prompts"].tolist(), made)
        with timed(seconds, "unet"):
            made["unet"] = _unet(folder, given, context, pooled)
        for part in ("vae_encode", "vae_decode"):
            with timed(seconds, part):
                made |= _vae(folder, part, given)
    return made


def sample(folder: Path, given: Arrays, steps: int, samplers: list[str], seconds: dict[str, float]) -> Arrays:
    """Final latents of whole guided runs from given noise, by sampler: Stable Diffusion 1.x and 2.x."""
    import diffusers
    import torch

    pipe: Any = diffusers.StableDiffusionPipeline.from_pretrained(folder, dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    size, config = 8 * given["noise"].shape[1], pipe.scheduler.config
    negative, prompt = given["prompts"].tolist()
    made = {}
    for name in samplers:
        pipe.scheduler = getattr(diffusers, SCHEDULERS[name]).from_config(config)
        asked = {"height": size, "width": size, "num_inference_steps": steps, "guidance_scale": float(given["scale"])}
        with timed(seconds, f"{steps} steps {name}"):
            latents = _theirs(given["noise"])
            out = pipe(prompt, negative_prompt=negative, latents=latents, output_type="latent", **asked)
        made[f"{steps} steps {name}"] = _ours(out.images)
    return made


def present(folder: Path) -> list[str]:
    """The text encoders that a checkpoint has."""
    return [name for name in ENCODERS if (folder / name / "config.json").is_file()]


def is_xl(folder: Path) -> bool:
    """Whether a checkpoint is an SDXL, whose U-Net also takes pooled text and sizes."""
    return read_config(folder, "unet").get("addition_embed_type") == "text_time"


def read_config(folder: Path, component: str) -> dict[str, Any]:
    """A component's config.json."""
    return json.loads((folder / component / "config.json").read_text())


def _text(folder: Path, prompts: list[str], made: Arrays) -> tuple[Any, Any]:
    """What the U-Net attends to, `b l d`, and the pooled text of an SDXL; each encoder's share goes into `made`."""
    import torch
    import transformers

    states, pooled = [], None
    for name in present(folder):
        tokenizer = transformers.CLIPTokenizer.from_pretrained(folder / ENCODERS[name])
        ids = tokenizer(prompts, padding="max_length", max_length=77, return_tensors="pt").input_ids
        kind = getattr(transformers, read_config(folder, name)["architectures"][0])
        out = kind.from_pretrained(folder / name, dtype=torch.float32)(ids, output_hidden_states=True)
        states.append(out.hidden_states[-2] if is_xl(folder) else out.last_hidden_state)
        made[f"{name} ids"], made[name] = ids.numpy(), states[-1].numpy()
        if name == "text_encoder_2":
            pooled = out.text_embeds
            made["pooled"] = pooled.numpy()
    return torch.cat(states, -1), pooled


def _unet(folder: Path, given: Arrays, context: Any, pooled: Any) -> np.ndarray:
    """The raw prediction for [negative prompt, prompt], `2 h w c`."""
    import diffusers
    import torch

    added = None if pooled is None else {"text_embeds": pooled, "time_ids": torch.from_numpy(given["time_ids"])}
    unet = diffusers.UNet2DConditionModel.from_pretrained(folder / "unet", dtype=_stored(folder / "unet"))
    x = _theirs(given["x"]).repeat(2, 1, 1, 1)
    return _ours(in_float32(unet)(x, torch.from_numpy(given["t"]), context, added_cond_kwargs=added).sample)


def _stored(folder: Path) -> Any:
    """The dtype of a component's weights."""
    import safetensors

    file = sorted(folder.glob("*.safetensors"))[0]
    with safetensors.safe_open(os.fspath(file), "pt") as opened:
        return opened.get_tensor(next(iter(opened.keys()))).dtype


def _vae(folder: Path, part: str, given: Arrays) -> Arrays:
    import diffusers
    import torch

    vae: Any = diffusers.AutoencoderKL.from_pretrained(folder / "vae", dtype=torch.float32)
    if part == "vae_decode":
        return {part: _ours(vae.decode(_theirs(given["z"])).sample)}
    posterior = vae.encode(_theirs(given["pixels"])).latent_dist
    return {f"{part}_mean": _ours(posterior.mean), f"{part}_logvar": _ours(posterior.logvar)}


def _theirs(array: np.ndarray) -> Any:
    """`b h w c` -> `b c h w`."""
    import torch

    return torch.from_numpy(array.transpose(0, 3, 1, 2).copy())


def _ours(tensor: Any) -> np.ndarray:
    """`b c h w` -> `b h w c`."""
    return tensor.detach().numpy().transpose(0, 2, 3, 1).copy()
