"""Makes tensors/image_encoder.txt.gz: names and shapes of every tensor of sd-image-variations' image encoder.

The network is transformers' own on torch's meta device, of the published sizes (CLIP's ViT-L/14, from
lambdalabs/sd-image-variations-diffusers, image_encoder/config.json). A line is `name shape`. Needs torch; run:
python -m tests.golden.make_image_encoder
"""

import gzip
from pathlib import Path
from typing import Any

PATH = Path(__file__).parent / "tensors" / "image_encoder.txt.gz"
CONFIG: dict[str, Any] = {
    "architectures": ["CLIPVisionModelWithProjection"],
    "hidden_act": "quick_gelu",
    "hidden_size": 1024,
    "image_size": 224,
    "intermediate_size": 4096,
    "layer_norm_eps": 1e-05,
    "model_type": "clip_vision_model",
    "num_attention_heads": 16,
    "num_channels": 3,
    "num_hidden_layers": 24,
    "patch_size": 14,
    "projection_dim": 768,
}


def shapes() -> dict[str, tuple[int, ...]]:
    """Names and shapes of its tensors, as a file holds them."""
    import torch
    import transformers

    with torch.device("meta"):
        network = transformers.CLIPVisionModelWithProjection(transformers.CLIPVisionConfig(**CONFIG))
    return {name: tuple(tensor.shape) for name, tensor in sorted(network.state_dict().items())}


def read() -> dict[str, tuple[int, ...]]:
    """What the file says."""
    pairs = (line.split(" ") for line in gzip.decompress(PATH.read_bytes()).decode().splitlines())
    return {name: tuple(map(int, shape.split(","))) for name, shape in pairs}


def main() -> None:
    """Write the file."""
    text = "".join(f"{name} {','.join(map(str, shape))}\n" for name, shape in shapes().items())
    PATH.write_bytes(gzip.compress(text.encode(), mtime=0))


if __name__ == "__main__":
    main()
