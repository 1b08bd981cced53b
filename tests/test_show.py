"""What a notebook shows: one line for each value, and pictures for pictures."""

import base64
import io
import pickle
import re

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import sdjax
from sdjax.core import short
from sdjax.diffusion.noise import NoiseSchedule
from sdjax.images import show
from sdjax.metadata import picture
from sdjax.nn.conditioning import Added, Conditions
from sdjax.pipeline import Output
from sdjax.sampling.preview import Preview
from sdjax.sampling.trace import Step
from tests.checkpoints import respecified


@pytest.fixture(scope="module")
def sd(tiny_checkpoint):
    return sdjax.load(tiny_checkpoint, compilation_cache=False)


def output(count: int, prompt: str = "a red circle", side: int = 16) -> Output:
    settings = {
        "prompt": [prompt] * count, "negative_prompt": "", "steps": 4, "sampler": "euler", "schedule": None, "seed": 3,
        "guidance_scale": 7.5, "height": side, "width": side, "num_images": 1,
    }  # fmt: skip
    pixels = np.stack([np.full((side, side, 3), 40 * i, np.uint8) for i in range(count)])
    images = [
        picture.make(one, settings | {"prompt": prompt, "first_image": i}, model="m") for i, one in enumerate(pixels)
    ]
    return Output(np.zeros((count, 2, 2, 4), np.float32), pixels, settings, images)


def opened(png: bytes) -> Image.Image:
    return Image.open(io.BytesIO(png))


def test_a_model_is_one_line(sd):
    assert repr(sd) == "StableDiffusion('tiny', 16x16, epsilon, float32)"
    halved = respecified(sd, jnp.dtype("bfloat16"), name="x", scheduler={"prediction_type": "v_prediction"})
    assert repr(halved) == "StableDiffusion('x', 16x16, v_prediction, bfloat16)"


@pytest.mark.parametrize(
    "value,text",
    [
        (sdjax.plan("dpmpp_2m", 20, {}, "karras"), "Plan(dpmpp_2m, 20 steps, karras, 20 evaluations)"),
        (sdjax.plan("euler_ancestral", 3, {}), "Plan(euler_ancestral, 3 steps, linspace, 3 evaluations, 3 draws)"),
        (
            sdjax.stack_plans([sdjax.plan("euler", 2, {})] * 4),
            "Lanes(4 plans: euler, 2 steps; euler, 2 steps; euler, 2 steps; ..)",
        ),
        (Step(3, 20, 799.0, 8.25, np.zeros(5), np.zeros(5)), "Step(step 3 of 20, t 799, sigma 8.25)"),
        (
            Preview(3, 20, 799.0, 8.25, np.zeros(5), np.zeros(5), viewer=None),
            "Preview(step 3 of 20, t 799, sigma 8.25)",
        ),
        (Conditions(jnp.zeros((1, 77, 8))), "Conditions(context=float32[1, 77, 8])"),
        (
            Added(np.zeros((1, 8), np.float32), np.zeros((1, 6), np.int32)),
            "Added(pooled=float32[1, 8], time_ids=int32[1, 6])",
        ),
        (NoiseSchedule(np.linspace(0.9, 0.1, 9)), "NoiseSchedule(alphas_cumprod=float64[9])"),
        (output(1), "Output(1 picture, 16x16, euler, seed 3, 'a red circle')"),
        (output(2), "Output(2 pictures, 16x16, euler, seed 3, 'a red circle')"),
    ],
)
def test_nothing_prints_its_arrays(value, text):
    assert repr(value) == text


def test_long_values_are_cut():
    assert len(repr(sdjax.plan("heun", 9, {}).table())) < 1000
    assert short.short("x" * 1000) == "'" + "x" * 77 + ".."
    assert short.short([np.zeros(3)] * 2) == "list of 2" and short.short({"a": 1}) == "{1 entries}"
    assert short.short(np.float32(2.5)) == "2.5"


def test_an_output_is_its_pictures():
    out = output(3)
    assert len(out) == 3 and out[0] is out.images[0] and out[-1] is out.images[2]
    assert list(out) == out.images and out[1:] == out.images[1:]
    with pytest.raises(IndexError, match="picture 3 of 3: they are numbered from 0"):
        out[3]
    left = Output(np.zeros((2, 2, 2, 4)), None, out.settings, [])
    assert len(left) == 2 and left._repr_png_() is left._repr_html_() is None and "latents alone" in repr(left)
    for look in (lambda: left[0], lambda: list(left)):
        with pytest.raises(ValueError, match="decode=False left these in latent space"):
            look()


def test_one_picture_is_shown_as_it_is_saved():
    out = output(1)
    shown = opened(out._repr_png_())
    assert shown.size == (16, 16) and sdjax.read_settings(shown)["seed"] == 3
    [data] = re.findall(r'src="data:image/png;base64,([^"]+)"', out._repr_html_())
    np.testing.assert_array_equal(np.asarray(opened(base64.b64decode(data))), out.pixels[0])


def test_several_pictures_are_a_sheet():
    out = output(5, side=640)
    sheet = opened(out._repr_png_())
    assert sheet.width <= 1280 + 6 * 8 and sheet.height > 2 * 300  # two rows of at most four
    html = out._repr_html_()
    assert html.count("<img") == 5 and html.count("a red circle (seed 3, number 4)") == 2  # alt, and below
    assert show.html(out.images * 20, show.captions(out.images * 20)).endswith("<p>and 36 more</p>")


def test_a_prompt_is_never_markup():
    html = output(1, prompt='<script>alert("x")</script>')._repr_html_()
    assert "<script" not in html and "&lt;script&gt;" in html


def test_steps_show_themselves(sd):
    out = sd.generate(["a red circle", "an ant"], steps=3, sampler="euler", show_steps=[0, 2])
    assert [repr(step) for step in out.steps] == [repr(step) for step in map(sd.viewer.preview, map(plain, out.steps))]
    assert opened(out.steps[0]._repr_png_()).size == (32, 16)
    assert "step 2 of 3" in out.steps[1]._repr_html_() and "data:image/png" in out.steps[1]._repr_html_()


def plain(step: Preview) -> Step:
    return Step(*(getattr(step, name) for name in Step.__dataclass_fields__))


def test_a_result_tells_what_its_parts_are_called():
    out = output(2)
    with pytest.raises(AttributeError, match=r"Output has no save: .*out\[0\].save\(path\)"):
        out.save("x.png")
    with pytest.raises(AttributeError, match=r"Output has no pixel: did you mean pixels\?"):
        _ = out.pixel
    with pytest.raises(TypeError, match="parts by name: out.images is a part"):
        out["images"]
    with pytest.raises(TypeError, match="parts by name: out.pixels are the pictures as an array"):
        out["sample"]
    assert not hasattr(out, "_repr_latex_") and len(pickle.loads(pickle.dumps(out))) == 2
