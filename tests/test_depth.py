"""Depth: the published network by name and shape, its config, maps that are given, and the channel made of one."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from sdjax.config import ConfigError, DepthConfig
from sdjax.core.tree import flatten
from sdjax.images.depth import depth_channel, read_depth
from sdjax.nn.dpt.bit import quarter
from sdjax.nn.dpt.depth import DepthNetwork
from sdjax.nn.shapes import expected_params
from sdjax.weights.names import file_shapes, tensor_name
from tests.golden import make_depth

CONFIG = json.loads(json.dumps(make_depth.CONFIG))
RAMP = np.linspace(0, 65535, 20 * 30).reshape(20, 30).astype(np.uint16)


# The network -----------


def test_every_tensor_of_the_published_network():
    ours = flatten(expected_params({"depth_estimator": DepthConfig.from_dict(CONFIG)})["depth_estimator"])
    found = {tensor_name(path): file_shapes(path, leaf.shape)[0] for path, leaf in ours.items()}
    assert found == make_depth.read()


@pytest.mark.parametrize("height, width", [(384, 384), (64, 96)])
def test_what_it_gives(height, width):
    """A map of the picture's size, in float32 whatever it computes in, also for pictures that are not square."""
    network = DepthNetwork(DepthConfig.from_dict(CONFIG), jnp.bfloat16)
    pixels = jax.ShapeDtypeStruct((2, height, width, 3), jnp.float32)
    params = jax.eval_shape(network.init, jax.random.key(0), pixels)
    if (height, width) == (384, 384):
        made = jax.eval_shape(network.apply, params, pixels)
    else:  # with parameters of the config's own size: places are interpolated
        square = jax.ShapeDtypeStruct((1, 384, 384, 3), jnp.float32)
        made = jax.eval_shape(network.apply, jax.eval_shape(network.init, jax.random.key(0), square), pixels)
    assert made.shape == (2, height, width) and made.dtype == jnp.float32


def test_sides_that_it_cannot_take():
    pixels = jax.ShapeDtypeStruct((1, 384, 400, 3), jnp.float32)
    with pytest.raises(ValueError, match=r"multiples of 32, not \[384, 400\]"):
        jax.eval_shape(DepthNetwork(DepthConfig.from_dict(CONFIG)).init, jax.random.key(0), pixels)


@pytest.mark.parametrize(
    "features, fourth", [(256, 64), (512, 128), (1024, 256), (16, 8), (40, 16), (44, 16), (72, 24)]
)
def test_a_quarter_of_the_channels(features, fourth):
    """The nearest multiple of 8, never under nine tenths of a quarter, and at least 8."""
    assert quarter(features) == fourth


# Its config -----------


def test_an_old_config_says_less():
    """Older files leave the backbone out, and newer ones write None for it."""
    full, old = DepthConfig.from_dict(CONFIG), dict(CONFIG)
    del old["backbone_config"]
    assert DepthConfig.from_dict(old) == full == DepthConfig.from_dict(old | {"backbone_config": None})
    assert full.taken == (8, 11) and full.bit_widths == (256, 512, 1024)


@pytest.mark.parametrize(
    "changed, message",
    [
        ({"is_hybrid": False}, "is_hybrid"),
        ({"is_hybrid": None}, "is_hybrid"),
        ({"readout_type": "add"}, "readout_type"),
        ({"use_batch_norm_in_fusion_residual": True}, "use_batch_norm_in_fusion_residual"),
        ({"add_projection": True}, "add_projection"),
        ({"patch_size": 32}, "patch_size"),
        ({"neck_hidden_sizes": [96, 192, 384, 768]}, "neck_hidden_sizes"),
        ({"neck_hidden_sizes": [256, 512, 768]}, "neck_hidden_sizes"),
        ({"backbone_out_indices": [2, 5, 8, 12]}, "backbone_out_indices"),
        ({"backbone_out_indices": [2, 5, 8, 8]}, "backbone_out_indices"),
        ({"backbone_out_indices": [2, 5, 11, 8]}, "backbone_out_indices"),
        ({"backbone_out_indices": [2, 5, [8], 11]}, "backbone_out_indices"),
        ({"reassemble_factors": [4, 2, 2, 0.5]}, "reassemble_factors"),
        ({"reassemble_factors": [1, 1, 1, 0.25]}, "reassemble_factors"),
        ({"hidden_size": 770}, "num_attention_heads"),
        ({"num_hidden_layers": 10**6}, "num_hidden_layers"),
        ({"backbone_config": [1]}, "backbone_config"),
        ({"backbone_config": {"layer_type": "preactivation"}}, "layer_type"),
        ({"backbone_config": {"global_padding": None}}, "global_padding"),
        ({"backbone_config": {"layer_type": None}}, "layer_type"),
        ({"backbone_config": {"depths": [3, 4, 9, 3]}}, "depths"),
        ({"backbone_config": {"depths": [10**6, 4, 9]}}, "depths"),
        ({"backbone_config": {"num_groups": 48}}, "num_groups"),
        ({"backbone_config": {"output_stride": 8}}, "output_stride"),
        ({"backbone_config": {"out_features": ["stage1", "stage3", "stage2"]}}, "out_features"),
    ],
    ids=str,
)
def test_configs_that_are_another_network(changed, message):
    config = {**CONFIG, **changed}
    if isinstance(changed.get("backbone_config"), dict):
        config["backbone_config"] = {**CONFIG["backbone_config"], **changed["backbone_config"]}
    with pytest.raises(ConfigError, match=message):
        DepthConfig.from_dict(config)


# Maps that are given -----------


def test_eight_bits_and_arrays():
    grey = (RAMP >> 8).astype(np.uint8)
    for value in (Image.fromarray(grey), Image.fromarray(grey).convert("RGB"), grey, np.dstack([grey] * 3)):
        made = read_depth(value)
        assert made.dtype == np.float32
        np.testing.assert_array_equal(made, grey)
    for dtype in (np.float16, np.float64, np.int32, np.int8):
        np.testing.assert_array_equal(read_depth((grey // 2).astype(dtype)), grey // 2)


@pytest.mark.parametrize("mode", ["I;16", "I", "F"])
def test_more_than_eight_bits(mode):
    """Every one of 600 values stays apart from the next, though 8 bits have 256."""
    image = Image.fromarray(RAMP) if mode == "I;16" else Image.fromarray(RAMP.astype({"I": "i4", "F": "f4"}[mode]))
    assert image.mode == mode
    np.testing.assert_array_equal(read_depth(image), RAMP)


def test_files(tmp_path):
    Image.fromarray(RAMP).save(tmp_path / "deep.png")
    np.testing.assert_array_equal(read_depth(tmp_path / "deep.png"), RAMP)
    Image.fromarray(np.full((4, 5), 7, np.uint8)).save(tmp_path / "grey.png")
    np.testing.assert_array_equal(read_depth(str(tmp_path / "grey.png")), np.full((4, 5), 7))


def test_files_that_are_none(tmp_path):
    with pytest.raises(FileNotFoundError, match="none.png"):
        read_depth(tmp_path / "none.png")
    Image.fromarray(RAMP).save(tmp_path / "cut.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "cut.png").read_bytes()[:100])
    with pytest.raises(ValueError, match="cut.png"):
        read_depth(tmp_path / "cut.png")


@pytest.mark.parametrize(
    "value",
    [
        np.zeros((3, 4, 5)),
        np.zeros((3, 4, 3), np.float32),
        np.zeros(4),
        np.zeros((0, 4)),
        np.array([["near", "far"]]),
        np.array([[1 + 2j]]),
        np.array([[1.0, np.nan]]),
        np.array([[1.0, np.inf]]),
        np.array([[1.0, 1e300]]),  # finite, but not in float32
        [[1.0, 2.0]],
        3,
    ],
    ids=lambda value: f"{type(value).__name__} {getattr(value, 'dtype', '')} {getattr(value, 'shape', '')}",
)
def test_maps_that_are_none(value):
    with pytest.raises(ValueError, match="the map"):
        read_depth(value, "the map")


# The channel -----------


def test_the_channel_spans_everything():
    made = np.asarray(depth_channel(RAMP.astype(np.float32), (5, 9)))
    assert made.shape == (5, 9, 1) and made.dtype == np.float32
    assert made.min() == -1 and made.max() == 1
    assert (np.diff(made[..., 0], axis=0) > 0).all()  # larger stays nearer, to the end


def test_scale_and_offset_make_no_difference():
    depth = np.random.default_rng(0).standard_normal((20, 30)).astype(np.float32)
    np.testing.assert_allclose(depth_channel(5 * depth + 2, (10, 12)), depth_channel(depth, (10, 12)), atol=1e-5)


@pytest.mark.parametrize("value", [0.0, 1.0, 0.3, 1234.567, -7.1])
@pytest.mark.parametrize("size", [(5, 9), (20, 30), (33, 47), (1, 1)])
def test_flat_maps_say_nothing(value, size):
    """Not even what rounding would make of them."""
    made = depth_channel(np.full((20, 30), value, np.float32), size)
    assert made.shape == (*size, 1) and not np.asarray(made).any()


def test_one_pixel_of_a_map():
    assert not np.asarray(depth_channel(RAMP.astype(np.float32), (1, 1))).any()
