"""Clip skip as each peer counts it, through whole pipelines against diffusers with transformers' own hidden states.

diffusers leaves layers out of the prompt alone and keeps all for the negative one; A1111 and ComfyUI leave them out of
both, which diffusers can be told as embeddings made by hand.
"""

import types

import pytest
import torch

import sdjax
from tests.parity import families
from tests.parity.families import channels_first, channels_last, relative, run

TOLERANCE = 1e-5
PROMPTS, NEGATIVES = ["a red circle", "a blue square above a red ring"], ["a blue", "a red square"]
NOISE = families.noise(2, 12, 16)
PLACE = dict(height=12 * families.FACTOR, width=16 * families.FACTOR)
COMMON = dict(guidance_scale=5.0, steps=4, sampler="ddim", **PLACE)


@pytest.fixture(scope="module", autouse=True)
def quick_compiles():
    with families.quick_compiles():
        yield


@pytest.fixture(scope="module")
def sd1(tmp_path_factory):
    return _opened("sd1", tmp_path_factory)


@pytest.fixture(scope="module")
def sd2(tmp_path_factory):
    return _opened("sd2", tmp_path_factory)


@pytest.fixture(scope="module")
def sdxl(tmp_path_factory):
    return _opened("sdxl", tmp_path_factory)


def _opened(kind, tmp_path_factory):
    pipeline, folder = families.build(kind), tmp_path_factory.mktemp(kind)
    pipeline.save_pretrained(folder, safe_serialization=True)
    if kind != "sdxl":
        # diffusers looks for the final norm where transformers had it before 5.6.
        inner = getattr(pipeline.text_encoder, "text_model", pipeline.text_encoder)
        inner = types.SimpleNamespace(final_layer_norm=inner.final_layer_norm)
        object.__setattr__(pipeline.text_encoder, "text_model", inner)
    return pipeline, sdjax.load(folder, compilation_cache=False)


@torch.no_grad()
def states(pipeline, texts, depth, which=""):
    """Hidden states of the layer so many from the end, before the final norm, and what the encoder pools."""
    tokenizer, encoder = getattr(pipeline, f"tokenizer{which}"), getattr(pipeline, f"text_encoder{which}")
    ids = tokenizer(texts, padding="max_length", max_length=families.LENGTH, return_tensors="pt").input_ids
    out = encoder(ids, output_hidden_states=True)
    return out.hidden_states[-depth], out[0]


def normed(pipeline, texts, depth):
    with torch.no_grad():
        return pipeline.text_encoder.text_model.final_layer_norm(states(pipeline, texts, depth)[0])


def ours(sd, **asked):
    given = COMMON | dict(prompt=PROMPTS, negative_prompt=NEGATIVES, latents=NOISE, decode=False, progress=False)
    return sd.generate(**given | asked).latents


def theirs(pipeline, **asked):
    return channels_last(run(pipeline, latents=channels_first(NOISE), **COMMON, **asked))


def by_hand(pipeline, depth):
    """SD 1.x or 2.x with the same layer of both prompts."""
    made = normed(pipeline, PROMPTS, depth), normed(pipeline, NEGATIVES, depth)
    return theirs(pipeline, prompt_embeds=made[0], negative_prompt_embeds=made[1])


@pytest.mark.parametrize("count", [0, 1, 2, 4])  # 4 of 4 layers: the embeddings themselves
def test_diffusers(sd1, count):
    pipeline, sd = sd1
    want = theirs(pipeline, prompt=PROMPTS, negative_prompt=NEGATIVES, clip_skip=count)
    for spelled in (count, f"diffusers:{count}"):
        assert relative(ours(sd, clip_skip=spelled), want) <= TOLERANCE
    assert relative(by_hand(pipeline, count + 1), want) > 100 * TOLERANCE or count == 0


@pytest.mark.parametrize("count", [1, 2, 3])
def test_a1111_and_comfy_leave_layers_out_of_both_prompts(sd1, count):
    pipeline, sd = sd1
    want = by_hand(pipeline, count)
    for spelled in (f"a1111:{count}", f"comfy:-{count}"):
        assert relative(ours(sd, clip_skip=spelled), want) <= TOLERANCE
    for style, number in (("a1111", count), ("comfy", -count)):
        assert relative(ours(sd, clip_skip=number, prompt_style=style), want) <= TOLERANCE


def test_nothing_is_left_out_by_default(sd1):
    pipeline, sd = sd1
    assert relative(ours(sd), by_hand(pipeline, 1)) <= TOLERANCE


def test_openclip(sd2):
    """A1111 leaves OpenCLIP's layers alone; ComfyUI and diffusers do not."""
    pipeline, sd = sd2
    assert relative(ours(sd, clip_skip="a1111:3"), by_hand(pipeline, 1)) <= TOLERANCE
    assert relative(ours(sd, clip_skip="comfy:-3"), by_hand(pipeline, 3)) <= TOLERANCE
    want = theirs(pipeline, prompt=PROMPTS, negative_prompt=NEGATIVES, clip_skip=2)
    assert relative(ours(sd, clip_skip="diffusers:2"), want) <= TOLERANCE


@pytest.mark.parametrize(
    "spelled,depth", [(None, 2), ("a1111:3", 2), ("comfy:-1", 1), ("comfy:-2", 2), ("comfy:-4", 4)]
)
def test_sdxl_contexts(sdxl, spelled, depth):
    """Both encoders' states side by side, without the final norm; the pooled state is of all layers always."""
    pipeline, sd = sdxl
    want = torch.cat([states(pipeline, PROMPTS, depth)[0], states(pipeline, PROMPTS, depth, "_2")[0]], -1).numpy()
    made = sd.conditions(PROMPTS, clip_skip=spelled)
    assert relative(made.context, want) <= TOLERANCE
    assert relative(made.added.pooled, states(pipeline, PROMPTS, depth, "_2")[1].numpy()) <= TOLERANCE


@pytest.mark.parametrize("spelled", ["diffusers:5", "a1111:6", "comfy:-6", "a1111:0", "comfy:2", "forge:2", True, 1.5])
def test_what_cannot_be_left_out(sd1, spelled):
    with pytest.raises(ValueError, match="clip_skip"):
        ours(sd1[1], clip_skip=spelled)
