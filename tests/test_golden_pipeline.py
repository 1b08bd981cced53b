"""The same numbers as diffusers without torch: checkpoints it saved and arrays it made (golden/make_pipeline.py)."""

from pathlib import Path

import numpy as np
import pytest

import sdjax
from tests import adapters, golden_pipeline

GOLDEN = Path(__file__).parent / "golden"


@pytest.fixture(params=["sd1", "sd2"], scope="module")
def checkpoint(request):
    folder = GOLDEN / request.param
    with np.load(folder / "expected.npz") as arrays:
        return sdjax.load(folder, compilation_cache=False), dict(arrays)


def test_token_ids(checkpoint):
    sd, expected = checkpoint
    np.testing.assert_array_equal(sd.tokenizer.tokens(golden_pipeline.PROMPTS), expected["ids"])


def test_each_network(checkpoint):
    sd, expected = checkpoint
    errors = golden_pipeline.part_errors(sd, expected)
    assert max(errors.values()) <= 1e-5, errors


def test_whole_runs(checkpoint):
    sd, expected = checkpoint
    noise = np.random.default_rng(0).standard_normal((2, 8, 8, 4)).astype(np.float32)
    errors = golden_pipeline.run_errors(sd, expected, noise)
    assert max(errors.values()) <= 1e-3, errors


@pytest.mark.parametrize("family", ["sd1", "sd2"])
def test_a_lora_worn_and_merged(family, tmp_path):
    """8 guided steps of diffusers with PEFT (golden/make_adapters.py)."""
    sd = sdjax.load(GOLDEN / family, compilation_cache=False)
    path = adapters.written(tmp_path / "x.safetensors", adapters.golden_lora({"unet": sd.params["unet"]}))
    noise = np.random.default_rng(0).standard_normal((2, 8, 8, 4)).astype(np.float32)
    given = {"steps": 8, "sampler": "ddim", "guidance_scale": 7.5, "latents": noise, "decode": False}
    with np.load(GOLDEN / family / "adapter.npz") as arrays:
        expected = arrays["latents"]
    texts = (golden_pipeline.PROMPTS, golden_pipeline.NEGATIVES)
    worn = sd.generate(*texts, adapters=[(path, golden_pipeline.SCALE)], **given).latents
    merged = sd.with_adapters([(path, golden_pipeline.SCALE)]).generate(*texts, **given).latents
    assert golden_pipeline.relative(worn, expected) <= 1e-4 and golden_pipeline.relative(merged, expected) <= 1e-4
    assert golden_pipeline.relative(sd.generate(*texts, **given).latents, expected) > 1e-2
