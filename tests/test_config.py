"""config.json files become configs, or one clear error."""

import pytest

from sdjax.config import ClipTextConfig, ConfigError, UNetConfig, VaeConfig

UNET = {
    "block_out_channels": [320, 640, 1280, 1280],
    "cross_attention_dim": 768,
    "down_block_types": ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"],
    "up_block_types": ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3,
    "attention_head_dim": 8,
    "sample_size": 64,
}


def test_sd15_unet():
    config = UNetConfig.from_dict(UNET)
    assert (config.heads, config.layers_per_block) == ((8,) * 4, (2,) * 4)
    assert (config.transformer_layers, config.up_transformer_layers) == (((1, 1),) * 4, ((1, 1, 1),) * 4)
    assert (config.norm_eps, config.norm_num_groups, config.use_linear_projection) == (1e-5, 32, False)
    assert hash(config) == hash(UNetConfig.from_dict(dict(UNET)))


def test_transformer_layers_per_attention():
    """segmind/SSD-1B's config: a list within a level says each attention's, and the way up is no mirror image."""
    given = {"transformer_layers_per_block": [0, 1, [2, 2], [4, 4]]}
    with pytest.raises(ConfigError, match="so reverse_transformer_layers_per_block must be given"):
        UNetConfig.from_dict(UNET | given)
    given["reverse_transformer_layers_per_block"] = [[4, 4, 10], [2, 1, 1], 1, 1]
    config = UNetConfig.from_dict(UNET | given)
    assert config.transformer_layers == ((0, 0), (1, 1), (2, 2), (4, 4))
    assert config.up_transformer_layers == ((4, 4, 10), (2, 1, 1), (1, 1, 1), (1, 1, 1))
    given["transformer_layers_per_block"] = [0, 1, [2, 2, 2], 4]
    with pytest.raises(ConfigError, match="for a level with 2 attentions"):
        UNetConfig.from_dict(UNET | given)


def test_heads_per_level():
    assert UNetConfig.from_dict(UNET | {"attention_head_dim": [5, 10, 20, 20]}).heads == (5, 10, 20, 20)
    with pytest.raises(ConfigError, match="attention_head_dim has 3 entries for 4 levels"):
        UNetConfig.from_dict(UNET | {"attention_head_dim": [5, 10, 20]})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"block_out_channels": None}, "block_out_channels missing"),
        ({"down_block_types": ["AttnDownBlock2D"] * 4}, "down_block_types = 'AttnDownBlock2D' is not supported"),
        ({"up_block_types": ["UpBlock2D"]}, "up_block_types has 1 entries, block_out_channels 4"),
        ({"act_fn": "mish"}, "act_fn = 'mish' is not supported; supported: 'silu', 'swish'"),
        ({"encoder_hid_dim_type": "text_proj"}, "encoder_hid_dim_type"),
        ({"resnet_time_scale_shift": "scale_shift"}, "resnet_time_scale_shift"),
        ({"cross_attention_dim": [768, 768, 768, 768]}, "cross_attention_dim must be one number"),
    ],
)
def test_unet_of_another_kind(change, message):
    with pytest.raises(ConfigError, match=message):
        UNetConfig.from_dict(UNET | change)


def test_text_encoder_and_vae():
    text = {"hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 1, "projection_dim": 4}
    assert ClipTextConfig.from_dict(text).projection_dim is None
    projected = text | {"architectures": ["CLIPTextModelWithProjection"]}
    assert ClipTextConfig.from_dict(projected).projection_dim == 4
    with pytest.raises(ConfigError, match="hidden_act = 'relu'"):
        ClipTextConfig.from_dict(text | {"hidden_act": "relu"})
    vae = VaeConfig.from_dict({"block_out_channels": [128, 256, 512, 512]})
    assert (vae.factor, vae.scaling_factor) == (8, 0.18215)
    with pytest.raises(ConfigError, match="latents_mean is not supported"):
        VaeConfig.from_dict({"block_out_channels": [8], "latents_mean": [0, 0, 0, 0]})
