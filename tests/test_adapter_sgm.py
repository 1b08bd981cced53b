"""The original names of a U-Net's modules: from its parameters the same as from its config, whatever its blocks."""

import re

import pytest

from sdjax.adapters.sgm import module_paths, sgm_modules
from sdjax.config import UNetConfig
from sdjax.config.presets import ALIKE, PRESETS
from sdjax.core.tree import flatten
from sdjax.nn.shapes import expected_params
from sdjax.weights import ldm
from sdjax.weights.names import tensor_name

ALL = PRESETS | ALIKE
# Of two, three and four levels, that attend here and there, without a middle, with labels.
TOPS = re.compile(r"(input_blocks|output_blocks|middle_block|out|time_embed|label_emb)(\.|$)")
FAMILIES = ("sd15", "sdxl", "sd2_x4_upscaler", "koala_700m")


@pytest.mark.parametrize("family", FAMILIES)
def test_the_same_as_from_the_config(family):
    config = UNetConfig.from_dict(dict(ALL[family].configs["unet"]))
    params = expected_params({"unet": config})["unet"]
    words, found = ldm.unet_modules(config), sgm_modules(params)
    for path in flatten(params):
        name = tensor_name(path)
        module, leaf = name.rsplit(".", 1)
        assert f"{found[module]}.{leaf}" == ldm.renamed(name, words)
    assert len(set(found.values())) == len(found) == len(module_paths(params))
    assert all(TOPS.match(name) for name in found.values())


@pytest.mark.parametrize("family, ours, theirs", [
    ("sd15", "up_blocks.0.upsamplers.0.conv", "output_blocks.2.1.conv"),  # the one level that does not attend
    ("sd15", "up_blocks.1.upsamplers.0.conv", "output_blocks.5.2.conv"),
    ("sdxl", "up_blocks.0.upsamplers.0.conv", "output_blocks.2.2.conv"),
    ("sdxl", "add_embedding.linear_2", "label_emb.0.2"),
])  # fmt: skip
def test_names_that_are_known(family, ours, theirs):
    config = UNetConfig.from_dict(dict(ALL[family].configs["unet"]))
    found = sgm_modules(expected_params({"unet": config})["unet"])
    assert found[ours] == theirs
