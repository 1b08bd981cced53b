"""Whole runs that are shown pictures (IP-Adapter) against diffusers, as in `test_control`."""

import contextlib
import functools
import tempfile
from pathlib import Path

import pytest
from diffusers.image_processor import IPAdapterMaskProcessor

import sdjax
from tests import image_prompts
from tests.parity import families
from tests.parity.families import FACTOR, channels_last, opened, relative, run
from tests.parity.from_picture import PICTURES, generators, painted, picture
from tests.parity.test_control import ASKED, HEIGHT, MAPS, SIZE, TOLERANCE, WIDTH, net, ours, pipe

KINDS = ("sd1", "sdxl")
SHOWN, OTHER = picture(40, 56, seed=11), picture(48, 40, seed=12)


@pytest.fixture(scope="module", autouse=True)
def quick_compiles():
    with families.quick_compiles():
        yield


@functools.cache
def written(kind, projection="base", seed=0):
    """A folder with an IP-Adapter's file for a family, and its image encoder; and the adapter as it is read here."""
    folder = Path(tempfile.mkdtemp())
    path = image_prompts.write_image_prompt(folder, opened(kind)[1].params["unet"], projection, seed=seed)
    return path, sdjax.load_image_prompt(path)


@contextlib.contextmanager
def wearing(pipeline, paths, scales):
    """A pipeline with these files, at these scales."""
    folders = [str(path.parent) for path in paths]
    pipeline.load_ip_adapter(
        folders, subfolder=[""] * len(paths), weight_name=[path.name for path in paths],
        image_encoder_folder="image_encoder",
    )  # fmt: skip
    pipeline.set_ip_adapter_scale(scales)
    try:
        yield pipeline
    finally:
        pipeline.unload_ip_adapter()


def theirs(kind, paths, images, scales, pipeline=None, **asked):
    with wearing(pipeline or opened(kind)[0], paths, scales) as worn:
        made = run(worn, ip_adapter_image=images, generator=generators(), **ASKED | SIZE | asked)
    return channels_last(made)


def shown(kind, prompts, **asked):
    return ours(kind, None, image_prompt=prompts, **asked)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("projection", ["base", "plus", "full"])
def test_one_picture(kind, projection):
    path, adapter = written(kind, projection)
    want = theirs(kind, [path], SHOWN, 0.6)
    assert relative(shown(kind, [(adapter, SHOWN, 0.6)]), want) < TOLERANCE
    assert relative(shown(kind, [(adapter, OTHER, 0.6)]), want) > 10 * TOLERANCE
    assert relative(shown(kind, None), want) > 10 * TOLERANCE


def test_without_guidance():
    path, adapter = written("sd1")
    want = theirs("sd1", [path], SHOWN, 0.6, guidance_scale=1.0)
    assert relative(shown("sd1", [(adapter, SHOWN, 0.6)], guidance_scale=1.0), want) < TOLERANCE


@pytest.mark.parametrize("kind", KINDS)
def test_two_pictures_together_and_two_adapters(kind):
    (first, mine), (second, other) = written(kind), written(kind, "plus", seed=1)
    want = theirs(kind, [first, second], [[SHOWN, OTHER], OTHER], [0.5, 0.7])
    got = shown(kind, [(mine, (SHOWN, OTHER), 0.5), sdjax.ImagePrompt(other, OTHER, 0.7)])
    assert relative(got, want) < TOLERANCE


@pytest.mark.parametrize("kind", KINDS)
def test_where_a_mask_says(kind):
    path, adapter = written(kind)
    boxes = [(0, 0, 14, HEIGHT), (14, 0, WIDTH, 18)]
    drawn = [painted(WIDTH, HEIGHT, box) for box in boxes]
    masks = IPAdapterMaskProcessor(vae_scale_factor=FACTOR).preprocess(drawn, height=HEIGHT, width=WIDTH)
    told = dict(ip_adapter_masks=[masks.reshape(1, 2, HEIGHT, WIDTH)])
    want = theirs(kind, [path], [[SHOWN, OTHER]], [[0.8, 0.6]], cross_attention_kwargs=told)
    pair = [(SHOWN, 0.8, drawn[0]), (OTHER, 0.6, drawn[1])]
    got = shown(kind, [sdjax.ImagePrompt(adapter, image, scale, mask=mask) for image, scale, mask in pair])
    assert relative(got, want) < TOLERANCE


def test_scales_by_layer():
    path, adapter = written("sdxl")
    layers = {"down": {"block_2": [0.9]}, "up": {"block_0": [0.0, 0.7]}}
    want = theirs("sdxl", [path], SHOWN, layers)
    assert relative(shown("sdxl", [(adapter, SHOWN, layers)]), want) < TOLERANCE
    assert relative(shown("sdxl", [(adapter, SHOWN, 0.9)]), want) > 10 * TOLERANCE


def test_beside_a_controlnet_from_a_picture():
    (there, here), (path, adapter) = net("sd1"), written("sd1", "plus")
    asked = dict(image=PICTURES, strength=0.7)
    want = theirs(
        "sd1", [path], SHOWN, 0.6, pipe("sd1", [there], "image"), control_image=MAPS,
        controlnet_conditioning_scale=0.5, **asked,
    )  # fmt: skip
    got = ours("sd1", [(here, MAPS, 0.5)], image_prompt=[(adapter, SHOWN, 0.6)], **asked)
    assert relative(got, want) < TOLERANCE
