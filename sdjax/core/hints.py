"""What people write who come from other programs, and what it is called here.

    sd.generate("a cat", num_inference_steps=30)
    TypeError: generate() has no argument num_inference_steps: write steps=

A habit costs a second look, not a search. Names that nobody is known to use get the nearest of ours.
"""

import functools
import inspect
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, ParamSpec, TypeVar

from sdjax.core.errors import closest

P = ParamSpec("P")
R = TypeVar("R")

_SEED = "seed= takes a whole number, a jax key (jax.random.key(3)), or a list with one for each picture"
_COUNT = "write num_images= (pictures of each prompt), or a list of prompts"
_LOAD = "it is chosen when the model is opened: sdjax.load("
_EMBEDS = "prompts are texts here; embeddings go to sd.predict(x, t, context), which sdjax.sample runs"
_FORMAT = "the result has all forms: .images (PIL), .pixels (uint8), .latents; decode=False leaves the pictures out"
_NETWORK = "nothing is to be moved or switched on: "
_NONE = "sdjax has nothing of the kind"
_ADAPTERS = "write adapters=[(sdjax.load_adapter(path), 0.8)]"
_STEERED = "write control=[(sdjax.load_controlnet(path), map, 0.8)]"
_CONTROL = "write control=sdjax.Control(net, map, scale=, start=, end=, mode=)"
_SHOWN = "write image_prompt=[(sdjax.load_image_prompt(path), picture, 0.8)]"
_TWICE = "there is no second pass: generate(image=out[0], width=, height=, strength=) of the picture is one"
_SAVED = "generate gives pictures and writes none: out[0].save(path)"
_CROP = "write mask_crop=, the pixels around the region"
_WHITE = "white is made anew; PIL.ImageOps.invert turns a mask round"

# Arguments of `generate` as diffusers, A1111's API, ComfyUI, CompVis's scripts and others call them.
GENERATE: dict[str, str] = {
    **dict.fromkeys(
        ("num_inference_steps", "inference_steps", "num_steps", "n_steps", "sampling_steps", "ddim_steps"),
        "write steps=",
    ),
    **dict.fromkeys(("num_sampling_steps", "total_steps"), "write steps="),
    **dict.fromkeys(("cfg_scale", "cfg", "guidance", "unconditional_guidance_scale"), "write guidance_scale="),
    "scale": "write guidance_scale=",
    **dict.fromkeys(("generator", "key", "rng", "rng_key", "prng_seed", "noise_seed", "manual_seed"), _SEED),
    **dict.fromkeys(("negative", "neg", "neg_prompt", "n_prompt", "negative_prompts"), "write negative_prompt="),
    "uncond": "write negative_prompt=",
    **dict.fromkeys(("prompts", "text", "caption", "positive"), "write prompt=, one text or a list of them"),
    **dict.fromkeys(("n_iter", "batch_size", "batch_count", "num_images_per_prompt", "n_samples"), _COUNT),
    **dict.fromkeys(("num_samples", "num_outputs", "n"), _COUNT),
    **dict.fromkeys(("scheduler", "scheduler_name"), "write sampler= (sdjax.samplers() lists them) and schedule="),
    **dict.fromkeys(("sampler_name", "sampler_index"), "write sampler=; sdjax.samplers() lists them"),
    **dict.fromkeys(("sampling_method", "solver"), "write sampler=; sdjax.samplers() lists them"),
    **dict.fromkeys(("noise_schedule", "schedule_type", "timestep_spacing"), "write schedule=; see sdjax.schedules()"),
    "use_karras_sigmas": 'write schedule="karras"',
    "use_exponential_sigmas": 'write schedule="exponential"',
    "use_beta_sigmas": 'write schedule="beta"',
    **dict.fromkeys(("init_image", "init_images", "input_image", "init_img", "img", "start_image"), "write image="),
    "latent_image": "write latents= for noise to start from, image= for latents of a picture",
    "images": "write image=, one or a list of them",
    **dict.fromkeys(("mask_image", "inpaint_mask"), "write mask="),
    **dict.fromkeys(("mask_blur_x", "mask_blur_y"), "write mask_blur="),
    **dict.fromkeys(("padding_mask_crop", "inpaint_full_res", "inpaint_full_res_padding"), _CROP),
    "inpaint_only_masked": _CROP,
    **dict.fromkeys(("invert_mask", "inpainting_mask_invert"), _WHITE),
    **dict.fromkeys(("denoising_strength", "denoise", "prompt_strength", "image_strength"), "write strength="),
    **dict.fromkeys(("callback_on_step_end", "step_callback", "on_step"), "write callback=, called with a Preview"),
    **dict.fromkeys(("callback_steps", "callback_on_step_end_tensor_inputs"), "callback= is called after every step"),
    **dict.fromkeys(("prompt_embeds", "negative_prompt_embeds", "context"), _EMBEDS),
    **dict.fromkeys(("pooled_prompt_embeds", "negative_pooled_prompt_embeds"), _EMBEDS),
    **dict.fromkeys(("prompt_ids", "neg_prompt_ids"), _EMBEDS),
    **dict.fromkeys(("output_type", "return_dict", "return_type"), _FORMAT),
    **dict.fromkeys(("save_images", "send_images", "do_not_save_samples", "outpath_samples"), _SAVED),
    **dict.fromkeys(("resolution", "size", "image_size", "aspect_ratio"), "write height= and width="),
    "W": "write width=",
    "H": "write height=",
    "crops_coords_top_left": "write crop=",
    "negative_crops_coords_top_left": "write negative_crop=",
    **dict.fromkeys(("high_noise_frac", "refiner_switch_at"), "write refiner_start="),
    "refiner_checkpoint": "write refiner=, a loaded one: sdjax.load(refiner)",
    "start_at_step": "write denoising_start=, a share of the run",
    "end_at_step": "write denoising_end=, a share of the run",
    "depth_map": "write depth=",
    **dict.fromkeys(("clip_stop_at_last_layers", "CLIP_stop_at_last_layers"), 'write clip_skip="a1111:2"'),
    "num_images_per_seed": _COUNT,
    **dict.fromkeys(("subseed", "subseed_strength"), "no seed has variations; latents= takes noise that you mix"),
    **dict.fromkeys(("seed_resize_from_h", "seed_resize_from_w"), _NONE),
    **dict.fromkeys(("enable_hr", "hr_scale", "hr_upscaler", "hr_second_pass_steps"), _TWICE),
    **dict.fromkeys(("hr_resize_x", "hr_resize_y"), _TWICE),
    **dict.fromkeys(("restore_faces", "tiling", "styles", "freeu", "hypertile", "s_min_uncond", "pag_scale"), _NONE),
    **dict.fromkeys(("script_name", "alwayson_scripts", "override_settings", "inpainting_fill"), _NONE),
    **dict.fromkeys(("ip_adapter_image", "ip_adapter_scale"), _SHOWN),
    **dict.fromkeys(("control_image", "controlnet", "control_net", "adapter_image"), _STEERED),
    **dict.fromkeys(("controlnet_conditioning_scale", "adapter_conditioning_scale"), _STEERED),
    **dict.fromkeys(("control_guidance_start", "control_guidance_end", "guess_mode", "control_mode"), _CONTROL),
    "cross_attention_kwargs": _ADAPTERS,
    **dict.fromkeys(("loras", "lora", "adapter", "lora_scale", "hypernetwork"), _ADAPTERS),
    **dict.fromkeys(("textual_inversion", "embedding"), 'write embeddings={"<cat>": sdjax.load_adapter(path)}'),
    "lora_dir": "write adapters_folder=",
    **dict.fromkeys(("jit", "compile"), "leave it out: a run is always compiled"),
    "device": "leave it out: it is jax's default device, or see sdjax.parallel",
    **dict.fromkeys(("params", "unet"), 'dataclasses.replace(sd, params={**sd.params, "unet": ...}) has others'),
    "vae": f"{_LOAD}model, vae=)",
    "karras": 'write schedule="karras"',
    "order": 'it is an option: sampler_options={"solver_order": ...}',
    "show_progress": "write progress=",
    **dict.fromkeys(("model", "checkpoint", "pretrained_model_name_or_path"), f"{_LOAD}model)"),
    **dict.fromkeys(("dtype", "torch_dtype"), f'{_LOAD}model, dtype="bfloat16")'),
    **{
        name: f'it is an option: sampler_options={{"{name}": ...}}'
        for name in ("sigmas", "timesteps", "rho", "s_churn", "s_noise", "s_tmin", "s_tmax", "solver_order")
    },
}  # fmt: skip

LOAD: dict[str, str] = {
    **dict.fromkeys(("model", "path", "checkpoint", "pretrained_model_name_or_path", "repo_id"), "write it first"),
    **dict.fromkeys(("torch_dtype", "precision"), 'write dtype="bfloat16"'),
    "use_safetensors": "leave it out: nothing else is read",
    **dict.fromkeys(("safety_checker", "requires_safety_checker"), "leave it out: there is none"),
    **dict.fromkeys(("device", "device_map"), "it is jax's default device, or see sdjax.parallel"),
    **dict.fromkeys(("scheduler", "sampler"), "it is chosen for each picture: generate(sampler=, schedule=)"),
    **dict.fromkeys(("token", "use_auth_token", "cache_dir", "local_files_only"), "huggingface_hub's variables say it"),
    **dict.fromkeys(("cache", "compile_cache"), "write compilation_cache="),
    "config": "it is told from the tensors",
    "original_config": "it is told from the tensors",
}  # fmt: skip

PLAN: dict[str, str] = {
    **dict.fromkeys(("num_inference_steps", "num_steps", "n_steps"), "write steps="),
    **dict.fromkeys(("config", "scheduler_config"), "write scheduler=, as sd.scheduler"),
    **dict.fromkeys(("sampler_name", "solver"), "write sampler="),
    "use_karras_sigmas": 'write schedule="karras"',
    "use_exponential_sigmas": 'write schedule="exponential"',
    "use_beta_sigmas": 'write schedule="beta"',
    "sampler_options": "write its entries as arguments, as s_churn=20.0",
    "num_train_timesteps": "it belongs to the scheduler's config: scheduler={**sd.scheduler, ...}",
}

# Of `sd.plan` alone.
OWN_PLAN = {"scheduler": "it is the checkpoint's own here; sdjax.plan takes another"}

SAMPLE: dict[str, str] = {
    **dict.fromkeys(("seed", "generator", "rng"), "write key=, as jax.random.key(0)"),
    **dict.fromkeys(("latents", "x", "sample"), "write x_T=, unit Gaussian [b, h, w, c]"),
    **dict.fromkeys(("steps", "num_inference_steps", "sampler", "schedule"), "the plan says it: sdjax.plan(...)"),
    **dict.fromkeys(("unet", "denoiser", "network"), "write model=, a function (x, t) -> raw prediction"),
}

PREDICT: dict[str, str] = {
    **dict.fromkeys(("x", "sample", "latents", "noisy_latents"), "write x_t="),
    **dict.fromkeys(("timestep", "timesteps"), "write t="),
    **dict.fromkeys(("encoder_hidden_states", "conditions", "prompt", "prompt_embeds"), "write context="),
    "variables": 'write params=, a tree as sd.params["unet"]',
}

# Of `conditions` beside those of `encode_prompt`.
SIZES: dict[str, str] = {
    "crops_coords_top_left": "write crop=",
    **dict.fromkeys(("height", "width"), "write original_size= and target_size=, (height, width) each"),
}

ENCODE: dict[str, str] = {
    **dict.fromkeys(("prompt", "text", "texts", "negative_prompt"), "write prompts=, a list of texts"),
}

# Names that a loaded model of another program has.
MODEL: dict[str, str] = {
    **dict.fromkeys(("to", "cuda", "cpu", "half", "float", "eval", "train"), f"{_NETWORK}{_LOAD}model, dtype=)"),
    **dict.fromkeys(("text_encoder", "text_encoder_2", "tokenize"), "write sd.encode_prompt([...])"),
    **dict.fromkeys(("apply", "model", "diffusion_model", "apply_model"), "write sd.predict(x, t, context)"),
    **dict.fromkeys(("first_stage_model", "decode_first_stage", "decode_latents"), "write sd.decode(latents)"),
    **dict.fromkeys(("encode_first_stage", "encode_images"), "write sd.encode(pixels)"),
    **dict.fromkeys(("save_pretrained", "save_checkpoint"), "write sd.save(folder)"),
    **dict.fromkeys(("from_pretrained", "from_single_file", "load"), "write sdjax.load(model)"),
    **dict.fromkeys(("txt2img", "img2img", "inpaint", "sample", "pipeline"), "write sd.generate(prompt)"),
    **dict.fromkeys(("load_lora_weights", "fuse_lora", "set_adapters"), "sd.with_adapters([(adapter, 0.8)]) is one"),
    "load_textual_inversion": 'write generate(embeddings={"<cat>": path})',
    "set_progress_bar_config": "write generate(progress=False)",
    "betas": "sd.alphas_cumprod is the cumulative product of 1 - betas",
    "config": "sd.unet, sd.vae and sd.scheduler are the configs",
    "device": "it is jax's default device, or see sdjax.parallel",
    **dict.fromkeys(("sigmas", "timesteps", "set_timesteps"), "a plan has them: sd.plan(sampler, steps)"),
    "vae_scale_factor": "write sd.vae.factor",
    "scale_factor": "write sd.vae.scaling_factor",
    "latent_channels": "write sd.vae.latent_channels",
    **dict.fromkeys(("clip", "cond_stage_model", "embed"), "write sd.encode_prompt([...])"),
    "progress_bar": "write generate(progress=True)",
    "samplers": "write sdjax.samplers()",
    "schedules": "write sdjax.schedules()",
}  # fmt: skip

# Names of what a pipeline of another program gives back.
OUTPUT: dict[str, str] = {
    **dict.fromkeys(("save", "image", "show"), "out[0] is the first picture: out[0].save(path), out[0].show()"),
    **dict.fromkeys(("sample", "sequences"), "out.pixels are the pictures as an array, out.latents before decoding"),
    **dict.fromkeys(("nsfw_content_detected", "has_nsfw_concept"), _NONE),
    **dict.fromkeys(("to_tuple", "keys"), "out.images, out.pixels, out.latents and out.settings are its parts"),
    **dict.fromkeys(("seed", "seeds", "prompt", "info", "parameters"), "out.settings has what made the pictures"),
}
PREFIXES = {"enable_": "nothing is to be switched on", "disable_": "nothing is to be switched off"}

CALLED = "sd.generate(prompt) makes pictures, sd.predict(x, t, context) is the U-Net alone"

# Names that another package's top has.
PACKAGE: dict[str, str] = {
    **dict.fromkeys(("from_pretrained", "from_single_file", "load_model", "open"), "write sdjax.load(model)"),
    **dict.fromkeys(
        ("AutoPipelineForText2Image", "AutoPipelineForImage2Image", "AutoPipelineForInpainting"),
        "sd = sdjax.load(model), then sd.generate(prompt)",
    ),
    **dict.fromkeys(("generate", "txt2img", "encode_prompt", "predict", "decode"), "sd = sdjax.load(model) has it"),
    **dict.fromkeys(("UNet2DConditionModel", "AutoencoderKL", "CLIPTextModel"), "sdjax.load(model) has all networks"),
    "save": "sd = sdjax.load(model), then sd.save(folder)",
    **dict.fromkeys(("SAMPLERS", "sampler"), "write sdjax.samplers()"),
    **dict.fromkeys(("SCHEDULES", "schedule", "schedulers"), "write sdjax.schedules()"),
    "spread": "write sdjax.parallel.spread",
    "shard": "write sdjax.parallel.shard",
}
SUFFIXES = {"Pipeline": "sd = sdjax.load(model), then sd.generate(prompt)", "Scheduler": "write sdjax.samplers()"}


def arguments(
    hints: Mapping[str, str], needs: str = "", like: Callable[..., Any] | None = None
) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Decorates a function: an argument that it does not have is a TypeError with the hint or the nearest name.

    hints: by the name that was written. needs: what to say where an argument that it needs is missing.
    like: another function, whose arguments this one takes.
    """

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        signature = inspect.signature(function)
        if like is not None:
            signature = signature.replace(parameters=list(inspect.signature(like).parameters.values()))
        known = {name: one for name, one in signature.parameters.items() if one.kind is not one.VAR_KEYWORD}
        takes_others, name = len(known) < len(signature.parameters), function.__name__

        @functools.wraps(function)
        def checked(*args: P.args, **named: P.kwargs) -> R:
            wrong = [word for word in named if word not in known and (word in hints or not takes_others)]
            if wrong:
                told = "; nor ".join(f"{word}: {hint(word, hints, known)}" for word in wrong)
                raise TypeError(f"{name}() has no argument {told}")
            if needs:
                try:
                    signature.bind(*args, **named)
                except TypeError as error:
                    raise TypeError(f"{name}(): {error}: {needs}") from None
            return function(*args, **named)

        if like is not None:
            checked.__signature__ = signature  # type: ignore[attr-defined]
        return checked

    return decorate


def hint(word: str, hints: Mapping[str, str], known: Iterable[str]) -> str:
    """What to write in place of `word`: a hint, or else the nearest of the names that there are."""
    names = [name for name in dict.fromkeys(known) if name != "self"]
    snake = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", word).lower()  # JavaScript writes cfgScale
    for spelt in (word, word.removeprefix("Flax"), snake):
        if spelt in hints:
            return hints[spelt]
    if snake in names:
        return f"did you mean {snake}?"
    ends = [told for prefix, told in PREFIXES.items() if word.startswith(prefix)]
    ends += [told for suffix, told in SUFFIXES.items() if word.endswith(suffix)]
    near = closest(word, names, most=3)
    return (ends or [f"did you mean {' or '.join(near)}?" if near else "help() lists those that there are"])[0]
