"""The notebooks run from top to bottom, and lie here as they ran."""

import json
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

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


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_lies_here_as_it_ran(path):
    cells = code(path)
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    assert not [one for cell in cells for one in cell["outputs"] if one["output_type"] in ("error", "stream")]
    assert path.stat().st_size < 300_000
