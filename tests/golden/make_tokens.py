"""Makes tokens.json: what transformers' CLIPTokenizer gives for nasty prompts. Run: python
tests/golden/make_tokens.py

The vocabulary is the word tokenizer's, written with WORDS; `sd2` has the special tokens that Stable Diffusion
2's folder has, where "!" pads though tokenizer_config.json says otherwise.
"""

import json
import tempfile
from pathlib import Path

from sdjax.text import write_word_tokenizer

WORDS = [
    "a", "an", "small", "large", "red", "square", "circle", "above", "below",
    "to", "the", "left", "of", "right", "on", "background", ",", ".",
]  # fmt: skip
LENGTH = 32
PROMPTS = [
    "",
    "a large red circle above a small square on a background",
    "A Large RED Circle,  above.\t\n",
    "don't stop, I'll we've he's 'S 'T",
    "a.b,c!!!...?? x^2 + y_2 = (z) 12345",
    "Ünïcödé ½ İ ß ẞ e\u0301 \u00e9",
    "日本語 中文 😀👨‍👩‍👧 🇩🇪",
    "<|endoftext|> mid <|STARTOFTEXT|> hi!",
    "\x00\x01 \u200b zero \u2028sep\u0085nel\xa0nb",
    "red " * 40,
]


def sd2_special_tokens() -> tuple[dict, dict]:
    """special_tokens_map.json and tokenizer_config.json, at odds on padding as Stable Diffusion 2's are."""
    flags = {"lstrip": False, "normalized": True, "rstrip": False, "single_word": False}
    begin, end = {"content": "<|startoftext|>", **flags}, {"content": "<|endoftext|>", **flags}
    special = {"bos_token": begin, "eos_token": end, "pad_token": "!", "unk_token": end}
    named = {key: {"__type": "AddedToken", **special[key]} for key in ("bos_token", "eos_token", "unk_token")}
    return special, {**named, "pad_token": "<|endoftext|>", "model_max_length": LENGTH, "do_lower_case": True}


def write_tokenizer(folder: Path, kind: str) -> Path:
    """A tokenizer folder of the kind `words` or `sd2`."""
    write_word_tokenizer(folder, WORDS, LENGTH)
    if kind == "sd2":
        for name, value in zip(("special_tokens_map", "tokenizer_config"), sd2_special_tokens(), strict=True):
            (folder / f"{name}.json").write_text(json.dumps(value))
    return folder


def theirs(folder: Path) -> list[list[int]]:
    """The ids of PROMPTS as diffusers asks transformers for them."""
    import transformers

    tokenizer = transformers.CLIPTokenizer.from_pretrained(folder)
    length = tokenizer.model_max_length
    return tokenizer(PROMPTS, padding="max_length", max_length=length, truncation=True)["input_ids"]


def main() -> None:
    """Write tokens.json beside this file."""
    with tempfile.TemporaryDirectory() as scratch:
        ids = {kind: theirs(write_tokenizer(Path(scratch) / kind, kind)) for kind in ("words", "sd2")}
    out = Path(__file__).with_name("tokens.json")
    lines = {kind: [json.dumps(row) for row in rows] for kind, rows in ids.items()}
    body = ",\n".join(f'"{kind}": [\n' + ",\n".join(rows) + "\n]" for kind, rows in lines.items())
    out.write_text(f"{{{body}}}\n")


if __name__ == "__main__":
    main()
