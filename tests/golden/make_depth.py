"""Makes tensors/depth.txt.gz: names and shapes of every tensor of Stable Diffusion 2 depth's depth estimator.

The network is transformers' own on torch's meta device, of the published sizes (Intel/dpt-hybrid-midas). A line is
`name shape`. Needs torch; run: python -m tests.golden.make_depth
"""

import gzip
from pathlib import Path
from typing import Any

PATH = Path(__file__).parent / "tensors" / "depth.txt.gz"
# What of depth_estimator/config.json the network's shape depends on. Its backbone's keys are left to their defaults
# in older files, and written out in newer ones; both say the same.
BACKBONE: dict[str, Any] = {
    "depths": [3, 4, 9],
    "embedding_dynamic_padding": True,
    "embedding_size": 64,
    "global_padding": "SAME",
    "hidden_act": "relu",
    "hidden_sizes": [256, 512, 1024, 2048],
    "layer_type": "bottleneck",
    "model_type": "bit",
    "num_groups": 32,
    "out_features": ["stage1", "stage2", "stage3"],
    "output_stride": 32,
    "width_factor": 1,
}
CONFIG: dict[str, Any] = {
    "architectures": ["DPTForDepthEstimation"],
    "backbone_config": BACKBONE,
    "backbone_featmap_shape": [1, 1024, 24, 24],
    "backbone_out_indices": [2, 5, 8, 11],
    "fusion_hidden_size": 256,
    "head_in_index": -1,
    "hidden_act": "gelu",
    "hidden_size": 768,
    "image_size": 384,
    "intermediate_size": 3072,
    "is_hybrid": True,
    "layer_norm_eps": 1e-12,
    "model_type": "dpt",
    "neck_hidden_sizes": [256, 512, 768, 768],
    "neck_ignore_stages": [0, 1],
    "num_attention_heads": 12,
    "num_hidden_layers": 12,
    "patch_size": 16,
    "qkv_bias": True,
    "readout_type": "project",
    "reassemble_factors": [1, 1, 1, 0.5],
    "use_batch_norm_in_fusion_residual": False,
}


def shapes() -> dict[str, tuple[int, ...]]:
    """Names and shapes of its tensors, as a file holds them."""
    import torch
    import transformers

    with torch.device("meta"):
        network = transformers.DPTForDepthEstimation(transformers.DPTConfig(**CONFIG))
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
