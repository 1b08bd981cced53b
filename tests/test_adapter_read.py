"""Adapters are read from files, folders and the Hub; whatever is wrong with one is told in words."""

import json
import os
import pickle
import warnings
from pathlib import Path

import numpy as np
import pytest

import sdjax
from sdjax.adapters.adapter import Adapter
from sdjax.adapters.hypernetwork import Hypernetwork
from sdjax.adapters.textual_inversion import TextualInversion
from sdjax.weights import CheckpointError
from tests.adapters import LAYER, SITE, SMALL, factors, kohya, published, written
from tests.checkpoints import make_checkpoint
from tests.test_hub import hub  # noqa: F401, a fixture

K = f"lora_unet_{SITE.replace('.', '_')}"


@pytest.fixture
def path(tmp_path) -> Path:
    return written(tmp_path / "style.safetensors", kohya(SMALL), {"ss_output_name": "my style"})


def refused(source, match: str, error: type[Exception] = CheckpointError, **options) -> str:
    with pytest.raises(error, match=match) as caught:
        sdjax.load_adapter(source, **options)
    return str(caught.value)


# What it is ---------------------------------------------------------------


def test_what_is_said_of_it(path):
    adapter = sdjax.load_adapter(path)
    assert isinstance(adapter, Adapter) and adapter.name == "style" and adapter.aliases == ("style", "my style")
    assert repr(adapter) == "<Adapter 'style': LoRA for SD 1.x, rank 4, 2 modules, 0.0 MB, kohya names>"
    assert sdjax.load_adapter(str(path), "other").name == "other"
    assert adapter.kinds == ("LoRA",) and adapter.ranks == (4,) and adapter.metadata == {"ss_output_name": "my style"}


def test_ranks_of_several_sizes(tmp_path):
    name = "lora_unet_mid_block_attentions_0_proj_in"
    adapter = sdjax.load_adapter(written(tmp_path / "a.safetensors", kohya(SMALL) | kohya({name: (1280, 1280)}, 8)))
    assert adapter.ranks == (4, 8) and "rank 4 to 8" in repr(adapter)


def test_tensors_stay_in_the_file(path):
    adapter = sdjax.load_adapter(path)
    assert all(not array.flags.writeable and not array.flags.owndata for array in adapter.tensors.values())


@pytest.mark.parametrize(
    ("metadata", "family"),
    [
        ({"ss_base_model_version": "sdxl_base_v1-0"}, "SDXL"),
        ({"ss_base_model_version": "sd_v1"}, "SD 1.x"),
        ({"ss_v2": "True"}, "SD 2.x"),
        ({"modelspec.architecture": "stable-diffusion-xl-v1-base/lora"}, "SDXL"),
        ({"x": "y"}, "unknown"),
    ],
)
def test_the_family_of_a_file_that_changes_no_attention(metadata, family, tmp_path):
    tensors = kohya({"lora_unet_down_blocks_1_resnets_0_time_emb_proj": (640, 1280)})
    assert sdjax.load_adapter(written(tmp_path / "a.safetensors", tensors, metadata)).family == family


def test_tensors_tell_the_family_before_the_metadata(tmp_path):
    path = written(tmp_path / "a.safetensors", kohya(SMALL), {"ss_base_model_version": "sdxl_base_v1-0"})
    assert sdjax.load_adapter(path).family == "SD 1.x"


# Where it is --------------------------------------------------------------


@pytest.mark.parametrize("name", ["pytorch_lora_weights.safetensors", "any.safetensors"])
def test_a_folder(name, tmp_path):
    folder = tmp_path / "my_lora"
    folder.mkdir()
    written(folder / name, kohya(SMALL))
    (folder / "README.md").write_text("about it")
    assert sdjax.load_adapter(folder).name == ("my_lora" if name.startswith("pytorch") else "any")


def test_a_folder_of_several(tmp_path):
    for name in ("a", "b"):
        written(tmp_path / f"{name}.safetensors", kohya(SMALL))
    refused(tmp_path, "holds several files; give the path of one:\n    a.safetensors\n    b.safetensors")
    written(tmp_path / "pytorch_lora_weights.safetensors", kohya(SMALL))
    sdjax.load_adapter(tmp_path)


def test_a_folder_without(tmp_path):
    refused(tmp_path, "holds no .safetensors file; it is empty")
    (tmp_path / "pytorch_lora_weights.bin").write_bytes(b"")
    refused(tmp_path, "pytorch_lora_weights.bin is a pickle.*safetensors.torch.save_file")


PEFT = {
    f"base_model.model.{SITE}.lora_A.weight": factors(320, 768)[0],
    f"base_model.model.{SITE}.lora_B.weight": factors(320, 768)[1],
}


def peft_folder(folder: Path, **config) -> Path:
    folder.mkdir(exist_ok=True)
    written(folder / "adapter_model.safetensors", PEFT)
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 4, "lora_alpha": 8} | config))
    return folder


@pytest.mark.parametrize(
    ("config", "scale"),
    [
        ({}, 2.0),
        ({"use_rslora": True}, 4.0),
        ({"alpha_pattern": {SITE: 6}}, 1.5),
        ({"alpha_pattern": {"attn2.to_k": 6}}, 1.5),
        ({"alpha_pattern": {f"^{SITE}": 6}}, 1.5),
        ({"alpha_pattern": {"^to_k": 6}}, 2.0),
        ({"alpha_pattern": {"n2.to_k": 6}}, 2.0),
        ({"alpha_pattern": {"to_q": 6}}, 2.0),
    ],
)
def test_a_folder_of_peft(config, scale, tmp_path):
    adapter = sdjax.load_adapter(peft_folder(tmp_path / "a", **config))
    (down, up), wanted = adapter.bind(published("sd15"))["unet"][SITE]["kernel"].factors(), factors(320, 768)
    assert np.allclose(up, scale * wanted[1].astype(np.float32)) and np.array_equal(down, wanted[0])
    # As a file of its own, it still says how strong it is.
    adapter.save(tmp_path / "b.safetensors")
    again = sdjax.load_adapter(tmp_path / "b.safetensors")
    assert np.array_equal(again.bind(published("sd15"))["unet"][SITE]["kernel"].factors()[1], up)


@pytest.mark.parametrize(
    ("config", "match"),
    [
        ({"peft_type": "IA3"}, "adapter_config.json: an adapter of PEFT's kind 'IA3' is not read; LORA"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights is 'pissa'.*path_initial_model_for_weight_conversion"),
        ({"lora_alpha": "8"}, "lora_alpha must be a number from 0 to 1e.06, not '8'"),
        ({"lora_alpha": 0}, "alpha is 0, which makes nothing of this module"),
        ({"lora_alpha": float("nan")}, "lora_alpha must be a number"),
        ({"alpha_pattern": {"(a+)+$": 8}}, r"alpha_pattern .a.... is no name of a module"),
        ({"alpha_pattern": [1]}, "alpha_pattern must be an object of numbers"),
        ({"use_rslora": "yes"}, "use_rslora must be true or false"),
    ],
)
def test_a_config_that_cannot_be(config, match, tmp_path):
    refused(peft_folder(tmp_path / "a", **config), match, ValueError)


def test_a_config_that_is_missing(tmp_path):
    folder = peft_folder(tmp_path / "a")
    (folder / "adapter_config.json").unlink()
    with pytest.warns(UserWarning, match="no adapter_config.json lies beside it.*alpha is taken for the rank"):
        sdjax.load_adapter(folder)


def test_metadata_of_diffusers(tmp_path):
    tensors = {name.replace("base_model.model.", "unet."): array for name, array in PEFT.items()}
    said = {"lora_adapter_metadata": json.dumps({"unet.lora_alpha": 8, "unet.r": 4, "text_encoder.lora_alpha": 1})}
    up = sdjax.load_adapter(written(tmp_path / "a.safetensors", tensors, said)).bind(published("sd15"))["unet"][SITE]
    assert np.allclose(up["kernel"].factors()[1], 2 * factors(320, 768)[1].astype(np.float32))
    path = written(tmp_path / "b.safetensors", tensors, {"lora_adapter_metadata": "{" * 10**5})
    refused(path, "b.safetensors is not valid JSON")


def test_links_out_of_a_folder_are_not_followed(path, tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "a.safetensors").symlink_to(path)
    refused(folder, "leads out of the checkpoint")


@pytest.mark.parametrize(
    ("source", "match"),
    [
        ("nowhere.safetensors", "nowhere.safetensors is neither a file nor a folder here nor a Hub id"),
        ("nowhere.ckpt", "nowhere.ckpt is missing, and would be a pickle"),
        ("a/b/../../c.safetensors", "is neither a file nor a folder here nor a Hub id"),
        ("", "an adapter is a file, a folder or a Hub id, not ''"),
        ("a\0b", "an adapter is a file"),
        (7, "an adapter is a file, a folder or a Hub id, not 7"),
    ],
)
def test_no_source(source, match):
    refused(source, match)


@pytest.mark.parametrize(("options", "match"), [({"name": ""}, "name must be"), ({"name": 1}, "name must be"),
    ({"strict": 0}, "strict must be True or False"), ({"convention": "x"}, "convention 'x' is unknown")])  # fmt: skip
def test_options_that_cannot_be(options, match, path):
    refused(path, match, ValueError, **options)


def test_the_hub(hub, tmp_path):  # noqa: F811
    files = {
        "pytorch_lora_weights.safetensors": written(tmp_path / "a.safetensors", kohya(SMALL)).read_bytes(),
        "README.md": b"not needed",
        "old.bin": b"a pickle",
    }
    folder = peft_folder(tmp_path / "peft")
    hub.repositories |= {"me/lora": files, "me/peft": {one.name: one.read_bytes() for one in folder.iterdir()}}
    names = ("x/a.safetensors", "b.safetensors", "c.safetensors")
    hub.repositories["me/two"] = dict.fromkeys(names, files["pytorch_lora_weights.safetensors"])
    assert sdjax.load_adapter("me/lora").name == "lora" and hub.sent == ["pytorch_lora_weights.safetensors"]
    assert sdjax.load_adapter("me/peft").ranks == (4,) and "adapter_config.json" in hub.sent
    assert sdjax.load_adapter("me/two/x/a.safetensors").name == "a"
    refused("me/two", "holds several files; give the path of one:\n    b.safetensors\n    c.safetensors")
    refused("me/two/d.safetensors", "holds no d.safetensors; it holds:\n    x/a.safetensors")
    refused("me/lora/old.bin", "me/lora/old.bin is a pickle")
    refused("me/none", "does not exist or is private")


def test_the_hub_without_a_network(hub, tmp_path, monkeypatch):  # noqa: F811
    hub.repositories["me/lora"] = {
        "pytorch_lora_weights.safetensors": written(tmp_path / "a.safetensors", kohya(SMALL)).read_bytes()
    }
    sdjax.load_adapter("me/lora")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    assert sdjax.load_adapter("me/lora").ranks == (4,)
    refused("me/other", "me/other is no folder here, not in the cache, and http://127.0.0.1:9/me/other cannot be")


# What is wrong with it ----------------------------------------------------


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({f"{K}.lora_up.weight": np.full((320, 4), np.nan, np.float16)}, "holds nan .element 0.; its weights"),
        ({f"{K}.lora_up.weight": np.full((320, 4), np.inf, np.float16)}, "lora_up.weight holds inf"),
        ({f"{K}.lora_up.weight": np.ones((320, 3), np.float16)}, "the ranks do not fit: lora_up.weight has 3"),
        ({f"{K}.lora_up.weight": np.ones((320, 4), np.int8)}, "is of the dtype I8, which is not read; expected F16"),
        ({f"{K}.alpha": np.float16(0)}, "alpha is 0, which makes nothing of this module"),
        ({f"{K}.alpha": np.ones(3, np.float16)}, "alpha is .3., and must be one number"),
        ({f"{K}.lora_dwon.weight": np.ones(3, np.float16)}, f".*\n.*dwon.weight .nearest: {K}.lora_down.weight.\n"),
        ({"lora_unet_down_blocks_0_attention_0_proj_in.alpha": np.float16(1)}, "nearest: .*attentions_0_proj_in.alpha"),
        ({"something": np.ones(3, np.float16)}, "1 of 7 tensors that mean nothing .*\n    something\n"),
        ({f"{K}.hada_w1_a": np.ones((3, 3), np.float16)}, "hada_w1_b is missing beside"),
        ({"lora_unet_double_blocks_0_img_attn_proj.alpha": np.float16(1)}, "is an adapter for Flux, which is not"),
    ],
)  # fmt: skip
def test_tensors_that_cannot_be(change, match, tmp_path):
    message = refused(written(tmp_path / "a.safetensors", kohya(SMALL) | change), match)
    assert "a.safetensors" in message


def test_numbers_of_any_dtype(tmp_path):
    tensors = kohya(SMALL) | {f"{K}.alpha": np.array(2, np.int64)}
    found = sdjax.load_adapter(written(tmp_path / "a.safetensors", tensors)).bind(published("sd15"))
    assert found["unet"][SITE]["kernel"].strength == 0.5


def test_what_is_left_aside(tmp_path):
    unknown = {f"lora_unet_other_{i}.{word}": np.float16(1) for i in range(3) for word in ("alpha", "lora_up.weight")}
    path = written(tmp_path / "a.safetensors", kohya(SMALL) | unknown)
    with pytest.warns(UserWarning) as caught:
        adapter = sdjax.load_adapter(path, strict=False)
    (one,) = caught
    assert "6 of 12 tensors, of 3 modules, mean nothing and are left aside" in str(one.message)
    assert len(adapter.modules) == 2
    refused(written(tmp_path / "b.safetensors", unknown), "6 of 6 tensors that mean nothing", strict=False)


def test_a_file_that_is_none(tmp_path):
    path = tmp_path / "a.safetensors"
    path.write_bytes(b"")
    refused(path, "a.safetensors .0 bytes. is truncated or corrupt: it is empty")
    refused(written(path, {}), "a.safetensors holds no tensors")
    path.write_bytes(pickle.dumps({"a": 1}))
    refused(path, "a.safetensors is a pickle.*never is; .*safetensors.torch.save_file")
    path.write_text("<!doctype html><title>Log in</title>")
    refused(path, "a web page")
    os.unlink(path)
    os.mkfifo(path)
    refused(path, "is no file but a pipe")


@pytest.mark.parametrize(
    ("names", "what"),
    [
        (["lora_controlnet", "input_blocks.1.0.emb_layers.1.up"], "a Control-LoRA, which is not read yet"),
        (["control_model.input_blocks.0.0.weight"], "a ControlNet, which is not read yet"),
        (["controlnet_cond_embedding.conv_in.weight"], "a ControlNet"),
        (["image_proj.proj.weight", "ip_adapter.1.to_k_ip.weight"], "an IP-Adapter: sdjax.load_image_prompt reads it"),
        (["adapter.body.0.block1.weight"], "a T2I-Adapter"),
        (["lllite_unet_input_blocks_1.weight"], "a ControlNet-LLLite"),
        (["transformer.x.lora_A.weight"], "an adapter for another architecture, which is not supported"),
        (["model.diffusion_model.input_blocks.0.0.weight", "x"], "a checkpoint, or .* with sdjax.load"),
        (["unet.down_blocks.0.resnets.0.conv1.weight", "y"], "a checkpoint, or a part of one"),
        (["what", "is.this"], "no adapter that is known: .*\n    is.this\n    what"),
    ],
)  # fmt: skip
def test_files_of_other_things(names, what, tmp_path):
    refused(
        written(tmp_path / "a.safetensors", {name: np.ones((2, 2), np.float16) for name in names}),
        f"a.safetensors is {what}",
    )


def test_a_checkpoint_and_an_adapter_are_told_apart(path, tmp_path):
    folder = make_checkpoint(tmp_path / "checkpoint")
    refused(folder, "checkpoint is a checkpoint and no adapter: open it with sdjax.load")
    with pytest.raises(CheckpointError, match="is a LoRA .* file.*sdjax.load_adapter"):
        sdjax.load(path, compilation_cache=False)
    with pytest.raises(CheckpointError, match="a LoRA is for sdjax.load_adapter"):
        sdjax.load(path.parent, compilation_cache=False)


# Other files --------------------------------------------------------------


def test_words_and_hypernetworks_have_readers_of_their_own(tmp_path):
    words = sdjax.load_adapter(written(tmp_path / "cat.safetensors", {"emb_params": np.ones((2, 768), np.float32)}))
    assert isinstance(words, TextualInversion) and words.name == "cat"
    layers = {f"768.{use}.linear.{i}" for use in "kv" for i in (0, 1)}
    tensors = {f"{one}.weight": np.ones((768, 768), np.float32) for one in layers}
    tensors |= {f"{one}.bias": np.ones(768, np.float32) for one in layers}
    said = {"layer_structure": "[1, 1, 1]", "activation_func": "linear"}
    found = sdjax.load_adapter(written(tmp_path / "h.safetensors", tensors, said))
    assert isinstance(found, Hypernetwork)


def test_a_bundle_gives_both(tmp_path):
    words = {
        "bundle_emb.cat.string_to_param.*": np.ones((2, 768), np.float16),
        "bundle_emb.a.dog.clip_l": np.ones((1, 768), np.float16),
    }
    adapter = sdjax.load_adapter(written(tmp_path / "a.safetensors", kohya(SMALL) | words))
    assert {name: len(one) for name, one in adapter.embeddings.items()} == {"cat": 2, "a.dog": 1}
    assert isinstance(adapter.embeddings["cat"], TextualInversion) and "words 'a.dog', 'cat'" in repr(adapter)
    broken = {"bundle_emb.cat.string_to_param.*": np.full((2, 768), np.nan, np.float16)}
    refused(written(tmp_path / "b.safetensors", kohya(SMALL) | broken), "bundle_emb.cat.* holds (nan|NaN)")


def test_reading_takes_little_memory(tmp_path):
    """The numbers stay in the file: of 40 MB hardly any are this process's own."""
    import tracemalloc

    modules = {f"lora_te_{LAYER.replace('layers.0', f'layers.{i}').replace('.', '_')}": (768, 768) for i in range(12)}
    path = written(tmp_path / "a.safetensors", kohya(modules, 1024))
    tracemalloc.start()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        adapter = sdjax.load_adapter(path)
    assert adapter.bytes > 37e6 and tracemalloc.get_traced_memory()[1] < 8e6
    tracemalloc.stop()
