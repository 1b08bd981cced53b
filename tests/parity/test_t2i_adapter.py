"""T2I-Adapters against diffusers on small random files: every feature, float32, <= 1e-5 relative."""

import diffusers
import jax.numpy as jnp
import numpy as np
import pytest
import torch

import sdjax
from sdjax.nn.t2i_adapter import T2IAdapter
from tests.control_nets import t2i_config, write_net
from tests.parity.test_networks import TOLERANCE, relative

FOUR, THREE = {"block_out_channels": [8, 16, 16, 24]}, {"block_out_channels": [8, 16, 24]}
CASES = {
    "full": (FOUR, {}),
    "full, edges": (FOUR, {"in_channels": 1, "num_res_blocks": 1}),
    "light": (FOUR, {"adapter_type": "light_adapter", "channels": [8, 16, 24], "num_res_blocks": 4}),
    "xl": (THREE, {}),
    "xl, light": (FOUR, {"adapter_type": "light_adapter", "channels": [8, 16, 24], "downscale_factor": 16}),
}


# Sizes whose halves are odd: 680 x 384 is 85 x 48 latents, then 43, 22 and 11 rows.
@pytest.mark.parametrize("size", [(680, 384), (64, 96)])
@pytest.mark.parametrize("case", CASES)
def test_features(case, size, tmp_path):
    unet, changes = CASES[case]
    folder = write_net(tmp_path / "net", t2i_config(unet, **changes))
    net, module = sdjax.load_controlnet(folder), diffusers.T2IAdapter.from_pretrained(folder)
    factor = net.config.downscale_factor
    height, width = (side // factor * factor for side in size)
    picture = np.random.default_rng(0).random((2, net.config.in_channels, height, width)).astype(np.float32)
    mine = T2IAdapter(net.config).apply({"params": net.params({})}, jnp.asarray(picture.transpose(0, 2, 3, 1)))
    with torch.no_grad():
        reference = module.eval()(torch.tensor(picture))
    assert len(mine) == len(reference) == 4
    assert [one.shape[1:3] for one in mine] == [tuple(one.shape[2:]) for one in reference]
    assert max(relative(one, other) for one, other in zip(mine, reference, strict=True)) < TOLERANCE
