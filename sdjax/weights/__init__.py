"""Checkpoints in the diffusers layout: found (hub), read (load), named (names), written (save)."""

from sdjax.weights.hub import resolve
from sdjax.weights.load import ModelIndex, read_component, read_index, read_json, side_files
from sdjax.weights.names import CheckpointError, Layout
from sdjax.weights.save import default_layout, save_component, save_folder

__all__ = [
    "CheckpointError",
    "Layout",
    "ModelIndex",
    "default_layout",
    "read_component",
    "read_index",
    "read_json",
    "resolve",
    "save_component",
    "save_folder",
    "side_files",
]
