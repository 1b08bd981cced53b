"""A depth checkpoint as diffusers saves it: opened, saved again to the byte, and opened without its estimator."""

import json
import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import sdjax
from sdjax.weights import CheckpointError
from tests.parity import families

PARTS = ("depth_estimator", "feature_extractor")


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved")
    families.build("depth").save_pretrained(folder, safe_serialization=True)
    return folder


@pytest.fixture
def folder(saved, tmp_path):
    """A copy, to be spoiled."""
    return shutil.copytree(saved, tmp_path / "model")


def load(folder, **asked):
    return sdjax.load(folder, compilation_cache=False, **asked)


def files(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_saved_again_to_the_byte(saved, tmp_path):
    load(saved).save(tmp_path / "again")
    assert {name.split("/")[0] for name in files(saved)} >= {*PARTS}
    assert files(tmp_path / "again") == files(saved)


def test_without_an_estimator(folder):
    """A depth map can be given, so it is not needed; asked for, it is said to be missing."""
    for part in PARTS:
        shutil.rmtree(folder / part)
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps(index | dict.fromkeys(PARTS, [None, None])))
    sd = load(folder)
    assert sd.depth_estimator is None
    with pytest.raises(ValueError, match="no depth_estimator"):
        sd.estimate_depth(np.zeros((8, 8, 3), np.uint8))


def test_without_what_prepares_a_picture(folder):
    shutil.rmtree(folder / "feature_extractor")
    with pytest.raises(CheckpointError, match="feature_extractor/preprocessor_config.json"):
        load(folder)


UNUSED = ["dpt.layernorm.weight", "neck.fusion_stage.layers.0.residual_layer1.convolution1.bias"]


@pytest.mark.parametrize("name", UNUSED)
def test_a_tensor_that_is_missing(folder, name):
    """Also of those that nothing uses."""
    path = folder / "depth_estimator" / "model.safetensors"
    tensors = load_file(path)
    del tensors[name]
    save_file(tensors, path, {"format": "pt"})
    with pytest.raises(CheckpointError, match=name):
        load(folder)


def test_a_tensor_that_is_left_over(folder):
    path = folder / "depth_estimator" / "model.safetensors"
    save_file(load_file(path) | {"neck.more.weight": np.zeros(3, np.float32)}, path, {"format": "pt"})
    with pytest.raises(CheckpointError, match="neck.more.weight"):
        load(folder)
