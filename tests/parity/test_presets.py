"""The published families' configs are ones that diffusers knows, and the checked-in tensor lists are its networks'."""

import inspect

import diffusers
import pytest
import transformers

from sdjax.config.presets import ALIKE, PRESETS
from tests.golden import make_tensors

ALL = PRESETS | ALIKE


def test_checked_in_lists_are_todays():
    listed, made = make_tensors.read(), {}
    for name, preset in ALL.items():
        for component, config in preset.configs.items():
            key = repr(sorted(config.items()))
            if key not in made:
                made[key] = make_tensors.shapes(config)
            assert listed[f"{name}/{component}"] == made[key]


@pytest.mark.parametrize("name", ALL)
def test_every_key_is_one_that_the_peer_reads(name):
    for config in ALL[name].configs.values():
        kind = getattr(diffusers, config["_class_name"]) if "_class_name" in config else transformers.CLIPTextConfig
        known = {*inspect.signature(kind.__init__).parameters, "_class_name", "architectures", "model_type"}
        known |= {*transformers.CLIPTextConfig().to_dict()}
        assert {*config} <= known


@pytest.mark.parametrize("name", ALL)
def test_pipeline_and_scheduler_are_diffusers(name):
    preset = ALL[name]
    pipeline = getattr(diffusers, preset.pipeline)
    assert {*preset.configs, *preset.pad_tokens} <= {*inspect.signature(pipeline.__init__).parameters} | {"tokenizer"}
    scheduler = getattr(diffusers, preset.scheduler["_class_name"]).from_config(dict(preset.scheduler))
    wanted = {key: value for key, value in preset.scheduler.items() if key in scheduler.config}
    assert {key: scheduler.config[key] for key in wanted} == wanted
