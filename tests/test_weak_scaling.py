"""The figures of weak scaling: collectives are found in a program's text, and the loop is lowered without being run."""

import pytest

import sdjax
from experiments import weak_scaling
from sdjax import parallel

PROGRAM = """
  %all-reduce.1 = f32[8] all-reduce(f32[8] %x), replica_groups={{0,1}}, to_apply=%add
  %ags = (f32[4], f32[8]) all-gather-start(f32[4] %y), dimensions={0}
  %agd = f32[8] all-gather-done((f32[4], f32[8]) %ags)
  %ag = f32[8] all-gather(f32[4] %y), dimensions={0}
  %sum = f32[8] add(f32[8] %all-reduce.1, f32[8] %ag)
"""


def test_collectives():
    assert weak_scaling.collectives(PROGRAM) == {"all-gather": 2, "all-reduce": 1}
    assert weak_scaling.collectives("%x = f32[8] add(f32[8] %all-reduce, f32[8] %y)") == {}


@pytest.mark.parametrize("prepare", [lambda sd: sd, lambda sd: parallel.spread(sd, 1)], ids=["plain", "spread"])
def test_the_loop_is_lowered(tiny_checkpoint, prepare):
    sd = prepare(sdjax.load(tiny_checkpoint, compilation_cache=False))
    assert "stablehlo.while" in weak_scaling.lowered(sd, 1).as_text()
