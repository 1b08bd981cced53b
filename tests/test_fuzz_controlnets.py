"""Damaged control networks are read whole or refused in words; none makes anything else of them."""

import json
import re
import warnings
from collections import Counter
from pathlib import Path
from random import Random

import numpy as np
import pytest
from safetensors.numpy import save

import sdjax
from sdjax.adapters.control import facts
from sdjax.config import ConfigError
from sdjax.core import tree
from sdjax.nn.shapes import expected_network
from sdjax.weights import CheckpointError
from tests.checkpoints import UNET
from tests.control_nets import (
    FILE,
    XL_UNET,
    cldm,
    control_lora,
    controlnet_config,
    lllite_tensors,
    net_tensors,
    t2i_config,
    unet_params,
    union_config,
)
from tests.single_files import SMALL

CASES = 100
PLAIN = controlnet_config(UNET, factor=2)
ALONE = controlnet_config(SMALL["sd15"].configs["unet"])
T2I = t2i_config({"block_out_channels": [8, 16, 16, 24]})
UNION = union_config(XL_UNET, 8)
SITE = "down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"
# config.json, where there is one, and tensors.
BASES = {
    "diffusers": (PLAIN, net_tensors(PLAIN)),
    "authors": (PLAIN, cldm(net_tensors(PLAIN), PLAIN)),
    "lora": (PLAIN, control_lora(net_tensors(PLAIN), PLAIN)),
    "union": (UNION, net_tensors(UNION)),
    "t2i": (T2I, net_tensors(T2I)),
    "t2i alone": (None, net_tensors(T2I)),
    "lllite": (None, lllite_tensors({SITE: (1, 8)})),
    "alone": (None, net_tensors(ALONE)),
    "authors alone": (None, cldm(net_tensors(ALONE), ALONE)),
}
VALUES = (None, 0, -1, 1e9, 10**12, "x", [], [1], [[1]], {}, True, float("nan"), [None, 2], [8, 16, 16, 24])


def renamed(name: str, rng: Random) -> str:
    if rng.random() < 0.5:  # another number
        return re.sub(r"\d+", lambda found: str(rng.choice([int(found[0]), 0, 1, 7, 99, 1000, 10**9])), name)
    at = rng.randrange(len(name))
    return name[:at] + rng.choice(".0a_\u00e9\n9") + name[at + rng.randint(0, 2) :]


def damaged(array: np.ndarray, rng: Random) -> np.ndarray:
    made = {
        "shape": lambda: np.zeros([rng.choice([0, 1, 2, 8, 16]) for _ in range(rng.randint(0, 4))], np.float32),
        "dtype": lambda: array.astype(rng.choice([np.int8, np.float64, np.int64, bool])),
        "nan": lambda: np.full_like(array, np.nan),
        "nothing": lambda: array[:0],
    }
    return np.ascontiguousarray(made[rng.choice(list(made))]())


def write(path: Path, rng: Random) -> None:
    """One base with one thing or two wrong with it."""
    config, tensors = BASES[rng.choice(list(BASES))]
    config, tensors = config and dict(config), dict(tensors)
    for _ in range(rng.randint(1, 2)):
        name, what = rng.choice(list(tensors)), rng.choice(["missing", "name", "name", "numbers", "numbers", "config"])
        if what == "config" and config:
            config[rng.choice(list(config))] = rng.choice(VALUES)
        elif what == "missing":
            del tensors[name]
        elif what == "name":
            tensors[renamed(name, rng)] = tensors.pop(name)
        else:
            tensors[name] = damaged(tensors[name], rng)
    data = bytearray(save(tensors))
    for _ in range(3 * (rng.random() < 0.2)):
        data[rng.randrange(min(len(data), 4000))] ^= 1 << rng.randrange(8)
    path.write_bytes(data)
    (path.parent / "config.json").unlink(missing_ok=True)
    if config:
        (path.parent / "config.json").write_text(json.dumps(config))


def outcome(path: Path, unet) -> str:
    """ "loaded", with every parameter there and finite, or "refused", in so many words."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            net = sdjax.load_controlnet(path)
        expected = {leaf: one.shape for leaf, one in tree.flatten(expected_network(net.config)).items()}
        if net.needs_unet and net.config.unet.block_out_channels != (8, 16):
            return "loaded"
        made = tree.flatten(net.params(unet))
        assert {leaf: array.shape for leaf, array in made.items()} == expected
        assert all(np.isfinite(np.asarray(array, np.float32)).all() for array in made.values())
        return "loaded"
    except (CheckpointError, ConfigError) as error:
        assert len(str(error)) < 6000 and str(path.parent) in str(error)
        return "refused"
    except ValueError as error:  # of a U-Net that a Control-LoRA is not for
        assert "another family" in str(error)
        return "refused"


def test_a_selection(tmp_path, monkeypatch):
    monkeypatch.setattr(facts, "PRESETS", SMALL)
    rng, counts, unet = Random(1), Counter(), unet_params()
    for _ in range(CASES):
        write(tmp_path / FILE, rng)
        counts[outcome(tmp_path / FILE, unet)] += 1
    assert counts["loaded"] >= 1 and counts["refused"] > CASES // 2


@pytest.mark.parametrize("base", BASES)
def test_the_sound_ones_are_read(base, tmp_path, monkeypatch):
    monkeypatch.setattr(facts, "PRESETS", SMALL)
    config, tensors = BASES[base]
    (tmp_path / FILE).write_bytes(save(tensors))
    if config:
        (tmp_path / "config.json").write_text(json.dumps(config))
    assert outcome(tmp_path / FILE, unet_params()) == "loaded"
