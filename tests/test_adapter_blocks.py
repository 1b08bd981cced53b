"""Weights of blocks: A1111's lists and names by the blocks they count, and rules by path."""

import pytest

from sdjax.adapters.blocks import BlockWeights
from sdjax.adapters.merging import merge
from sdjax.adapters.sgm import module_paths, sgm_modules
from sdjax.config import UNetConfig
from sdjax.config.presets import PRESETS
from sdjax.nn.shapes import expected_params
from tests.test_adapter_merge import close, everywhere, expected, tree

UNETS = {}


def unet(family):
    if family not in UNETS:
        UNETS[family] = expected_params({"unet": UNetConfig.from_dict(dict(PRESETS[family].configs["unet"]))})["unet"]
    return UNETS[family]


LENGTHS = {"sd15": (26, 17), "sdxl": (20, 12)}
# The blocks in the order of the lists, written out by hand from the extension's own tables.
ORDER = {
    26: "BASE IN00 IN01 IN02 IN03 IN04 IN05 IN06 IN07 IN08 IN09 IN10 IN11 M00 "
    "OUT00 OUT01 OUT02 OUT03 OUT04 OUT05 OUT06 OUT07 OUT08 OUT09 OUT10 OUT11",
    17: "BASE IN01 IN02 IN04 IN05 IN07 IN08 M00 OUT03 OUT04 OUT05 OUT06 OUT07 OUT08 OUT09 OUT10 OUT11",
    20: "BASE IN00 IN01 IN02 IN03 IN04 IN05 IN06 IN07 IN08 M00 OUT00 OUT01 OUT02 OUT03 OUT04 OUT05 OUT06 OUT07 OUT08",
    12: "BASE IN04 IN05 IN07 IN08 M00 OUT00 OUT01 OUT02 OUT03 OUT04 OUT05",
}


def block_of(path, names):
    """A module's block by its original name, told in another way than by the code: by its words."""
    words = names[path].split(".")
    side = {"input_blocks": "IN", "output_blocks": "OUT"}.get(words[0])
    if words[0] == "middle_block":
        return "M00"
    return None if side is None else f"{side}{int(words[1]):02}"


@pytest.mark.parametrize("family", LENGTHS)
def test_every_module_of_every_list(family):
    names = sgm_modules(unet(family))
    for length in LENGTHS[family]:
        order = ORDER[length].split()
        assert len(order) == length
        numbers = [i + 1.0 for i in range(length)]
        for weights in (BlockWeights.read(numbers).of(unet(family)), BlockWeights.read(numbers)):
            assert weights("text_encoder", "text_model.encoder.layers.0.mlp.fc1") == weights("text_encoder_2", "x") == 1
            for path in module_paths(unet(family)):
                block = block_of(path, names)
                expected = 1.0 if block is None else float(order.index(block) + 1) if block in order else 0.0
                assert weights("unet", path) == expected, (length, path)


@pytest.mark.parametrize("family, path, block", [
    ("sd15", "conv_in", "IN00"),
    ("sd15", "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q", "IN01"),
    ("sd15", "down_blocks.0.downsamplers.0.conv", "IN03"),
    ("sd15", "down_blocks.3.resnets.1.conv2", "IN11"),
    ("sd15", "mid_block.resnets.1.conv1", "M00"),
    ("sd15", "up_blocks.0.upsamplers.0.conv", "OUT02"),
    ("sd15", "up_blocks.1.attentions.0.proj_in", "OUT03"),
    ("sd15", "up_blocks.3.attentions.2.proj_out", "OUT11"),
    ("sd15", "time_embedding.linear_1", None),
    ("sd15", "conv_out", None),
    ("sdxl", "down_blocks.2.attentions.1.proj_in", "IN08"),
    ("sdxl", "up_blocks.0.attentions.1.transformer_blocks.9.ff.net.2", "OUT01"),
    ("sdxl", "add_embedding.linear_1", None),
])  # fmt: skip
def test_known_blocks(family, path, block):
    weights = BlockWeights.read("ALL")
    assert weights.block("unet", path) == weights.of(unet(family)).block("unet", path) == block


def test_names_are_lists():
    lists = {
        "INS": "BASE IN01 IN02 IN04", "IND": "BASE IN05 IN07 IN08",
        "MIDD": "BASE IN05 IN07 IN08 M00 OUT03 OUT04 OUT05 OUT06",
        "OUTD": "BASE OUT03 OUT04 OUT05 OUT06", "OUTS": "BASE OUT07 OUT08 OUT09 OUT10 OUT11",
        "INALL": "BASE IN01 IN02 IN04 IN05 IN07 IN08", "OUTALL": "BASE " + " ".join(ORDER[17].split()[8:]),
    }  # fmt: skip
    for name, blocks in lists.items():
        numbers = BlockWeights.read(name).of(unet("sd15")).numbers
        assert [block for block in ORDER[17].split() if numbers[block]] == blocks.split(), name
    everything = [("unet", path) for path in module_paths(unet("sd15"))] + [("text_encoder", "x")]
    for name, factor in (("ALL", 1), ("NONE", 0), ("ALL0.5", 0.5)):
        weights = BlockWeights.read(name).of(unet("sd15"))
        assert {weights(*at) for at in everything} == {factor}
    assert BlockWeights.read(" outall ").name == "OUTALL"


def test_a_name_means_sdxls_own_blocks():
    ins, outs = (BlockWeights.read(name).of(unet("sdxl")) for name in ("INALL", "OUTALL"))
    attends, up = "down_blocks.2.attentions.1.proj_in", "up_blocks.0.attentions.0.proj_in"
    assert (ins("unet", attends), ins("unet", up)) == (1, 0) and (outs("unet", attends), outs("unet", up)) == (0, 1)
    assert ins("text_encoder", "x") == outs("text_encoder_2", "x") == 1


def test_a_rule_by_path():
    weights = BlockWeights.read(
        {"down_blocks.1": 0.5, "down_blocks.1.attentions.0.*": 0.25, "*.attn2.*": 2.0, "OUT03": 3.0, "text_encoder": 0}
    ).of(unet("sd15"))
    assert weights("unet", "down_blocks.1.resnets.0.conv1") == 0.5
    assert weights("unet", "down_blocks.1.attentions.0.proj_in") == 0.25
    assert weights("unet", "mid_block.attentions.0.transformer_blocks.0.attn2.to_k") == 2
    assert weights("unet", "up_blocks.1.resnets.0.conv1") == 3 and weights("unet", "up_blocks.1.resnets.1.conv1") == 1
    assert weights("text_encoder", "anything.at.all") == 0 and weights("text_encoder_2", "anything") == 1
    assert BlockWeights.read({"down_blocks.1": 0.5})("unet", "down_blocks.10.conv") == 1
    assert BlockWeights.read({"*": 0.5, "BASE": 0.25}, scale=0.5)("text_encoder_2", "a") == 0.125
    assert BlockWeights.read({"unet.down_blocks": 0})("unet", "down_blocks.0.resnets.0.conv1") == 0


def test_a_scale_on_top_and_how_it_is_written():
    weights = BlockWeights.read("OUTALL", scale=0.8)
    assert weights("text_encoder", "x") == 0.8 and str(weights) == "OUTALL*0.8"
    numbers = [0.5] * 12
    assert str(BlockWeights.read(numbers)) == ",".join(["0.5"] * 12)
    assert BlockWeights.read(str(BlockWeights.read(numbers))) == BlockWeights.read(numbers)


def test_merged_by_block():
    params, adapter = tree(), everywhere()
    weights = BlockWeights.read({"down_blocks.0": 0.5, "text_encoder": 0}, scale=2.0)
    close(merge(params, [(adapter, weights)]), expected(params, adapter, at=weights), 1e-5)


@pytest.mark.parametrize("value, message", [
    ("OUTAL", "block weights 'OUTAL' are unknown; nearest: 'OUTALL'; known: NONE, ALL"),
    ([1.0] * 16, "a list of 17 or 26 numbers for SD 1 and 2, of 12 or 20 for SDXL, not of 16"),
    ([1.0] * 16 + [float("nan")], "block weights: number 17 must be a finite number, not nan"),
    ("1,0,R", "'R' is no number .random"),
    ("1,0,x", "'x' is no number"),
    ({"down_blocks.1": "a"}, "'down_blocks.1' must be a finite number, not 'a'"),
    ({}, "one entry at least"),
    ({3: 1.0}, "by rule are a mapping"),
    (0.5, "are a name, a list or a mapping, not 0.5"),
])  # fmt: skip
def test_what_is_no_block_weight(value, message):
    with pytest.raises(ValueError, match=message):
        BlockWeights.read(value)


@pytest.mark.parametrize("value, family, message", [
    ([1.0] * 17, "sdxl", "a list of 17 is for another family: this U-Net has 9 blocks .* takes lists of 20 or 12"),
    ([1.0] * 12, "sd15", "a list of 12 is for another family: this U-Net has 12 blocks .* takes lists of 26 or 17"),
    ("INS", "sdxl", "INS is for another family"),
    ({"down_block.1": 0.5}, "sd15", "'down_block.1' fits no module; nearest: 'down_blocks."),
    ({"IN12": 0.5}, "sd15", "'IN12' fits no module"),
])  # fmt: skip
def test_block_weights_for_another_family(value, family, message):
    with pytest.raises(ValueError, match=message):
        BlockWeights.read(value).of(unet(family))
