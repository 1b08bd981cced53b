r"""Pictures from prompts.

    python -m experiments.generate --prompt="a large red circle on a white background"

writes out/00000.png, with its settings inside, and prints where it is. The model is the one of coloured
shapes that comes with sdjax; --model takes a folder in the diffusers layout, a .safetensors file in the
original one, or a Hub id:

    python -m experiments.generate --model=stable-diffusion-v1-5/stable-diffusion-v1-5 --variant=fp16 \
        --prompt="an astronaut on a horse" --steps=25 --num_images=4 \
        --schedule=karras --guidance_schedule=noise_interval:0.28:5.42
    python -m experiments.generate --model=sd_xl_base_1.0.safetensors --sampler=euler \
        --refiner=sd_xl_refiner_1.0.safetensors \
        --prompt="(an astronaut:1.2) on a horse BREAK oil on canvas" --prompt_style=a1111

A picture to begin from, to paint into or to make larger (--helpshort lists all that there is):

    python -m experiments.generate --image=out/00000.png --strength=0.6 --prompt="a large red star"
    python -m experiments.generate --image=out/00000.png --grow=right:64 --ramp=8 --model=shapes-inpainting \
        --prompt="a red circle to the left of a blue square on a white background"

--show_steps=all writes out/00000_steps.png beside the picture, a strip of what the network saw at each step
and of what it took that for, and out/00000_steps.webp, the same as an animation. Ctrl-C ends a run after the
step that is going on, and what is done is kept; again, and it ends at once.

Run time, the whole process on 2 CPU cores: about 9 s the first time, when the programs are compiled, and 4 s
after that. What to expect: a picture of what was asked, 128 x 128 pixels with the shapes model.
"""

import json
from typing import Any

from absl import flags

from experiments import _cli, _pictures, _steps


def define_flags() -> None:
    """Called for the program only: who imports this file may name flags of their own as they like."""
    flags.DEFINE_multi_string("prompt", None, "What to show. Given several times: one picture of each.")
    flags.DEFINE_string("negative_prompt", None, "What to steer away from.")
    flags.DEFINE_string("prompt_style", "plain", "How prompts are read: plain (no syntax), a1111 or comfy.")
    flags.DEFINE_string("clip_skip", None, "Text layers to leave out, as diffusers:1, a1111:2 or comfy:-2.")
    flags.DEFINE_string("prompt_2", None, "SDXL: another prompt for the second text encoder.")
    flags.DEFINE_string("negative_prompt_2", None, "SDXL: what to steer away from, for the second text encoder.")
    flags.DEFINE_string(
        "model", None, "A folder, a file, a Hub id, or shapes (default), shapes-inpainting, shapes-depth."
    )
    flags.DEFINE_string("vae", None, "Another autoencoder: a .safetensors file or a folder.")
    flags.DEFINE_string("refiner", None, "SDXL's refiner, a folder, a file or a Hub id: it ends the run.")
    flags.DEFINE_float("refiner_start", 0.8, "Where in the run the refiner takes over, 0 to 1.")
    flags.DEFINE_enum("prediction_type", None, ["epsilon", "v_prediction"], "Of the U-Net; default: as found.")
    flags.DEFINE_string("variant", None, "Which weights where there are several files, as fp16.")
    flags.DEFINE_enum("dtype", "float32", ["float32", "bfloat16", "float16"], "What the networks compute in.")
    flags.DEFINE_integer("steps", 20, "Steps of the sampler.", lower_bound=1)
    flags.DEFINE_string("sampler", "dpmpp_2m", "By name: ddim, pndm, euler, dpmpp_2m ...; sdjax.samplers() in Python.")
    flags.DEFINE_string("schedule", None, "By name: leading, trailing, karras, ays ...; default: the model's own.")
    flags.DEFINE_string("preset", None, "Whose noise levels where programs differ: diffusers (default), a1111, comfy.")
    flags.DEFINE_float("eta", None, "Share of fresh noise; default: the sampler's own.", lower_bound=0.0)
    flags.DEFINE_multi_string("sampler_option", [], "name=value, as s_churn=20; several times for several.")
    flags.DEFINE_float("guidance_scale", None, "Pull of the prompt, 1 for none; default: the model's own.")
    flags.DEFINE_string(
        "guidance_schedule", None, "Where it pulls, as interval:0.2:0.8, noise_interval:0.28:5.42, linear, cosine."
    )
    flags.DEFINE_float(
        "guidance_rescale", 0.0, "How much of the contrast it adds is taken back.", lower_bound=0.0, upper_bound=1.0
    )
    flags.DEFINE_integer("seed", 0, "Picture i is the i-th of this seed.", lower_bound=0)
    flags.DEFINE_string("noise_source", "jax", "Whose noise a seed means: jax, torch_cpu or torch_cuda.")
    flags.DEFINE_integer("num_images", 1, "Pictures of each prompt.", lower_bound=1)
    flags.DEFINE_integer("height", None, "Pixels; default: the model's own.", lower_bound=1)
    flags.DEFINE_integer("width", None, "Pixels; default: the model's own.", lower_bound=1)
    for name in SIZES:
        flags.DEFINE_list(name, None, "SDXL: two numbers, height,width or top,left, that the U-Net is told.")
    flags.DEFINE_float("aesthetic_score", None, "SDXL's refiner: 0 to 10; default 6.")
    flags.DEFINE_float("negative_aesthetic_score", None, "SDXL's refiner: 0 to 10; default 2.5.")
    flags.DEFINE_string("out", "out", "Folder for the pictures; none that is there is overwritten.")
    flags.DEFINE_string("compilation_cache", "on", "on (in the user's cache folder), off, or a folder.")
    flags.DEFINE_boolean("progress", None, "A progress bar; default: where standard error is a terminal.")
    _pictures.define_flags()
    _steps.define_flags()


# Flags that go to `generate` as they are.
ARGUMENTS = (
    "negative_prompt", "steps", "sampler", "schedule", "preset", "eta", "guidance_scale", "guidance_schedule",
    "guidance_rescale", "seed", "num_images", "height", "width", "progress", "prompt_style", "clip_skip", "prompt_2",
    "negative_prompt_2", "noise_source", "aesthetic_score", "negative_aesthetic_score", "refiner_start",
)  # fmt: skip
SIZES = (
    "original_size", "crop", "target_size", "negative_original_size", "negative_crop", "negative_target_size",
)  # fmt: skip


def sampler_options(given: list[str]) -> dict[str, Any] | None:
    """["s_churn=20", "solver_type=heun"] as a mapping, values read as JSON where they are. Raises ValueError."""
    options: dict[str, Any] = {}
    for one in given:
        name, sign, value = one.partition("=")
        if not sign:
            raise ValueError(f"--sampler_option={one}: write name=value, as s_churn=20")
        try:
            options[name] = json.loads(value)
        except ValueError:
            options[name] = value
    return options or None


def sizes(values: Any) -> dict[str, tuple[int, ...]]:
    """The flags of SIZES that were given, as numbers. Raises ValueError."""
    given = {name: getattr(values, name) for name in SIZES if getattr(values, name) is not None}
    for name, pair in given.items():
        if len(pair) != 2 or not all(part.strip().isdecimal() for part in pair):
            raise ValueError(f"--{name}={','.join(pair)}: write two whole numbers, as --{name}=1024,1024")
    return {name: tuple(map(int, pair)) for name, pair in given.items()}


def main(values: Any) -> None:
    """Checks the folder, loads, generates, saves, prints the pictures' paths. `values` has a flag an attribute.

    Raises KeyboardInterrupt after Ctrl-C, when what was done by then is saved.
    """
    import sdjax  # takes seconds with JAX behind it, which a wrong flag should not cost
    from sdjax.core import files
    from sdjax.metadata import picture

    files.check_writable(values.out)
    options, show_steps = sampler_options(values.sampler_option), _steps.asked(values.show_steps)
    cache = {"on": True, "off": False}.get(values.compilation_cache, values.compilation_cache)
    arguments: dict[str, Any] = {name: getattr(values, name) for name in ARGUMENTS}
    arguments |= sizes(values) | _pictures.arguments(values)
    opening = {"dtype": values.dtype, "variant": values.variant, "compilation_cache": cache}
    sd = sdjax.load(values.model, prediction_type=values.prediction_type, vae=values.vae, **opening)
    refiner = sdjax.load(values.refiner, **opening) if values.refiner else None
    arguments |= {"sampler_options": options, "refiner": refiner, "show_steps": show_steps}
    with _steps.Interrupt() as interrupt:
        made = sd.generate(values.prompt, callback=interrupt.go_on, **arguments)
    paths = picture.save_all(made.images, values.out)
    print(*paths, sep="\n", flush=True)
    for path in _steps.write(sd, values.preview_decoder, made.steps, paths):
        print(path)
    if interrupt.asked:
        raise KeyboardInterrupt


if __name__ == "__main__":
    define_flags()
    _cli.run(lambda: main(flags.FLAGS))
