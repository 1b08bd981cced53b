"""The notebooks run from top to bottom, and lie here as they ran."""

import json
import sys
import warnings
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

import sdjax
from experiments.shapes.outlines import NEW_SHAPES
from experiments.shapes.score import score

FOLDER = Path(__file__).parents[1] / "experiments" / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))


def code(path: Path) -> list[dict[str, Any]]:
    return [cell for cell in json.loads(path.read_text("utf-8"))["cells"] if cell["cell_type"] == "code"]


@pytest.fixture
def shown(monkeypatch) -> list[Any]:
    """What the cells display, in a process that has no IPython."""
    made: list[Any] = []
    module: Any = ModuleType("IPython.display")
    module.display = lambda one, display_id: made.append(one) or SimpleNamespace(update=made.append)
    monkeypatch.setitem(sys.modules, "IPython", ModuleType("IPython"))
    monkeypatch.setitem(sys.modules, "IPython.display", module)
    return made


@pytest.mark.ci
@pytest.mark.optimised
def test_first_steps(shown, monkeypatch, tmp_path):
    """Its cells in order; the last one holds that what the mask leaves out is as it was."""
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    for cell in code(FOLDER / "first_steps.ipynb"):
        exec(compile("".join(cell["source"]), "first_steps.ipynb", "exec"), names)
    assert [one.number for one in shown] == list(range(30))
    assert names["stopped"].settings["stop_after"] == 6 and len(names["changed"].images) == 3
    painted = np.asarray(names["painted"].images[0], int)
    assert np.abs(painted[64, 64] - (40, 80, 210)).max() < 40  # the blue of a diamond where the circle was
    assert not list(tmp_path.iterdir())


@pytest.mark.ci
@pytest.mark.optimised
def test_fine_tune(monkeypatch, tmp_path):
    """A LoRA is learnt: most of what it paints are hexagons of the colours asked for, and what was known is still."""
    monkeypatch.setattr("tempfile.mkdtemp", lambda: str(tmp_path))
    names: dict[str, Any] = {}
    with warnings.catch_warnings():
        for cell in code(FOLDER / "fine_tune.ipynb"):
            exec(compile("".join(cell["source"]), "fine_tune.ipynb", "exec"), names)
    before, _, after = (
        [score(np.asarray(image), text, NEW_SHAPES).ok for image, text in zip(images, names["prompts"], strict=True)]
        for images in names["rows"]
    )
    assert not any(before) and sum(after) >= 2
    assert sum(score(np.asarray(i), t).ok for i, t in zip(names["kept"], names["others"], strict=True)) >= 3
    assert sdjax.load_adapter(tmp_path / "adapter.safetensors").metadata["ss_network_dim"] == "8"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_lies_here_as_it_ran(path):
    cells = code(path)
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    assert not [one for cell in cells for one in cell["outputs"] if one["output_type"] in ("error", "stream")]
    assert path.stat().st_size < 300_000
