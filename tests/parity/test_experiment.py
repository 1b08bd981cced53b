"""The full-size comparison (`experiments.parity`) on every family's configs in small, and that it can fail."""

from dataclasses import replace

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")

from experiments import parity, parity_ours, parity_theirs  # noqa: E402
from experiments.random_checkpoints import in_float32, make  # noqa: E402
from sdjax.presets import PRESETS  # noqa: E402

WIDTHS = {"text_encoder": 32, "text_encoder_2": 64}
STORED = {"sd15": "float32", "sd21": "float32", "sdxl": "float16", "sdxl_refiner": "float16"}


def in_small(family):
    """A preset with the published structure and few channels and layers."""
    preset = PRESETS[family]
    configs = {name: dict(config) for name, config in preset.configs.items()}
    for name in WIDTHS.keys() & configs.keys():
        width = WIDTHS[name]
        configs[name] |= {"hidden_size": width, "intermediate_size": 2 * width, "num_hidden_layers": 2}
        configs[name] |= {"num_attention_heads": 2, "projection_dim": width, "vocab_size": 1000}
    unet = configs["unet"]
    levels = len(unet["block_out_channels"])
    unet |= {"block_out_channels": [32, 64, 64, 64][:levels], "layers_per_block": 1, "sample_size": 16}
    unet |= {"attention_head_dim": [2, 4, 4, 4][:levels], "addition_time_embed_dim": 16}
    unet["cross_attention_dim"] = sum(WIDTHS[name] for name in WIDTHS.keys() & configs.keys())
    if "text_encoder_2" in configs:
        ids = 5 if family == "sdxl_refiner" else 6
        unet["projection_class_embeddings_input_dim"] = WIDTHS["text_encoder_2"] + 16 * ids
        unet["transformer_layers_per_block"] = [1, 2, 2] if levels == 3 else 2
    configs["vae"] |= {"block_out_channels": [32, 32, 64, 64], "layers_per_block": 1}
    return replace(preset, configs=configs)


@pytest.mark.parametrize("family", sorted(STORED))
def test_every_family_agrees(tmp_path, family):
    folder = make(in_small(family), tmp_path / family, STORED[family])
    given = parity.inputs(folder, None, 64, 128)
    theirs, ours = (side.evaluate(folder, dict(given), {}) for side in (parity_theirs, parity_ours))
    table = parity.compare(dict(ours), dict(theirs), float(given["scale"]))
    assert {"unet", "unet, guided", "vae_decode", "vae_encode_mean"} < set(table)
    assert ("pooled" in table) == ("xl" in family)
    assert all(row["passes"] for row in table.values()), table
    assert all(row["std"] > 0.05 for row in table.values()), table
    negative, positive = theirs["unet"]
    assert np.abs(negative - positive).max() > 0.05  # the text, and an SDXL's sizes, matter
    spoiled = {**ours, "unet": ours["unet"] * (1 + 2e-4)}
    assert not parity.compare(spoiled, dict(theirs), float(given["scale"]))["unet"]["passes"]


def test_layers_widened_one_at_a_time_compute_as_a_float32_network():
    import diffusers

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
