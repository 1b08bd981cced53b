"""The shipped model: small, and it draws what it is asked (experiments.shapes.report measures how often)."""

import re
from pathlib import Path

import numpy as np
import pytest

import sdjax
from experiments.shapes import report, world
from experiments.shapes.score import Verdict, score

ROOT = Path(__file__).parent.parent
ASSETS = ROOT / "sdjax" / "assets" / "shapes"


@pytest.fixture(scope="module")
def sd():
    return sdjax.load(compilation_cache=False)


def accepted(images: np.ndarray, captions: list[str]) -> float:
    return float(np.mean([score(image, caption).ok for image, caption in zip(images, captions, strict=True)]))


def test_size_on_disk():
    assert sum(path.stat().st_size for path in ASSETS.rglob("*") if path.is_file()) <= 24_000_000


def test_parameters_are_float16(sd):
    """As stored, where the networks compute in less than float32; and then all float32, which loses nothing."""
    import jax

    stored = sdjax.load(dtype="bfloat16", compilation_cache=False).params
    assert {leaf.dtype.name for leaf in jax.tree.leaves(stored)} == {"float16"}
    assert {leaf.dtype.name for leaf in jax.tree.leaves(sd.params)} == {"float32"}
    jax.tree.map(np.testing.assert_array_equal, stored, sd.params)


def test_the_autoencoder_keeps_pictures(sd):
    pictures, captions = world.dataset(report.SEED, 0, 40, "any")
    made = np.asarray(sd.decode(sd.encode(pictures / 127.5 - 1.0)))
    assert accepted(np.rint((made + 1) * 127.5).astype(np.uint8), captions) >= 0.9


@pytest.mark.ci
@pytest.mark.optimised
@pytest.mark.parametrize(
    ("things", "pairs", "least"), [(1, "seen", 0.95), (None, "seen", 0.85), (None, "unseen", 0.85)]
)
def test_random_captions(sd, things, pairs, least):
    captions = report.captions(40, things, pairs)
    assert accepted(sd.generate(captions).pixels, captions) >= least


def test_the_readmes_prompt_works(sd):
    alone = r'--prompt="([^"]+)"(?! --adapter)'  # what an adapter taught is another test's
    (prompt,) = set(re.findall(alone, (ROOT / "README.md").read_text()))
    assert score(sd.generate(prompt).pixels[0], prompt).ok


def test_a_picture_does_not_depend_on_its_batch(sd):
    prompts = report.captions(4, 2, "seen")
    together = sd.generate(prompts, seed=3, decode=False).latents
    for i, prompt in enumerate(prompts):
        alone = sd.generate(prompt, seed=3, first_image=i, decode=False).latents[0]
        np.testing.assert_allclose(alone, together[i], rtol=0, atol=1e-5)


def test_other_sizes(sd):
    assert sd.generate("a red circle", height=72, width=136, steps=2).pixels.shape == (1, 72, 136, 3)
    with pytest.raises(ValueError, match="height must be a multiple of 8, not 100; the nearest are 96 and 104"):
        sd.generate("a red circle", height=100)


def test_the_report_counts_the_parts_of_the_captions():
    prompts = [
        "a red circle above a blue star",
        "a small red circle below a blue star",
        "a red ring on a pink background",
    ]
    verdicts = [Verdict(True, ()), Verdict(False, ("shape", "size")), Verdict(True, ())]
    assert report.counted(prompts, verdicts) == {
        "right": 2, "of": 3, "errors": {"shape": 1, "size": 1},
        "parts": {
            "above": [1, 1], "below": [0, 1], "background named": [1, 1], "background left open": [1, 2],
            "size named": [0, 1], "size left open": [2, 2],
        },
    }  # fmt: skip
    assert report.rate(2, 3) == "2/3 = 66.7% (20.8% to 93.9%)"
