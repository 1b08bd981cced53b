r"""Pictures from prompts.

    python -m experiments.generate --prompt="a large red circle on a white background"

writes out/00000.png, with its settings inside, and prints where it is. The model is the one of coloured
shapes that comes with sdjax; --model takes a folder in the diffusers layout or a Hub id:

    python -m experiments.generate --model=stable-diffusion-v1-5/stable-diffusion-v1-5 --variant=fp16 \
        --prompt="an astronaut on a horse" --steps=25 --num_images=4

Run time, the whole process on 2 CPU cores: about 9 s the first time, when the programs are compiled, and 4 s
after that. What to expect: a picture of what was asked, 128 x 128 pixels with the shapes model.
"""

from typing import Any

from absl import flags

from experiments import _cli


def define_flags() -> None:
    """Called for the program only: who imports this file may name flags of their own as they like."""
    flags.DEFINE_multi_string("prompt", None, "What to show. Given several times: one picture of each.", required=True)
    flags.DEFINE_string("negative_prompt", "", "What to steer away from.")
    flags.DEFINE_string("model", None, "A folder in the diffusers layout or a Hub id; default: the shapes model.")
    flags.DEFINE_string("variant", None, "Which weights where there are several files, as fp16.")
    flags.DEFINE_enum("dtype", "float32", ["float32", "bfloat16", "float16"], "What the networks compute in.")
    flags.DEFINE_integer("steps", 20, "Steps of the sampler.", lower_bound=1)
    flags.DEFINE_string("sampler", "dpmpp_2m", "By name: ddim, pndm, euler, dpmpp_2m ...")
    flags.DEFINE_string("schedule", None, "By name: leading, trailing, linspace, karras; default: the model's own.")
    flags.DEFINE_float("guidance_scale", None, "Pull of the prompt, 1 for none; default: the model's own.")
    flags.DEFINE_float("eta", 0.0, "Fresh noise of ddim, 0 to 1.", lower_bound=0.0, upper_bound=1.0)
    flags.DEFINE_integer("seed", 0, "Picture i is the i-th of this seed.", lower_bound=0)
    flags.DEFINE_integer("num_images", 1, "Pictures of each prompt.", lower_bound=1)
    flags.DEFINE_integer("height", None, "Pixels; default: the model's own.", lower_bound=1)
    flags.DEFINE_integer("width", None, "Pixels; default: the model's own.", lower_bound=1)
    flags.DEFINE_string("out", "out", "Folder for the pictures; none that is there is overwritten.")
    flags.DEFINE_string("compilation_cache", "on", "on (in the user's cache folder), off, or a folder.")
    flags.DEFINE_boolean("progress", None, "A progress bar; default: where standard error is a terminal.")


# Flags that go to `generate` as they are.
ARGUMENTS = (
    "negative_prompt", "steps", "sampler", "schedule", "guidance_scale", "eta", "seed", "num_images",
    "height", "width", "progress",
)  # fmt: skip


def main(values: Any) -> None:
    """Checks the folder, loads, generates, saves, prints the pictures' paths. `values` has a flag an attribute."""
    import sdjax  # takes seconds with JAX behind it, which a wrong flag should not cost
    from sdjax import picture

    picture.check_writable(values.out)
    cache = {"on": True, "off": False}.get(values.compilation_cache, values.compilation_cache)
    sd = sdjax.load(values.model, dtype=values.dtype, variant=values.variant, compilation_cache=cache)
    arguments: dict[str, Any] = {name: getattr(values, name) for name in ARGUMENTS}
    made = sd.generate(values.prompt, **arguments)
    for path in picture.save_all(made.images, values.out):
        print(path)


if __name__ == "__main__":
    define_flags()
    _cli.run(lambda: main(flags.FLAGS))
