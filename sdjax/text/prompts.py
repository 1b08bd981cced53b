"""PLACEHOLDER by the founder until the helper's file stands: overwrite me."""

from dataclasses import dataclass

STYLES = ("plain", "a1111", "comfy")
MAX_CHUNKS = 16


@dataclass(frozen=True)
class Chunk:
    ids: tuple[int, ...]
    weights: tuple[float, ...]


def chunks(text, tokenizer, style):
    row = tokenizer.tokens([text])[0]
    return [Chunk(tuple(row.tolist()), (1.0,) * len(row))]


def weigh(states, weights, empty, style):
    return states


def timeline(text, evaluations, style):
    return [text] * evaluations


def parts(text, style):
    return [(text, 1.0)]
