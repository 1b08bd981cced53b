"""Control networks and image prompts in a call: each picture its own, in one program, and what is told of mistakes."""

import json
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

import sdjax
from sdjax.adapters.control.weights import Weights
from sdjax.config.controlnet import ControlNetConfig
from sdjax.config.presets import PRESETS
from sdjax.request import steered
from sdjax.request.steered import Course
from sdjax.runtime import programs
from tests import adapters, checkpoints, control_nets, image_prompts

RUN = {"steps": 4, "progress": False, "decode": False}
PROMPTS = ["a red circle", "a blue square above a red circle", "a large green circle"]


def drawn(seed, size=(16, 16)):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (*size, 3), np.uint8))


def painted(box, size=(16, 16)):
    """A mask: white inside a box (left, top, right, bottom)."""
    made = Image.new("L", size)
    made.paste(255, box)
    return made


MAPS, SHOWN = [drawn(i) for i in range(3)], [drawn(10 + i, (40, 30)) for i in range(3)]
WHITE, BLACK = painted((0, 0, 16, 16)), painted((0, 0, 0, 0))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("control")


@pytest.fixture(scope="module")
def sd(folder):
    return sdjax.load(checkpoints.make_checkpoint(folder / "tiny", dtype=np.float32))


@pytest.fixture(scope="module")
def config(sd, folder):
    return control_nets.controlnet_config(json.loads((folder / "tiny/unet/config.json").read_text()), sd.vae.factor)


@pytest.fixture(scope="module")
def net(folder, config):
    return sdjax.load_controlnet(control_nets.write_net(folder / "net", config))


@pytest.fixture(scope="module")
def other(folder, config):
    return sdjax.load_controlnet(control_nets.write_net(folder / "other", config, seed=1))


@pytest.fixture(scope="module")
def ip(sd, folder):
    return sdjax.load_image_prompt(image_prompts.write_image_prompt(folder / "ip", sd.params["unet"]))


@pytest.fixture(scope="module")
def base(sd):
    return sd.generate(PROMPTS, **RUN).latents


def apart(a, b):
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))


def control_of(net, other):
    """Two nets of three pictures."""
    return [
        sdjax.Control(net, MAPS, scale=[0.5, 0.0, 1.0], end=[1.0, 1.0, 0.5]),
        sdjax.Control(other, MAPS[::-1], scale=[0.0, 0.7, 0.3], start=[0, 0.5, 0]),
    ]


@pytest.fixture(scope="module")
def batch(sd, net, other, ip):
    shown = [sdjax.ImagePrompt(ip, SHOWN, scale=[0.5, 0.8, 0.0])]
    return sd.generate(PROMPTS, control=control_of(net, other), image_prompt=shown, **RUN)


# ---------------------------------------------------------------------- each picture its own


@pytest.mark.parametrize("i", range(3))
def test_a_picture_is_the_same_alone(sd, net, other, ip, batch, base, i):
    own = [
        replace(one, **{name: getattr(one, name)[i] if isinstance(getattr(one, name), list) else getattr(one, name)
                        for name in ("image", "scale", "start", "end")})
        for one in control_of(net, other)
    ]  # fmt: skip
    shown = [(ip, SHOWN[i], [0.5, 0.8, 0.0][i])]
    alone = sd.generate(PROMPTS[i], control=own, image_prompt=shown, first_image=i, **RUN).latents[0]
    assert np.array_equal(alone, batch.latents[i])
    assert apart(alone, base[i]) > 1e-3


def test_scale_0_is_the_base(sd, net, ip, base):
    made = sd.generate(PROMPTS, control=[(net, MAPS, 0.0)], image_prompt=[(ip, SHOWN[0], 0)], **RUN).latents
    assert np.array_equal(made, base)


def test_a_net_that_no_row_wants_does_not_run(sd, net, base):
    """Its numbers overflow: what ran, and was multiplied by 0, would be no number."""
    huge = Weights({path: np.full(leaf.shape, 1e30, np.float32) for path, leaf in net.weights.whole.items()}, {}, {})
    wild = replace(net, weights=huge)
    assert np.array_equal(sd.generate(PROMPTS, control=[(wild, MAPS, 0)], **RUN).latents, base)
    with pytest.warns(UserWarning, match="NaN"):
        assert not np.isfinite(sd.generate(PROMPTS, control=[(wild, MAPS, 0.1)], **RUN).latents).all()


def test_one_compilation(sd, net, other, ip):
    """Maps, scales, places, modes, masks, weights, prompts, steps and samplers are data."""
    counted = (programs.run_rows, programs.look, programs.precompute_kv, programs.encode_prompt_image)

    def made(first, second, picture, **asked):
        asked = {**RUN, **asked}
        return sd.generate("a red circle", control=[first, second], image_prompt=[picture], **asked).latents

    results = [made((net, MAPS[0]), (other, MAPS[1]), (ip, SHOWN[0]))]
    before = [program._cache_size() for program in counted]
    results += [
        made((net, MAPS[1], 0.3), (other, MAPS[1], 2), (ip, SHOWN[1], 0.1)),
        made(sdjax.Control(net, MAPS[2], mode="guess"), sdjax.Control(other, MAPS[0], start=0.5), (ip, SHOWN[2], -1)),
        made(sdjax.Control(net, MAPS[2], weights="soft"), sdjax.Control(other, MAPS[0], end=0.3), (ip, SHOWN[2])),
        made(
            sdjax.Control(net, MAPS[2], mask=painted((0, 0, 8, 16))),
            sdjax.Control(other, MAPS[0], mode="prompt"),
            sdjax.ImagePrompt(ip, SHOWN[0], {"down": {"block_0": [0.3]}}, mask=painted((8, 0, 16, 16))),
        ),
        made((net, MAPS[1]), (other, MAPS[1]), (ip, SHOWN[1]), steps=9, sampler="euler", seed=3, guidance_scale=2.0),
    ]
    assert [program._cache_size() for program in counted] == before
    assert len({one.tobytes() for one in results}) == len(results)


def test_a_strength_for_each_evaluation(sd, net):
    asked = {**RUN, "sampler": "euler"}
    by_row = np.array([[0.7, 0.7], [0.7, 0.7], [0, 0.2], [0, 0]])
    made = sd.generate(PROMPTS[:2], control=[(net, MAPS[0], by_row)], **asked).latents
    half = sd.generate(PROMPTS[:1], control=sdjax.Control(net, MAPS[0], 0.7, end=0.5), **asked).latents
    assert np.array_equal(made[:1], half)
    with pytest.raises(ValueError, match=r"scale as an array must be \[evaluations, pictures\], .* 4 evaluations"):
        sd.generate(PROMPTS[:2], control=[(net, MAPS[0], by_row[:3])], **asked)


def test_where_a_mask_is_white(sd, net, ip, base):
    for asked in (
        lambda mask: {"control": sdjax.Control(net, MAPS[0], 0.7, mask=mask)},
        lambda mask: {"image_prompt": sdjax.ImagePrompt(ip, SHOWN[0], 0.7, mask=mask)},
    ):
        whole, white, left = (
            sd.generate(PROMPTS, **asked(mask), **RUN).latents for mask in (None, WHITE, painted((0, 0, 8, 16)))
        )
        assert np.array_equal(whole, white)
        assert apart(left, whole) > 1e-4 and apart(left, base) > 1e-4


def test_guidance_is_steered_on_both_sides_or_one(sd, net):
    kept, guess = (
        sd.generate("a red circle", control=sdjax.Control(net, MAPS[0], mode=mode, weights=[1.0] * net.outputs), **RUN)
        for mode in ("balanced", "guess")
    )
    assert apart(kept.latents, guess.latents) > 1e-3
    alone = [
        sd.generate("a red circle", control=sdjax.Control(net, MAPS[0], mode=mode), guidance_scale=1.0, **RUN).latents
        for mode in ("control", "prompt")
    ]
    assert np.array_equal(*alone)  # the same weights, and there is no other side


def test_several_things_at_once(sd, net, ip, folder):
    """A LoRA, regions, a picture under a mask, a control net and an image prompt; each of them is seen."""
    lora = adapters.written(folder / "style.safetensors", adapters.whole_lora(sd.params, 4, 1))
    whole = {
        "adapters": [(lora, 0.8)],
        "control": [(net, MAPS[0], 0.6)],
        "image_prompt": [(ip, SHOWN[0], 0.6)],
        "regions": [("a blue square", painted((8, 0, 16, 16)))],
        "image": drawn(5),
        "mask": painted((2, 2, 14, 14)),
        "strength": 0.9,
    }
    made = sd.generate("a red circle", **whole, **RUN).latents
    for name in ("adapters", "control", "image_prompt", "regions"):
        less = {key: value for key, value in whole.items() if key != name}
        assert apart(sd.generate("a red circle", **less, **RUN).latents, made) > 1e-5, name


def test_only_what_is_masked_takes_the_same_part_of_the_map(sd, net):
    """mask_crop works on a box; the map is cut to it, as the picture is."""
    picture, whole, mask = drawn(5, (32, 32)), drawn(6, (32, 32)), painted((4, 4, 12, 12), (32, 32))
    asked = {**RUN, "image": picture, "mask": mask, "mask_crop": 4, "height": 16, "width": 16}
    made = sd.generate("a red circle", control=[(net, whole)], **asked).latents
    elsewhere = whole.copy()
    elsewhere.paste(255, (16, 16, 32, 32))  # far from the box
    assert np.array_equal(sd.generate("a red circle", control=[(net, elsewhere)], **asked).latents, made)
    whole.paste(255, (4, 4, 12, 12))
    assert not np.array_equal(sd.generate("a red circle", control=[(net, whole)], **asked).latents, made)
    with pytest.raises(ValueError, match="of which mask_crop takes a part: give one of the whole picture"):
        sd.generate("a red circle", control=[(net, MAPS[0])], **asked)


def test_without_a_size_the_picture_is_as_large_as_its_map(sd, net):
    made = sd.generate("a red circle", control=[(net, drawn(0, (24, 32)))], **RUN)
    assert (made.settings["height"], made.settings["width"]) == (24, 32)


def test_sixteen_bits(sd, folder, net, ip, batch, other):
    narrow = sdjax.load(folder / "tiny", dtype="bfloat16")
    shown = [sdjax.ImagePrompt(ip, SHOWN, scale=[0.5, 0.8, 0.0])]
    made = narrow.generate(PROMPTS, control=control_of(net, other), image_prompt=shown, **RUN).latents
    assert 0 < apart(made, batch.latents) < 0.05


# ---------------------------------------------------------------------- where in a run, as three programs count


def course(sd, preset, sampler="euler", steps=10, **cut):
    asked = sd.request("a red circle", sampler=sampler, steps=steps, preset=preset, **cut)
    return Course(asked.runs[0], preset, asked.inputs.begun), asked.runs[0].plan


@pytest.mark.parametrize("sampler", ["euler", "heun", "pndm", "dpmpp_2m"])
@pytest.mark.parametrize("start, end", [(0.0, 0.5), (0.3, 1.0), (0.25, 0.75), (0.05, 0.1), (1.0, 1.0), (0.0, 0.0)])
def test_diffusers_counts_evaluations(sd, sampler, start, end):
    own, plan = course(sd, None, sampler)
    n = plan.evaluations
    keep = [1.0 - float(i / n < start or (i + 1) / n > end) for i in range(n)]  # its controlnet_keep
    assert own.acting(start, end, sd.spec)[plan.evaluate].tolist() == keep


@pytest.mark.parametrize("sampler, each", [("euler", 1), ("heun", 2)])
def test_a1111_counts_steps(sd, sampler, each):
    own, plan = course(sd, "a1111", sampler)
    for start, end in ((0.0, 0.5), (0.3, 1.0), (0.25, 0.75)):
        keep = [not (i // each / 10 < start or i // each / 10 > end) for i in range(plan.evaluations)]
        assert own.acting(start, end, sd.spec)[plan.evaluate].astype(bool).tolist() == keep


@pytest.mark.parametrize("schedule", [None, "karras"])
def test_comfy_counts_levels(sd, schedule):
    own, plan = course(sd, "comfy", schedule=schedule)
    ve = np.sqrt((1 - sd.alphas_cumprod) / sd.alphas_cumprod)
    levels = (plan.sigma[:-1] / plan.alpha[:-1])[plan.evaluate]
    for start, end in ((0.2, 0.6), (0.0, 0.4), (0.5, 1.0)):
        # of whole training steps, where no interpolation is needed
        most = np.inf if start == 0 else np.exp(np.interp((1 - start) * 999, range(1000), np.log(ve)))
        least = 0.0 if end == 1 else np.exp(np.interp((1 - end) * 999, range(1000), np.log(ve)))
        keep = (levels <= most) & (levels >= least)
        assert own.acting(start, end, sd.spec)[plan.evaluate].astype(bool).tolist() == keep.tolist()
        assert 0 < keep.sum() < len(keep)


def test_a_run_from_a_picture_counts_from_there_and_a_part_counts_the_whole(sd):
    begun, plan = course(sd, None, image=drawn(0), strength=0.5)
    assert plan.evaluations == 5
    assert begun.acting(0.0, 0.4, sd.spec)[plan.evaluate].tolist() == [1, 1, 0, 0, 0]
    latents = np.zeros((1, 8, 8, 4), np.float32)
    rest, plan = course(sd, None, denoising_start=0.5, latents=latents)
    assert plan.evaluations == 5
    assert rest.acting(0.0, 0.7, sd.spec)[plan.evaluate].tolist() == [1, 1, 0, 0, 0]


# ---------------------------------------------------------------------- how strongly


def test_weights_of_modes(net):
    guess = steered.weights_of(net, "guess", None, "net")
    n = net.outputs
    assert np.allclose(guess, [10 ** (j / (n - 1) - 1) for j in range(n)]) and guess[-1] == 1
    soft = steered.weights_of(net, "prompt", None, "net")
    assert np.allclose(soft, [0.825 ** (12 - j) for j in range(n)])
    assert np.array_equal(steered.weights_of(net, "control", None, "net"), soft)
    assert np.array_equal(steered.weights_of(net, "balanced", "soft", "net"), soft)
    assert steered.weights_of(net, "balanced", None, "net").tolist() == [1.0] * n
    assert steered.weights_of(net, "guess", list(range(n)), "net").tolist() == list(range(n))


def test_weights_of_full_size(net):
    """The 13 of Stable Diffusion 1.x, as ADAPTERS has them: 0.099414 .. 0.825, 1, and diffusers' 0.1 .. 1."""
    config = ControlNetConfig.from_dict(control_nets.controlnet_config(PRESETS["sd15"].configs["unet"]))
    prompt, guess = (steered.weights_of(replace(net, config=config), mode, None, "") for mode in ("prompt", "guess"))
    assert np.allclose(prompt[[0, 1, 11, 12]], [0.099414, 0.120502, 0.825, 1], atol=1e-6)
    assert np.allclose(guess[[1, 2, 6]], [0.121153, 0.146780, 0.316228], atol=1e-6)


# ---------------------------------------------------------------------- what settings say


def test_settings_name_the_net_and_not_its_picture(sd, net, ip):
    made = sd.generate(PROMPTS[:2], control=[(net, MAPS[0], [0.5, 1.0])], image_prompt=[(ip, SHOWN[0])], **RUN)
    said = [f"net ({net.short_hash}):0.5", f"net ({net.short_hash}):1"]
    assert made.settings["control"] == said
    assert made.settings["image_prompt"] == f"ip-adapter ({ip.short_hash}):1"
    with pytest.raises(ValueError, match=r"steered by .*net.*: give the net and its picture again, as control=\["):
        sd.generate(**made.settings)
    assert "control" not in sd.generate(PROMPTS[:1], **RUN).settings


# ---------------------------------------------------------------------- mistakes


def alpha():
    made = drawn(0).convert("RGBA")
    made.putalpha(128)
    return made


@pytest.mark.parametrize(
    "given, message",
    [
        ({"scale": float("nan")}, r"control\[0\] \(net\): scale must be a finite number, not nan"),
        ({"scale": "much"}, "scale must be a finite number, not 'much'"),
        ({"scale": [1.0, 2.0]}, "scale has 2 entries for 1 pictures"),
        ({"start": 0.8, "end": 0.2}, "start 0.8 comes after end 0.2"),
        ({"start": -0.1}, "start must be a place in the run from 0 to 1, not -0.1"),
        ({"end": float("nan")}, "end must be a place in the run from 0 to 1, not nan"),
        ({"mode": "gues"}, "mode 'gues' is unknown; nearest: 'guess'"),
        ({"mode": ["guess", "prompt"]}, "mode names 'guess' and 'prompt', of which one alone can be meant"),
        ({"weights": [1, 2]}, "weights must be 5 numbers, one for each of what this net adds, not 2"),
        ({"weights": "hard"}, "weights 'hard' are unknown; nearest: 'soft'"),
        ({"resize": "strech", "image": drawn(0, (16, 32))}, "resize 'strech' is unknown; nearest: 'stretch'"),
        ({"image": drawn(0, (16, 32))}, "is 32 x 16 and the picture 16 x 16, which is another shape: give resize="),
        ({"image": alpha()}, "is partly transparent, and what lies under it is not known"),
        ({"image": drawn(0).convert("CMYK")}, r"is in inks \(CMYK\)"),
        ({"image": None}, "the map is None"),
        ({"image": np.full((16, 16, 3), 2.0, np.float32)}, "must lie between 0 and 1, or be -1 where it is hidden"),
        ({"image": np.full((16, 16, 3), np.nan, np.float32)}, "must lie between 0 and 1"),
        ({"image": np.zeros((16, 16, 2), np.float32)}, "has 2 channels, and this net looks at 3"),
        ({"image": {"depth": drawn(0)}}, "looks at one map, and image= names several kinds"),
        ({"image": [drawn(0)] * 2}, "has 2 entries for 1 pictures"),
        ({"image": "/nowhere.png"}, "there is no such picture"),
        ({"mask": "/nowhere.png"}, "there is no such picture"),
        ({"mask": drawn(0).convert("L").point(lambda v: v > 0)}, "holds nothing above 1"),
    ],
)  # fmt: skip
def test_a_mistake_is_told_before_anything_runs(sd, net, given, message):
    control = sdjax.Control(**{"net": net, "image": MAPS[0], **given})
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        sd.request("a red circle", height=16, width=16, control=control)


@pytest.mark.parametrize(
    "control, message",
    [
        (3, r"control must be a list of \(net, map\), not 3"),
        ([(3, MAPS[0])], "control takes what sdjax.load_controlnet gives, or a path, not 3"),
        ([MAPS[0]], r"each must be \(net, map\), \(net, map, scale\) or sdjax.Control"),
        ([("/nowhere", MAPS[0])], "neither a file nor a folder here nor a Hub id"),
    ],
)
def test_what_is_no_control(sd, control, message):
    with pytest.raises(ValueError, match=message):
        sd.request("a red circle", control=control)


def test_a_net_of_another_family(sd, folder, config, ip):
    wide = control_nets.write_net(folder / "wide", config | {"cross_attention_dim": 24})
    with pytest.raises(ValueError, match="'wide' is for .*text 24 wide.*and tiny is .*text 16 wide"):
        sd.request("a red circle", control=[(wide, MAPS[0])])
    shapes = checkpoints.random_params(sd.spec.expected_params["unet"], np.float32, 0)
    for leaf in (one for one in ("to_k", "to_v")):
        block = shapes["down_blocks.0"]["attentions.0"]["transformer_blocks.0"]["attn2"]
        block[leaf] = {"kernel": np.zeros((24, block[leaf]["kernel"].shape[1]), np.float32)}
        for path in ("mid_block", "up_blocks.1"):
            for attention in (name for name in shapes[path] if name.startswith("attentions")):
                own = shapes[path][attention]["transformer_blocks.0"]["attn2"]
                own[leaf] = {"kernel": np.zeros((24, own[leaf]["kernel"].shape[1]), np.float32)}
    other = image_prompts.write_image_prompt(folder / "wide_ip", shapes)
    with pytest.raises(ValueError, match="image prompt 'ip-adapter' is for .*24"):
        sd.request("a red circle", image_prompt=[(other, SHOWN[0])])


@pytest.mark.parametrize(
    "given, message",
    [
        ({"scale": "styl"}, "nearest: 'style'|nearest: .*style"),
        ({"scale": float("inf")}, "finite"),
        ({"scale": {"middle": 1}}, "middle"),
        ({"image": ()}, "a tuple of pictures holds 1 to"),
        ({"image": 3}, "image is of type int"),
        ({"start": 2}, "start must be a place in the run"),
        ({"adapter": 3}, "image_prompt takes what sdjax.load_image_prompt gives"),
    ],
)
def test_a_mistake_in_an_image_prompt(sd, ip, given, message):
    prompt = sdjax.ImagePrompt(**{"adapter": ip, "image": SHOWN[0], **given})
    with pytest.raises(ValueError, match=message):
        sd.request("a red circle", image_prompt=prompt)


def test_a_map_of_few_bits_and_of_many(sd, net):
    """One bit, sixteen bits and grey are the same map as its colours."""
    grey = np.repeat(np.arange(16, dtype=np.uint8) * 16, 16).reshape(16, 16)
    same = [
        Image.fromarray(grey),
        Image.fromarray(grey.astype(np.uint16) * 257),
        np.repeat(grey[..., None], 3, axis=-1),
    ]
    looked = [sd.request("", control=[(net, one)]).steering.control[0].images for one in same]
    assert all(np.array_equal(one, looked[0]) for one in looked)
    two = Image.fromarray(np.uint8(255) * (grey > 100))
    assert np.array_equal(
        sd.request("", control=[(net, two.convert("1"))]).steering.control[0].images,
        sd.request("", control=[(net, two)]).steering.control[0].images,
    )
