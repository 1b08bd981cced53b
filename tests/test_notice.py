"""Warnings point at the line of the caller."""

import warnings
from pathlib import Path

import sdjax
from tests.checkpoints import MAX_LENGTH


def test_a_cut_prompt_is_told_at_the_call(tiny_checkpoint):
    sd = sdjax.load(tiny_checkpoint, compilation_cache=False)
    for call in (lambda text: sd.encode_prompt([text]), lambda text: sd.generate(text, steps=2, decode=False)):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            call("a red circle " * MAX_LENGTH)
        [warning] = [one for one in caught if "cut: " in str(one.message)]
        assert Path(warning.filename) == Path(__file__)
