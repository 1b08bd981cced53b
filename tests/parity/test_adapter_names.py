"""Files that diffusers and peft write are read whole, and mean there what they mean here; what we write they read."""

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
from diffusers.training_utils import _collate_lora_metadata
from diffusers.utils import convert_state_dict_to_diffusers, convert_state_dict_to_kohya
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from safetensors.torch import save_file

import sdjax
from sdjax.adapters.table import leaf_of, modules_of
from tests.parity.families import build, opened

ATTENTION = ["to_k", "to_q", "to_v", "to_out.0"]
MORE = ["proj_in", "proj_out", "conv1", "conv2", "conv_shortcut", "time_emb_proj", "ff.net.0.proj", "ff.net.2",
        "downsamplers.0.conv", "upsamplers.0.conv", "conv_in", "conv_out"]  # fmt: skip
TEXT = ["q_proj", "k_proj", "v_proj", "out_proj"]
TEXTS = {"sd1": ("text_encoder",), "sdxl": ("text_encoder", "text_encoder_2")}
LOADED = "default_0"  # what diffusers calls the first adapter that it loads


@pytest.fixture(autouse=True)
def any_peft(monkeypatch):
    """transformers 5.24 asks for a peft that is not released yet (0.22), and needs nothing new of it here."""
    monkeypatch.setattr("transformers.integrations.peft.check_peft_version", lambda **_: None)


def config(modules: list[str], **more: Any) -> LoraConfig:
    return LoraConfig(r=4, lora_alpha=6, target_modules=modules, init_lora_weights=False, **more)


def dressed(kind: str, unet: LoraConfig, text: LoraConfig | None = None) -> Any:
    """A pipeline that wears a random adapter."""
    pipeline = build(kind)
    torch.manual_seed(1)
    pipeline.unet.add_adapter(unet)
    for name in TEXTS[kind] if text is not None else ():
        getattr(pipeline, name).add_adapter(text)
    return pipeline


def layers(pipeline: Any, component: str, name: str = "default") -> dict[str, torch.nn.Module]:
    """The modules of a component that have an adapter, by their path here."""
    found = getattr(pipeline, component).named_modules()
    # transformers' encoders without a projection lost "text_model" in 5.6.
    before = "" if component == "unet" else "text_model."
    return {
        before + path.removeprefix(before): module
        for path, module in found
        if hasattr(module, "lora_A") and name in module.lora_A
    }


def state(pipeline: Any, component: str) -> dict[str, torch.Tensor]:
    return get_peft_model_state_dict(getattr(pipeline, component))


def compared(pipeline: Any, kind: str, adapter: Any, name: str = "default") -> None:
    """Every module's change of its weight is theirs, and no module is missed by either side."""
    params = opened(kind)[1].params
    found = adapter.bind(params)
    components = ("unet", *TEXTS[kind])
    theirs = {(c, path): module for c in components for path, module in layers(pipeline, c, name).items()}
    assert theirs and {(c, path) for c in found for path in found[c]} == theirs.keys()
    for (component, path), module in theirs.items():
        shape = module.get_base_layer().weight.shape
        leaf = leaf_of(modules_of(params[component])[path], "weight")
        ours = found[component][path][leaf].apply(np.zeros(shape, np.float32), 1.0)
        wanted = module.get_delta_weight(name).detach().numpy()
        assert np.abs(ours - wanted).max() <= 1e-6 * np.abs(wanted).max(), path


def saved_by_diffusers(pipeline: Any, kind: str, folder: Path, **written: Any) -> Path:
    parts = {f"{name}_lora_layers": state(pipeline, name) for name in ("unet", *TEXTS[kind]) if layers(pipeline, name)}
    modules = {
        name.removesuffix("_lora_layers"): getattr(pipeline, name.removesuffix("_lora_layers")) for name in parts
    }
    said = _collate_lora_metadata(modules) if written.pop("metadata", True) else {}
    pipeline.save_lora_weights(folder, **parts, **said)
    return folder


@pytest.mark.parametrize("kind", TEXTS)
def test_what_diffusers_saves(kind, tmp_path):
    pipeline = dressed(kind, config(ATTENTION + MORE), config(TEXT))
    adapter = sdjax.load_adapter(saved_by_diffusers(pipeline, kind, tmp_path / "a"))
    assert adapter.dialect == "peft" and adapter.name == "a"
    compared(pipeline, kind, adapter)


def test_without_metadata_alpha_is_the_rank(tmp_path):
    pipeline = dressed("sd1", config(ATTENTION))
    adapter = sdjax.load_adapter(saved_by_diffusers(pipeline, "sd1", tmp_path / "a", metadata=False))
    for module in layers(pipeline, "unet").values():
        module.scaling["default"] = 1.0
    compared(pipeline, "sd1", adapter)


def test_patterns_of_ranks_and_alphas(tmp_path):
    more = dict(rank_pattern={"to_q": 2, "attn2.to_k": 6}, alpha_pattern={"to_q": 5, "attn2.to_k": 3}, use_rslora=True)
    pipeline = dressed("sd1", config(ATTENTION, **more))
    compared(pipeline, "sd1", sdjax.load_adapter(saved_by_diffusers(pipeline, "sd1", tmp_path / "a")))


@pytest.mark.parametrize("kind", TEXTS)
def test_what_diffusers_converts_to_kohya(kind, tmp_path):
    """Its converter stores the rank for alpha, whatever it was, and says te1 of Stable Diffusion 1's only encoder."""
    pipeline = dressed(kind, config(ATTENTION + MORE), config(TEXT))
    tensors = {f"{c}.{name}": array for c in ("unet", *TEXTS[kind]) for name, array in state(pipeline, c).items()}
    save_file(convert_state_dict_to_kohya(tensors), tmp_path / "a.safetensors")
    adapter = sdjax.load_adapter(tmp_path / "a.safetensors")
    assert adapter.dialect == "kohya"
    for name in ("unet", *TEXTS[kind]):
        for module in layers(pipeline, name).values():
            module.scaling["default"] = 1.0
    compared(pipeline, kind, adapter)


def test_what_diffusers_converts_to_its_own(tmp_path):
    pipeline = dressed("sd1", config(ATTENTION), config(TEXT))
    tensors = {}
    for component in ("unet", "text_encoder"):
        found = convert_state_dict_to_diffusers(state(pipeline, component))
        tensors |= {f"{component}.{name}": array.contiguous() for name, array in found.items()}
    save_file(tensors, tmp_path / "a.safetensors")
    for name in ("unet", "text_encoder"):
        for module in layers(pipeline, name).values():
            module.scaling["default"] = 1.0
    compared(pipeline, "sd1", sdjax.load_adapter(tmp_path / "a.safetensors"))


@pytest.mark.parametrize("more", [{}, {"use_rslora": True}, {"alpha_pattern": {"to_q": 3}}, {"use_dora": True}])
def test_folders_of_peft(more, tmp_path):
    pipeline = build("sd1")
    torch.manual_seed(1)
    model = peft.get_peft_model(pipeline.unet, config(ATTENTION, **more))
    model.save_pretrained(tmp_path / "a")
    adapter = sdjax.load_adapter(tmp_path / "a")
    assert adapter.dialect == "peft-model"
    if "use_dora" in more:
        assert adapter.kinds == ("DoRA",)
        bound = adapter.bind(opened("sd1")[1].params)["unet"]
        merged = model.merge_and_unload()
        for path, leaves in bound.items():
            weight = pipeline_weight(build("sd1"), path)
            ours = leaves["kernel"].apply(weight, 1.0)
            assert np.abs(ours - merged.get_submodule(path).weight.detach().numpy()).max() < 1e-5
        return
    pipeline.unet = model.base_model.model
    compared(pipeline, "sd1", adapter)


def pipeline_weight(pipeline: Any, path: str) -> np.ndarray:
    return pipeline.unet.get_submodule(path).weight.detach().numpy()


@pytest.mark.parametrize("kind", TEXTS)
@pytest.mark.parametrize("dialect", [None, "peft", "kohya-diffusers", "kohya"])
def test_what_we_save_diffusers_loads(kind, dialect, tmp_path):
    """Of kohya's names the U-Net's alone: it looks for "text_model" in the encoders, which transformers has no more.

    And with one rank and one alpha: of others diffusers 0.42 makes another scale (ADAPTERS.md section 1.1).
    """
    to_kohya = dialect is not None and "kohya" in dialect
    more = {} if to_kohya else dict(alpha_pattern={"attn2.to_k": 3}, rank_pattern={"attn2.to_k": 6})
    modules = ATTENTION + [one for one in MORE if one not in ("conv_in", "conv_out")]  # which its converter leaves out
    first = dressed(kind, config(modules, **more), None if to_kohya else config(TEXT))
    adapter = sdjax.load_adapter(saved_by_diffusers(first, kind, tmp_path / "a"))
    path = tmp_path / "b.safetensors"
    adapter.save(path, dialect, model=opened(kind)[1].params)
    pipeline = build(kind)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pipeline.load_lora_weights(path)
    compared(pipeline, kind, adapter, LOADED)
