"""Full-size Stable Diffusion checkpoints with random weights, the networks saved by diffusers and transformers.

    python -m experiments.random_checkpoints --family=sd15 --out=/tmp/sd15      # 4.2 GB, about a minute
    python -m experiments.random_checkpoints --family=sdxl --out=/tmp/sdxl      # 6.9 GB in float16, 2 minutes

The configs are the published ones (`sdjax.config.presets`); the weights are torch's own initial ones, moved so that a
comparison of two programs says something. A fresh network hides mistakes: its norms' scales are 1 and its biases 0, so
all vectors get a tenth of a unit Gaussian added; its text hardly matters, so the projections out of the
cross-attentions are made four times larger; its output is small, so the last convolution is scaled until the
prediction has unit deviation (the decoder's: a quarter). The vocabulary is one of a few words.

One network at a time is in memory, in the dtype it is stored in: SDXL's U-Net of 2.57 billion weights takes 5.1 GB.
"""

import gc
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from absl import flags

from experiments import _cli
from sdjax.config.presets import PRESETS, Json, Preset
from sdjax.text import write_word_tokenizer

Configs = Mapping[str, Json]
WORDS = ["a", "an", "photo", "of", "red", "blue", "circle", "castle", "blurred"]
CROSS_GAIN, PREDICTION_STD, PIXEL_STD = 4.0, 1.0, 0.25
CLASSES = {"unet": "UNet2DConditionModel", "vae": "AutoencoderKL"}  # diffusers'; a text encoder's config names its own
# What model_index.json says beside components and the preset's facts, in the published files.
INDEX: dict[str, dict[str, Any]] = {
    "StableDiffusionPipeline": {"requires_safety_checker": False},
    "StableDiffusionXLPipeline": {"add_watermarker": None},
    "StableDiffusionXLImg2ImgPipeline": {"add_watermarker": None},
}
ABSENT = {  # components that the pipeline's class knows and the folder does not have
    "StableDiffusionPipeline": ("feature_extractor", "safety_checker"),
    "StableDiffusionXLPipeline": (),
    "StableDiffusionXLImg2ImgPipeline": ("text_encoder", "tokenizer"),
}
FAMILIES = sorted(name for name, preset in PRESETS.items() if preset.pipeline in INDEX)  # those that take text alone


def define_flags() -> None:
    flags.DEFINE_enum("family", "sd15", FAMILIES, "Which published configs.")
    flags.DEFINE_enum(
        "dtype", None, ["float32", "float16"], "As weights are stored; default: SDXL float16, SD float32."
    )
    flags.DEFINE_string("out", None, "The new folder.", required=True)


def make(preset: Preset, folder: Path, dtype: str, seed: int = 0) -> Path:
    """Writes the checkpoint of `preset` into `folder`, its weights stored in `dtype`, and returns the folder."""
    import torch

    torch.manual_seed(seed)
    makers: dict[str, Callable[..., Any]] = {"unet": _unet, "vae": _vae}
    for name in preset.configs:
        with torch.no_grad():
            module = makers.get(name, _text_encoder)(preset.configs, name, getattr(torch, dtype))
        module.save_pretrained(folder / name)
        del module
        gc.collect()
    _write_side_files(preset, folder)
    return folder


def in_float32(module: Any) -> Any:
    """`module`, computing in float32 whatever it is stored in: each layer is widened while it runs, then narrowed.

    Not for diffusers' VAE, whose decoder casts the picture to its parameters' dtype.
    """

    def widen(layer: Any, *_: Any) -> None:
        for parameter in layer.parameters(recurse=False):
            parameter.stored, parameter.data = parameter.data, parameter.data.float()

    def narrow(layer: Any, *_: Any) -> None:
        for parameter in layer.parameters(recurse=False):
            parameter.data = parameter.stored

    for layer in module.modules():
        if next(layer.parameters(recurse=False), None) is not None:
            layer.register_forward_pre_hook(widen)
            layer.register_forward_hook(narrow)
    return module


def count_time_ids(unet: Json, text_encoder_2: Json) -> int:
    """How many numbers an SDXL U-Net takes beside the pooled text, by the two configs: 6, its refiner 5."""
    ids = unet["projection_class_embeddings_input_dim"] - text_encoder_2["projection_dim"]
    return ids // unet["addition_time_embed_dim"]


# ---------------------------------------------------------------------- the networks


def _text_encoder(configs: Configs, name: str, dtype: Any) -> Any:
    import transformers

    config = configs[name]
    module = getattr(transformers, config["architectures"][0])(transformers.CLIPTextConfig(**config))
    return _perturbed(module).to(dtype)


def _unet(configs: Configs, name: str, dtype: Any) -> Any:
    import torch

    config, unet = configs[name], _fresh(name, configs[name], dtype)
    for name, parameter in unet.named_parameters():
        if "attn2.to_out.0.weight" in name:
            parameter *= CROSS_GAIN
    added = None
    if config.get("addition_embed_type") == "text_time":
        ids = count_time_ids(config, configs["text_encoder_2"])
        pooled = torch.randn(1, configs["text_encoder_2"]["projection_dim"])
        added = {"text_embeds": pooled, "time_ids": torch.full((1, ids), 512.0)}
    context = torch.randn(1, 77, config["cross_attention_dim"])
    made = in_float32(unet)(torch.randn(1, 4, 16, 16), 500, context, added_cond_kwargs=added).sample
    return _scaled(unet, PREDICTION_STD, made)


def _vae(configs: Configs, name: str, dtype: Any) -> Any:
    import torch

    vae = _fresh(name, configs[name], torch.float32)
    _scaled(vae.decoder, PIXEL_STD, vae.decode(torch.randn(1, 4, 16, 16)).sample)
    return torch.nn.Module.to(vae, dtype)


def _fresh(name: str, config: Json, dtype: Any) -> Any:
    """diffusers' network with torch's initial weights, drawn straight into `dtype`: no float32 copy of the whole."""
    import diffusers
    import torch

    with torch.device("meta"):
        module: Any = getattr(diffusers, CLASSES[name]).from_config(config)
    module = torch.nn.Module.to(module, dtype).to_empty(device="cpu")  # diffusers' own `to` warns of nothing
    for layer in module.modules():
        own = dict(layer.named_parameters(recurse=False))
        for part, parameter in own.items():
            if own["weight"].ndim == 1:  # of a norm
                parameter.fill_(float(part == "weight"))
            else:
                bound = own["weight"][0].numel() ** -0.5
                parameter.copy_(torch.empty(parameter.shape).uniform_(-bound, bound))
    return _perturbed(module)


def _perturbed(module: Any) -> Any:
    import torch

    for parameter in module.parameters():
        if parameter.ndim == 1:
            parameter += 0.1 * torch.randn(parameter.shape)
    return module.eval()


def _scaled(module: Any, std: float, output: Any) -> Any:
    module.conv_out.weight *= std / output.std()
    module.conv_out.bias *= std / output.std()
    return module


# ---------------------------------------------------------------------- everything else


def _write_side_files(preset: Preset, folder: Path) -> None:
    """Tokenizers, the scheduler's config, model_index.json: as published, no class's defaults added.

    diffusers would add them when it saves, and they would then bind every other scheduler.
    """
    for name, pad in preset.pad_tokens.items():
        write_word_tokenizer(folder / name, WORDS, 77)
        overrule = folder / name / "special_tokens_map.json"  # Stable Diffusion 2 names its pad token here alone
        _write_json(overrule, json.loads(overrule.read_text()) | {"pad_token": pad})
    _write_json(folder / "scheduler" / "scheduler_config.json", preset.scheduler)
    _write_json(folder / "model_index.json", model_index(preset))


def model_index(preset: Preset) -> dict[str, Any]:
    """model_index.json of a preset's folder."""
    text = {name: config["architectures"][0] for name, config in preset.configs.items() if name not in CLASSES}
    return {
        "_class_name": preset.pipeline,
        "_diffusers_version": "0.19.0.dev0",
        **preset.index,
        **INDEX[preset.pipeline],
        **{name: [None, None] for name in ABSENT[preset.pipeline]},
        "scheduler": ["diffusers", preset.scheduler["_class_name"]],
        **{name: ["transformers", architecture] for name, architecture in text.items()},
        **{name: ["transformers", "CLIPTokenizer"] for name in preset.pad_tokens},
        **{name: ["diffusers", architecture] for name, architecture in CLASSES.items()},
    }


def _write_json(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=2) + "\n")


def main(values: Any) -> None:
    preset = PRESETS[values.family]
    dtype = values.dtype or ("float16" if "text_encoder_2" in preset.configs else "float32")
    print(make(preset, Path(values.out), dtype))


if __name__ == "__main__":
    define_flags()
    _cli.run(lambda: main(flags.FLAGS))
