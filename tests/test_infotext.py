"""A1111's text as its versions, its kin and its extensions write it: cases that people brought, and their kind."""

import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import sdjax
from sdjax.diffusion.plan import plan
from sdjax.metadata import infotext
from tests.reference import SD

COMFY = {"noise_source": "torch_cpu", "prompt_style": "comfy", "preset": "comfy"}
LINE = "Steps: 20, Sampler: Euler a, CFG scale: 7, Seed: 1, Size: 512x512"


def read(text: str) -> tuple[dict, str]:
    """(Settings, what the one warning says)."""
    image = Image.new("RGB", (8, 8))
    image.info["parameters"] = text
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = sdjax.read_settings(image)
    assert len(caught) <= 1
    return found, str(caught[0].message) if caught else ""


@pytest.mark.parametrize(
    "after",
    [
        "\nTemplate: a {cat|dog}\nNegative Template: dog",
        "\nTemplate: a {cat|dog}, one: b, two: c, three: d",  # as many fields as settings have
        "\nTemplate: a, Steps: 7, Seed: 9, Size: 8x8",
        '\r\nWildcard prompt: "__animal__, x: y"',
        ', Wildcard prompt: "a\nSteps: 3, b: c, d: e\nf", Version: v1.6.0',
        ', Hires prompt: "a, \\"b\\": c\\nSteps: 3, d: e, f: g"',
        "\n\nPostprocess upscale by: 2",
    ],
)
def test_lines_behind_the_settings(after):
    """01."""
    found, _ = read(f"a cat\nNegative prompt: dog\n{LINE}{after}")
    assert {name: found[name] for name in ("prompt", "negative_prompt", "steps", "seed", "width")} == {
        "prompt": "a cat", "negative_prompt": "dog", "steps": 20, "seed": 1, "width": 512,
    }  # fmt: skip
    assert found["sampler"] == "euler_ancestral"


@pytest.mark.parametrize(
    "text",
    [
        f"a cat Negative prompt: dog {LINE}",  # galleries join the lines by spaces
        f"a cat  negative prompt: dog  {LINE}, Version: v1.10.1",
        f"a cat\nNegative prompt: dog {LINE}",
        f"a cat\rNegative prompt: dog\r{LINE}",
        f"a cat\r\nNegative prompt: dog\r\n{LINE}\r\n",
        "a cat\nNegative prompt: dog\nSteps: 20, Sampler: Euler a,\nCFG scale: 7, Seed: 1,\nSize: 512x512\nx: b, c: d",
        f'a cat Negative prompt: dog {LINE}, Hires steps: 7, Civitai resources: [{{"name":"Steps: 9, Seed: 3"}}]',
        "a cat\nNegative prompt: dog\nSteps:20,Sampler:Euler a,CFG scale:7,Seed:1,Size:512x512",
        "a cat\nNegative prompt: dog\nSteps: 20.0, Sampler: Euler a, CFG scale: 7,0, Seed: 1.0, Size: 512 * 512.0",
        "a cat\nNegative prompt: dog\nSize: 512x512, Seed: 1, CFG scale: 7, Steps: 20, Sampler: Euler a",
    ],
)
def test_lines_joined_and_broken(text):
    found, _ = read(text)
    assert {name: found[name] for name in found if name not in ("prompt_style", "noise_source", "preset")} == {
        "prompt": "a cat", "negative_prompt": "dog", "steps": 20, "sampler": "euler_ancestral", "guidance_scale": 7.0,
        "seed": 1, "width": 512, "height": 512,
    }  # fmt: skip


def test_a_prompt_and_settings_in_one_line():
    text = "Negative space, a car Negative prompt: Steps: 23, Sampler: Euler, CFG scale: 3,5, Seed: 1, Size: 8x8"
    found, _ = read(text)  # as Civitai has it, with an empty negative prompt
    assert (found["prompt"], found["steps"], found["guidance_scale"]) == ("Negative space, a car", 23, 3.5)
    assert "negative_prompt" not in found
    assert read("a cat, Hires steps: 10, b: c, d: e")[0] == {"prompt": "a cat, Hires steps: 10, b: c, d: e"}
    assert read("ten steps: 3, of: a, b: c")[0] == {"prompt": "ten steps: 3, of: a, b: c"}


def test_a_prompt_that_looks_like_settings():
    found, _ = read(f"a cat, one: b, two: c, three: d\nNegative prompt: Steps: 3, a: b, c: d\n{LINE}")
    assert found["prompt"] == "a cat, one: b, two: c, three: d"
    assert found["negative_prompt"] == "Steps: 3, a: b, c: d" and found["steps"] == 20


@pytest.mark.parametrize("schedule", ["", ", Schedule type: Automatic"])
@pytest.mark.parametrize("version", ["", "v1.3.0", "v1.8.0-RC", "1.8.0", "f0.0.17v1.8.0rc-latest-276-g29be1da7"])
@pytest.mark.parametrize(
    "name", ["DPM++ 2M", "DPM++ SDE", "DPM++ 2S a", "DPM2", "DPM2 a", "DPM++ 2M SDE", "DPM++ 3M SDE"]
)
def test_before_schedules_had_a_name(name, version, schedule):
    """08: a sampler without "Karras" in its name walked evenly spaced timesteps. With the field it is 1.9's."""
    found, _ = read(
        f"a\nSteps: 10, Sampler: {name}{schedule}, Seed: 1, Size: 8x8" + f", Version: {version}" * bool(version)
    )
    assert found["preset"] == "a1111" and found.get("schedule") == (None if schedule else "normal")
    if name == "DPM++ 2M" and not schedule:
        made = plan(found["sampler"], 10, SD, found["schedule"], preset=found["preset"])
        np.testing.assert_allclose(made.timesteps[:3], [999, 888, 777], atol=1e-6)


@pytest.mark.parametrize(
    "version", ["v1.9.0", "v1.10.1", "1.10.1", "f2.0.1v1.10.1-previous-664-gd557aef9", "neo", "neo-2.1"]
)
@pytest.mark.parametrize("schedule", ["", ", Schedule type: Automatic"])
def test_since_schedules_have_a_name(version, schedule):
    """Automatic is the sampler's own: Karras for DPM++ 2M, exponential for DPM++ 2M SDE."""
    text = f"a\nSteps: 10, Sampler: DPM++ 2M{schedule}, Seed: 1, Size: 8x8, Version: {version}"
    found, _ = read(text)
    assert found["preset"] == "a1111" and found.get("schedule") is None
    made = plan(found["sampler"], 10, SD, None, preset=found["preset"])
    assert made.schedule == "karras" and made.timesteps[1] == pytest.approx(916, abs=1)


def test_old_names_that_say_their_levels():
    for name, ours in (("DPM++ 2M Karras", "karras"), ("DPM++ 2M SDE Exponential", "exponential"), ("Restart", None)):
        assert read(f"a\nSteps: 10, Sampler: {name}, Seed: 1, Size: 8x8, Version: v1.6.0")[0].get("schedule") == ours


def test_comfyuis_nodes_that_write_this_text():
    """07."""
    found, warned = read(
        "a cat\nSteps: 20, Sampler: DPM++ 2M Karras, CFG scale: 7, Seed: 1, Clip skip: 2, Version: ComfyUI"
    )
    assert found == {
        **COMFY, "prompt": "a cat", "steps": 20, "sampler": "dpmpp_2m", "schedule": "karras", "guidance_scale": 7.0,
        "seed": 1, "clip_skip": "comfy:-2",
    }  # fmt: skip
    assert not warned
    for name, ours, schedule in (
        ("dpmpp_2m_sgm_uniform", "dpmpp_2m", "sgm_uniform"), ("euler_ancestral normal", "euler_ancestral", "normal"),
        ("UniPC", "unipc", None), ("uni_pc", "unipc", None), ("DDIM", "ddim", None),
    ):  # fmt: skip
        found, _ = read(f"a\nSteps: 20, Sampler: {name}, Seed: 1, Version: ComfyUI")
        assert (found["sampler"], found.get("schedule"), found["preset"]) == (ours, schedule, "comfy")


@pytest.mark.parametrize(
    ("version", "skip"), [("ComfyUI v0.3.10", "comfy:-2"), ("comfyui", "comfy:-2"), ("v1.9.0", "a1111:2")]
)
def test_clip_skip_with_either_sign(version, skip):
    for number in (2, -2):
        found, _ = read(f"a\n  Negative prompt: dog\n{LINE}, Clip skip: {number}, Version: {version}")
        assert found["clip_skip"] == skip and found["negative_prompt"] == "dog"
    assert "clip_skip" not in read(f"a\n{LINE}, Clip skip: 0, Version: {version}")[0]


def test_comfyui_has_no_automatic():
    found, _ = read("a\nSteps: 10, Sampler: DPM++ 2M, Seed: 1, Version: ComfyUI")
    assert plan(found["sampler"], 10, SD, None, preset=found["preset"]).schedule == "normal"


def test_sd_next():
    text = "a\nSteps: 10, Size: 8x8, Sampler: DPM++ 2M, Seed: 1, CFG scale: 6, Parser: a1111, App: SD.Next"
    found, _ = read(f"{text}, Version: 0eb4a98, Pipeline: StableDiffusionPipeline, Backend: Diffusers")
    assert "preset" not in found and "schedule" not in found and found["prompt_style"] == "a1111"
    assert "preset" not in read(text)[0] and read(f"{text}, Backend: Original")[0]["preset"] == "a1111"


def test_what_sd_next_says_of_its_schedulers():
    """Names of modules/processing_info.py."""
    text = "a\nSteps: 10, Size: 8x8, Sampler: DPM++ 2M, Seed: 1, App: SD.Next, Sampler sigma: "
    assert read(text + "karras")[0]["schedule"] == "karras" and not read(text + "karras")[1]
    found, warned = read(text + "flowmatch, Sampler spacing: linspace, Scheduler: DPMSolverMultistepScheduler")
    assert "schedule" not in found and "sampler spacing, sampler sigma is not done here" in warned


@pytest.mark.parametrize(
    ("sampler", "steps", "same"),
    [("DDIM", 20, True), ("PLMS", 50, True), ("DDIM", 30, False), ("UniPC", 20, False), ("LCM", 4, False)],
)
def test_samplers_with_timesteps_of_their_own_are_named(sampler, steps, same):
    """sd_samplers_timesteps.py: 31 timesteps for 30 steps."""
    found, warned = read(f"a\nSteps: {steps}, Sampler: {sampler}, Seed: 1, Version: v1.10.1")
    assert "preset" not in found and (f"{sampler} walks timesteps of its own" in warned) is not same
    assert not read(f"a\nSteps: {steps}, Sampler: {sampler}, Seed: 1, App: SD.Next")[1]


@pytest.mark.parametrize(
    ("first", "second", "size"),
    [("512x512", "1024x1024", (512, 512)), ("0x0", "1024x1024", (512, 512)), ("0x0", "1024x1536", (448, 640)),
     ("640x384", "1280x768", (640, 384))],
)  # fmt: skip
def test_first_pass_size(first, second, size):
    """10; 0x0 as old_hires_fix_first_pass_dimensions: ceil(sqrt(512 512 / (w h)) w / 64) 64."""
    found, warned = read(f"a\nSteps: 5, Sampler: Euler, Seed: 1, Size: {second}, First pass size: {first}")
    assert (found["width"], found["height"]) == size
    assert "these settings make the first, smaller pass" in warned


@pytest.mark.parametrize(
    "line",
    [
        "Steps: 20, Sampler: Euler a, CFG Scale: 3.5, Seed: 1, Size: 512x512, CLIP skip: 2",
        "steps: 20, sampler: euler a, cfg scale: 3.5, seed: 1, size: 512X512, Clip Skip: 2",
        "STEPS: 20, SAMPLER: EULER A, CFG SCALE: 3.5, SEED: 1, SIZE: 512 x 512, CLIP SKIP: 2.0",
    ],
)
def test_letters_large_and_small(line):
    """44."""
    found, _ = read(f"a cat\nNegative Prompt: dog\n{line}")
    assert found == {
        "prompt": "a cat", "negative_prompt": "dog", "steps": 20, "sampler": "euler_ancestral", "guidance_scale": 3.5,
        "seed": 1, "width": 512, "height": 512, "clip_skip": "a1111:2", "prompt_style": "a1111",
        "noise_source": "torch_cuda", "preset": "a1111",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            "Hires upscale: 2, Hires steps: 10, Denoising strength: 0.4",
            "hires upscale, hires steps is not done here: these",
        ),
        ("Denoising strength: 0.4", "was made from another.*give image= and strength=0.4"),
        ("Variation seed: 5, Variation seed strength: 0.1", "variation seed, variation seed strength is not done"),
        ("ENSD: 31337", "ensd is not done"),
        ("Face restoration: CodeFormer, Tiling: True", "face restoration, tiling is not done"),
        ('ControlNet 0: "Module: canny, Model: x"', "controlnet 0 is not done"),
        ("ADetailer model: face.pt, FreeU Stages: 1", "adetailer model, freeu stages is not done"),
        ("Refiner: xl_refiner [ab], Refiner switch at: 0.8", "xl_refiner .ab. took over at 0.8: load it"),
        ("Emphasis: No norm", "emphasis 'No norm' is not done"),
        ("Emphasis: None", "emphasis 'None' is not done"),
        ("Denoise: 0.6", "was made from another.*give image= and strength=0.6"),
        ('Lora hashes: "x: 12"', r"wore adapters \(x: 12\): give adapters="),
        ('Civitai resources: [{"type":"lora","weight":0.8}]', "LoRAs and embeddings of civitai resources is not"),
    ],
)
def test_what_is_not_done_is_named(fields, message):
    _, warned = read(f"a\n{LINE}, {fields}, Version: v1.10.1")
    with pytest.warns(UserWarning, match=message):
        warnings.warn(warned, stacklevel=1)


def test_what_is_off_is_not_named():
    off = "Tiling: False, ENSD: 0, Variation seed: 5, Variation seed strength: 0, Emphasis: original"
    off += ", Hires upscale: None, Model hash: ab12, VAE: x.pt, Denoising strength: 1.0"
    assert read(f"a\n{LINE}, {off}, Version: v1.10.1")[1] == ""
    assert read(f"a\n{LINE}, rng: cpu")[0]["noise_source"] == "torch_cpu"
    assert not read(f'a\n{LINE}, Civitai resources: [{{"type":"checkpoint"}}], Civitai metadata: {{}}')[1]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ("Seed: -1", "seed must be from 0 to"),
        (f"Seed: {2**64}", "seed must be from 0 to"),
        (f"Seed: {'9' * 4000}", "seed must be from 0 to .* not a number of 13288 bits"),
        ("Size: 100000x8", "width must be from 1 to 16,384, not 100000"),
        ("Steps: 1000000", "steps must be from 1 to 10,000"),
        ("CFG scale: 1e38", "guidance_scale must be from 0 to 10,000"),
        ("Steps: 20.5", "Steps: '20.5' cannot be understood"),
        ("Steps: 20,000", "Steps: '20,000' cannot be understood"),
        ("Seed: 1.0e999", "Seed: '1.0e999' cannot be understood"),
        ("Clip skip: inf", "Clip skip: 'inf' cannot be understood"),
        (f"Size: {'9' * 400}x8, First pass size: 0x0", "Size: '99"),
        ("CFG scale: 1e400", "CFG scale: '1e400' cannot be understood"),
        ("Sigma churn: 1e300", "sampler_options: 's_churn' must be from"),
        ("Size: 8x8, First pass size: 0x0x0", "Size: '8x8' cannot be understood"),
    ],
)
def test_numbers_have_limits(fields, message):
    with pytest.raises(ValueError, match=message):
        read(f"a\n{LINE}, {fields}")


@settings(max_examples=300, deadline=None)
@given(st.text(st.sampled_from('Steps:Sd,"\\\n x1.9v0'), max_size=80), st.text(max_size=20))
def test_any_text_is_settings_or_one_error(text, more):
    for one in (text, f"{text}\n{LINE}, {more}", f"{more}\n{LINE}{text}", f"Steps: {more}, Seed: {text}, a: b"):
        try:
            assert isinstance(infotext.read(one).settings["prompt"], str)
        except ValueError as error:
            assert "cannot be understood" in str(error)
