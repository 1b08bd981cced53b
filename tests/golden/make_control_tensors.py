"""Makes tensors/control.txt.gz: names and shapes of every tensor of the published control networks.

They are diffusers' own, built on torch's meta device from the configs of the repositories that CONFIGS names, in the
form of `make_tensors`. Needs torch; run: python -m tests.golden.make_control_tensors
"""

import gzip
from pathlib import Path
from typing import Any

from sdjax.config.presets import PRESETS
from tests.golden.make_tensors import Shapes

PATH = Path(__file__).parent / "tensors" / "control.txt.gz"
_LEFT_OUT = ("up_block_types", "out_channels", "sample_size", "_class_name")


def controlnet(preset: str, **more: Any) -> dict[str, Any]:
    """config.json of a ControlNet for a family."""
    kept = {name: value for name, value in PRESETS[preset].configs["unet"].items() if name not in _LEFT_OUT}
    return {"_class_name": "ControlNetModel", **kept, "conditioning_embedding_out_channels": [16, 32, 96, 256]} | more


def union(types: int) -> dict[str, Any]:
    """config.json of xinsir's Union."""
    own = {"num_control_type": types, "num_trans_channel": 320, "num_trans_head": 8, "num_trans_layer": 1}
    return controlnet("sdxl", _class_name="ControlNetUnionModel", num_proj_channel=320, **own)


def t2i(**config: Any) -> dict[str, Any]:
    """config.json of a T2I-Adapter."""
    return {"_class_name": "T2IAdapter", "channels": [320, 640, 1280, 1280], "num_res_blocks": 2, **config}


CONFIGS: dict[str, dict[str, Any]] = {
    "lllyasviel/control_v11p_sd15_canny": controlnet("sd15"),
    "thibaud/controlnet-sd21-canny-diffusers": controlnet("sd21"),
    "diffusers/controlnet-canny-sdxl-1.0": controlnet("sdxl"),
    "xinsir/controlnet-union-sdxl-1.0": union(6),
    "xinsir/controlnet-union-sdxl-1.0-promax": union(8),
    "TencentARC/t2iadapter_color_sd14v1": t2i(
        adapter_type="light_adapter", channels=[320, 640, 1280], num_res_blocks=4, in_channels=3
    ),
    "TencentARC/t2iadapter_canny_sd15v2": t2i(adapter_type="full_adapter", in_channels=1, downscale_factor=8),
    "TencentARC/t2i-adapter-depth-midas-sdxl-1.0": t2i(
        adapter_type="full_adapter_xl", in_channels=3, downscale_factor=16
    ),
}  # fmt: skip


def shapes(config: dict[str, Any]) -> Shapes:
    """Names and shapes of diffusers' network, as a file holds them."""
    import diffusers
    import torch

    own = {name: value for name, value in config.items() if not name.startswith("_")}
    with torch.device("meta"):
        made = getattr(diffusers, config["_class_name"])(**own)
    return {name: tuple(tensor.shape) for name, tensor in sorted(made.state_dict().items())}


def main() -> None:
    """Write the file."""
    text = ""
    for name, config in CONFIGS.items():
        lines = (f"{tensor} {','.join(map(str, shape))}\n" for tensor, shape in shapes(config).items())
        text += f"# {name}\n{''.join(lines)}"
    PATH.write_bytes(gzip.compress(text.encode(), mtime=0))


if __name__ == "__main__":
    main()
