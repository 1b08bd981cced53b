"""IP-Adapters: what is read of them and what is refused, what their networks are, where and how strongly they count."""

import json
import os
import pickle
import re
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import sdjax
from sdjax.adapters.image_prompt import ImagePromptAdapter, load_image_prompt
from sdjax.adapters.image_prompt_names import places
from sdjax.adapters.image_scales import layer_scales
from sdjax.adapters.paths import published
from sdjax.config import ClipVisionConfig, UNetConfig
from sdjax.core.tree import flatten, modules_named
from sdjax.images.image_prompt_masks import image_masks
from sdjax.images.processor import Processor
from sdjax.nn.attention import attention
from sdjax.nn.image_prompt import ImagePromptEncoder, attention_paths, image_keys_values, projection_shapes
from sdjax.nn.shapes import expected_params
from sdjax.weights import CheckpointError
from sdjax.weights.names import file_shapes, tensor_name
from tests.adapters import SMALL, kohya, written
from tests.checkpoints import UNET, make_checkpoint
from tests.golden import make_image_prompt
from tests.image_prompts import (
    ENCODER,
    KINDS,
    config_of,
    image_prompt_tensors,
    write_image_encoder,
    write_image_prompt,
)
from tests.test_hub import hub  # noqa: F401, a fixture
from tests.test_presets import file_size

OWN = expected_params({"unet": UNetConfig.from_dict(UNET)})["unet"]


@pytest.fixture
def path(tmp_path) -> Path:
    return write_image_prompt(tmp_path, OWN)


def refused(source, match: str, error: type[Exception] = CheckpointError, **options) -> str:
    with pytest.raises(error, match=f"(?s){match}") as caught:
        load_image_prompt(source, **options)
    assert len(str(caught.value)) < 2000
    return str(caught.value)


def broken(path: Path, match: str, *gone: str, **changed) -> str:
    """A file without some tensors, and with others, is refused."""
    tensors = image_prompt_tensors(OWN, "base") | changed
    return refused(written(path, {name: one for name, one in tensors.items() if name not in gone}), match)


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
    refused(path, "name must be a text, not 7", ValueError, name=7)


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


# What is refused -------------------------------------------------------------


def test_tensors_that_do_not_fit(tmp_path):
    path, name = write_image_prompt(tmp_path, OWN), "ip_adapter.3.to_k_ip.weight"
    ones = np.ones((8, 16), np.float32)
    broken(path, r"no whole IP-Adapter of the kind 'base'.*1 missing:\s+ip_adapter.3.to_k_ip.weight", name)
    broken(path, r"1 missing:.*image_proj.norm.bias", "image_proj.norm.bias")
    broken(path, r"1 unexpected:\s+image_proj.what", **{"image_proj.what": ones})
    broken(path, r"1 unexpected:\s+ip_adapter.2.to_k_ip.weight", **{"ip_adapter.2.to_k_ip.weight": ones})
    broken(path, r"ip_adapter.3.to_k_ip.weight: expected \[8, 16\], found \[8, 15\]", **{name: ones[:, :15]})
    broken(path, r"of the wrong shape:\s+ip_adapter.3.to_v_ip.weight: expected", **{name: ones[:7]})
    broken(path, r"ip_adapter.3.to_k_ip.weight: expected F16 or .*, found I32", **{name: ones.astype(np.int32)})
    broken(
        path,
        r"ip_adapter.3.to_k_ip.weight holds nan \(element 5\)",
        **{name: np.where(np.arange(128) == 5, np.nan, 0).reshape(8, 16).astype("f")},
    )
    broken(
        path,
        "ip_adapter.99999.to_k_ip.weight is of too many layers; at most 256",
        **{"ip_adapter.99999.to_k_ip.weight": ones},
    )
    broken(
        path,
        "image_proj: proj.weight must have 2 axes, none of them empty, not .64.",
        **{"image_proj.proj.weight": ones.reshape(-1)[:64]},
    )
    broken(
        path,
        "proj.weight is 65 wide, which is no multiple of norm.weight's 16",
        **{"image_proj.proj.weight": np.ones((65, 20), "f")},
    )
    broken(path, "norm.weight is missing", "image_proj.norm.weight")
    broken(path, "it holds no image_proj", *[key for key in image_prompt_tensors(OWN) if key.startswith("image_proj")])
    broken(path, "it holds no ip_adapter", *[key for key in image_prompt_tensors(OWN) if key.startswith("ip_adapter")])


@pytest.mark.parametrize(
    ("changed", "match"),
    [
        ({"image_proj.latents": np.ones((2, 6, 32), "f")}, "latents must be .1, tokens, width., not .2, 6, 32."),
        ({"image_proj.latents": np.ones((1, 5000, 32), "f")}, "5,000 tokens; at most 4,096"),
        ({"image_proj.layers.999999999.0.to_q.weight": np.ones((128, 32), "f")}, "layers.999999999.0.to_q.weight is of too"),
        ({"image_proj.layers.4.0.to_q.weight": np.ones((128, 32), "f")}, r"missing:.*image_proj.layers.4.0"),
        ({"image_proj.layers.0.0.to_q.weight": np.ones((100, 32), "f")}, "to_q is 100 wide, .* a head's 64"),
        ({"image_proj.layers.0.0.to_kv.weight": np.ones((255, 32), "f")}, r"to_kv.weight: expected \[256, 32\], found \[255"),
        ({"image_proj.layers.0.attn.to_k.weight": np.ones((128, 32), "f")}, "duplicate:.*to_kv.weight, image_proj.*to_k"),
    ],
)  # fmt: skip
def test_resamplers_that_do_not_fit(changed, match, tmp_path):
    path = write_image_prompt(tmp_path, OWN, "plus")
    refused(written(path, image_prompt_tensors(OWN, "plus") | changed), match)


def test_files_that_are_none(path):
    data = path.read_bytes()
    path.write_bytes(data[:-7])
    refused(path, r"ip-adapter.safetensors .* is truncated or corrupt")
    path.write_bytes(pickle.dumps({"image_proj": {}}))
    refused(path, "is a pickle.*an IP-Adapter.*torch.load.old, weights_only=True")
    old = path.rename(path.with_suffix(".bin"))
    refused(old, "ip-adapter.bin is a pickle")
    refused(path.parent, "ip-adapter.bin is a pickle")
    refused(path, "is neither a file nor a folder here nor a Hub id")
    refused(7, "an adapter is a file, a folder or a Hub id, not 7")
    refused(written(path, {}), "holds no tensors")
    os.unlink(path)
    os.mkfifo(path)
    refused(path, "is no file but a pipe")


FACE = "insightface"


@pytest.mark.parametrize(
    ("names", "what"),
    [
        (["image_proj.norm.weight", "image_proj.proj.0.weight", "image_proj.proj.2.weight"], f"an IP-Adapter FaceID, .*{FACE}"),
        (["image_proj.perceiver_resampler.proj_in.weight", "image_proj.norm.weight"], f"an IP-Adapter FaceID Plus, .*{FACE}"),
        (["image_proj.proj.weight", "ip_adapter.0.to_q_lora.down.weight"], f"FaceID, .*{FACE}"),
        (["id_encoder.visual_projection.weight", "lora_weights.unet.x"], "no IP-Adapter but PhotoMaker"),
        (["control_model.input_blocks.0.0.weight"], "no IP-Adapter but a ControlNet"),
        (["what.ever"], "no IP-Adapter, or only a part of one: it holds no image_proj.*what.ever"),
    ],
)  # fmt: skip
def test_files_of_other_things(names, what, tmp_path):
    refused(written(tmp_path / "a.safetensors", {name: np.ones((2, 2), np.float16) for name in names}), f"is {what}")


def test_instant_id(tmp_path):
    tensors = {"image_proj.latents": np.ones((1, 16, 8), "f"), "image_proj.proj_in.weight": np.ones((8, 512), "f")}
    refused(written(tmp_path / "a.safetensors", tensors), "is InstantID's adapter, .*insightface")


def test_others_send_here_and_are_sent_elsewhere(path, tmp_path):
    with pytest.raises(
        CheckpointError, match="ip-adapter.safetensors is an IP-Adapter: sdjax.load_image_prompt reads it"
    ):
        sdjax.load_adapter(path)
    with pytest.raises(CheckpointError, match="is an IP-Adapter: .*sdjax.load_image_prompt"):
        sdjax.load(path, compilation_cache=False)
    refused(written(tmp_path / "lora.safetensors", kohya(SMALL)), "no IP-Adapter but a LoRA .*sdjax.load_adapter")
    refused(make_checkpoint(tmp_path / "checkpoint"), "is a checkpoint and no adapter")


def test_another_family():
    tensors = image_prompt_tensors(published("sd15")["unet"], "full", dtype=np.float16)
    assert tensors["ip_adapter.31.to_k_ip.weight"].shape == (1280, 768)


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"cross_attention_dim": 768}, r"image prompt 'ip-adapter' is for a model of its own kind \(text 16 wide\), and tiny is SD 1.x \(text 768 wide\)"),
        ({"layers_per_block": 2}, "has layers for 4 cross-attentions, and tiny has 6"),
        ({"block_out_channels": [12, 16], "norm_num_groups": 4}, "is 8 wide where down_blocks.0.* of tiny is 12"),
        ({"down_block_types": ["DownBlock2D"] * 2, "up_block_types": ["UpBlock2D"] * 2, "mid_block_type": None}, "and tiny is a model of its own kind"),
    ],
)  # fmt: skip
def test_a_u_net_that_it_is_not_for(changes, match, path):
    other = expected_params({"unet": UNetConfig.from_dict(UNET | changes)})["unet"]
    ip = load_image_prompt(path)
    with pytest.raises(ValueError, match=match):
        ip.check(other, "tiny")
    with pytest.raises(ValueError, match=match):
        ip.bind(other, "tiny")


# The image encoder -----------------------------------------------------------


def test_where_the_encoder_is(path, tmp_path):
    beside = load_image_prompt(path)
    assert beside.folder.path == path.parent / "image_encoder"
    elsewhere = write_image_encoder(tmp_path / "far" / "vision", seed=1)
    other = load_image_prompt(path, image_encoder=elsewhere)
    assert other.folder.path == elsewhere and other.encoder.config == beside.encoder.config
    kernels = [ip.encoder.params["visual_projection"]["kernel"] for ip in (beside, other)]
    assert not np.array_equal(*kernels) and not any(one.flags.owndata for one in kernels)
    shutil.rmtree(path.parent / "image_encoder")
    refused(
        path,
        r"ip-adapter needs an image encoder that gives embeddings of width 20, and there is none at .*image_encoder; give its folder as image_encoder=",
    )


def test_the_published_folders(tmp_path):
    """An adapter of XL that looks through ViT-H finds it in the folder of SD 1.5's."""
    path = write_image_prompt(tmp_path / "sdxl_models", OWN)
    shutil.rmtree(path.parent / "image_encoder")
    write_image_encoder(path.parent / "image_encoder", ENCODER | {"projection_dim": 21})
    told = refused(path, "none such is there:.*sdxl_models/image_encoder is an encoder of its own kind and gives 21")
    assert "width 20" in told
    write_image_encoder(tmp_path / "models" / "image_encoder")
    assert load_image_prompt(path).folder.path == tmp_path / "models" / "image_encoder"
    plus = write_image_prompt(tmp_path / "sdxl_models", OWN, "plus", name="plus")  # takes states, of which both are
    assert load_image_prompt(plus).folder.path == tmp_path / "sdxl_models" / "image_encoder"


@pytest.mark.parametrize(
    ("given", "match"),
    [
        (7, "image_encoder must be a folder or a Hub id, not 7"),
        ("", "image_encoder: an empty text is neither a folder"),
        ("nowhere", "image_encoder: nowhere is neither a folder here, with config.json and model.safetensors, nor a Hub"),
        ("a/b/../c", "image_encoder: a/b/../c is neither"),
        (Path(__file__), "test_image_prompt.py is neither a folder"),
    ],
)  # fmt: skip
def test_encoders_that_are_none(given, match, path):
    refused(path, match, image_encoder=given)


def test_encoders_that_are_broken(path):
    folder = path.parent / "image_encoder"
    wide = write_image_encoder(
        path.parent / "wide", ENCODER | {"projection_dim": 1280, "hidden_size": 1662, "num_hidden_layers": 1}
    )
    refused(path, "wide is an encoder of its own kind and gives 1280", image_encoder=wide)
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(data[:-3])
    refused(path, "image_encoder/model.safetensors .* is truncated or corrupt")
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(b"")
    refused(path, "image_encoder holds its weights as pickles only .pytorch_model.bin.")
    (folder / "config.json").write_text(json.dumps(ENCODER | {"num_hidden_layers": 10**9}))
    refused(path, "num_hidden_layers must be a whole number from 1 to 256.*CLIPVisionModelWithProjection")
    (folder / "config.json").write_text("{}")
    refused(path, "image_encoder: .*missing; is this the right file")
    (folder / "config.json").unlink()
    refused(path, "image_encoder/config.json is missing")


def test_an_encoder_whose_weights_are_others_is_told_when_it_is_read(path):
    folder = path.parent / "image_encoder"
    (folder / "config.json").write_text(json.dumps(ENCODER | {"num_hidden_layers": 4}))
    ip = load_image_prompt(path)
    with pytest.raises(
        CheckpointError, match="(?s)image_encoder .model.safetensors. does not hold the network.*missing.*layers.3"
    ):
        ip.encoder  # noqa: B018


def test_from_the_hub(hub, tmp_path):  # noqa: F811
    """The adapter, and of two encoders the one that fits; nothing else is fetched, and once is enough."""
    write_image_prompt(tmp_path / "sdxl_models", OWN, name="ip-adapter_sdxl_vit-h")
    shutil.move(tmp_path / "sdxl_models" / "image_encoder", tmp_path / "models" / "image_encoder")
    write_image_encoder(tmp_path / "sdxl_models" / "image_encoder", ENCODER | {"projection_dim": 21})
    files = {
        str(one.relative_to(tmp_path)): one.read_bytes()
        for one in tmp_path.rglob("*")
        if one.suffix in (".json", ".safetensors") and "cache" not in one.parts
    }
    hub.repositories["me/ip"] = files | {"models/image_encoder/pytorch_model.bin": b"x", "README.md": b"x"}
    source = "me/ip/sdxl_models/ip-adapter_sdxl_vit-h.safetensors"
    ip = load_image_prompt(source)
    assert ip.name == "ip-adapter_sdxl_vit-h" and ip.folder.path.parts[-2:] == ("models", "image_encoder")
    assert ip.encoder.config.projection_dim == 20
    fetched = {"sdxl_models/ip-adapter_sdxl_vit-h.safetensors", "models/image_encoder/model.safetensors"}
    assert {name for name in hub.sent if not name.endswith(".json")} == fetched
    hub.sent.clear()
    assert load_image_prompt(source).folder == ip.folder and not hub.sent
    given = load_image_prompt(source, image_encoder="me/ip/models/image_encoder")
    assert given.folder == ip.folder
    refused(source, "gives 21", image_encoder="me/ip/sdxl_models/image_encoder")
    refused(source, "holds no models/what/config.json", image_encoder="me/ip/models/what")
    del hub.repositories["me/ip"]["models/image_encoder/config.json"]
    refused(source, "none such is there")
    refused("me/ip/sdxl_models/what.safetensors", "holds no sdxl_models/what.safetensors")
    refused("me/ip/models/ip-adapter_sd15.bin", "is a pickle")


# How strongly ------------------------------------------------------------------


@pytest.mark.parametrize("value", [0.6, 1, 0, -0.5, np.float32(0.25)])
def test_one_scale(value):
    made = layer_scales(value, OWN, "x")
    assert made.dtype == np.float32 and made.tolist() == [np.float32(value)] * 4


def places_of(preset: str, scales: np.ndarray) -> dict[str, float]:
    """By attention, the scales that are not 0."""
    found: dict[str, set[float]] = {}
    for path, scale in zip(attention_paths(published(preset)["unet"]), scales, strict=True):
        found.setdefault(path.partition(".transformer_blocks")[0], set()).add(float(scale))
    assert all(len(one) == 1 for one in found.values())
    return {path: scale for path, (scale,) in found.items() if scale}


XL_STYLE, XL_LAYOUT = {"up_blocks.0.attentions.1": 1}, {"down_blocks.2.attentions.1": 1}
# Blocks 0-3 and 9-15 of 16 in the order in which they run: down 6, the middle, up 9.
SD_STYLE = {f"{way}.attentions.{i}": 1 for way, count in (("down_blocks.0", 2), ("down_blocks.1", 2), ("up_blocks.2", 3), ("up_blocks.3", 3)) for i in range(count)} | {"up_blocks.1.attentions.2": 1}  # fmt: skip
SD_LAYOUT = {"down_blocks.2.attentions.0": 0.25, "down_blocks.2.attentions.1": 1}


@pytest.mark.parametrize(
    ("preset", "value", "wanted"),
    [
        ("sdxl", "style", XL_STYLE),
        ("sdxl", "layout", XL_LAYOUT),
        ("sdxl", "style+layout", XL_STYLE | XL_LAYOUT),
        ("sdxl", {"up": {"block_0": [0, 1, 0]}}, XL_STYLE),
        ("sdxl", {"down": {"block_2": [0.0, 1.0]}, "up": {"block_0": [0, 1, 0]}}, XL_STYLE | XL_LAYOUT),
        ("sd15", "style", SD_STYLE),
        ("sd15", "layout", SD_LAYOUT),
        ("sd15", "style+layout", SD_STYLE | SD_LAYOUT),
        ("sd15", {}, {}),
        ("sd15", {"mid": 0.5, "down": {"block_1": [0.25]}}, {"mid_block.attentions.0": 0.5, "down_blocks.1.attentions.0": 0.25, "down_blocks.1.attentions.1": 0.25}),
        ("sd15", {"down": 0.5}, {f"down_blocks.{i}.attentions.{j}": 0.5 for i in range(3) for j in range(2)}),
    ],
)  # fmt: skip
def test_scales_by_block(preset, value, wanted):
    assert places_of(preset, layer_scales(value, published(preset)["unet"], "x")) == wanted


@pytest.mark.parametrize(
    ("value", "match"),
    [
        ("stlye", "image prompt 'x': scale 'stlye' is unknown; nearest: 'style'; known: style, layout, style.layout"),
        ({"dwn": 1}, "scale of 'dwn': this U-Net has no such part; nearest: 'down'; known: down, mid, up"),
        ({"up": {"block_3": 1}}, "scale of 'up': 'block_3' is no block with attention to text; nearest: 'block_[01]'; known: block_0, block_1"),
        ({"down": {"block_0": 1}}, "scale of 'down': 'block_0' is no block with attention"),
        ({"down": {2: 1}}, "scale of 'down': 2 is no block"),
        ({"up": {"block_0": [1, 2]}}, "scale of 'up': block_0 has 2 numbers for 3 transformers; give one, or as many"),
        ({"up": {"block_0": []}}, "has 0 numbers for 3"),
        ({"up": {"block_0": [0, float("nan"), 1]}}, "block_0: number 1 must be a number, and finite, not nan"),
        ({"mid": {"block_0": 1}}, "the middle is one block; give a number"),
        ({"mid": "much"}, "scale of 'mid' must be a number"),
        (float("inf"), "image prompt 'x': the scale must be a number, a mapping .* and finite, not inf"),
        (10**400, "and finite, not a number of"),
        (1e39, "and finite"), (True, "not True"), (None, "not None"), ([1, 2], "must be a number, a mapping"),
    ],
)  # fmt: skip
def test_scales_that_are_none(value, match):
    with pytest.raises(ValueError, match=match):
        layer_scales(value, published("sdxl")["unet"], "x")


def test_presets_are_of_published_families():
    with pytest.raises(ValueError, match="'style' is known of SD 1.x, 2.x and XL alone"):
        layer_scales("style", OWN, "x")


# Where ------------------------------------------------------------------------


def test_masks_by_hand():
    """The left half: 1 and 0, and beside the edge what the cubic makes of it; the same at every row."""
    mask = Image.new("L", (64, 32), 0)
    mask.paste(200, (0, 0, 32, 32))  # grey, but more than half
    made = image_masks(mask, 32, 64, [(4, 8), (2, 4)])
    assert {count: one.dtype for count, one in made.items()} == {32: np.dtype("f"), 8: np.dtype("f")}
    np.testing.assert_allclose(made[32].reshape(4, 8), np.tile([1, 1, 1, 1, 0, 0, 0, 0], (4, 1)), atol=1e-6)
    np.testing.assert_allclose(made[8].reshape(2, 4), np.tile([1, 1, 0, 0], (2, 1)), atol=1e-6)
    white = image_masks(Image.new("L", (7, 9), 255), 48, 40, [(6, 5), (3, 3), (2, 2), (1, 1)])
    assert all(np.allclose(one, 1) for one in white.values())


def test_a_level_of_odd_sides_is_not_sheared():
    """Seen in the rows of a level whose height and width diffusers would have to guess from the number of tokens."""
    mask = Image.new("L", (72, 40), 0)
    mask.paste(255, (0, 0, 36, 40))
    rows = image_masks(mask, 40, 72, [(3, 5)])[15].reshape(3, 5)
    np.testing.assert_allclose(rows, np.tile(rows[0], (3, 1)), atol=1e-6)
    assert rows[0, 0] == pytest.approx(1) and rows[0, 4] == pytest.approx(0)
