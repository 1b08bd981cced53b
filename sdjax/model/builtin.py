"""The models that come with this package, and the names that stand for their paths.

    shapes               text to picture
    shapes-inpainting    the same with a 9-channel U-Net: a picture, what of it is hidden, and what is to be there
    shapes-depth         with a 5-channel one: a depth map, and what stands in it

The latter two have U-Nets of their own and share the rest with the first.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from jax.typing import DTypeLike

from sdjax.core.errors import closest
from sdjax.weights import Checkpoint, CheckpointError, Layout, open_checkpoint, read_component, read_json
from sdjax.weights.tensors import on_device

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

    def read(
        component: str,
        expected: Mapping[str, Any],
        dtype: DTypeLike | None = None,
        place: Callable[[np.ndarray], Any] = on_device,
    ) -> tuple[dict[str, Any], Layout]:
        return read_component(folder / component, expected, dtype=dtype, place=place)

    opened = shared.with_network("unet", read_json(folder / "unet" / "config.json"), read)
    index = (folder / "model_index.json").read_bytes()
    return replace(opened, files={**opened.files, "model_index.json": index})
