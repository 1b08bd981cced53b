"""IP-Adapters: what is read of them and what is refused, what their networks are, where and how strongly they count."""

import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from sdjax.adapters.image_prompt import ImagePromptAdapter, load_image_prompt
from sdjax.adapters.image_prompt_names import places
from sdjax.adapters.paths import published
from sdjax.config import ClipVisionConfig, UNetConfig
from sdjax.core.tree import flatten, modules_named
from sdjax.images.processor import Processor
from sdjax.nn.attention import attention
from sdjax.nn.image_prompt import ImagePromptEncoder, attention_paths, image_keys_values, projection_shapes
from sdjax.nn.shapes import expected_params
from sdjax.weights.names import file_shapes, tensor_name
from tests.checkpoints import UNET
from tests.golden import make_image_prompt
from tests.image_prompts import (
    ENCODER,
    KINDS,
    config_of,
    write_image_prompt,
)
from tests.test_hub import hub  # noqa: F401, a fixture
from tests.test_presets import file_size

OWN = expected_params({"unet": UNetConfig.from_dict(UNET)})["unet"]


@pytest.fixture
def path(tmp_path) -> Path:
    return write_image_prompt(tmp_path, OWN)


# What is read ---------------------------------------------------------------


@pytest.mark.parametrize("diffusers", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_what_is_read(kind, diffusers, tmp_path):
    """The same parameters by either set of names; they stay in the file."""
    ip = load_image_prompt(write_image_prompt(tmp_path, OWN, kind, diffusers=diffusers))
    assert isinstance(ip, ImagePromptAdapter) and (ip.name, ip.config, ip.layers) == (
        "ip-adapter",
        config_of(kind, 16),
        4,
    )
    bound = ip.bind(OWN)
    assert jax.tree.map(np.shape, bound["image_proj"]) == jax.tree.map(np.shape, projection_shapes(ip.config))
    assert all(not one.flags.writeable and not one.flags.owndata for one in jax.tree.leaves(bound))
    other = load_image_prompt(write_image_prompt(tmp_path, OWN, kind, diffusers=not diffusers, name="other"))
    jax.tree.map(np.testing.assert_array_equal, bound, other.bind(OWN))


def test_what_is_said_of_it(path):
    ip = load_image_prompt(path)
    assert repr(ip) == "<ImagePromptAdapter 'ip-adapter': base for a model of its own kind, 4 layers, 4 tokens, 0.0 MB>"
    assert load_image_prompt(path, "cat").name == "cat" and len(ip.short_hash) == 12
    assert load_image_prompt(path.parent).short_hash == ip.short_hash  # a folder that holds one
    changed = write_image_prompt(path.parent, OWN, name="other", seed=1)
    assert load_image_prompt(changed).short_hash != ip.short_hash
    with pytest.raises(ValueError, match="name must be a text, not 7"):
        load_image_prompt(path, 7)


@pytest.mark.parametrize("dtype", [np.float16, jnp.bfloat16, np.float64])
def test_dtypes(dtype, tmp_path):
    ip = load_image_prompt(write_image_prompt(tmp_path, OWN, "plus", dtype=dtype))
    assert {one.dtype for one in jax.tree.leaves(ip.bind(OWN))} == {
        np.dtype(np.float32 if dtype == np.float64 else dtype)
    }


def test_keys_and_values_are_where_the_u_net_looks_for_them(path):
    own = load_image_prompt(path).bind(OWN)["attention"]
    made = image_keys_values(own, jnp.ones((2, 3, 16)), jnp.bfloat16)
    there = {path: layers["to_k"]["kernel"].shape[1] for path, layers in modules_named(OWN, ("attn2",))}
    assert {path: k.shape for path, (k, _) in made.items()} == {path: (2, 3, width) for path, width in there.items()}
    assert {one.dtype for pair in made.values() for one in pair} == {jnp.dtype(jnp.bfloat16)}
    first = next(iter(own))
    with pytest.raises(ValueError, match=f"{re.escape(first)}.to_k_ip.what: no layer reads"):
        image_keys_values(
            {first: own[first] | {"to_k_ip": {**own[first]["to_k_ip"], "what": 1}}}, jnp.ones((1, 3, 16)), "f"
        )


@pytest.mark.parametrize("kind", KINDS)
def test_pictures_are_told_apart_and_by_themselves(kind, tmp_path):
    """Each picture's tokens are its own; those of none are of another thing than a black picture."""
    ip = load_image_prompt(write_image_prompt(tmp_path, OWN, kind))
    config, params, preprocessor = ip.encoder
    module, own = (
        ImagePromptEncoder(config, ip.config),
        {"image_encoder": params, "image_proj": ip.bind(OWN)["image_proj"]},
    )
    shades = [Image.new("RGB", (50, 40), color) for color in ("black", "red")]
    pixels = np.stack([Processor.from_dict(preprocessor)(one) for one in shades])
    assert pixels.shape == (2, 32, 32, 3)
    both = module.apply({"params": own}, pixels)
    count = {"base": 4, "plus": 6, "full": 17}[kind]
    assert both.shape == (2, count, 16) and both.dtype == jnp.float32
    none = module.apply({"params": own}, method="unconditional")
    np.testing.assert_allclose(module.apply({"params": own}, pixels[1:]), both[1:], rtol=1e-4, atol=1e-5)
    assert none.shape == (1, count, 16) and abs(none - both[0]).max() > 0.01 and abs(both[0] - both[1]).max() > 0.01
    half = ImagePromptEncoder(config, ip.config, jnp.bfloat16).apply({"params": own}, pixels)
    assert half.dtype == jnp.float32 and 0 < abs(half - both).max() < 0.2


def test_no_picture_of_the_kind_base_needs_no_encoder(path):
    ip = load_image_prompt(path)
    module = ImagePromptEncoder(ClipVisionConfig.from_dict(ENCODER), ip.config)
    own = ip.bind(OWN)["image_proj"]
    made = module.apply({"params": {"image_proj": own}}, method="unconditional")
    bias = own["image_embeds"]["bias"].reshape(4, 16)
    normed = (bias - bias.mean(-1, keepdims=True)) / np.sqrt(bias.var(-1, keepdims=True) + 1e-5)
    np.testing.assert_allclose(made[0], normed * own["norm"]["scale"] + own["norm"]["bias"], rtol=1e-4, atol=1e-5)


# Goldens -------------------------------------------------------------------


@pytest.fixture(scope="module")
def golden() -> dict:
    return make_image_prompt.golden()


@pytest.mark.parametrize("name", make_image_prompt.ENCODERS)
def test_published_encoders(name, golden):
    config = ClipVisionConfig.from_dict(make_image_prompt.ENCODERS[name])
    ours = flatten(expected_params({"image_encoder": config})["image_encoder"])
    assert {tensor_name(path): file_shapes(path, leaf.shape)[0] for path, leaf in ours.items()} == golden[name]


@pytest.mark.parametrize("name", make_image_prompt.ADAPTERS)
def test_published_projections(name, golden):
    ours = flatten(projection_shapes(make_image_prompt.ADAPTERS[name][1]))
    assert {tensor_name(path): file_shapes(path, leaf.shape)[0] for path, leaf in ours.items()} == golden[name]


def test_numbers_of_parameters():
    """From ../shared/reference/ADAPTERS.md, section 10."""
    for name, count in (("ip-adapter_sd15", 3_150_336), ("ip-adapter-plus_sd15", 29_918_208)):
        leaves = jax.tree.leaves(projection_shapes(make_image_prompt.ADAPTERS[name][1]))
        assert sum(int(np.prod(leaf.shape)) for leaf in leaves) == count


@pytest.mark.parametrize("preset", ["sd15", "sdxl"])
def test_the_order_of_published_ids(preset, golden):
    """As diffusers counts attention: the middle is last, and the tenth layer comes after the ninth."""
    listed = dict.fromkeys(name.rpartition(".to_")[0] for name in golden[f"{preset}/attention"])
    paths = attention_paths(published(preset)["unet"])
    assert paths == tuple(listed) and len(paths) == {"sd15": 16, "sdxl": 70}[preset]
    firsts = {"sd15": {0: "down_blocks.0.attentions.0", 6: "up_blocks.1.attentions.0", 15: "mid_block.attentions.0"},
              "sdxl": {0: "down_blocks.1.attentions.0", 4: "down_blocks.2.attentions.0", 24: "up_blocks.0.attentions.0",
                       54: "up_blocks.1.attentions.0", 60: "mid_block.attentions.0"}}[preset]  # fmt: skip
    assert all(paths[i] == f"{name}.transformer_blocks.0.attn2" for i, name in firsts.items())


def published_tensors(name: str, golden: dict) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Names and shapes of a published file's tensors, by its authors' names."""
    preset, config = make_image_prompt.ADAPTERS[name]
    layers = list(golden[f"{preset}/attention"].items())
    tensors = {}
    for number, (key, shape) in enumerate(layers):
        tensors[f"ip_adapter.{2 * (number // 2) + 1}.{key.split('.')[-2]}.weight"] = ("F16", shape)
    where = places(config.kind)
    for path, leaf in flatten(projection_shapes(config)).items():
        place = where(("image_proj", *path), leaf.shape)[0]
        tensors[place.name] = ("F16", place.shapes[0])
    return tensors


# Sizes in bytes of the files of h94/IP-Adapter, from the Git LFS pointers (with these beginnings of their SHA-256) in
# public copies on GitHub: qhdamm/AAI3201_Final_Project, altayavci/OutfitChanger.
PUBLISHED = [
    ("ip-adapter_sd15", 44642768, "289b45f1"),  # and ip-adapter_sd15_light, 0747d08d
    ("ip-adapter_sd15_vit-G", 46215640, "a26f736a"),
    ("ip-adapter-plus_sd15", 98183288, "a1c250be"),  # and ip-adapter-plus-face_sd15, 1c9edc21
    ("ip-adapter-full-face_sd15", 43592352, "f4a17fb6"),
    ("ip-adapter_sdxl_vit-h", 698391064, "ebf05d91"),
    ("ip-adapter-plus_sdxl_vit-h", 847517512, "3f5062b8"),  # and ip-adapter-plus-face_sdxl_vit-h, 677ad886
]


@pytest.mark.parametrize(("name", "size", "sha256"), PUBLISHED)
def test_files_of_these_tensors_have_the_published_size(name, size, sha256, golden):
    assert file_size(published_tensors(name, golden), aged=False, metadata=False) == size


@pytest.mark.parametrize(
    ("name", "dtype", "size"), [("vit_h", "F32", 2528373448), ("vit_big_g", "F16", 3689912664)]
)  # SHA-256 6ca9667d, 657723e0
def test_encoders_of_these_tensors_have_the_published_size(name, dtype, size, golden):
    tensors = {key: (dtype, shape) for key, shape in golden[name].items()}
    tensors |= {"vision_model.embeddings.position_ids": ("I64", (1, 257))}
    assert size in (file_size(tensors, aged=True), file_size(tensors, aged=False))


def test_two_softmaxes():
    """The value I1 of ADAPTERS.md, section 10, and the sum that one softmax over both would give."""

    def f(k, *shape):
        return np.sin(np.arange(np.prod(shape)) + k).reshape(1, shape[1], 1, shape[2]).astype(np.float32)

    q, k, v, k_ip, v_ip = f(1, 1, 3, 4), f(2, 1, 5, 4), f(3, 1, 5, 4), f(4, 1, 2, 4), f(5, 1, 2, 4)
    out = np.asarray(attention(q, k, v) + 0.6 * attention(q, k_ip, v_ip), np.float64).reshape(-1)
    said = [out[0], out[-1], np.linalg.norm(out), np.sum(out * np.cos(np.arange(out.size)))]
    np.testing.assert_allclose(said, [0.506755, -0.098529, 1.925787, 3.849174], atol=2e-6)
