"""Makes tensors/image_prompts.txt.gz: names and shapes of the networks behind the published IP-Adapters.

The image encoders are transformers' own, the projections and attention layers diffusers', of the published sizes
(h94/IP-Adapter) on torch's meta device. A section a network, as `make_tensors` has it; those of attention are in the
order in which diffusers counts them, which is that of a file's ids. Needs torch; run:
python -m tests.golden.make_image_prompt
"""

import gzip
from pathlib import Path
from typing import Any

from sdjax.config.image_prompt import BASE, FULL, PLUS, ImagePromptConfig, ResamplerConfig
from tests.golden.make_tensors import Shapes, network, read

PATH = Path(__file__).parent / "tensors" / "image_prompts.txt.gz"
COMMON: dict[str, Any] = {
    "architectures": ["CLIPVisionModelWithProjection"],
    "hidden_act": "gelu",
    "image_size": 224,
    "layer_norm_eps": 1e-05,
    "model_type": "clip_vision_model",
    "num_attention_heads": 16,
    "patch_size": 14,
}
ENCODERS = {
    "vit_h": COMMON | {"hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32, "projection_dim": 1024},
    "vit_big_g": COMMON
    | {"hidden_size": 1664, "intermediate_size": 8192, "num_hidden_layers": 48, "projection_dim": 1280},
}
# What the published files' tensors say: by file, the preset of the U-Net that it is for, and the projection.
ADAPTERS = {
    "ip-adapter_sd15": ("sd15", ImagePromptConfig(BASE, 1024, 768, 4)),
    "ip-adapter_sd15_vit-G": ("sd15", ImagePromptConfig(BASE, 1280, 768, 4)),
    "ip-adapter-plus_sd15": ("sd15", ImagePromptConfig(PLUS, 1280, 768, 16, ResamplerConfig(768, 4, 12, 3072))),
    "ip-adapter-full-face_sd15": ("sd15", ImagePromptConfig(FULL, 1280, 768, None)),
    "ip-adapter_sdxl": ("sdxl", ImagePromptConfig(BASE, 1280, 2048, 4)),
    "ip-adapter_sdxl_vit-h": ("sdxl", ImagePromptConfig(BASE, 1024, 2048, 4)),
    "ip-adapter-plus_sdxl_vit-h": ("sdxl", ImagePromptConfig(PLUS, 1280, 2048, 16, ResamplerConfig(1280, 4, 20, 5120))),
}


def golden() -> dict[str, Shapes]:
    """What the file says: "vit_h", "ip-adapter_sd15" .. (their projections), "sd15/attention", "sdxl/attention"."""
    return read(PATH)


def projection(config: ImagePromptConfig) -> Any:
    """diffusers' module."""
    from diffusers.models import embeddings

    width = config.cross_attention_dim
    if config.kind == BASE:
        return embeddings.ImageProjection(config.image_dim, width, config.tokens)
    if config.kind == FULL:
        return embeddings.IPAdapterFullImageProjection(config.image_dim, width)
    one = config.resampler
    sizes = (config.image_dim, width, one.width, one.depth, one.dim_head, one.heads, config.tokens)
    return embeddings.IPAdapterPlusImageProjection(*sizes, ffn_ratio=one.hidden / one.width)


def attention(preset: str) -> Shapes:
    """The layers that a U-Net's cross-attentions would have, in the order of its attention processors."""
    from sdjax.config.presets import PRESETS

    config = PRESETS[preset].configs["unet"]
    unet, found = network(config), {}
    for name in unet.attn_processors:
        if name.endswith("attn2.processor"):
            module = name.removesuffix(".processor")
            shape = tuple(unet.get_submodule(module).to_k.weight.shape)
            found |= {f"{module}.{layer}.weight": shape for layer in ("to_k_ip", "to_v_ip")}
    return found


def networks() -> dict[str, Shapes]:
    """Of every network the names and shapes of its parameters."""
    import torch
    import transformers

    with torch.device("meta"):
        made = {
            name: transformers.CLIPVisionModelWithProjection(transformers.CLIPVisionConfig(**config))
            for name, config in ENCODERS.items()
        }
        made |= {name: projection(config) for name, (_, config) in ADAPTERS.items()}
    found = {
        name: {key: tuple(one.shape) for key, one in sorted(module.named_parameters())} for name, module in made.items()
    }
    return found | {f"{preset}/attention": attention(preset) for preset in ("sd15", "sdxl")}


def main() -> None:
    """Write the file."""
    text = "".join(
        f"# {name}\n" + "".join(f"{key} {','.join(map(str, shape))}\n" for key, shape in shapes.items())
        for name, shapes in networks().items()
    )
    PATH.write_bytes(gzip.compress(text.encode(), mtime=0))


if __name__ == "__main__":
    main()
