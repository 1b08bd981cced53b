"""What is read out of a program's text about what it sends."""

import pytest

from experiments._presets import architecture, batch
from experiments.fsdp_table import sent

TEXT = """
  %all-gather.1 = f32[3,3,320,640]{3,2,1,0} all-gather(%p.1), channel_id=1, dimensions={3}
  %all-reduce.7 = (bf16[8,4]{1,0}, f32[]) all-reduce(%a, %b), channel_id=2, to_apply=%add
  %ag = (f32[2]{0}, f32[4]{0}) all-gather-start(%p.2), channel_id=3
  %not = f32[100]{0} add(%all-reduce.7, %c)
"""


def test_what_a_program_sends():
    found = sent(TEXT)
    assert found == {"all-gather": pytest.approx(1e-9 * 4 * (3 * 3 * 320 * 640 + 6)), "all-reduce": 68e-9}


def test_what_a_model_is_told():
    assert batch(architecture("sdxl", "bfloat16", True), 1024, 64) == {
        "latents": (64, 128, 128, 4), "context": (64, 77, 2048), "time_ids": (64, 6), "pooled": (64, 1280)
    }  # fmt: skip
    with pytest.raises(ValueError, match="--model: 'sdxxl' is no preset; nearest: 'sdxl'"):
        architecture("sdxxl", "float32", True)
