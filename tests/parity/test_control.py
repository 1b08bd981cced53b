"""Whole runs that control networks steer against diffusers: 8 guided steps of two pictures, latents compared.

The nets are random and small, but of their family's structure; each picture has a map of its own.
"""

import functools
import tempfile
from pathlib import Path

import diffusers
import numpy as np
import pytest
import torch

import sdjax
from tests import control_nets
from tests.parity import families
from tests.parity.families import FACTOR, channels_last, opened, relative, run
from tests.parity.from_picture import NEGATIVES, PICTURES, PROMPTS, SEEDS, generators, painted, picture

TOLERANCE = 1e-4  # the issue's, of 8 steps
KINDS = ("sd1", "sd2", "sdxl")
HEIGHT, WIDTH = 12 * FACTOR, 16 * FACTOR
SIZE = dict(height=HEIGHT, width=WIDTH)
ASKED = dict(prompt=PROMPTS, negative_prompt=NEGATIVES, guidance_scale=5.0, sampler="ddim", steps=8)
MAPS, OTHERS = [picture(seed=seed) for seed in (5, 6)], [picture(seed=seed) for seed in (7, 8)]
XL = ("sdxl", "inpainting_xl")
PIPELINES = {
    "text": (diffusers.StableDiffusionControlNetPipeline, diffusers.StableDiffusionXLControlNetPipeline),
    "image": (diffusers.StableDiffusionControlNetImg2ImgPipeline, diffusers.StableDiffusionXLControlNetImg2ImgPipeline),
    "inpaint": (
        diffusers.StableDiffusionControlNetInpaintPipeline,
        diffusers.StableDiffusionXLControlNetInpaintPipeline,
    ),
}


@pytest.fixture(scope="module", autouse=True)
def quick_compiles():
    with families.quick_compiles():
        yield


@functools.cache
def net(kind, seed=0, **more):
    """A ControlNet for a family: diffusers', and ours of the same files."""
    unet = {"norm_num_groups": 4, **families.UNETS[kind]}
    folder = Path(tempfile.mkdtemp()) / "net"
    control_nets.write_net(folder, control_nets.controlnet_config(unet, FACTOR, **more), seed)
    return diffusers.ControlNetModel.from_pretrained(folder), sdjax.load_controlnet(folder)


def pipe(kind, nets, task="text"):
    """The family's pipeline with these nets of diffusers'."""
    unchecked = {} if kind in XL else dict(requires_safety_checker=False)
    parts = opened(kind)[0].components | dict(controlnet=nets if len(nets) > 1 else nets[0]) | unchecked
    made = PIPELINES[task][kind in XL](**parts)
    made.set_progress_bar_config(disable=True)
    return made


def ours(kind, control, **asked):
    given = dict(seed=list(SEEDS), noise_source="torch_cpu", decode=False, progress=False)
    return opened(kind)[1].generate(**ASKED | SIZE | given | asked, control=control).latents


def theirs(kind, nets, maps, task="text", **asked):
    named = {"image" if task == "text" else "control_image": maps}
    return channels_last(run(pipe(kind, nets, task), **dict(generator=generators()) | ASKED | SIZE | named | asked))


@pytest.mark.parametrize("kind", KINDS)
def test_one_net(kind):
    there, here = net(kind)
    want = theirs(kind, [there], MAPS, controlnet_conditioning_scale=0.7)
    assert relative(ours(kind, [(here, MAPS, 0.7)]), want) < TOLERANCE
    assert relative(ours(kind, []), want) > 100 * TOLERANCE
    assert relative(ours(kind, [(here, MAPS[::-1], 0.7)]), want) > 10 * TOLERANCE


@pytest.mark.parametrize("kind", KINDS)
def test_two_nets_in_parts_of_the_run(kind):
    (first, mine), (second, other) = net(kind), net(kind, seed=3, controlnet_conditioning_channel_order="bgr")
    places = dict(control_guidance_start=[0.0, 0.3], control_guidance_end=[0.5, 1.0])
    maps, asked = [list(pair) for pair in zip(MAPS, OTHERS, strict=True)], {}  # by picture, then by net
    if kind == "sdxl":  # where diffusers takes several nets for one picture alone
        maps, asked = maps[0], dict(prompt=PROMPTS[0], negative_prompt=NEGATIVES[0])
    own = dict(generator=generators()[0]) | asked if asked else {}
    want = theirs(kind, [first, second], maps, controlnet_conditioning_scale=[0.7, 0.4], **places, **own)
    given = dict(asked, seed=SEEDS[0]) if asked else {}
    looked = (MAPS[0], OTHERS[0]) if asked else (MAPS, OTHERS)
    control = [sdjax.Control(mine, looked[0], 0.7, end=0.5), sdjax.Control(other, looked[1], 0.4, start=0.3)]
    assert relative(ours(kind, control, **given), want) < TOLERANCE
    assert relative(ours(kind, [(mine, looked[0], 0.7), (other, looked[1], 0.4)], **given), want) > 10 * TOLERANCE


@pytest.mark.parametrize("sampler", ["heun", "pndm", "euler_ancestral"])
def test_places_count_the_evaluations_of_a_sampler(sampler):
    there, here = net("sd1")
    places = dict(control_guidance_start=0.2, control_guidance_end=0.7)
    want = theirs("sd1", [there], MAPS, sampler=sampler, **places)
    assert relative(ours("sd1", sdjax.Control(here, MAPS, start=0.2, end=0.7), sampler=sampler), want) < TOLERANCE


@pytest.mark.parametrize("kind", KINDS)
def test_guess_mode(kind):
    there, here = net(kind)
    want = theirs(kind, [there], MAPS, guess_mode=True)
    assert relative(ours(kind, sdjax.Control(here, MAPS, mode="guess")), want) < TOLERANCE
    assert relative(ours(kind, (here, MAPS)), want) > 10 * TOLERANCE


def test_a_net_that_is_pooled_is_a_guess():
    there, here = net("sd1", seed=4, global_pool_conditions=True)
    want = theirs("sd1", [there], MAPS)
    assert relative(ours("sd1", [(here, MAPS)]), want) < TOLERANCE
    assert relative(ours("sd1", sdjax.Control(here, MAPS, mode="balanced")), want) > 10 * TOLERANCE


@pytest.mark.parametrize("kind", KINDS)
def test_from_a_picture(kind):
    there, here = net(kind)
    asked = dict(image=PICTURES, strength=0.6)
    want = theirs(kind, [there], MAPS, "image", **asked, controlnet_conditioning_scale=0.8, control_guidance_end=0.5)
    assert relative(ours(kind, sdjax.Control(here, MAPS, 0.8, end=0.5), **asked), want) < TOLERANCE
    assert relative(ours(kind, sdjax.Control(here, MAPS, 0.8), **asked), want) > 10 * TOLERANCE


@pytest.mark.parametrize("kind", ["sd1", "sdxl", "inpainting", "inpainting_xl"])
def test_under_a_mask(kind):
    """Also where the U-Net has nine channels, of which the net sees the four of the latents."""
    there, here = net({"inpainting": "sd1", "inpainting_xl": "sdxl"}.get(kind, kind))
    asked = dict(image=PICTURES, mask=[painted(WIDTH, HEIGHT, (6, 4, 24, 20))] * 2, strength=0.8)
    want = theirs(kind, [there], MAPS, "inpaint", **asked, controlnet_conditioning_scale=0.9)
    assert relative(ours(kind, [(here, MAPS, 0.9)], **asked), want) < TOLERANCE


def test_what_is_hidden_is_minus_one():
    """A net for inpainting looks at the picture, whose hidden pixels are -1 (diffusers' make_inpaint_condition)."""
    there, here = net("sd1")
    shown = np.asarray(PICTURES[0], np.float32) / 255
    shown[4:20, 6:24] = -1
    tensor = torch.from_numpy(shown.transpose(2, 0, 1))[None]
    want = theirs("sd1", [there], torch.cat([tensor, tensor]))
    assert relative(ours("sd1", [(here, shown)]), want) < TOLERANCE


def test_with_a_refiner():
    there, here = net("sdxl")
    (_, sd), (refining, refiner) = opened("sdxl"), opened("refiner")
    cut = dict(control_guidance_start=0.1, control_guidance_end=0.6)
    draws = generators()
    asked = dict(ASKED, sampler="euler", generator=draws)
    latents = run(pipe("sdxl", [there]), image=MAPS, denoising_end=0.75, **asked | SIZE | cut)
    want = channels_last(run(refining, image=latents, denoising_start=0.75, **asked))
    given = dict(ASKED, sampler="euler", seed=list(SEEDS), noise_source="torch_cpu", decode=False, progress=False)
    control = sdjax.Control(here, MAPS, start=0.1, end=0.6)
    made = sd.generate(**given | SIZE, control=control, refiner=refiner, refiner_start=0.75)
    assert relative(made.latents, want) < TOLERANCE


def test_maps_of_another_size_are_resized_as_there():
    there, here = net("sd1")
    large, wide = picture(2 * HEIGHT, 2 * WIDTH, 9), picture(HEIGHT, 3 * WIDTH, 9)
    want = theirs("sd1", [there], [large, large])
    assert relative(ours("sd1", [(here, large)]), want) < TOLERANCE
    want = theirs("sd1", [there], [wide, wide])
    assert relative(ours("sd1", sdjax.Control(here, wide, resize="stretch")), want) < TOLERANCE
    with pytest.raises(ValueError, match="another shape"):
        ours("sd1", [(here, wide)])
