"""CLIP's and SigLIP's losses against open_clip's, with their gradients; then through both towers of a CLIPModel."""

import importlib.util
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers

from sdjax.config import ClipTextConfig, ClipVisionConfig
from sdjax.core.tree import flatten
from sdjax.train.losses.contrast import Contrast, clip_loss, siglip_loss
from sdjax.train.methods.clip import ClipTraining, read_clip
from sdjax.weights.names import tensor_name, to_file

B, D = 12, 16
SMALL = dict(hidden_size=24, intermediate_size=40, num_hidden_layers=2, num_attention_heads=3)
TEXT = dict(vocab_size=50, max_position_embeddings=10, eos_token_id=49, bos_token_id=48, pad_token_id=49, **SMALL)


def published():
    """open_clip/loss.py by itself: the package imports torchvision, the file does not."""
    found = importlib.util.find_spec("open_clip")
    assert found is not None and found.submodule_search_locations, "pip install --no-deps open_clip_torch==3.3.0"
    path = Path(found.submodule_search_locations[0]) / "loss.py"
    spec = importlib.util.spec_from_file_location("open_clip_loss", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


THEIRS = published()


def features(seed: int) -> np.ndarray:
    rows = np.random.default_rng(seed).standard_normal((B, D))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


@pytest.mark.parametrize("form, scale", [("clip", 2.659), ("clip", 4.5), ("siglip", 2.3026)])
def test_losses_on_features(form, scale):
    given = [torch.tensor(features(0), requires_grad=True), torch.tensor(features(1), requires_grad=True)]
    given.append(torch.tensor(scale, requires_grad=True))
    if form == "siglip":
        given.append(torch.tensor(-10.0, requires_grad=True))
        wanted = THEIRS.SigLipLoss()(given[0], given[1], given[2].exp(), given[3])
    else:
        wanted = THEIRS.ClipLoss()(given[0], given[1], given[2].exp())
    wanted.backward()
    u, v, *rest = (jnp.asarray(one.detach().numpy()) for one in given)
    valid = jnp.ones(B, bool)

    def loss(u, v, s, *bias):
        return (clip_loss if form == "clip" else siglip_loss)(u, v, s, valid, *bias)

    value, gradients = jax.value_and_grad(loss, argnums=tuple(range(len(given))))(u, v, *rest)
    assert abs(float(value) / float(wanted.detach()) - 1) <= 1e-5
    for mine, one in zip(gradients, given, strict=True):
        np.testing.assert_allclose(mine, one.grad, atol=1e-5 * float(abs(one.grad).max()), rtol=1e-4)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """transformers' CLIPModel, small, and its folder."""
    torch.manual_seed(0)
    config = transformers.CLIPConfig(
        text_config=TEXT, vision_config=dict(image_size=16, patch_size=8, **SMALL), projection_dim=D
    )
    network = transformers.CLIPModel(config).eval()
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.1 * torch.randn_like(parameter))
    folder = tmp_path_factory.mktemp("clip")
    network.save_pretrained(folder)
    return network, folder


def batch_of() -> dict:
    rng = np.random.default_rng(2)
    ids = rng.integers(0, 48, (B, 10)).astype(np.int32)
    ids[:, 0], ids[np.arange(B), rng.integers(3, 10, B)] = 48, 49
    return {"pixels": rng.uniform(-1, 1, (B, 16, 16, 3)).astype(np.float32), "ids": {"text_encoder": ids}}


def theirs_of(batch: dict) -> dict:
    """What CLIPModel takes: ids, and pixels normalised by CLIP's mean and deviation."""
    mean, deviation = np.array([0.48145466, 0.4578275, 0.40821073]), np.array([0.26862954, 0.26130258, 0.27577711])
    pixels = ((batch["pixels"].astype(np.float64) + 1) / 2 - mean) / deviation
    return {
        "input_ids": torch.from_numpy(batch["ids"]["text_encoder"]).long(),
        "pixel_values": torch.from_numpy(pixels.transpose(0, 3, 1, 2).copy()).float(),
    }


def test_both_towers(model):
    """CLIPModel's embeddings through open_clip's loss: the value, and every parameter's gradient."""
    network, folder = model
    clip, batch = read_clip(folder), batch_of()
    assert clip.text.projection_dim == D and clip.text.eos_token_id == 49
    out = network(**theirs_of(batch))
    wanted = THEIRS.ClipLoss()(out.image_embeds, out.text_embeds, network.logit_scale.exp())
    network.zero_grad()
    wanted.backward()
    objective = Contrast(clip.text, clip.vision)
    value, gradients = jax.jit(jax.value_and_grad(lambda p: objective(p, batch, jax.random.key(0))[0]))(clip.params)
    assert abs(float(value) / float(wanted.detach()) - 1) <= 1e-5
    theirs = {name: parameter.grad.numpy() for name, parameter in network.named_parameters()}
    largest = max(abs(one).max() for one in theirs.values())
    tree = {**gradients["text_encoder"], **gradients["image_encoder"], **gradients["contrast"]}
    for path, mine in flatten(tree).items():
        one = theirs.pop(tensor_name(path))
        mine = to_file(path, np.asarray(mine))
        assert abs(mine - one).max() <= 1e-4 * max(abs(one).max(), 1e-3 * largest), path
    assert not theirs


def test_what_is_written_is_opened_by_transformers(model, tmp_path):
    network, folder = model
    clip, batch = read_clip(folder), batch_of()
    method = ClipTraining(clip.text, clip.vision)
    trained = method.start(clip.params, jax.random.key(0))
    trained = jax.tree.map(lambda leaf: leaf * 1.01, trained)
    written = method.write(trained, clip.params, tmp_path, {})
    again = transformers.CLIPModel.from_pretrained(written).eval()
    with torch.no_grad():
        out = again(**theirs_of(batch))
    pictures, texts = Contrast(clip.text, clip.vision).embedded(trained, batch)
    np.testing.assert_allclose(pictures, out.image_embeds, atol=1e-5)
    np.testing.assert_allclose(texts, out.text_embeds, atol=1e-5)
    assert abs(float(again.logit_scale.detach()) - float(trained["contrast"]["logit_scale"])) < 1e-6
    back = read_clip(written)
    for mine, theirs in zip(jax.tree.leaves(back.params), jax.tree.leaves(trained), strict=True):
        np.testing.assert_array_equal(mine, theirs)
    assert isinstance(back.text, ClipTextConfig) and isinstance(back.vision, ClipVisionConfig)
