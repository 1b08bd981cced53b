"""The published families: every tensor of the published checkpoints by name and shape, and their files to the byte."""

import functools
import json
import math
from dataclasses import replace

import numpy as np
import pytest

import sdjax
from sdjax.config import ClipTextConfig, UNetConfig, VaeConfig
from sdjax.config.presets import ALIKE, PRESETS
from sdjax.core.tree import flatten
from sdjax.nn.shapes import expected_params
from sdjax.text.vocabulary import clip_tokenizer_files
from sdjax.weights.names import file_shapes, spellings, tensor_name
from tests.golden.make_tensors import read

ALL = PRESETS | ALIKE
NETWORKS = [f"{name}/{component}" for name, preset in ALL.items() for component in preset.configs]
READERS = {"unet": UNetConfig.from_dict, "vae": VaeConfig.from_dict}
WIDTHS = {"F32": 4, "F16": 2, "I64": 8}

# Sizes in bytes of files on the Hub, from the Git LFS pointers (with these beginnings of their SHA-256) in public
# copies of the repositories on GitHub: HDRJ-One/runwayml-stable-diffusion-v1-5, gaikwadbsupriyaofficial/timbrook1,
# jack-op11/stable-diffusion-2-1, Teiboku/std2-inpaint, andrewcchoi/stabilityai-stable-diffusion-xl-base-1.0,
# Lixtic/hugs, reo224/LoRA_Diffusers, Guang000/Generative-Dataset-Distillation-Based-on-Diffusion-Model.
PUBLISHED = [
    ("sd15/unet", "F32", 3438167536, "d27cd69d"),
    ("sd15/vae", "F32", 334643268, "b4d2b593"),
    ("sd15/text_encoder", "F32", 492265879, "7b3a12df"),
    ("sd15_pix2pix/unet", "F16", 1719148342, "6dc36575"),
    ("sd21/unet", "F32", 3463726498, "12385222"),
    ("sd21/text_encoder", "F32", 1361597018, "cce6febb"),
    ("sd2_inpaint/unet", "F32", 3463784116, "9bcbb17f"),
    ("sd2_inpaint/text_encoder", "F16", 680821096, "681c5553"),
    ("sdxl/unet", "F32", 10270077736, "357650fb"),
    ("sdxl/vae", "F32", 334643268, "27ed3b02"),
    ("sdxl/text_encoder", "F16", 246144864, "118b8536"),
    ("sdxl/text_encoder_2", "F32", 2778702264, "fa5b2e6f"),
    ("sdxl/text_encoder_2", "F16", 1389382880, "9f35e7dc"),
    ("sdxl_turbo/unet", "F16", 5135149760, "48fa4616"),
]

# Transformer layers of every block in the original layout, in its order, as ComfyUI knows these files by
# (comfy/model_detection.py): on the way down; on the way up, finest first; in the middle, -1: a resnet, -2: nothing.
COMFY = {
    "sdxl": ([0, 0, 2, 2, 10, 10], [0, 0, 0, 2, 2, 2, 10, 10, 10], 10),
    "sdxl_inpaint": ([0, 0, 2, 2, 10, 10], [0, 0, 0, 2, 2, 2, 10, 10, 10], 10),
    "sdxl_pix2pix": ([0, 0, 2, 2, 10, 10], [0, 0, 0, 2, 2, 2, 10, 10, 10], 10),
    "ssd_1b": ([0, 0, 2, 2, 4, 4], [0, 0, 0, 1, 1, 2, 10, 4, 4], -1),
    "vega": ([0, 0, 1, 1, 2, 2], [0, 0, 0, 1, 1, 1, 2, 2, 2], -1),
    "koala_700m": ([0, 2, 5], [0, 0, 2, 2, 5, 5], -2),
    "koala_1b": ([0, 2, 6], [0, 0, 2, 2, 6, 6], 6),
}
SAMPLERS = {
    "PNDMScheduler": "pndm",
    "DDIMScheduler": "ddim",
    "EulerDiscreteScheduler": "euler",
    "EulerAncestralDiscreteScheduler": "euler_ancestral",
    "LCMScheduler": "lcm",
}


def config_of(network: str) -> ClipTextConfig | UNetConfig | VaeConfig:
    name, component = network.split("/")
    return READERS.get(component, ClipTextConfig.from_dict)(ALL[name].configs[component])


def parameters(network: str) -> dict:
    """Paths and shapes of our network's parameters."""
    config = config_of(network)
    if isinstance(config, UNetConfig):  # these change no shape; leaving them out, fewer are traced
        config = replace(config, sample_size=8, upcast_attention=False)
    return traced(config)


@functools.cache
def traced(config: ClipTextConfig | UNetConfig | VaeConfig) -> dict:
    tree = expected_params({"network": config})["network"]
    return {path: leaf.shape for path, leaf in flatten(tree).items()}


@pytest.fixture(scope="module")
def golden() -> dict[str, dict[str, tuple[int, ...]]]:
    return read()


def test_golden_has_every_network(golden):
    assert sorted(golden) == sorted(NETWORKS)


@pytest.mark.parametrize("network", NETWORKS)
def test_tensors_are_the_published_ones(golden, network):
    left = dict(golden[network])
    for path, shape in parameters(network).items():
        name = next((name for name in spellings(path) if name in left), None)
        assert name is not None, f"{tensor_name(path)} is not published"
        assert left.pop(name) in file_shapes(path, shape), name
    assert not left


@pytest.mark.parametrize(("network", "dtype", "size", "sha256"), PUBLISHED)
def test_a_file_of_these_tensors_has_the_published_size(network, dtype, size, sha256):
    tensors = {tensor_name(path): (dtype, file_shapes(path, shape)[0]) for path, shape in parameters(network).items()}
    buffer = {"text_model.embeddings.position_ids": ("I64", (1, 77))} if "text" in network else {}
    assert size in {file_size(some, aged) for some in (tensors, tensors | buffer) for aged in (True, False)}


def file_size(tensors: dict[str, tuple[str, tuple[int, ...]]], aged: bool, metadata: bool = True) -> int:
    """Bytes of a safetensors file as diffusers writes it: its header names every tensor and its place.

    Before 0.3 (aged) safetensors had tensors by name and no padding; since, wider dtypes come first and the header's
    length is a multiple of 8. metadata: whether it has diffusers' own.
    """
    header, end = {"__metadata__": {"format": "pt"}} if metadata else {}, 0
    for name, (dtype, shape) in sorted(tensors.items(), key=lambda item: (not aged and item[1][0] != "I64", item[0])):
        begin, end = end, end + math.prod(shape) * WIDTHS[dtype]
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}
    length = len(json.dumps(header, separators=(",", ":")))
    return 8 + (length if aged else -(-length // 8) * 8) + end


@pytest.mark.parametrize("name", COMFY)
def test_layers_are_those_that_comfyui_knows(name):
    config = config_of(f"{name}/unet")
    assert isinstance(config, UNetConfig)
    down, up, middle = COMFY[name]

    def layers(kinds, counts) -> list[int]:
        return [n if "CrossAttn" in kind else 0 for kind, level in zip(kinds, counts, strict=True) for n in level]

    assert layers(config.down_block_types, config.transformer_layers) == down
    assert layers(config.up_block_types, config.up_transformer_layers) == up[::-1]
    kinds = {"UNetMidBlock2DCrossAttn": config.transformer_layers[-1][0], "UNetMidBlock2D": -1, None: -2}
    assert kinds[config.mid_block_type] == middle


@pytest.mark.parametrize("name", ALL)
def test_scheduler_is_one_of_ours(name):
    preset = ALL[name]
    plan = sdjax.plan(SAMPLERS[preset.scheduler["_class_name"]], steps=4, scheduler=preset.scheduler)
    first, steps = plan.timesteps[0], preset.scheduler["num_train_timesteps"]
    assert first == steps - 1 if preset.scheduler.get("timestep_spacing") == "trailing" else first < steps
    assert np.isfinite(plan.weights).all()


@pytest.mark.parametrize("name", ALL)
def test_every_text_encoder_has_its_tokenizer(name):
    preset = ALL[name]
    pairs = {"text_encoder": "tokenizer", "text_encoder_2": "tokenizer_2"}
    assert {pairs[component] for component in preset.configs if component in pairs} == {*preset.pad_tokens}
    assert all(clip_tokenizer_files(pad) for pad in set(preset.pad_tokens.values()))


def test_titles_and_sources_are_told_apart():
    assert len({preset.title for preset in ALL.values()}) == len({preset.source for preset in ALL.values()}) == len(ALL)
    assert not {*PRESETS} & {*ALIKE}
