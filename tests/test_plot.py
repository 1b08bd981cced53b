"""A plan drawn."""

import sys

import numpy as np
import pytest

from sdjax.diffusion.plan import plan
from tests.reference import SD


def test_the_picture_is_the_matrix(tmp_path):
    p = plan("ddim", 6, SD, eta=1.0)
    figure = p.plot()
    axes = figure.axes[0]
    shown = np.asarray(axes.images[0].get_array())
    np.testing.assert_allclose(shown * (p.alpha + p.sigma)[:, None], p.weights, rtol=1e-6, atol=1e-12)
    assert [label.get_text() for label in axes.get_yticklabels()][-2:] == ["t = 1", "result"]
    assert len(axes.get_xticklabels()) == 3 and axes.get_title() == "ddim on leading: 6 evaluations"
    figure.savefig(tmp_path / "plan.png")


def test_without_matplotlib(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match="pip install matplotlib"):
        plan("euler", 3, SD).plot()
