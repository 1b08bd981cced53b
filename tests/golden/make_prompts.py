"""Makes prompts.json: what A1111's and ComfyUI's own code makes of prompts. Run: python -m tests.golden.make_prompts
FOLDER

FOLDER holds two files, cut from the programs and not part of this repository (needs `lark`, 1.3.1 was used, and
transformers):

- a1111.py, from AUTOMATIC1111/stable-diffusion-webui at 28bd8e1, modules/prompt_parser.py: schedule_parser,
  get_learned_conditioning_prompt_schedules, parse_prompt_attention, and the bodies of get_multicond_prompt_list for one
  prompt, `subprompts(prompt)`, and of reconstruct_cond_batch's choice, `target(schedule, current_step)`; and from
  lllyasviel/stable-diffusion-webui-forge at a05a06b, backend/text_processing/classic_engine.py: tokenize_line and the
  padding of process_tokens without embeddings, `Engine(tokenizer, id_pad, chunk_length).chunks(line)`.
- comfy.py, from Comfy-Org/ComfyUI at 4bd7a40, comfy/sd1_clip.py: token_weights and what it calls, and
  SDTokenizer.tokenize_with_weights without embeddings, `SDTokenizer(tokenizer, pad_token, max_length)`.
"""

import importlib
import json
import random
import sys
import tempfile
from itertools import groupby
from pathlib import Path

from tests.golden.make_tokens import LENGTH, write_tokenizer

EVALUATIONS = 8
KINDS = ("words", "sd2")
PIECES = [
    *"()[]:|\\", "\\(", "\\)", "\\[", "\\]", "\\\\", ":1.3)", ":.5)", ": 2 )", ":1e0)", ":0.5]", ":3]", "::2]",
    "red", "small circle", ", ", " ", "\n", "BREAK", " BREAK ", "AND", " AND ", ":1.2", ": 1.5 ", "(red:1.3)",
    "[red:large:0.5]", "[red|large]", "((", "))", " embedding:y", "a small red square above the large circle ",
]  # fmt: skip
WHENS = ("3", "0.5", " .25 ", "9", "0", "1.0", "-1", "100", "1e0", "2.", "+4", "0.99")


def noise(draw: random.Random) -> str:
    """Signs and words in any order."""
    return "".join(draw.choices(PIECES, k=draw.choice((2, 4, 6, 10))))


def tree(draw: random.Random, depth: int = 0) -> str:
    """A prompt that A1111's grammar reads in one way only."""

    def inner() -> str:
        return tree(draw, depth + 1)

    def one() -> str:
        kind = draw.choices("tbwsearo", (5, 1, 1, 1, 1, 1, 1, 1))[0] if depth < 3 else "t"
        if kind == "t":
            return draw.choice(("red", "small ", "large square, ", " ", "\\(", "\\[a\\]", "one BREAK two"))
        if kind == "b":
            return f"({inner()})"
        if kind == "w":
            return f"({inner()}:{draw.choice(('1.3', ' .7 ', '2'))})"
        if kind == "s":
            return f"[{inner()}]"
        if kind == "o":
            return "[" + "|".join([inner(), *(draw.choice((inner(), "")) for _ in range(draw.choice((1, 2))))]) + "]"
        before = {"e": f"{inner()}:{inner()}", "a": inner(), "r": f"{inner()}:"}[kind]
        return f"[{before}:{draw.choice(WHENS)}]"

    return "".join(one() for _ in range(draw.choice((1, 1, 2, 3))))


def long(draw: random.Random) -> str:
    """A prompt of several rows."""
    words = ("red", "small", "large circle", "square,", ",", "BREAK", "(large:1.2)", "(the left:0.7)", "of embedding:a")
    tail = "[(a very large red square above a small circle on the background, below:1.4), red]"
    return " ".join(draw.choices(words, k=draw.randint(15, 60))) + draw.choice(("", tail, " <|endoftext|> red"))


def runs(values: list) -> list:
    return [[value, len(list(run))] for value, run in groupby(values)]


def of_prompt(prompt: str, a1111, comfy) -> dict:
    weighted = comfy.token_weights(comfy.escape_important(prompt), 1.0)
    try:
        attention = [[text, float(weight)] for text, weight in a1111.parse_prompt_attention(prompt)]
    except ValueError:  # a weight that is no number
        attention = None
    return {
        "prompt": prompt,
        "a1111": attention,
        "comfy": [[comfy.unescape_important(text), weight] for text, weight in weighted],
        "parts": a1111.subprompts(prompt),
    }


def of_edits(prompt: str, a1111) -> dict:
    schedule = a1111.get_learned_conditioning_prompt_schedules([prompt], EVALUATIONS)[0]
    return {"prompt": prompt, "texts": runs([a1111.target(schedule, step) for step in range(EVALUATIONS)])}


def of_rows(prompt: str, kind: str, tokenizer, a1111, comfy) -> dict:
    pad = tokenizer.pad_token_id
    theirs = {"a1111": a1111.Engine(tokenizer, pad, LENGTH - 2).chunks(prompt)}
    pairs = comfy.SDTokenizer(tokenizer, pad, LENGTH).tokenize_with_weights(prompt)
    theirs["comfy"] = [tuple(zip(*row, strict=True)) for row in pairs]
    rows = {style: [[runs(ids), runs(weights)] for ids, weights in found] for style, found in theirs.items()}
    return {"prompt": prompt, "kind": kind, **rows}


def main() -> None:
    """Write prompts.json beside this file."""
    import transformers

    sys.path.insert(0, sys.argv[1])
    a1111, comfy = importlib.import_module("a1111"), importlib.import_module("comfy")
    draw = random.Random(4)
    found: dict[str, list] = {"prompts": [], "edits": [], "rows": []}
    found["prompts"] = [of_prompt(noise(draw) if i % 3 else tree(draw), a1111, comfy) for i in range(200)]
    edits = [text for text in (tree(draw) for _ in range(900)) if "[" in text and len(text) < 80]
    found["edits"] = [of_edits(text, a1111) for text in edits[:180]]
    with tempfile.TemporaryDirectory() as scratch:
        for kind in KINDS:
            folder = write_tokenizer(Path(scratch) / kind, kind)
            tokenizer = transformers.CLIPTokenizer.from_pretrained(folder)
            found["rows"] += [of_rows(long(draw), kind, tokenizer, a1111, comfy) for _ in range(14)]
    lines = {key: ",\n".join(json.dumps(one, ensure_ascii=False) for one in ones) for key, ones in found.items()}
    body = ",\n".join(f'"{key}": [\n{text}\n]' for key, text in lines.items())
    Path(__file__).with_name("prompts.json").write_text(f"{{{body}}}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
