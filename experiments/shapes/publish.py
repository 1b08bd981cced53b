"""Stage 5 of the shapes model: the trained parameters as a checkpoint in the diffusers layout, float16.

python -m experiments.shapes.publish --latents=runs/latents --text=runs/text --unet=runs/unet --out=runs/shapes
"""

import json
from pathlib import Path

import jax
import numpy as np
from absl import flags

from experiments import _cli
from experiments.shapes import models, train_text
from experiments.shapes.train_unet import init_params
from sdjax.nn.shapes import expected_params
from sdjax.text.tokens import Tokenizer
from sdjax.train.loop import averaged
from sdjax.weights import default_layout, read_component, save_folder

FLAGS = flags.FLAGS


def unet_params(run: Path, average: int | None) -> dict:
    """The averaged parameters of a run: those that it kept after so many steps, or the newest."""
    if average:
        expected = expected_params({"unet": models.UNET})
        return read_component(run / "averages" / str(average), expected["unet"])[0]
    return averaged(run, {"unet": init_params(0)})["unet"]


def main() -> None:
    latents = Path(FLAGS.latents)
    tokenizer = Tokenizer.load(latents / "tokenizer")
    trained = {
        "text_encoder": train_text.trained_params(FLAGS.text),
        "unet": unet_params(Path(FLAGS.unet), FLAGS.average),
    }
    expected = expected_params({"vae": models.VAE})
    vae, vae_layout = read_component(latents / "vae", expected["vae"])
    components = {"vae": (vae, vae_layout)}
    for name, config in (("text_encoder", models.text_json(tokenizer.size)), ("unet", models.UNET_JSON)):
        params = jax.tree.map(lambda p: np.asarray(p, np.float16), trained[name])
        components[name] = (params, default_layout(params, config))
    index = models.MODEL_INDEX | {"_guidance_scale": FLAGS.guidance_scale}
    files = {
        "model_index.json": index,
        "scheduler/scheduler_config.json": models.SCHEDULER_JSON,
    }
    contents = {name: (json.dumps(value, indent=2) + "\n").encode() for name, value in files.items()}
    contents |= {f"tokenizer/{path.name}": path.read_bytes() for path in sorted((latents / "tokenizer").iterdir())}
    save_folder(FLAGS.out, components, contents)
    size = sum(path.stat().st_size for path in Path(FLAGS.out).rglob("*") if path.is_file())
    print(f"{FLAGS.out}: {size / 1e6:.1f} MB")


if __name__ == "__main__":
    flags.DEFINE_string("latents", "runs/latents", "Folder that stage 2 wrote.")
    flags.DEFINE_string("unet", "runs/unet", "Folder of stage 4's run.")
    flags.DEFINE_integer("average", None, "After how many steps; what train_unet keeps. The newest by default.")
    flags.DEFINE_string("text", "runs/text", "Folder of stage 3's run.")
    flags.DEFINE_string("out", "runs/shapes", "Where the checkpoint goes.")
    flags.DEFINE_float("guidance_scale", 3.0, "The model's default guidance scale.")
    _cli.run(main)
