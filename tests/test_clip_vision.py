"""CLIP's image encoder: every tensor of the published one, its file to the byte, and what it gives."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sdjax.config import ClipVisionConfig
from sdjax.core.tree import flatten
from sdjax.nn.clip_vision import ClipVisionEncoder
from sdjax.nn.shapes import expected_params
from sdjax.runtime.programs import encode_image
from sdjax.weights.names import file_shapes, tensor_name
from tests.golden import make_image_encoder
from tests.test_presets import file_size

FULL = ClipVisionConfig.from_dict(make_image_encoder.CONFIG)
SMALL = ClipVisionConfig.from_dict(
    dict(
        hidden_size=24, intermediate_size=40, num_hidden_layers=2, num_attention_heads=3, image_size=32, patch_size=8,
        projection_dim=20,
    )
)  # fmt: skip


def published() -> dict[str, tuple[int, ...]]:
    """Names and shapes of the published network's tensors, as ours has them."""
    ours = flatten(expected_params({"image_encoder": FULL})["image_encoder"])
    return {tensor_name(path): file_shapes(path, leaf.shape)[0] for path, leaf in ours.items()}


def test_every_tensor_of_the_published_network():
    assert published() == make_image_encoder.read()


@pytest.mark.parametrize("aged, size", [(True, 1215914883), (False, 1215914880)])  # SHA-256 f2ad478e, e58ac58f
def test_a_file_of_these_tensors_has_the_published_size(aged, size):
    """From the Git LFS pointers in a public copy of the repository, yuanqi99/sd-image-variations-diffusers.

    Both files hold CLIP's `position_ids`, which are no parameters.
    """
    tensors = {name: ("F32", shape) for name, shape in published().items()}
    places = {"vision_model.embeddings.position_ids": ("I64", (1, 257))}
    assert file_size(tensors | places, aged) == size


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_what_it_gives(dtype):
    """One embedding a picture, in float32 whatever it computes in."""
    pixels = jax.ShapeDtypeStruct((3, 224, 224, 3), jnp.float32)
    network = ClipVisionEncoder(FULL, dtype)
    params = jax.eval_shape(network.init, jax.random.key(0), pixels)
    made = jax.eval_shape(network.apply, params, pixels)
    assert (made.shape, made.dtype) == ((3, 768), jnp.float32)


def test_every_patch_counts_and_pictures_do_not_see_each_other():
    pixels = np.random.default_rng(0).standard_normal((3, 32, 32, 3)).astype(np.float32)
    network = ClipVisionEncoder(SMALL)
    params = network.init(jax.random.key(0), pixels)
    together = np.asarray(network.apply(params, pixels))
    alone = np.stack([np.asarray(encode_image(SMALL, jnp.float32, params["params"], one)) for one in pixels])
    np.testing.assert_allclose(alone, together, rtol=1e-4, atol=1e-5)
    for row, column in ((0, 0), (16, 8), (31, 31)):
        changed = pixels[:1].copy()
        changed[0, row, column] += 3
        assert abs(np.asarray(network.apply(params, changed))[0] - together[0]).max() > 1e-3
