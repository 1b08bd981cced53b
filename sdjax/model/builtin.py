"""The models that come with this package, and the names that stand for their paths.

    shapes               text to picture
    shapes-inpainting    the same with a 9-channel U-Net: a picture, what of it is hidden, and what is to be there
    shapes-depth         with a 5-channel one: a depth map, and what stands in it

The latter two have U-Nets of their own and share the rest with the first.
"""

from dataclasses import replace
from functools import partial
from pathlib import Path

from sdjax.core.errors import closest
from sdjax.weights import Checkpoint, CheckpointError, open_checkpoint, read_component, read_json

ASSETS = Path(__file__).resolve().parents[1] / "assets"  # an installation may be a farm of links, which is our own
SHAPES = "shapes"
SHIPPED = (SHAPES, "shapes-inpainting", "shapes-depth")


def meant(source: str | Path) -> bool:
    """Whether a name is one of `SHIPPED`. Raises CheckpointError, with the nearest, for one that nearly is."""
    name = str(source)
    if Path(source).exists() and name not in SHIPPED:
        return False
    near = closest(name, SHIPPED, cutoff=0.8)
    if near and name not in SHIPPED and not {"/", "."} & {*name}:
        raise CheckpointError(f"{name} is no folder here and no model of this package; nearest: {near[0]!r}")
    return name in SHIPPED


def open_shipped(name: str, prediction_type: str | None = None) -> Checkpoint:
    """One of `SHIPPED`, open. Raises CheckpointError where the installation has lost a file."""
    shared = open_checkpoint(ASSETS / SHAPES, prediction_type=prediction_type)
    if name == SHAPES:
        return shared
    folder = ASSETS / name.replace("-", "_")

    opened = shared.with_network(
        "unet", read_json(folder / "unet" / "config.json"), partial(read_component, folder / "unet")
    )
    index = (folder / "model_index.json").read_bytes()
    return replace(opened, files={**opened.files, "model_index.json": index})
