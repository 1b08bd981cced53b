"""What diffusers with PEFT makes of a LoRA: 8 guided steps with the golden checkpoints, `sd1/adapter.npz` and `sd2/..`.

    python -m tests.golden.make_adapters         # needs the extra `parity`; half a minute

The LoRA is `tests.adapters.golden_lora`, rank 4, of every linear layer and convolution of the U-Net. diffusers
0.42 loses a text encoder's factors under transformers 5.6 and later, so it has none.
"""

import tempfile
from pathlib import Path

import diffusers
import numpy as np
import torch

import sdjax
from tests import adapters, golden_pipeline

FOLDER = Path(__file__).parent


def main() -> None:
    for family in ("sd1", "sd2"):
        pipeline = diffusers.StableDiffusionPipeline.from_pretrained(FOLDER / family, safety_checker=None)
        pipeline.scheduler = diffusers.DDIMScheduler.from_config(pipeline.scheduler.config)
        noise = np.random.default_rng(0).standard_normal((2, 8, 8, 4)).astype(np.float32)
        with tempfile.TemporaryDirectory() as folder:
            params = {"unet": sdjax.load(FOLDER / family, compilation_cache=False).params["unet"]}
            path = adapters.written(Path(folder) / "x.safetensors", adapters.golden_lora(params))
            pipeline.load_lora_weights(str(path), adapter_name="x")
        pipeline.set_adapters(["x"], [golden_pipeline.SCALE])
        made = pipeline(
            golden_pipeline.PROMPTS,
            negative_prompt=golden_pipeline.NEGATIVES,
            num_inference_steps=8,
            guidance_scale=7.5,
            latents=torch.from_numpy(np.moveaxis(noise, -1, 1).copy()),
            height=8 * pipeline.vae_scale_factor,
            width=8 * pipeline.vae_scale_factor,
            output_type="latent",
        )
        np.savez(FOLDER / family / "adapter.npz", latents=np.moveaxis(made.images.numpy(), 1, -1))


if __name__ == "__main__":
    main()
