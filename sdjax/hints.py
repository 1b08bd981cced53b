"""What people write who come from other programs, and what it is called here.

    sd.generate("a cat", num_inference_steps=30)
    TypeError: generate() has no argument num_inference_steps: write steps=

A habit costs a second look, not a search. Names that nobody is known to use get the nearest of ours. This file imports
nothing of sdjax, so that every file may import it.
"""

import difflib
import functools
import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")

_SEED = "seed= takes a whole number, a jax key (jax.random.key(3)), or a list with one for each picture"
_COUNT = "write num_images= (pictures of each prompt), or a list of prompts"
_LOAD = "it is chosen when the model is opened: sdjax.load("
_EMBEDS = "prompts are texts here; embeddings go to sd.predict(x, t, context), which sdjax.sample runs"
_FORMAT = "the result has all forms: .images (PIL), .pixels (uint8), .latents; decode=False leaves the pictures out"
_NETWORK = "nothing is to be moved or switched on: "

# Arguments of `generate` as diffusers, A1111's API, ComfyUI, CompVis's scripts and others call them.
GENERATE: dict[str, str] = {
    **dict.fromkeys(
        ("num_inference_steps", "inference_steps", "num_steps", "n_steps", "sampling_steps", "ddim_steps"),
        "write steps=",
    ),
    **dict.fromkeys(("cfg_scale", "cfg", "guidance", "unconditional_guidance_scale"), "write guidance_scale="),
    "scale": "write guidance_scale=",
    **dict.fromkeys(("generator", "key", "rng", "rng_key", "prng_seed", "noise_seed", "manual_seed"), _SEED),
    **dict.fromkeys(("negative", "neg_prompt", "n_prompt", "negative_prompts", "uncond"), "write negative_prompt="),
    **dict.fromkeys(("prompts", "text", "caption"), "write prompt=, one text or a list of them"),
    **dict.fromkeys(("n_iter", "batch_size", "batch_count", "num_images_per_prompt", "n_samples"), _COUNT),
    **dict.fromkeys(("num_samples", "num_outputs", "n"), _COUNT),
    **dict.fromkeys(("scheduler", "scheduler_name"), "write sampler= (sdjax.samplers() lists them) and schedule="),
    **dict.fromkeys(("sampler_name", "sampler_index", "solver"), "write sampler=; sdjax.samplers() lists them"),
    **dict.fromkeys(("noise_schedule", "schedule_type", "timestep_spacing"), "write schedule=; see sdjax.schedules()"),
    "use_karras_sigmas": 'write schedule="karras"',
    "use_exponential_sigmas": 'write schedule="exponential"',
    "use_beta_sigmas": 'write schedule="beta"',
    **dict.fromkeys(("init_image", "init_images", "input_image", "init_img", "img"), "write image="),
    "images": "write image=, one or a list of them",
    **dict.fromkeys(("mask_image", "inpaint_mask"), "write mask="),
    **dict.fromkeys(("denoising_strength", "denoise", "prompt_strength", "image_strength"), "write strength="),
    **dict.fromkeys(("callback_on_step_end", "step_callback", "on_step"), "write callback=, called with a Preview"),
    **dict.fromkeys(("callback_steps", "callback_on_step_end_tensor_inputs"), "callback= is called after every step"),
    **dict.fromkeys(("prompt_embeds", "negative_prompt_embeds", "context", "embeddings"), _EMBEDS),
    **dict.fromkeys(("pooled_prompt_embeds", "negative_pooled_prompt_embeds"), _EMBEDS),
    **dict.fromkeys(("output_type", "return_dict", "return_type"), _FORMAT),
    **dict.fromkeys(("resolution", "size", "image_size"), "write height= and width="),
    "W": "write width=",
    "H": "write height=",
    "crops_coords_top_left": "write crop=",
    "negative_crops_coords_top_left": "write negative_crop=",
    "high_noise_frac": "write refiner_start=",
    "depth_map": "write depth=",
    "clip_stop_at_last_layers": 'write clip_skip="a1111:2"',
    "num_images_per_seed": _COUNT,
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
    **dict.fromkeys(("txt2img", "img2img", "inpaint", "sample", "run", "pipeline"), "write sd.generate(prompt)"),
    **dict.fromkeys(("load_lora_weights", "fuse_lora", "load_textual_inversion"), "sd.params is a tree to merge into"),
    "set_progress_bar_config": "write generate(progress=False)",
    "betas": "sd.alphas_cumprod is the cumulative product of 1 - betas",
    "config": "sd.unet, sd.vae and sd.scheduler are the configs",
    "samplers": "write sdjax.samplers()",
    "schedules": "write sdjax.schedules()",
}  # fmt: skip
PREFIXES = {"enable_": "nothing is to be switched on", "disable_": "nothing is to be switched off"}

CALLED = "sd.generate(prompt) makes pictures, sd.predict(x, t, context) is the U-Net alone"

# Names that another package's top has.
PACKAGE: dict[str, str] = {
    **dict.fromkeys(("from_pretrained", "from_single_file", "load_model", "open"), "write sdjax.load(model)"),
    **dict.fromkeys(
        ("StableDiffusionPipeline", "FlaxStableDiffusionPipeline", "DiffusionPipeline", "StableDiffusionXLPipeline"),
        "sd = sdjax.load(model), then sd.generate(prompt)",
    ),
    **dict.fromkeys(("generate", "txt2img", "encode_prompt", "predict", "decode"), "sd = sdjax.load(model) has it"),
    **dict.fromkeys(("SAMPLERS", "sampler"), "write sdjax.samplers()"),
    **dict.fromkeys(("SCHEDULES", "schedule", "schedulers"), "write sdjax.schedules()"),
    "spread": "write sdjax.parallel.spread",
    "shard": "write sdjax.parallel.shard",
}


def arguments(hints: Mapping[str, str], needs: str = "") -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Decorates a function: an argument that it does not have is a TypeError with the hint or the nearest name.

    hints: by the name that was written. needs: what to say where an argument that it needs is missing.
    """

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        signature = inspect.signature(function)
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

        return checked

    return decorate


def hint(word: str, hints: Mapping[str, str], known: Iterable[str]) -> str:
    """What to write in place of `word`: a hint, or else the nearest of the names that there are."""
    if word in hints:
        return hints[word]
    prefixed = [told for prefix, told in PREFIXES.items() if word.startswith(prefix)]
    near = difflib.get_close_matches(word, [name for name in known if name != "self"], n=3)
    return (prefixed or [f"did you mean {' or '.join(near)}?" if near else "help() lists those that there are"])[0]
