"""The same numbers as diffusers without torch: checkpoints it saved and arrays it made (golden/make_pipeline.py)."""

from pathlib import Path

import numpy as np
import pytest

import sdjax
from tests import golden_pipeline

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
