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

What the pictures wear, and words that the model does not know (docs/adapters.md):

    python -m experiments.generate --prompt="a red hexagon" --adapter=hexagon:0.9
    python -m experiments.generate --prompt="a <lime> circle" --embedding="<lime>=lime"

What steers them (docs/control.md; `experiments.preprocess` makes maps of pictures):

    python -m experiments.preprocess --map=canny --image=photo.png --out=edges.png
    python -m experiments.generate --model=.. --prompt=".." --control=canny.safetensors=edges.png,scale=0.8
    python -m experiments.generate --model=.. --image_prompt=ip-adapter.safetensors=photo.png,scale=0.6

--show_steps=all writes out/00000_steps.png beside the picture, a strip of what the network saw at each step
and of what it took that for, and out/00000_steps.webp, the same as an animation. Ctrl-C ends a run after the
step that is going on, and what is done is kept; again, and it ends at once.

Run time, the whole process on 2 CPU cores: about 9 s the first time, when the programs are compiled, and 4 s
after that. What to expect: a picture of what was asked, 128 x 128 pixels with the shapes model.
"""

import json
from typing import Any

from absl import flags

from experiments import _cli, _control, _pictures, _steps


def define_flags() -> None:
    """Called for the program only: who imports this file may name flags of their own as they like."""
    from experiments import _arguments  # with JAX behind it, which takes seconds

    _arguments.define_flags()
    flags.DEFINE_multi_string("prompt", None, "What to show. Given several times: one picture of each.")
    flags.DEFINE_string(
        "model", None, "A folder, a file, a Hub id, or shapes (default), shapes-inpainting, shapes-depth."
    )
    flags.DEFINE_string("vae", None, "Another autoencoder: a .safetensors file or a folder.")
    flags.DEFINE_string("refiner", None, "SDXL's refiner, a folder, a file or a Hub id: it ends the run.")
    flags.DEFINE_enum("prediction_type", None, ["epsilon", "v_prediction"], "Of the U-Net; default: as found.")
    flags.DEFINE_string("variant", None, "Which weights where there are several files, as fp16.")
    flags.DEFINE_enum("dtype", "float32", ["float32", "bfloat16", "float16"], "What the networks compute in.")
    flags.DEFINE_multi_string("sampler_option", [], "name=value, as s_churn=20; several times for several.")
    flags.DEFINE_multi_string("adapter", [], "path:scale, as style.safetensors:0.8; several times for several.")
    flags.DEFINE_multi_string("embedding", [], "word=path of a textual inversion, as <cat>=cat.safetensors.")
    flags.DEFINE_string("out", "out", "Folder for the pictures; none that is there is overwritten.")
    flags.DEFINE_string("compilation_cache", "on", "on (in the user's cache folder), off, or a folder.")
    _control.define_flags()
    _pictures.define_flags()
    _steps.define_flags()


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


def adapters(given: list[str]) -> list[tuple[str, float]] | None:
    """["style.safetensors:0.8", "pose.safetensors"] as paths with their scales, 1 where there is none."""
    pairs = []
    for one in given:
        path, _, scale = one.rpartition(":")
        try:
            pairs.append((path, float(scale)) if path else (one, 1.0))
        except ValueError:  # a colon in the path, as in C:\\style.safetensors
            pairs.append((one, 1.0))
    return pairs or None


def embeddings(given: list[str]) -> dict[str, str] | None:
    """["<cat>=cat.safetensors"] as paths by word. Raises ValueError."""
    words: dict[str, str] = {}
    for one in given:
        word, sign, path = one.partition("=")
        if not sign or not path:
            raise ValueError(f"--embedding={one}: write word=path, as <cat>=cat.safetensors")
        if word in words:
            raise ValueError(f"--embedding={one}: the word {word!r} is given twice")
        words[word] = path
    return words or None


def main(values: Any) -> None:
    """Checks the folder, loads, generates, saves, prints the pictures' paths. `values` has a flag an attribute.

    Raises KeyboardInterrupt after Ctrl-C, when what was done by then is saved.
    """
    import sdjax
    from experiments import _arguments
    from sdjax.core import files
    from sdjax.metadata import picture

    files.check_writable(values.out)
    options, show_steps = sampler_options(values.sampler_option), _steps.asked(values.show_steps)
    cache = {"on": True, "off": False}.get(values.compilation_cache, values.compilation_cache)
    arguments: dict[str, Any] = _arguments.given(values) | _pictures.arguments(values)
    opening = {"dtype": values.dtype, "variant": values.variant, "compilation_cache": cache}
    sd = sdjax.load(values.model, prediction_type=values.prediction_type, vae=values.vae, **opening)
    refiner = sdjax.load(values.refiner, **opening) if values.refiner else None
    arguments |= {"sampler_options": options, "refiner": refiner, "show_steps": show_steps}
    arguments |= {"adapters": adapters(values.adapter), "embeddings": embeddings(values.embedding)}
    arguments |= _control.arguments(values)
    with _steps.Interrupt() as interrupt:
        made = sd.generate(values.prompt, callback=interrupt.go_on, **arguments)
    paths = picture.save_all(made.images, values.out)
    print(*paths, sep="\n", flush=True)
    for path in _steps.write(sd, values.preview_decoder, made.steps, paths):
        print(path)
    if interrupt.asked:
        raise KeyboardInterrupt


if __name__ == "__main__":
    _cli.run(lambda: main(flags.FLAGS), define_flags)
