"""Full-size Stable Diffusion checkpoints with random weights, saved by diffusers.

    python -m experiments.random_checkpoints --family=sd15 --out=/tmp/sd15      # 4.2 GB, about a minute

The configs are those that Stable Diffusion 1.5 and 2.1 (768) were published with; the weights are torch's own initial
ones, moved so that a comparison of two programs says something. A fresh network hides mistakes: its norms' scales are
1 and its biases 0, so all vectors get a tenth of a unit Gaussian added; its text hardly matters, so the projections
out of the cross-attentions are made four times larger; its output is small, so the last convolution is scaled until
the prediction has unit deviation (the decoder's: a quarter). The vocabulary is one of a few words.
"""

import gc
import json
import tempfile
from pathlib import Path
from typing import Any

from absl import flags

from experiments import _cli
from sdjax.text import write_word_tokenizer

WORDS = ["a", "an", "photo", "of", "red", "blue", "circle", "castle", "blurred"]
CROSS_GAIN, PREDICTION_STD, PIXEL_STD = 4.0, 1.0, 0.25

_UNET: dict[str, Any] = {
    "_class_name": "UNet2DConditionModel",
    "act_fn": "silu",
    "block_out_channels": [320, 640, 1280, 1280],
    "down_block_types": [*["CrossAttnDownBlock2D"] * 3, "DownBlock2D"],
    "in_channels": 4,
    "layers_per_block": 2,
    "norm_eps": 1e-05,
    "norm_num_groups": 32,
    "out_channels": 4,
    "up_block_types": ["UpBlock2D", *["CrossAttnUpBlock2D"] * 3],
}
_VAE: dict[str, Any] = {
    "_class_name": "AutoencoderKL",
    "act_fn": "silu",
    "block_out_channels": [128, 256, 512, 512],
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "latent_channels": 4,
    "layers_per_block": 2,
    "norm_num_groups": 32,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
}
_TEXT: dict[str, Any] = {
    "architectures": ["CLIPTextModel"],
    "bos_token_id": 0,
    "eos_token_id": 2,
    "layer_norm_eps": 1e-05,
    "max_position_embeddings": 77,
    "model_type": "clip_text_model",
    "pad_token_id": 1,
    "vocab_size": 49408,
}
_SCHEDULER: dict[str, Any] = {
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "clip_sample": False,
    "num_train_timesteps": 1000,
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
    "steps_offset": 1,
    "trained_betas": None,
}

# runwayml/stable-diffusion-v1-5 and stabilityai/stable-diffusion-2-1, the keys that these networks read.
CONFIGS: dict[str, dict[str, dict[str, Any]]] = {
    "sd15": {
        "text_encoder": _TEXT
        | {"hidden_act": "quick_gelu", "hidden_size": 768, "intermediate_size": 3072, "projection_dim": 768}
        | {"num_attention_heads": 12, "num_hidden_layers": 12},
        "unet": _UNET | {"attention_head_dim": 8, "cross_attention_dim": 768, "sample_size": 64},
        "vae": _VAE | {"sample_size": 512, "scaling_factor": 0.18215},
        "scheduler": _SCHEDULER | {"_class_name": "PNDMScheduler"},
    },
    "sd21": {
        "text_encoder": _TEXT
        | {"hidden_act": "gelu", "hidden_size": 1024, "intermediate_size": 4096, "projection_dim": 512}
        | {"num_attention_heads": 16, "num_hidden_layers": 23},
        "unet": _UNET
        | {"attention_head_dim": [5, 10, 20, 20], "cross_attention_dim": 1024, "sample_size": 96}
        | {"upcast_attention": True, "use_linear_projection": True},
        "vae": _VAE | {"sample_size": 768, "scaling_factor": 0.18215},
        "scheduler": _SCHEDULER | {"_class_name": "DDIMScheduler", "prediction_type": "v_prediction"},
    },
}


def make(family: str, folder: Path, seed: int = 0) -> Path:
    """Writes the checkpoint of a `family` in CONFIGS into `folder`, in float32, and returns the folder."""
    import diffusers
    import torch
    import transformers

    torch.manual_seed(seed)
    configs = CONFIGS[family]
    with tempfile.TemporaryDirectory() as words, torch.no_grad():
        write_word_tokenizer(words, WORDS, 77)
        text = transformers.CLIPTextModel(transformers.CLIPTextConfig(**configs["text_encoder"]))
        pipeline: Any = diffusers.StableDiffusionPipeline(
            vae=_vae(diffusers.AutoencoderKL.from_config(configs["vae"])),
            text_encoder=_perturbed(text),
            tokenizer=transformers.CLIPTokenizer.from_pretrained(words),
            unet=_unet(diffusers.UNet2DConditionModel.from_config(configs["unet"])),
            scheduler=getattr(diffusers, configs["scheduler"]["_class_name"]).from_config(configs["scheduler"]),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
        pipeline.save_pretrained(folder)
    # diffusers adds the class's defaults to what was published, which would then bind every other scheduler.
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(configs["scheduler"], indent=2) + "\n")
    del pipeline, text
    gc.collect()
    return folder


def _perturbed(module: Any) -> Any:
    import torch

    for parameter in module.parameters():
        if parameter.ndim == 1:
            parameter += 0.1 * torch.randn_like(parameter)
    return module.eval()


def _unet(unet: Any) -> Any:
    import torch

    for name, parameter in _perturbed(unet).named_parameters():
        if "attn2.to_out.0.weight" in name:
            parameter *= CROSS_GAIN
    context = torch.randn(1, 77, unet.config.cross_attention_dim)
    return _scaled(unet, PREDICTION_STD, unet(torch.randn(1, 4, 16, 16), 500, context).sample)


def _vae(vae: Any) -> Any:
    import torch

    _perturbed(vae)
    _scaled(vae.decoder, PIXEL_STD, vae.decode(torch.randn(1, 4, 16, 16)).sample)
    return vae


def _scaled(module: Any, std: float, output: Any) -> Any:
    module.conv_out.weight *= std / output.std()
    module.conv_out.bias *= std / output.std()
    return module


def define_flags() -> None:
    flags.DEFINE_enum("family", "sd15", sorted(CONFIGS), "Which published configs.")
    flags.DEFINE_string("out", None, "The new folder.", required=True)


if __name__ == "__main__":
    define_flags()
    _cli.run(lambda: print(make(flags.FLAGS.family, Path(flags.FLAGS.out))))
