"""One door for every checkpoint: a folder, a single file, or a Hub id."""

import os

from sdjax.weights.checkpoint import Checkpoint
from sdjax.weights.hub import resolve
from sdjax.weights.load import open_folder
from sdjax.weights.prediction import check_type
from sdjax.weights.single_file import open_single_file


def open_checkpoint(
    source: str | os.PathLike[str],
    *,
    variant: str | None = None,
    revision: str = "main",
    prediction_type: str | None = None,
) -> Checkpoint:
    """A checkpoint, open: what it says about itself is known and checked, no weight has been read.

    Args:
      source: a folder in the diffusers layout, a .safetensors file in the original one, or a Hub id (`owner/name`).
      variant: which weights of a folder where there are several, as "fp16". revision: of a Hub id.
      prediction_type: "epsilon", "v_prediction" or "sample", in place of what the checkpoint says or suggests.

    Raises:
      CheckpointError: anything wrong with the files. ValueError: an unknown prediction type.
    """
    check_type(prediction_type)
    path = resolve(source, variant=variant, revision=revision)
    if path.is_file():
        return open_single_file(path, prediction_type)
    opened = open_folder(path, variant)
    return opened if prediction_type is None else opened.with_scheduler(prediction_type=prediction_type)
