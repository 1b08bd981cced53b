"""The doors of control: what is odd is either what was meant or one message, told before anything runs."""

import json

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save_file

import sdjax
from sdjax.images import control_map, maps
from tests import checkpoints, control_nets, image_prompts

SIZE = {"height": 16, "width": 16}
# Three levels of which the first has no attention, as SDXL's, and 8 pixels to a latent.
DEEP = checkpoints.UNET | {
    "block_out_channels": [8, 16, 16],
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
}
FOUR = {
    "block_out_channels": [8] * 4,
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
}
SITE = "mid_block_attentions_0_transformer_blocks_0_attn1_to_v"


def drawn(seed, size=(16, 16)):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (*size, 3), np.uint8))


MAP = drawn(0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("doors")


@pytest.fixture(scope="module")
def sd(folder):
    return sdjax.load(checkpoints.make_checkpoint(folder / "tiny", dtype=np.float32))


@pytest.fixture(scope="module")
def deep(folder):
    return sdjax.load(checkpoints.make_checkpoint(folder / "deep", unet=DEEP, vae=FOUR))


@pytest.fixture(scope="module")
def net(folder):
    config = control_nets.controlnet_config(checkpoints.UNET, checkpoints.FACTOR)
    return sdjax.load_controlnet(control_nets.write_net(folder / "net", config))


@pytest.fixture(scope="module")
def ip(sd, folder):
    return sdjax.load_image_prompt(image_prompts.write_image_prompt(folder / "ip", sd.params["unet"]))


@pytest.fixture(scope="module")
def union(folder):
    """For the tiny U-Net, which is told no sizes: it is asked for here, and not run."""
    config = control_nets.union_config(checkpoints.UNET, factor=checkpoints.FACTOR, addition_time_embed_dim=8)
    return sdjax.load_controlnet(control_nets.write_net(folder / "union", config))


def asked(sd, net, **given):
    return sd.request("a red circle", steps=4, control=sdjax.Control(net, **{"image": MAP, **given}), **SIZE)


def refused(message, call, *args, **named):
    with pytest.raises(ValueError, match=message) as told:
        call(*args, **named)
    assert "\n" not in str(told.value)


# ---------------------------------------------------------------------- numbers


@pytest.mark.parametrize("of", [np.float32, np.float16, np.array, jnp.float32, lambda one: jnp.array([one])])
def test_numbers_of_every_kind(sd, net, ip, of):
    """NumPy's and JAX's numbers, and arrays of one, are numbers."""
    wanted, other = asked(sd, net, scale=0.5, start=0.25, end=0.75), asked(sd, net)
    made = asked(sd, net, scale=of(0.5), start=of(0.25), end=of(0.75))
    assert np.array_equal(made.steering.control[0].along, wanted.steering.control[0].along)
    assert not np.array_equal(made.steering.control[0].along, other.steering.control[0].along)
    prompt = sd.request("", steps=4, image_prompt=sdjax.ImagePrompt(ip, MAP, of(0.5), start=of(0.25)))
    assert (prompt.steering.image_prompts[0].weights == 0.5).all()
    assert sd.request("", image_prompt=[(ip, MAP, of(-0.5))]).steering.image_prompts[0].said[0].endswith(":-0.5")


@pytest.mark.parametrize("scale", [10**400, -(10**400), 1e39, 1e300])
def test_numbers_beyond_a_float(sd, net, ip, scale):
    refused(r"control\[0\] \(net\): scale must be a finite number, not", asked, sd, net, scale=scale)
    refused("scale must be a finite number", asked, sd, net, scale=[scale])
    refused("each of weights must be a finite number", asked, sd, net, weights=[scale] * 5)
    refused(r"image_prompt\[0\].*finite", sd.request, "", image_prompt=[(ip, MAP, scale)])
    refused(r"\(net\): scales hold NaN or infinite numbers", asked, sd, net, scale=[[1e300]] * 4)


@pytest.mark.parametrize("scale", [[[1, 2], [3]], [0.5, [0.5]], [["a"]]])
def test_scales_that_are_no_table(sd, net, ip, scale):
    refused(r"control\[0\] \(net\): scales must be an array of numbers", asked, sd, net, scale=scale)
    refused(r"image_prompt\[0\] .*: scales must be an array", sd.request, "", image_prompt=[(ip, MAP, scale)])


@pytest.mark.parametrize("mode", [True, 0, 1.5, b"guess", {}, [None], [["guess"]], np.array(["x"]), object()])
def test_modes_that_are_none(sd, net, mode):
    refused("mode must be one of balanced, guess, prompt, control, not|mode 'x' is unknown", asked, sd, net, mode=mode)


@pytest.mark.parametrize("resize", [np.zeros((4, 1)), ["crop"], 3, True])
def test_resizes_that_are_none(sd, net, resize):
    refused("resize .*unknown", asked, sd, net, resize=resize)


def test_a_strength_of_nothing_divides_by_nothing(sd, net, recwarn):
    for preset in (None, "a1111"):
        control = sdjax.Control(net, MAP, start=0.2, end=0.7)
        sd.request("", image=MAP, strength=0.0, control=control, preset=preset)
    assert not [one for one in recwarn if issubclass(one.category, RuntimeWarning)]


# ---------------------------------------------------------------------- maps and masks


@pytest.mark.parametrize("array", [np.zeros((2, 16, 18, 3), np.float32), np.zeros((2, 16, 18, 3), np.uint8),
                                   jnp.zeros((2, 16, 18, 3))])  # fmt: skip
def test_an_array_of_maps_is_one_for_each_picture(sd, net, array):
    request = sd.request(["a", "a"], control=[(net, array)])
    assert (request.height, request.width) == (16, 18)
    assert request.steering.control[0].images.shape == (2, 1, 16, 18, 3)


@pytest.mark.parametrize("given", [[], None, ()])
def test_no_map_and_no_size(sd, net, given):
    refused(r"control\[0\]: there is no map; give a picture", sd.request, "", control=[(net, given)])


def test_a_map_too_small_is_named(sd, net):
    refused(r"control\[0\]: a map of 1 x 1 pixels is smaller", sd.request, "", control=[(net, drawn(0, (1, 1)))])


def test_a_long_map(sd, net):
    """One pixel high: it fits into a picture with one row, and is not enlarged by a million to be cut."""
    made = control_map.fitted(np.ones((1, 4096, 3), np.float32), (16, 16), 3, "fill", 8, "map")
    assert made.shape == (16, 16, 3) and (made == 1).all()
    long = np.zeros((1, 10_000_000), np.uint8)
    refused(r"control\[0\] \(net\) is 10000000 x 1, too long to be cut to 16 x 16", asked, sd, net, image=long,
            resize="crop")  # fmt: skip


def test_a_mask_lies_on_the_picture_of_which_a_part_is_cut(sd, net, ip):
    """A box of a picture of 32 pixels means another place in a mask of 16."""
    picture, painted, mask = drawn(3, (32, 32)), Image.new("L", (32, 32)), Image.new("L", (16, 16), 255)
    painted.paste(255, (4, 4, 12, 12))
    part = {"image": picture, "mask": painted, "mask_crop": 4, **SIZE}
    message = "mask is 16 x 16 and the picture 32 x 32, of which mask_crop takes a part: give one of the whole picture"
    refused(message, sd.request, "", control=sdjax.Control(net, picture, mask=mask), **part)
    refused(message, sd.request, "", image_prompt=sdjax.ImagePrompt(ip, MAP, mask=mask), **part)
    whole = sdjax.Control(net, picture, mask=mask.resize((32, 32)))
    assert sd.request("", control=whole, **part).steering.control[0].masks["64"].all()


def test_pictures_shown_together_are_as_many_for_each(sd, ip):
    shown = [(MAP, MAP), MAP]
    refused(r"image_prompt\[0\] .*shows 2 and 1 pictures together", sd.request, ["a", "b"], image_prompt=[(ip, shown)])
    assert len(sd.request(["a", "b"], image_prompt=[(ip, [(MAP, MAP)] * 2)]).steering.image_prompts[0].images) == 2


def test_two_paths_are_a_net_and_its_map(sd, net, folder):
    MAP.save(folder / "map.png")
    request = sd.request("", control=(str(folder / "net"), str(folder / "map.png")))
    assert np.array_equal(request.steering.control[0].images[0, 0], np.asarray(MAP, np.float32) / 255)


def test_too_many_people(tmp_path):
    body = {"pose_keypoints_2d": [5, 5, 1] * 18}
    path = tmp_path / "pose.json"
    path.write_text(json.dumps({"people": [body] * 1001, "canvas_width": 64, "canvas_height": 64}))
    refused("pose.json has 1,001 people, and at most 1,000 are drawn", maps.make, "openpose", path)


# ---------------------------------------------------------------------- nets of other sizes


def test_a_net_for_other_pixels_to_a_latent(sd, folder):
    config = control_nets.controlnet_config(checkpoints.UNET, 8)
    other = sdjax.load_controlnet(control_nets.write_net(folder / "eight", config))
    refused(r"control\[0\] \(eight\) is for models of 8 pixels to a latent, each way, and this one has 2", asked, sd,
            other)  # fmt: skip


def test_sizes_that_a_map_cannot_be_cut_into(deep, folder):
    """Those that the net itself would fail at, in the middle of a run."""
    t2i = sdjax.load_controlnet(control_nets.write_net(folder / "t2i", control_nets.t2i_config(DEEP)))
    save_file(control_nets.lllite_tensors({SITE: (3, 16)}), folder / "lll.safetensors")
    lllite = sdjax.load_controlnet(folder / "lll.safetensors")
    run = {"steps": 2, "progress": False, "decode": False, "width": 64}
    for one, multiple, height in ((t2i, 16, 80), (lllite, 32, 96)):
        message = f"needs a height and width that are multiples of {multiple}, and this picture is 64 x 72"
        refused(message, deep.request, "a red circle", control=[(one, drawn(0, (72, 64)))])
        base = deep.generate("a red circle", height=height, **run).latents
        steered = deep.generate("a red circle", height=height, control=[(one, drawn(0, (height, 64)))], **run).latents
        assert np.isfinite(steered).all() and not np.array_equal(steered, base)


def test_a_t2i_adapter_for_a_first_level_with_attention(folder):
    """Features of the same widths, and added elsewhere."""
    xl = sdjax.load_controlnet(control_nets.write_net(folder / "xl", control_nets.t2i_config(DEEP)))
    attends = sdjax.config.UNetConfig.from_dict(
        DEEP | {"down_block_types": ["CrossAttnDownBlock2D"] * 3, "up_block_types": ["CrossAttnUpBlock2D"] * 3}
    )
    refused("the first without attention, and mine has .*, the first with attention", xl.check, attends, {}, "mine")
    xl.check(sdjax.config.UNetConfig.from_dict(DEEP), {}, "mine")


def test_what_differs_is_said(net):
    """A U-Net of the same widths and levels, distilled to have no middle."""
    unet = sdjax.config.UNetConfig.from_dict(checkpoints.UNET | {"mid_block_type": None})
    refused("channels 8, 16.*, a middle, and mine is .*, no middle: take one", net.check, unet, {}, "mine")


# ---------------------------------------------------------------------- a Union's maps


@pytest.mark.parametrize(
    "given, message",
    [
        ({"image": {"depth": MAP, "canny": MAP}, "scale": {"cany": 0.5}}, "scale of 'cany', which .*nearest: 'canny'"),
        ({"image": {"depth": MAP}, "scale": {"canny": 0.5}}, "scale of 'canny', which image= does not have"),
        ({"image": {"depth": MAP}, "mode": "canny"}, "and mode='canny' does too; leave out the last"),
        ({"image": {"depth": MAP, "canny": MAP}, "scale": 10**400}, "scale must be a finite number"),
    ],
)  # fmt: skip
def test_a_mistake_in_a_unions_maps(sd, union, given, message):
    refused(message, asked, sd, union, **given)


def test_a_union_is_as_strong_as_its_strongest_map(sd, union):
    """Where none enters it does not act at all, though it would add something of its own."""
    both = {"depth": MAP, "canny": MAP}
    control = sdjax.Control(union, both, {"depth": [0.5, 0.0], "canny": [-0.8, 0.0]})
    steered = sd.request(["a", "b"], control=control, **SIZE).steering.control[0]
    assert (steered.along[:, 1] == 0).all() and (steered.along[:-1, 0] == 1).all()
    assert [one.split(":")[1] for one in steered.said] == ["-0.8", "0"]
    assert asked(sd, union, image=both, scale=0).steering.control[0].idle
    one = asked(sd, union, image={"depth": MAP}, scale={"depth": 0.5}).steering.control[0]
    assert one.along.max() == 0.5 and one.kinds.scales.tolist() == [[1.0]]
