"""Resizing against torch.nn.functional.interpolate."""

import numpy as np
import pytest
import torch

from sdjax.nn.resize import bicubic, bilinear

SIZES = [
    ((1, 1), (3, 5)), ((2, 3), (4, 6)), ((5, 7), (5, 7)), ((6, 7), (13, 3)), ((13, 9), (4, 31)), ((24, 24), (12, 20)),
    ((17, 5), (1, 1)), ((48, 40), (7, 96)), ((31, 33), (64, 64)),
]  # fmt: skip
KINDS = {
    "bilinear": (bilinear, dict(mode="bilinear", align_corners=False)),
    "corners": (lambda x, size: bilinear(x, size, align_corners=True), dict(mode="bilinear", align_corners=True)),
    "bicubic": (bicubic, dict(mode="bicubic", align_corners=False)),
}


@pytest.mark.parametrize("before, after", SIZES, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_sizes(kind, before, after):
    resize, arguments = KINDS[kind]
    x = np.random.default_rng(0).standard_normal((2, *before, 3)).astype(np.float32)
    theirs = torch.nn.functional.interpolate(torch.from_numpy(x).permute(0, 3, 1, 2), after, **arguments)
    # torch finds places in float32, which moves a weight by 1e-6 where a side is long.
    np.testing.assert_allclose(np.asarray(resize(x, after)), theirs.permute(0, 2, 3, 1).numpy(), atol=2e-5)
