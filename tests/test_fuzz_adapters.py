"""Damaged adapters are read right or refused in words: a selection of `experiments.fuzz_adapters`, and its own eyes."""

import dataclasses

import numpy as np
import pytest

from experiments.fuzz_adapter_files import STYLES, make
from experiments.fuzz_adapters import AdapterDoor
from experiments.fuzz_door import Wrong, run_case

CASES = 80


@pytest.fixture(scope="module")
def door(tmp_path_factory):
    bases = tmp_path_factory.mktemp("bases")
    make(bases)
    return AdapterDoor(bases)


def test_a_selection(door):
    results = [run_case(door, 1, case) for case in range(CASES)]
    assert [result for result in results if result.outcome not in ("loaded", "refused")] == []
    counts = {what: sum(result.outcome == what for result in results) for what in ("loaded", "refused")}
    assert counts["loaded"] > CASES // 10 and counts["refused"] > CASES // 2


@pytest.mark.parametrize("base", [*STYLES, "words.safetensors", "hyper.safetensors"])
def test_sound_ones_are_read_right(base, door):
    opened = door.open(door.bases / base)
    (door.bases / "again.safetensors").unlink(missing_ok=True)
    door.check(door.bases / base, opened)
    if base not in STYLES:
        return
    found, bound, again = opened
    every = ((c, p, leaf, delta) for c in bound for p in bound[c] for leaf, delta in bound[c][p].items())
    component, path, leaf, delta = next(one for one in every if hasattr(one[3], "strength"))
    other = {**bound, component: {**bound[component], path: {leaf: dataclasses.replace(delta, strength=3.0)}}}
    with pytest.raises(Wrong, match=f"{component}.{path}.{leaf} is not what its tensors say"):
        door.check(door.bases / base, (found, other, again))
    less = {**bound, component: {p: one for p, one in bound[component].items() if p != path}}
    with pytest.raises(Wrong, match="other modules"):
        door.check(door.bases / base, (found, less, again))
    tensors = {name: array + np.ones((), array.dtype) for name, array in found.tensors.items()}
    with pytest.raises(Wrong, match="is not what its bytes are"):
        door.check(door.bases / base, (dataclasses.replace(found, tensors=tensors), bound, again))
