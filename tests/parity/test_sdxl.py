"""Whole pipelines of every family against diffusers: the same small checkpoint, prompts and noise, latents compared.

Pictures are wider than high throughout, so that no size can be taken for another. Each case must move diffusers' own
latents away from the plain run's by far more than the tolerance, else it would show nothing.
"""

import functools
import json
from dataclasses import replace

import diffusers
import numpy as np
import pytest
import torch

import sdjax
from sdjax.runtime import programs
from tests.checkpoints import respecified
from tests.parity import families
from tests.parity.families import FACTOR, channels_first, channels_last, one_by_one, relative, run

TOLERANCE = 1e-5  # the issue asks for 1e-3
MOVES = 100 * TOLERANCE
PROMPTS, NEGATIVES = ["a red circle", "a blue square above a red ring"], ["a blue", "a red square"]
HEIGHT, WIDTH = 12 * FACTOR, 16 * FACTOR
COMMON = dict(prompt=PROMPTS, height=HEIGHT, width=WIDTH, guidance_scale=5.0)
NOISE = families.noise(2, 12, 16)


@pytest.fixture(scope="module", autouse=True)
def quick_compiles():
    with families.quick_compiles():
        yield


@pytest.fixture(scope="module")
def opened(tmp_path_factory):
    """By family: diffusers' pipeline, and the same checkpoint loaded here from what diffusers saved."""

    @functools.cache
    def both(kind):
        pipeline = families.build(kind)
        folder = tmp_path_factory.mktemp(kind)
        pipeline.save_pretrained(folder, safe_serialization=True)
        return pipeline, sdjax.load(folder, compilation_cache=False)

    return both


def ours(sd, noise=NOISE, **asked):
    return sd.generate(**{"steps": families.STEPS, "latents": noise, **asked}, decode=False, progress=False).latents


def theirs(pipeline, noise=NOISE, **asked):
    """Latents `b h w c` of the whole run, which end at the same scale whatever the scheduler's own."""
    return channels_last(run(pipeline, latents=channels_first(noise), **asked))


@functools.cache
def plain(pipeline):
    return theirs(pipeline, **COMMON, sampler="euler")


CASES = {
    "negative_empty": dict(negative_prompt=""),
    "negative": dict(negative_prompt=NEGATIVES),
    "prompt_2": dict(prompt_2=["a green ring", "an"]),
    "negative_2": dict(negative_prompt=NEGATIVES, negative_prompt_2=["above", "below a ring"]),
    "prompt_2_and_zeros": dict(prompt_2="red", negative_prompt_2="green"),  # the negative prompt is None: zeros still
    "sizes": dict(original_size=(17, 40), crop=(3, 9), target_size=(50, 21)),
    "crop": dict(crop=(11, 2)),
    "rescale": dict(guidance_rescale=0.7),
    "clip_skip_1": dict(clip_skip=1, negative_prompt=NEGATIVES),
    "clip_skip_2": dict(clip_skip=2),
    "two_images": dict(prompt=PROMPTS[1:], num_images=2),
    "ddim": dict(sampler="ddim", negative_prompt=NEGATIVES),
    "dpmpp_2m": dict(sampler="dpmpp_2m", steps=9, negative_prompt=NEGATIVES),
}


def test_base(opened):
    pipeline, sd = opened("sdxl")
    assert relative(ours(sd, **COMMON, sampler="euler"), plain(pipeline)) <= TOLERANCE


@pytest.mark.parametrize("case", CASES)
def test_base_cases(opened, case):
    pipeline, sd = opened("sdxl")
    asked = COMMON | dict(sampler="euler") | CASES[case]
    given = dict(asked)
    for name in ("prompt_2", "negative_prompt_2"):  # diffusers wants what the prompts are, a list
        if isinstance(given.get(name), str):
            given[name] = [given[name]] * 2
    want = theirs(pipeline, **given)
    assert relative(want, plain(pipeline)) > MOVES
    assert relative(ours(sd, **asked), want) <= TOLERANCE


NEGATIVE_SIZES = dict(negative_original_size=(30, 14), negative_crop=(7, 1), negative_target_size=(9, 44))


def test_negative_sizes(opened):
    """One picture after the other in diffusers: its base pipeline deals [negative, positive] sizes out in turns to a
    batch whose prompts lie [negative, negative, positive, positive]."""
    pipeline, sd = opened("sdxl")
    asked = COMMON | dict(original_size=(20, 33), sampler="euler", **NEGATIVE_SIZES)
    want = one_by_one(pipeline, NOISE, **asked)
    assert relative(one_by_one(pipeline, NOISE, **COMMON, original_size=(20, 33), sampler="euler"), want) > MOVES
    assert relative(ours(sd, **asked), want) <= TOLERANCE


def test_sizes_by_picture(opened):
    pipeline, sd = opened("sdxl")
    sizes = dict(original_size=[(20, 33), (64, 8)], crop=[(0, 5), (6, 1)], target_size=[(24, 32), (31, 30)])
    want = one_by_one(pipeline, NOISE, **COMMON, **sizes, sampler="euler")
    assert relative(ours(sd, **COMMON, **sizes, sampler="euler"), want) <= TOLERANCE


def test_base_without_guidance_at_its_own_size(opened):
    pipeline, sd = opened("sdxl")
    noise = families.noise(2)
    want = theirs(pipeline, noise, prompt=PROMPTS, guidance_scale=1.0)
    assert relative(ours(sd, noise, prompt=PROMPTS, guidance_scale=1.0, sampler="euler"), want) <= TOLERANCE


@pytest.mark.parametrize("kind", ["sdxl", "sd2"])
def test_pixels(opened, kind):
    pipeline, sd = opened(kind)
    asked = dict(prompt=PROMPTS, negative_prompt=NEGATIVES, guidance_scale=3.0, height=HEIGHT, width=WIDTH)
    want = run(pipeline, "ddim", latents=channels_first(NOISE), output_type="np", **asked)
    out = sd.generate(**asked, steps=families.STEPS, sampler="ddim", latents=NOISE, progress=False)
    assert np.abs(out.pixels - 255 * want).max() <= 0.51  # rounded, and no more than that


# ---------------------------------------------------------------------- the refiner

SCORES = dict(aesthetic_score=7.5, negative_aesthetic_score=1.25)
REFINED = dict(crop=(4, 9), original_size=(19, 41), **SCORES)


def handed_over(base, sampler, cut, **asked):
    """The base's share in diffusers: its latents, and the factor that brings them to the variance-preserving scale."""
    latents = run(base, sampler, latents=channels_first(NOISE), denoising_end=cut, **asked)
    at = base.ran
    widened = (1 + float(at.sigmas[at.step_index]) ** 2) ** 0.5 if sampler == "euler" else 1.0
    return latents, 1 / widened


@pytest.mark.parametrize("cut", [0.5, 0.8])
@pytest.mark.parametrize("sampler", ["euler", "dpmpp_2m", "ddim"])
def test_ensemble(opened, sampler, cut):
    (base, sd), (refining, refiner) = opened("sdxl"), opened("refiner")
    asked = dict(prompt=PROMPTS, negative_prompt=NEGATIVES, guidance_scale=5.0, steps=10)
    sizes = {name: REFINED[name] for name in ("crop", "original_size")}
    half, scale = handed_over(base, sampler, cut, **asked, **sizes, height=HEIGHT, width=WIDTH)
    want = channels_last(run(refining, sampler, image=half, denoising_start=cut, **asked, **REFINED))
    other = channels_last(run(refining, sampler, image=half, denoising_start=cut, **asked, **sizes))
    assert relative(other, want) > MOVES  # the scores are heard
    place = dict(height=HEIGHT, width=WIDTH, sampler=sampler)
    assert relative(ours(sd, **asked, **place, **REFINED, refiner=refiner, refiner_start=cut), want) <= TOLERANCE
    first = ours(sd, **asked, **place, **sizes, denoising_end=cut)
    assert relative(first, channels_last(half) * scale) <= TOLERANCE
    second = ours(refiner, first, **asked, **place, **REFINED, denoising_start=cut)
    assert relative(second, want) <= TOLERANCE


def test_ensemble_with_fresh_noise(opened):
    """One generator draws for both; as one run of the schedule does."""
    (base, sd), (refining, refiner) = opened("sdxl"), opened("refiner")
    asked = dict(guidance_scale=5.0, steps=8, sampler="euler_ancestral")
    made = []
    for prompt, seed in zip(PROMPTS, (3, 4), strict=True):
        draws = torch.Generator().manual_seed(seed)
        half = run(base, prompt=prompt, **asked, denoising_end=0.5, height=HEIGHT, width=WIDTH, generator=draws)
        made.append(run(refining, prompt=prompt, **asked, image=half, denoising_start=0.5, generator=draws))
    given = dict(prompt=PROMPTS, seed=[3, 4], noise_source="torch_cpu", height=HEIGHT, width=WIDTH)
    out = ours(sd, None, **asked, **given, refiner=refiner, refiner_start=0.5)
    assert relative(out, channels_last(torch.cat(made))) <= TOLERANCE


@pytest.mark.parametrize("asked", [dict(), dict(negative_prompt=NEGATIVES), dict(negative_original_size=(9, 44))])
def test_refiner_alone_over_a_whole_run(opened, asked):
    """From noise; the negative prompt of None is the empty text here, not zeros."""
    pipeline, refiner = opened("refiner")
    config = families.SCHEDULERS["refiner"]
    given = dict(prompt=PROMPTS, guidance_scale=5.0, crop=(4, 9), **asked)
    # Image to image of strength 1 with latents given starts where text to image does, so at its scale.
    scheduler = config[0].from_config(config[1])
    scheduler.set_timesteps(families.STEPS)
    start = channels_first(NOISE) * scheduler.init_noise_sigma
    want = channels_last(run(pipeline, image=start, latents=start, strength=1.0, **given))
    out = ours(refiner, **given, height=HEIGHT, width=WIDTH, sampler="euler")
    assert relative(out, want) <= TOLERANCE


def test_another_base_model_as_the_refiner(opened):
    """It has all that the first has: the second text, the target size, zeros for no negative prompt."""
    pipeline, sd = opened("sdxl")
    asked = dict(prompt=PROMPTS, prompt_2=["a green ring", "an"], guidance_scale=5.0, target_size=(50, 21), steps=8)
    half, _ = handed_over(pipeline, "euler", 0.5, **asked, height=HEIGHT, width=WIDTH)
    going_on = diffusers.StableDiffusionXLImg2ImgPipeline.from_pipe(pipeline, add_watermarker=False)
    going_on.set_progress_bar_config(disable=True)
    want = channels_last(run(going_on, "euler", image=half, denoising_start=0.5, **asked))
    out = ours(sd, **asked, height=HEIGHT, width=WIDTH, sampler="euler", refiner=replace(sd), refiner_start=0.5)
    assert relative(out, want) <= TOLERANCE


def test_settings_make_the_same_pictures_again(opened):
    (_, sd), (_, refiner) = opened("sdxl"), opened("refiner")
    asked = dict(prompt=PROMPTS, prompt_2=["a green ring", "an"], crop=(1, 2), guidance_scale=5.0, steps=4)
    asked |= dict(height=HEIGHT, width=WIDTH, sampler="euler", seed=7, refiner_start=0.5, progress=False)
    once = sd.generate(**asked, **SCORES, refiner=refiner)
    assert once.settings["refiner"] == refiner.name
    given = {**json.loads(json.dumps(once.settings)), "refiner": refiner}
    np.testing.assert_array_equal(sd.generate(**given).latents, once.latents)
    assert relative(sd.generate(**asked, refiner=refiner).latents, once.latents) > MOVES
    alone = sdjax.read_settings(once.images[1])
    assert alone["prompt_2"] == "an" and alone["crop"] == [1, 2] and alone["aesthetic_score"] == 7.5
    twice = sd.generate(**given | dict(prompt=PROMPTS[:1], prompt_2="red", negative_prompt=None, num_images=2))
    assert [sdjax.read_settings(image)["prompt_2"] for image in twice.images] == ["red", "red"]


# ---------------------------------------------------------------------- the other families


@pytest.mark.parametrize("kind,sampler", [("sd1", "pndm"), ("sd2", "ddim"), ("sd2", "euler")])
def test_stable_diffusion(opened, kind, sampler):
    pipeline, sd = opened(kind)
    asked = COMMON | dict(negative_prompt=NEGATIVES, sampler=sampler)
    want = theirs(pipeline, **asked)
    assert relative(theirs(pipeline, **asked | dict(negative_prompt=None)), want) > MOVES
    assert relative(ours(sd, **asked), want) <= TOLERANCE


def test_stable_diffusion_2_pads_with_id_0(opened):
    pipeline, sd = opened("sd2")
    ids = pipeline.tokenizer(PROMPTS, padding="max_length").input_ids
    assert ids[0][-1] == 0
    np.testing.assert_array_equal(sd.tokenizer.tokens(PROMPTS), ids)


def test_distilled_blocks(opened):
    pipeline, sd = opened("ssd")
    assert relative(ours(sd, **COMMON, sampler="euler"), plain(pipeline)) <= TOLERANCE


def drawn(pipeline, seeds, **asked):
    """One picture of each seed, with torch's own noise."""
    made = [run(pipeline, generator=torch.Generator().manual_seed(seed), **asked) for seed in seeds]
    return channels_last(torch.cat(made))


@pytest.mark.parametrize("scale", [1.0, 8.5])
def test_latent_consistency(opened, scale):
    """The guidance scale goes into the U-Net; fresh noise in every step, torch's."""
    pipeline, sd = opened("lcm")
    asked = dict(prompt=PROMPTS[0], guidance_scale=scale, steps=4, height=HEIGHT, width=WIDTH)
    want = drawn(pipeline, (3, 4), **asked)
    assert relative(drawn(pipeline, (3, 4), **asked | dict(guidance_scale=2.0)), want) > MOVES
    out = ours(sd, None, **asked, num_images=2, seed=[3, 4], noise_source="torch_cpu", sampler="lcm")
    assert relative(out, want) <= TOLERANCE


@pytest.mark.parametrize("steps", [1, 4])
@pytest.mark.parametrize("sampler", ["euler", "euler_ancestral"])
def test_turbo(opened, sampler, steps):
    pipeline, sd = opened("turbo")
    asked = dict(prompt=PROMPTS[1], guidance_scale=0.0, steps=steps, sampler=sampler)
    want = drawn(pipeline, (5, 6), **asked)
    out = ours(sd, None, **asked, num_images=2, seed=[5, 6], noise_source="torch_cpu")
    assert relative(out, want) <= TOLERANCE


@pytest.mark.parametrize("rescale", [0.0, 0.7])
def test_velocity_from_pure_noise(opened, rescale):
    pipeline, sd = opened("sdxl_v")
    asked = COMMON | dict(guidance_rescale=rescale, negative_prompt="", sampler="euler")
    # It starts at sigma 4096, where diffusers' own float32 has fewer digits left.
    assert relative(ours(sd, **asked), theirs(pipeline, **asked)) <= 10 * TOLERANCE


def test_sdxl_keeps_a_steps_offset_of_its_own(opened):
    """diffusers' SD pipelines overrule it, its SDXL ones do not."""
    pipeline, sd = opened("sdxl")
    config = {**sd.scheduler, "steps_offset": 0}
    own = pipeline.scheduler
    pipeline.scheduler = type(own).from_config(config)
    want = theirs(pipeline, **COMMON)
    pipeline.scheduler = own
    assert relative(ours(respecified(sd, scheduler=config), **COMMON, sampler="euler"), want) <= TOLERANCE


# ---------------------------------------------------------------------- precision


def test_the_vae_stays_in_float32_where_its_config_says_so(opened):
    _, sd = opened("sdxl")
    half = respecified(sd, np.dtype("float16"))
    whole = np.asarray(sd.decode(NOISE))
    np.testing.assert_array_equal(half.decode(NOISE), whole)
    free = respecified(half, vae=replace(sd.vae, force_upcast=False))
    assert 1e-5 < relative(free.decode(NOISE), whole) < 0.1


def test_one_compilation_whatever_is_asked(opened):
    """Prompts of any length, weights and editing, sizes, a negative prompt or None, clip skip: one program each."""
    sd = opened("sdxl")[1]
    asked = dict(height=HEIGHT, width=WIDTH, sampler="euler", noise=NOISE[:1])
    ours(sd, prompt="a", **asked)
    steps = (programs.encode_text, programs.precompute_kv, programs.begin, programs.draw, programs.run_rows)
    before = [step._cache_size() for step in steps]
    for changed in (
        dict(negative_prompt="blue", prompt_2="ring", original_size=(7, 9), crop=(1, 2)),
        dict(prompt="a (red:1.3) [circle|square] BREAK " + "a blue ring " * 9, prompt_style="a1111", clip_skip=2),
        dict(prompt="a [red:blue:0.5] circle", prompt_style="a1111", sampler="dpmpp_2m", steps=9, guidance_rescale=0.7),
        dict(prompt="(a red circle:0.8) " * 9, prompt_style="comfy", clip_skip="comfy:-1", denoising_end=0.5),
    ):
        ours(sd, **{"prompt": "a", **asked, **changed})
    assert [step._cache_size() for step in steps] == before
