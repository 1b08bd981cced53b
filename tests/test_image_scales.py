"""How strongly image prompts count in each layer, and where in a picture."""

import numpy as np
import pytest
from PIL import Image

from sdjax.adapters.image_scales import layer_scales
from sdjax.adapters.paths import published
from sdjax.config import UNetConfig
from sdjax.images.image_prompt_masks import image_masks
from sdjax.nn.image_prompt import attention_paths
from sdjax.nn.shapes import expected_params
from tests.checkpoints import UNET

OWN = expected_params({"unet": UNetConfig.from_dict(UNET)})["unet"]

# How strongly ------------------------------------------------------------------


@pytest.mark.parametrize("value", [0.6, 1, 0, -0.5, np.float32(0.25)])
def test_one_scale(value):
    made = layer_scales(value, OWN, "x")
    assert made.dtype == np.float32 and made.tolist() == [np.float32(value)] * 4


def places_of(preset: str, scales: np.ndarray) -> dict[str, float]:
    """By attention, the scales that are not 0."""
    found: dict[str, set[float]] = {}
    for path, scale in zip(attention_paths(published(preset)["unet"]), scales, strict=True):
        found.setdefault(path.partition(".transformer_blocks")[0], set()).add(float(scale))
    assert all(len(one) == 1 for one in found.values())
    return {path: scale for path, (scale,) in found.items() if scale}


XL_STYLE, XL_LAYOUT = {"up_blocks.0.attentions.1": 1}, {"down_blocks.2.attentions.1": 1}
# Blocks 0-3 and 9-15 of 16 in the order in which they run: down 6, the middle, up 9.
SD_WHOLE = {"down_blocks.0": 2, "down_blocks.1": 2, "up_blocks.2": 3, "up_blocks.3": 3}
SD_STYLE = {f"{block}.attentions.{i}": 1 for block, count in SD_WHOLE.items() for i in range(count)}
SD_STYLE |= {"up_blocks.1.attentions.2": 1}
SD_LAYOUT = {"down_blocks.2.attentions.0": 0.25, "down_blocks.2.attentions.1": 1}


@pytest.mark.parametrize(
    ("preset", "value", "wanted"),
    [
        ("sdxl", "style", XL_STYLE),
        ("sdxl", "layout", XL_LAYOUT),
        ("sdxl", "style+layout", XL_STYLE | XL_LAYOUT),
        ("sdxl", {"up": {"block_0": [0, 1, 0]}}, XL_STYLE),
        ("sdxl", {"down": {"block_2": [0.0, 1.0]}, "up": {"block_0": [0, 1, 0]}}, XL_STYLE | XL_LAYOUT),
        ("sd15", "style", SD_STYLE),
        ("sd15", "layout", SD_LAYOUT),
        ("sd15", "style+layout", SD_STYLE | SD_LAYOUT),
        ("sd15", {}, {}),
        (
            "sd15",
            {"mid": 0.5, "down": {"block_1": [0.25]}},
            {"mid_block.attentions.0": 0.5, **{f"down_blocks.1.attentions.{j}": 0.25 for j in range(2)}},
        ),
        ("sd15", {"down": 0.5}, {f"down_blocks.{i}.attentions.{j}": 0.5 for i in range(3) for j in range(2)}),
    ],
)  # fmt: skip
def test_scales_by_block(preset, value, wanted):
    assert places_of(preset, layer_scales(value, published(preset)["unet"], "x")) == wanted


@pytest.mark.parametrize(
    ("value", "match"),
    [
        ("stlye", "x: scale 'stlye' is unknown; nearest: 'style'; known: style, layout, style.layout"),
        ({"dwn": 1}, "scale of 'dwn': this U-Net has no such part; nearest: 'down'; known: down, mid, up"),
        ({"up": {"block_3": 1}}, "'block_3' is no block with attention to text; nearest: 'block_[01]'; known: block_0"),
        ({"down": {"block_0": 1}}, "scale of 'down': 'block_0' is no block with attention"),
        ({"down": {2: 1}}, "scale of 'down': 2 is no block"),
        ({"up": {"block_0": [1, 2]}}, "scale of 'up': block_0 has 2 numbers for 3 transformers; give one, or as many"),
        ({"up": {"block_0": []}}, "has 0 numbers for 3"),
        ({"up": {"block_0": [0, float("nan"), 1]}}, "block_0: number 1 must be a number, and finite, not nan"),
        ({"mid": {"block_0": 1}}, "the middle is one block; give a number"),
        ({"mid": "much"}, "scale of 'mid' must be a number"),
        (float("inf"), "x: the scale must be a number, a mapping .* and finite, not inf"),
        (10**400, "and finite, not a number of"),
        (1e39, "and finite"), (True, "not True"), (None, "not None"), ([1, 2], "must be a number, a mapping"),
    ],
)  # fmt: skip
def test_scales_that_are_none(value, match):
    with pytest.raises(ValueError, match=match):
        layer_scales(value, published("sdxl")["unet"], "x")


def test_presets_are_of_published_families():
    with pytest.raises(ValueError, match="'style' is known of SD 1.x, 2.x and XL alone"):
        layer_scales("style", OWN, "x")


# Where ------------------------------------------------------------------------


def test_masks_by_hand():
    """The left half: 1 and 0, and beside the edge what the cubic makes of it; the same at every row."""
    mask = Image.new("L", (64, 32), 0)
    mask.paste(200, (0, 0, 32, 32))  # grey, but more than half
    made = image_masks(mask, 32, 64, [(4, 8), (2, 4)])
    assert {count: one.dtype for count, one in made.items()} == {32: np.dtype("f"), 8: np.dtype("f")}
    np.testing.assert_allclose(made[32].reshape(4, 8), np.tile([1, 1, 1, 1, 0, 0, 0, 0], (4, 1)), atol=1e-6)
    np.testing.assert_allclose(made[8].reshape(2, 4), np.tile([1, 1, 0, 0], (2, 1)), atol=1e-6)
    white = image_masks(Image.new("L", (7, 9), 255), 48, 40, [(6, 5), (3, 3), (2, 2), (1, 1)])
    assert all(np.allclose(one, 1) for one in white.values())


def test_a_level_of_odd_sides_is_not_sheared():
    """Seen in the rows of a level whose height and width diffusers would have to guess from the number of tokens."""
    mask = Image.new("L", (72, 40), 0)
    mask.paste(255, (0, 0, 36, 40))
    rows = image_masks(mask, 40, 72, [(3, 5)])[15].reshape(3, 5)
    np.testing.assert_allclose(rows, np.tile(rows[0], (3, 1)), atol=1e-6)
    assert rows[0, 0] == pytest.approx(1) and rows[0, 4] == pytest.approx(0)
