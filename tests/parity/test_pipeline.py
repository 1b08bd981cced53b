"""Whole pipelines against diffusers, live: the same random checkpoint, prompts and starting noise."""

import pytest

import sdjax
from tests import golden_pipeline
from tests.golden import make_pipeline


@pytest.mark.parametrize("kind", make_pipeline.UNET)
def test_same_latents_as_diffusers(kind, tmp_path):
    pipeline = make_pipeline.build(kind, seed=5)
    pipeline.save_pretrained(tmp_path, safe_serialization=True)
    expected = make_pipeline.reference(pipeline, seed=5)
    sd = sdjax.load(tmp_path, compilation_cache=False)
    assert max(golden_pipeline.part_errors(sd, expected).values()) <= 1e-5
    errors = golden_pipeline.run_errors(sd, expected, make_pipeline.starting_noise(5))
    assert max(errors.values()) <= 1e-3, errors
