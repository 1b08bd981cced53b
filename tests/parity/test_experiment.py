"""The full-size comparison (`experiments.parity`) on configs in small: its folders open, its table can fail."""

from dataclasses import replace

import diffusers
import numpy as np
import pytest
import torch

from experiments import parity, parity_ours, parity_theirs
from experiments.random_checkpoints import in_float32, make
from sdjax.config.presets import PRESETS

WIDTHS = {"text_encoder": 32, "text_encoder_2": 64}
PIPELINES = {"sd21": "StableDiffusion", "sdxl": "StableDiffusionXL", "sdxl_refiner": "StableDiffusionXLImg2Img"}


@pytest.fixture(autouse=True)
def one_thread():
    """Several wait for each other longer than these networks take, on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def in_small(family):
    """A preset with the published structure and few channels and layers."""
    preset = PRESETS[family]
    configs = {name: dict(config) for name, config in preset.configs.items()}
    texts = [name for name in WIDTHS if name in configs]
    for name in texts:
        width = WIDTHS[name]
        configs[name] |= {"hidden_size": width, "intermediate_size": 2 * width, "num_hidden_layers": 2}
        configs[name] |= {"num_attention_heads": 2, "projection_dim": width, "vocab_size": 1000}
    unet = configs["unet"]
    levels = len(unet["block_out_channels"])
    unet |= {"block_out_channels": [32, 64, 64, 64][:levels], "layers_per_block": 1, "sample_size": 16}
    unet |= {"attention_head_dim": [2, 4, 4, 4][:levels], "cross_attention_dim": sum(map(WIDTHS.__getitem__, texts))}
    if "text_encoder_2" in configs:
        ids = 5 if family == "sdxl_refiner" else 6
        unet |= {"addition_time_embed_dim": 16, "transformer_layers_per_block": 1}
        unet["projection_class_embeddings_input_dim"] = WIDTHS["text_encoder_2"] + 16 * ids
    configs["vae"] |= {"block_out_channels": [32, 32, 64, 64], "layers_per_block": 1}
    return replace(preset, configs=configs)


def test_both_sides_agree_and_a_difference_shows(tmp_path):
    folder = make(in_small("sdxl"), tmp_path / "sdxl", "float16")
    given = parity.inputs(folder, None, 64, 64)
    theirs, ours = (side.evaluate(folder, dict(given), {}) for side in (parity_theirs, parity_ours))
    table = parity.compare(dict(ours), dict(theirs), 5.0)
    assert {"text_encoder", "text_encoder_2", "pooled", "unet", "unet, guided", "vae_decode"} < set(table)
    assert all(row["passes"] and row["std"] > 0.05 for row in table.values()), table
    assert np.abs(np.subtract(*theirs["unet"])).max() > 0.05  # text and sizes matter
    spoiled = {**ours, "unet": ours["unet"] * (1 + 2e-4)}
    assert not parity.compare(spoiled, dict(theirs), 5.0)["unet"]["passes"]
    with pytest.raises(ValueError, match="tokenizers"):
        parity.compare({**ours, "text_encoder_2 ids": ours["text_encoder_2 ids"] + 1}, dict(theirs), 5.0)


@pytest.mark.parametrize("family", sorted(PIPELINES))
def test_folders_open_in_diffusers_as_published(tmp_path, family):
    folder = make(in_small(family), tmp_path / family, "float16")
    pipeline = diffusers.DiffusionPipeline.from_pretrained(folder)
    assert type(pipeline).__name__ == f"{PIPELINES[family]}Pipeline"
    names = {"sd21": "tokenizer"}.get(family, "tokenizer_2")
    assert getattr(pipeline, names).pad_token_id == 0  # "!", in the OpenCLIP encoders' vocabulary
    if "xl" in family:
        base = family == "sdxl"
        assert (pipeline.config.force_zeros_for_empty_prompt, pipeline.text_encoder is not None) == (base, base)
        assert pipeline.config.get("requires_aesthetics_score", False) == (not base)
    assert pipeline.scheduler.config.prediction_type == ("v_prediction" if family == "sd21" else "epsilon")


def test_layers_widened_one_at_a_time_compute_as_a_float32_network():
    config = in_small("sdxl").configs["unet"]
    unet = diffusers.UNet2DConditionModel.from_config(config).half().eval()
    added = {"text_embeds": torch.randn(1, WIDTHS["text_encoder_2"]), "time_ids": torch.full((1, 6), 128.0)}
    given = (torch.randn(1, 4, 16, 16), 300, torch.randn(1, 77, config["cross_attention_dim"]))
    with torch.no_grad():
        narrow = in_float32(unet)(*given, added_cond_kwargs=added).sample
        assert {parameter.dtype for parameter in unet.parameters()} == {torch.float16}
        whole = diffusers.UNet2DConditionModel.from_config(config).eval()
        whole.load_state_dict({name: tensor.float() for name, tensor in unet.state_dict().items()})
        torch.testing.assert_close(narrow, whole(*given, added_cond_kwargs=added).sample, rtol=0, atol=0)
