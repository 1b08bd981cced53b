"""The models that come with the package: opened by name, sharing all but their U-Nets."""

import jax
import numpy as np
import pytest
from PIL import Image, ImageDraw

import sdjax
from experiments.shapes.score import score
from sdjax.model.builtin import SHIPPED

CHANNELS = {"shapes": 4, "shapes-inpainting": 9, "shapes-depth": 5}


@pytest.fixture(scope="module", params=SHIPPED)
def sd(request):
    return sdjax.load(request.param, compilation_cache=False)


def test_by_name(sd):
    assert sd.unet.in_channels == CHANNELS[sd.name] and sd.unet.cross_attention_dim == 128
    shared = sdjax.load(compilation_cache=False)
    for name in ("text_encoder", "vae"):
        jax.tree.map(np.testing.assert_array_equal, sd.params[name], shared.params[name])
    assert sd.scheduler == shared.scheduler


def test_saved_as_a_whole(sd, tmp_path):
    sd.save(tmp_path / "copy")
    again = sdjax.load(tmp_path / "copy", compilation_cache=False)
    jax.tree.map(np.testing.assert_array_equal, sd.params, again.params)
    assert again.guidance_scale == sd.guidance_scale


def test_a_folder_of_that_name_goes_first(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "shapes").mkdir()
    assert sdjax.load("shapes", compilation_cache=False).name == "shapes"  # that folder is no checkpoint
    (tmp_path / "shapes" / "model_index.json").write_text("{}")
    with pytest.raises(sdjax.CheckpointError, match="model_index.json"):
        sdjax.load("shapes", compilation_cache=False)
    assert sdjax.load(compilation_cache=False).unet.in_channels == 4  # None is the package's own, whatever lies here


def test_a_misspelt_name():
    with pytest.raises(sdjax.CheckpointError, match="'shapes-inpainting'"):
        sdjax.load("shapes_inpaint", compilation_cache=False)


@pytest.fixture
def circle():
    image = Image.new("RGB", (128, 128), (245, 245, 245))
    ImageDraw.Draw(image).ellipse((20, 20, 108, 108), fill=(220, 38, 38))
    return image


@pytest.mark.ci
@pytest.mark.optimised
def test_paints_what_is_asked(circle):
    """Through the trained weights, end to end: eight pictures with another object where the circle was."""
    sd = sdjax.load("shapes-inpainting", compilation_cache=False)
    hole = Image.new("L", (128, 128), 0)
    ImageDraw.Draw(hole).rectangle((12, 12, 116, 116), fill=255)
    prompts = [f"a large {colour} {shape} on a white background" for colour in ("blue", "green", "black", "orange")
               for shape in ("square", "heart")]  # fmt: skip
    made = sd.generate(prompts, image=circle, mask=hole, progress=False)
    kept = np.asarray(hole) == 0
    for pixels in made.pixels:
        np.testing.assert_array_equal(pixels[kept], np.asarray(circle)[kept])
    assert sum(score(pixels, prompt).ok for pixels, prompt in zip(made.pixels, prompts, strict=True)) >= 6
