"""Presets of few-step adapters: what they stand for, where the caller's word counts, and what is refused."""

import re

import numpy as np
import pytest

import sdjax
from sdjax.request.speed import SPEED
from tests import adapters
from tests.checkpoints import make_checkpoint

KEPT = {"progress": False, "decode": False}
SAID = ("sampler", "schedule", "steps", "eta", "guidance_scale")


@pytest.fixture(scope="module")
def sd(tmp_path_factory):
    return sdjax.load(make_checkpoint(tmp_path_factory.mktemp("model") / "tiny"))


@pytest.mark.parametrize("preset", SPEED)
def test_a_preset_is_the_arguments_it_stands_for(sd, preset, tmp_path):
    lora = adapters.written(tmp_path / "fast.safetensors", adapters.whole_lora(sd.params, 4))
    made = sd.generate("a red circle", adapters=[(lora, 1)], preset=preset, **KEPT)
    assert {name: made.settings[name] for name in SPEED[preset]} == dict(SPEED[preset])
    assert np.array_equal(
        made.latents, sd.generate("a red circle", adapters=[(lora, 1)], **SPEED[preset], **KEPT).latents
    )
    assert made.settings.get("preset") is None
    again = sd.generate(**made.settings | {"adapters": [(lora, 1)]}, **KEPT)
    assert np.array_equal(again.latents, made.latents)


def test_the_callers_word_counts(sd):
    asked = sd.request("a red circle", preset="lightning", steps=8, guidance_scale=2.0)
    assert [asked.settings[name] for name in SAID] == ["euler", "trailing", 8, None, 2.0]


def test_each_picture_its_own(sd):
    asked = sd.request(["a red circle"] * 2, preset=["tcd", None], guidance_scale=[1.0, 5.0], steps=[20, 7])
    assert asked.settings["sampler"] == ["tcd", "dpmpp_2m"] and asked.settings["steps"] == [4, 7]
    assert asked.settings["eta"] == [0.3, None]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"preset": "lcn"}, "preset 'lcn' is unknown; nearest: 'lcm'"),
        ({"preset": "lcm", "sampler": "euler"}, "preset 'lcm' is for adapters that were made for sampler 'lcm'"),
        ({"preset": "hyper", "schedule": "karras"}, "made for schedule 'trailing'"),
        ({"preset": ["lcm", None]}, "give guidance_scale= for the pictures that have no preset for it"),
    ],
)
def test_what_does_not_go_together(sd, given, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        sd.request(["a red circle"] * 2, **given)
