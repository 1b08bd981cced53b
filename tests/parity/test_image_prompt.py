"""IP-Adapters against diffusers: files by their authors' names, converted by diffusers itself, and what they compute.

diffusers' U-Net tells which attention each id is, its projections and attention processors what comes out; the image
encoder is transformers'. All of them are small and random.
"""

import jax
import numpy as np
import pytest
import torch
from diffusers import UNet2DConditionModel
from diffusers.image_processor import IPAdapterMaskProcessor
from diffusers.loaders.unet_loader_utils import _maybe_expand_lora_scales
from diffusers.models.attention_processor import IPAdapterAttnProcessor2_0
from PIL import Image
from safetensors.torch import load_file
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from sdjax.adapters.image_prompt import load_image_prompt
from sdjax.adapters.image_scales import layer_scales
from sdjax.config import ClipVisionConfig, UNetConfig
from sdjax.images.image_prompt_masks import image_masks
from sdjax.images.processor import Processor
from sdjax.nn.attention import attention, split_heads
from sdjax.nn.clip_vision import ClipVisionEncoder
from sdjax.nn.image_prompt import ImagePromptEncoder, attention_paths, image_keys_values
from sdjax.nn.shapes import expected_params
from tests.checkpoints import UNET
from tests.image_prompts import ENCODER, KINDS, write_image_prompt
from tests.parity.test_clip_vision import params_of

SMALL = UNET | {"_class_name": None}
DEEP = SMALL | {  # SDXL's arrangement: levels that do not attend, more than one layer, the middle deepest
    "block_out_channels": [8, 16, 32],
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
    "layers_per_block": 2,
    "transformer_layers_per_block": [1, 2, 11],
    "attention_head_dim": [2, 2, 4],
    "use_linear_projection": True,
}


def shapes(config: dict) -> dict:
    return expected_params({"unet": UNetConfig.from_dict(config)})["unet"]


def theirs(config: dict) -> UNet2DConditionModel:
    torch.manual_seed(0)
    known = {name: value for name, value in config.items() if name != "_class_name"}
    return UNet2DConditionModel(**known).eval()


def parts(path) -> dict[str, dict[str, torch.Tensor]]:
    """A file's tensors as diffusers takes them: {"image_proj": .., "ip_adapter": ..}."""
    found: dict[str, dict[str, torch.Tensor]] = {"image_proj": {}, "ip_adapter": {}}
    for name, tensor in load_file(path).items():
        part, _, rest = name.partition(".")
        found[part][rest] = tensor
    return found


def encoder_of(folder) -> CLIPVisionModelWithProjection:
    network = CLIPVisionModelWithProjection(CLIPVisionConfig(**ENCODER)).eval()
    state = load_file(folder / "image_encoder" / "model.safetensors")
    missing, unexpected = network.load_state_dict(state, strict=False)
    assert not unexpected and all("position_ids" in name for name in missing)
    return network


def away(ours, wanted) -> float:
    """The largest difference, relative to the largest number."""
    ours, wanted = np.asarray(ours), wanted.detach().numpy()
    assert ours.shape == wanted.shape
    return float(abs(ours - wanted).max() / abs(wanted).max())


@pytest.mark.parametrize("layers", [1, 2, 5])
def test_states_before_the_last_layer(layers):
    torch.manual_seed(0)
    network = CLIPVisionModelWithProjection(CLIPVisionConfig(**ENCODER | {"num_hidden_layers": layers})).eval()
    config = ClipVisionConfig.from_dict(network.config.to_dict())
    pixels = np.random.default_rng(1).standard_normal((2, 32, 32, 3)).astype(np.float32)
    with torch.no_grad():
        wanted = network(torch.from_numpy(pixels).permute(0, 3, 1, 2), output_hidden_states=True)
    ours = ClipVisionEncoder(config).apply({"params": params_of(network, config)}, pixels, method="outputs")
    assert away(ours.states, wanted.hidden_states[-2]) <= 1e-5 and away(ours.embedding, wanted.image_embeds) <= 1e-5


@pytest.mark.parametrize("kind", KINDS)
def test_tokens(kind, tmp_path):
    """Of two pictures and of none, by the projection that diffusers makes of the file and as its pipeline calls it."""
    path = write_image_prompt(tmp_path, shapes(SMALL), kind)
    image_projection = theirs(SMALL)._convert_ip_adapter_image_proj_to_diffusers(parts(path)["image_proj"])
    pixels = np.random.default_rng(2).standard_normal((2, 32, 32, 3)).astype(np.float32)
    network, given = encoder_of(tmp_path), torch.from_numpy(pixels).permute(0, 3, 1, 2)
    with torch.no_grad():
        if kind == "base":
            encoded = network(given).image_embeds
            none = torch.zeros_like(encoded)[:1]
        else:
            encoded, none = (
                network(one, output_hidden_states=True).hidden_states[-2]
                for one in (given, torch.zeros_like(given[:1]))
            )
        wanted, wanted_none = image_projection(encoded), image_projection(none)
    ip = load_image_prompt(path)
    config, params, _ = ip.encoder
    module = ImagePromptEncoder(config, ip.config)
    own = {"params": {"image_encoder": params, "image_proj": ip.bind(shapes(SMALL))["image_proj"]}}
    assert away(module.apply(own, pixels), wanted) <= 1e-5
    assert away(module.apply(own, method="unconditional"), wanted_none) <= 1e-5


@pytest.mark.parametrize("config", [SMALL, DEEP], ids=["small", "deep"])
def test_which_attention_each_id_is(config, tmp_path):
    """Keys and values of every cross-attention, by the path that diffusers puts each id's layers at."""
    path = write_image_prompt(tmp_path, shapes(config), "base")
    processors = theirs(config)._convert_ip_adapter_attn_to_diffusers([parts(path)])
    wanted = {
        name.removesuffix(".processor"): one
        for name, one in processors.items()
        if isinstance(one, IPAdapterAttnProcessor2_0)
    }
    ip = load_image_prompt(path)
    tokens = np.random.default_rng(3).standard_normal((2, 4, config["cross_attention_dim"])).astype(np.float32)
    ours = image_keys_values(ip.bind(shapes(config))["attention"], tokens, np.float32)
    assert ours.keys() == wanted.keys() and len(ours) == ip.layers
    assert attention_paths(shapes(config)) == tuple(wanted)  # the order too
    for name, processor in wanted.items():
        with torch.no_grad():
            assert away(ours[name][0], processor.to_k_ip[0](torch.from_numpy(tokens))) <= 1e-5
            assert away(ours[name][1], processor.to_v_ip[0](torch.from_numpy(tokens))) <= 1e-5


def test_an_attention_with_a_picture(tmp_path):
    """out = attention(q, text) + scale attention(q, picture), before the last projection."""
    path = write_image_prompt(tmp_path, shapes(SMALL), "base")
    unet = theirs(SMALL)
    processors = unet._convert_ip_adapter_attn_to_diffusers([parts(path)])
    name = "mid_block.attentions.0.transformer_blocks.0.attn2"
    module, processor = unet.get_submodule(name), processors[f"{name}.processor"]
    processor.scale = [0.6]
    rng = np.random.default_rng(4)
    x, text, tokens = (rng.standard_normal(shape).astype(np.float32) for shape in ((2, 9, 16), (2, 5, 16), (2, 4, 16)))
    with torch.no_grad():
        given = (torch.from_numpy(text), [torch.from_numpy(tokens)[:, None].flatten(1, 2)])
        wanted = processor(module, torch.from_numpy(x), encoder_hidden_states=given)
        q, k, v = (
            one(torch.from_numpy(given)).numpy()
            for one, given in ((module.to_q, x), (module.to_k, text), (module.to_v, text))
        )
    own = image_keys_values(load_image_prompt(path).bind(shapes(SMALL))["attention"], tokens, np.float32)[name]
    heads = module.heads
    q, k, v, k_ip, v_ip = (split_heads(jax.numpy.asarray(one), heads) for one in (q, k, v, *own))
    out = attention(q, k, v) + 0.6 * attention(q, k_ip, v_ip)
    last = module.to_out[0]
    ours = np.asarray(out).reshape(x.shape) @ last.weight.detach().numpy().T + last.bias.detach().numpy()
    assert away(ours, wanted) <= 1e-5


SCALES = [
    {},
    {"down": 0.5},
    {"mid": 0.25, "up": {"block_0": [0.0, 1.0, 0.5]}},
    {"mid": [0.25], "up": {"block_1": 0.7}, "down": {"block_2": [0.1, 0.2]}},
    {"down": {"block_1": [0.3]}},
]


@pytest.mark.parametrize("scale", SCALES, ids=str)
def test_scales(scale):
    unet, own = theirs(DEEP), shapes(DEEP)
    expanded = _maybe_expand_lora_scales(unet, [scale], default_scale=0.0)[0]
    wanted = [
        next(value for name, value in expanded.items() if path.startswith(f"{name}.")) for path in attention_paths(own)
    ]
    np.testing.assert_array_equal(layer_scales(scale, own, "x"), np.array(wanted, np.float32))


@pytest.mark.parametrize("size", [(64, 64), (64, 96), (128, 72), (40, 72)], ids=str)
def test_masks(size):
    """At every level that diffusers guesses rightly from its number of tokens."""
    height, width = size
    drawn = np.random.default_rng(5).integers(0, 256, (9, 7), np.uint8)
    mask = Image.fromarray(drawn).resize((50, 70), Image.Resampling.BICUBIC)
    levels = [(height // 8, width // 8), (-(-height // 16), -(-width // 16)), (-(-height // 32), -(-width // 32))]
    ours = image_masks(mask, height, width, levels)
    prepared = IPAdapterMaskProcessor().preprocess([mask], height=height, width=width)
    compared = 0
    for h, w in levels:
        guessed = int((h * w / (width / height)) ** 0.5)
        guessed += h * w % guessed != 0
        if (guessed, h * w // guessed) == (h, w):
            wanted = IPAdapterMaskProcessor.downsample(prepared[0], 1, h * w, 1)[0, :, 0]
            np.testing.assert_allclose(ours[h * w], wanted.numpy(), atol=2e-6)
            compared += 1
    assert compared >= 2


def test_preprocessing(tmp_path):
    path = write_image_prompt(tmp_path, shapes(SMALL), "base")
    picture = Image.fromarray(np.random.default_rng(6).integers(0, 256, (50, 81, 3), np.uint8))
    ours = Processor.from_dict(load_image_prompt(path).encoder.preprocessor)(picture)
    wanted = CLIPImageProcessorPil(size=32, crop_size=32)(picture, return_tensors="np").pixel_values[0]
    np.testing.assert_allclose(ours, np.moveaxis(wanted, 0, -1), atol=2e-6)
