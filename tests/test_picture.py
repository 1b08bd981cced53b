"""Settings in pictures: written as other tools read them, read back exactly, refused where broken."""

import errno
import io
import json
import os
import pickle
import threading
import time
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, PngImagePlugin

import sdjax
from sdjax.core import files
from sdjax.diffusion import spacing
from sdjax.diffusion.samplers import SAMPLERS
from sdjax.images.pixels import from_uint8, to_uint8
from sdjax.metadata import infotext, picture
from sdjax.request.arguments.arguments import DECLARED
from sdjax.request.arguments.topic import GIVEN

PIXELS = np.arange(8 * 16 * 3, dtype=np.uint8).reshape(8, 16, 3)
SETTINGS = {
    "prompt": "a red circle",
    "negative_prompt": "blurry",
    "steps": 20,
    "sampler": "dpmpp_2m",
    "schedule": "karras",
    "preset": None,
    "eta": None,
    "sampler_options": None,
    "guidance_scale": 7.5,
    "guidance_schedule": "constant",
    "guidance_rescale": 0.0,
    "seed": 3,
    "num_images": 1,
    "first_image": 2,
    "height": 8,
    "width": 16,
}


def made(**changed) -> Image.Image:
    return picture.make(PIXELS, SETTINGS | changed, model="shapes")


def png(path: Path, **texts: str) -> Path:
    info = PngImagePlugin.PngInfo()
    for name, text in texts.items():
        info.add_text(name, text)
    Image.fromarray(PIXELS).save(path, pnginfo=info)
    return path


# Writing ------------------------------------------------------


def test_a_png_holds_the_text_that_other_tools_read(tmp_path):
    made().save(tmp_path / "x.png")
    with Image.open(tmp_path / "x.png") as image:
        assert image.info["parameters"] == (
            "a red circle\nNegative prompt: blurry\nSteps: 20, Sampler: DPM++ 2M, Schedule type: Karras, "
            f"CFG scale: 7.5, Seed: 3, Size: 16x8, Model: shapes, Version: sdjax {sdjax.__version__}"
        )
        np.testing.assert_array_equal(np.asarray(image), PIXELS)


@pytest.mark.parametrize(
    "changed,has,lacks",
    [
        ({"negative_prompt": ""}, "a red circle\nSteps: 20", "Negative"),
        ({"schedule": None}, "Sampler: DPM++ 2M, CFG", "Schedule"),
        ({"sampler": "ddim", "eta": 0.5}, "Sampler: DDIM, Schedule type: Karras, CFG scale: 7.5", "Eta: "),
        ({"sampler": "ddim", "eta": 0.5}, "Eta DDIM: 0.5", "eta"),
        ({"sampler": "mine, all:mine"}, 'Sampler: "mine, all:mine", ', "Eta"),
        ({"sampler": "mine"}, "Sampler: mine, ", "DPM"),
        ({"guidance_scale": float(np.float32(7.3))}, "CFG scale: 7.3, ", "7.30"),
        ({"guidance_scale": 7.0}, "CFG scale: 7, ", "7.0"),
        ({"sampler": "euler_ancestral", "eta": 0.0}, "Sampler: Euler a, Schedule type: Karras", "Eta DDIM"),
        ({"sampler": "euler_ancestral", "eta": 0.0}, "Eta: 0, ", "Eta DDIM"),
        ({"sampler": "dpmpp_2m_sde"}, "Sampler: DPM++ 2M SDE, ", "Heun"),
        (
            {"sampler": "dpmpp_2m_sde", "sampler_options": {"solver_type": "heun"}},
            "Sampler: DPM++ 2M SDE Heun, Schedule type: Karras, ",
            "solver",
        ),
        ({"sampler_options": {"s_churn": 20.0, "rho": 5}}, "Sigma churn: 20.0, ", "rho"),
        ({"guidance_rescale": float(np.float32(0.7))}, "CFG rescale: 0.7, ", "Guidance schedule"),
        ({"guidance_schedule": "interval:0.2:0.8"}, 'Guidance schedule: "interval:0.2:0.8", ', "CFG rescale"),
        ({"prompt": "caf\udce9"}, "caf?", "\udce9"),
    ],
)
def test_parameters_text(changed, has, lacks):
    text = made(**changed).info["parameters"]
    assert has in text and lacks not in text


@pytest.mark.parametrize("format", ["JPEG", "WEBP", "BMP", "GIF", "TIFF"])
def test_other_formats_are_saved_as_ever(format):
    ours, plain = io.BytesIO(), io.BytesIO()
    made().save(ours, format)
    Image.fromarray(PIXELS).save(plain, format)
    assert ours.getvalue() == plain.getvalue()


def test_texts_of_the_caller_s_own_take_the_place_of_ours(tmp_path):
    made().save(tmp_path / "x.png", pnginfo=PngImagePlugin.PngInfo())
    assert not Image.open(tmp_path / "x.png").info


def test_a_pickled_picture_keeps_its_settings(tmp_path):
    pickle.loads(pickle.dumps(made())).save(tmp_path / "x.png")
    assert sdjax.read_settings(tmp_path / "x.png") == SETTINGS


def test_numpy_s_numbers_are_numbers():
    assert sdjax.read_settings(made(steps=np.int64(4), eta=np.float32(0.5)))["steps"] == 4
    with pytest.raises(TypeError, match="cannot be a setting"):
        made(steps=PIXELS)


# Reading ------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(prompt=st.text(), negative=st.text(), scale=st.floats(0, 30), seed=st.integers(0, 2**32 - 1))
def test_any_settings_come_back(prompt, negative, scale, seed):
    asked = SETTINGS | {"prompt": prompt, "negative_prompt": negative, "guidance_scale": scale, "seed": seed}
    file = io.BytesIO()
    picture.make(PIXELS, asked, model="m").save(file, "PNG")
    with Image.open(file) as image:
        assert sdjax.read_settings(image) == asked


def test_the_same_picture_again(tiny_checkpoint, tmp_path):
    sd = sdjax.load(tiny_checkpoint, compilation_cache=False)
    out = sd.generate(["a red circle", "a blue square"], "green", steps=3, sampler="euler", seed=7, num_images=2)
    for path, image in zip(picture.save_all(out.images, tmp_path), out.images, strict=True):
        again = sd.generate(**sdjax.read_settings(path))
        np.testing.assert_allclose(np.asarray(again.images[0], int), np.asarray(image, int), atol=1)
        assert again.images[0].info == image.info


A1111 = """a (red:1.2) circle, <lora:x:1>,
second line
Negative prompt: blurry,
Steps: none of these lines are fields
Steps: 28, Sampler: DPM++ 2M, Schedule type: Karras, CFG scale: 6.5, Seed: 99, Size: 512x768, \
Model hash: ab12, Model: "a, b: \\"c\\"", Clip skip: 2, Lora hashes: "x: 12, y: 34", Eta DDIM: 0.25, Version: v1.9.3"""


def test_the_text_of_another_tool(tmp_path):
    assert sdjax.read_settings(png(tmp_path / "x.png", parameters=A1111)) == {
        "prompt": "a (red:1.2) circle, <lora:x:1>,\nsecond line",
        "negative_prompt": "blurry,\nSteps: none of these lines are fields",
        "steps": 28,
        "sampler": "dpmpp_2m",
        "schedule": "karras",
        "guidance_scale": 6.5,
        "seed": 99,
        "width": 512,
        "height": 768,
        "eta": 0.25,
        "clip_skip": "a1111:2",
        "prompt_style": "a1111",
        "noise_source": "torch_cuda",
        "preset": "a1111",
    }


@pytest.mark.parametrize(
    "fields,found",
    [
        ("Sampler: DPM++ 2M Karras", {"sampler": "dpmpp_2m", "schedule": "karras"}),
        ("Sampler: DPM++ 2M SDE Exponential", {"sampler": "dpmpp_2m_sde", "schedule": "exponential"}),
        ("Sampler: DPM2 a Karras", {"sampler": "dpm2_ancestral", "schedule": "karras"}),
        ("Sampler: Euler, Schedule type: Automatic", {"sampler": "euler"}),
        ("Sampler: Euler a, Schedule type: Uniform", {"sampler": "euler_ancestral", "schedule": "normal"}),
        ("Sampler: DPM++ SDE, Schedule type: Turbo", {"sampler": "dpmpp_sde", "schedule": "trailing"}),
        ("Sampler: DDIM", {"sampler": "ddim"}),
        ("Sampler: DDIM, Eta DDIM: 0.5", {"sampler": "ddim", "eta": 0.5}),
        ("Sampler: DPM2 a, Eta: 0.5", {"sampler": "dpm2_ancestral", "schedule": "normal", "eta": 0.5}),
        ("Sampler: Mine Karras, Schedule type: Theirs", {"sampler": "Mine Karras", "schedule": "Theirs"}),
        (
            "Sampler: Heun, Sigma churn: 20, Sigma tmax: 5.5",
            {"sampler": "heun", "sampler_options": {"s_churn": 20.0, "s_tmax": 5.5}},
        ),
        (
            "Sampler: DPM++ 2M SDE Heun Karras, Sigma noise: 1.003",
            {
                "sampler": "dpmpp_2m_sde",
                "schedule": "karras",
                "sampler_options": {"solver_type": "heun", "s_noise": 1.003},
            },
        ),
        (
            'CFG rescale: 0.7, Guidance schedule: "linear:0.0:1.0"',
            {"guidance_rescale": 0.7, "guidance_schedule": "linear:0.0:1.0"},
        ),
    ],
)
def test_samplers_of_another_tool(tmp_path, fields, found):
    text = f"a cat\nSteps: 5, Seed: 1, {fields}, Version: 1"
    want = {"prompt": "a cat", "steps": 5, "seed": 1, "prompt_style": "a1111", "noise_source": "torch_cuda"} | found
    read = sdjax.read_settings(png(tmp_path / "x.png", parameters=text))
    # A1111's own levels, where its sampler walks k-diffusion's and knows the schedule.
    theirs = "sampler" in found and not {"ddim", "trailing", "Mine Karras"} & {*map(str, found.values())}
    assert read.pop("preset", None) == ("a1111" if theirs else None)
    assert read == want


def test_whose_noise_another_tool_s_seed_means(tmp_path):
    text = "a cat\nSteps: 5, Seed: 1, Sampler: Euler a, RNG: CPU, Version: v1.10.1"
    assert sdjax.read_settings(png(tmp_path / "x.png", parameters=text))["noise_source"] == "torch_cpu"


def test_conventions_of_ours_in_words_of_theirs():
    given = {"prompt_style": "a1111", "clip_skip": "a1111:2", "noise_source": "torch_cpu", "refiner_start": 0.8}
    image = made(**given, refiner="base + refiner")
    for words in ("Prompt style: a1111", "Clip skip: 2", "RNG: CPU", "Refiner: base + refiner, Refiner switch at: 0.8"):
        assert words in image.info["parameters"]
    del image.info["sdjax"]
    read = sdjax.read_settings(image)
    assert {name: read[name] for name in ("prompt_style", "clip_skip", "noise_source")} == {
        name: given[name] for name in ("prompt_style", "clip_skip", "noise_source")
    }


# A1111's own lists, of modules/sd_samplers_kdiffusion.py, _timesteps.py, _lcm.py and sd_schedulers.py of version 1.10.
A1111_SAMPLERS = (
    "DPM++ 2M", "DPM++ SDE", "DPM++ 2M SDE", "DPM++ 2M SDE Heun", "DPM++ 2S a", "DPM++ 3M SDE", "Euler a", "Euler",
    "LMS", "Heun", "DPM2", "DPM2 a", "DPM fast", "DPM adaptive", "Restart", "DDIM", "PLMS", "UniPC", "LCM",
)  # fmt: skip
A1111_SCHEDULES = (
    "Karras", "Exponential", "Polyexponential", "SGM Uniform", "KL Optimal", "Align Your Steps", "Simple", "Normal",
    "DDIM", "Beta",
)  # fmt: skip


@pytest.mark.parametrize("name", A1111_SAMPLERS)
def test_every_sampler_and_schedule_of_theirs_comes_back(name):
    for schedule in A1111_SCHEDULES:
        image = Image.fromarray(PIXELS)
        image.info["parameters"] = f"a\nSteps: 5, Seed: 1, Sampler: {name}, Schedule type: {schedule}"
        found = sdjax.read_settings(image)
        assert found["schedule"] in spacing.SCHEDULES and found["sampler"] in {*SAMPLERS, "dpm_adaptive"}
        assert f"Sampler: {name}, Schedule type: {schedule}, " in made(**found).info["parameters"]
        image.info["parameters"] = f"a\nSteps: 5, Seed: 1, Sampler: {name} {schedule}"
        assert sdjax.read_settings(image) == found


def test_names_are_ours():
    """Every word of ours is a sampler's or a schedule's, and no two share a name of theirs."""
    assert set(infotext.SAMPLERS) <= {*SAMPLERS, "dpm_adaptive"} and set(infotext.SCHEDULES) <= set(spacing.SCHEDULES)
    for words in (infotext.SAMPLERS, infotext.SCHEDULES):
        assert len(set(words.values())) == len(words)


def test_our_own_text_read_as_another_tool_s():
    changed = {"guidance_schedule": "cosine:0.0:1.0", "guidance_rescale": 0.5, "eta": 0.5, "first_image": 0}
    image = made(**changed)
    del image.info["sdjax"]
    read = sdjax.read_settings(image)
    asked = SETTINGS | changed
    assert read == {name: asked[name] for name in read}
    assert asked.keys() - read == {"num_images", "first_image", "preset", "sampler_options"}


def test_a_prompt_alone_is_a_prompt(tmp_path):
    assert sdjax.read_settings(png(tmp_path / "x.png", parameters="just: this")) == {"prompt": "just: this"}


# Broken ------------------------------------------------------


def ours(**changed) -> str:
    return json.dumps({"settings": SETTINGS | changed})


@pytest.mark.parametrize(
    "texts,message",
    [
        ({}, "holds no settings"),
        ({"parameters": "a\nSteps: many, Seed: 1, Size: 8x8"}, "Steps: 'many' cannot be understood"),
        ({"parameters": "a\nSteps: 1, Seed: 1, Size: 8"}, "Size: '8' cannot be understood"),
        ({"parameters": "a\nSteps: 1, Seed: 1, CFG scale: nan"}, "CFG scale: 'nan'"),
        ({"parameters": f"a\nSteps: 1, Seed: {'9' * 5000}, CFG scale: 1"}, "Seed: '9999"),
        ({"parameters": "a" * 200_000}, "over 100,000 characters"),
        ({"sdjax": "x" * 200_000}, "over 100,000 characters"),
        ({"sdjax": "{"}, "broken settings"),
        ({"sdjax": "[" * 90_000}, "nested too deeply"),
        ({"sdjax": "[]"}, "no .*prompt"),
        ({"sdjax": '{"settings": {}}'}, "no .*prompt"),
        ({"sdjax": '{"settings": {"prompt": "a", "__class__": 1}}'}, "unknown setting '__class__'.*newer"),
        ({"sdjax": ours(prompt=["a"])}, "prompt must be str"),
        ({"sdjax": ours(steps=2.5)}, "steps must be int"),
        ({"sdjax": ours(steps=True)}, "steps must be int"),
        ({"sdjax": ours(guidance_scale=float("nan"))}, "guidance_scale must be float or int"),
        ({"sdjax": ours(schedule=1)}, "schedule must be str or null"),
        ({"sdjax": ours(eta="a")}, "eta must be float or int or null"),
        ({"sdjax": ours(guidance_schedule=1)}, "guidance_schedule must be str or null"),
        ({"sdjax": ours(sampler_options=[1])}, "sampler_options must be dict or null"),
        ({"sdjax": ours(sampler_options={"x": {"y": 1}})}, "sampler_options: 'x' must be a number, a string or a list"),
    ],
)  # fmt: skip
def test_broken_settings_are_one_error(tmp_path, texts, message):
    path = png(tmp_path / "x.png", **texts)
    with pytest.raises(ValueError, match=message) as caught:
        sdjax.read_settings(path)
    assert str(path) in str(caught.value) and len(str(caught.value)) < 300 + len(str(path))


@pytest.mark.parametrize("name", [name for name, one in DECLARED.items() if one.told == GIVEN])
def test_a_picture_names_no_file(tmp_path, name):
    """It says that there was one, and `generate` then asks for it."""
    assert sdjax.read_settings(png(tmp_path / "x.png", sdjax=ours(**{name: "given"})))[name] == "given"
    for value in ("/etc/passwd", "x.png", "", "Given", "given ", ["given"], None):
        with pytest.raises(ValueError, match=f"{name} (can only be .given.|must be str)"):
            sdjax.read_settings(png(tmp_path / "x.png", sdjax=ours(**{name: value})))


LEAST_AND_MOST = {
    "steps": (0, 10_001), "seed": (-1, 2**64), "num_images": (0, 10**9), "first_image": (-1, 2**32),
    "height": (0, 8 * 10**9), "width": (-8, 16_385), "guidance_scale": (-0.1, 1e38),
    "image_guidance_scale": (-1, 10**400), "guidance_rescale": (-0.1, 10**400), "strength": (-0.1, 1.1),
    "eta": (-(10**400), 10**400), "stop_after": (0, 10**10), "refiner_start": (-1, 2), "denoising_start": (-1, 2),
    "denoising_end": (-1, 2), "aesthetic_score": (-1e9, 10**400), "negative_aesthetic_score": (-1e9, 1e9),
    "mask_blur": (-1, 10**400), "mask_crop": (-1, 10**9), "noise_level": (-1, 10**9),
}  # fmt: skip


@pytest.mark.parametrize("name", LEAST_AND_MOST)
def test_every_number_has_its_limits(tmp_path, name):
    """Before anything is allocated; a whole number of any length is a ValueError."""
    assert set(LEAST_AND_MOST) == {one for one, declared in DECLARED.items() if declared.span}
    for value in LEAST_AND_MOST[name]:
        with pytest.raises(ValueError, match=f"{name} must be from "):
            sdjax.read_settings(png(tmp_path / "x.png", sdjax=ours(**{name: value})))


@pytest.mark.parametrize(
    "changed,message",
    [
        ({"sampler_options": {"sigmas": [1e308, 1, 0]}}, "sampler_options: 'sigmas' must be from"),
        ({"sampler_options": {"s_churn": 10**400}}, "sampler_options: 's_churn' must be from"),
        ({"sampler_options": {"s_noise": float("inf")}}, "sampler_options: 's_noise' must be from"),
        ({"sampler_options": {"rho": float("nan")}}, "sampler_options: 'rho' must be from"),
        ({"sampler_options": {"sigmas": [1] * 1002}}, "has 1,002 entries"),
        ({"sampler_options": {str(i): 1 for i in range(101)}}, "sampler_options has 101 entries"),
        ({"crop": [0, 10**400]}, "crop must be from"),
        ({"original_size": [1, 2, 3]}, "original_size must be two numbers"),
        ({"target_size": [1, "2"]}, "target_size must be two numbers"),
        ({"target_size": [1, float("nan")]}, "target_size must be from"),
    ],
)
def test_numbers_in_lists_have_limits(tmp_path, changed, message):
    with pytest.raises(ValueError, match=message):
        sdjax.read_settings(png(tmp_path / "x.png", sdjax=ours(**changed)))


def test_what_is_infinite_by_default_may_be_so(tmp_path):
    path = png(tmp_path / "x.png", sdjax=ours(sampler_options={"s_tmax": float("inf")}, crop=[0, -4]))
    assert sdjax.read_settings(path)["sampler_options"] == {"s_tmax": float("inf")}


@pytest.mark.parametrize("line", ["a" * 99_000, "aa:" * 33_000, 'aa:"' * 24_000, " " * 99_000 + "x", "\\" * 99_000])
def test_a_hostile_text_takes_no_time(line):
    image = Image.fromarray(PIXELS)
    image.info["parameters"] = "a\n" + line
    start = time.perf_counter()
    sdjax.read_settings(image)
    assert time.perf_counter() - start < 1.0


def test_no_picture_is_one_error(tmp_path):
    (tmp_path / "words.png").write_text("no picture")
    (tmp_path / "cut.png").write_bytes(b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR")
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(ValueError, match="folder.png is a folder; name one picture in it"):
        sdjax.read_settings(tmp_path / "folder.png")
    for name in ("words", "cut"):
        with pytest.raises(ValueError, match=f"{name}.png cannot be read as a picture"):
            sdjax.read_settings(tmp_path / f"{name}.png")
    with pytest.raises(FileNotFoundError, match="missing.png: there is no such picture"):
        sdjax.read_settings(tmp_path / "missing.png")


def test_a_compressed_bomb_is_one_error(tmp_path):
    def chunk(kind: bytes, data: bytes) -> bytes:
        return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")

    whole = png(tmp_path / "x.png").read_bytes()
    bomb = chunk(b"zTXt", b"sdjax\0\0" + zlib.compress(b"[" * 50_000_000))
    (tmp_path / "x.png").write_bytes(whole[:33] + bomb + whole[33:])
    with pytest.raises(ValueError, match="x.png"):
        sdjax.read_settings(tmp_path / "x.png")


# Pixels ------------------------------------------------------


def test_uint8_there_and_back():
    every = np.arange(256, dtype=np.uint8)
    there = from_uint8(every)
    assert there.dtype == np.float32 and there[0] == -1 and there[255] == 1
    np.testing.assert_array_equal(to_uint8(there), every)
    np.testing.assert_array_equal(to_uint8(np.array([-1.2, -0.0001, 1.2])), [0, 127, 255])


# Saving many ------------------------------------------------------


def test_names_go_on_after_the_highest(tmp_path):
    folder = tmp_path / "new" / "folder"
    assert [p.name for p in picture.save_all([made()] * 2, folder)] == ["00000.png", "00001.png"]
    (folder / "00007.png").write_text("somebody's")
    assert [p.name for p in picture.save_all([made()], folder)] == ["00008.png"]
    assert [p.name for p in picture.save_all([made()], folder, "cat-")] == ["cat-00000.png"]
    assert (folder / "00007.png").read_text() == "somebody's"
    assert sdjax.read_settings(folder / "00008.png") == SETTINGS
    plain = folder / "plain"
    plain.touch()
    assert (folder / "00008.png").stat().st_mode == plain.stat().st_mode


def test_two_writers_take_nothing_from_each_other(tmp_path):
    saved: list[Path] = []
    work = [
        threading.Thread(target=lambda i=i: saved.extend(picture.save_all([made(seed=i)] * 10, tmp_path)))
        for i in range(3)
    ]
    for thread in work:
        thread.start()
    for thread in work:
        thread.join()
    assert len(set(saved)) == 30 == len(list(tmp_path.iterdir()))
    seeds = [sdjax.read_settings(path)["seed"] for path in saved]
    assert sorted(seeds) == sorted([0, 1, 2] * 10)


def test_a_full_disk_leaves_nothing_half_written(tmp_path, monkeypatch):
    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    picture.save_all([made()], tmp_path)
    for name in ("fsync", "replace"):
        with monkeypatch.context() as patched:
            patched.setattr(os, name, full if name == "fsync" else lambda *_: full(None))
            with pytest.raises(OSError, match=r"cannot be written \(No space left on device\); choose another"):
                picture.save_all([made()], tmp_path)
        assert [p.name for p in tmp_path.iterdir()] == ["00000.png"]


def test_a_stop_leaves_nothing_half_written(tmp_path, monkeypatch):
    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", stop)
    with pytest.raises(KeyboardInterrupt):
        picture.save_all([made()], tmp_path)
    assert not list(tmp_path.iterdir())


def test_check_writable(tmp_path):
    files.check_writable(tmp_path / "new" / "folder")
    assert not list(tmp_path.iterdir())
    (tmp_path / "file").touch()
    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        for use in (files.check_writable, lambda folder: picture.save_all([made()], folder)):
            with pytest.raises(OSError, match="file.* cannot be written .*; choose another folder"):
                use(folder)
