"""experiments.tpu without a TPU's compiler: its text read, operations counted, networks taken apart."""

import subprocess
import sys
from concurrent.futures import Future
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from experiments import _programs
from experiments.tpu import hlo
from experiments.tpu.__main__ import _settle
from experiments.tpu.chips import CHIPS
from experiments.tpu.estimates import Estimate
from experiments.tpu.operations import operations
from experiments.tpu.parts import parts
from sdjax.core.devices import tracing_for

ROOT = Path(__file__).parent.parent
CLOCK, BANDWIDTH = 1e9, 1e12
# As libtpu writes it, shortened: a loop of 8 rounds around a product of 1,000 cycles and a copy of 2 x 4096 bytes;
# before it a product of 500 cycles, an addition without an estimate, whose input is in the fast memory, an exchange.
TEXT = """HloModule jit_f, is_scheduled=true

%fused (param: bf16[2048]) -> bf16[2048] {
  %param = bf16[2048]{0:T(1024)} parameter(0)
  ROOT %exp = bf16[2048]{0:T(1024)} exponential(%param)
}

%body (arg: (s32[], bf16[2048])) -> (s32[], bf16[2048]) {
  %arg = (s32[]{:T(128)}, bf16[2048]{0:T(1024)}) parameter(0)
  %x = bf16[2048]{0:T(1024)} get-tuple-element(%arg), index=1
  %i = s32[]{:T(128)} get-tuple-element(%arg), index=0
  %fusion.1 = bf16[2048]{0} fusion(%x), calls=%fused, metadata={op_name="dot_general"}, {"estimated_cycles":"1000"}
  %copy.1 = bf16[2048]{0:T(1024)} copy(%fusion.1)
  ROOT %out = (s32[]{:T(128)}, bf16[2048]{0:T(1024)}) tuple(%i, %copy.1)
}

%condition (arg.1: (s32[], bf16[2048])) -> pred[] {
  %constant.1 = s32[]{:T(128)} constant(8)
  %arg.1 = (s32[]{:T(128)}, bf16[2048]{0:T(1024)}) parameter(0)
  %i.1 = s32[]{:T(128)} get-tuple-element(%arg.1), index=0
  ROOT %lt = pred[]{:T(512)} compare(%i.1, %constant.1), direction=LT
}

ENTRY %main (p: bf16[2048], q: bf16[2048]) -> (s32[], bf16[2048]) {
  %p = bf16[2048]{0:T(1024)} parameter(0)
  %q = bf16[2048]{0:T(1024)S(1)} parameter(1)
  %fusion.2 = bf16[2048]{0} fusion(%p), calls=%fused, metadata={op_name="dot_general"}, {"estimated_cycles":"500"}
  %add.1 = bf16[2048]{0:T(1024)} add(%fusion.2, %q)
  %gathered = bf16[4096]{0:T(1024)} all-gather(%add.1), dimensions={0}
  %start = (s32[]{:T(128)}, bf16[2048]{0:T(1024)}) tuple(%zero, %add.1)
  ROOT %loop = (s32[]{:T(128)}, bf16[2048]{0:T(1024)}) while(%start), condition=%condition, body=%body
}
"""


def test_loops_are_counted_and_what_has_no_estimate_is_by_its_bytes():
    cost = hlo.cost(TEXT, CLOCK, BANDWIDTH)
    size = 2 * 2048
    assert cost.by_kind["products"] == pytest.approx((500 + 8 * 1000) / CLOCK)
    assert cost.by_kind["copy"] == pytest.approx(8 * 2 * size / BANDWIDTH)
    assert cost.by_kind["add"] == pytest.approx(2 * size / BANDWIDTH)  # the third is in the fast memory
    assert cost.seconds == pytest.approx(sum(cost.by_kind.values()))
    assert cost.sent == {"all-gather": 2 * size}


def test_a_loop_that_does_not_tell_its_rounds_is_refused():
    text = TEXT.replace("compare(%i.1, %constant.1)", "compare(%i.1, %i.1)").replace("constant(8)", "iota()")
    with pytest.raises(ValueError, match="loop loop does not tell how often"):
        hlo.cost(text, CLOCK, BANDWIDTH)


def test_operations_of_products_convolutions_loops_and_branches():
    x, w, k = jnp.ones((2, 8, 8, 3)), jnp.ones((3, 5)), jnp.ones((3, 3, 3, 4))

    def run(x, w, k):
        y = jax.lax.conv_general_dilated(x, k, (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
        z = jax.lax.map(lambda one: one @ w, x)
        return y, jax.lax.cond(x[0, 0, 0, 0] > 0, lambda: z @ jnp.ones((5, 7)), lambda: jnp.zeros((2, 8, 8, 7)))

    conv, loop, branch = 2 * (2 * 4 * 4 * 4) * 27, 2 * (2 * 8 * 8 * 5) * 3, 2 * (2 * 8 * 8 * 7) * 5
    assert operations(run, x, w, k) == conv + loop + branch


def test_the_parts_are_all_that_a_network_multiplies():
    row = ("bk_sdm_tiny", 128, 1, "bfloat16")
    with tracing_for("tpu"):
        found, calls = parts(*row), _programs.calls(*row)
        for name in ("U-Net step", "decode", "text"):
            own = [part for part in found if part.network == name and part.whole]
            whole = operations(calls[name].function, *calls[name].arrays)
            assert sum(part.times * operations(part, *part.arrays) for part in own) == pytest.approx(whole, rel=1e-3)
    assert len({(part.network, part.what, part.whole, repr((part.module, part.arrays))) for part in found}) == len(
        found
    )


def test_a_row_of_the_table_counts_all_operations_and_never_less_than_memory_takes(capsys):
    """The compiler's own count leaves out all rounds of a loop but one; a program that reads 1 GB takes its time."""
    cell = {"network": "decode", "part": "it", "times": 3, "whole": True, "operations": 4.59e12}
    found: Future[Estimate] = Future()
    found.set_result(Estimate(1.0, 2.0, -1.0, 0.01, {}, 2**20, 10**9, 0, {}, 0, 7.0))
    _settle(cell, found, "v6e")
    assert capsys.readouterr().out == "| decode | it | 3 | 4590.0 | 10.000 | 30.00 | 50% | ? | 1 | 7 |\n"
    assert Estimate(1.0, 2.0, -1.0, 1e-4, {}, 0, 10**9, 0, {}, 0, 7.0).seconds(CHIPS["v6e"]) == 10**9 / 1640e9


@pytest.mark.parametrize(
    "flags, told",
    [
        (["--rows=sd16:512:1"], "sd16"),
        (["--rows=sd15:500:1"], "multiple of 64"),
        (["--sharded=3"], "1, 4 or 8"),
        (["--only=("], "no regular expression"),
        (["--chips=v4"], "v4"),
        ([], "pip install 'jax[tpu]'"),  # without libtpu, as here
    ],
)
def test_a_users_mistakes(flags, told):
    command = [sys.executable, "-m", "experiments.tpu", *flags]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert ran.returncode == 2 and told in ran.stderr and ran.stderr.count("\n") == 1, ran.stderr
