"""What preprocessor_config.json does to a picture: its ways of saying it, and what it may not say."""

import numpy as np
import pytest
from PIL import Image

from sdjax.config import ClipVisionConfig, ConfigError
from sdjax.images.processor import CLIP_MEAN, CLIP_STD, Processor
from sdjax.model.image_towers import ImageEncoder

CLIP, DPT = {"image_processor_type": "CLIPImageProcessor"}, {"feature_extractor_type": "DPTFeatureExtractor"}
GREY = Image.new("RGB", (60, 40), (51, 102, 153))


def test_defaults_are_those_of_the_kind():
    clip, depth = Processor.from_dict(CLIP), Processor.from_dict(DPT)
    assert (clip.size, clip.crop, clip.mean, clip.std) == ((224,), (224, 224), CLIP_MEAN, CLIP_STD)
    assert (depth.size, depth.crop, depth.mean, depth.std) == ((384, 384), None, (0.5,) * 3, (0.5,) * 3)
    assert Processor.from_dict({}, "DPT") == depth and Processor.from_dict({}) == clip


def test_colours_are_scaled_then_normalised():
    made = Processor.from_dict(DPT | {"size": 8})(GREY)
    assert made.shape == (8, 8, 3) and made.dtype == np.float32
    np.testing.assert_allclose(made[3, 4], [-0.6, -0.2, 0.2], atol=1e-6)
    plain = Processor.from_dict(DPT | {"size": 8, "do_rescale": False, "do_normalize": False})(GREY)
    np.testing.assert_allclose(plain[0, 0], [51, 102, 153])


def test_old_and_new_ways_to_say_a_size():
    for size in (32, {"shortest_edge": 32}):
        assert Processor.from_dict(CLIP | {"size": size, "crop_size": 32})(GREY).shape == (32, 32, 3)
    assert Processor.from_dict(CLIP | {"size": 32, "do_center_crop": False})(GREY).shape == (32, 48, 3)
    assert Processor.from_dict(DPT | {"size": {"height": 32, "width": 64}})(GREY).shape == (32, 64, 3)
    assert Processor.from_dict(DPT | {"do_resize": False})(GREY).shape == (40, 60, 3)


def test_the_aspect_may_be_kept():
    kept = Processor.from_dict(DPT | {"size": 384, "keep_aspect_ratio": True, "ensure_multiple_of": 32})
    assert kept(GREY).shape == (256, 384, 3)  # enlarged by 6.4, the lesser of the two


@pytest.mark.parametrize(
    "config, message",
    [
        ({"size": 0}, "size must be"),
        ({"size": "large"}, "size must be"),
        ({"size": {"width": 30}}, "height missing"),
        ({"size": {"shortest_edge": 1e9}}, "shortest_edge must be"),
        ({"resample": 9}, "resample must be"),
        ({"image_mean": [0.5]}, "image_mean must be three numbers"),
        ({"image_std": [0.5, 0.0, 0.5]}, "image_std must be three numbers"),
        ({"image_std": ["a", 1, 2]}, "image_std must be"),
        ({"do_resize": "yes"}, "do_resize must be true or false"),
        ({"rescale_factor": "x"}, "rescale_factor must be"),
    ],
)
def test_refused(config, message):
    with pytest.raises(ConfigError, match=message):
        Processor.from_dict(CLIP | config)


def test_an_encoder_needs_pictures_of_its_size():
    read = dict(hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, patch_size=8)
    config = ClipVisionConfig.from_dict({**read, "image_size": 32})
    assert ImageEncoder(config, Processor.from_dict(CLIP | {"size": 32, "crop_size": 32})).config == config
    for other in ({}, {"size": 32, "do_center_crop": False}, {"size": 32, "crop_size": {"height": 32, "width": 30}}):
        with pytest.raises(ConfigError, match="not of one checkpoint"):
            ImageEncoder(config, Processor.from_dict(CLIP | other))


@pytest.mark.parametrize(
    "change, message",
    [
        ({"hidden_act": "relu"}, "hidden_act"),
        ({"image_size": 33}, "no multiple of patch_size"),
        ({"num_attention_heads": 3}, "no multiple of num_attention_heads"),
        ({"patch_size": None}, "patch_size missing"),
        ({"num_hidden_layers": 100000}, "num_hidden_layers must be"),
    ],
)
def test_an_image_encoders_config(change, message):
    read = dict(hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, patch_size=8)
    with pytest.raises(ConfigError, match=message):
        ClipVisionConfig.from_dict({**read, "image_size": 32, **change})
