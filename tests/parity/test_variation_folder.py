"""An image-variation checkpoint: as diffusers saves it, as it is published, and with something missing."""

import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

import sdjax
from sdjax.config import ConfigError
from sdjax.runtime import programs
from sdjax.weights import CheckpointError
from tests.parity import families
from tests.parity.families import relative
from tests.parity.from_picture import picture

NETWORK, INDEX = "image_encoder/model.safetensors", "model_index.json"
PREPROCESSOR = "feature_extractor/preprocessor_config.json"
PLACES = {"vision_model.embeddings.position_ids": np.arange(17)[None]}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved")
    families.build("variation").save_pretrained(folder, safe_serialization=True)
    return folder


@pytest.fixture
def folder(saved, tmp_path):
    """A copy, to be changed."""
    return shutil.copytree(saved, tmp_path / "model")


@pytest.fixture
def published(folder):
    """As in lambdalabs/sd-image-variations-diffusers: with `position_ids`, a safety checker and sizes as numbers."""
    change_tensors(folder, PLACES)
    change(folder / INDEX, safety_checker=["stable_diffusion", "StableDiffusionSafetyChecker"])
    old = {"feature_extractor_type": "CLIPFeatureExtractor", "size": 32, "crop_size": 32, "resample": 3}
    (folder / PREPROCESSOR).write_text(json.dumps(old))
    return folder


def change(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes, indent=2))


def change_tensors(folder, more=None, without=None):
    tensors = load_file(folder / NETWORK) | (more or {})
    tensors.pop(without, None)
    save_file(tensors, folder / NETWORK, {"format": "pt"})


def load(folder):
    return sdjax.load(folder, compilation_cache=False)


def files(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def embedding(sd, image):
    encoder = sd.image_encoder
    return np.asarray(
        programs.encode_image(encoder.config, np.float32, sd.params["image_encoder"], encoder.processor(image))
    )


def test_saved_again_to_the_byte(saved, tmp_path):
    sd = load(saved)
    sd.save(tmp_path / "again")
    assert {NETWORK, PREPROCESSOR} <= set(files(saved))
    assert files(tmp_path / "again") == files(saved)
    assert not sd.encoders and set(sd.params) == {"image_encoder", "unet", "vae"}


def test_as_published(saved, published, tmp_path):
    with pytest.warns(UserWarning, match="left alone, since no picture needs it: safety_checker$"):
        sd = load(published)
    sd.save(tmp_path / "again")
    again, before = files(tmp_path / "again"), files(published)
    assert json.loads(again.pop(INDEX)) == json.loads(before.pop(INDEX)) | {"safety_checker": [None, None]}
    assert again == before
    seen = picture(50, 37)
    np.testing.assert_array_equal(embedding(sd, seen), embedding(load(saved), seen))


@pytest.mark.parametrize("size", [(50, 37), (32, 32), (21, 90)])
def test_an_embedding(saved, size):
    pipeline, seen = families.build("variation"), picture(*size)
    with torch.no_grad():
        theirs = pipeline._encode_image(seen, "cpu", 1, do_classifier_free_guidance=False).numpy()[0, 0]
    sd = load(saved)
    away = relative(embedding(sd, seen), theirs)
    assert away <= 1e-5, away
    assert relative(embedding(sd, picture(*size, seed=1)), theirs) > 1e-3


@pytest.mark.parametrize("name", ["vision_model.post_layernorm.bias", "vision_model.embeddings.class_embedding"])
def test_a_tensor_that_is_missing(folder, name):
    change_tensors(folder, without=name)
    with pytest.raises(CheckpointError, match=f"image_encoder.*\n.*1 missing:\n *{name}"):
        load(folder)


def test_a_tensor_that_is_left_over(folder):
    change_tensors(folder, {"vision_model.more": np.zeros(3, np.float32)})
    with pytest.raises(CheckpointError, match="1 unexpected:\n *vision_model.more"):
        load(folder)


def test_without_an_image_encoder(folder):
    change(folder / INDEX, image_encoder=[None, None])
    with pytest.raises(CheckpointError, match="image_encoder is 'missing'"):
        load(folder)


def test_without_what_prepares_a_picture(folder):
    (folder / PREPROCESSOR).unlink()
    with pytest.raises(CheckpointError, match=f"{PREPROCESSOR} is missing"):
        load(folder)


def test_of_another_pipeline(folder):
    """Others have a text encoder, whatever else they name."""
    change(folder / INDEX, _class_name="StableDiffusionPipeline")
    with pytest.raises(CheckpointError, match="text_encoder is 'missing'"):
        load(folder)


def test_networks_that_do_not_fit(folder):
    change(folder / "image_encoder" / "config.json", projection_dim=24)
    with pytest.raises(ConfigError, match=r"cross_attention_dim is 20.*\(image_encoder\) is 24 wide"):
        load(folder)
