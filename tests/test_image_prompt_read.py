"""IP-Adapters' files and image encoders: where they are found, and what is refused, in one sentence each."""

import json
import os
import pickle
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import sdjax
from sdjax.adapters.image_prompt import load_image_prompt
from sdjax.config import UNetConfig
from sdjax.nn.shapes import expected_params
from sdjax.weights import CheckpointError
from tests.adapters import SMALL, kohya, written
from tests.checkpoints import UNET, make_checkpoint
from tests.image_prompts import ENCODER, image_prompt_tensors, write_image_encoder, write_image_prompt
from tests.test_hub import hub  # noqa: F401, a fixture

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
        ({"latents": np.ones((2, 6, 32), "f")}, "latents must be .1, tokens, width., not .2, 6, 32."),
        ({"latents": np.ones((1, 5000, 32), "f")}, "5,000 tokens; at most 4,096"),
        ({"layers.999999999.0.to_q.weight": np.ones((128, 32), "f")}, "layers.999999999.0.to_q.weight is of too"),
        ({"layers.4.0.to_q.weight": np.ones((128, 32), "f")}, r"missing:.*image_proj.layers.4.0"),
        ({"layers.0.0.to_q.weight": np.ones((100, 32), "f")}, "to_q is 100 wide, .* a head's 64"),
        ({"layers.0.0.to_kv.weight": np.ones((255, 32), "f")}, r"to_kv.weight: expected \[256, 32\], found \[255"),
        ({"layers.0.attn.to_k.weight": np.ones((128, 32), "f")}, "duplicate:.*to_kv.weight, image_proj.*to_k"),
    ],
)  # fmt: skip
def test_resamplers_that_do_not_fit(changed, match, tmp_path):
    path = write_image_prompt(tmp_path, OWN, "plus")
    changed = {f"image_proj.{name}": tensor for name, tensor in changed.items()}
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
    refused(7, "load_image_prompt takes a file, a folder or a Hub id, not 7")
    refused(written(path, {}), "holds no tensors")
    os.unlink(path)
    os.mkfifo(path)
    refused(path, "is no file but a pipe")


FACE = "which is not supported: .*insightface.*take a plus-face adapter"


@pytest.mark.parametrize(
    ("names", "what"),
    [
        (["image_proj.norm.weight", "image_proj.proj.0.weight", "image_proj.proj.2.weight"], f"FaceID, {FACE}"),
        (["image_proj.perceiver_resampler.proj_in.weight", "image_proj.norm.weight"], f"FaceID Plus, {FACE}"),
        (["image_proj.proj.weight", "ip_adapter.0.to_q_lora.down.weight"], f"FaceID, {FACE}"),
        (["id_encoder.visual_projection.weight", "lora_weights.unet.x"], "no IP-Adapter but PhotoMaker"),
        (["control_model.input_blocks.0.0.weight"], "no IP-Adapter but a ControlNet"),
        (["what.ever"], "no IP-Adapter, or only a part of one: it holds no image_proj.*what.ever"),
    ],
)  # fmt: skip
def test_files_of_other_things(names, what, tmp_path):
    refused(
        written(tmp_path / "a.safetensors", {name: np.ones((2, 2), np.float16) for name in names}),
        f"a.safetensors is (an IP-Adapter )?{what}",
    )


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


def test_another_family(path):
    ip = load_image_prompt(path)
    assert ip.family == "custom"
    ip = replace(ip, config=replace(ip.config, cross_attention_dim=2048))
    assert ip.family == "SDXL" and repr(ip).startswith("<ImagePromptAdapter 'ip-adapter': base for SDXL, 4 layers")
    with pytest.raises(ValueError, match=r"'ip-adapter' is for SDXL .text 2048 wide., and this model is a model of"):
        ip.check(OWN)


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"cross_attention_dim": 768}, r"of its own kind \(text 16 wide\), and tiny is SD 1.x \(text 768 wide\)"),
        ({"layers_per_block": 2}, "has layers for 4 cross-attentions, and tiny has 6"),
        ({"block_out_channels": [12, 16], "norm_num_groups": 4}, "is 8 wide where down_blocks.0.* of tiny is 12"),
        (
            {"down_block_types": ["DownBlock2D"] * 2, "up_block_types": ["UpBlock2D"] * 2, "mid_block_type": None},
            "and tiny is a model of its own kind: take",
        ),
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
        "needs an image encoder that gives embeddings of width 20, and there is none at .*image_encoder; give its",
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
        ("nowhere", "image_encoder: nowhere is neither a folder here, with config.json and model.safetensors, nor"),
        ("a/b/../c", "image_encoder: a/b/../c is neither"),
        (Path(__file__), "test_image_prompt_read.py is neither a folder"),
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
    refused("me/ip/sdxl_models/what.safetensors", "holds no sdxl_models/what.safetensors")
    refused("me/ip/models/ip-adapter_sd15.bin", "is a pickle")


def test_a_repository_without_the_encoder(hub, tmp_path):  # noqa: F811
    file = image_prompt_file(tmp_path)
    hub.repositories["me/alone"] = {"models/ip.safetensors": file}
    source = "me/alone/models/ip.safetensors"
    told = "holds no models/image_encoder/config.json or sdxl_models/image_encoder/config.json: ip needs"
    refused(source, told)
    config = json.dumps(ENCODER).encode()
    hub.repositories["me/half"] = {"models/ip.safetensors": file, "models/image_encoder/config.json": config}
    refused(
        "me/half/models/ip.safetensors", "me/half/models/image_encoder holds no .*model.safetensors; it holds: config"
    )


def test_without_network_the_cache_is_taken(hub, tmp_path, monkeypatch):  # noqa: F811
    write_image_prompt(tmp_path / "made", OWN)
    files = {str(one.relative_to(tmp_path / "made")): one.read_bytes() for one in (tmp_path / "made").rglob("*.*")}
    hub.repositories["me/flat"] = files
    there = load_image_prompt("me/flat/ip-adapter.safetensors")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    again = load_image_prompt("me/flat/ip-adapter.safetensors")
    assert again.folder == there.folder and again.short_hash == there.short_hash
    refused("me/flat/ip-adapter.safetensors", "cannot be reached", image_encoder="me/nothing/image_encoder")


def image_prompt_file(folder: Path) -> bytes:
    return write_image_prompt(folder / "file", OWN).read_bytes()


def test_an_encoder_that_is_a_repository_of_its_own(hub, path, tmp_path):  # noqa: F811
    folder = write_image_encoder(tmp_path / "own", seed=1)
    hub.repositories["me/vision"] = {one.name: one.read_bytes() for one in folder.iterdir()}
    found = load_image_prompt(path, image_encoder="me/vision").encoder
    there = load_image_prompt(path, image_encoder=folder).encoder
    assert found.config == there.config
    np.testing.assert_array_equal(*(one.params["visual_projection"]["kernel"] for one in (found, there)))
