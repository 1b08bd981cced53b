"""Adapters that pictures wear: each its own, at its own strength, in one program."""

import re
import warnings

import jax
import numpy as np
import pytest

import sdjax
from sdjax.adapters.scales import Scale
from sdjax.adapters.slots import SIZES, Slots
from sdjax.nn.linear import LowRank, linear
from sdjax.runtime import programs
from tests import adapters, checkpoints

RUN = {"steps": 4, "progress": False, "decode": False}
PROMPTS = ["a red circle", "a blue square above a red circle", "a large green circle", "a red circle"]


@pytest.fixture(scope="module")
def sd(tmp_path_factory):
    return sdjax.load(checkpoints.make_checkpoint(tmp_path_factory.mktemp("model") / "tiny", dtype=np.float32))


@pytest.fixture(scope="module")
def files(sd, tmp_path_factory):
    """A LoRA of rank 8 of the transformers, and one of rank 5 of every layer."""
    folder = tmp_path_factory.mktemp("adapters")
    style = adapters.whole_lora(sd.params, 8, 1)
    pose = adapters.whole_lora(sd.params, 5, 2, convolutions=True)
    adapters.written(folder / "style.safetensors", style, {"ss_output_name": "alias"})
    adapters.written(folder / "deep" / "pose.safetensors", pose) if (folder / "deep").mkdir() is None else None
    return folder


@pytest.fixture(scope="module")
def style(files):
    return sdjax.load_adapter(files / "style.safetensors")


@pytest.fixture(scope="module")
def pose(files):
    return sdjax.load_adapter(files / "deep" / "pose.safetensors")


@pytest.fixture(scope="module")
def base(sd):
    return sd.generate(PROMPTS, **RUN).latents


@pytest.fixture(scope="module")
def batch(sd, style, pose):
    return sd.generate(PROMPTS, adapters=[(style, [0.8, 0, 1, 0.5]), (pose, [0, 0.7, 0.3, -0.4])], **RUN)


SCALES = [(0.8, 0), (0, 0.7), (1, 0.3), (0.5, -0.4)]


def apart(a, b):
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))


@pytest.mark.parametrize("i", range(4))
def test_worn_is_merged(sd, style, pose, batch, base, i):
    one, other = SCALES[i]
    merged = sd.with_adapters([(style, one), (pose, other)])
    made = merged.generate([PROMPTS[i]], first_image=i, **RUN).latents[0]
    assert apart(batch.latents[i], made) < 1e-5
    assert apart(made, base[i]) > 0.01


@pytest.mark.parametrize("i", range(4))
def test_a_picture_is_the_same_alone(sd, style, pose, batch, i):
    one, other = SCALES[i]
    alone = sd.generate([PROMPTS[i]], first_image=i, adapters=[(style, one), (pose, other)], **RUN).latents[0]
    assert np.array_equal(alone, batch.latents[i])


def test_scale_0_is_the_base(sd, style, pose, base):
    assert np.array_equal(sd.generate(PROMPTS, adapters=[(style, 0), (pose, 0.0)], **RUN).latents, base)
    merged = sd.with_adapters([(style, 0)])
    assert all(a is b for a, b in zip(jax.tree.leaves(merged.params), jax.tree.leaves(sd.params), strict=True))


def test_one_compilation_for_twenty_sets(sd, tmp_path):
    """Of ranks 1 to 64, of one to three adapters, of any scales."""
    rng = np.random.default_rng(0)
    worn = []
    for i in range(20):
        ranks = [64] if i == 3 else [1 + int(r) for r in rng.integers(0, 20, 1 + i % 3)]
        own = [adapters.whole_lora(sd.params, rank, 10 * i + k) for k, rank in enumerate(ranks)]
        paths = [adapters.written(tmp_path / f"{i}_{k}.safetensors", one) for k, one in enumerate(own)]
        worn.append([(sdjax.load_adapter(path), float(rng.uniform(-1, 1.5))) for path in paths])
    counted = (programs.run_rows, programs.encode_text, programs.precompute_kv)
    sd.generate(["a red circle"], adapters=worn[0], **RUN)
    before = [program._cache_size() for program in counted]
    made = [sd.generate(["a red circle"], adapters=one, **RUN).latents for one in worn[1:]]
    assert [program._cache_size() for program in counted] == before
    assert len({one.tobytes() for one in made}) == 19


def test_parts_of_a_model(sd, style, base):
    """The U-Net alone, the text encoder alone, and what is not named."""
    unet = sd.generate(PROMPTS[:1], adapters=[(style, {"text_encoder": 0})], **RUN).latents[0]
    same = sd.with_adapters([(style, {"unet": 1, "text_encoder": 0})]).generate(PROMPTS[:1], **RUN).latents[0]
    text = sd.generate(PROMPTS[:1], adapters=[(style, {"scale": 0, "text_encoder": 0.7})], **RUN).latents[0]
    other = sd.with_adapters([(style, {"unet": 0, "text_encoder": 0.7})]).generate(PROMPTS[:1], **RUN).latents[0]
    assert apart(unet, same) < 1e-5 and apart(text, other) < 1e-5
    assert apart(unet, text) > 0.01 and apart(text, base[0]) > 1e-3


def test_a_place_in_the_run(sd, style, base):
    """All of it is the whole; none of the rows that run is the base; a piece is neither, and equal to a run in two."""
    whole = sd.generate(PROMPTS[:1], adapters=[(style, 1)], **RUN).latents
    assert np.array_equal(sd.generate(PROMPTS[:1], adapters=[(style, {"start": 0, "end": 1})], **RUN).latents, whole)
    none = sd.generate(PROMPTS[:1], adapters=[(style, {"start": 0.4, "end": 0.5})], **RUN).latents
    assert np.array_equal(none, base[:1])
    late = sd.generate(PROMPTS[:1], adapters=[(style, {"start": 0.6})], sampler="ddim", **RUN).latents
    first = sd.generate(PROMPTS[:1], sampler="ddim", denoising_end=0.5, **RUN)
    rest = sd.with_adapters([(style, 1)]).generate(
        PROMPTS[:1], sampler="ddim", denoising_start=0.5, latents=first.latents, **RUN
    )
    assert apart(late, rest.latents) < 1e-5


def test_a_picture_of_each_place(sd, style):
    both = sd.generate(PROMPTS[:2], adapters=[(style, {"start": [0, 0.6], "end": [0.4, 1]})], **RUN).latents
    for i, place in enumerate(({"end": 0.4}, {"start": 0.6})):
        one = sd.generate(PROMPTS[i : i + 1], first_image=i, adapters=[(style, place)], **RUN).latents[0]
        assert np.array_equal(one, both[i])


def test_blocks(sd, style):
    rule = {"scale": 0.9, "blocks": {"up_blocks": 0.5, "text_encoder": 0}}
    worn = sd.generate(PROMPTS[:1], adapters=[(style, rule)], **RUN).latents
    merged = sd.with_adapters([(style, rule)]).generate(PROMPTS[:1], **RUN).latents
    assert apart(worn, merged) < 1e-5
    assert apart(worn, sd.generate(PROMPTS[:1], adapters=[(style, 0.9)], **RUN).latents) > 1e-3


def test_tags(sd, files, style, pose):
    """A1111's tags, by file, by folder's file, by the name it was trained under, and by a given name."""
    tagged = "a red circle <lora:style:0.5:0.8><lora:pose:0.3>"
    same = [(style, {"text_encoder": 0.5, "unet": 0.8}), (pose, 0.3)]
    kept = {**RUN, "prompt_style": "a1111"}
    plain = sd.generate(["a red circle "], adapters=same, **kept).latents
    folder = sd.generate([tagged], adapters_folder=files, **kept)
    assert np.array_equal(folder.latents, plain)
    named = {"style": files / "style.safetensors", "pose": pose}
    assert np.array_equal(sd.generate([tagged], adapters=named, **kept).latents, plain)
    alias = tagged.replace("style", "alias")
    assert np.array_equal(sd.generate([alias], adapters_folder=files, **kept).latents, plain)
    assert folder.settings["prompt"] == [tagged]
    with pytest.raises(ValueError, match=r"names the adapter 'stile'.*nearest: 'style'"):
        sd.generate([tagged.replace("style", "stile")], adapters_folder=files, **kept)
    with warnings.catch_warnings(record=True) as told:
        sd.request([tagged], **RUN)
    assert any("prompt_style='a1111' alone" in str(one.message) for one in told)


def test_each_prompt_has_its_own_tags(sd, files, style, pose):
    kept = {**RUN, "prompt_style": "a1111", "adapters_folder": files}
    both = sd.generate(["a red circle<lora:style:0.8>", "a large green circle<lora:pose:0.5>"], **kept)
    alone = sd.generate(["a large green circle"], adapters=[(pose, 0.5)], first_image=1, **RUN).latents
    assert apart(both.latents[1], alone[0]) < 1e-5
    assert both.settings["adapters"] == [f"style ({style.short_hash})", f"pose ({pose.short_hash})"]


def test_settings_say_what_was_worn(sd, style, files):
    """And wear it again, from a folder that is given; a file that is another is told."""
    out = sd.generate(PROMPTS[:1], adapters=[(style, {"unet": 0.5, "start": 0.2})], steps=4, progress=False)
    said = sdjax.read_settings(out[0])["adapters"]
    assert said == f"style ({style.short_hash}):unet=0.5:text_encoder=1:text_encoder_2=1:start=0.2:end=1"
    with pytest.raises(ValueError, match=f"wore adapters, 'style .{style.short_hash}.*adapters="):
        sd.generate(**sdjax.read_settings(out[0]))
    again = sd.generate(**sdjax.read_settings(out[0]), adapters_folder=files, progress=False)
    assert np.array_equal(again.latents, out.latents) and again.settings == out.settings
    assert f'Lora hashes: "style: {style.short_hash}"' in out[0].info["parameters"]
    other = sdjax.read_settings(out[0]) | {"adapters": "style (0123456789ab):0.5"}
    with pytest.warns(UserWarning, match="style is another file .* than the settings name"):
        sd.request(**other, adapters_folder=files)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (lambda a: [(a, float("nan"))], "adapter style: scale must be a finite number, not nan"),
        (lambda a: [(a, "0.8")], "adapter style: scale must be a finite number, not '0.8'"),
        (lambda a: [(a, [1, 2, 3])], "adapter style: 3 scales for 1 pictures; give one, or one per picture"),
        (lambda a: [(a, {"unit": 1})], "'unit' is no part of a scale; nearest: 'unet'"),
        (lambda a: [(a, {"start": 0.8, "end": 0.2})], "start and end are places in the run from 0 to 1"),
        (lambda a: f"{a.name} (0123456789ab):1", "these settings are of pictures that wore adapters, 'style"),
        (lambda a: "missing.safetensors", "missing.safetensors is neither a file nor a folder here"),
        (lambda a: {"style": a}, "no prompt does"),
        (lambda a: 3, "adapters must be a list of"),
        (lambda a: [(a, {"blocks": [1, 2]})], "block weights are a list of 17 or 26"),
    ],
)
def test_what_cannot_be_worn(sd, style, given, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        sd.request(["a red circle"], adapters=given(style), **RUN)


def test_more_than_can_be_worn(sd, tmp_path):
    thick = adapters.written(tmp_path / "thick.safetensors", adapters.whole_lora(sd.params, 300))
    with pytest.raises(
        ValueError, match="ranks 300, 300 are 600 ranks beside each other, and a batch wears at most 512"
    ):
        sd.request(["a red circle"], adapters=[(thick, 1), (thick, 1)], **RUN)


def test_what_is_not_low_rank_is_refused_with_the_remedy(sd, tmp_path):
    kernel = sd.params["unet"]["conv_in"]["kernel"]
    full = {"lora_unet_conv_in.diff": np.ones((kernel.shape[3], kernel.shape[2], 3, 3), "f")}
    path = adapters.written(tmp_path / "full.safetensors", full)
    with pytest.raises(ValueError, match=r"adapter full: conv_in is changed by .* merge it by sd.with_adapters"):
        sd.request(["a red circle"], adapters=[(path, 1)], **RUN)
    assert sd.with_adapters([(path, 1)]).params["unet"]["conv_in"]["kernel"][0, 0, 0, 0] == kernel[0, 0, 0, 0] + 1


def test_hypernetworks_are_worn(sd, style, tmp_path):
    """Each picture its own strength, also beside a LoRA; merged they are the same."""
    rng = np.random.default_rng(0)
    width = checkpoints.WIDTH
    tensors = {
        f"{width}.{use}.linear.{n}.{what}": rng.standard_normal(shape).astype("f") / 4
        for use in "kv"
        for n, (o, i) in enumerate(((2 * width, width), (width, 2 * width)))
        for what, shape in (("weight", (o, i)), ("bias", (o,)))
    }
    net = sdjax.load_adapter(adapters.written(tmp_path / "net.safetensors", tensors))
    worn = sd.generate(PROMPTS[:2], adapters=[(net, [0.7, 0]), (style, [0, 0.5])], **RUN)
    merged = sd.with_adapters([(net, 0.7)])
    assert apart(merged.generate(PROMPTS[:1], **RUN).latents[0], worn.latents[0]) < 1e-5
    alone = sd.generate(PROMPTS[1:2], first_image=1, adapters=[(style, 0.5)], **RUN).latents[0]
    assert apart(alone, worn.latents[1]) < 1e-5
    assert apart(worn.latents[0], sd.generate(PROMPTS[:1], **RUN).latents[0]) > 1e-3
    assert worn.settings["adapters"][0].startswith(f"net ({net.short_hash}):0.7")
    tag = sd.generate(["a red circle<hypernet:net:0.7>"], adapters={"net": net}, prompt_style="a1111", **RUN).latents[0]
    assert apart(tag, worn.latents[0]) < 1e-5
    with pytest.raises(ValueError, match="no checkpoint holds a hypernetwork"):
        merged.save(tmp_path / "merged")
    assert net.name in merged.name and sd.with_adapters([]).name == sd.name


def test_words_that_came_with_an_adapter(sd, style, tmp_path):
    """A bundle's word is known where the adapter is worn."""
    vector = np.random.default_rng(3).standard_normal((1, checkpoints.WIDTH)).astype("f")
    tensors = adapters.whole_lora(sd.params, 2) | {"bundle_emb.<cat>.string_to_param.*": vector}
    both = sdjax.load_adapter(adapters.written(tmp_path / "both.safetensors", tensors))
    word = both.embeddings["<cat>"]
    made = sd.generate(["a <cat>"], adapters=[(both, 0.0)], **RUN).latents
    assert np.array_equal(
        made, sd.generate(["a <cat>"], embeddings={"<cat>": word}, adapters=[(both, 0)], **RUN).latents
    )
    assert not np.array_equal(made, sd.generate(["a <cat>"], **RUN).latents)


def test_a_refiner_wears_nothing_of_the_bases(sd, style):
    """The base's pictures wear, up to where the refiner takes over."""
    cut = {**RUN, "sampler": "ddim"}
    made = sd.generate(PROMPTS[:1], adapters=[(style, 1)], refiner=sd, refiner_start=0.5, **cut).latents
    first = sd.generate(PROMPTS[:1], adapters=[(style, 1)], denoising_end=0.5, **cut).latents
    rest = sd.generate(PROMPTS[:1], denoising_start=0.5, latents=first, **cut).latents
    assert apart(made, rest) < 1e-6


def test_in_16_bits(sd, style, tmp_path):
    """Factors are cast as kernels are; merged is cast once from float32, and is no view of the file."""
    sd.save(tmp_path / "tiny")
    narrow = sdjax.load(tmp_path / "tiny", dtype="bfloat16")
    worn = narrow.generate(PROMPTS[:1], adapters=[(style, 0.8)], **RUN).latents
    merged = narrow.with_adapters([(style, 0.8)])
    wide = sd.with_adapters([(style, 0.8)])
    path = ("up_blocks.1", "attentions.0", "transformer_blocks.0", "attn1", "to_q", "kernel")
    one, other = merged.params["unet"], wide.params["unet"]
    for key in path:
        one, other = one[key], other[key]
    assert one.dtype == jax.numpy.bfloat16
    assert np.array_equal(np.asarray(one), np.asarray(jax.numpy.asarray(other).astype("bfloat16")))
    assert apart(worn, merged.generate(PROMPTS[:1], **RUN).latents) < 0.1
    assert worn.dtype == np.float32 and np.isfinite(worn).all()


def test_what_is_merged_can_be_saved(sd, style, pose, tmp_path):
    merged = sd.with_adapters([(style, 0.8), (pose, 0.5)])
    merged.save(tmp_path / "merged")
    again = sdjax.load(tmp_path / "merged")
    assert np.array_equal(again.generate(PROMPTS[:1], **RUN).latents, merged.generate(PROMPTS[:1], **RUN).latents)


def test_factors_beside_a_kernel_or_multiplied():
    """For one scale the layer takes what is less work, and both are the same."""
    rng = np.random.default_rng(0)
    kernel, x = rng.standard_normal((6, 5)).astype("f"), rng.standard_normal((2, 40, 6)).astype("f")
    low = LowRank(rng.standard_normal((6, 3)).astype("f"), rng.standard_normal((3, 5)).astype("f"))
    own = np.array([0.5, 0, 2], "f")
    expected = x @ (kernel + low.down * own @ low.up)
    for scale, merges in ((own, True), (np.stack([own, own]), False)):
        worn = LowRank(low.down, low.up, scale)
        assert worn.merges(x) is merges
        made = linear({"kernel": kernel, "low_rank": worn}, x, np.float32, "layer")
        np.testing.assert_allclose(made, expected, rtol=1e-5, atol=1e-5)
    few = LowRank(low.down, low.up, own)
    assert not few.merges(x[:, :1])


def test_slots_lie_side_by_side():
    thin = {"a.attentions.0.to_q": (np.ones((2, 3), "f"), np.full((4, 2), 2, "f"))}
    wide = {"a.attentions.0.to_q": (np.full((3, 3), 5, "f"), np.full((4, 3), 7, "f"))}
    slots = Slots.of([thin, {}, wide])
    assert (slots.columns, slots.size, slots.everywhere) == (((0, 2), (2, 2), (2, 5)), SIZES[0], False)
    assert slots.strengths(np.array([[0.5, 9, 2.0]])).tolist()[0][:7] == [0.5, 0.5, 2, 2, 2, 0, 0]
    params = {"a": {"attentions.0": {"to_q": {"kernel": np.zeros((3, 4), "f")}}, "conv": {"kernel": np.zeros((3, 4))}}}
    beside = slots.beside(params, np.float32)
    assert set(beside) == {"a.attentions.0.to_q"}
    assert beside["a.attentions.0.to_q"].down[0].tolist()[:6] == [1, 1, 5, 5, 5, 0]
    assert Slots.of([{}, {}]) is None and Slots.of([]) is None


def test_scales_in_words():
    assert str(Scale.read(0.8, "x")) == "0.8"
    assert str(Scale.read({"unet": 0.5, "text_encoder": 0.2, "end": 0.5}, "x")) == (
        "unet=0.5:text_encoder=0.2:text_encoder_2=0.2:start=0:end=0.5"
    )
