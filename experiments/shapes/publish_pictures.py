"""The trained U-Nets that see a picture, each as a checkpoint without the parts it shares with the shapes model.

    python -m experiments.shapes.publish_pictures --task=inpainting --run=runs/inpainting
    python -m experiments.shapes.publish_pictures --task=depth --run=runs/depth

Writes `sdjax/assets/shapes_inpainting` (15 MB) or `sdjax/assets/shapes_depth` (5 MB): unet/ in float16, and a
model_index.json. Text encoder, tokenizer, VAE and scheduler are those of `sdjax/assets/shapes`.
"""

import json
from pathlib import Path

import jax
import numpy as np
from absl import flags

from experiments import _cli
from experiments.shapes import models
from experiments.shapes.train_pictures import initial
from sdjax.model.builtin import ASSETS
from sdjax.train.loop import averaged, newest_step
from sdjax.weights import default_layout, save_component

FLAGS = flags.FLAGS

CLASSES = {"inpainting": "StableDiffusionInpaintPipeline", "depth": "StableDiffusionDepth2ImgPipeline"}
"""What diffusers calls a pipeline with such a U-Net."""


def main() -> None:
    out = Path(FLAGS.out or ASSETS / f"shapes_{FLAGS.task}")
    trained = averaged(FLAGS.run, {"unet": initial(FLAGS.task, 0)})["unet"]
    params = jax.tree.map(lambda p: np.asarray(p, np.float16), trained)
    save_component(out / "unet", params, default_layout(params, models.PICTURE_UNETS[FLAGS.task]))
    index = models.MODEL_INDEX | {"_class_name": CLASSES[FLAGS.task], "_guidance_scale": FLAGS.guidance_scale}
    (out / "model_index.json").write_text(json.dumps(index, indent=2) + "\n")
    size = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
    print(f"{out}: {size / 1e6:.2f} MB, after {newest_step(FLAGS.run)} steps")


if __name__ == "__main__":
    flags.DEFINE_enum("task", None, list(CLASSES), "Which of the two.", required=True)
    flags.DEFINE_string("run", None, "Folder of the run.", required=True)
    flags.DEFINE_string("out", None, "Where the checkpoint goes; the package's own folder by default.")
    flags.DEFINE_float("guidance_scale", 3.0, "The model's default guidance scale.")
    _cli.run(main)
