"""An adapter is saved as it came, bit for bit, or in another dialect, meaning the same."""

import hashlib
import json

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file

import sdjax
from sdjax.adapters.names import DIALECTS
from sdjax.weights import CheckpointError
from tests.adapters import LAYER, SGM_SITE, SITE, SMALL, kohya, published, written
from tests.checkpoints import UNET, make_checkpoint
from tests.test_adapter_names import small

SDXL = {
    "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn2_to_k": (640, 2048),
    "lora_te1_text_model_encoder_layers_0_mlp_fc1": (3072, 768),
    "lora_te2_text_model_encoder_layers_0_mlp_fc1": (5120, 1280),
}


def saved(adapter, tmp_path, dialect=None, **options):
    adapter.save(tmp_path / "saved.safetensors", dialect, **options)
    return sdjax.load_adapter(tmp_path / "saved.safetensors")


def same(one, other) -> None:
    """Two bound adapters do the same to every parameter."""
    assert {(c, p, leaf) for c in one for p in one[c] for leaf in one[c][p]} == {
        (c, p, leaf) for c in other for p in other[c] for leaf in other[c][p]
    }
    rng = np.random.default_rng(0)
    for component, modules in one.items():
        for path, leaves in modules.items():
            for leaf, delta in leaves.items():
                shape = getattr(getattr(delta, "inner", delta), "shape", None)
                weight = rng.standard_normal(shape).astype(np.float32)
                assert np.array_equal(delta.apply(weight, 0.7), other[component][path][leaf].apply(weight, 0.7)), path


@pytest.mark.parametrize(
    "dialect", ["kohya", "kohya-sgm", "diffusers-attn", "diffusers", "peft", "peft-named", "comfy"]
)
def test_there_and_back_is_bit_for_bit(dialect, tmp_path):
    path = written(tmp_path / "a.safetensors", small(dialect), {"about": "é", "ss_output_name": "x"})
    adapter = sdjax.load_adapter(path)
    adapter.save(tmp_path / "b.safetensors")
    assert (tmp_path / "b.safetensors").read_bytes() == path.read_bytes()
    adapter.save(path)  # over itself: the file is replaced, and what was read stays
    assert path.read_bytes() == (tmp_path / "b.safetensors").read_bytes()
    assert all(np.array_equal(array, load_file(path)[name]) for name, array in adapter.tensors.items())


@pytest.mark.parametrize("source", ["kohya", "kohya-sgm", "diffusers-attn", "diffusers", "peft", "comfy", "lycoris"])
@pytest.mark.parametrize("target", ["kohya", "kohya-sgm", "kohya-diffusers", "peft"])
def test_from_one_dialect_to_another(source, target, tmp_path):
    adapter = sdjax.load_adapter(written(tmp_path / "a.safetensors", small(source)))
    again = saved(adapter, tmp_path, target)
    assert again.dialect == {"kohya-diffusers": "kohya"}.get(target, target) and again.family == "SD 1.x"
    same(adapter.bind(published("sd15")), again.bind(published("sd15")))
    if target != "peft":
        names = {
            f"lora_unet_{(SGM_SITE if 'sgm' in target else SITE).replace('.', '_')}",
            f"lora_te_{LAYER.replace('.', '_')}",
        }
        words = (".lora_down.weight", ".lora_up.weight", ".alpha")
        assert again.tensors.keys() == {name + word for name in names for word in words}
        assert again.metadata["ss_base_model_version"] == "sd_v1" and again.metadata["ss_network_dim"] == "4"


@pytest.mark.parametrize("target", ["kohya", "kohya-diffusers", "peft"])
def test_sdxl(target, tmp_path):
    """A1111 reads SGM's block names, so that "kohya" has these for SDXL."""
    adapter = sdjax.load_adapter(written(tmp_path / "a.safetensors", kohya(SDXL)))
    again = saved(adapter, tmp_path, target)
    assert again.dialect == {"kohya": "kohya-sgm", "kohya-diffusers": "kohya", "peft": "peft"}[target]
    if target == "kohya":
        assert "lora_unet_input_blocks_4_1_transformer_blocks_0_attn2_to_k.alpha" in again.tensors
        assert again.metadata["ss_base_model_version"] == "sdxl_base_v1-0"
    same(adapter.bind(published("sdxl")), again.bind(published("sdxl")))


def test_alphas_and_ranks_of_each_module_are_kept_by_peft(tmp_path):
    name = "lora_unet_mid_block_attentions_0_proj_in"
    tensors = kohya(SMALL) | kohya({name: (1280, 1280)}, rank=8, alpha=3.0)
    adapter = sdjax.load_adapter(written(tmp_path / "a.safetensors", tensors, {"sshs_model_hash": "0" * 64, "x": "y"}))
    again = saved(adapter, tmp_path, "peft")
    said = json.loads(again.metadata["lora_adapter_metadata"])
    assert said["unet.r"] in (4, 8) and said["text_encoder.lora_alpha"] == 2.0 and not said["unet.use_dora"]
    assert again.metadata.keys() == {"lora_adapter_metadata", "x"}  # a hash of other bytes is not carried on
    same(adapter.bind(published("sd15")), again.bind(published("sd15")))


def test_dora_changes_shape_between_dialects(tmp_path):
    tensors = kohya(SMALL) | {f"{name}.dora_scale": np.ones((one[0], 1), np.float16) for name, one in SMALL.items()}
    conv = "lora_unet_down_blocks_0_resnets_0_conv1"
    rng = np.random.default_rng(0)
    tensors |= {
        f"{conv}.lora_down.weight": rng.standard_normal((2, 320, 3, 3)).astype(np.float32),
        f"{conv}.lora_up.weight": rng.standard_normal((320, 2, 1, 1)).astype(np.float32),
        f"{conv}.dora_scale": rng.standard_normal((320, 1, 1, 1)).astype(np.float32),
    }
    adapter = sdjax.load_adapter(written(tmp_path / "a.safetensors", tensors))
    again = saved(adapter, tmp_path, "peft")
    shapes = {array.shape for name, array in again.tensors.items() if "magnitude" in name}
    assert again.kinds == ("DoRA",) and shapes == {(320,), (768,), (1, 320, 1, 1)}
    same(adapter.bind(published("sd15")), again.bind(published("sd15")))
    back = saved(again, tmp_path, "kohya")
    assert {array.shape for name, array in back.tensors.items() if "dora" in name} == {
        (320, 1),
        (768, 1),
        (320, 1, 1, 1),
    }
    same(adapter.bind(published("sd15")), back.bind(published("sd15")))


def test_what_peft_cannot_hold(tmp_path):
    shapes = {"hada_w1_a": (320, 2), "hada_w1_b": (2, 768), "hada_w2_a": (320, 2), "hada_w2_b": (2, 768)}
    name = f"lora_unet_{SITE.replace('.', '_')}"
    loha = {f"{name}.{word}": np.ones(shape, np.float16) for word, shape in shapes.items()}
    adapter = sdjax.load_adapter(written(tmp_path / "a.safetensors", loha))
    with pytest.raises(
        CheckpointError, match="a cannot be saved in PEFT's dialect, which has LoRA and DoRA alone:\n +unet_"
    ):
        adapter.save(tmp_path / "b.safetensors", "peft")
    assert not (tmp_path / "b.safetensors").exists()
    assert saved(adapter, tmp_path, "kohya-sgm").metadata["ss_network_module"] == "lycoris.kohya"
    inputs = kohya(SMALL) | {f"{name}.dora_scale": np.ones((1, one[1]), np.float16) for name, one in SMALL.items()}
    adapter = sdjax.load_adapter(written(tmp_path / "c.safetensors", inputs))
    with pytest.raises(CheckpointError, match="has a DoRA length for each of its inputs"):
        adapter.save(tmp_path / "b.safetensors", "peft")


def test_adapters_for_custom_models_need_the_model(tmp_path):
    model = sdjax.load(make_checkpoint(tmp_path / "model"), compilation_cache=False).params
    width = UNET["cross_attention_dim"]
    names = {f"lora_unet_{SITE.replace('.', '_')}": (8, width), f"lora_te_{LAYER.replace('.', '_')}": (width, width)}
    adapter = sdjax.load_adapter(written(tmp_path / "a.safetensors", kohya(names)))
    assert adapter.family == "custom"
    with pytest.raises(CheckpointError, match="a is for a model of its own kind, .*give model=, the parameters"):
        adapter.save(tmp_path / "b.safetensors", "peft")
    again = saved(adapter, tmp_path, "peft", model=model)
    assert f"unet.{SITE}.lora_A.weight" in again.tensors
    same(adapter.bind(model), again.bind(model))
    same(adapter.bind(model), saved(again, tmp_path, "kohya-sgm", model=model).bind(model))


@pytest.mark.parametrize(
    ("name", "dialect", "match"),
    [
        ("b.safetensors", "koya", "dialect 'koya' is unknown; nearest: 'kohya'"),
        ("b.ckpt", None, "b.ckpt: the name of an adapter's file ends with .safetensors"),
        ("none/b.safetensors", None, "cannot be written"),
    ],
)
def test_what_cannot_be_saved(name, dialect, match, tmp_path):
    adapter = sdjax.load_adapter(written(tmp_path / "a.safetensors", kohya(SMALL)))
    with pytest.raises(ValueError, match=match):
        adapter.save(tmp_path / name, dialect)
    assert sorted(one.name for one in tmp_path.iterdir()) == ["a.safetensors"]


def test_a_file_that_was_written_to_since(tmp_path):
    path = written(tmp_path / "a.safetensors", kohya(SMALL))
    adapter = sdjax.load_adapter(path)
    with open(path, "r+b") as file:
        file.write(b"x")
    with pytest.raises(CheckpointError, match="has been written to since it was loaded"):
        adapter.save(tmp_path / "b.safetensors")


def test_hashes_are_those_of_a1111(tmp_path):
    """Of the file, and the first 12 digits of that of all that follows the header."""
    path = written(tmp_path / "a.safetensors", kohya(SMALL))
    content, adapter = path.read_bytes(), sdjax.load_adapter(path)
    assert adapter.sha256 == hashlib.sha256(content).hexdigest()
    after = content[8 + int.from_bytes(content[:8], "little") :]
    assert adapter.short_hash == hashlib.sha256(after).hexdigest()[:12]
    said = written(tmp_path / "b.safetensors", kohya(SMALL), {"sshs_model_hash": "f" * 64})
    assert sdjax.load_adapter(said).short_hash == "f" * 12


def test_an_adapter_that_was_computed(path_of_computed):
    adapter, path = path_of_computed
    adapter.save(path)
    assert hashlib.sha256(path.read_bytes()).hexdigest() == adapter.sha256
    with safe_open(path, "np") as file:
        assert set(file.keys()) == set(adapter.tensors) and file.metadata() == {"a": "b"}


@pytest.fixture
def path_of_computed(tmp_path):
    import dataclasses

    adapter = sdjax.load_adapter(written(tmp_path / "a.safetensors", kohya(SMALL)))
    arrays = {name: np.array(array) for name, array in adapter.tensors.items()}
    return dataclasses.replace(adapter, tensors=arrays, metadata={"a": "b"}, path=None), tmp_path / "c.safetensors"


def test_every_choice_is_a_dialect():
    from sdjax.adapters.save import CHOICES

    assert set(CHOICES) - {"kohya-diffusers"} <= DIALECTS.keys()
