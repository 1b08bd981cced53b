"""Distances, resizing and scores against scipy, torch and transformers; a trained VAE in diffusers."""

import diffusers
import jax
import numpy as np
import pytest
import scipy
import torch
import transformers
from PIL import Image
from safetensors.torch import save_file
from torch.nn import functional as F

from sdjax.config import VaeConfig
from sdjax.core.errors import CheckpointError
from sdjax.nn.vae import Autoencoder
from sdjax.text.tokens import Tokenizer
from sdjax.train.evaluation.features import InceptionFeatures, processor
from sdjax.train.evaluation.frechet import frechet_distance
from sdjax.train.evaluation.resizing import resized
from sdjax.train.evaluation.scores import clip_scores, cosines, pick_scores
from sdjax.train.evaluation.statistics import Statistics
from sdjax.train.methods.clip import read_clip
from sdjax.train.methods.vae import VaeTraining
from tests.parity import training_networks as theirs

SHAPES_TOKENIZER = "sdjax/assets/shapes/tokenizer"


@pytest.mark.parametrize("n, d", [(500, 32), (400, 64)])
def test_frechet_is_pytorch_fids(n, d):
    """Its calculate_frechet_distance: scipy's root of the product of the covariances."""
    rng = np.random.default_rng(0)
    mix = rng.standard_normal((d, d)) / np.sqrt(d)
    first, second = rng.standard_normal((n, d)) @ mix + 0.2, rng.standard_normal((n, d))
    mu, sigma = zip(*((one.mean(0), np.cov(one, rowvar=False)) for one in (first, second)), strict=True)
    root = scipy.linalg.sqrtm(sigma[0] @ sigma[1])
    apart = mu[0] - mu[1]
    wanted = apart @ apart + np.trace(sigma[0]) + np.trace(sigma[1]) - 2 * np.trace(root.real)
    assert abs(frechet_distance(Statistics.of(first), Statistics.of(second)) / wanted - 1) < 1e-8


@pytest.mark.parametrize("shape, side", [((40, 60), 29), ((20, 20), 50)])
def test_resizing_is_torchs(shape, side):
    pictures = np.random.default_rng(0).integers(0, 256, (2, *shape, 3), np.uint8)
    wanted = F.interpolate(theirs.nchw(pictures.astype(np.float32)), (side, side), mode="bilinear", align_corners=False)
    np.testing.assert_allclose(resized(pictures, side, "pytorch"), wanted.permute(0, 2, 3, 1), atol=1e-3)


def test_inception_from_a_file(tmp_path):
    """pytorch-fid's tensors, its last layer too; features are pytorch-fid's of the same pictures."""
    torch.manual_seed(0)
    network = theirs.scattered(theirs.Inception()).eval()
    state = {k: v.contiguous() for k, v in network.state_dict().items()}
    save_file(
        state | {"fc.weight": torch.zeros(1008, 2048), "fc.bias": torch.zeros(1008)}, tmp_path / "fid.safetensors"
    )
    pictures = np.random.default_rng(0).integers(0, 256, (3, 64, 80, 3), np.uint8)
    with torch.no_grad():
        x = F.interpolate(
            theirs.nchw(pictures.astype(np.float32) / 255), (299, 299), mode="bilinear", align_corners=False
        )
        wanted = network(2 * x - 1).numpy()
    features = InceptionFeatures.read(tmp_path / "fid.safetensors", "pytorch")
    got = features((Image.fromarray(one) for one in pictures), batch=2)
    assert abs(got - wanted).max() / abs(wanted).max() <= 1e-4
    del state["Mixed_7c.branch_pool.bn.running_var"]
    save_file(state, tmp_path / "less.safetensors")
    with pytest.raises(CheckpointError, match="does not hold pytorch-fid's Inception-v3"):
        InceptionFeatures.read(tmp_path / "less.safetensors")
    torch.save(state, tmp_path / "fid.pth")
    with pytest.raises(CheckpointError, match="is a pickle"):
        InceptionFeatures.read(tmp_path / "fid.pth")


def test_scores_are_transformers(tmp_path):
    tokenizer = Tokenizer.load(SHAPES_TOKENIZER)
    sizes = dict(hidden_size=24, intermediate_size=40, num_hidden_layers=2, num_attention_heads=3)
    text = dict(vocab_size=tokenizer.size, max_position_embeddings=24, eos_token_id=tokenizer.eos, **sizes)
    torch.manual_seed(0)
    config = transformers.CLIPConfig(
        text_config=text, vision_config=dict(image_size=32, patch_size=8, **sizes), projection_dim=16
    )
    network = transformers.CLIPModel(config).eval()
    network.save_pretrained(tmp_path)
    clip, rng = read_clip(tmp_path), np.random.default_rng(0)
    pictures = [Image.fromarray(rng.integers(0, 256, (40, 50 + i, 3), np.uint8)) for i in range(5)]
    texts = ["a red circle", "a blue square", "a green star above a red circle", "", "a black ring"]
    prepare = processor(clip.vision)
    pixels = torch.from_numpy(np.stack([prepare(one) for one in pictures]).transpose(0, 3, 1, 2).copy())
    with torch.no_grad():
        out = network(input_ids=torch.from_numpy(tokenizer.tokens(texts)).long(), pixel_values=pixels)
    wanted = (out.image_embeds * out.text_embeds).sum(1).numpy()
    found = cosines(clip, tokenizer, pictures, texts, batch=2)
    np.testing.assert_allclose(found, wanted, atol=1e-5)
    np.testing.assert_allclose(clip_scores(found), 100 * np.maximum(wanted, 0), atol=1e-3)
    np.testing.assert_allclose(pick_scores(clip, found), out.logits_per_image.diagonal().numpy(), atol=1e-4)
    with pytest.raises(ValueError, match="5 pictures and 4 texts"):
        cosines(clip, tokenizer, pictures, texts[:4])


def test_a_written_vae_is_opened_by_diffusers(tmp_path):
    sizes = dict(block_out_channels=(8, 16), norm_num_groups=4, latent_channels=4, layers_per_block=1)
    config = VaeConfig.from_dict(sizes)
    pixels = np.random.default_rng(0).uniform(-1, 1, (2, 16, 16, 3)).astype(np.float32)
    params = jax.jit(Autoencoder(config).init)(jax.random.key(1), pixels)["params"]
    method = VaeTraining(config)
    folder = method.write(method.start({"vae": params}, jax.random.key(0)), {"vae": params}, tmp_path, {})
    opened = diffusers.AutoencoderKL.from_pretrained(folder)
    with torch.no_grad():
        wanted = opened(theirs.nchw(pixels)).sample.permute(0, 2, 3, 1).numpy()
    got = np.asarray(jax.jit(Autoencoder(config).apply)({"params": params}, pixels))
    assert abs(got - wanted).max() / abs(wanted).max() <= 1e-5
    assert opened.config.scaling_factor == config.scaling_factor
