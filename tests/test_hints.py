"""Names that people bring from other programs: each is answered with the name it has here."""

import inspect
import re

import numpy as np
import pytest

import sdjax
from sdjax.config import VaeConfig
from sdjax.core import hints
from sdjax.diffusion.scan import sample
from sdjax.pipeline import Output, StableDiffusion
from sdjax.request.arguments.size_conditioning import SizeConditioning


@pytest.fixture(scope="module")
def sd(tiny_checkpoint):
    return sdjax.load(tiny_checkpoint, compilation_cache=False)


@pytest.mark.parametrize(
    "name,ours",
    [
        ("num_inference_steps", "steps="),
        ("cfg_scale", "guidance_scale="),
        ("generator", "seed= takes a whole number, a jax key"),
        ("negative", "negative_prompt="),
        ("n_iter", "num_images="),
        ("batch_size", "num_images="),
        ("num_images_per_prompt", "num_images="),
        ("scheduler", "sampler= .*schedule="),
        ("sampler_name", "sampler="),
        ("init_image", "image="),
        ("denoising_strength", "strength="),
        ("prompt_embeds", "sd.predict"),
        ("callback_on_step_end", "callback="),
        ("use_karras_sigmas", 'schedule="karras"'),
        ("output_type", ".pixels"),
        ("sigmas", 'sampler_options={"sigmas"'),
        ("cfgScale", "guidance_scale="),
        ("negativePrompt", r"did you mean negative_prompt\?$"),
        ("CLIP_stop_at_last_layers", "clip_skip="),
        ("enable_hr", r"generate\(image=out\[0\], width="),
        ("subseed_strength", "no seed has variations"),
        ("save_images", r"out\[0\].save\(path\)"),
        ("padding_mask_crop", "mask_crop="),
        ("start_at_step", "denoising_start="),
        ("controlnet", r"control=\[\(sdjax.load_controlnet\(path\)"),
        ("ip_adapter_image", r"image_prompt=\[\(sdjax.load_image_prompt"),
        ("guess_mode", r"sdjax.Control\(net, map, .*mode="),
        ("freeu", "sdjax has nothing of the kind"),
        ("device", "sdjax.parallel"),
        ("params", r"dataclasses.replace\(sd, params="),
        ("promt", "did you mean prompt"),
        ("zzz", r"help\(\)"),
    ],
)
def test_arguments_of_generate(sd, name, ours):
    with pytest.raises(TypeError, match=rf"generate\(\) has no argument {name}: .*{ours}"):
        sd.generate("a red circle", **{name: 1})


def test_several_are_told_at_once(sd):
    told = r"no argument num_inference_steps: write steps=; nor cfg_scale: write guidance_scale=$"
    with pytest.raises(TypeError, match=told):
        sd.generate("a red circle", num_inference_steps=20, cfg_scale=7)
    with pytest.raises(TypeError, match=r"encode_prompt\(\) has no argument prompt: write prompts="):
        sd.encode_prompt(prompt="a red circle")


def test_what_is_written_in_place_is_there():
    """No hint names an argument that its function does not have, nor warns of one that it has."""
    pairs = {
        StableDiffusion.generate: hints.GENERATE,
        StableDiffusion.predict: hints.PREDICT,
        StableDiffusion.encode_prompt: hints.ENCODE,
        StableDiffusion.conditions: hints.ENCODE | hints.SIZES,
        StableDiffusion.plan: hints.PLAN | hints.OWN_PLAN,
        sdjax.load: hints.LOAD,
        sdjax.plan: hints.PLAN,
        sdjax.sample: hints.SAMPLE,
    }
    for function, told in pairs.items():
        sizes = SizeConditioning.__dataclass_fields__ if function is StableDiffusion.conditions else ()
        known = inspect.signature(function).parameters
        assert not set(told) & set(known), function
        for text in told.values():
            assert {*re.findall(r"write (\w+)=", text)} <= {*known, "scheduler", *sizes}, text
    for text in (*hints.MODEL.values(), *hints.PACKAGE.values()):
        for name in re.findall(r"\bsd\.(\w+)", text):
            assert hasattr(StableDiffusion, name) or name in StableDiffusion.__dataclass_fields__, text
        for name in re.findall(r"\bsdjax\.(\w+)", text):
            assert name in sdjax.__all__, text
    for name in re.findall(r"\bsd\.vae\.(\w+)", " ".join(hints.MODEL.values())):
        assert hasattr(VaeConfig, name) or name in VaeConfig.__dataclass_fields__
    for name in re.findall(r"\bout\.(\w+)", " ".join(hints.OUTPUT.values())):
        assert name in Output.__dataclass_fields__
    assert not [name for name in hints.MODEL if hasattr(StableDiffusion, name)]


def test_a_model_is_no_pipeline(sd):
    with pytest.raises(TypeError, match=r"sd\.generate\(prompt\)"):
        sd("a red circle")
    with pytest.raises(TypeError, match=r"sd\.predict"):
        sd.unet(np.zeros((1, 8, 8, 4)), 1, None)
    for name, told in (
        ("to", "sdjax.load"),
        ("enable_attention_slicing", "nothing is to be switched on"),
        ("text_encoder", "sd.encode_prompt"),
        ("genrate", "did you mean generate"),
        ("prompt", r"did you mean encode_prompt"),
        ("device", "jax's default device"),
    ):
        with pytest.raises(AttributeError, match=f"StableDiffusion has no {name}: .*{told}"):
            getattr(sd, name)
    with pytest.raises(AttributeError, match="sd.decode"):
        sd.vae.decode(np.zeros((1, 8, 8, 4)))
    assert not hasattr(sd, "_repr_latex_") and isinstance(sd.vae, VaeConfig)


def test_a_fault_within_a_property_is_told_as_it_is(sd, monkeypatch):
    def broken(self):
        return self.tokenizer.no_such_thing

    monkeypatch.setattr(StableDiffusion, "time_ids", property(broken))
    with pytest.raises(AttributeError, match="no_such_thing"):
        _ = sd.time_ids


def test_the_package():
    with pytest.raises(AttributeError, match=r"sdjax has no StableDiffusionPipeline: sd = sdjax.load\(model\)"):
        _ = sdjax.StableDiffusionPipeline
    with pytest.raises(AttributeError, match="did you mean load"):
        _ = sdjax.laod
    for name, told in {
        "FlaxStableDiffusionPipeline": "sdjax.load", "StableDiffusionImg2ImgPipeline": "sdjax.load",
        "EulerDiscreteScheduler": r"sdjax.samplers\(\)", "FlaxUNet2DConditionModel": "sdjax.load",
    }.items():  # fmt: skip
        with pytest.raises(AttributeError, match=f"sdjax has no {name}: .*{told}"):
            getattr(sdjax, name)
    with pytest.raises(TypeError, match='load.. has no argument torch_dtype: write dtype="bfloat16"'):
        sdjax.load(torch_dtype="float16")
    with pytest.raises(ValueError, match="load takes a folder, a file, a Hub id or a name, not 5"):
        sdjax.load(5)


def test_plan_and_sample():
    with pytest.raises(TypeError, match=r"plan\(\): missing a required argument: 'scheduler': .*sd\.scheduler"):
        sdjax.plan("euler", 20)
    with pytest.raises(ValueError, match="scheduler must be a scheduler_config.json as a dict, .* not 'sd15'"):
        sdjax.plan("euler", 20, "sd15")
    with pytest.raises(TypeError, match=r"plan\(\) has no argument num_inference_steps: write steps="):
        sdjax.plan("euler", num_inference_steps=20, scheduler={})
    with pytest.raises(TypeError, match=r"sample\(\) has no argument seed: write key="):
        sample(None, None, None, seed=3)
    plan = sdjax.plan("euler_ancestral", 2, {})
    x_T = np.zeros((1, 2, 2, 4), np.float32)
    for arguments, told in (
        (("euler", lambda x, t: x, x_T), "plan must be what sdjax.plan gives, .* not 'euler'"),
        ((plan, "unet", x_T), "model must be a function"),
    ):
        with pytest.raises(ValueError, match=told):
            sample(*arguments)
    with pytest.raises(ValueError, match=r"key must be a jax key, as jax.random.key\(0\), not 3"):
        sample(plan, lambda x, t: x, x_T, key=3)
