"""What is measured: one row of the table, at a family's published shapes."""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from sdjax.config.presets import PRESETS, Preset
from sdjax.model.builtin import SHAPES, open_shipped
from sdjax.text import write_word_tokenizer
from sdjax.text.vocabulary import EOS

Call = Callable[[], Any]
ROWS = ("unet_step", "picture", "vae_decode", "text_encoder")
# vega is Segmind's small SDXL (0.75 billion weights in its U-Net, not 2.57); shapes the model that comes with sdjax.
FAMILIES = ("sd15", "sd21", "sdxl", "vega", "shapes")
SAMPLER, SCALE = "dpmpp_2m", 7.5
PROMPT, WORDS = "a photo of a red castle", ("a", "photo", "of", "red", "castle")


@dataclass(frozen=True)
class Job:
    """One row.

    Attributes:
      row: of ROWS, or `matmul`: a product of two square matrices.
      size: of the picture in pixels, height and width; of the matrices. batch: pictures at once.
      steps: of a picture, with guidance. dtype: of the weights, and what the networks compute in.
    """

    row: str
    family: str
    size: int
    batch: int = 1
    steps: int = 20
    dtype: str = "float32"

    def __str__(self) -> str:
        steps = f", {self.steps} steps" if self.row == "picture" else ""
        return f"{self.row}, {self.family}, {self.size} x {self.size}, batch {self.batch}{steps}"

    def dump(self) -> str:
        """As text, for another process."""
        return json.dumps(asdict(self))

    @classmethod
    def read(cls, text: str) -> "Job":
        """The job of `dump`."""
        return cls(**json.loads(text))


def preset(family: str) -> Preset:
    """The family's published configs."""
    if family != SHAPES:
        return PRESETS[family]
    opened = open_shipped(SHAPES)
    return Preset(SHAPES, "sdjax", "StableDiffusionPipeline", opened.configs, opened.scheduler, {"tokenizer": EOS})


def factor(family: str) -> int:
    """Pixels to a latent."""
    return 2 ** (len(preset(family).configs["vae"]["block_out_channels"]) - 1)


def native_size(family: str) -> int:
    """The family's own height and width, in pixels."""
    return factor(family) * preset(family).configs["unet"]["sample_size"]


def pooled_and_ids(job: Job) -> tuple[np.ndarray, np.ndarray] | None:
    """What SDXL's U-Net also takes for both halves of the guidance, float32 `b d` and `b 6`; None for the others."""
    configs = preset(job.family).configs
    if "text_encoder_2" not in configs:
        return None
    shape = (2 * job.batch, configs["text_encoder_2"]["projection_dim"])
    ids = np.array([job.size, job.size, 0, 0, job.size, job.size], np.float32)
    return np.random.default_rng(1).standard_normal(shape, np.float32), np.tile(ids, (2 * job.batch, 1))


def write_tokenizer(folder: str, family: str) -> None:
    """A vocabulary of a few words in `folder`, rows as long as the text encoder takes."""
    length = preset(family).configs["text_encoder"]["max_position_embeddings"]
    write_word_tokenizer(folder, list(WORDS), length)
