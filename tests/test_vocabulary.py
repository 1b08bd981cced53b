"""CLIP's vocabulary in the package: the published files byte for byte, and the published ids."""

import hashlib
import json
from pathlib import Path

import pytest

from sdjax.text import Tokenizer, vocabulary
from sdjax.text.vocabulary import clip_tokenizer_files

# git's hashes of the files on the Hub: openai/clip-vit-large-patch14's vocabulary, and special_tokens_map.json
# of Stable Diffusion 1.x (padding with EOS) and 2.x (with "!").
PUBLISHED = {
    "vocab.json": "4297ea6a8d2bae1fea8f48b45e257814dcb11f69",
    "merges.txt": "76e821f1b6f0a9709293c3b6b51ed90980b3166b",
}
SPECIAL = {"<|endoftext|>": "2c2130b544c0c5a72d5d00da071ba130a9800fb2", "!": "ae0c5be6f35217e51c4c000fd325d8de0294e99c"}
PUBLISHED_IDS = {
    "a photo of a cat": [320, 1125, 539, 320, 2368],  # transformers' documentation of CLIP
    "a photograph of an astronaut riding a horse": [320, 8853, 539, 550, 18376, 6765, 320, 4558],  # the Hub's blog
}


def git_hash(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


@pytest.mark.parametrize("pad", SPECIAL)
def test_files_are_the_published_ones(pad):
    files = clip_tokenizer_files(pad)
    assert {name: git_hash(files[name]) for name in PUBLISHED} == PUBLISHED
    assert git_hash(files["special_tokens_map.json"]) == SPECIAL[pad]
    assert json.loads(files["tokenizer_config.json"])["pad_token"] == pad


@pytest.mark.parametrize(("pad", "pad_id"), [("<|endoftext|>", 49407), ("!", 0)])
def test_ids_are_the_published_ones(pad, pad_id):
    tokenizer = Tokenizer.read(clip_tokenizer_files(pad), "clip")
    assert (tokenizer.bos, tokenizer.eos, tokenizer.pad) == (49406, 49407, pad_id)
    assert (tokenizer.size, tokenizer.max_length) == (49408, 77)
    rows = tokenizer.tokens([*PUBLISHED_IDS])
    for row, ids in zip(rows, PUBLISHED_IDS.values(), strict=True):
        assert row.tolist() == [49406, *ids, 49407] + [pad_id] * (75 - len(ids))


def test_a_pad_token_of_no_id():
    with pytest.raises(ValueError, match=r"pad_token '<pad>' is not in CLIP's vocabulary"):
        clip_tokenizer_files("<pad>")


def test_its_licence_lies_beside_it():
    folder = Path(vocabulary.__file__).parents[1] / "assets" / "clip"
    assert "Copyright (c) 2021 OpenAI" in (folder / "LICENSE").read_text()
    assert "openai/CLIP" in (folder / "README.md").read_text()
