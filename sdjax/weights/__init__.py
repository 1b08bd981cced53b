"""Checkpoints: found, opened, read, named, written; safetensors and JSON, never a pickle.

Read `names` (how tensors are called and laid out), `files` (headers, checked before a byte is trusted), `tensors` (read
into our order of axes), `load` (a folder), `hub` and `source` (where a name leads); then single files: `identify`,
`families`, `ldm`, `openclip`, `single_file`; then `save`, `write` and `save_single_file`, the way back.
"""

from sdjax.core.errors import CheckpointError
from sdjax.weights.checkpoint import Checkpoint
from sdjax.weights.hub import resolve
from sdjax.weights.index import ModelIndex, read_index, side_files
from sdjax.weights.load import open_folder, read_component, read_json
from sdjax.weights.names import Layout
from sdjax.weights.save import default_layout, save_component, save_folder
from sdjax.weights.save_single_file import save_single_file
from sdjax.weights.single_file import open_single_file
from sdjax.weights.source import open_checkpoint
from sdjax.weights.vae import open_vae

__all__ = [
    "Checkpoint",
    "CheckpointError",
    "Layout",
    "ModelIndex",
    "default_layout",
    "open_checkpoint",
    "open_folder",
    "open_single_file",
    "open_vae",
    "read_component",
    "read_index",
    "read_json",
    "resolve",
    "save_component",
    "save_folder",
    "save_single_file",
    "side_files",
]
