"""Whole runs with a ControlNet-Union and with T2I-Adapters against diffusers: 8 guided steps, latents compared."""

import functools
import tempfile
from pathlib import Path

import diffusers
import pytest

import sdjax
from tests import control_nets
from tests.parity import families
from tests.parity.families import FACTOR, channels_last, opened, relative, run
from tests.parity.from_picture import generators, picture
from tests.parity.test_control import ASKED, MAPS, OTHERS, SIZE, TOLERANCE, ours

# Four levels, as Stable Diffusion 1.x has them, and a VAE that halves once: what T2I-Adapters are made for.
DEEP = families.SD_UNET | dict(
    block_out_channels=(8, 16, 24, 24),
    down_block_types=(families.CROSS,) * 3 + (families.PLAIN,),
    up_block_types=(families.UP_PLAIN,) + (families.UP_CROSS,) * 3,
)


@pytest.fixture(scope="module", autouse=True)
def quick_compiles():
    with families.quick_compiles():
        yield


@pytest.fixture(scope="module", autouse=True)
def deep():
    """One more family, for this file."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(families.UNETS, "deep", DEEP)
        patch.setitem(families.SCHEDULERS, "deep", families.SCHEDULERS["sd1"])
        patch.setitem(families._PIPELINES, "deep", families._PIPELINES["sd1"])
        yield


def unet(kind):
    return {"norm_num_groups": 4, **families.UNETS[kind]}


# ---------------------------------------------------------------------- Union


@functools.cache
def union(types=6):
    folder = Path(tempfile.mkdtemp()) / "union"
    control_nets.write_net(folder, control_nets.union_config(unet("sdxl"), types, FACTOR))
    return diffusers.ControlNetUnionModel.from_pretrained(folder), sdjax.load_controlnet(folder)


def their_union(net, maps, modes, **asked):
    parts = opened("sdxl")[0].components | dict(controlnet=net)
    made = diffusers.StableDiffusionXLControlNetUnionPipeline(**parts)
    made.set_progress_bar_config(disable=True)
    given = ASKED | SIZE | dict(prompt=ASKED["prompt"][0], negative_prompt=ASKED["negative_prompt"][0])
    images = run(made, control_image=maps, control_mode=modes, generator=generators()[0], **given, **asked)
    return channels_last(images)


def our_union(control, **asked):
    given = dict(prompt=ASKED["prompt"][0], negative_prompt=ASKED["negative_prompt"][0], seed=3)
    return ours("sdxl", control, **given, **asked)


@pytest.mark.parametrize("types, mode, name", [(6, 0, "openpose"), (6, 3, "canny"), (8, 6, "tile"), (8, 7, "inpaint")])
def test_a_union_with_one_map(types, mode, name):
    there, here = union(types)
    want = their_union(there, [MAPS[0]], [mode], controlnet_conditioning_scale=0.6, control_guidance_end=0.7)
    got = our_union(sdjax.Control(here, MAPS[0], 0.6, end=0.7, mode=name))
    assert relative(got, want) < TOLERANCE
    assert relative(our_union(sdjax.Control(here, {name: MAPS[0]}, 0.6, end=0.7)), want) < TOLERANCE
    other = "depth" if name != "depth" else "canny"
    assert relative(our_union(sdjax.Control(here, {other: MAPS[0]}, 0.6, end=0.7)), want) > 10 * TOLERANCE


@pytest.mark.parametrize("scale", [1.0, 0.5])
def test_a_union_with_several_maps(scale):
    there, here = union()
    want = their_union(there, [MAPS[0], OTHERS[0]], [1, 3], controlnet_conditioning_scale=[scale, 0.8])
    control = sdjax.Control(here, {"depth": MAPS[0], "canny": OTHERS[0]}, {"depth": scale, "canny": 0.8})
    assert relative(our_union(control), want) < TOLERANCE


def test_a_union_in_guess_mode():
    there, here = union()
    want = their_union(there, [MAPS[0]], [3], guess_mode=True)
    assert relative(our_union(sdjax.Control(here, MAPS[0], mode=["canny", "guess"])), want) < TOLERANCE


# ---------------------------------------------------------------------- T2I-Adapter


@functools.cache
def adapter(kind, seed=0, **more):
    factor = 4 if kind == "sdxl" else 2
    folder = Path(tempfile.mkdtemp()) / "t2i"
    config = control_nets.t2i_config(unet(kind), downscale_factor=factor, **more)
    control_nets.write_net(folder, config, seed)
    return diffusers.T2IAdapter.from_pretrained(folder), sdjax.load_controlnet(folder)


def theirs(kind, net, image, **asked):
    xl = kind == "sdxl"
    unchecked = {} if xl else dict(requires_safety_checker=False)
    parts = {name: part for name, part in opened(kind)[0].components.items() if xl or name != "image_encoder"}
    made = (diffusers.StableDiffusionXLAdapterPipeline if xl else diffusers.StableDiffusionAdapterPipeline)(
        **parts, adapter=net, **unchecked
    )
    made.set_progress_bar_config(disable=True)
    return channels_last(run(made, image=image, **dict(generator=generators()) | ASKED | SIZE | asked))


@pytest.mark.parametrize("kind", ["deep", "sdxl"])
def test_one_adapter(kind):
    there, here = adapter(kind)
    want = theirs(kind, there, MAPS, adapter_conditioning_scale=0.7)
    assert relative(ours(kind, [(here, MAPS, 0.7)]), want) < TOLERANCE
    assert relative(ours(kind, []), want) > 10 * TOLERANCE


def test_a_light_adapter_of_drawings():
    there, here = adapter("deep", adapter_type="light_adapter", channels=[8, 16, 24], in_channels=1)
    maps = [one.convert("L") for one in MAPS]
    want = theirs("deep", there, maps, adapter_conditioning_scale=0.7)
    assert relative(ours("deep", [(here, maps, 0.7)]), want) < TOLERANCE
    assert relative(ours("deep", [(here, MAPS, 0.7)]), want) < 0.05  # of colours as grey as PIL makes them


def test_an_adapter_in_a_part_of_the_run():
    there, here = adapter("sdxl")
    want = theirs("sdxl", there, MAPS, adapter_conditioning_factor=0.6)
    assert relative(ours("sdxl", sdjax.Control(here, MAPS, end=0.6)), want) < TOLERANCE


def test_two_adapters():
    (first, mine), (second, other) = adapter("deep"), adapter("deep", seed=2)
    both = diffusers.MultiAdapter([first, second])
    # diffusers takes pictures by adapter and one for each prompt as a batch of one
    want = theirs("deep", both, [MAPS[0], OTHERS[0]], adapter_conditioning_scale=[0.7, 0.4], prompt=ASKED["prompt"][0],
                  negative_prompt=ASKED["negative_prompt"][0], generator=generators()[0])  # fmt: skip
    given = dict(prompt=ASKED["prompt"][0], negative_prompt=ASKED["negative_prompt"][0], seed=3)
    assert relative(ours("deep", [(mine, MAPS[0], 0.7), (other, OTHERS[0], 0.4)], **given), want) < TOLERANCE


def test_a_size_that_no_level_divides():
    """Rounded up, on all levels, as the U-Net's are."""
    there, here = adapter("deep")
    size = dict(height=10 * FACTOR, width=17 * FACTOR)
    maps = [picture(**size, seed=seed) for seed in (1, 2)]
    want = theirs("deep", there, maps, **size)
    assert relative(ours("deep", [(here, maps)], **size), want) < TOLERANCE
